"""Times: which of access, modification and change time every call sets, and which times can be kept."""

import mmap
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.posix import calls
from tests.posix.world import (
    LATER_NS,
    OLD_NS,
    OTHER_USER,
    USER,
    Outcome,
    add_each,
    as_user,
    check,
    check_each,
    fill,
    let_time_pass,
    moved,
    opened,
    said,
    shared,
)

NOW, OMIT = (0, calls.UTIME_NOW), (0, calls.UTIME_OMIT)
FIVE = (5, 123_456_789)


def _pwrite(path: Path, data: bytes, offset: int, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags)
    os.pwrite(descriptor, data, offset)
    os.close(descriptor)


def _mapped(path: Path) -> None:
    with open(path, "r+b", 0) as file, mmap.mmap(file.fileno(), 4) as view:
        view[0:1] = b"z"
        view.flush()


def _write_direct(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as buffer:
        os.writev(descriptor, [buffer])
    os.close(descriptor)


def _there_and_back(path: Path, there: Path, flags: int = 0) -> None:
    calls.renameat2(path, there, flags)
    calls.renameat2(there, path, flags)


def _exec(path: Path) -> None:
    os.waitpid(os.posix_spawn(path, ["true"], {}), 0)


def _with(path: Path, flags: int, act: Callable[[int], object]) -> object:
    descriptor = os.open(path, flags)
    try:
        return act(descriptor)
    finally:
        os.close(descriptor)


ON_A_FILE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "stat": os.stat,
    "access": lambda path: os.access(path, os.R_OK),
    "open for reading": lambda path: opened(path, os.O_RDONLY),
    "open for writing": lambda path: opened(path, os.O_WRONLY),
    "open with O_CREAT": lambda path: opened(path, os.O_WRONLY | os.O_CREAT),
    "open with O_TRUNC": lambda path: opened(path, os.O_WRONLY | os.O_TRUNC),
    "write": lambda path: _pwrite(path, b"x", 0),
    "write at the end": lambda path: _pwrite(path, b"x", 7),
    "write far behind the end": lambda path: _pwrite(path, b"x", 100_000),
    "write of nothing": lambda path: _pwrite(path, b"", 0),
    "append": lambda path: _pwrite(path, b"x", 0, os.O_APPEND),
    "synchronous write": lambda path: _pwrite(path, b"x", 0, os.O_SYNC),
    "truncate to less": lambda path: os.truncate(path, 2),
    "truncate to more": lambda path: os.truncate(path, 9000),
    "truncate to the same": lambda path: os.truncate(path, 7),
    "truncate to nothing": lambda path: os.truncate(path, 0),
    "ftruncate to the same": lambda path: _with(path, os.O_RDWR, lambda file: os.ftruncate(file, 7)),
    "ftruncate to less": lambda path: _with(path, os.O_RDWR, lambda file: os.ftruncate(file, 2)),
    "chmod": lambda path: os.chmod(path, 0o600),
    "chmod to the same": lambda path: os.chmod(path, 0o755),
    "chown": lambda path: os.chown(path, USER, USER),
    "chown to the same": lambda path: os.chown(path, 0, 0),
    "chown of nothing": lambda path: os.chown(path, -1, -1),
    "link": lambda path: os.link(path, path.with_name("new")),
    "unlink of another name": lambda path: os.unlink(path.with_name("other")),
    "rename": lambda path: _there_and_back(path, path.with_name("new")),
    "rename to itself": lambda path: os.rename(path, path),
    "rename to its other name": lambda path: os.rename(path, path.with_name("other")),
    "exchange": lambda path: _there_and_back(path, path.with_name("beside"), calls.EXCHANGE),
    "setxattr": lambda path: os.setxattr(path, "user.x", b"x"),
    "setxattr to the same": lambda path: os.setxattr(path, "user.there", b"x"),
    "removexattr": lambda path: os.removexattr(path, "user.there"),
    "getxattr": lambda path: os.getxattr(path, "user.there"),
    "listxattr": lambda path: os.listxattr(path),
    "a refused setxattr": lambda path: said(os.setxattr, path, "user.there", b"x", os.XATTR_CREATE),
    "a shared map": _mapped,
    "direct write": _write_direct,
    "write through a descriptor that also reads": lambda path: _with(
        path, os.O_RDWR, lambda file: os.pwrite(file, b"x", 0)
    ),
    "fsync": lambda path: _with(path, os.O_RDWR, os.fsync),
    "utimensat, both now": lambda path: calls.utimensat(path, NOW, NOW),
    "utimensat, both omitted": lambda path: calls.utimensat(path, OMIT, OMIT),
    "utimensat, access now": lambda path: calls.utimensat(path, NOW, OMIT),
    "utimensat, modification now": lambda path: calls.utimensat(path, OMIT, NOW),
    "utime without times": os.utime,
}
READS: dict[str, Callable[[Path], object]] = {
    "read": lambda path: path.read_bytes(),
    "read of nothing": lambda path: _with(path, os.O_RDONLY, lambda file: os.pread(file, 0, 0)),
    "read at the end": lambda path: _with(path, os.O_RDONLY, lambda file: os.pread(file, 10, 100_000)),
    "read with O_NOATIME": lambda path: _with(
        path, os.O_RDONLY | os.O_NOATIME, lambda file: os.pread(file, 10, 0)
    ),
    "running it": _exec,
}


def _cold(path: Path) -> None:
    """Have nothing of the file in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _on_a_file(place: Path, act: Callable[[Path], object], content: bytes, **times: int) -> Outcome:
    path = fill(place / "f", content, 0o755)
    os.link(path, place / "other")
    fill(place / "beside")
    os.setxattr(path, "user.there", b"x")
    _cold(path)
    return moved(lambda: act(path), path, **times)


for _words, _act in ON_A_FILE.items():
    add_each(f"times: {_words}", _on_a_file, _act, b"content")
for _words, _act in READS.items():
    for _when, _times in (
        ("", {}),
        (", accessed after it was changed", {"atime_ns": LATER_NS}),
        (", modified after it was accessed", {"mtime_ns": LATER_NS}),
    ):
        add_each(f"times: {_words}{_when}", _on_a_file, _act, Path("/bin/true").read_bytes(), **_times)


@check
def a_read_from_the_page_cache(place: Path) -> Outcome:
    path = fill(place / "f")
    return moved(path.read_bytes, path)


@check
def a_read_through_a_map(place: Path) -> Outcome:
    path = fill(place / "f")
    _cold(path)

    def look() -> None:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 7, prot=mmap.PROT_READ) as view:
            assert view[0:1] == b"c"

    return moved(look, path)


IN_A_DIRECTORY: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "lookup": lambda path: os.lstat(path / "d" / "f"),
    "lookup of nothing": lambda path: said(os.lstat, path / "d" / "n"),
    "listing": lambda path: os.listdir(path / "d"),
    "creating": lambda path: fill(path / "d" / "new"),
    "opening with O_CREAT what is there": lambda path: opened(path / "d" / "f", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda path: os.mkdir(path / "d" / "new"),
    "mkfifo": lambda path: os.mkfifo(path / "d" / "new"),
    "symlink": lambda path: os.symlink("t", path / "d" / "new"),
    "link into it": lambda path: os.link(path / "e" / "f", path / "d" / "new"),
    "link out of it": lambda path: os.link(path / "d" / "f", path / "e" / "new"),
    "unlink": lambda path: os.unlink(path / "d" / "f"),
    "rmdir": lambda path: os.rmdir(path / "d" / "sub"),
    "a refused rmdir": lambda path: said(os.rmdir, path / "d"),
    "a refused mkdir": lambda path: said(os.mkdir, path / "d" / "sub"),
    "rename in it": lambda path: os.rename(path / "d" / "f", path / "d" / "g"),
    "rename over": lambda path: os.rename(path / "d" / "f", path / "d" / "g2"),
    "rename into it": lambda path: os.rename(path / "e" / "f", path / "d" / "new"),
    "rename out of it": lambda path: os.rename(path / "d" / "f", path / "e" / "new"),
    "a directory moved out of it": lambda path: os.rename(path / "d" / "sub", path / "e" / "new"),
    "renaming the directory": lambda path: _there_and_back(path / "d", path / "x"),
    "moving the directory": lambda path: _there_and_back(path / "d", path / "e" / "x"),
    "exchange with another directory": lambda path: calls.renameat2(
        path / "d" / "f", path / "e" / "f", calls.EXCHANGE
    ),
    "exchange in one directory": lambda path: calls.renameat2(
        path / "d" / "f", path / "d" / "g2", calls.EXCHANGE
    ),
    "writing a file in it": lambda path: _pwrite(path / "d" / "f", b"x", 0),
    "chmod of a file in it": lambda path: os.chmod(path / "d" / "f", 0o600),
    "chmod": lambda path: os.chmod(path / "d", 0o700),
    "chown": lambda path: os.chown(path / "d", USER, USER),
    "setxattr": lambda path: os.setxattr(path / "d", "user.x", b"x"),
    "work in a directory below": lambda path: fill(path / "d" / "sub" / "new"),
}


def _in_a_directory(place: Path, act: Callable[[Path], object]) -> Outcome:
    for name in ("d", "e", "d/sub"):
        os.mkdir(place / name)
    for name in ("d/f", "d/g2", "e/f"):
        fill(place / name)
    return moved(lambda: act(place), *[place / name for name in ("d", "e", "d/sub", "d/f", "d/g2", "e/f")])


for _words, _act in IN_A_DIRECTORY.items():
    add_each(f"times: {_words}, and the directories around it", _in_a_directory, _act)


@check_each([("older", {}), ("newer", {"atime_ns": LATER_NS})])
def listing_a_directory_whose_access_time_is(place: Path, times: dict[str, int]) -> Outcome:
    os.mkdir(place / "d")
    fill(place / "d" / "f")
    return moved(lambda: os.listdir(place / "d"), place / "d", **times)


@check_each([("older", {}), ("newer", {"atime_ns": LATER_NS})])
def reading_a_link_whose_access_time_is(place: Path, times: dict[str, int]) -> Outcome:
    os.symlink("t", place / "l")
    return moved(lambda: os.readlink(place / "l"), place / "l", **times)


@check
def following_a_link(place: Path) -> Outcome:
    os.symlink("f", place / "l")
    fill(place / "f")
    return moved(lambda: os.stat(place / "l"), place / "l", place / "f")


@check
def a_link_has_times_of_its_own(place: Path) -> Outcome:
    os.symlink("f", place / "l")
    fill(place / "f")
    os.utime(place / "l", ns=(1, 2), follow_symlinks=False)
    own = os.lstat(place / "l")
    os.utime(place / "l", ns=(3, 4))
    found = os.stat(place / "f")
    return (
        own.st_atime_ns,
        own.st_mtime_ns,
        found.st_atime_ns,
        found.st_mtime_ns,
        os.lstat(place / "l").st_mtime_ns,
    )


@check
def the_times_of_a_pipe(place: Path) -> Outcome:
    os.mkfifo(place / "p")
    reader = os.open(place / "p", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(place / "p", os.O_WRONLY)
    try:
        return moved(lambda: os.write(writer, b"x"), place / "p"), moved(
            lambda: os.read(reader, 1), place / "p"
        )
    finally:
        os.close(reader)
        os.close(writer)


MAKERS: dict[str, Callable[[Path], object]] = {
    "file": fill,
    "directory": os.mkdir,
    "link": lambda path: os.symlink("t", path),
    "pipe": os.mkfifo,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}


@check
def new_things_have_the_time_of_now(place: Path) -> Outcome:
    os.utime(place, ns=(OLD_NS, OLD_NS))
    before = os.stat(place).st_ctime_ns
    let_time_pass(before)
    answers = []
    for words, make in MAKERS.items():
        make(place / words)
        found, parent = os.lstat(place / words), os.stat(place)
        stamps = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
        in_order = found.st_mtime_ns >= parent.st_mtime_ns - 20_000_000
        answers.append((min(stamps) > before, max(stamps) - min(stamps) < 10**9, in_order))
    return answers


SECONDS = {
    "1902": -(2**31) + 10**7,
    "before 1970": -1,
    "1970": 0,
    "2001": 10**9,
    "2038": 2**31,
    "2106": 2**32,
    "2200": 7_258_118_400,
    "2400": 13_569_465_600,
}


@check
def a_time_in_1800(place: Path) -> Outcome:
    os.utime(fill(place / "f"), (-5_364_662_400, -5_364_662_400))
    return os.stat(place / "f").st_mtime


@check_each(list(SECONDS.items()))
def a_time_in(place: Path, seconds: int) -> Outcome:
    answers = []
    for words, make in MAKERS.items():
        path = place / words
        make(path)
        for nanoseconds in (0, 1, 999_999_999):
            stamp = seconds * 10**9 + nanoseconds
            os.utime(path, ns=(stamp, stamp + 10**9), follow_symlinks=False)
            found = os.lstat(path)
            answers.append((found.st_atime_ns - stamp, found.st_mtime_ns - stamp))
    return answers


@check_each(
    [("both", (NOW, NOW)), ("access", (NOW, OMIT)), ("modification", (OMIT, NOW)), ("none", (OMIT, OMIT))]
)
def now_for(place: Path, times: tuple[tuple[int, int], tuple[int, int]]) -> Outcome:
    answers = []
    for words, make in MAKERS.items():
        path = place / words
        make(path)
        answers.append(moved(partial(calls.utimensat, path, *times, 0x100), path))
    return answers


@check
def one_time_given_the_other_now_or_left(place: Path) -> Outcome:
    path = fill(place / "f")
    answers = []
    for times in ((FIVE, NOW), (NOW, FIVE), (FIVE, OMIT), (OMIT, FIVE)):
        os.utime(path, ns=(OLD_NS, OLD_NS))
        calls.utimensat(path, *times)
        found = os.stat(path)
        stamps = (found.st_atime_ns, found.st_mtime_ns)
        answers.append(
            ["given" if at == 5_123_456_789 else "old" if at == OLD_NS else "now" for at in stamps]
        )
    return answers


@check_each([("nanoseconds beyond a second", (0, 10**9)), ("negative nanoseconds", (0, -1))])
def times_that_are_none(place: Path, stamp: tuple[int, int]) -> Outcome:
    return said(calls.utimensat, fill(place / "f"), stamp, stamp)


@check_each([("its owner", 0o600), ("a writer", 0o666), ("a reader", 0o644), ("nobody", 0o600)])
def setting_times_is_for(place: Path, mode: int) -> Outcome:
    path = fill(place / "f", mode=mode)
    os.chown(path, USER, USER)
    pairs = ((NOW, NOW), (NOW, OMIT), (OMIT, OMIT), (FIVE, FIVE), (FIVE, OMIT))

    def work() -> Outcome:
        return [said(calls.utimensat, path, *pair) for pair in pairs]

    return as_user(work), as_user(work, OTHER_USER)


@check
def a_later_write_takes_an_explicit_time_away(place: Path) -> Outcome:
    path = place / "f"
    with open(path, "wb", 0) as file:
        file.write(b"one")
        os.utime(path, ns=(OLD_NS, OLD_NS))
        kept = os.stat(path).st_mtime_ns == OLD_NS
        file.write(b"two")
        return kept, os.stat(path).st_mtime_ns > OLD_NS


@check
def an_explicit_time_survives_the_writing_back(place: Path) -> Outcome:
    path = place / "f"
    with open(path, "wb", 0) as file:
        file.write(b"x" * 100_000)
        os.utime(path, ns=(OLD_NS, OLD_NS))
        os.fsync(file.fileno())
    _cold(path)
    found = os.stat(path)
    return found.st_mtime_ns == OLD_NS, found.st_atime_ns == OLD_NS


@check
def a_failed_call_sets_no_time(place: Path) -> Outcome:
    shared(place)
    path = fill(place / "f")
    os.mkdir(place / "d")

    def try_everything() -> None:
        said(os.chmod, path / "x", 0)
        said(os.rmdir, path)
        said(os.unlink, place / "d")
        said(os.link, path, place / "d")
        said(os.rename, path, place / "d")
        said(os.truncate, path, -1)
        said(os.removexattr, path, "user.none")
        as_user(lambda: [said(os.chmod, path, 0o777), said(os.truncate, path, 0), said(os.utime, path)])

    return moved(try_everything, path, place / "d", place)


@check
def clearing_setuid_is_a_change(place: Path) -> Outcome:
    path = fill(place / "f", mode=0o4766)
    return moved(lambda: as_user(lambda: _pwrite(path, b"x", 0)), path)
