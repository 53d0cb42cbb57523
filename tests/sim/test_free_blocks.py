"""Free blocks need not agree between sites, and never show: not in files, not in the log when it grows."""

import random

from jfs.filesystem import FileSystem
from jfs.listing import read_listing
from jfs.mkfs import make_file_system
from jfs.store import Store, StoreOptions
from tests.sim.stream import BLOCK, ZERO, Blocks, StreamDevice, copy_runs, expand, put
from tests.sim.test_theorem import SIZE_BYTES, VOLUME
from tests.sim.workload import Workload

STEPS = 400


async def made_with_other_free_blocks(rng: random.Random) -> tuple[StreamDevice, Blocks]:
    """A new file system, and a site that has it too, with other content in the blocks that are free."""
    device = StreamDevice(SIZE_BYTES)
    await make_file_system(
        device, volume_uuid=VOLUME, epoch=1, label="free", segment_bytes=64 << 10, log_limit_bytes=4 << 20
    )
    following = {block: rng.randbytes(BLOCK) for block in range(SIZE_BYTES // BLOCK)}
    for block in expand(read_listing(device).allocated_runs()):
        following[block] = device.blocks.get(block, ZERO)
    return device, following


async def test_sites_that_differ_in_free_blocks_agree_in_all_others(seed: int) -> None:
    """A site that follows the stream from a base with other content in its free blocks.

    So it is after a failover: what was under way when the primary died is at one site and not at another.
    """
    rng = random.Random(seed)
    device, following = await made_with_other_free_blocks(rng)
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


async def test_a_copy_by_the_log_misses_no_segment_that_the_log_is_about_to_take(seed: int) -> None:
    """A site that is brought level by what the log names and the entries since (P6), and then by entries.

    A segment that is taken but not recorded is not named yet. What makes it the same at all sites must
    therefore not be over before it is recorded: else a copy in between passes it by.
    """
    rng = random.Random(seed)
    device, following = await made_with_other_free_blocks(rng)
    store = await Store.open(device, options=StoreOptions(linger_seconds=0.0))
    first_segments = len(store.volume.writer().owned())
    workload = Workload(FileSystem(store), rng)
    arrived = device.issued_sequence
    for _ in range(STEPS):
        workload.step()
        await store.throttle()
        if rng.random() < 0.2:
            await store.commit()
        if rng.random() < 0.2:
            if rng.random() < 0.5:  # what came up to here left the queue before it was shipped
                arrived = device.issued_sequence
                await store.commit()
                copy_runs(device.blocks, following, read_listing(device).block_runs)
            for offset, payload in device.stream[arrived:]:
                put(following, offset, payload)
            arrived = device.far = device.issued_sequence
            used = expand(read_listing(device).allocated_runs())
            assert not [block for block in used if following[block] != device.blocks.get(block, ZERO)]
    assert len(store.volume.writer().owned()) > first_segments, "the log must have grown"
