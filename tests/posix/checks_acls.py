"""POSIX access control lists: what is accepted, how they and modes follow each other, what is inherited."""

import os
import struct
from pathlib import Path

from tests.posix.world import (
    OTHER_USER,
    TEAM,
    USER,
    Outcome,
    as_user,
    check,
    check_each,
    fill,
    opened,
    permissions,
    said,
    shared,
)

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_TAGS = {"u": 1, "U": 2, "g": 4, "G": 8, "m": 16, "o": 32}
_LETTERS = {number: letter for letter, number in _TAGS.items()}
_NO_ID = 0xFFFFFFFF
FULL = f"u:7 U{USER}:6 g:5 G{TEAM}:4 m:7 o:1"


def acl(text: str) -> bytes:
    """`u:7 U4201:5 g:5 m:7 o:0` as the kernel takes it."""
    value = struct.pack("<I", 2)
    for word in text.split():
        who, _, bits = word.partition(":")
        value += struct.pack("<HHI", _TAGS[who[0]], int(bits), int(who[1:] or _NO_ID))
    return value


def shown(path: Path, name: str = ACCESS) -> Outcome:
    """The ACL of a path in the same words, or the error."""
    value = said(os.getxattr, path, name)
    if not isinstance(value, bytes):
        return value
    entries = struct.iter_unpack("<HHI", value[4:])
    return " ".join(f"{_LETTERS[tag]}{'' if who == _NO_ID else who}:{bits}" for tag, bits, who in entries)


def both(path: Path) -> Outcome:
    return permissions(path), shown(path), shown(path, DEFAULT), sorted(os.listxattr(path))


VALUES = {
    "minimal": acl("u:7 g:5 o:1"),
    "full": acl(FULL),
    "with a mask only": acl("u:7 g:5 m:1 o:0"),
    "a mask that takes away": acl(f"u:6 U{USER}:7 g:7 m:1 o:0"),
    "no mask where one is needed": acl(f"u:7 U{USER}:6 g:5 o:1"),
    "no owner": acl("g:5 o:1"),
    "no others": acl("u:5 g:1"),
    "two masks": acl("u:7 g:5 m:1 m:1 o:0"),
    "one user twice": acl(f"u:7 U{USER}:6 U{USER}:5 g:5 m:7 o:1"),
    "out of order": acl("o:1 g:5 u:7"),
    "users out of order": acl(f"u:7 U{OTHER_USER}:6 U{USER}:5 g:5 m:7 o:1"),
    "permissions that are none": acl("u:15 g:5 o:1"),
    "no entries": acl(""),
    "nothing": b"",
    "another version": b"\x01\0\0\0" + acl("u:7 g:5 o:1")[4:],
    "torn": acl(FULL)[:-3],
    "an unknown tag": acl("u:7 g:5 o:1") + struct.pack("<HHI", 64, 0, _NO_ID),
}


@check_each(list(VALUES.items()))
def a_value_that_is(place: Path, value: bytes) -> Outcome:
    fill(place / "f", mode=0o640)
    os.mkdir(place / "d", 0o750)
    pairs = [(path, name) for path in (place / "f", place / "d") for name in (ACCESS, DEFAULT)]
    return [(said(os.setxattr, path, name, value), both(path)) for path, name in pairs]


@check
def on_what_is_no_file(place: Path) -> Outcome:
    os.mkfifo(place / "p", 0o600)
    os.symlink("p", place / "l")
    return (
        said(os.setxattr, place / "p", ACCESS, acl(FULL)),
        said(os.setxattr, place / "p", DEFAULT, acl(FULL)),
        said(os.setxattr, place / "l", ACCESS, acl(FULL), follow_symlinks=False),
        said(os.getxattr, place / "l", ACCESS, follow_symlinks=False),
        both(place / "p"),
    )


@check_each([(oct(mode), mode) for mode in (0, 0o777, 0o750, 0o604, 0o4755, 0o2770)])
def an_acl_follows_chmod(place: Path, mode: int) -> Outcome:
    path = fill(place / "f")
    os.setxattr(path, ACCESS, acl(FULL))
    path.chmod(mode)
    first = both(path)
    os.setxattr(path, ACCESS, acl("u:7 g:5 m:1 o:0"))
    path.chmod(mode)
    return first, both(path)


@check
def an_acl_is_removed(place: Path) -> Outcome:
    os.mkdir(place / "d")
    path = place / "d"
    os.setxattr(path, ACCESS, acl(FULL))
    os.setxattr(path, DEFAULT, acl(FULL))
    names = (ACCESS, DEFAULT, ACCESS, DEFAULT)
    return both(path), [(said(os.removexattr, path, name), both(path)) for name in names]


@check
def flags_of_setxattr(place: Path) -> Outcome:
    path = fill(place / "f")
    flags = (os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE, os.XATTR_REPLACE)
    return [said(os.setxattr, path, ACCESS, acl(FULL), flag) for flag in flags], both(path)


@check
def acls_are_for_the_owner(place: Path) -> Outcome:
    os.chown(fill(place / "mine"), USER, USER)
    fill(place / "theirs", mode=0o666)
    names = (place / "mine", place / "theirs")
    return as_user(
        lambda: [
            (said(os.setxattr, path, ACCESS, acl(FULL)), shown(path), said(os.removexattr, path, ACCESS))
            for path in names
        ]
    )


@check_each([("member", (TEAM,)), ("stranger", ())])
def an_acl_set_on_a_setgid_file(place: Path, groups: tuple[int, ...]) -> Outcome:
    path = fill(place / "f")
    os.chown(path, USER, TEAM)
    path.chmod(0o2755)
    return as_user(lambda: (said(os.setxattr, path, ACCESS, acl(FULL)), permissions(path)), groups=groups)


@check_each(
    [(text, text) for text in (FULL, f"u:7 U{USER}:7 g:7 G{TEAM}:7 m:4 o:0", f"u:0 U{USER}:0 g:7 m:7 o:7")]
)
def the_kernel_asks_the_acl(place: Path, text: str) -> Outcome:
    path = fill(place / "f", mode=0o600)
    os.setxattr(path, ACCESS, acl(text))

    def work() -> Outcome:
        return opened(path, os.O_RDONLY), opened(path, os.O_WRONLY), os.access(path, os.X_OK)

    who = ((USER, ()), (OTHER_USER, (TEAM,)), (OTHER_USER, (0,)), (OTHER_USER, ()))
    return [as_user(work, uid, groups=groups) for uid, groups in who]


DEFAULTS = {
    "full": FULL,
    "minimal": "u:7 g:5 o:1",
    "generous": f"u:7 U{USER}:7 g:7 m:7 o:7",
    "strict": f"u:6 U{USER}:6 g:0 m:6 o:0",
    "masked": "u:7 g:7 m:2 o:4",
}


def _children(place: Path) -> Outcome:
    os.close(os.open(place / "open", os.O_CREAT | os.O_WRONLY, 0o666))
    os.close(os.open(place / "private", os.O_CREAT | os.O_WRONLY, 0o600))
    os.mkdir(place / "mkdir", 0o777)
    os.mkdir(place / "mkdir" / "deeper", 0o700)
    os.mkfifo(place / "mkfifo", 0o644)
    os.symlink("t", place / "link")
    paths = ("open", "private", "mkdir", "mkdir/deeper", "mkfifo")
    return [(name, both(place / name)) for name in paths], oct(os.lstat(place / "link").st_mode)


@check_each(list(DEFAULTS.items()))
def children_inherit(place: Path, text: str) -> Outcome:
    os.umask(0)
    os.setxattr(place, DEFAULT, acl(text))
    return _children(place)


@check_each(list(DEFAULTS.items()))
def children_inherit_and_the_umask_does_not_matter(place: Path, text: str) -> Outcome:
    os.umask(0o27)
    os.setxattr(place, DEFAULT, acl(text))
    return _children(place)


@check
def an_access_acl_is_not_inherited(place: Path) -> Outcome:
    os.setxattr(place, ACCESS, acl(FULL))
    return _children(place)


@check
def moved_and_linked_files_keep_theirs(place: Path) -> Outcome:
    os.umask(0)
    os.mkdir(place / "d")
    os.setxattr(place / "d", DEFAULT, acl(FULL))
    os.rename(fill(place / "f"), place / "d" / "f")
    os.link(fill(place / "g"), place / "d" / "g")
    os.rename(fill(place / "d" / "h"), place / "h")
    return [both(place / name) for name in ("d/f", "d/g", "h")]


@check
def inherited_rights_work(place: Path) -> Outcome:
    os.umask(0)
    os.mkdir(place / "d", 0o777)
    os.setxattr(place / "d", DEFAULT, acl(f"u:7 U{USER}:7 g:0 m:7 o:0"))
    os.mkdir(place / "d" / "e", 0o777)
    shared(place)

    def work() -> Outcome:
        return (
            said(os.mkdir, place / "d" / "e" / "mine", 0o777),
            opened(place / "d" / "e" / "f", os.O_CREAT | os.O_WRONLY),
            said(lambda: len(os.listdir(place / "d" / "e"))),
        )

    return as_user(work), as_user(work, OTHER_USER)


@check
def an_acl_is_seen_by_other_descriptors_at_once(place: Path) -> Outcome:
    path = fill(place / "f", mode=0o600)
    answers = []
    for text in (f"u:6 U{USER}:4 g:0 m:4 o:0", "u:6 g:0 o:0", f"u:6 U{USER}:6 g:0 m:6 o:0"):
        os.setxattr(path, ACCESS, acl(text))
        answers.append(as_user(lambda: (opened(path, os.O_RDONLY), opened(path, os.O_RDWR))))
    return answers
