"""Reading directories: every name once, places that can be returned to, while names come and go."""

import os
import stat
from pathlib import Path

from tests.posix.calls import Directory
from tests.posix.world import Outcome, as_user, check, check_each, fill, said, shared


def _names(place: Path, count: int) -> list[str]:
    names = [f"{number:04}" for number in range(count)]
    for name in names:
        os.close(os.open(place / name, os.O_CREAT | os.O_WRONLY))
    return names


@check_each([(str(count), count) for count in (0, 1, 2, 100, 1000)])
def every_name_comes_once(place: Path, count: int) -> Outcome:
    names = _names(place, count)
    stream = Directory(place)
    found = stream.rest()
    again = stream.read()
    stream.close()
    return sorted(found) == sorted([".", "..", *names]), len(found), again


@check
def rewinding_shows_what_is_new(place: Path) -> Outcome:
    _names(place, 10)
    stream = Directory(place)
    stream.rest()
    fill(place / "new")
    os.unlink(place / "0003")
    stream.rewind()
    found = sorted(stream.rest())
    stream.close()
    return found


@check_each([(str(count), count) for count in (5, 300)])
def a_place_can_be_returned_to(place: Path, count: int) -> Outcome:
    _names(place, count)
    stream = Directory(place)
    places, names = [], []
    while True:
        places.append(stream.tell())
        name = stream.read()
        if name is None:
            break
        names.append(name)
    right = 0
    for number in range(len(names) - 1, -1, -1):
        stream.seek(places[number])
        right += stream.read() == names[number]
    stream.seek(places[2])
    rest = stream.rest()
    stream.close()
    return right == len(names), rest == names[2:], len(set(places)) == len(places)


@check
def a_place_holds_while_names_go(place: Path) -> Outcome:
    names = _names(place, 400)
    stream = Directory(place)
    first = [stream.read() for _ in range(150)]
    at = stream.tell()
    kept = [name for number, name in enumerate(names) if number % 3]
    for name in names:
        if name not in kept:
            os.unlink(place / name)
    for number in range(50):
        fill(place / f"new{number}", b"")
    stream.seek(at)
    second = stream.rest()
    stream.close()
    both = [name for name in (*first, *second) if name in kept]
    return len(both) == len(set(both)), sorted(both) == kept


@check
def names_that_stay_come_once_while_others_come_and_go(place: Path) -> Outcome:
    stay = _names(place, 300)
    stream = Directory(place)
    found: list[str] = []
    turn = 0
    while (name := stream.read()) is not None:
        found.append(name)
        fill(place / f"come{turn}", b"")
        if turn % 2:
            os.unlink(place / f"come{turn - 1}")
        turn += 1
        assert turn < 20_000
    stream.close()
    kept = [name for name in found if name in set(stay)]
    return sorted(kept) == stay


@check
def a_directory_is_emptied_while_it_is_read(place: Path) -> Outcome:
    os.mkdir(place / "d")
    names = _names(place / "d", 700)
    stream = Directory(place / "d")
    found = []
    while (name := stream.read()) is not None:
        if name not in (".", ".."):
            found.append(name)
            os.unlink(place / "d" / name)
    stream.close()
    return sorted(found) == names, said(os.rmdir, place / "d")


@check
def names_are_renamed_while_they_are_read(place: Path) -> Outcome:
    names = _names(place, 200)
    stream = Directory(place)
    found = []
    while (name := stream.read()) is not None:
        if len(name) == 4:
            found.append(name)
            os.rename(place / name, place / f"renamed {name}")
    stream.close()
    return sorted(found) == names, len(os.listdir(place)), len(set(found)) == len(found)


@check
def types_as_the_listing_tells(place: Path) -> Outcome:
    fill(place / "file")
    os.mkdir(place / "dir")
    os.symlink("dir", place / "link")
    os.mkfifo(place / "fifo")
    os.mknod(place / "chr", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(place / "blk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    os.mknod(place / "sock", stat.S_IFSOCK | 0o600)
    with os.scandir(place) as listing:
        return sorted(
            (
                entry.name,
                entry.is_file(follow_symlinks=False),
                entry.is_dir(follow_symlinks=False),
                entry.is_symlink(),
                entry.inode() == os.lstat(entry.path).st_ino,
            )
            for entry in listing
        )


@check
def two_streams_do_not_disturb_each_other(place: Path) -> Outcome:
    _names(place, 50)
    one, two = Directory(place), Directory(place)
    found: tuple[list[str], list[str]] = ([], [])
    for _ in range(52):
        for stream, names in ((one, found[0]), (two, found[1])):
            name = stream.read()
            assert name is not None
            names.append(name)
    one.close()
    two.close()
    return found[0] == found[1], len(set(found[0]))


@check
def a_removed_directory_lists_nothing(place: Path) -> Outcome:
    os.mkdir(place / "d")
    stream = Directory(place / "d")
    os.rmdir(place / "d")
    found = stream.rest()
    stream.close()
    return found


@check
def dot_and_dot_dot(place: Path) -> Outcome:
    os.makedirs(place / "d" / "e")
    same = [
        os.stat(place / "d" / "e" / name).st_ino == os.stat(place / where).st_ino
        for name, where in ((".", "d/e"), ("..", "d"), ("../..", "."), ("../../d", "d"))
    ]
    return same, os.stat(place / "d").st_nlink


@check
def listing_needs_the_right_to_read(place: Path) -> Outcome:
    os.mkdir(place / "d")
    fill(place / "d" / "f")
    answers = []
    for mode in (0o755, 0o711, 0o744, 0o700):
        (place / "d").chmod(mode)
        answers.append(
            as_user(
                lambda: (
                    said(os.listdir, place / "d"),
                    said(lambda: [entry.is_file() for entry in os.scandir(place / "d")]),
                    said(lambda: os.lstat(place / "d" / "f").st_size),
                )
            )
        )
    return answers


@check
def names_with_one_prefix_and_all_lengths(place: Path) -> Outcome:
    names = ["x" * length for length in range(1, 256)]
    for name in names:
        os.mkdir(place / name)
    listed = sorted(os.listdir(place))
    for name in names[::2]:
        os.rmdir(place / name)
    return listed == sorted(names), sorted(os.listdir(place)) == sorted(names[1::2]), os.stat(place).st_nlink


@check
def a_directory_grows_and_shrinks_again(place: Path) -> Outcome:
    shared(place)
    for _ in range(3):
        names = _names(place, 300)
        for name in names:
            os.unlink(place / name)
    return os.listdir(place), os.stat(place).st_nlink
