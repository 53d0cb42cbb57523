"""Extended attributes: the namespaces, who may use them, sizes, and what they may be set on."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix.world import (
    OTHER_USER,
    USER,
    Outcome,
    as_user,
    check,
    check_each,
    fill,
    said,
    shared,
)

NAMES = {
    "user": "user.a",
    "trusted": "trusted.a",
    "security": "security.a",
    "system": "system.a",
    "no namespace": "a",
    "an unknown namespace": "other.a",
    "only a namespace": "user.",
    "only a namespace, trusted": "trusted.",
    "a namespace without a dot": "user",
    "the longest name": "user." + "n" * 250,
    "a name too long": "user." + "n" * 251,
    "a name that is empty": "",
    "another case": "USER.a",
    "bytes that are not UTF-8": "user.\udcff",
    "dots": "user...",
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


THINGS: dict[str, Callable[[Path], object]] = {
    "file": fill,
    "directory": os.mkdir,
    "link": lambda path: os.symlink("nowhere", path),
    "pipe": os.mkfifo,
    "socket": _socket,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}


def _all(path: Path, name: str) -> Outcome:
    """Every call on one attribute, in an order in which each sees what the one before did."""
    follow = {"follow_symlinks": False}
    return (
        said(os.getxattr, path, name, **follow),
        said(os.removexattr, path, name, **follow),
        said(os.setxattr, path, name, b"v", os.XATTR_REPLACE, **follow),
        said(os.setxattr, path, name, b"v", os.XATTR_CREATE, **follow),
        said(os.setxattr, path, name, b"v", os.XATTR_CREATE, **follow),
        said(os.setxattr, path, name, b"", os.XATTR_REPLACE, **follow),
        said(os.getxattr, path, name, **follow),
        said(os.setxattr, path, name, bytes(range(256)), **follow),
        said(os.getxattr, path, name, **follow),
        said(lambda: sorted(os.listxattr(path, **follow))),
        said(os.removexattr, path, name, **follow),
        said(os.getxattr, path, name, **follow),
        said(lambda: os.listxattr(path, **follow)),
    )


@check_each(list(NAMES.items()))
def a_name_of(place: Path, name: str) -> Outcome:
    answers = []
    for words, make in THINGS.items():
        make(place / words)
        answers.append(_all(place / words, name))
    return answers


@check_each(list(NAMES.items()))
def what_others_see_of(place: Path, name: str) -> Outcome:
    mine, theirs, readable = place / "mine", place / "theirs", place / "readable"
    for path, owner, mode in (
        (mine, USER, 0o600),
        (theirs, OTHER_USER, 0o600),
        (readable, OTHER_USER, 0o644),
    ):
        os.chown(fill(path), owner, owner)
        path.chmod(mode)
        said(os.setxattr, path, name, b"secret")
    return as_user(
        lambda: [(said(os.getxattr, path, name), _all(path, name)) for path in (mine, theirs, readable)]
    )


@check
def on_a_sticky_directory_of_somebody_else(place: Path) -> Outcome:
    shared(place, 0o1777)
    os.mkdir(place / "open")
    shared(place / "open")
    return as_user(lambda: [said(os.setxattr, path, "user.a", b"x") for path in (place, place / "open")])


@check_each([(str(size), size) for size in (0, 1, 100, 1000, 2000, 3000, 3500, 65_537)])
def a_value_of_bytes(place: Path, size: int) -> Outcome:
    path = fill(place / "f")
    answer = said(os.setxattr, path, "user.a", b"v" * size)
    return answer, said(lambda: len(os.getxattr(path, "user.a"))), os.listxattr(path)


@check
def a_value_of_four_thousand_bytes(place: Path) -> Outcome:
    path = fill(place / "f")
    return said(os.setxattr, path, "user.a", b"v" * 5000) in ("ENOSPC", "E2BIG"), os.listxattr(path)


@check
def attributes_that_take_more_than_a_block(place: Path) -> Outcome:
    path = fill(place / "f")
    answers = {said(os.setxattr, path, f"user.{number}", b"v" * 1000) for number in range(10)}
    return answers, len(os.listxattr(path))


@check
def twenty_attributes(place: Path) -> Outcome:
    path = fill(place / "f")
    for number in range(20):
        os.setxattr(path, f"user.{number}", b"%d" % number)
    for number in range(0, 20, 2):
        os.removexattr(path, f"user.{number}")
    return sorted((name, os.getxattr(path, name)) for name in os.listxattr(path))


@check
def they_go_with_the_file(place: Path) -> Outcome:
    path = fill(place / "f")
    os.setxattr(path, "user.a", b"x")
    os.link(path, place / "g")
    os.rename(path, place / "h")
    shown = os.getxattr(place / "g", "user.a"), os.getxattr(place / "h", "user.a")
    os.rename(fill(place / "new"), place / "h")
    return shown, os.listxattr(place / "h"), os.listxattr(place / "g")


@check
def new_files_have_none(place: Path) -> Outcome:
    os.setxattr(place, "user.a", b"x")
    os.mkdir(place / "d")
    return os.listxattr(fill(place / "f")), os.listxattr(place / "d"), os.listxattr(place)


@check
def by_descriptor(place: Path) -> Outcome:
    descriptor = os.open(fill(place / "f"), os.O_RDONLY)
    try:
        os.setxattr(descriptor, "user.a", b"x")
        os.unlink(place / "f")
        os.setxattr(descriptor, "user.b", b"y")
        return sorted((name, os.getxattr(descriptor, name)) for name in os.listxattr(descriptor))
    finally:
        os.close(descriptor)


@check
def capabilities_go_when_the_file_is_written(place: Path) -> Outcome:
    path = fill(place / "f")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    answers = [said(os.setxattr, path, "security.capability", capability)]
    answers.append(said(os.getxattr, path, "security.capability"))
    with path.open("r+b", 0) as file:
        file.write(b"x")
    answers.append(said(os.getxattr, path, "security.capability"))
    os.setxattr(path, "security.capability", capability)
    os.chown(path, USER, USER)
    answers.append(said(os.getxattr, path, "security.capability"))
    os.setxattr(path, "security.capability", capability)
    os.truncate(path, 0)
    answers.append(said(os.getxattr, path, "security.capability"))
    return answers, os.listxattr(path)


@check
def a_program_with_a_capability_that_others_write(place: Path) -> Outcome:
    path = fill(place / "f", mode=0o777)
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))

    def work() -> Outcome:
        with path.open("r+b", 0) as file:
            file.write(b"x")
        return said(os.getxattr, path, "security.capability")

    return as_user(work)
