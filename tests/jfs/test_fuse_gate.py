"""A change is refused before it is made or not at all: on a device that refuses, and read only."""

import errno
from collections.abc import AsyncIterator
from stat import S_IFREG
from uuid import UUID

import pytest

from jfs import fuse_wire as wire
from jfs.device import Buffer
from jfs.errors import DeviceError, FileSystemError
from jfs.filesystem import FileSystem
from jfs.fuse_gate import Gate
from jfs.mkfs import make_file_system
from jfs.store import Store, StoreOptions
from tests.devices import MemoryDevice
from tests.jfs.fuse_kernel import Kernel, kernel_for, mkdir_in, write_in

PENDING_ITEMS = 8
NAMES = 40


class RefusingDevice(MemoryDevice):
    """Refuses writes when told to."""

    refusing = False

    def write(self, offset: int, data: Buffer) -> int:
        if self.refusing:
            raise DeviceError(errno.EIO, "the disk is full")
        return super().write(offset, data)


@pytest.fixture
async def device() -> RefusingDevice:
    device = RefusingDevice(16 << 20)
    await make_file_system(device, volume_uuid=UUID(int=5 << 64), epoch=1, label="gate")
    return device


@pytest.fixture
async def kernel(device: RefusingDevice) -> AsyncIterator[Kernel]:
    fs = FileSystem(await Store.open(device, options=StoreOptions(pending_items=PENDING_ITEMS)))
    await fs.commit()
    async with kernel_for(fs) as kernel:
        yield kernel


async def test_what_is_refused_was_not_done(device: RefusingDevice, kernel: Kernel) -> None:
    fs = kernel.requests.fs
    device.refusing = True
    told: dict[bytes, int] = {}
    for number in range(NAMES):
        name = b"%d" % number
        told[name] = (await kernel.ask(wire.MKDIR, 1, mkdir_in(name)))[0]
    made = {name for name, error in told.items() if not error}
    assert set(told.values()) == {0, errno.EIO}, "no more waits in memory than may"
    assert made == {name for name in told if fs.lookup(1, name) is not None}
    assert len(fs._lookups) == len(made), "the kernel holds what it was told of"
    device.refusing = False
    assert (await kernel.ask(wire.MKDIR, 1, mkdir_in(b"again")))[0] == 0
    await fs.commit()
    again = FileSystem(await Store.open(device))
    assert {name.name for name in again.readdir(1)} == {b".", b"..", b"again"} | made


async def test_a_write_is_refused_as_well(device: RefusingDevice, kernel: Kernel) -> None:
    fs = kernel.requests.fs
    node = fs.make(1, b"f", S_IFREG | 0o644)
    device.refusing = True
    for number in range(NAMES):
        await kernel.ask(wire.MKDIR, 1, mkdir_in(b"%d" % number))
    assert (await kernel.ask(wire.WRITE, node.ino, write_in(0, b"x")))[0] == errno.EIO
    device.refusing = False
    assert (await kernel.ask(wire.WRITE, node.ino, write_in(0, b"x")))[0] == 0


async def test_nothing_changes_read_only(device: RefusingDevice) -> None:
    await FileSystem(await Store.open(device)).close()
    fs = FileSystem(await Store.open(device, read_only=True), read_only=True)
    async with kernel_for(fs) as kernel:
        # The kernel lets it through after mount -o remount,rw.
        assert (await kernel.ask(wire.MKDIR, 1, mkdir_in(b"d")))[0] == errno.EROFS
    assert fs.lookup(1, b"d") is None
    with pytest.raises(FileSystemError) as caught:
        await Gate(fs).change(lambda: fs.symlink(1, b"l", b"target"))
    assert caught.value.errno == errno.EROFS
