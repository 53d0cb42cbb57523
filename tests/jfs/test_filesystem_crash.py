"""Power cuts under a working file system: what the next mount finds is a state that was, and nobody else's
bytes.

Every step makes a *version*: the names, sizes and contents at that moment. After a cut the names and sizes
must be
those of one version, not older than the last finished commit. A sector of a file must be what it was in
some version
since then, and only in one that still had the block: a block that was cut in between may not show through.
"""

import random
from dataclasses import dataclass, field
from itertools import pairwise
from stat import S_IFREG
from uuid import UUID

import pytest
import trio

from jfs import fileio
from jfs.filesystem import FileSystem
from jfs.fsck import check
from jfs.layout import ORPHAN, ORPHAN_INO, key_range
from jfs.mkfs import make_file_system
from jfs.store import Store, StoreOptions
from tests.conftest import run_seed
from tests.crash.images import Images
from tests.crash.schedule import Schedule
from tests.devices import CrashDevice, MemoryDevice

SIZE = 16 << 20
ROOT = 1
SECTOR = 512
BLOCK = 4096
STEPS = 80
CUTS = 20
NAMES = [b"a", b"b", b"c", b"d"]


@dataclass
class Version:
    """The visible state after a step: inode of each name, content of each inode."""

    names: dict[bytes, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)

    def sizes(self) -> dict[bytes, tuple[int, int]]:
        return {name: (ino, len(self.contents[ino])) for name, ino in self.names.items()}


class Workload:
    """Random steps on a file system; keeps every version and notes in the device what commits have made
    durable."""

    def __init__(self, fs: FileSystem, device: CrashDevice, chance: random.Random) -> None:
        self.fs = fs
        self.device = device
        self.chance = chance
        self.versions = [Version()]

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(STEPS):
                match self.chance.randrange(10):
                    case 0:
                        await self._commit()
                    case 1:
                        nursery.start_soon(self._commit)
                    case 2:
                        nursery.start_soon(self.fs.store.checkpoint)
                    case 3:
                        await trio.lowlevel.checkpoint()
                        await self.fs.throttle()
                    case _:
                        self._step()
                self.device.note(("version", len(self.versions) - 1))

    async def _commit(self) -> None:
        version = len(self.versions) - 1
        await self.fs.commit()
        self.device.note(("durable", version))

    def _step(self) -> None:
        last = self.versions[-1]
        new = Version(dict(last.names), dict(last.contents))
        name = self.chance.choice(NAMES)
        ino = new.names.get(name)
        if ino is None:
            new.names[name] = ino = self.fs.make(ROOT, name, S_IFREG | 0o600).ino
            new.contents[ino] = b""
        else:
            match self.chance.randrange(8):
                case 0:
                    self.fs.unlink(ROOT, name)
                    del new.names[name], new.contents[ino]
                case 1:
                    self._rename(new, name, ino)
                case 2 | 3:
                    size = self.chance.randrange(20_000)
                    self.fs.setattr(ino, size=size)
                    new.contents[ino] = new.contents[ino][:size].ljust(size, b"\0")
                case _:
                    self._write(new, ino)
        self.versions.append(new)

    def _rename(self, new: Version, name: bytes, ino: int) -> None:
        target = self.chance.choice(NAMES)
        if target == name:
            return
        self.fs.rename(ROOT, name, ROOT, target)
        gone = new.names.get(target)
        del new.names[name]
        new.names[target] = ino
        if gone is not None:
            del new.contents[gone]

    def _write(self, new: Version, ino: int) -> None:
        offset, length = self.chance.randrange(16_000), self.chance.randrange(1, 9_000)
        # Bytes no other write has: file and step, so that a sector shows whose it is.
        data = (b"%08d.%08d|" % (ino, len(self.versions)) * 600)[:length]
        self.fs.write(ino, offset, data)
        old = new.contents[ino].ljust(offset, b"\0")
        new.contents[ino] = old[:offset] + data + old[offset + length :]


def may_show(versions: list[Version], ino: int, then: int, shown: int, block: int) -> bool:
    """May a block of a file, with the metadata of version `then`, hold what it held in version `shown`?

    Only if the file kept the block from the one to the other.
    """
    low, high = min(then, shown), max(then, shown)
    between = [version.contents.get(ino) for version in versions[low : high + 1]]
    if any(content is None for content in between):
        return False
    sizes = [len(content or b"") for content in between]
    end = (block + 1) * BLOCK
    return all(after >= min(before, end) for before, after in pairwise(sizes))


def wrong_sectors(versions: list[Version], durable: int, then: int, ino: int, found: bytes) -> list[int]:
    """The sectors of a file that hold what they may not hold."""
    wrong = []
    for start in range(0, len(found), SECTOR):
        sector = found[start : start + SECTOR]
        block = start // BLOCK
        shown = (
            versions[number].contents[ino][start : start + len(sector)].ljust(len(sector), b"\0")
            for number in range(durable, len(versions))
            if may_show(versions, ino, then, number, block)
        )
        if sector not in shown:
            wrong.append(start // SECTOR)
    return wrong


async def check_cut(device: MemoryDevice, versions: list[Version], durable: int, newest: int) -> None:
    assert check(device) == []
    fs = FileSystem(await Store.open(device))
    found = {entry.name: entry.ino for entry in fs.readdir(ROOT) if entry.name not in (b".", b"..")}
    sizes = {name: (ino, fs.node(ino).size_bytes) for name, ino in found.items()}
    fitting = [then for then in range(durable, newest + 1) if versions[then].sizes() == sizes]
    assert fitting, f"{sizes} was never the state between versions {durable} and {newest}"
    contents = {ino: bytes(fs.read(ino, 0, 1 << 20)) for ino in found.values()}
    faults = [
        {
            ino: wrong
            for ino, data in contents.items()
            if (wrong := wrong_sectors(versions, durable, then, ino, data))
        }
        for then in fitting
    ]
    assert {} in faults, f"sectors that show what they may not: {faults[0]}"
    # What was written behind the end and lost its size with the cut must not come back when the file grows.
    for ino, data in contents.items():
        fs.setattr(ino, size=len(data) + 5000)
        assert bytes(fs.read(ino, 0, 1 << 20)) == data + bytes(5000)
    # The volume works: it can be written, closed and opened again.
    node = fs.make(ROOT, b"after", S_IFREG | 0o600)
    fs.write(node.ino, 0, b"x" * 5000)
    await fs.close()
    again = FileSystem(await Store.open(device))
    assert bytes(again.read(node.ino, 0, 9000)) == b"x" * 5000
    assert list(again.store.scan(*key_range(ORPHAN_INO, ORPHAN))) == []
    assert check(device) == []


@pytest.mark.parametrize("piece_extents", [fileio.PIECE_EXTENTS, 1])
@pytest.mark.parametrize("number", range(20))
async def test_a_power_cut_shows_a_state_that_was(
    number: int, piece_extents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every cut and every removal takes several batches."""
    monkeypatch.setattr(fileio, "PIECE_EXTENTS", piece_extents)
    chance = random.Random(run_seed() * 1000 + number)
    device = CrashDevice(SIZE)
    await make_file_system(device, volume_uuid=UUID(int=chance.getrandbits(128)), epoch=1, label="crash")
    fs = FileSystem(await Store.open(device, options=StoreOptions(linger_seconds=0.0)))
    await fs.commit()
    begin = len(device.history)
    work = Workload(fs, device, chance)
    await work.run()
    for _ in range(CUTS):
        at = chance.randrange(begin, len(device.history) + 1)
        notes = dict.fromkeys(("version", "durable"), 0)
        for note in device.noted(at):
            assert isinstance(note, tuple)
            notes[note[0]] = max(notes[note[0]], note[1])
        newest = min(notes["version"] + 1, len(work.versions) - 1)
        await check_cut(device.materialise(chance, at), work.versions[: newest + 1], notes["durable"], newest)


async def test_a_file_grows_with_its_data_or_not_at_all() -> None:
    """Also where the growth stays in a block that the file has already: no zeros, and nothing older."""
    device = CrashDevice(SIZE)
    await make_file_system(device, volume_uuid=UUID(int=11), epoch=1, label="crash")
    fs = FileSystem(await Store.open(device, options=StoreOptions(linger_seconds=0.0)))
    node = fs.make(ROOT, b"log", S_IFREG | 0o600)
    fs.write(node.ino, 0, b"a" * 5000)
    await fs.commit()
    begin = len(device.history)
    fs.write(node.ino, 5000, b"b" * 1000)
    await fs.commit()
    images = Images(device)
    sizes = set()
    for point in range(begin, len(device.history) + 1):
        for choice in range(64):
            schedule = Schedule("growing", point, choice)
            crashed = images.image(schedule, schedule.chance())
            found = FileSystem(await Store.open(crashed, read_only=True), read_only=True)
            content = bytes(found.read(node.ino, 0, 10_000))
            assert content in (b"a" * 5000, b"a" * 5000 + b"b" * 1000), str(schedule)
            sizes.add(len(content))
    assert sizes == {5000, 6000}
