"""A file system on a device that can lose what was not flushed, and what a power cut leaves of it."""

from collections.abc import Callable
from stat import S_IFREG
from uuid import UUID

import pytest

from jfs.batch import MAGIC_AT
from jfs.errors import DeviceError
from jfs.filesystem import FileSystem, Node
from jfs.layout import BLOCK_BYTES
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import CrashDevice, Flushed, MemoryDevice, Written

SIZE = 16 << 20
ROOT = 1
FILE = S_IFREG | 0o644
BLOCK = b"x" * BLOCK_BYTES


async def fresh(size: int = SIZE) -> tuple[CrashDevice, FileSystem]:
    device = CrashDevice(size)
    await make_file_system(device, volume_uuid=UUID(int=5 << 64), epoch=1, label="vouchers")
    fs = FileSystem(await Store.open(device))
    await fs.commit()
    return device, fs


async def fresh_with_file(content: bytes = BLOCK) -> tuple[CrashDevice, FileSystem, Node]:
    """The same with a file `f` that was committed."""
    device, fs = await fresh()
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, content)
    await fs.commit()
    return device, fs, node


async def mounted_again(after: MemoryDevice) -> tuple[CrashDevice, FileSystem]:
    """What a power cut left, mounted on a device of its own."""
    device = CrashDevice(after.size_bytes, dict(after.blocks))
    return device, FileSystem(await Store.open(device))


def cut(device: CrashDevice, survives: Callable[[Written], bool]) -> MemoryDevice:
    """The device after a power cut now: what was flushed, and of the rest what the test says."""
    stable = max(event.count for event in device.history if isinstance(event, Flushed))
    crashed = MemoryDevice(device.size_bytes, dict(device.first))
    for number, event in enumerate(device.history):
        if isinstance(event, Written) and (number < stable or survives(event)):
            if event.data is None:
                crashed.discard(event.offset, event.length)
            else:
                crashed.write(event.offset, event.data)
    return crashed


def is_batch(event: Written) -> bool:
    return event.data is not None and event.data[MAGIC_AT : MAGIC_AT + 4] == b"TRIB"


async def content(device: MemoryDevice, name: bytes) -> bytes | None:
    fs = FileSystem(await Store.open(device, read_only=True), read_only=True)
    node = fs.lookup(ROOT, name)
    return None if node is None else bytes(fs.read(node.ino, 0, 1 << 20, access=False))


async def unflushed_commit(fs: FileSystem, device: CrashDevice) -> None:
    """Issue what a commit issues, and no flush."""
    device.failing_flushes = 1
    with pytest.raises(DeviceError):
        await fs.commit()
