"""The kernel's requests, from their bytes to those of the answers, without a kernel; and one real mount."""

import errno
import logging
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from stat import S_IFREG, S_IMODE
from uuid import UUID

import pytest
import trio
import trio.testing

from jfs import fuse_door, fuse_requests, namespace
from jfs import fuse_wire as wire
from jfs.device import Buffer
from jfs.errors import CorruptionError, DeviceError, FileSystemError, NoSpace
from jfs.fileio import PIECE_EXTENTS
from jfs.filesystem import FileSystem
from jfs.fuse_requests import WRITES_AHEAD
from jfs.layout import INODE, make_key
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.fuse_kernel import (
    ROOT,
    SOMEBODY,
    Kernel,
    kernel_for,
    mkdir_in,
    mknod_in,
    mounted,
    read_in,
    request,
    setattr_in,
    write_in,
)

WRITES = 50
CAPABILITY = wire.GETXATTR_IN.pack(0, 0) + b"security.capability\0"
FSYNC = wire.FSYNC_IN.pack(0, 0, 0)


class RefusingDevice(MemoryDevice):
    """Refuses writes, or completes them late, when told to."""

    refusing = False
    completed = -1

    def write(self, offset: int, data: Buffer) -> int:
        if self.refusing:
            raise DeviceError(errno.EIO, "the sync site does not answer")
        return super().write(offset, data)

    def is_complete(self, sequence: int) -> bool:
        return sequence <= self.completed

    async def complete(self, sequence: int) -> None:
        await trio.sleep(0.01)
        self.completed = max(self.completed, sequence)


class Bench:
    def __init__(self, device: RefusingDevice, fs: FileSystem, kernel: Kernel) -> None:
        self.device = device
        self.fs = fs
        self.kernel = kernel
        self.ask = kernel.ask

    async def make(self, name: bytes, mode: int = 0o644) -> int:
        return (await self.kernel.entry(wire.MKNOD, 1, mknod_in(name, S_IFREG | mode)))["ino"]

    async def fails(
        self, code: int, opcode: int, ino: int, body: bytes, user: tuple[int, int] = ROOT
    ) -> None:
        assert errno.errorcode.get((await self.ask(opcode, ino, body, user))[0]) == errno.errorcode[code]

    async def write(
        self, ino: int, offset: int, data: bytes, flags: int = os.O_WRONLY, kill: int = 0
    ) -> None:
        assert await self.ask(wire.WRITE, ino, write_in(offset, data, flags, kill)) == (
            0,
            wire.WRITE_OUT.pack(len(data), 0),
        )


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    device = RefusingDevice(16 << 20)
    await make_file_system(device, volume_uuid=UUID(int=5 << 64), epoch=1, label="fuse")
    fs = FileSystem(await Store.open(device))
    await fs.commit()
    async with kernel_for(fs) as kernel:
        yield Bench(device, fs, kernel)


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
        assert fuse_requests.error_number(error) == code
    assert len(caplog.records) == bool(words)
    assert words in caplog.text


async def test_a_write_of_the_application_is_answered_when_the_device_has_completed_it(bench: Bench) -> None:
    ino = await bench.make(b"f")
    await bench.write(ino, 0, b"x" * 5000, os.O_RDWR | os.O_DIRECT)
    assert bench.device.completed == bench.device.issued_sequence
    assert await bench.ask(wire.READ, ino, read_in(4990, 100)) == (0, b"x" * 10)


async def test_pages_that_the_kernel_writes_back_run_only_so_far_ahead(bench: Bench) -> None:
    ino = await bench.make(b"f")
    for number in range(3 * WRITES_AHEAD):
        await bench.write(ino, number * 4096, b"x" * 4096)
        assert bench.device.completed == bench.device.issued_sequence - WRITES_AHEAD
    assert await bench.ask(wire.FSYNC, ino, FSYNC) == (0, b"")


async def test_fsyncs_that_are_there_share_one_flush(bench: Bench) -> None:
    files = [await bench.make(b"%d" % number) for number in range(4)]
    flushes = bench.device.flushes
    requests = [(wire.WRITE, ino, write_in(0, b"x" * 4096)) for ino in files]
    requests += [(wire.FSYNC, ino, FSYNC) for ino in files] + [(wire.FSYNCDIR, 1, FSYNC)]
    answers = await bench.kernel.ask_together(*requests)
    assert [error for error, _ in answers] == [0] * len(requests)
    assert bench.device.flushes - flushes <= 2, "one, and one that orders new data before the log"
    again = FileSystem(await Store.open(bench.device))
    for number, ino in enumerate(files):
        node = again.lookup(1, b"%d" % number)
        assert node is not None
        assert node.ino == ino
        assert bytes(again.read(ino, 0, 4096)) == b"x" * 4096


async def test_writes_of_applications_that_are_there_wait_together(bench: Bench) -> None:
    ino = await bench.make(b"f")
    await bench.write(ino, 0, bytes(4096))
    waits: list[int] = []
    real = bench.device.complete

    async def complete(sequence: int) -> None:
        waits.append(sequence)
        await real(sequence)

    bench.device.complete = complete  # type: ignore[method-assign]
    data = [write_in(4096 * number, b"x" * 4096, os.O_RDWR | os.O_DIRECT) for number in range(4)]
    answers = await bench.kernel.ask_together(*((wire.WRITE, ino, body) for body in data))
    assert answers == [(0, wire.WRITE_OUT.pack(4096, 0))] * 4
    assert waits == [bench.device.issued_sequence]


async def test_all_that_share_a_flush_hear_of_its_failure(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    files = [await bench.make(b"%d" % number) for number in range(3)]
    bench.device.failing_flushes = 1
    with caplog.at_level(logging.ERROR):
        answers = await bench.kernel.ask_together(*((wire.FSYNC, ino, FSYNC) for ino in files))
    assert [error for error, _ in answers] == [errno.EIO] * 3
    assert len(caplog.records) == 1
    answers = await bench.kernel.ask_together(*((wire.FSYNC, ino, FSYNC) for ino in files))
    assert [error for error, _ in answers] == [0] * 3


async def test_a_flush_that_takes_its_time_holds_up_nobody_else(bench: Bench) -> None:
    ino = await bench.make(b"f")
    let_go = trio.Event()
    real = bench.device.flush

    async def flush() -> None:
        await let_go.wait()
        await real()

    bench.device.flush = flush  # type: ignore[method-assign]
    answers: list[tuple[int, bytes]] = []

    async def ask() -> None:
        answers.append(await bench.ask(wire.FSYNC, ino, FSYNC))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            await bench.kernel.attributes(ino)
        assert not answers
        let_go.set()
    assert answers == [(0, b"")] * 3


async def test_a_device_that_refuses_gives_eio_and_changes_nothing(bench: Bench) -> None:
    ino = await bench.make(b"f")
    await bench.write(ino, 0, b"old" * 3000)
    await bench.ask(wire.FSYNC, ino, FSYNC)
    free = bench.fs.statfs().blocks_free
    bench.device.refusing = True
    await bench.fails(errno.EIO, wire.WRITE, ino, write_in(0, b"new"))
    await bench.fails(errno.EIO, wire.WRITE, ino, write_in(1 << 20, b"new" * 3000))
    await bench.kernel.entry(wire.MKDIR, 1, mkdir_in(b"d"))
    await bench.fails(errno.EIO, wire.FSYNCDIR, 1, FSYNC)
    assert await bench.ask(wire.READ, ino, read_in(0, 10_000)) == (0, b"old" * 3000)
    assert (await bench.kernel.attributes(ino))["size"] == 9000
    bench.device.refusing = False
    assert await bench.ask(wire.FSYNCDIR, 1, FSYNC) == (0, b"")
    assert bench.fs.statfs().blocks_free == free
    again = FileSystem(await Store.open(bench.device))
    assert again.lookup(1, b"d") is not None, "what was refused once is durable once it can be"


async def test_lookups_are_counted_and_forgotten(bench: Bench) -> None:
    fs, kernel = bench.fs, bench.kernel
    ino = await bench.make(b"f")
    assert (await kernel.entry(wire.LOOKUP, 1, b"f\0"))["ino"] == ino
    assert await bench.ask(wire.UNLINK, 1, b"f\0") == (0, b"")
    await kernel.tell(wire.FORGET, ino, wire.FORGET_IN.pack(1))
    assert (await kernel.attributes(ino))["nlink"] == 0
    one = wire.FORGET_ONE.pack
    await kernel.tell(wire.BATCH_FORGET, 0, wire.BATCH_IN.pack(2, 0) + one(ino, 1) + one(4711, 1))
    await bench.fails(errno.ESTALE, wire.GETATTR, ino, bytes(16))
    assert len(fs._lookups) == 0
    error, missing = await bench.ask(wire.LOOKUP, 1, b"f\0")
    assert (error, wire.ENTRY_OUT.unpack(missing)[0], wire.ENTRY_OUT.unpack(missing)[2]) == (0, 0, 3600)


@pytest.mark.parametrize("opcode", [wire.READDIR, wire.READDIRPLUS])
async def test_listing_counts_what_fitted(bench: Bench, opcode: int) -> None:
    for number in range(6):
        bench.fs.make(1, b"%d" % number, S_IFREG)
    seen: list[tuple[bytes, int]] = []
    plus = wire.ENTRY_OUT.size if opcode == wire.READDIRPLUS else 0
    for names in (5, 100):
        cookie = seen[-1][1] if seen else 0
        room = names * (plus + wire.DIRENT.size + 8)
        error, answer = await bench.ask(opcode, 1, read_in(cookie, room))
        assert not error
        while answer:
            ino, cookie, length, _ = wire.DIRENT.unpack_from(answer, plus)
            begin = plus + wire.DIRENT.size
            seen.append((answer[begin : begin + length], cookie))
            if plus and ino != 1:
                assert wire.ENTRY_OUT.unpack_from(answer)[0] == ino
            answer = answer[begin + length + (-length & 7) :]
        expected = len([name for name, _ in seen if name not in (b".", b"..")]) if plus else 0
        assert len(bench.fs._lookups) == expected, "`.` and `..` are not counted, nor what did not fit"
    assert sorted(name for name, _ in seen) == sorted([b".", b"..", *(b"%d" % number for number in range(6))])


async def test_a_write_by_somebody_clears_setuid(bench: Bench) -> None:
    node = bench.fs.make(1, b"f", S_IFREG | 0o4777)
    assert (await bench.kernel.attributes(node.ino))["seconds"] == 0
    await bench.write(node.ino, 0, b"x")
    assert S_IMODE(node.mode) == 0o4777
    await bench.write(node.ino, 0, b"y", kill=wire.WRITE_KILL_PRIVILEGES)
    assert S_IMODE(node.mode) == 0o777
    assert (await bench.kernel.attributes(node.ino))["seconds"] == wire.CACHE_SECONDS


@pytest.mark.parametrize(("valid", "mode"), [(0, 0o4777), (wire.FATTR_KILL_PRIVILEGES, 0o777)])
async def test_the_kernel_says_whether_a_cut_clears_setuid(bench: Bench, valid: int, mode: int) -> None:
    """Root may have been denied to keep it, and somebody else may have the right."""
    node = bench.fs.make(1, b"f", S_IFREG | 0o4777)
    for user in (ROOT, SOMEBODY):
        node.mode = S_IFREG | 0o4777
        cut = setattr_in(valid | wire.FATTR_SIZE, size=5)
        assert not (await bench.ask(wire.SETATTR, node.ino, cut, user))[0]
        assert S_IMODE(node.mode) == mode


async def test_a_change_of_nothing_takes_setuid_away_but_not_for_anybody(bench: Bench) -> None:
    node = bench.fs.make(1, b"f", S_IFREG | 0o4777)
    await bench.fails(errno.EPERM, wire.SETATTR, node.ino, setattr_in(wire.FATTR_CTIME), SOMEBODY)
    assert S_IMODE(node.mode) == 0o4777
    assert not (await bench.ask(wire.SETATTR, node.ino, setattr_in(wire.FATTR_CTIME, ctime=5)))[0]
    assert (S_IMODE(node.mode), node.ctime_ns) == (0o777, 5 * 10**9)


async def test_the_blocks_of_a_file_that_has_pages_in_the_kernel(bench: Bench) -> None:
    kernel = bench.kernel

    async def sectors() -> int:
        return (await kernel.attributes(ino))["sectors"]

    made = await kernel.entry(wire.MKNOD, 1, mknod_in(b"f", S_IFREG | 0o644))
    ino = made["ino"]
    # The page cache may hold data: a file without blocks would be taken for one hole.
    assert made["sectors"] == 8
    assert await sectors() == 0, "asked again, it was closed"
    await bench.ask(wire.GETXATTR, ino, CAPABILITY)
    assert await sectors() == 8
    assert kernel.notified == [ino], "the kernel has just heard of no block"
    kernel.notified.clear()
    await bench.write(ino, 0, b"x" * 5000)
    for _ in range(2):
        await bench.ask(wire.FSYNC, ino, FSYNC)
    assert kernel.notified == [ino], "the kernel asks again where something changed"
    assert await sectors() == 16
    await bench.ask(wire.SETATTR, ino, setattr_in(wire.FATTR_SIZE))
    assert await sectors() == 0
    await bench.ask(wire.GETXATTR, ino, CAPABILITY)
    assert kernel.notified == [ino, ino], "the kernel believes in a file without blocks"
    assert await sectors() == 8


async def test_which_reads_set_the_access_time(bench: Bench) -> None:
    node = bench.fs.make(1, b"f", S_IFREG | 0o644)
    bench.fs.write(node.ino, 0, b"x" * 5000)
    for flags, moves in (
        (os.O_WRONLY, False),  # the kernel fills up a page that is written in part
        (os.O_RDONLY | os.O_NOATIME, False),
        (os.O_RDWR, True),
        (os.O_RDONLY, True),
    ):
        node.atime_ns = 1
        await bench.ask(wire.READ, node.ino, read_in(0, 100, flags))
        assert (node.atime_ns > 1) == moves


async def test_more_names_than_a_file_can_have(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = (await bench.kernel.entry(wire.MKDIR, 1, mkdir_in(b"d")))["ino"]
    await bench.kernel.entry(wire.MKDIR, directory, mkdir_in(b"a"))
    await bench.kernel.entry(wire.MKDIR, 1, mkdir_in(b"c"))
    monkeypatch.setattr(namespace, "NLINK_MAX", 3)
    await bench.fails(errno.EMLINK, wire.MKDIR, directory, mkdir_in(b"b"))
    await bench.fails(errno.EMLINK, wire.RENAME, 1, wire.RENAME_IN.pack(directory) + b"c\0c\0")


async def test_names_are_made_moved_and_removed(bench: Bench) -> None:
    directory = (await bench.kernel.entry(wire.MKDIR, 1, mkdir_in(b"d")))["ino"]
    ino = await bench.make(b"f")
    assert await bench.ask(wire.RENAME, 1, wire.RENAME_IN.pack(directory) + b"f\0g\0") == (0, b"")
    await bench.make(b"h")
    await bench.fails(errno.EEXIST, wire.RENAME2, 1, wire.RENAME2_IN.pack(directory, 1, 0) + b"h\0g\0")
    await bench.fails(errno.ENOTEMPTY, wire.RMDIR, 1, b"d\0")
    assert (await bench.kernel.entry(wire.LOOKUP, directory, b"g\0"))["ino"] == ino
    assert await bench.ask(wire.UNLINK, directory, b"g\0") == (0, b"")
    assert await bench.ask(wire.RMDIR, 1, b"d\0") == (0, b"")
    assert [name.name for name in bench.fs.readdir(1)] == [b".", b"..", b"h"]


async def test_blocks_freed_but_not_committed_are_no_reason_to_refuse(bench: Bench) -> None:
    fs = bench.fs
    ino = await bench.make(b"f")
    room = fs.statfs().blocks_available * 4096 - (1 << 20)
    for offset in range(0, room, 1 << 20):
        await bench.write(ino, offset, bytes(min(1 << 20, room - offset)))
    await bench.write(ino, room, bytes(1 << 20))
    await bench.fails(errno.ENOSPC, wire.WRITE, ino, write_in(room + (1 << 20), bytes(1 << 20)))
    await bench.ask(wire.UNLINK, 1, b"f\0")
    await bench.kernel.tell(wire.FORGET, ino, wire.FORGET_IN.pack(1))
    again = await bench.make(b"g")
    for offset in range(0, room, 1 << 20):
        await bench.write(again, offset, bytes(min(1 << 20, room - offset)))


async def test_one_damaged_name_does_not_keep_a_directory_from_being_listed(bench: Bench) -> None:
    node = bench.fs.make(1, b"f", S_IFREG)
    bench.fs.make(1, b"g", S_IFREG)
    bench.fs._forget_node(node.ino)
    bench.fs.store.delete(make_key(node.ino, INODE))
    error, answer = await bench.ask(wire.READDIRPLUS, 1, read_in(0, 4096))
    assert not error
    size = wire.ENTRY_OUT.size + wire.DIRENT.size + 8
    told = [wire.ENTRY_OUT.unpack_from(answer, place)[0] for place in range(0, len(answer), size)]
    assert sorted(told) == [0, 0, 0, node.ino + 1], "the kernel looks the damaged one up and hears why not"
    await bench.fails(errno.EIO, wire.LOOKUP, 1, b"f\0")


async def test_an_fsync_does_not_suffer_from_another_file(bench: Bench) -> None:
    ino = await bench.make(b"f")
    answers: list[tuple[int, bytes]] = []

    async def sync(of: int) -> None:
        answers.append(await bench.ask(wire.FSYNC, of, FSYNC))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync, ino)
        nursery.start_soon(sync, ino + 1)
    assert answers == [(0, b"")] * 2


async def test_the_handle_of_a_removed_file_is_stale_while_it_goes(bench: Bench) -> None:
    fs = bench.fs
    node = fs.make(1, b"f", S_IFREG | 0o644)
    for number in range(2 * PIECE_EXTENTS):
        fs.write(node.ino, number * 8192, b"x")
    assert (await bench.kernel.entry(wire.LOOKUP, node.ino, b".\0"))["ino"] == node.ino
    fs.unlink(1, b"f")
    assert (await bench.kernel.entry(wire.LOOKUP, node.ino, b".\0"))["nlink"] == 0, "somebody holds it"
    fs.forget(node.ino, 2)
    await bench.fails(errno.ESTALE, wire.LOOKUP, node.ino, b".\0")


@pytest.mark.parametrize("opcode", [wire.OPEN, wire.OPENDIR, wire.CREATE, wire.FLUSH, wire.IOCTL])
async def test_nobody_is_told_of_open_files_and_terminals(bench: Bench, opcode: int) -> None:
    assert await bench.ask(opcode, 1, bytes(24)) == (errno.ENOSYS, b"")


async def test_what_the_door_does_not_answer_goes_to_libfuse_and_back(bench: Bench) -> None:
    statfs, descriptor = 17, bench.kernel.descriptor
    answers: list[tuple[int, bytes]] = []

    async def ask() -> None:
        answers.append(await bench.ask(statfs, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.lowlevel.wait_readable(descriptor)
        asked = os.read(descriptor, 4096)
        _, opcode, unique, *_ = wire.IN_HEADER.unpack_from(asked)
        assert opcode == statfs
        os.write(descriptor, wire.answer(unique, b"usage"))
    assert answers == [(0, b"usage")]


async def test_promises_are_added_to_the_answer_to_init(bench: Bench) -> None:
    (flags,) = struct.unpack_from("<I", bench.kernel.init_answer, 28)
    assert flags == 1 | fuse_door.PROMISES, "and cutting at an open is taken back"


@pytest.mark.parametrize(
    "answer", [struct.pack("<IiQ", 16, -71, 9), bytes(20), struct.pack("<IiQ", 40, -1, 9) + bytes(24)]
)
def test_an_answer_that_is_an_error_stays_as_it_is(answer: bytes) -> None:
    assert fuse_door.with_flags(answer, 0xFF, 0xF00) == answer


def test_what_the_kernel_offers() -> None:
    init = request(wire.INIT, 0, struct.pack("<IIII", 7, 41, 1 << 17, 0xABC))
    assert fuse_door.offered_flags(init) == 0xABC
    assert fuse_door.offered_flags(init[:50]) == 0
    assert fuse_door.offered_flags(request(wire.FORGET, 1, bytes(24))) == 0


@pytest.mark.fuse
async def test_what_a_real_kernel_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for capabilities once and not at every write, and does not tell of files that it opens."""

    def work(place: Path) -> None:
        for _ in range(WRITES):
            file = os.open(place / "f", os.O_RDWR | os.O_CREAT)
            os.pwrite(file, b"x", 5)
            os.listdir(place)
            os.close(file)

    async with mounted(tmp_path, monkeypatch) as (_, place, asked):
        await trio.to_thread.run_sync(work, place)
    assert asked[wire.GETXATTR] <= 5
    assert asked[wire.MKNOD] == 1
    release, release_directory = 18, 29
    quiet = (wire.OPEN, wire.OPENDIR, wire.CREATE, wire.FLUSH, release, release_directory)
    assert sum(asked[opcode] for opcode in quiet) <= 8
