"""Owners, modes, extended attributes and access control lists, on a device in memory."""

import errno
import struct
from stat import S_IFDIR, S_IFREG, S_IMODE, S_ISGID, S_ISUID

import pytest

from jfs import acl
from jfs.filesystem import FileSystem, Owner
from tests.jfs.world import DIRECTORY, FILE, ROOT, new_file_system, refused, reopened


@pytest.fixture
async def fs() -> FileSystem:
    return await new_file_system()


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6755, 0o755), (0o6745, 0o2745), (0o4755, 0o755), (0o2755, 0o755), (0o1644, 0o1644)],
)
async def test_what_clears_setuid_and_setgid(fs: FileSystem, before: int, after: int) -> None:
    node = fs.make(ROOT, b"f", S_IFREG | before)
    fs.write(node.ino, 0, b"by root")
    fs.setattr(node.ino, size=3)
    assert S_IMODE(node.mode) == before
    fs.write(node.ino, 0, b"x", clear_privileges=True)
    assert S_IMODE(node.mode) == after
    fs.setattr(node.ino, mode=before)
    fs.setattr(node.ino, size=1, clear_privileges=True)
    assert S_IMODE(node.mode) == after
    fs.setattr(node.ino, mode=before)
    fs.setattr(node.ino, uid=7)
    assert (S_IMODE(node.mode), node.uid) == (after, 7)
    place = fs.make(ROOT, b"d", S_IFDIR | 0o6755)
    fs.setattr(place.ino, gid=9)
    assert (S_IMODE(place.mode), place.gid) == (0o6755, 9)


async def test_listing_and_following_set_the_access_time(fs: FileSystem) -> None:
    place = fs.make(ROOT, b"d", DIRECTORY)
    link = fs.symlink(ROOT, b"l", b"d")
    for node in (place, link):
        node.atime_ns = 1
    list(fs.readdir(place.ino))
    fs.readlink(link.ino)
    assert min(place.atime_ns, link.atime_ns) > 1


async def test_a_size_that_is_the_size_already_is_no_change(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, b"x" * 10)
    node.mtime_ns = node.ctime_ns = 1
    fs.setattr(node.ino, size=10)
    assert (node.mtime_ns, node.ctime_ns) == (1, 1)
    fs.setattr(node.ino, size=10, ctime_ns=5)
    assert (node.mtime_ns, node.ctime_ns) == (1, 5)


async def test_setgid_directories_pass_their_group_on(fs: FileSystem) -> None:
    place = fs.make(ROOT, b"d", S_IFDIR | S_ISGID | 0o775, Owner(1, 50))
    file = fs.make(place.ino, b"f", FILE, Owner(2, 2))
    sub = fs.make(place.ino, b"s", DIRECTORY, Owner(2, 2))
    assert (file.gid, file.mode & S_ISGID) == (50, 0)
    assert (sub.gid, sub.mode & S_ISGID) == (50, S_ISGID)
    assert sub.mode & S_ISUID == 0


async def test_extended_attributes(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    assert fs.listxattr(node.ino) == []
    refused(errno.ENODATA, fs.getxattr, node.ino, b"user.a")
    refused(errno.ENODATA, fs.setxattr, node.ino, b"user.a", b"1", replace=True)
    fs.setxattr(node.ino, b"user.a", b"1", create=True)
    refused(errno.EEXIST, fs.setxattr, node.ino, b"user.a", b"2", create=True)
    fs.setxattr(node.ino, b"user.a", b"", replace=True)
    fs.setxattr(node.ino, b"trusted.b", b"t" * 3000)
    fs.setxattr(node.ino, b"security.c", b"s")
    fs = await reopened(fs)
    assert set(fs.listxattr(node.ino)) == {b"user.a", b"trusted.b", b"security.c"}
    assert fs.getxattr(node.ino, b"user.a") == b""
    assert fs.getxattr(node.ino, b"trusted.b") == b"t" * 3000
    refused(errno.E2BIG, fs.setxattr, node.ino, b"user.big", b"x" * 4000)
    refused(errno.EOPNOTSUPP, fs.setxattr, node.ino, b"system.other", b"x")
    refused(errno.ERANGE, fs.setxattr, node.ino, b"user." + b"n" * 251, b"x")
    refused(errno.EINVAL, fs.setxattr, node.ino, b"user.", b"x")
    for name in fs.listxattr(node.ino):
        fs.removexattr(node.ino, name)
    assert fs.listxattr(node.ino) == []
    refused(errno.ENODATA, fs.removexattr, node.ino, b"user.a")
    refused(errno.ENODATA, fs.getxattr, node.ino, b"user.a")


async def test_no_more_attributes_than_can_be_listed(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", FILE)
    for number in range(65536 // 256):
        fs.setxattr(node.ino, b"user.%0250d" % number, b"")
    refused(errno.ENOSPC, fs.setxattr, node.ino, b"user.one too many", b"")
    fs.setxattr(node.ino, b"user.%0250d" % 0, b"a new value is no new name")
    assert sum(len(name) + 1 for name in fs.listxattr(node.ino)) == 65536


def acl_value(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
EXTENDED = ((1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (0x10, 6, NOBODY), (0x20, 1, NOBODY))


async def test_the_mode_follows_the_acl_and_the_acl_the_mode(fs: FileSystem) -> None:
    node = fs.make(ROOT, b"f", S_IFREG | S_ISGID | 0o600)
    fs.setxattr(node.ino, acl.ACCESS, acl_value(*EXTENDED))
    assert S_IMODE(node.mode) == 0o2761
    fs.setattr(node.ino, mode=0o640)
    shown = acl.decode(fs.getxattr(node.ino, acl.ACCESS))
    assert [(entry.tag, entry.permissions) for entry in shown] == [
        (1, 6),
        (2, 6),
        (4, 5),
        (0x10, 4),
        (0x20, 0),
    ]
    fs.setattr(node.ino, mode=S_ISGID | 0o640)
    fs.setxattr(
        node.ino, acl.ACCESS, acl_value((1, 6, NOBODY), (4, 4, NOBODY), (0x20, 4, NOBODY)), keep_setgid=False
    )
    assert S_IMODE(node.mode) == 0o644
    refused(errno.ENODATA, fs.getxattr, node.ino, acl.ACCESS)


async def test_default_acls_are_inherited(fs: FileSystem) -> None:
    place = fs.make(ROOT, b"d", DIRECTORY)
    fs.setxattr(place.ino, acl.DEFAULT, acl_value(*EXTENDED))
    assert S_IMODE(place.mode) == 0o755
    file = fs.make(place.ino, b"f", S_IFREG | 0o640)
    assert S_IMODE(file.mode) == 0o640
    shown = acl.decode(fs.getxattr(file.ino, acl.ACCESS))
    assert [(entry.tag, entry.permissions) for entry in shown] == [
        (1, 6),
        (2, 6),
        (4, 5),
        (0x10, 4),
        (0x20, 0),
    ]
    refused(errno.ENODATA, fs.getxattr, file.ino, acl.DEFAULT)
    sub = fs.make(place.ino, b"s", S_IFDIR | 0o777)
    assert fs.getxattr(sub.ino, acl.DEFAULT) == fs.getxattr(place.ino, acl.DEFAULT)
    assert S_IMODE(sub.mode) == 0o761
    link = fs.symlink(place.ino, b"l", b"x")
    assert fs.listxattr(link.ino) == []
    fs.setxattr(place.ino, acl.DEFAULT, acl_value())
    assert fs.listxattr(place.ino) == []


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\1\0\0\0",
        acl_value((1, 7, NOBODY)),
        acl_value((1, 7, NOBODY), (2, 7, 5), (4, 7, NOBODY), (0x20, 7, NOBODY)),
        acl_value((1, 8, NOBODY), (4, 7, NOBODY), (0x20, 7, NOBODY)),
        acl_value((1, 7, NOBODY), (4, 7, NOBODY), (0x20, 7, NOBODY), (0x40, 7, NOBODY)),
        acl_value((1, 7, NOBODY), (4, 7, NOBODY), (0x20, 7, NOBODY))[:-1],
    ],
)
async def test_acls_that_are_none(fs: FileSystem, value: bytes) -> None:
    node = fs.make(ROOT, b"f", FILE)
    refused(errno.EINVAL, fs.setxattr, node.ino, acl.ACCESS, value)
    refused(errno.EACCES, fs.setxattr, node.ino, acl.DEFAULT, acl_value(*EXTENDED))
    assert node.mode == FILE
