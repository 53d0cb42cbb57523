"""Files of very many extents: cut and removed in pieces that the log can hold."""

import errno
from uuid import UUID

import pytest

from jfs import fileio
from jfs.errors import NoSpace
from jfs.filesystem import FileSystem
from jfs.fsck import check
from jfs.layout import ORPHAN, ORPHAN_INO, key_range
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.world import FILE, ROOT, new_file_system, refused, reopened

BLOCK = bytes(range(256)) * 16


async def full_of_one_file(size_bytes: int) -> tuple[FileSystem, int, int]:
    """A volume without room, all in one file that is every second block a hole; its inode and extents."""
    fs = await new_file_system(size_bytes)
    ino = fs.make(ROOT, b"large", FILE).ino
    extents = 0
    while True:
        try:
            fs.write(ino, extents * 2 * len(BLOCK), BLOCK)
        except NoSpace:
            break
        extents += 1
        await fs.throttle()
    await fs.commit()
    return fs, ino, extents


def orphans(fs: FileSystem) -> list[bytes]:
    return [key for key, _ in fs.store.scan(*key_range(ORPHAN_INO, ORPHAN))]


@pytest.mark.parametrize(
    ("size_bytes", "least"), [(64 << 20, 14_500), pytest.param(416 << 20, 100_000, marks=pytest.mark.slow)]
)
async def test_removing_a_file_of_many_extents_from_a_full_volume(size_bytes: int, least: int) -> None:
    fs, ino, extents = await full_of_one_file(size_bytes)
    assert extents > least
    fs.unlink(ROOT, b"large")
    await fs.throttle()
    await fs.commit()
    refused(errno.ESTALE, fs.node, ino)
    assert fs.statfs().blocks_free > extents
    fs = await reopened(fs)
    assert fs.lookup(ROOT, b"large") is None
    await fs.close()
    assert check(fs.store.device) == []


async def test_cutting_a_file_of_many_extents_on_a_full_volume() -> None:
    fs, ino, extents = await full_of_one_file(64 << 20)
    kept = 1000 * len(BLOCK) + 10
    fs.truncate(ino, kept)
    assert fs.node(ino).size_bytes == kept
    assert len(orphans(fs)) == 1
    await fs.throttle()
    assert orphans(fs) == []
    assert fs.node(ino).blocks == 501
    fs = await reopened(fs)
    assert check(fs.store.device) == []
    assert bytes(fs.read(ino, kept - 10, 100)) == BLOCK[:10]
    assert fs.statfs().blocks_free > extents - 1000


async def crashed(fs: FileSystem) -> FileSystem:
    """The process dies after a commit, and the volume is mounted again."""
    await fs.commit()
    device = fs.store.device
    assert isinstance(device, MemoryDevice)
    left = MemoryDevice(device.size_bytes, dict(device.blocks))
    assert check(left) == []
    return FileSystem(await Store.open(left))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("removed", [False, True])
async def test_a_crash_in_the_middle(
    cut: bool, removed: bool, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the pieces have come, the file is as after the cut or gone, and the next mount ends it."""
    monkeypatch.setattr(fileio, "PIECE_EXTENTS", 10)
    fs = await new_file_system()
    ino = fs.make(ROOT, b"large", FILE).ino
    for number in range(100):
        fs.write(ino, number * 2 * len(BLOCK), BLOCK)
    if held:
        fs.remember_lookup(ino)
    if cut:
        fs.truncate(ino, 8 * len(BLOCK))
    if removed:
        fs.unlink(ROOT, b"large")
    again = await crashed(fs)
    if removed:
        assert again.lookup(ROOT, b"large") is None
    else:
        assert again.node(ino).size_bytes == (8 if cut else 199) * len(BLOCK)
    await again.settle()
    assert orphans(again) == []
    if removed:
        refused(errno.ESTALE, again.node, ino)
    else:
        assert again.node(ino).blocks == (4 if cut else 100)
    await fs.settle()
    assert (fs.lookup(ROOT, b"large") is None) == removed
    for one in (fs, again):
        await one.close()
        assert check(one.store.device) == []


@pytest.mark.parametrize("how", ["write", "truncate"])
async def test_what_was_cut_does_not_come_back_when_the_file_grows(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fileio, "PIECE_EXTENTS", 10)
    fs = await new_file_system()
    ino = fs.make(ROOT, b"large", FILE).ino
    for number in range(100):
        fs.write(ino, number * 2 * len(BLOCK), BLOCK)
    fs.truncate(ino, len(BLOCK))
    if how == "write":
        fs.write(ino, 300 * len(BLOCK), b"end")
    else:
        fs.truncate(ino, 300 * len(BLOCK))
    assert bytes(fs.read(ino, 0, 200 * len(BLOCK))) == BLOCK.ljust(200 * len(BLOCK), b"\0")
    assert orphans(fs) == []
    fs = await reopened(fs)
    assert bytes(fs.read(ino, 0, 200 * len(BLOCK))) == BLOCK.ljust(200 * len(BLOCK), b"\0")


async def test_many_small_files_go_from_a_full_volume() -> None:
    """What many operations change together fits into the log as well, as long as they are throttled."""
    device = MemoryDevice(64 << 20)
    await make_file_system(device, volume_uuid=UUID(int=3), epoch=1, label="small")
    fs = FileSystem(await Store.open(device))
    names: list[bytes] = []
    while True:
        name = b"%06d" % len(names)
        try:
            fs.write(fs.make(ROOT, name, FILE).ino, 0, BLOCK * 2)
        except NoSpace:
            break
        names.append(name)
        await fs.throttle()
    await fs.commit()
    for name in names:
        fs.unlink(ROOT, name)
        await fs.throttle()
    await fs.close()
    assert check(device) == []
