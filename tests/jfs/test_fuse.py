"""The request handlers, called as pyfuse3 would call them, without a kernel."""

import errno
import logging
import os
from collections.abc import Awaitable
from pathlib import Path
from stat import S_IFREG, S_IMODE
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import trio

from jfs.device import Buffer
from jfs.errors import CorruptionError, DeviceError, FileSystemError, NoSpace
from jfs.filesystem import FileSystem
from jfs.mkfs import make_file_system
from jfs.mountpoint import MountOptions, MountRefused
from jfs.open_files import HANDLE_SHIFT
from jfs.store import Store
from tests.devices import MemoryDevice

fuse = pytest.importorskip("jfs.fuse", reason="libfuse or pyfuse3 is not installed", exc_type=ImportError)

ROOT_USER: Any = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)
SOMEBODY: Any = SimpleNamespace(uid=1000, gid=1000, pid=os.getpid(), umask=0)


class RefusingDevice(MemoryDevice):
    """Refuses writes, or completes them late, when told to."""

    refusing = False
    completed = -1

    def write(self, offset: int, data: Buffer) -> int:
        if self.refusing:
            raise DeviceError(errno.EIO, "the sync site does not answer")
        return super().write(offset, data)

    async def complete(self, sequence: int) -> None:
        await trio.sleep(0.01)
        self.completed = max(self.completed, sequence)


class Bench:
    def __init__(self, device: RefusingDevice, fs: FileSystem) -> None:
        self.device = device
        self.fs = fs
        self.operations = fuse.Operations(fs)


@pytest.fixture
async def bench() -> Bench:
    device = RefusingDevice(16 << 20)
    await make_file_system(device, volume_uuid=UUID(int=5 << 64), epoch=1, label="fuse")
    fs = FileSystem(await Store.open(device))
    await fs.commit()
    return Bench(device, fs)


async def fails(code: int, answer: Awaitable[object]) -> None:
    with pytest.raises(fuse.FUSEError) as caught:
        await answer
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (FileSystemError(errno.ENOTEMPTY), errno.ENOTEMPTY, ""),
        (NoSpace(), errno.ENOSPC, ""),
        (DeviceError(errno.ENXIO, "the sync site is gone"), errno.EIO, "the sync site is gone"),
        (CorruptionError("node 7 is torn"), errno.EIO, "node 7 is torn"),
        (ZeroDivisionError(), errno.EIO, "unknown reason"),
    ],
)
def test_what_the_kernel_hears(
    error: Exception, code: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert fuse.kernel_error(error).errno == code
    assert len(caplog.records) == bool(words)
    assert words in caplog.text


async def test_a_write_of_the_application_is_answered_when_the_device_has_completed_it(bench: Bench) -> None:
    info, entry = await bench.operations.create(1, b"f", 0o644, os.O_RDWR | os.O_DIRECT, ROOT_USER)
    assert await bench.operations.write(info.fh, 0, b"x" * 5000) == 5000
    assert bench.device.completed == bench.device.issued_sequence
    assert bytes(await bench.operations.read(info.fh, 4990, 100)) == b"x" * 10
    assert entry.st_ino == info.fh >> HANDLE_SHIFT


async def test_pages_that_the_kernel_writes_back_run_only_so_far_ahead(bench: Bench) -> None:
    info, _ = await bench.operations.create(1, b"f", 0o644, os.O_RDWR, ROOT_USER)
    for number in range(3 * fuse.WRITES_AHEAD):
        await bench.operations.write(info.fh, number * 4096, b"x" * 4096)
        assert bench.device.completed == bench.device.issued_sequence - fuse.WRITES_AHEAD
    await bench.operations.fsync(info.fh, False)


async def test_a_device_that_refuses_gives_eio_and_changes_nothing(bench: Bench) -> None:
    info, entry = await bench.operations.create(1, b"f", 0o644, os.O_RDWR, ROOT_USER)
    await bench.operations.write(info.fh, 0, b"old" * 3000)
    await bench.operations.fsync(info.fh, False)
    free = bench.fs.statfs().blocks_free
    bench.device.refusing = True
    await fails(errno.EIO, bench.operations.write(info.fh, 0, b"new"))
    await fails(errno.EIO, bench.operations.write(info.fh, 1 << 20, b"new" * 3000))
    await bench.operations.mkdir(1, b"d", 0o755, ROOT_USER)
    await fails(errno.EIO, bench.operations.fsyncdir(1, False))
    assert bytes(await bench.operations.read(info.fh, 0, 10_000)) == b"old" * 3000
    assert (await bench.operations.getattr(entry.st_ino, ROOT_USER)).st_size == 9000
    bench.device.refusing = False
    await bench.operations.fsyncdir(1, False)
    assert bench.fs.statfs().blocks_free == free
    again = FileSystem(await Store.open(bench.device))
    assert again.lookup(1, b"d") is not None, "what was refused once is durable once it can be"


async def test_lookups_are_counted_and_forgotten(bench: Bench) -> None:
    operations, fs = bench.operations, bench.fs
    _, entry = await operations.create(1, b"f", 0o644, os.O_RDWR, ROOT_USER)
    ino = entry.st_ino
    await operations.lookup(1, b"f", ROOT_USER)
    await operations.link(ino, 1, b"g", ROOT_USER)
    await operations.unlink(1, b"f", ROOT_USER)
    await operations.unlink(1, b"g", ROOT_USER)
    await operations.forget([(ino, 2)])
    assert (await operations.getattr(ino, ROOT_USER)).st_nlink == 0
    await operations.forget([(ino, 1), (4711, 1)])
    await fails(errno.ESTALE, operations.getattr(ino, ROOT_USER))
    assert len(fs._lookups) == 0
    missing = await operations.lookup(1, b"f", ROOT_USER)
    assert (missing.st_ino, missing.entry_timeout) == (0, fuse.CACHE_SECONDS)


async def test_listing_counts_what_fitted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        bench.fs.make(1, b"%d" % number, S_IFREG)
    seen: list[tuple[bytes, int]] = []

    def reply(room: int, name: bytes, attributes: object, cookie: int) -> bool:
        if len(seen) == room:
            return False
        seen.append((name, cookie))
        return True

    monkeypatch.setattr(fuse.pyfuse3, "readdir_reply", reply)
    fh = await bench.operations.opendir(1, ROOT_USER)
    await bench.operations.readdir(fh, 0, 5)
    assert len(bench.fs._lookups) == 3, "`.` and `..` are not counted, nor what did not fit"
    await bench.operations.readdir(fh, seen[-1][1], 100)
    assert sorted(name for name, _ in seen) == sorted([b".", b"..", *(b"%d" % number for number in range(6))])
    held = {bench.fs._lookups[name.ino] for name in bench.fs.readdir(1) if name.name not in (b".", b"..")}
    assert held == {1}


async def test_a_write_by_somebody_clears_setuid(bench: Bench) -> None:
    operations, fs = bench.operations, bench.fs
    node = fs.make(1, b"f", S_IFREG | 0o4777)
    assert (await operations.getattr(node.ino, SOMEBODY)).attr_timeout == 0
    by_root = await operations.open(node.ino, os.O_WRONLY, ROOT_USER)
    await operations.write(by_root.fh, 0, b"x")
    assert S_IMODE(node.mode) == 0o4777
    writing = await operations.open(node.ino, os.O_WRONLY, SOMEBODY)
    assert not writing.direct_io, "the kernel would no longer keep the times of the file"
    assert S_IMODE(node.mode) == 0o4777
    await operations.write(writing.fh, 0, b"y")
    assert S_IMODE(node.mode) == 0o777
    assert (await operations.getattr(node.ino, SOMEBODY)).attr_timeout == fuse.CACHE_SECONDS


async def test_the_blocks_of_a_file_that_is_open_for_writing(bench: Bench) -> None:
    operations = bench.operations
    told: list[int] = []
    operations.stale = told.append
    info, entry = await operations.create(1, b"f", 0o644, os.O_WRONLY, ROOT_USER)
    ino = entry.st_ino
    # The page cache may hold data: a file without blocks would be taken for one hole.
    assert entry.st_blocks == 8
    await operations.write(info.fh, 0, b"x" * 5000)
    await operations.fsync(info.fh, False)
    await operations.fsync(info.fh, False)
    assert told == [ino], "the kernel asks again where something changed"
    entry = await operations.getattr(ino, ROOT_USER)
    assert (entry.st_blocks, entry.attr_timeout) == (16, fuse.CACHE_SECONDS)
    again = await operations.open(ino, os.O_RDWR | os.O_TRUNC, ROOT_USER)
    await operations.release(info.fh)
    assert (await operations.getattr(ino, ROOT_USER)).st_blocks == 8
    await operations.release(again.fh)
    entry = await operations.getattr(ino, ROOT_USER)
    assert (entry.st_blocks, entry.attr_timeout) == (0, fuse.CACHE_SECONDS)


async def test_which_reads_set_the_access_time(bench: Bench) -> None:
    operations = bench.operations
    node = bench.fs.make(1, b"f", S_IFREG | 0o644)
    bench.fs.write(node.ino, 0, b"x" * 5000)
    for flags, moves in (
        (os.O_WRONLY, False),  # the kernel fills up a page that is written in part
        (os.O_RDONLY | os.O_NOATIME, False),
        (os.O_RDWR, True),
        (os.O_RDONLY, True),
    ):
        node.atime_ns = 1
        info = await operations.open(node.ino, flags, ROOT_USER)
        await operations.read(info.fh, 0, 100)
        assert (node.atime_ns > 1) == moves


async def test_only_root_sees_trusted_attributes(bench: Bench) -> None:
    node = bench.fs.make(1, b"f", S_IFREG | 0o644)
    for name in (b"trusted.a", b"user.b"):
        bench.fs.setxattr(node.ino, name, b"x")
    assert sorted(await bench.operations.listxattr(node.ino, ROOT_USER)) == [b"trusted.a", b"user.b"]
    assert await bench.operations.listxattr(node.ino, SOMEBODY) == [b"user.b"]


async def test_opening_with_truncation(bench: Bench) -> None:
    node = bench.fs.make(1, b"f", S_IFREG | 0o4777)
    bench.fs.write(node.ino, 0, b"x" * 5000)
    await bench.operations.open(node.ino, os.O_WRONLY | os.O_TRUNC, SOMEBODY)
    assert (node.size_bytes, node.blocks, S_IMODE(node.mode)) == (0, 0, 0o777)


async def test_blocks_freed_but_not_committed_are_no_reason_to_refuse(bench: Bench) -> None:
    operations, fs = bench.operations, bench.fs
    info, _ = await operations.create(1, b"f", 0o644, os.O_RDWR, ROOT_USER)
    room = fs.statfs().blocks_available * 4096
    await operations.write(info.fh, 0, bytes(room - (1 << 20)))
    await fails(errno.ENOSPC, operations.write(info.fh, room, bytes(2 << 20)))
    await operations.unlink(1, b"f", ROOT_USER)
    await operations.forget([(info.fh >> HANDLE_SHIFT, 1)])
    again, _ = await operations.create(1, b"g", 0o644, os.O_RDWR, ROOT_USER)
    assert await operations.write(again.fh, 0, bytes(room - (1 << 20))) == room - (1 << 20)


async def test_a_refused_mount_closes_the_store(bench: Bench, tmp_path: Path) -> None:
    bench.fs.make(1, b"f", S_IFREG)
    with pytest.raises(MountRefused, match="does not exist"):
        await fuse.serve(bench.fs, str(tmp_path / "no"), MountOptions(), ready=print, stop=trio.Event())
    again = await Store.open(bench.device)
    assert again.superblock.clean
    assert FileSystem(again).lookup(1, b"f") is not None
