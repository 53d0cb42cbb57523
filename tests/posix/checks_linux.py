"""What Linux has beyond POSIX: holes made and found, ioctl, file handles, watching, statx, and the like."""

import array
import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

from tests.posix import calls
from tests.posix.world import Outcome, check, check_each, fill, said

RW, CREATE = os.O_RDWR, os.O_CREAT
MODES = {
    "allocating": 0,
    "allocating behind the end": calls.FALLOC_KEEP_SIZE,
    "punching a hole": calls.FALLOC_KEEP_SIZE | calls.FALLOC_PUNCH_HOLE,
    "writing zeros": calls.FALLOC_ZERO,
    "collapsing": calls.FALLOC_COLLAPSE,
}


@check_each(list(MODES.items()))
def fallocate(place: Path, mode: int) -> Outcome:
    descriptor = os.open(fill(place / "f", b"x" * 16_384), RW)
    answer = said(calls.fallocate, descriptor, mode, 4096, 8192), os.fstat(descriptor).st_size
    os.close(descriptor)
    return answer, (place / "f").read_bytes().count(b"x")


@check
def posix_fallocate(place: Path) -> Outcome:
    """Where fallocate(2) is missing, the C library writes instead."""
    path = fill(place / "f", b"data")
    descriptor = os.open(path, RW)
    answer = said(os.posix_fallocate, descriptor, 0, 100_000), said(os.posix_fallocate, descriptor, 50, 10)
    os.fsync(descriptor)
    os.close(descriptor)
    return answer, path.read_bytes() == b"data".ljust(100_000, b"\0"), path.stat().st_blocks * 512 >= 98_304


@check
def holes_are_found(place: Path) -> Outcome:
    descriptor = os.open(place / "f", RW | CREATE)
    os.pwrite(descriptor, b"x" * 4096, 65_536)
    os.ftruncate(descriptor, 1 << 20)
    os.fsync(descriptor)
    answer = [said(os.lseek, descriptor, 0, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE)]
    os.close(descriptor)
    return answer


@check
def data_is_found_in_a_file_without_holes(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f", b"x" * 8192), RW)
    pairs = [
        (0, os.SEEK_DATA),
        (5000, os.SEEK_DATA),
        (0, os.SEEK_HOLE),
        (8192, os.SEEK_DATA),
        (9000, os.SEEK_HOLE),
    ]
    answers = [said(os.lseek, descriptor, *pair) for pair in pairs]
    os.close(descriptor)
    return answers


def _ioctl(path: Path, request: int) -> Outcome:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return said(lambda: fcntl.ioctl(descriptor, request, array.array("i", [0] * 8)) and None)
    finally:
        os.close(descriptor)


@check_each([("flags of a file", calls.FS_IOC_GETFLAGS), ("project of a file", calls.FS_IOC_FSGETXATTR)])
def ioctl_for_the(place: Path, request: int) -> Outcome:
    return _ioctl(fill(place / "f"), request), _ioctl(place, request)


@check
def ioctl_that_nobody_knows(place: Path) -> Outcome:
    return _ioctl(fill(place / "f"), 0x12345), _ioctl(place, 0x12345)


@check
def how_much_can_be_read(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f", b"x" * 100), os.O_RDONLY)
    os.lseek(descriptor, 30, os.SEEK_SET)
    number = array.array("i", [0])
    fcntl.ioctl(descriptor, calls.FIONREAD, number)
    os.close(descriptor)
    return number[0]


def _stat_by_handle(place: Path, handle: bytes) -> tuple[int | str, int]:
    try:
        descriptor = calls.open_handle(place, handle)
    except OSError as error:
        return errno.errorcode[error.errno or 0], 0
    found = os.fstat(descriptor)
    os.close(descriptor)
    return found.st_size, found.st_nlink


@check
def a_handle_opens_the_file_by_whatever_name(place: Path) -> Outcome:
    handle = calls.handle_of(fill(place / "f"))
    same = handle == calls.handle_of(place / "f")
    os.mkdir(place / "d")
    os.rename(place / "f", place / "d" / "g")
    return same, _stat_by_handle(place, handle), _stat_by_handle(place, calls.handle_of(place / "d"))[1:]


@check
def a_handle_of_a_removed_file_is_stale(place: Path) -> Outcome:
    handle = calls.handle_of(fill(place / "f"))
    os.unlink(place / "f")
    first = _stat_by_handle(place, handle)
    for number in range(50):
        fill(place / str(number))
    return first, _stat_by_handle(place, handle)


@check
def two_files_have_two_handles(place: Path) -> Outcome:
    handles = set()
    for _ in range(30):
        handles.add(calls.handle_of(fill(place / "f")))
        os.unlink(place / "f")
    return len(handles)


@check
def a_removed_open_file_keeps_its_number(place: Path) -> Outcome:
    numbers = set()
    files = []
    for _ in range(30):
        file = open(fill(place / "f"), "rb")  # noqa: SIM115  # held open on purpose
        files.append(file)
        os.unlink(place / "f")
        numbers.add(os.fstat(file.fileno()).st_ino)
    for file in files:
        file.close()
    return len(numbers)


@check
def changes_are_noticed_by_watchers(place: Path) -> Outcome:
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(watcher, bytes(place), 0xFFF)
    fill(place / "f")
    os.rename(place / "f", place / "g")
    os.unlink(place / "g")
    data, found = os.read(watcher, 65_536), []
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        found.append((hex(mask), data[16 : 16 + length].rstrip(b"\0")))
        data = data[16 + length :]
    os.close(watcher)
    return found


@check
def nothing_crosses_devices(place: Path) -> Outcome:
    fill(place / "f")
    return said(os.link, place / "f", "/dev/shm/trisite-posix"), said(
        os.rename, place / "f", "/dev/shm/trisite-p"
    )


@check
def advice_is_taken(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f", b"x" * 100_000), RW)
    answers = [said(os.posix_fadvise, descriptor, 0, 0, advice) for advice in range(7)]
    os.close(descriptor)
    return answers


@check
def unix_sockets_meet_by_name(place: Path) -> Outcome:
    import socket

    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(place / "s"))
        server.listen()
        client.connect(str(place / "s"))
        again = said(server.bind, str(place / "s"))
        os.unlink(place / "s")
        return again, said(client.send, b"x")


@check
def access_asks_for_the_real_user(place: Path) -> Outcome:
    path = fill(place / "f", mode=0o000)
    return [os.access(path, how) for how in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)]
