"""A volume without room: removing and committing always work, and everything can be used again after."""

import errno
import random
from uuid import UUID

import pytest
import trio

from jfs import fuse_wire as wire
from jfs.errors import NoSpace
from jfs.filesystem import FileSystem
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.fuse_kernel import Kernel, kernel_for, mkdir_in, mknod_in, write_in
from tests.jfs.world import FILE, ROOT

PIECE = bytes(32 << 10)


async def filled_with_data(size_bytes: int) -> FileSystem:
    """A volume whose data has taken all room but the reserve, before the log could grow."""
    device = MemoryDevice(size_bytes)
    await make_file_system(device, volume_uuid=UUID(int=5 << 64), epoch=1, label="full")
    fs = FileSystem(await Store.open(device))
    hog = fs.make(ROOT, b"hog", FILE)
    await fs.commit()
    try:
        while True:
            fs.write(hog.ino, hog.size_bytes, PIECE)
            if hog.size_bytes % (1 << 20) == 0:
                await fs.commit()
    except NoSpace:
        await fs.commit()
    return fs


async def done(kernel: Kernel, opcode: int, ino: int, body: bytes) -> bytes | None:
    """The answer, None if there was no room."""
    error, answer = await kernel.ask(opcode, ino, body)
    if error == errno.ENOSPC:
        return None
    assert not error, errno.errorcode[error]
    return answer


@pytest.mark.parametrize("tasks", [1, 100])
@pytest.mark.parametrize("size_bytes", [8 << 20, 24 << 20])
async def test_everything_can_be_removed_and_committed(size_bytes: int, tasks: int) -> None:
    fs = await filled_with_data(size_bytes)
    before = fs.statfs().blocks_free
    names: list[bytes] = []
    async with kernel_for(fs) as kernel:
        while (made := await done(kernel, wire.MKDIR, ROOT, mkdir_in(b"%d" % len(names)))) is not None:
            names.append(b"%d" % len(names))
            await kernel.tell(wire.FORGET, wire.ENTRY_OUT.unpack(made)[0], wire.FORGET_IN.pack(1))
        assert len(names) > 50
        random.Random(3).shuffle(names)
        left = iter(names)

        async def remove() -> None:
            for number, name in enumerate(left):
                assert await done(kernel, wire.RMDIR, ROOT, name + b"\0") is not None
                if number % 20 == 0:
                    await fs.commit()

        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(remove)
        assert await done(kernel, wire.UNLINK, ROOT, b"hog\0") is not None
    await fs.commit()
    await fs.store.checkpoint()
    used = fs.statfs().blocks - fs.statfs().blocks_free
    assert used < fs.statfs().blocks // 20, "the log may have grown a little"
    assert fs.statfs().blocks_free > before
    await fs.close()


async def test_what_does_not_grow_is_possible_on_a_full_volume() -> None:
    fs = await filled_with_data(8 << 20)
    hog = fs.lookup(ROOT, b"hog")
    assert hog is not None
    names = 0
    async with kernel_for(fs) as kernel:
        while await done(kernel, wire.MKNOD, ROOT, mknod_in(b"f%d" % names, FILE)) is not None:
            names += 1

        async def rename(old: bytes, new: bytes) -> None:
            body = wire.RENAME_IN.pack(ROOT) + old + b"\0" + new + b"\0"
            assert await done(kernel, wire.RENAME, ROOT, body) is not None

        async def fsync() -> None:
            assert await done(kernel, wire.FSYNC, hog.ino, wire.FSYNC_IN.pack(0, 0, 0)) is not None

        async def write(offset: int) -> None:
            assert await done(kernel, wire.WRITE, hog.ino, write_in(offset, PIECE)) is not None

        for turn in range(200):
            await write(turn * len(PIECE) % hog.size_bytes)
            await rename(b"f%d" % (turn % names), b"f")
            await rename(b"f", b"f%d" % (turn % names))
            await fsync()
        assert await done(kernel, wire.UNLINK, ROOT, b"f0\0") is not None
        fs.truncate(hog.ino, 5_000_001)
        await fsync()
        await write(1 << 30)
    await fs.close()
