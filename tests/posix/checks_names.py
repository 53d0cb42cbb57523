"""Names: link, mkdir, mknod, symlink, readlink, unlink, rmdir, and how paths are resolved."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix import calls
from tests.posix.checks_open import TARGETS
from tests.posix.world import (
    OTHER_USER,
    USER,
    Outcome,
    add_each,
    as_user,
    check,
    check_each,
    fill,
    kind,
    opened,
    said,
    shared,
    tree,
)

ACTS: dict[str, Callable[[Path], object]] = {
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o644),
    "symlink": lambda path: os.symlink("somewhere", path),
    "readlink": os.readlink,
    "link from": lambda path: os.link(path, path.with_name("new"), follow_symlinks=False),
    "link from, following": lambda path: os.link(path, path.with_name("new"), follow_symlinks=True),
    "link to": lambda path: os.link(fill(path.with_name("old")), path),
    "stat": lambda path: os.stat(path).st_nlink,
    "lstat": lambda path: os.lstat(path).st_nlink,
    "chdir": lambda path: os.chdir(path),
    "listdir": lambda path: sorted(os.listdir(path)),
    "truncate": lambda path: os.truncate(path, 3),
    "access": lambda path: os.access(path, os.F_OK),
}


def _act(place: Path, make: Callable[[Path], object], act: Callable[[Path], object]) -> Outcome:
    make(place / "x")
    try:
        return said(act, place / "x"), tree(place)
    finally:
        os.chdir("/")


for _words, _make in TARGETS.items():
    for _what, _what_act in ACTS.items():
        add_each(f"names: {_what}, of {_words}", _act, _make, _what_act)

NAMES = {
    "dot": "d/.",
    "dot dot": "d/..",
    "dot dot of a child": "d/e/..",
    "a slash behind a directory": "d/",
    "a slash behind a file": "f/",
    "a slash behind nothing": "n/",
    "a slash behind a link to a directory": "ld/",
    "a slash behind a link to a file": "lf/",
    "below a file": "f/x",
    "below nothing": "n/x",
    "below a link to itself": "loop/x",
    "the empty name": "",
    "a name of 255 bytes": "n" * 255,
    "a name of 256 bytes": "n" * 256,
    "a name of 255 bytes in a name of 256 bytes": "n" * 256 + "/" + "n" * 255,
    "a full directory": "full",
    "bytes that are not UTF-8": "\udcff\udcfe",
    "a newline": "a\nb",
}


@check_each(list(NAMES.items()))
def every_call_on_an_odd_path(place: Path, name: str) -> Outcome:
    answers = {}
    for number, (words, act) in enumerate(ACTS.items()):
        if words.startswith("link"):
            continue
        base = place / str(number)
        os.makedirs(base / "d" / "e")
        os.mkdir(base / "full")
        fill(base / "full" / "x")
        fill(base / "f")
        os.symlink("d", base / "ld")
        os.symlink("f", base / "lf")
        os.symlink("loop", base / "loop")
        path = f"{base}/{name}" if name else ""
        try:
            answers[words] = said(act, path), tree(base)
        finally:
            os.chdir("/")
    return answers


@check
def mkdir_gives_its_parent_a_link(place: Path) -> Outcome:
    counts = [os.stat(place).st_nlink]
    os.mkdir(place / "d")
    counts.append(os.stat(place).st_nlink)
    fill(place / "f")
    counts.append(os.stat(place).st_nlink)
    os.rename(place / "d", place / "e")
    counts.append(os.stat(place).st_nlink)
    os.rmdir(place / "e")
    counts.append(os.stat(place).st_nlink)
    return counts


@check
def a_file_has_many_names(place: Path) -> Outcome:
    fill(place / "f")
    for number in range(100):
        os.link(place / "f", place / str(number))
    many = os.stat(place / "7").st_nlink
    for number in range(100):
        os.unlink(place / str(number))
    return many, os.stat(place / "f").st_nlink, (place / "f").read_bytes()


@check
def an_open_file_may_lose_its_last_name(place: Path) -> Outcome:
    with open(fill(place / "f"), "r+b", 0) as file:
        os.unlink(place / "f")
        fill(place / "f", b"another")
        file.seek(0, os.SEEK_END)
        file.write(b"more")
        os.fchmod(file.fileno(), 0o600)
        os.ftruncate(file.fileno(), 9)
        again = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
        found = os.fstat(file.fileno())
        answer = os.pread(again, 100, 0), found.st_nlink, oct(found.st_mode), (place / "f").read_bytes()
        os.close(again)
        return answer, said(calls.linkat, file.fileno(), place / "back", calls.AT_EMPTY_PATH)


@check
def an_open_directory_may_be_removed(place: Path) -> Outcome:
    os.mkdir(place / "d")
    descriptor = os.open(place / "d", os.O_RDONLY)
    os.rmdir(place / "d")
    found = os.fstat(descriptor)
    answer = found.st_nlink, said(os.listdir, descriptor), said(os.fchmod, descriptor, 0o700)
    os.close(descriptor)
    return answer


@check
def the_working_directory_may_be_removed(place: Path) -> Outcome:
    os.mkdir(place / "d")
    os.chdir(place / "d")
    try:
        os.rmdir(place / "d")
        return said(os.getcwd), said(os.mkdir, "x"), said(os.listdir, "."), opened("..", os.O_RDONLY)
    finally:
        os.chdir("/")


@check
def a_link_by_descriptor(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f"), os.O_RDONLY)
    try:
        return said(calls.linkat, descriptor, place / "g", calls.AT_EMPTY_PATH), os.fstat(descriptor).st_nlink
    finally:
        os.close(descriptor)


@check
def special_files_may_have_many_names(place: Path) -> Outcome:
    os.mkfifo(place / "p")
    os.mknod(place / "c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.symlink("t", place / "l")
    for name in ("p", "c", "l"):
        os.link(place / name, place / (name + "2"), follow_symlinks=False)
    os.unlink(place / "l")
    return tree(place), os.readlink(place / "l2")


@check
def devices_keep_their_numbers(place: Path) -> Outcome:
    answers = []
    for type_ in (stat.S_IFCHR, stat.S_IFBLK):
        for major, minor in ((0, 0), (1, 3), (255, 255), (259, 1_000_000), (4095, (1 << 20) - 1)):
            path = place / f"{type_} {major} {minor}"
            said(os.mknod, path, type_ | 0o600, os.makedev(major, minor))
            number = os.stat(path).st_rdev
            answers.append((kind(path), os.major(number), os.minor(number)))
    return answers


@check
def devices_work(place: Path) -> Outcome:
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(place / "full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
    with open(place / "zero", "rb") as zero, open(place / "full", "wb", 0) as full:
        return zero.read(4), said(full.write, b"x")


@check
def devices_are_for_root(place: Path) -> Outcome:
    shared(place)
    return as_user(
        lambda: (
            said(os.mknod, place / "c", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
            said(os.mknod, place / "b", stat.S_IFBLK | 0o600, os.makedev(7, 0)),
            said(os.mknod, place / "f", stat.S_IFREG | 0o600),
            said(os.mknod, place / "p", stat.S_IFIFO | 0o600),
            said(os.mknod, place / "s", stat.S_IFSOCK | 0o600),
            said(os.mknod, place / "d", stat.S_IFDIR | 0o600),
        )
    )


@check
def a_pipe_carries_bytes(place: Path) -> Outcome:
    os.mkfifo(place / "p")
    reader = os.open(place / "p", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(place / "p", os.O_WRONLY)
    os.write(writer, b"through")
    answer = os.read(reader, 100), os.stat(place / "p").st_size
    os.close(reader)
    os.close(writer)
    return answer


@check_each(
    [(str(length), length) for length in (1, 59, 60, 61, 255, 256, 1000, 3999, 4000, 4001, 4094, 4095, 4096)]
)
def a_link_says_what_it_was_told(place: Path, length: int) -> Outcome:
    answer = said(os.symlink, "t" * length, place / "l")
    return answer, kind(place / "l") == "link" and (os.readlink(place / "l"), os.lstat(place / "l").st_size)


@check
def links_are_resolved_as_they_say(place: Path) -> Outcome:
    os.makedirs(place / "a" / "b")
    fill(place / "a" / "f")
    os.symlink("../f", place / "a" / "b" / "up")
    os.symlink(str(place / "a" / "f"), place / "absolute")
    os.symlink("a/b/up", place / "through")
    os.symlink("a/b/", place / "slash")
    os.symlink("./a/./b/../f", place / "dots")
    names = ("a/b/up", "absolute", "through", "slash/up", "dots")
    return [(place / name).read_bytes() for name in names], said(os.symlink, "", place / "empty")


@check_each([(str(count), count) for count in (1, 20, 39, 40, 41)])
def a_chain_of_links(place: Path, count: int) -> Outcome:
    fill(place / "0")
    for number in range(count):
        os.symlink(str(number), place / str(number + 1))
    return opened(place / str(count), os.O_RDONLY), said(os.access, place / str(count), os.R_OK)


@check
def a_path_of_many_components(place: Path) -> Outcome:
    os.chdir(place)
    try:
        for _ in range(60):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        fill(Path("f"))
        return opened("f", os.O_RDONLY), said(os.stat, str(place / Path(*["d" * 100] * 60)))
    finally:
        os.chdir("/")


@check
def names_of_any_bytes(place: Path) -> Outcome:
    names = [bytes([value]) for value in range(1, 256) if value not in (0x2F, 0x2E)]
    for name in names:
        os.close(os.open(bytes(place) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    return sorted(os.listdir(bytes(place))) == sorted(names), len(names)


@check
def names_that_differ_in_case_or_form(place: Path) -> Outcome:
    names = ["a", "A", "\u00e4", "a\u0308", "\u00c4", "ss", "\u00df", " a", "a ", "..a", "..."]
    for name in names:
        fill(place / name, name.encode())
    return [(place / name).read_text() for name in names], len(os.listdir(place))


@check
def removing_from_a_sticky_directory(place: Path) -> Outcome:
    shared(place, 0o1777)
    for name, owner in (("mine", USER), ("theirs", OTHER_USER), ("roots", 0)):
        os.chown(fill(place / name, mode=0o666), owner, owner)
        os.mkdir(place / f"{name} d")
        os.chown(place / f"{name} d", owner, owner)

    def work() -> Outcome:
        return [
            (said(os.unlink, place / name), said(os.rmdir, place / f"{name} d"))
            for name in ("mine", "theirs", "roots")
        ]

    return as_user(work)


@check
def the_owner_of_a_sticky_directory_removes_what_is_in_it(place: Path) -> Outcome:
    os.chown(place, USER, USER)
    place.chmod(0o1777)
    os.chown(fill(place / "f"), OTHER_USER, OTHER_USER)
    return as_user(lambda: os.unlink(place / "f"))


@check
def links_to_files_of_others(place: Path) -> Outcome:
    """fs.protected_hardlinks, whatever it is set to here."""
    shared(place)
    fill(place / "readable")
    fill(place / "writable", mode=0o666)
    fill(place / "program", mode=0o4777)
    names = ("readable", "writable", "program")
    return as_user(lambda: [said(os.link, place / name, place / f"{name} 2") for name in names])


@check
def a_removed_name_is_gone_and_may_be_used_again(place: Path) -> Outcome:
    answers = []
    for make in TARGETS.values():
        make(place / "x")
        answers.append((kind(place / "x"), said(os.unlink, place / "x")))
        said(os.rmdir, place / "x")
        answers.append((kind(place / "x"), "then"))
        said(os.unlink, place / "target")
        said(os.rmdir, place / "target")
    return answers, os.listdir(place)


@check
def directories_on_the_way_must_be_searchable(place: Path) -> Outcome:
    os.makedirs(place / "d" / "e")
    fill(place / "d" / "e" / "f", mode=0o666)
    (place / "d").chmod(0o644)
    acts = (os.stat, os.listdir, os.unlink, os.rmdir, os.mkdir, os.readlink)
    return as_user(lambda: [said(act, place / "d" / "e" / "f") for act in acts])
