"""Extended attributes: what a name and a value may be, and the buckets they are stored in. Pure.

Attributes whose names have one hash share a bucket, which is its attributes one after the other; each is an
`extended attribute` record, the name, and the value.
"""

from collections.abc import Iterable, Iterator
from errno import E2BIG, EEXIST, EINVAL, ENODATA, ENOSPC, EOPNOTSUPP, ERANGE

from xxhash import xxh3_64_intdigest

from jfs import acl
from jfs.errors import CorruptionError, FileSystemError
from jfs.layout import VALUE_LIMIT_BYTES
from jfs.record import Field, Record

NAME_MAX = 255
LIST_MAX = 65536  # what the kernel lets listxattr(2) return; a longer list could not be read at all
ATTRIBUTE_RECORD = Record(
    "extended attribute",
    Field("name_bytes", "B", "length of the name that follows"),
    Field("value_bytes", "H", "length of the value that follows the name"),
)
_pack = ATTRIBUTE_RECORD.struct.pack
_unpack_from = ATTRIBUTE_RECORD.struct.unpack_from
_HEADER_SIZE = ATTRIBUTE_RECORD.size
VALUE_MAX = VALUE_LIMIT_BYTES - _HEADER_SIZE - NAME_MAX

TRUSTED = b"trusted."  # seen by root only
_PREFIXES = (b"user.", TRUSTED, b"security.")


def suffix_of(name: bytes, seed: int) -> int:
    """The key suffix of the bucket that holds (or would hold) an attribute; ``seed`` is the volume's."""
    return xxh3_64_intdigest(name, seed)


def check_name(name: bytes) -> None:
    """FileSystemError: ERANGE for a name too long, EOPNOTSUPP for a namespace that is not kept, EINVAL for an
    empty rest.
    """
    if len(name) > NAME_MAX:
        raise FileSystemError(ERANGE)
    if name in (acl.ACCESS, acl.DEFAULT):
        return
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            if len(name) == len(prefix):
                raise FileSystemError(EINVAL)
            return
    raise FileSystemError(EOPNOTSUPP)


def check_presence(present: bool, *, create: bool, replace: bool) -> None:
    """FileSystemError EEXIST if it must be new and is not, ENODATA if it must be there and is not."""
    if create and present:
        raise FileSystemError(EEXIST)
    if replace and not present:
        raise FileSystemError(ENODATA)


def check_list(names: Iterable[bytes]) -> None:
    """FileSystemError ENOSPC if these names of one file are more than listxattr(2) can return."""
    if sum(len(name) + 1 for name in names) > LIST_MAX:
        raise FileSystemError(ENOSPC)


def entries(bucket: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The attributes of a bucket as (name, value). CorruptionError if the bucket is torn."""
    offset = 0
    end = len(bucket)
    while offset < end:
        if end - offset < _HEADER_SIZE:
            raise CorruptionError("an attribute bucket ends inside an entry")
        name_length, value_length = _unpack_from(bucket, offset)
        offset += _HEADER_SIZE
        if not name_length or name_length + value_length > end - offset:
            raise CorruptionError("an attribute bucket ends inside an attribute")
        name_end = offset + name_length
        offset = name_end + value_length
        yield bucket[name_end - name_length : name_end], bucket[name_end:offset]


def find(bucket: bytes | None, name: bytes) -> bytes:
    """The value of an attribute. FileSystemError ENODATA if it is not there."""
    for stored, value in entries(bucket or b""):
        if stored == name:
            return value
    raise FileSystemError(ENODATA)


def store(bucket: bytes | None, name: bytes, value: bytes) -> bytes:
    """The bucket with an attribute set or replaced.

    FileSystemError E2BIG if the value can never be stored, ENOSPC if others with the same hash leave no room.
    """
    if len(value) > VALUE_MAX:
        raise FileSystemError(E2BIG)
    rest = _without(bucket or b"", name)
    new = rest + _pack(len(name), len(value)) + name + value
    if len(new) > VALUE_LIMIT_BYTES:
        raise FileSystemError(ENOSPC)
    return new


def remove(bucket: bytes | None, name: bytes) -> bytes | None:
    """The bucket without an attribute, None if nothing is left. FileSystemError ENODATA if absent."""
    rest = _without(bucket or b"", name)
    if len(rest) == len(bucket or b""):
        raise FileSystemError(ENODATA)
    return rest or None


def _without(bucket: bytes, name: bytes) -> bytes:
    return b"".join(
        _pack(len(stored), len(value)) + stored + value for stored, value in entries(bucket) if stored != name
    )
