"""Modes and owners: umask, chmod, chown, and when setuid and setgid go."""

import mmap
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.posix import calls
from tests.posix.world import (
    OTHER_USER,
    TEAM,
    USER,
    Outcome,
    add,
    add_each,
    as_user,
    check,
    check_each,
    fill,
    in_order,
    opened,
    permissions,
    said,
    shared,
)

MAKERS: dict[str, Callable[[Path, int], object]] = {
    "open": lambda path, mode: os.close(os.open(path, os.O_WRONLY | os.O_CREAT, mode)),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod of a file": lambda path, mode: os.mknod(path, stat.S_IFREG | mode),
    "mknod of a socket": lambda path, mode: os.mknod(path, stat.S_IFSOCK | mode),
    "mknod of a character device": lambda path, mode: os.mknod(path, stat.S_IFCHR | mode, os.makedev(1, 3)),
    "mknod of a block device": lambda path, mode: os.mknod(path, stat.S_IFBLK | mode, os.makedev(7, 99)),
}


def _made(place: Path, make: Callable[[Path, int], object], umask: int) -> Outcome:
    os.umask(umask)
    answers = []
    for mode in (0o777, 0o666, 0o7777, 0o1000, 0):
        path = place / oct(mode)
        answers.append((said(make, path, mode), permissions(path)))
    return answers


for _words, _make in MAKERS.items():
    for _umask in (0, 0o22, 0o77, 0o777):
        add_each(f"modes: {_words} under umask {_umask:03o}", _made, _make, _umask)


@check_each([(oct(mode), mode) for mode in (0, 0o1, 0o644, 0o755, 0o1777, 0o2755, 0o4755, 0o7777)])
def chmod_of_everything(place: Path, mode: int) -> Outcome:
    answers = []
    for words, make in MAKERS.items():
        path = place / words
        make(path, 0o600)
        answers.append((said(os.chmod, path, mode), permissions(path)))
    return answers


@check
def chmod_of_links(place: Path) -> Outcome:
    fill(place / "f", mode=0o600)
    os.symlink("f", place / "l")
    os.symlink("n", place / "dangling")
    return (
        said(os.chmod, place / "l", 0o640),
        permissions(place / "f"),
        said(os.chmod, place / "dangling", 0o640),
        oct(os.lstat(place / "l").st_mode),
    )


@check
def chmod_by_descriptor(place: Path) -> Outcome:
    answers = []
    for mode in (0o600, 0o4711):
        descriptor = os.open(fill(place / "f"), os.O_RDONLY)
        answers.append((said(os.fchmod, descriptor, mode), permissions(descriptor), permissions(place / "f")))
        os.close(descriptor)
    return answers


@check
def chmod_is_for_the_owner(place: Path) -> Outcome:
    fill(place / "theirs", mode=0o666)
    os.chown(fill(place / "mine"), USER, USER)
    return as_user(lambda: (said(os.chmod, place / "theirs", 0o600), said(os.chmod, place / "mine", 0o600)))


@check_each([("of the group", (TEAM,)), ("not of the group", ())])
def setgid_by_chmod_is_for_members(place: Path, groups: tuple[int, ...]) -> Outcome:
    os.chown(fill(place / "f"), USER, TEAM)
    os.mkdir(place / "d")
    os.chown(place / "d", USER, TEAM)

    def work() -> Outcome:
        return [(said(os.chmod, place / name, 0o2755), permissions(place / name)) for name in ("f", "d")]

    return as_user(work, groups=groups)


def _sticky(place: Path) -> Outcome:
    os.chown(fill(place / "f"), USER, USER)
    return as_user(lambda: (said(os.chmod, place / "f", 0o1644), permissions(place / "f")))


add("modes: the sticky bit on a file of a user", _sticky)


@check
def new_files_belong_to_their_maker(place: Path) -> Outcome:
    shared(place)

    def work() -> Outcome:
        for words, make in MAKERS.items():
            said(make, place / words, 0o644)
        os.symlink("t", place / "link")
        found = ((path.name, os.lstat(path)) for path in place.iterdir())
        return sorted((name, stats.st_uid, stats.st_gid) for name, stats in found)

    return as_user(work, gid=TEAM)


@check_each([("member", (TEAM,)), ("stranger", ())])
def a_setgid_directory_hands_its_group_down(place: Path, groups: tuple[int, ...]) -> Outcome:
    os.chown(place, 0, TEAM)
    os.chmod(place, 0o2777)

    def work() -> Outcome:
        os.umask(0)
        answers = []
        for words, make in MAKERS.items():
            for mode in (0o2775, 0o2745, 0o775):
                path = place / f"{words} {mode}"
                answers.append(
                    (said(make, path, mode), path.exists() and (path.stat().st_gid, permissions(path)))
                )
        os.symlink("t", place / "link")
        return answers, os.lstat(place / "link").st_gid

    return as_user(work, groups=groups)


OWNERS = {
    "another user": (OTHER_USER, -1),
    "the same user": (USER, -1),
    "a group they are in": (-1, TEAM),
    "a group they are not in": (-1, OTHER_USER),
    "both": (OTHER_USER, OTHER_USER),
    "nothing": (-1, -1),
}
KINDS: dict[str, Callable[[Path], object]] = {
    "file": fill,
    "directory": os.mkdir,
    "pipe": os.mkfifo,
    "program": lambda path: fill(path, mode=0o6755),
    "group program": lambda path: fill(path, mode=0o2755),
    "locked file": lambda path: fill(path, mode=0o2644),
    "shared directory": lambda path: in_order(partial(os.mkdir, path), partial(os.chmod, path, 0o6775)),
}


def _chowned(place: Path, make: Callable[[Path], object], owner: tuple[int, int], who: str) -> Outcome:
    path = place / "x"
    make(path)
    mode = os.lstat(path).st_mode
    os.chown(path, OTHER_USER if who == "somebody else" else USER, USER)
    os.chmod(path, mode & 0o7777)

    def work() -> Outcome:
        answer = said(os.chown, path, *owner)
        found = os.stat(path)
        return answer, found.st_uid, found.st_gid, oct(found.st_mode)

    return work() if who == "root" else as_user(work, groups=(TEAM,))


for _words, _make_kind in KINDS.items():
    for _whom, _owner in OWNERS.items():
        for _who in ("root", "its owner", "somebody else"):
            add_each(f"modes: chown of a {_words} to {_whom} by {_who}", _chowned, _make_kind, _owner, _who)


@check
def chown_of_links(place: Path) -> Outcome:
    fill(place / "f")
    os.symlink("f", place / "l")
    os.chown(place / "l", USER, TEAM)
    os.lchown(place / "l", OTHER_USER, OTHER_USER)
    found = os.stat(place / "f"), os.lstat(place / "l")
    return [(stats.st_uid, stats.st_gid) for stats in found]


@check
def ids_of_thirty_two_bits(place: Path) -> Outcome:
    fill(place / "f")
    os.chown(place / "f", 0xFFFFFFFE, 0xFFFFFFFD)
    found = os.stat(place / "f")
    return found.st_uid, found.st_gid


def _write(path: Path) -> None:
    with path.open("r+b", 0) as file:
        file.write(b"x")


def _append(path: Path) -> None:
    with path.open("ab", 0) as file:
        file.write(b"x")


def _write_nothing(path: Path) -> None:
    with path.open("r+b", 0) as file:
        os.write(file.fileno(), b"")


def _truncate_open(path: Path) -> None:
    with path.open("r+b", 0) as file:
        file.truncate(3)


def _map(path: Path) -> None:
    with path.open("r+b", 0) as file, mmap.mmap(file.fileno(), 4) as view:
        view[0:1] = b"z"
        view.flush()


def _fallocate(path: Path) -> None:
    with path.open("r+b", 0) as file:
        calls.fallocate(file.fileno(), 0, 0, 100)


def _direct(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as buffer:
        os.writev(descriptor, [buffer])
    os.close(descriptor)


def _copy_range(path: Path) -> None:
    with Path("/bin/true").open("rb") as source, path.open("r+b", 0) as file:
        os.sendfile(file.fileno(), source.fileno(), 0, 5)


STEPS: dict[str, Callable[[Path], object]] = {
    "write": _write,
    "a write of nothing": _write_nothing,
    "an appending write": _append,
    "truncate": lambda path: os.truncate(path, 2),
    "truncate to the same size": lambda path: os.truncate(path, 7),
    "truncate to more": lambda path: os.truncate(path, 70),
    "ftruncate": _truncate_open,
    "opening with O_TRUNC": lambda path: opened(path, os.O_WRONLY | os.O_TRUNC),
    "opening for writing": lambda path: opened(path, os.O_RDWR),
    "a direct write": _direct,
    "sendfile": _copy_range,
    "setting an attribute": lambda path: os.setxattr(path, "user.x", b"x"),
    "new times": lambda path: os.utime(path),
    "chmod": lambda path: os.chmod(path, 0o6777),
    "reading": lambda path: path.read_bytes(),
    "a shared map": _map,
}


def _cleared(place: Path, act: Callable[[Path], object], mode: int, who: str) -> Outcome:
    path = fill(place / "f")
    os.chown(path, USER, TEAM)
    os.chmod(path, mode)

    def work() -> Outcome:
        with open(path, "rb") as file:
            answer = said(lambda: act(path) and None)
            return answer, permissions(path), permissions(file.fileno())

    if who == "root":
        return work()
    return as_user(
        work, USER if who == "its owner" else OTHER_USER, groups=(TEAM,) if who == "its owner" else ()
    )


for _words, _act in STEPS.items():
    for _mode in (0o6777, 0o4766, 0o2777, 0o2766, 0o7777):
        for _who in ("root", "its owner", "somebody else"):
            add_each(f"modes: {_words} by {_who} on {_mode:04o}", _cleared, _act, _mode, _who)


@check
def a_descriptor_opened_before_chmod_clears_when_it_writes(place: Path) -> Outcome:
    path = fill(place / "f")
    os.chown(path, USER, USER)

    def work() -> Outcome:
        with path.open("r+b", 0) as file:
            os.chmod(path, 0o6777)
            file.write(b"x")
            return permissions(path)

    return as_user(work)


ACCESS: dict[str, Callable[[Path], Outcome]] = {
    "read": lambda path: opened(path, os.O_RDONLY),
    "write": lambda path: opened(path, os.O_WRONLY),
    "access read": lambda path: os.access(path, os.R_OK),
    "access write": lambda path: os.access(path, os.W_OK),
    "access execute": lambda path: os.access(path, os.X_OK),
    "run": lambda path: said(lambda: os.waitpid(os.posix_spawn(path, ["true"], {}), 0)[1]),
}


@check_each(
    [(oct(mode), mode) for mode in (0, 0o700, 0o070, 0o007, 0o400, 0o040, 0o004, 0o111, 0o222, 0o444, 0o644)]
)
def who_may_do_what_with_a_file(place: Path, mode: int) -> Outcome:
    path = fill(place / "true", Path("/bin/true").read_bytes())
    os.chown(path, USER, TEAM)
    path.chmod(mode)

    def work() -> Outcome:
        return {words: act(path) for words, act in ACCESS.items()}

    return (
        work(),
        as_user(work, USER),
        as_user(work, OTHER_USER, gid=TEAM),
        as_user(work, OTHER_USER, groups=(1, 2, TEAM)),
        as_user(work, OTHER_USER),
    )


@check_each([(oct(mode), mode) for mode in (0o700, 0o770, 0o750, 0o710, 0o720, 0o740, 0o1777, 0o1770)])
def who_may_do_what_with_a_directory(place: Path, mode: int) -> Outcome:
    place.chmod(0o755)
    path = place / "d"

    def work() -> Outcome:
        return (
            said(lambda: sorted(os.listdir(path))),
            said(lambda: os.lstat(path / "f").st_size),
            opened(path / "f", os.O_RDONLY),
            said(os.chdir, path),
            said(os.rename, path / "f", path / "g"),
            said(os.rename, path / "g", path / "f"),
            opened(path / "new", os.O_CREAT | os.O_WRONLY),
            said(os.unlink, path / "f"),
            said(os.unlink, path / "new"),
        )

    answers = []
    for uid, groups in ((USER, ()), (OTHER_USER, (TEAM,)), (OTHER_USER, ())):
        os.mkdir(path)
        fill(path / "f", mode=0o666)
        os.chown(path, USER, TEAM)
        path.chmod(mode)
        answers.append(as_user(work, uid, groups=groups))
        for name in os.listdir(path):
            os.unlink(path / name)
        os.rmdir(path)
    return answers


@check
def a_setuid_program_runs_as_its_owner(place: Path) -> Outcome:
    path = fill(place / "id", Path("/usr/bin/id").read_bytes())
    os.chown(path, OTHER_USER, OTHER_USER)
    path.chmod(0o4755)

    def work() -> Outcome:
        reader, writer = os.pipe()
        os.waitpid(os.posix_spawn(path, ["id", "-u"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)]), 0)
        return os.read(reader, 100)

    return as_user(work)
