"""What a catch-up carries after the far site missed thousands of overwrites, each with an fsync: every block
once, as it is at the end, however often it was written.
"""

import os
import random
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from jfs.device import BLOCK_BYTES, FileDevice
from jfs.listing import every_file, read_listing
from replication.shipper import LONG_SECONDS
from tests.system.kills import OPTIONS, prepare
from tests.system.namespaces import NetGround, Network
from vsap.entry import DISCARD, WRITE
from vsap.queue import EntryQueue

pytestmark = [pytest.mark.fuse]

MOST: Final = 1.1
"""Of what is left: the headers of frames are the rest, and what the file system says of having caught up."""
IDLE_SECONDS: Final = LONG_SECONDS + 2
"""More than the file system waits before it writes a checkpoint of its own; and the queue is a long one then,
however quickly it was written.
"""
PATIENT: Final = OPTIONS.replace("silence_seconds = 1.0", "silence_seconds = 20.0")


class Waiting(NamedTuple):
    """What waits for the far site: bytes written, and bytes of what these writes left, each once."""

    data_written: int
    data_left: int
    metadata_written: int
    metadata_left: int

    @property
    def written(self) -> int:
        """Of everything."""
        return self.data_written + self.metadata_written

    @property
    def left(self) -> int:
        """Of everything."""
        return self.data_left + self.metadata_left


def waiting(directory: Path) -> Waiting:
    """What waits in the queue of a site whose file system is mounted and at rest."""
    device = FileDevice(directory / "area", read_only=True)
    try:
        listing = read_listing(device)
        runs = [run for file in every_file(listing) for run in file.block_runs]
    finally:
        device.close()
    data = {block for start, count in runs for block in range(start, start + count)}
    kinds: dict[int, int] = {}
    written = [0, 0]
    with closing(EntryQueue.open(directory / "queue", listing.uuid)) as queue:
        following = queue.state().far_durable_sequence + 1
        while entries := queue.read_index(following):
            for entry in entries:
                if entry.kind in (WRITE, DISCARD):
                    for block in range(entry.offset // BLOCK_BYTES, entry.end // BLOCK_BYTES):
                        kinds[block] = entry.kind
                        written[block not in data] += BLOCK_BYTES if entry.kind == WRITE else 0
            following = entries[-1].sequence + 1
    left = [0, 0]
    for block, kind in kinds.items():
        left[block not in data] += BLOCK_BYTES if kind == WRITE else 0
    return Waiting(written[0], left[0], written[1], left[1])


def appended_bytes(directory: Path) -> int:
    """Data of all entries that the queue of a site was ever given."""
    device = FileDevice(directory / "area", read_only=True)
    try:
        volume = read_listing(device).uuid
    finally:
        device.close()
    with closing(EntryQueue.open(directory / "queue", volume)) as queue:
        return queue._stored_state().stream_bytes


class Case(NamedTuple):
    """Writes, blocks that they go to, the volume (its log has a sixteenth), and the far link: what is a long
    queue depends on what it carries.
    """

    writes: int
    blocks: int
    volume: str
    options: str


SHORT: Final = Case(2000, 128, "64MiB", f'{PATIENT}far_limit_bytes_per_second = "512KiB"\n')
LONG: Final = Case(int(os.environ.get("TRISITE_WRITES", "30000")), 8192, "512MiB", PATIENT)


def overwrite(file: Path, case: Case, seed: int) -> None:
    """Random blocks, each write with an fsync."""
    chance = random.Random(seed)
    with file.open("r+b", buffering=0) as opened:
        for _ in range(case.writes):
            data = chance.randbytes(BLOCK_BYTES)
            os.pwrite(opened.fileno(), data, chance.randrange(case.blocks) * BLOCK_BYTES)
            os.fsync(opened.fileno())


def follows(ground: NetGround) -> bool:
    """Whether the far site has everything and says so."""
    pairs = {pair["to"]: pair["state"] for pair in ground.status()["pairs"]}
    return pairs["async"] == "Duplex" and ground.queue_is_empty()


def far_link_bytes(ground: NetGround) -> int:
    """What was sent in sets since the writer's daemon was started."""
    return int(ground.status()["far_link"]["wire_bytes"])


def run(directory: Path, network: Network, case: Case, seed: int) -> str:
    """The far site away, the writes, the catch-up; the figures in a sentence."""
    with prepare(NetGround(directory, network, size=case.volume, options=case.options)) as ground:
        file = ground.mountpoint / "file"
        with file.open("wb") as opened:
            opened.write(random.Random(seed).randbytes(case.blocks * BLOCK_BYTES))
            os.fsync(opened.fileno())
        ground.wait_for(partial(follows, ground), "the far site to follow")
        ground.network.swallow("async")
        overwrite(file, case, seed)
        time.sleep(IDLE_SECONDS)
        waits, given = waiting(ground.directory / "primary"), appended_bytes(ground.directory / "primary")
        carried, sent = ground.network.carried("async"), far_link_bytes(ground)
        ground.network.swallow("async", silent=False)
        ground.wait_for(partial(follows, ground), "the far site to follow again", seconds=600)
        carried = ground.network.carried("async") - carried
        sent = far_link_bytes(ground) - sent
        # What the file system said of it meanwhile, the more the longer it took, travels too.
        meanwhile = appended_bytes(ground.directory / "primary") - given
        ground.verify("sync,async")
        ground.unmount()
        ground.check_sites()
    assert waits.written > 2 * waits.left
    assert waits.left < sent <= MOST * (waits.left + meanwhile), (sent, waits, meanwhile)
    return (
        f"{case.writes:,} writes with fsync to {case.blocks:,} blocks: data {waits.data_written:,} bytes "
        f"({waits.data_left:,} once each), metadata {waits.metadata_written:,} ({waits.metadata_left:,}); "
        f"sent {sent:,} bytes in sets, {sent / waits.left:.3f} of everything once each, "
        f"{meanwhile:,} were written meanwhile, "
        f"{sent / waits.data_left:.2f} of the data; the network carried {carried:,} bytes, with status"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_block_travels_once(tmp_path: Path, seed: int, network: Network) -> None:
    print(run(tmp_path / "volume", network, SHORT, seed))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_each_block_of_a_long_absence_travels_once(
    tmp_path: Path, seed: int, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(tmp_path / "volume", network, LONG, seed)
    with capsys.disabled():
        print(f"\nseed {seed}: {said}")
