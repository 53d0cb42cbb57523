"""The bytes of the kernel's FUSE interface (linux/fuse.h), as far as we answer it ourselves. Pure.

A request is a header and a body; an answer a header and a body. All numbers are little-endian here, as they
are on every machine that this runs on.
"""

import os
from stat import S_IFMT, S_IFREG, S_ISGID, S_ISUID
from struct import Struct
from typing import Final

from jfs.nodes import Node

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
FSYNC: Final = 20
GETXATTR: Final = 22
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
FSYNCDIR: Final = 30
CREATE: Final = 35
INTERRUPT: Final = 36
IOCTL: Final = 39
BATCH_FORGET: Final = 42
READDIRPLUS: Final = 44
RENAME2: Final = 45

IN_HEADER: Final = Struct("<IIQQIIIHH")
"""length, opcode, unique, node, uid, gid, pid, length of extensions, padding"""
OUT_HEADER: Final = Struct("<IiQ")
"""length, error (0 or -errno; in a notification its code), unique (0: a notification)"""
BODY_AT: Final = IN_HEADER.size

FORGET_IN: Final = Struct("<Q")
BATCH_IN: Final = Struct("<II")
FORGET_ONE: Final = Struct("<QQ")
SETATTR_IN: Final = Struct("<IIQQQqqqIIIIIIII")
"""valid, padding, handle, size, lock owner, atime, mtime, ctime, their ns, mode, unused, uid, gid, unused"""
MKNOD_IN: Final = Struct("<IIII")
"""mode, rdev, umask, padding"""
MKDIR_IN: Final = Struct("<II")
"""mode, umask"""
RENAME_IN: Final = Struct("<Q")
RENAME2_IN: Final = Struct("<QII")
"""new directory, flags, padding"""
READ_IN: Final = Struct("<QQIIQII")
"""handle, offset, size, flags of the request, lock owner, flags of the file, padding"""
WRITE_IN: Final = Struct("<QQIIQII")
"""as READ_IN"""
FSYNC_IN: Final = Struct("<QII")
"""handle, flags, padding"""
GETXATTR_IN: Final = Struct("<II")
"""size of the caller's buffer, padding"""

FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_PRIVILEGES: Final = 1 << 11
"""Whoever cuts the file, or gives it away, may not keep setuid and setgid."""

WRITE_KILL_PRIVILEGES: Final = 1 << 2
"""The kernel asks to take setuid and setgid away: somebody without privileges writes."""
FSYNC_DATA_ONLY: Final = 1 << 0
NOTIFY_INVALIDATE_INODE: Final = 2

_ATTRIBUTES: Final = "QQQqqqIIIIIIIIII"
ATTR_OUT: Final = Struct("<QII" + _ATTRIBUTES)
"""seconds that the attributes hold, ns of it, padding, attributes"""
ENTRY_OUT: Final = Struct("<QQQQII" + _ATTRIBUTES)
"""node, generation, seconds that the name holds, seconds that the attributes hold, ns of both, attributes"""
WRITE_OUT: Final = Struct("<II")
GETXATTR_OUT: Final = Struct("<II")
DIRENT: Final = Struct("<QQII")
"""inode, cookie, length of the name, type; then the name, and zeros up to a multiple of 8"""
INVALIDATE_INODE: Final = Struct("<Qqq")
"""inode, offset (negative: only attributes), length"""

CACHE_SECONDS: Final = 3600
BLKSIZE: Final = (
    65_536  # what stdio and the like use as the size of their buffers: each write(2) costs a request
)
SECTORS: Final = 8  # of 512 bytes, in a block: what st_blocks counts
NS_PER_S: Final = 1_000_000_000
_PRIVILEGES: Final = S_ISUID | S_ISGID
_pack_entry = ENTRY_OUT.pack
_pack_attr = ATTR_OUT.pack
_pack_out = OUT_HEADER.pack
_OUT_BYTES: Final = OUT_HEADER.size


def answer(unique: int, body: bytes = b"") -> bytes:
    """An answer that all went well."""
    return _pack_out(_OUT_BYTES + len(body), 0, unique) + body


def refusal(unique: int, errno: int) -> bytes:
    """An answer with an error."""
    return _pack_out(_OUT_BYTES, -errno, unique)


def attribute_seconds(mode: int) -> int:
    """How long the kernel may believe attributes. It does not notice that a write cleared setuid: there it
    asks.
    """
    return 0 if mode & _PRIVILEGES and S_IFMT(mode) == S_IFREG else CACHE_SECONDS


def attributes(node: Node, sectors: int) -> bytes:
    """The body of an answer to GETATTR or SETATTR."""
    mode = node.mode
    atime_s, atime_ns = divmod(node.atime_ns, NS_PER_S)
    mtime_s, mtime_ns = divmod(node.mtime_ns, NS_PER_S)
    ctime_s, ctime_ns = divmod(node.ctime_ns, NS_PER_S)
    return _pack_attr(
        attribute_seconds(mode),
        0,
        0,
        node.ino,
        node.size_bytes,
        sectors,
        atime_s,
        mtime_s,
        ctime_s,
        atime_ns,
        mtime_ns,
        ctime_ns,
        mode,
        node.nlink,
        node.uid,
        node.gid,
        node.rdev,
        BLKSIZE,
        0,
    )


def entry(node: Node, sectors: int) -> bytes:
    """A name and what it leads to: the body of an answer to LOOKUP, MKNOD and MKDIR."""
    mode = node.mode
    ino = node.ino
    atime_s, atime_ns = divmod(node.atime_ns, NS_PER_S)
    mtime_s, mtime_ns = divmod(node.mtime_ns, NS_PER_S)
    ctime_s, ctime_ns = divmod(node.ctime_ns, NS_PER_S)
    return _pack_entry(
        ino,
        node.generation,
        CACHE_SECONDS,
        attribute_seconds(mode),
        0,
        0,
        ino,
        node.size_bytes,
        sectors,
        atime_s,
        mtime_s,
        ctime_s,
        atime_ns,
        mtime_ns,
        ctime_ns,
        mode,
        node.nlink,
        node.uid,
        node.gid,
        node.rdev,
        BLKSIZE,
        0,
    )


MISSING: Final = _pack_entry(0, 0, CACHE_SECONDS, 0, *[0] * 18)
"""No such name, which the kernel may remember."""
UNKNOWN_ENTRY: Final = bytes(ENTRY_OUT.size)
"""In READDIRPLUS: the name without what it leads to."""


def dirent(name: bytes, ino: int, kind: int, cookie: int) -> bytes:
    """One name of a directory; `kind` is the file type, mode >> 12."""
    length = len(name)
    return DIRENT.pack(ino, cookie, length, kind) + name + bytes(-length & 7)


def invalidation(ino: int) -> bytes:
    """A notification: the kernel forgets the attributes of an inode."""
    return _pack_out(_OUT_BYTES + INVALIDATE_INODE.size, NOTIFY_INVALIDATE_INODE, 0) + INVALIDATE_INODE.pack(
        ino, -1, 0
    )


def is_access(file_flags: int) -> bool:
    """Whether a READ for a file opened with these flags reads it. With O_WRONLY it is the kernel's own, for
    part of a page.
    """
    return file_flags & os.O_ACCMODE != os.O_WRONLY and not file_flags & os.O_NOATIME
