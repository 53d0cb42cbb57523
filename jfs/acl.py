"""POSIX access control lists as the kernel hands them over: the value of ``system.posix_acl_access`` and
``_default``.

Pure. With FUSE_POSIX_ACL the kernel enforces ACLs and caches them, and leaves three things to the file
system: the permission bits follow the access ACL, the access ACL follows chmod, and new files inherit the
default ACL.

The value is a little-endian version (2) and then entries of tag (2 bytes), permissions (2) and id (4).
"""

import struct
from collections.abc import Iterable
from errno import EINVAL
from typing import NamedTuple

from jfs.errors import FileSystemError

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS = frozenset({USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER})
_NAMED = frozenset({USER, GROUP})
_VERSION = 2
_NO_ID = 0xFFFFFFFF
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


class AclEntry(NamedTuple):
    """One line of an ACL: whom it is about, what they may do (rwx as 0..7), and the user or group id."""

    tag: int
    permissions: int
    identity: int


def decode(value: bytes) -> list[AclEntry]:
    """The entries of a stored or offered ACL; FileSystemError EINVAL if it is not a valid one."""
    body = len(value) - _HEADER.size
    if body < 0 or body % _ENTRY.size or _HEADER.unpack_from(value)[0] != _VERSION:
        raise FileSystemError(EINVAL)
    found = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]
    tags = [entry.tag for entry in found]
    if any(entry.tag not in _TAGS or entry.permissions > 7 for entry in found):
        raise FileSystemError(EINVAL)
    if found and any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)):
        raise FileSystemError(EINVAL)
    named = not _NAMED.isdisjoint(tags)
    if tags.count(MASK) > 1 or (named and MASK not in tags):
        raise FileSystemError(EINVAL)
    return found


def encode(found: Iterable[AclEntry]) -> bytes:
    """The value to store for these entries."""
    return _HEADER.pack(_VERSION) + b"".join(
        _ENTRY.pack(entry.tag, entry.permissions, entry.identity if entry.tag in _NAMED else _NO_ID)
        for entry in found
    )


def permission_bits(found: list[AclEntry]) -> int:
    """The nine permission bits that an access ACL shows in the mode: the group bits are the mask where there
    is one.
    """
    bits = {entry.tag: entry.permissions for entry in found if entry.tag not in _NAMED}
    return bits[USER_OBJ] << 6 | bits.get(MASK, bits[GROUP_OBJ]) << 3 | bits[OTHER]


def is_minimal(found: list[AclEntry]) -> bool:
    """True if the mode alone says the same, so that nothing need be stored."""
    return len(found) == 3


def with_mode(found: list[AclEntry], mode: int) -> list[AclEntry]:
    """The access ACL after chmod: owner and others from the mode, the mask (or the group, without a mask) as
    well.
    """
    group_tag = MASK if any(entry.tag == MASK for entry in found) else GROUP_OBJ
    new = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return [entry._replace(permissions=new.get(entry.tag, entry.permissions)) for entry in found]


def inherited(default: list[AclEntry], mode: int) -> tuple[list[AclEntry], int]:
    """The access ACL and the mode of a new file below a directory with a default ACL; ``mode`` is what was
    asked for.

    What the creator asked for limits owner, mask (or group) and others; the mode then shows the limited ACL.
    """
    group_tag = MASK if any(entry.tag == MASK for entry in default) else GROUP_OBJ
    limit = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    access = [entry._replace(permissions=entry.permissions & limit.get(entry.tag, 7)) for entry in default]
    return access, mode & ~0o777 | permission_bits(access)
