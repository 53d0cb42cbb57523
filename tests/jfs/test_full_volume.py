"""A volume without room: removing and committing always work, and everything can be used again after."""

import errno
import random
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID

import pytest
import trio

from jfs.errors import NoSpace
from jfs.filesystem import FileSystem
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.world import FILE, ROOT

fuse = pytest.importorskip("jfs.fuse", reason="libfuse or pyfuse3 is not installed", exc_type=ImportError)

ROOT_USER: Any = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)
R = TypeVar("R")
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


async def said(answer: Awaitable[R]) -> R | None:
    """The answer, None if there was no room."""
    try:
        return await answer
    except fuse.FUSEError as error:
        if error.errno != errno.ENOSPC:
            raise
        return None


@pytest.mark.parametrize("tasks", [1, 100])
@pytest.mark.parametrize("size_bytes", [8 << 20, 24 << 20])
async def test_everything_can_be_removed_and_committed(size_bytes: int, tasks: int) -> None:
    fs = await filled_with_data(size_bytes)
    operations = fuse.Operations(fs)
    before = fs.statfs().blocks_free
    names: list[bytes] = []
    while (made := await said(operations.mkdir(ROOT, b"%d" % len(names), 0o40755, ROOT_USER))) is not None:
        names.append(b"%d" % len(names))
        await operations.forget([(made.st_ino, 1)])
    assert len(names) > 50
    random.Random(3).shuffle(names)
    left = iter(names)

    async def remove() -> None:
        for number, name in enumerate(left):
            await operations.rmdir(ROOT, name, ROOT_USER)
            if number % 20 == 0:
                await fs.commit()

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(remove)
    await operations.unlink(ROOT, b"hog", ROOT_USER)
    await fs.commit()
    await fs.store.checkpoint()
    used = fs.statfs().blocks - fs.statfs().blocks_free
    assert used < fs.statfs().blocks // 20, "the log may have grown a little"
    assert fs.statfs().blocks_free > before
    await fs.close()


async def test_what_does_not_grow_is_possible_on_a_full_volume() -> None:
    fs = await filled_with_data(8 << 20)
    operations = fuse.Operations(fs)
    hog = fs.lookup(ROOT, b"hog")
    assert hog is not None
    names = 0
    while await said(operations.mknod(ROOT, b"f%d" % names, FILE, 0, ROOT_USER)) is not None:
        names += 1
    info = await operations.open(hog.ino, 0o2, ROOT_USER)
    for turn in range(200):
        await operations.write(info.fh, turn * len(PIECE) % hog.size_bytes, PIECE)
        await operations.rename(ROOT, b"f%d" % (turn % names), ROOT, b"f", 0, ROOT_USER)
        await operations.rename(ROOT, b"f", ROOT, b"f%d" % (turn % names), 0, ROOT_USER)
        await operations.fsync(info.fh, False)
    await operations.unlink(ROOT, b"f0", ROOT_USER)
    fs.truncate(hog.ino, 5_000_001)
    await operations.fsync(info.fh, False)
    await operations.write(info.fh, 1 << 30, PIECE)
    await fs.close()
