"""Free blocks need not agree between sites, and never show: not in files, not in the log when it grows."""

import random

from jfs.filesystem import FileSystem
from jfs.listing import read_listing
from jfs.mkfs import make_file_system
from jfs.store import Store, StoreOptions
from tests.sim.stream import BLOCK, ZERO, StreamDevice, expand, put
from tests.sim.test_theorem import SIZE_BYTES, VOLUME
from tests.sim.workload import Workload

STEPS = 400


async def test_sites_that_differ_in_free_blocks_agree_in_all_others(seed: int) -> None:
    """A site that follows the stream from a base with other content in its free blocks.

    So it is after a failover: what was under way when the primary died is at one site and not at another.
    """
    rng = random.Random(seed)
    device = StreamDevice(SIZE_BYTES)
    await make_file_system(
        device, volume_uuid=VOLUME, epoch=1, label="free", segment_bytes=64 << 10, log_limit_bytes=4 << 20
    )
    following = {block: rng.randbytes(BLOCK) for block in range(SIZE_BYTES // BLOCK)}
    for block in expand(read_listing(device).allocated_runs()):
        following[block] = device.blocks.get(block, ZERO)
    made = len(device.stream)
    store = await Store.open(device, options=StoreOptions(linger_seconds=0.0))
    first_segments = len(store.volume.writer().owned())
    workload = Workload(FileSystem(store), rng)
    for _ in range(STEPS):
        workload.step()
        await store.throttle()
        if rng.random() < 0.2:
            await store.commit()
    await store.checkpoint()
    assert len(store.volume.writer().owned()) > first_segments, "the log must have grown"
    for offset, payload in device.stream[made:]:
        put(following, offset, payload)
    used = expand(read_listing(device).allocated_runs())
    assert not [block for block in used if following[block] != device.blocks.get(block, ZERO)]
