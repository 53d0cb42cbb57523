"""A file system on a device in memory, and short words for what tests ask of it."""

import errno
from collections.abc import Callable
from stat import S_IFDIR, S_IFREG
from uuid import UUID

import pytest

from jfs.errors import FileSystemError
from jfs.filesystem import FileSystem, FileSystemOptions, Node
from jfs.mkfs import make_file_system
from jfs.nodes import DEFAULT_OPTIONS
from jfs.store import Store
from tests.devices import MemoryDevice

ROOT = 1
FILE = S_IFREG | 0o644
DIRECTORY = S_IFDIR | 0o755
SIZE = 64 << 20


async def new_file_system(size_bytes: int = SIZE, options: FileSystemOptions = DEFAULT_OPTIONS) -> FileSystem:
    device = MemoryDevice(size_bytes)
    await make_file_system(device, volume_uuid=UUID(int=7 << 64), epoch=1, label="test")
    return FileSystem(await Store.open(device), options)


async def reopened(fs: FileSystem) -> FileSystem:
    """The volume as the next mount finds it."""
    await fs.close()
    return FileSystem(await Store.open(fs.store.device), fs.options)


def refused(code: int, call: Callable[..., object], *args: object, **kwargs: object) -> None:
    with pytest.raises(FileSystemError) as caught:
        call(*args, **kwargs)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


def content(fs: FileSystem, node: Node) -> bytes:
    return bytes(fs.read(node.ino, 0, 1 << 30))


def names(fs: FileSystem, ino: int = ROOT) -> set[bytes]:
    return {name.name for name in fs.readdir(ino)} - {b".", b".."}


def found(fs: FileSystem, name: bytes, parent: int = ROOT) -> Node:
    node = fs.lookup(parent, name)
    assert node is not None
    return node
