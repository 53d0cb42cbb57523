"""A volume with known content, and precise ways to damage it, for the tests of fsck."""

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG
from uuid import UUID

from jfs import directory
from jfs.filesystem import FileSystem, Owner
from jfs.fsck import Finding
from jfs.inode import Inode
from jfs.layout import BLOCK_BYTES, DIRENT, INODE, Superblock, make_key
from jfs.mkfs import make_file_system
from jfs.replay import read_superblock
from jfs.store import Store
from tests.devices import MemoryDevice

VOLUME = UUID("f5c40000-1234-4000-8000-000000000001")
SEED = directory.seed_of(VOLUME.bytes)
SIZE_BYTES = 32 << 20
MANY = 120
MOST_BYTES = 1 << 20  # damage may make a file enormous, with nothing in it
ROOT = 1


@dataclass
class World:
    """A volume and what it should hold: path -> content of a file, target of a link, or type of the rest."""

    device: MemoryDevice
    content: dict[str, bytes | int]
    inos: dict[str, int]

    def copy(self) -> "World":
        """The same world on a device of its own."""
        device = MemoryDevice(self.device.size_bytes, dict(self.device.blocks))
        return World(device, dict(self.content), dict(self.inos))


def _parts(path: str) -> tuple[str, bytes]:
    parent, _, name = path.rpartition("/")
    return parent, name.encode()


class Builder:
    """Makes files by path."""

    def __init__(self, world: World, file_system: FileSystem) -> None:
        self.world = world
        self.file_system = file_system

    def make(self, path: str, kind: int, content: bytes = b"") -> int:
        parent, name = _parts(path)
        target = content if kind == S_IFLNK else b""
        parent_ino = self.world.inos[parent] if parent else ROOT
        node = self.file_system.make(parent_ino, name, kind | 0o755, Owner(1000, 1000), target=target)
        if kind == S_IFREG:
            self.file_system.write(node.ino, 0, content)
        self.world.inos[path] = node.ino
        self.world.content[path] = content if kind in (S_IFREG, S_IFLNK) else kind
        return node.ino


async def build() -> World:
    """A cleanly closed volume with files of every kind, and enough of them for a tree with many leaves."""
    rng = random.Random(5)
    device = MemoryDevice(SIZE_BYTES)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="fsck")
    world = World(device, {}, {})
    store = await Store.open(device)
    made = Builder(world, FileSystem(store))
    for path in ("/dir", "/dir/sub", "/other", "/other/deep", "/other/deep/deeper", "/many"):
        made.make(path, S_IFDIR)
    paths = ("/dir/file", "/dir/sub/file", "/other/file", "/other/deep/deeper/file", "/twin", "/attributes")
    for path in paths:
        made.make(path, S_IFREG, rng.randbytes(3 * BLOCK_BYTES + 100))
    made.make("/empty", S_IFREG)
    made.make("/fifo", S_IFIFO)
    made.make("/link", S_IFLNK, b"dir/file")
    made.make("/long link", S_IFLNK, b"x/" * 2040)
    fragmented = made.make("/fragmented", S_IFREG)
    for block in range(0, 12, 2):
        made.file_system.write(fragmented, block * BLOCK_BYTES, bytes((65 + block,)) * BLOCK_BYTES)
    world.content["/fragmented"] = b"".join(
        bytes((0 if block % 2 else 65 + block,)) * BLOCK_BYTES for block in range(11)
    )
    made.file_system.link(world.inos["/twin"], world.inos["/dir"], b"twin")
    world.inos["/dir/twin"], world.content["/dir/twin"] = world.inos["/twin"], world.content["/twin"]
    made.file_system.setxattr(world.inos["/attributes"], b"user.one", b"1" * 100)
    made.file_system.setxattr(world.inos["/attributes"], b"user.two", b"2" * 2000)
    for number in range(MANY):
        path = f"/many/{number:04}"
        ino = made.make(path, S_IFREG, rng.randbytes(50))
        made.file_system.setxattr(ino, b"user.fill", bytes(1500))
    await made.file_system.close()
    return world


async def build_many() -> World:
    """A volume whose tree has inner nodes below its root."""
    device = MemoryDevice(64 << 20)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="many")
    world = World(device, {}, {})
    store = await Store.open(device)
    made = Builder(world, FileSystem(store))
    made.make("/many", S_IFDIR)
    for number in range(1400):
        ino = made.make(f"/many/{number:04}", S_IFREG)
        made.file_system.setxattr(ino, b"user.one", bytes(3700))
        made.file_system.setxattr(ino, b"user.two", bytes(3700))
        await store.throttle()
    await made.file_system.close()
    return world


async def read_all(device: MemoryDevice) -> dict[str, bytes | int]:
    """What a mount shows: as World.content."""
    store = await Store.open(device, read_only=True)
    file_system = FileSystem(store, read_only=True)
    found: dict[str, bytes | int] = {}
    waiting = [("", ROOT)]
    while waiting:
        path, ino = waiting.pop()
        for name in file_system.readdir(ino):
            if name.name in (b".", b".."):
                continue
            below = f"{path}/{os.fsdecode(name.name)}"
            node = file_system.node(name.ino)
            kind = S_IFMT(node.mode)
            found[below] = kind
            if kind == S_IFDIR:
                waiting.append((below, name.ino))
            elif kind == S_IFREG:
                found[below] = bytes(file_system.read(name.ino, 0, min(node.size_bytes, MOST_BYTES)))
            elif kind == S_IFLNK:
                found[below] = file_system.readlink(name.ino)
    return found


async def use(device: MemoryDevice) -> None:
    """Mount, make and remove files, unmount: nothing is written over what is in use."""
    store = await Store.open(device)
    file_system = FileSystem(store)
    for number in range(20):
        node = file_system.make(ROOT, b"new %d" % number, S_IFREG | 0o644)
        file_system.write(node.ino, 0, bytes((number,)) * 30000)
    await file_system.commit()
    for number in range(20):
        file_system.unlink(ROOT, b"new %d" % number)
    await file_system.close()


# -- damage -------------------------------------------------------------------------


async def set_items(world: World, *changes: tuple[bytes, bytes | None]) -> None:
    """Change items behind the file system's back."""
    store = await Store.open(world.device)
    for key, value in changes:
        if value is None:
            store.delete(key)
        else:
            store.put(key, value)
    await store.close()


async def get_item(world: World, key: bytes) -> bytes:
    """An item that must be there."""
    value = (await Store.open(world.device, read_only=True)).get(key)
    assert value is not None
    return value


async def set_inode(world: World, path: str, **fields: int | bytes) -> None:
    """Change fields of an inode's record."""
    key = make_key(world.inos[path] if path else ROOT, INODE)
    inode = Inode.decode(await get_item(world, key))
    for name, value in fields.items():
        setattr(inode, name, value)
    await set_items(world, (key, inode.encode()))


def name_key(world: World, path: str) -> bytes:
    """The key of the bucket in which a path's last name is."""
    parent, name = _parts(path)
    ino = world.inos[parent] if parent else ROOT
    return make_key(ino, DIRENT, directory.suffix_of(name, SEED))


async def set_name(world: World, path: str, *entries: directory.Entry) -> None:
    """Put these names where a path's last name is; none: it is removed."""
    value = b"".join(directory.encode(*entry) for entry in entries)
    await set_items(world, (name_key(world, path), value or None))


async def name_of(world: World, path: str) -> directory.Entry:
    """The entry of a path's last name."""
    entry = directory.find(await get_item(world, name_key(world, path)), _parts(path)[1])
    assert entry is not None
    return entry


async def set_map(world: World, *runs: tuple[int, int], used: bool) -> None:
    """Mark blocks in the free map, and count them."""
    store = await Store.open(world.device)
    change = store.volume.free_map.set_used if used else store.volume.free_map.set_free
    for start, count in runs:
        change(start, count)
    store.volume.changed = True
    store.volume.changed = True
    await store.close()


def set_superblock(world: World, **fields: object) -> None:
    """Change fields of the newest superblock."""
    superblock = read_superblock(world.device)
    changed = replace(superblock, **fields)  # type: ignore[arg-type]
    world.device.write(superblock.generation % 2 * BLOCK_BYTES, changed.encode())


def flip(device: MemoryDevice, block: int, bit: int = 4000) -> None:
    """Flip one bit of a block."""
    data = bytearray(device.read(block * BLOCK_BYTES, BLOCK_BYTES))
    data[bit // 8] ^= 1 << bit % 8
    device.write(block * BLOCK_BYTES, data)


def codes(findings: Iterable[Finding]) -> set[str]:
    """The codes of findings."""
    return {finding.code for finding in findings}


def superblock_of(world: World) -> Superblock:
    return read_superblock(world.device)
