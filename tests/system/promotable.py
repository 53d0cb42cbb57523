"""Whether the far site could be promoted at an instant: its directory copied there and then, and promoted."""

import os
import subprocess
from pathlib import Path

import trio

from jfs.device import FileDevice
from jfs.filesystem import FileSystem
from jfs.fsck import check
from jfs.store import Store
from replication.config import Config
from replication.parts import Place, SitePaths
from replication.position import Position
from replication.set_receiver import SetReceiver
from replication.state import SiteState
from tests.system.paced import BLOCK_BYTES, BLOCKS
from vsap.area import FileArea


def copy_site(directory: Path, target: Path) -> None:
    """The directory of a site as it is now; the caller holds its daemon with SIGSTOP."""
    target.mkdir()
    for part in ("area", "journal", "state"):
        words = ["cp", "-r", "--sparse=always", "--reflink=auto", str(directory / part), str(target)]
        subprocess.run(words, check=True, capture_output=True)


async def promote(config: Config, directory: Path) -> Position:
    """Do to a copy what a take-over does at the async site; the position it would go on from."""
    state = SiteState(directory / "state")
    try:
        place = Place(config, "async", SitePaths(directory), state)
        area, journal = FileArea(directory / "area"), place.open_journal()
        epoch = state.roles.epoch if state.roles is not None else 0
        receiver = SetReceiver(area, journal, volume=place.volume.uuid.bytes, epoch=lambda: epoch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.run)
            position = await receiver.promote()
            nursery.cancel_scope.cancel()
        journal.close()
        area.close()
    finally:
        state.close()
    return position


async def read_file(area: Path, name: str) -> list[bytes]:
    """The blocks of a file, as a mount of this area would show them."""
    device = FileDevice(area, read_only=True)
    store = await Store.open(device, read_only=True)
    try:
        files = FileSystem(store)
        node = files.lookup(1, name.encode())
        assert node is not None, f"there is no {name}"
        data = bytes(files.read(node.ino, 0, BLOCKS * BLOCK_BYTES, access=False))
    finally:
        device.close()
    return [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]


def promoted(config: Config, directory: Path, name: str) -> tuple[Position, list[bytes]]:
    """Promote a copy and read a file there; AssertionError where fsck finds anything."""
    position = trio.run(promote, config, directory)
    device = FileDevice(directory / "area", read_only=True)
    try:
        findings = check(device)
    finally:
        device.close()
    assert not findings, f"fsck finds {len(findings)} faults at {position}: {findings[:3]}"
    return position, trio.run(read_file, directory / "area", name)


def resident_bytes(pid: int) -> int:
    """The memory that a process has resident now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
