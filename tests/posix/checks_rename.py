"""rename(2) and renameat2(2): everything over everything, with every flag."""

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from tests.posix import calls
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
    said,
    shared,
    tree,
)


def _full(path: Path) -> None:
    path.mkdir()
    fill(path / "inside")


def _link(path: Path) -> None:
    os.symlink("nowhere", path)


SOURCES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a file": lambda path: fill(path, path.name.encode()),
    "an empty directory": os.mkdir,
    "a full directory": _full,
    "a link": _link,
    "a pipe": os.mkfifo,
}
FLAGS = {"plainly": 0, "not replacing": calls.NOREPLACE, "exchanging": calls.EXCHANGE}


def _renamed(
    place: Path, source: Callable[[Path], object], target: Callable[[Path], object], flags: int, far: bool
) -> Outcome:
    os.mkdir(place / "here")
    os.mkdir(place / "there")
    old, new = place / "here" / "old", place / ("there" if far else "here") / "new"
    source(old)
    target(new)
    before = {path.name: os.lstat(path).st_ino for path in (old, new) if os.path.lexists(path)}
    answer = said(calls.renameat2, old, new, flags)
    after = {path.name: os.lstat(path).st_ino for path in (old, new) if os.path.lexists(path)}
    who = {name: [was for was, ino in before.items() if ino == after[name]] for name in after}
    return answer, who, tree(place)


for _words, _source in SOURCES.items():
    for _over, _target in SOURCES.items():
        for _how, _flags in FLAGS.items():
            for _far in (False, True):
                _where = "in another directory" if _far else "in the same directory"
                _name = f"rename: {_words} {_how} to {_over} {_where}"
                add_each(_name, _renamed, _source, _target, _flags, _far)


@check_each(list(FLAGS.items()))
def two_names_of_one_file(place: Path, flags: int) -> Outcome:
    os.link(fill(place / "a"), place / "b")
    return said(calls.renameat2, place / "a", place / "b", flags), tree(place)


@check_each(list(FLAGS.items()))
def a_name_to_itself(place: Path, flags: int) -> Outcome:
    fill(place / "a")
    _full(place / "d")
    return [said(calls.renameat2, place / name, place / name, flags) for name in ("a", "d")], tree(place)


@check_each(list(FLAGS.items()))
def a_directory_into_itself(place: Path, flags: int) -> Outcome:
    os.makedirs(place / "d" / "e" / "f")
    pairs = (("d", "d/e"), ("d", "d/x"), ("d", "d/e/f"), ("d", "d/e/f/x"), ("d/e", "d"), ("d/e/f", "d"))
    return [(said(calls.renameat2, place / old, place / new, flags), tree(place)) for old, new in pairs]


ODD = ("d/.", "d/..", ".", "..", "f/", "d/", "n/", "l/", "d/e/..", "f/x", "n/x", "x" * 256, "x" * 255)


@check_each([(name[:10], name) for name in ODD[:-1]])
def from_an_odd_path(place: Path, name: str) -> Outcome:
    return _odd(place, lambda base: (f"{base}/{name}", f"{base}/new"))


@check_each([(name[:10], name) for name in ODD[:-1]])
def a_file_to_an_odd_path(place: Path, name: str) -> Outcome:
    return _odd(place, lambda base: (f"{base}/old", f"{base}/{name}"))


@check_each([(name[:10], name) for name in ODD[:-1]])
def a_directory_to_an_odd_path(place: Path, name: str) -> Outcome:
    return _odd(place, lambda base: (f"{base}/dold", f"{base}/{name}"))


def _odd(place: Path, paths: Callable[[Path], tuple[str, str]]) -> Outcome:
    answers = []
    for words, flags in FLAGS.items():
        base = place / words
        os.makedirs(base / "d" / "e")
        fill(base / "f")
        fill(base / "old")
        os.mkdir(base / "dold")
        os.symlink("d", base / "l")
        old, new = paths(base)
        answers.append((said(calls.renameat2, old, new, flags), tree(base)))
    return answers


@check_each([(str(flags), flags) for flags in (3, 8, 16, 5, 6, 1 << 31)])
def flags_that_mean_nothing(place: Path, flags: int) -> Outcome:
    fill(place / "a")
    return said(calls.renameat2, place / "a", place / "b", flags), tree(place)


@check
def leaving_a_whiteout(place: Path) -> Outcome:
    fill(place / "a")
    return said(calls.renameat2, place / "a", place / "b", calls.WHITEOUT), tree(place)


@check
def the_longest_name(place: Path) -> Outcome:
    fill(place / "a")
    return said(os.rename, place / "a", place / ("n" * 255)), said(
        os.rename, place / ("n" * 255), place / "b"
    )


@check
def to_another_file_system(place: Path) -> Outcome:
    fill(place / "a")
    return said(os.rename, place / "a", "/dev/shm/trisite-posix"), said(
        os.link, place / "a", "/dev/shm/trisite-x"
    )


@check
def over_an_open_file(place: Path) -> Outcome:
    with open(fill(place / "b", b"old"), "r+b", 0) as file:
        os.rename(fill(place / "a", b"new"), place / "b")
        file.seek(3)
        file.write(b"er")
        answer = os.pread(file.fileno(), 100, 0), os.fstat(file.fileno()).st_nlink
    return answer, (place / "b").read_bytes()


@check
def of_an_open_file(place: Path) -> Outcome:
    with open(fill(place / "a"), "ab", 0) as file:
        os.rename(place / "a", place / "b")
        file.write(b"more")
    return (place / "b").read_bytes(), tree(place)


@check
def over_an_open_directory(place: Path) -> Outcome:
    os.mkdir(place / "b")
    descriptor = os.open(place / "b", os.O_RDONLY)
    _full(place / "a")
    os.rename(place / "a", place / "b")
    answer = said(os.listdir, descriptor), os.fstat(descriptor).st_nlink, os.listdir(place / "b")
    os.close(descriptor)
    return answer


@check
def over_one_of_two_names(place: Path) -> Outcome:
    os.link(fill(place / "b", b"b"), place / "c")
    os.rename(fill(place / "a", b"a"), place / "b")
    return tree(place), (place / "c").read_bytes()


@check
def dot_dot_of_a_moved_directory(place: Path) -> Outcome:
    os.makedirs(place / "a" / "d")
    os.mkdir(place / "b")
    descriptor = os.open(place / "a" / "d", os.O_RDONLY)
    os.rename(place / "a" / "d", place / "b" / "d")
    parent = os.stat("..", dir_fd=descriptor).st_ino
    os.close(descriptor)
    same = os.stat(place / "b").st_ino
    listed = [entry.inode() for entry in os.scandir(place / "b")]
    return parent == same, len(listed), tree(place)


@check
def exchanged_directories_know_their_parents(place: Path) -> Outcome:
    for name in ("a/x/in x", "b/y/in y"):
        os.makedirs(place / name)
    calls.renameat2(place / "a" / "x", place / "b" / "y", calls.EXCHANGE)
    parents = [(place / name / "..").resolve() == place / name[0] for name in ("a/x", "b/y")]
    return parents, tree(place)


@check
def a_sticky_directory(place: Path) -> Outcome:
    os.mkdir(place / "from")
    os.mkdir(place / "to")
    for name in ("from", "to"):
        shared(place / name, 0o1777)
    for owner, words in ((USER, "mine"), (OTHER_USER, "theirs")):
        for number in range(3):
            for directory in ("from", "to"):
                os.chown(fill(place / directory / f"{words}{number}", mode=0o666), owner, owner)

    def work() -> Outcome:
        return (
            said(os.rename, place / "from" / "mine0", place / "to" / "new"),
            said(os.rename, place / "from" / "theirs0", place / "to" / "new2"),
            said(os.rename, place / "from" / "mine1", place / "to" / "theirs1"),
            said(os.rename, place / "from" / "mine1", place / "to" / "mine1"),
            said(calls.renameat2, place / "from" / "mine2", place / "to" / "theirs2", calls.EXCHANGE),
            said(calls.renameat2, place / "from" / "mine2", place / "to" / "mine2", calls.EXCHANGE),
        )

    return as_user(work)


@check
def a_directory_that_may_not_be_written_keeps_its_parent(place: Path) -> Outcome:
    shared(place)
    os.mkdir(place / "new")
    shared(place / "new")
    os.mkdir(place / "d", 0o755)
    return as_user(
        lambda: (said(os.rename, place / "d", place / "new" / "d"), said(os.rename, place / "d", place / "e"))
    )


@check
def directories_that_may_not_be_written(place: Path) -> Outcome:
    for name in ("open", "closed"):
        os.mkdir(place / name)
        os.chown(fill(place / name / "f"), USER, USER)
    shared(place / "open")
    pairs = (("open/f", "closed/g"), ("closed/f", "open/g"), ("closed/f", "closed/g"), ("open/f", "open/g"))
    return as_user(lambda: [said(os.rename, place / old, place / new) for old, new in pairs])


@check
def a_name_is_always_there_while_it_is_replaced(place: Path) -> Outcome:
    fill(place / "current", b"0" * 5000)
    over = threading.Event()

    def replace() -> None:
        for turn in range(100):
            os.replace(fill(place / "new", str(turn % 10).encode() * 5000), place / "current")
        over.set()

    thread = threading.Thread(target=replace)
    thread.start()
    seen = set()
    while not over.is_set():
        content = (place / "current").read_bytes()
        seen.add((len(content), len(set(content))))
    thread.join()
    return seen, os.listdir(place)


@check
def nothing_is_lost_when_directories_move_about(place: Path) -> Outcome:
    for number in range(8):
        os.makedirs(place / f"d{number}" / "sub")
        fill(place / f"d{number}" / "sub" / "f", bytes([number]))
    for number in range(64):
        a, b = place / f"d{number % 8}", place / f"d{number * 3 % 8}"
        said(calls.renameat2, a / "sub", b / "sub", calls.EXCHANGE)
        said(os.rename, a / "sub", b / f"sub{number}")
        said(os.rename, b, a / "inner")
        said(os.rename, a / "inner", b)
    found = tree(place)
    return found, sorted(path.read_bytes() for path in place.rglob("f")), kind(place)


@check
def a_name_in_another_file_system(place: Path) -> Outcome:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        away = Path(elsewhere)
        fill(place / "f")
        _full(place / "d")
        fill(away / "g")
        answers = [
            said(call, source, target)
            for call in (os.rename, os.link, lambda a, b: calls.renameat2(a, b, calls.EXCHANGE))
            for source, target in (
                (place / "f", away / "f"),
                (place / "d", away / "d"),
                (away / "g", place / "g"),
                (place / "f", away / "g"),
            )
        ]
        return answers, tree(place), tree(away)


@check
def a_name_behind_a_link_to_another_file_system(place: Path) -> Outcome:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        os.symlink(elsewhere, place / "away")
        fill(place / "f")
        return said(os.rename, place / "f", place / "away" / "f"), tree(place)
