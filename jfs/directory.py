"""Directories: names hashed to buckets, and cookies that stay true while names come and go.

Pure: no tree, no device. A directory entry lives in the *bucket* of its name's hash. The hash has 55 bits and
is seeded by the volume, so a bucket nearly always holds one name. Its upper bits are the same for names that
are likely to be used together, such as `page-0017.png` and `page-0018.png`: so they lie side by side in the
tree, and making, listing and removing a thousand of them changes or reads a few leaves. The key suffix of a
bucket is ``hash << 8``; within the bucket every name has a *slot* (0..255) that it keeps until it is removed.
``hash << 8 | slot`` is therefore a position in the directory that never moves: the *cookie* of readdir,
positive in a signed 64-bit number.

A bucket is its entries one after the other, ascending by slot; each is a `directory entry` record and then
the name.
"""

from collections.abc import Iterator
from errno import ENOSPC
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from jfs.errors import CorruptionError, FileSystemError
from jfs.layout import VALUE_LIMIT_BYTES
from jfs.record import Field, Record

NAME_MAX = 255
SLOT_BITS = 8
SLOT_COUNT = 1 << SLOT_BITS
# Hash and slot together stay below 2**63: an off_t has a sign.
BEGINNING_BITS, STEM_BITS, NAME_BITS = 11, 14, 30
BEGINNING_BYTES = 8
_NO_DIGITS = bytes(set(range(256)).difference(b"0123456789"))

# Cookies of the two names that are not stored. Hashes start at 1, so every stored name has a cookie >= 256.
COOKIE_START = 0
COOKIE_SELF = 1
COOKIE_PARENT = 2

ENTRY_RECORD = Record(
    "directory entry",
    Field("slot", "B", "place in the bucket, kept until the name is removed"),
    Field("type", "B", "file type: the mode >> 12"),
    Field("name_bytes", "B", "length of the name that follows, 1 to 255"),
    Field("ino", "Q", "the file"),
)
_pack = ENTRY_RECORD.struct.pack
_unpack_from = ENTRY_RECORD.struct.unpack_from
_HEADER_SIZE = ENTRY_RECORD.size


class Entry(NamedTuple):
    """One name of a directory: its place in the bucket, file type (mode >> 12), inode and the name."""

    slot: int
    kind: int
    ino: int
    name: bytes


def stem_of(name: bytes) -> bytes:
    """What names of one series have in common: the name without its ending (a number is none), up to its last
    digit (if it has any), less three characters."""
    base, _, ending = name.rpartition(b".")
    if not base or ending.isdigit():
        base = name
    return (base.rstrip(_NO_DIGITS) or base)[:-3]


def name_hash(name: bytes, seed: int) -> int:
    """The hash of a name, 1 <= hash < 2**55; ``seed`` is 64 bits of the volume's uuid.

    From the top: bits of the beginning of its stem (names that begin with the time), of its stem, and of the
    whole.
    """
    stem = stem_of(name)
    return (
        xxh3_64_intdigest(stem[:BEGINNING_BYTES], seed) >> 64 - BEGINNING_BITS << STEM_BITS + NAME_BITS
        | xxh3_64_intdigest(stem, seed) >> 64 - STEM_BITS << NAME_BITS
        | xxh3_64_intdigest(name, seed) >> 64 - NAME_BITS
    ) or 1


def suffix_of(name: bytes, seed: int) -> int:
    """The key suffix of the bucket that holds (or would hold) a name."""
    return name_hash(name, seed) << SLOT_BITS


def seed_of(volume_uuid: bytes) -> int:
    """The hash seed of a volume: the first 64 bits of its uuid."""
    return int.from_bytes(volume_uuid[:8], "big")


def split_cookie(cookie: int) -> tuple[int, int]:
    """A cookie as (key suffix of the bucket, slot in it)."""
    slot = cookie & (SLOT_COUNT - 1)
    return cookie - slot, slot


def entries(bucket: bytes) -> Iterator[Entry]:
    """The entries of a bucket, ascending by slot. CorruptionError if the bucket is torn."""
    offset = 0
    end = len(bucket)
    while offset < end:
        if end - offset < _HEADER_SIZE:
            raise CorruptionError("a directory bucket ends inside an entry")
        slot, kind, length, ino = _unpack_from(bucket, offset)
        offset += _HEADER_SIZE
        if not length or length > end - offset:
            raise CorruptionError("a directory bucket ends inside a name")
        yield Entry(slot, kind, ino, bucket[offset : offset + length])
        offset += length


def only_entry(bucket: bytes) -> Entry | None:
    """The entry of a bucket that holds one, as nearly every one does; None of any other."""
    if len(bucket) > _HEADER_SIZE:
        slot, kind, length, ino = _unpack_from(bucket)
        if len(bucket) == _HEADER_SIZE + length:
            return Entry(slot, kind, ino, bucket[_HEADER_SIZE:])
    return None


def find(bucket: bytes, name: bytes) -> Entry | None:
    """The entry of a name in its bucket, or None."""
    length = len(name)
    # Nearly always the bucket holds one name and it is the right one.
    if len(bucket) == _HEADER_SIZE + length and bucket.endswith(name):
        slot, kind, stored, ino = _unpack_from(bucket)
        return Entry(slot, kind, ino, name) if stored == length else None
    for entry in entries(bucket):
        if entry.name == name:
            return entry
    return None


def encode(slot: int, kind: int, ino: int, name: bytes) -> bytes:
    """The bytes of one entry."""
    return _pack(slot, kind, len(name), ino) + name


def insert(bucket: bytes | None, name: bytes, ino: int, kind: int) -> bytes:
    """The bucket with a name added, which the caller knows to be absent, in the lowest free slot.

    FileSystemError ENOSPC if the bucket has no room (so many names with one hash do not come about by
    chance).
    """
    if not bucket:
        return encode(0, kind, ino, name)
    slot = 0
    offset = 0
    for entry in entries(bucket):
        if entry.slot != slot:
            break
        slot += 1
        offset += _HEADER_SIZE + len(entry.name)
    if slot >= SLOT_COUNT or len(bucket) + _HEADER_SIZE + len(name) > VALUE_LIMIT_BYTES:
        raise FileSystemError(ENOSPC)
    return bucket[:offset] + encode(slot, kind, ino, name) + bucket[offset:]


def remove(bucket: bytes, name: bytes) -> bytes | None:
    """The bucket without a name that it holds; None if nothing is left. KeyError if it does not hold it."""
    return _splice(bucket, name, None) or None


def replace(bucket: bytes, name: bytes, ino: int, kind: int) -> bytes:
    """The bucket with a name that it holds pointing at another inode, in its slot. KeyError if absent."""
    return _splice(bucket, name, (ino, kind))


def _splice(bucket: bytes, name: bytes, target: tuple[int, int] | None) -> bytes:
    offset = 0
    for entry in entries(bucket):
        end = offset + _HEADER_SIZE + len(entry.name)
        if entry.name == name:
            new = b"" if target is None else encode(entry.slot, target[1], target[0], name)
            return bucket[:offset] + new + bucket[end:]
        offset = end
    raise KeyError(name)
