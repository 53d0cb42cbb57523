"""What a check is, and the few words checks are written in.

A check is a function that gets an empty directory, makes system calls in it and returns what a program saw:
values, names of errors, which times moved. The same check runs on trisite and on the oracle; what it returns
must not hold anything that differs between two runs on one file system (inode numbers, device numbers, the
time of day).
"""

import errno
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from stat import S_IFMT
from typing import TypeVar

Outcome = object
Check = Callable[[Path], Outcome]
Case = TypeVar("Case")

USER, OTHER_USER, TEAM = 4201, 4202, 4300
OLD_NS = 1_000_000_000 * 10**9  # September 2001: any stamp the file system sets itself is later
LATER_NS = 4_102_444_800 * 10**9  # the year 2100: no stamp of a run is later
_CLOCK_REALTIME_COARSE = 5
_KINDS = {0o10: "fifo", 0o20: "chr", 0o40: "dir", 0o60: "blk", 0o100: "file", 0o120: "link", 0o140: "sock"}

CHECKS: dict[str, Check] = {}


def add(name: str, check: Check) -> None:
    """Take a check into the list; its name is `family: what it is about`."""
    assert name not in CHECKS, f"two checks are called {name!r}"
    CHECKS[name] = check


def add_each(name: str, function: Callable[..., Outcome], *values: object, **keywords: object) -> None:
    """Take a check that needs more than a directory into the list."""
    add(name, lambda place: function(place, *values, **keywords))


def check(function: Check) -> Check:
    """Decorator: a check named after its module and its function."""
    add(_named(function), function)
    return function


def check_each(cases: Iterable[tuple[str, Case]]) -> Callable[[Callable[[Path, Case], Outcome]], None]:
    """Decorator: one check for each (words, value)."""

    def take(function: Callable[[Path, Case], Outcome]) -> None:
        for words, value in cases:
            add_each(f"{_named(function)} [{words}]", function, value)

    return take


def _named(function: Callable[..., Outcome]) -> str:
    family = function.__module__.rpartition("checks_")[2]
    return f"{family}: {function.__name__.replace('_', ' ')}"


def said(call: Callable[..., Outcome], *args: object, **keywords: object) -> Outcome:
    """What a call answers: the name of its error, or its value (`ok` where it has none)."""
    try:
        value = call(*args, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok" if value is None else value


def kind(path: Path | int) -> str:
    """The type of what a path (not followed) or a descriptor leads to, or the error."""
    try:
        found = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return _KINDS[S_IFMT(found.st_mode) >> 9]


def permissions(path: Path | int) -> str:
    """The twelve mode bits, in octal."""
    return oct(os.stat(path).st_mode & 0o7777)


def tree(place: Path) -> list[tuple[str, str, int]]:
    """Every name below a directory with its type and link count."""
    return sorted(
        (str(path.relative_to(place)), kind(path), os.lstat(path).st_nlink) for path in place.rglob("*")
    )


def opened(path: Path | str, flags: int, mode: int = 0o666, *, dir_fd: int | None = None) -> Outcome:
    """Open and close: the type of what was opened, or the error."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK, mode, dir_fd=dir_fd)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    try:
        return kind(descriptor)
    finally:
        os.close(descriptor)


def fill(path: Path, content: bytes = b"content", mode: int = 0o644) -> Path:
    """Make a file."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


def in_order(*acts: Callable[[], object]) -> None:
    """Do one thing after the other."""
    for act in acts:
        act()


def let_time_pass(after_ns: int) -> None:
    """Wait until a new stamp is later than this one: a few milliseconds, the tick of the kernel's clock."""
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= after_ns:
        time.sleep(0.001)


def moved(
    act: Callable[[], object], *paths: Path, atime_ns: int = OLD_NS, mtime_ns: int = OLD_NS
) -> list[str]:
    """Which times of each path an action sets to now: some of `amc`; `gone` if the path is not there after.

    Access and change time are put back to 2001 first, so that no check has to wait for a second to pass.
    """
    before = []
    for path in paths:
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
        before.append(os.lstat(path))
    let_time_pass(max(found.st_ctime_ns for found in before))
    start_ns = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
    act()
    return [_difference(path, old, start_ns) for path, old in zip(paths, before, strict=True)]


def _difference(path: Path, old: os.stat_result, start_ns: int) -> str:
    try:
        new = os.lstat(path)
    except FileNotFoundError:
        return "gone"
    words = ""
    for letter, was, is_now in (
        ("a", old.st_atime_ns, new.st_atime_ns),
        ("m", old.st_mtime_ns, new.st_mtime_ns),
        ("c", old.st_ctime_ns, new.st_ctime_ns),
    ):
        if is_now != was:
            words += letter if is_now >= start_ns else f"{letter}(not now)"
    return words


def as_user(
    work: Callable[[], Outcome], uid: int = USER, gid: int | None = None, groups: Sequence[int] = ()
) -> Outcome:
    """What `work` returns in a child process of another user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups(groups)
            os.setresgid(*[uid if gid is None else gid] * 3)
            os.setresuid(uid, uid, uid)
            answer = said(work)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(answer, pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return pickle.loads(answer)


def shared(place: Path, mode: int = 0o777) -> Path:
    """The directory itself, open to everybody."""
    place.chmod(mode)
    return place
