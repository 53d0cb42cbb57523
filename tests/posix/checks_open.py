"""open(2): every kind of thing a name can lead to, with every combination of flags that means something."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix import calls
from tests.posix.world import (
    USER,
    Outcome,
    add_each,
    as_user,
    check,
    check_each,
    fill,
    kind,
    opened,
    permissions,
    said,
    shared,
    tree,
)

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
FLAGS = {
    "read": R,
    "write": W,
    "read and write": RW,
    "append": W | os.O_APPEND,
    "create": W | os.O_CREAT,
    "create for reading": R | os.O_CREAT,
    "create exclusively": W | os.O_CREAT | os.O_EXCL,
    "create, not following": W | os.O_CREAT | os.O_NOFOLLOW,
    "create and truncate": W | os.O_CREAT | os.O_TRUNC,
    "truncate": W | os.O_TRUNC,
    "truncate while reading": R | os.O_TRUNC,
    "not following": R | os.O_NOFOLLOW,
    "directory": R | os.O_DIRECTORY,
    "directory for writing": W | os.O_DIRECTORY,
    "directory, not following": R | os.O_DIRECTORY | os.O_NOFOLLOW,
    "path": os.O_PATH,
    "path, not following": os.O_PATH | os.O_NOFOLLOW,
    "direct": R | os.O_DIRECT,
    "synchronous": W | os.O_SYNC,
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _link_to(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        make(path.with_name("target"))
        os.symlink("target", path)

    return both


TARGETS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a file": fill,
    "a directory": os.mkdir,
    "a link to a file": _link_to(fill),
    "a link to a directory": _link_to(os.mkdir),
    "a link to nothing": lambda path: os.symlink("target", path),
    "a link to itself": lambda path: os.symlink("x", path),
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
}


def _open(place: Path, make: Callable[[Path], object], flags: int) -> Outcome:
    make(place / "x")
    answer = opened(place / "x", flags)
    sizes = sorted((path.name, path.stat().st_size) for path in place.iterdir() if path.is_file())
    return answer, tree(place), sizes


for _words, _make in TARGETS.items():
    for _how, _flags in FLAGS.items():
        add_each(f"open: {_how}, of {_words}", _open, _make, _flags)


@check
def a_component_that_is_a_file(place: Path) -> Outcome:
    fill(place / "f")
    return [opened(place / "f" / "x", flags) for flags in (R, W | os.O_CREAT, os.O_PATH)]


@check
def a_component_that_is_not_there(place: Path) -> Outcome:
    return [opened(place / "d" / "x", flags) for flags in (R, W | os.O_CREAT, os.O_PATH)]


@check
def a_slash_behind_the_name(place: Path) -> Outcome:
    fill(place / "f")
    os.mkdir(place / "d")
    names = ("f/", "d/", "n/", "f/.", "d/.", "d/..", "./f", "d/../f")
    return [(opened(f"{place}/{name}", R), opened(f"{place}/{name}", W | os.O_CREAT)) for name in names]


@check
def relative_to_a_directory_that_was_removed(place: Path) -> Outcome:
    os.mkdir(place / "d")
    descriptor = os.open(place / "d", R)
    os.rmdir(place / "d")
    try:
        return (
            opened("x", W | os.O_CREAT, dir_fd=descriptor),
            opened(".", R, dir_fd=descriptor),
            said(os.mkdir, "x", dir_fd=descriptor),
            said(os.symlink, "t", "x", dir_fd=descriptor),
            said(os.listdir, descriptor),
            os.fstat(descriptor).st_nlink,
        )
    finally:
        os.close(descriptor)


@check
def relative_to_a_file(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f"), R)
    try:
        return opened("x", W | os.O_CREAT, dir_fd=descriptor)
    finally:
        os.close(descriptor)


@check_each(
    [(oct(mode), mode) for mode in (0, 0o400, 0o200, 0o600, 0o644, 0o666, 0o777, 0o4755, 0o2755, 0o1777)]
)
def a_new_file_may_be_used_whatever_its_mode(place: Path, mode: int) -> Outcome:
    def work() -> Outcome:
        descriptor = os.open(place / "f", RW | os.O_CREAT | os.O_EXCL, mode)
        os.write(descriptor, b"x")
        answer = os.pread(descriptor, 1, 0), permissions(descriptor)
        os.close(descriptor)
        return answer, opened(place / "f", R), opened(place / "f", W)

    shared(place)
    return as_user(work)


@check
def append_writes_at_the_end_wherever_the_position_is(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f", b"12345"), RW | os.O_APPEND)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b"67")
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.pwrite(descriptor, b"89", 0)  # Linux appends here too
    os.close(descriptor)
    return position, (place / "f").read_bytes()


@check
def a_path_descriptor_reads_nothing_but_may_be_asked(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f"), os.O_PATH)
    try:
        return (
            said(os.read, descriptor, 1),
            said(os.write, descriptor, b"x"),
            os.fstat(descriptor).st_size,
            said(os.fchmod, descriptor, 0o600),
            Path(f"/proc/self/fd/{descriptor}").read_bytes(),
        )
    finally:
        os.close(descriptor)


@check
def a_file_without_a_name(place: Path) -> Outcome:
    return opened(place, RW | os.O_TMPFILE), opened(place, R | os.O_TMPFILE), os.listdir(place)


@check
def a_file_without_a_name_gets_one(place: Path) -> Outcome:
    try:
        descriptor = os.open(place, RW | os.O_TMPFILE, 0o640)
    except OSError as error:
        return error.errno
    os.write(descriptor, b"x")
    calls.linkat(descriptor, place / "f", calls.AT_EMPTY_PATH)
    os.close(descriptor)
    return (place / "f").read_bytes(), permissions(place / "f")


@check
def a_running_program_is_not_written(place: Path) -> Outcome:
    program = fill(place / "sleep", Path("/bin/sleep").read_bytes(), 0o755)
    pid = os.posix_spawn(program, ["sleep", "60"], {})
    try:
        return opened(program, W), said(os.truncate, program, 0), said(os.unlink, program)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@check
def a_program_open_for_writing_is_not_run(place: Path) -> Outcome:
    program = fill(place / "true", Path("/bin/true").read_bytes(), 0o755)
    descriptor = os.open(program, W)
    try:
        return said(os.posix_spawn, program, ["true"], {})
    finally:
        os.close(descriptor)


@check
def resolution_may_be_confined(place: Path) -> Outcome:
    os.mkdir(place / "d")
    fill(place / "f")
    os.symlink("../f", place / "d" / "l")
    no_symlinks, beneath, in_root = 4, 8, 16
    answers = []
    for resolve in (0, no_symlinks, beneath, in_root):
        answer = said(calls.openat2, place / "d" / "l", R, resolve)
        answers.append("opened" if isinstance(answer, int) else answer)
        if isinstance(answer, int):
            os.close(answer)
    return answers


@check
def sticky_directories_protect_what_others_would_create_over(place: Path) -> Outcome:
    """fs.protected_regular and fs.protected_fifos, whatever they are set to here."""
    shared(place, 0o1777)
    os.chown(fill(place / "f", mode=0o666), USER, USER)
    os.mkfifo(place / "p")
    os.chown(place / "p", USER, USER)
    os.chmod(place / "p", 0o666)
    return opened(place / "f", W | os.O_CREAT), opened(place / "p", RW | os.O_CREAT)


@check
def noatime_is_for_the_owner(place: Path) -> Outcome:
    fill(place / "f")
    shared(place)
    return opened(place / "f", R | os.O_NOATIME), as_user(lambda: opened(place / "f", R | os.O_NOATIME))


@check
def many_descriptors_of_one_file_share_its_content(place: Path) -> Outcome:
    fill(place / "f", b"")
    descriptors = [os.open(place / "f", RW) for _ in range(20)]
    for number, descriptor in enumerate(descriptors):
        os.pwrite(descriptor, bytes([number]), number)
    answers = {os.pread(descriptor, 100, 0) for descriptor in descriptors}
    for descriptor in descriptors:
        os.close(descriptor)
    return answers


@check
def flags_are_kept_and_may_be_changed(place: Path) -> Outcome:
    import fcntl

    descriptor = os.open(place / "f", RW | os.O_CREAT | os.O_APPEND | os.O_DSYNC)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
    os.write(descriptor, b"ab")
    os.pwrite(descriptor, b"c", 0)
    changed = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    os.close(descriptor)
    return flags, changed, (place / "f").read_bytes()


@check
def kinds_as_stat_names_them(place: Path) -> Outcome:
    answers = {}
    for number, (words, make) in enumerate(TARGETS.items()):
        os.mkdir(place / str(number))
        make(place / str(number) / "x")
        answers[words] = kind(place / str(number) / "x")
    return answers
