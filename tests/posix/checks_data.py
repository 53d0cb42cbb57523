"""What files hold: sizes, holes, appending, direct and synchronous writing, maps, and blocks in use."""

import errno
import hashlib
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

from tests.posix import calls
from tests.posix.world import (
    USER,
    Outcome,
    as_user,
    check,
    check_each,
    fill,
    opened,
    said,
    shared,
)

R, W, RW, CREATE = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_CREAT
MIB = 1 << 20


def digest(path: Path) -> tuple[int, str]:
    content = path.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


@check_each([(str(size), size) for size in (0, 1, 6, 7, 8, 4095, 4096, 4097, 8192, 100_000, 5 * MIB)])
def truncate_to(place: Path, size: int) -> Outcome:
    answers = []
    for start in (b"", b"content", b"c" * 4096, b"c" * 9000, b"c" * 200_000):
        path = fill(place / "f", start)
        os.truncate(path, size)
        answers.append(digest(path))
        with path.open("r+b") as file:
            file.truncate(10_000)
        answers.append(digest(path))
    return answers


@check_each([("negative", -1), ("the largest", (1 << 63) - 1), ("beyond the largest of ext4", 1 << 45)])
def truncate_to_a_size_that_is(place: Path, size: int) -> Outcome:
    answer = said(os.truncate, fill(place / "f"), size)
    return answer, os.stat(place / "f").st_size


@check
def truncate_needs_the_right_to_write(place: Path) -> Outcome:
    path = fill(place / "f", mode=0o644)
    reading = os.open(path, R)
    answer = as_user(lambda: os.truncate(path, 0)), said(os.ftruncate, reading, 0), path.read_bytes()
    os.close(reading)
    return answer


@check
def what_is_cut_off_never_comes_back(place: Path) -> Outcome:
    path = fill(place / "f", b"s" * 20_000)
    for size in (10_000, 20_000, 5_000, 30_000, 4096, 12_000, 1, 9_000):
        os.truncate(path, size)
    return digest(path), path.read_bytes().count(b"s")


@check
def a_cut_file_seen_by_another_descriptor(place: Path) -> Outcome:
    path = fill(place / "f", b"x" * 10_000)
    with path.open("rb", 0) as reader:
        reader.seek(5000)
        os.truncate(path, 3000)
        short = reader.read(10)
        os.truncate(path, 6000)
        return short, reader.read(3), os.fstat(reader.fileno()).st_size


@check_each([("far", 1 << 30), ("very far", 1 << 40), ("just behind", 8), ("in the next block", 4096)])
def a_write_behind_the_end(place: Path, offset: int) -> Outcome:
    path = fill(place / "f")
    descriptor = os.open(path, RW)
    os.pwrite(descriptor, b"end", offset)
    answer = (
        os.fstat(descriptor).st_size,
        os.pread(descriptor, 12, 0),
        os.pread(descriptor, 12, offset - 6),
        os.pread(descriptor, 5, offset + 3),
    )
    os.close(descriptor)
    return answer, os.stat(path).st_blocks < 64


@check
def holes_read_as_zeros(place: Path) -> Outcome:
    path = place / "f"
    descriptor = os.open(path, RW | CREATE)
    for number in range(20):
        os.pwrite(descriptor, bytes([65 + number]) * 100, number * 10_007)
    os.fsync(descriptor)
    os.close(descriptor)
    return digest(path)


@check
def random_writes_cuts_and_reads(place: Path) -> Outcome:
    chance = random.Random(7)
    descriptor = os.open(place / "f", RW | CREATE)
    answers = []
    for _ in range(300):
        offset, length = chance.randrange(200_000), chance.randrange(1, 30_000)
        match chance.randrange(5):
            case 0 | 1 | 2:
                os.pwrite(descriptor, chance.randbytes(length), offset)
            case 3:
                os.ftruncate(descriptor, offset)
            case 4:
                answers.append(hashlib.sha256(os.pread(descriptor, length, offset)).hexdigest())
    os.close(descriptor)
    return answers, digest(place / "f")


def _append(path: Path, letter: bytes) -> None:
    descriptor = os.open(path, W | os.O_APPEND)
    for number in range(100):
        os.write(descriptor, letter * (number + 1) + b"\n")
    os.close(descriptor)


@check
def several_processes_append_whole_lines(place: Path) -> Outcome:
    path = fill(place / "f", b"")
    pids = []
    for letter in b"abcd":
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _append(path, bytes([letter]))
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    return statuses, sorted(path.read_bytes().splitlines())


@check
def positions_are_shared_by_fork_and_dup(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f", b"0123456789"), RW)
    other = os.dup(descriptor)
    os.read(descriptor, 3)
    pid = os.fork()
    if pid == 0:
        os.read(descriptor, 2)
        os._exit(0)
    os.waitpid(pid, 0)
    answer = os.read(other, 2)
    os.close(descriptor)
    os.close(other)
    return answer


@check_each([("SEEK_SET", os.SEEK_SET), ("SEEK_CUR", os.SEEK_CUR), ("SEEK_END", os.SEEK_END), ("none", 9)])
def seeking_from(place: Path, whence: int) -> Outcome:
    descriptor = os.open(fill(place / "f", b"0123456789"), R)
    os.lseek(descriptor, 4, os.SEEK_SET)
    answers = [said(os.lseek, descriptor, offset, whence) for offset in (2, -1, -100, 1 << 40, (1 << 63) - 1)]
    os.close(descriptor)
    return answers


def _direct(place: Path, flags: int, shift: int, length: int) -> Outcome:
    with mmap.mmap(-1, 65_536) as buffer:
        buffer[:] = b"d" * 65_536
        path = fill(place / "f", b"c" * 10_000)
        descriptor = os.open(path, RW | os.O_DIRECT | flags)
        try:
            written = said(os.pwritev, descriptor, [memoryview(buffer)[:length]], shift)
            read = said(os.preadv, descriptor, [memoryview(buffer)[:length]], shift)
            return written, read, digest(path)
        finally:
            os.close(descriptor)


@check_each(
    [(f"{length} at {shift}", (length, shift)) for length in (4096, 65_536) for shift in (0, 4096, 16_384)]
)
def direct_writes(place: Path, case: tuple[int, int]) -> Outcome:
    return _direct(place, 0, case[1], case[0])


@check_each([("length", (4096, 100)), ("offset", (100, 4096))])
def direct_writes_with_an_odd(place: Path, case: tuple[int, int]) -> Outcome:
    return _direct(place, 0, *case)


@check
def direct_and_cached_writes_see_each_other(place: Path) -> Outcome:
    path = fill(place / "f", b"")
    cached, direct = os.open(path, RW), os.open(path, RW | os.O_DIRECT)
    answers = []
    with mmap.mmap(-1, 4096) as buffer:
        for number in range(4):
            os.pwrite(cached, bytes([65 + number]) * 4096, number * 4096)
            os.preadv(direct, [buffer], number * 4096)
            answers.append(buffer[:2])
            buffer[:] = bytes([97 + number]) * 4096
            os.pwritev(direct, [buffer], number * 4096)
            answers.append(os.pread(cached, 2, number * 4096))
    os.close(cached)
    os.close(direct)
    return answers, digest(path)


@check_each([("O_SYNC", os.O_SYNC), ("O_DSYNC", os.O_DSYNC), ("O_RSYNC", os.O_RSYNC)])
def synchronous_writes(place: Path, flags: int) -> Outcome:
    path = place / "f"
    descriptor = os.open(path, RW | CREATE | flags)
    for number in range(5):
        os.write(descriptor, b"%d" % number * 1000)
    os.ftruncate(descriptor, 4500)
    os.close(descriptor)
    return digest(path)


SYNCS: dict[str, Callable[[int], object]] = {
    "fsync": os.fsync,
    "fdatasync": os.fdatasync,
    "sync_file_range": calls.fsync_range,
}


@check_each([(words, words) for words in SYNCS])
def syncing(place: Path, words: str) -> Outcome:
    act = SYNCS[words]
    answers = []
    fill(place / "f", b"x" * 100_000)
    os.mkdir(place / "d")
    os.mkfifo(place / "p")
    for name, flags in (("f", R), ("f", W), ("d", R), ("p", RW), ("f", os.O_PATH)):
        descriptor = os.open(place / name, flags)
        answers.append((name, said(act, descriptor)))
        os.close(descriptor)
    return answers


@check
def a_shared_map_is_the_file(place: Path) -> Outcome:
    path = fill(place / "f", b"0" * 10_000)
    with path.open("r+b", 0) as file, mmap.mmap(file.fileno(), 10_000) as view:
        view[5000:5003] = b"map"
        seen = os.pread(file.fileno(), 5, 4999)
        os.pwrite(file.fileno(), b"write", 9000)
        back = view[8999:9006]
        view.flush()
        os.fsync(file.fileno())
    return seen, back, digest(path)


@check
def a_private_map_is_not(place: Path) -> Outcome:
    path = fill(place / "f", b"0" * 5000)
    with path.open("r+b", 0) as file, mmap.mmap(file.fileno(), 5000, flags=mmap.MAP_PRIVATE) as view:
        view[0:3] = b"map"
        return view[0:4], os.pread(file.fileno(), 4, 0)


@check
def a_map_outlives_its_descriptor_and_its_name(place: Path) -> Outcome:
    path = fill(place / "f", b"0" * 5000)
    os.link(path, place / "g")
    with path.open("r+b", 0) as file:
        view = mmap.mmap(file.fileno(), 5000)
    os.unlink(path)
    view[0:3] = b"map"
    seen = (place / "g").read_bytes()[:4]
    os.unlink(place / "g")
    view[4:6] = b"ab"
    answer = seen, view[0:7]
    view.close()
    return answer


@check
def what_a_map_writes_behind_the_end_is_lost(place: Path) -> Outcome:
    path = fill(place / "f", b"12345")
    with path.open("r+b", 0) as file, mmap.mmap(file.fileno(), 5) as view:
        view.flush()
        os.ftruncate(file.fileno(), 3)
        os.ftruncate(file.fileno(), 8)
        return view[0:5], os.pread(file.fileno(), 20, 0)


@check
def a_map_of_a_hole(place: Path) -> Outcome:
    path = place / "f"
    descriptor = os.open(path, RW | CREATE)
    os.ftruncate(descriptor, MIB)
    with mmap.mmap(descriptor, MIB) as view:
        zeros = view[:MIB] == bytes(MIB)
        view[300_000:300_003] = b"map"
        view.flush()
    os.fsync(descriptor)
    os.close(descriptor)
    return zeros, digest(path), os.stat(path).st_blocks <= 64


@check
def a_map_for_writing_needs_a_writable_descriptor(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f"), R)
    try:
        return said(lambda: mmap.mmap(descriptor, 7).close())
    finally:
        os.close(descriptor)


def _blocks(path: Path) -> int:
    return os.stat(path).st_blocks * 512


@check
def blocks_in_use_once_synced(place: Path) -> Outcome:
    path = place / "f"
    descriptor = os.open(path, RW | CREATE)
    answers = []
    for act in (
        lambda: os.pwrite(descriptor, b"x" * 100, 0),
        lambda: os.pwrite(descriptor, b"x" * MIB, 0),
        lambda: os.ftruncate(descriptor, 50 * MIB),
        lambda: os.pwrite(descriptor, b"x" * 4096, 20 * MIB),
        lambda: os.ftruncate(descriptor, 8192),
        lambda: os.ftruncate(descriptor, 0),
    ):
        act()
        os.fsync(descriptor)
        answers.append(_blocks(path) // 16_384)
    os.close(descriptor)
    return answers


@check
def blocks_in_use_once_closed(place: Path) -> Outcome:
    path = place / "f"
    empty = fill(place / "empty", b"")
    answers = []
    for size in (1, 4096, 100_000, 3):
        path.write_bytes(b"x" * size)
        answers.append(_blocks(path) > 0)
    return answers, _blocks(empty), _blocks(fill(place / "m", b"m" * MIB)) // 65_536


@check
def blocks_in_use_while_data_waits_in_the_page_cache(place: Path) -> Outcome:
    """tar and others take a file without blocks for one that is all hole."""
    with open(place / "f", "wb", 0) as file:
        file.write(b"x" * 100_000)
        return _blocks(place / "f") > 0, os.fstat(file.fileno()).st_blocks > 0


@check
def a_block_in_use_once_data_was_cut_and_written_again(place: Path) -> Outcome:
    with open(fill(place / "f", b"x" * 100_000), "r+b", 0) as file:
        file.truncate(0)
        file.write(b"x" * 5000)
        os.fsync(file.fileno())
        return 0 < _blocks(place / "f") <= 8192


@check
def an_empty_file_that_is_open_for_writing_uses_no_block(place: Path) -> Outcome:
    with open(fill(place / "f", b"x" * 100_000), "r+b", 0) as file:
        file.truncate(0)
        during = _blocks(place / "f")
    return during, _blocks(place / "f")


@check
def blocks_of_a_new_file_that_is_only_cut_to_a_length(place: Path) -> Outcome:
    path = fill(place / "f", b"")
    os.truncate(path, MIB)
    return _blocks(path)


@check
def blocks_of_a_new_file_that_was_cut_to_a_length_and_back_or_synced(place: Path) -> Outcome:
    with open(place / "f", "wb", 0) as file, open(place / "g", "wb", 0) as other:
        file.truncate(MIB)
        other.truncate(MIB)
        file.truncate(0)
        os.fsync(other.fileno())
        answers = [_blocks(place / "f"), _blocks(place / "g")]
        other.write(b"x" * 5000)
        return answers, 0 < _blocks(place / "g") <= 8192


@check
def links_directories_and_pipes_take_few_blocks(place: Path) -> Outcome:
    os.mkdir(place / "d")
    os.mkfifo(place / "p")
    os.symlink("t", place / "l")
    return [os.lstat(place / name).st_blocks <= 8 for name in ("d", "p", "l")]


@check
def the_volume_counts_what_is_used_and_freed(place: Path) -> Outcome:
    def free() -> int:
        found = os.statvfs(place)
        return found.f_bfree * found.f_frsize // MIB

    before = free()
    with open(place / "f", "wb", 0) as file:
        file.write(b"x" * 20 * MIB)
        os.fsync(file.fileno())
    full = free()
    os.unlink(place / "f")
    os.sync()
    return -22 < full - before < -18, abs(free() - before) <= 1


@check
def the_volume_as_statvfs_tells(place: Path) -> Outcome:
    found = os.statvfs(place)
    return (
        found.f_namemax,
        found.f_frsize,
        found.f_bavail <= found.f_bfree <= found.f_blocks,
        found.f_files > found.f_ffree > 0,
        found.f_flag & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC),
    )


@check
def vectors(place: Path) -> Outcome:
    descriptor = os.open(place / "f", RW | CREATE)
    written = os.writev(descriptor, [b"ab", b"", b"cde" * 3000])
    first, second = bytearray(3), bytearray(5000)
    read = os.preadv(descriptor, [first, second], 1)
    os.close(descriptor)
    return written, read, bytes(first), bytes(second[:4])


@check
def copies_inside_the_kernel(place: Path) -> Outcome:
    source = fill(place / "from", random.Random(1).randbytes(300_000))
    descriptors = [os.open(source, R), os.open(place / "a", RW | CREATE), os.open(place / "b", RW | CREATE)]
    copied = said(os.copy_file_range, descriptors[0], descriptors[1], 200_000, 1000, 5)
    sent = os.sendfile(descriptors[2], descriptors[0], 0, 300_000)
    reader, writer = os.pipe()
    os.splice(descriptors[0], writer, 4000, 0)
    os.splice(reader, descriptors[2], 4000, offset_dst=310_000)
    for descriptor in (*descriptors, reader, writer):
        os.close(descriptor)
    return copied, sent, digest(place / "a"), digest(place / "b")


@check
def reading_and_writing_what_is_no_file(place: Path) -> Outcome:
    os.mkdir(place / "d")
    descriptor = os.open(place / "d", R)
    fill(place / "f")
    reading, writing = os.open(place / "f", R), os.open(place / "f", W)
    answers = (
        said(os.read, descriptor, 10),
        said(os.write, descriptor, b"x"),
        said(os.ftruncate, descriptor, 0),
        said(os.write, reading, b"x"),
        said(os.read, writing, 1),
        said(os.pread, reading, 1, -1),
        said(os.pwrite, writing, b"x", -1),
    )
    for number in (descriptor, reading, writing):
        os.close(number)
    return answers


@check
def writes_at_the_end_of_all_sizes(place: Path) -> Outcome:
    descriptor = os.open(place / "f", RW | CREATE)
    largest = (1 << 63) - 1
    answers = [
        said(os.pwrite, descriptor, b"x", offset) in ("EFBIG", "EINVAL") for offset in (largest, largest - 1)
    ]
    os.close(descriptor)
    return answers, opened(place / "f", R)


@check
def the_limit_of_a_process_on_sizes(place: Path) -> Outcome:
    import resource
    import signal

    shared(place)

    def work() -> Outcome:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        descriptor = os.open(place / "f", RW | CREATE)
        first = os.write(descriptor, b"x" * 9000)
        second = os.write(descriptor, b"x" * 9000)
        third = said(os.write, descriptor, b"x")
        return first, second, third, said(os.truncate, place / "f", 20_000), errno.EFBIG

    return as_user(work, USER)
