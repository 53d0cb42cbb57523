"""One write of the volume's stream, with its place in time: what the queue keeps and what travels to the
other sites.

The layout of the 40 byte header is declared here and nowhere else; the queue's index, the wire and the set
journal use it or take their fields from it.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum

import msgspec
import xxhash

HEADER = struct.Struct("<QQQIB3xQ")
"""sequence, timestamp_ns, offset, length, kind, 3 zero bytes, checksum; little-endian."""
HEADER_BYTES = HEADER.size
LONGEST = (1 << 32) - 4096
"""Most bytes one entry can describe (a longer discard is several entries)."""

_MARKER_HEAD = struct.Struct("<II")
_MARKER_RANGE = struct.Struct("<QQ")

checksum_of = xxhash.xxh3_64_intdigest
"""Checksum of a payload: XXH3, 64 bits, as an int."""


class Kind(IntEnum):
    """What an entry does to the area."""

    WRITE = 1
    """`payload` goes to `offset`; `length` is its size."""
    DISCARD = 2
    """`length` bytes at `offset` read as zeros from now on; no payload."""
    MARKER = 3
    """Changes nothing: names ranges that every site hashes when its area is at this sequence. Payload:
    `encode_marker`.
    """
    BARRIER = 4
    """Changes nothing: every site has what is before it on stable storage before it writes what is behind
    it.
    """


WRITE = int(Kind.WRITE)
DISCARD = int(Kind.DISCARD)
MARKER = int(Kind.MARKER)
BARRIER = int(Kind.BARRIER)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A write, a discard, a marker or a barrier. `kind` is a plain int (one of `Kind`): cheaper where every
    microsecond counts.

    `payload` is empty in what `EntryQueue.read_index` returns; `length` and `checksum` still describe it.
    """

    sequence: int
    """Place in the stream of the volume, from 1, one more for every entry."""
    timestamp_ns: int
    """When it was issued: nanoseconds since 1970 at the writer."""
    offset: int
    """Byte of the area where it begins, a multiple of 4096 (0 for a marker or a barrier)."""
    length: int
    """Bytes of the area it touches; for a marker the size of its payload, 0 for a barrier."""
    kind: int
    checksum: int
    """`checksum_of(payload)`, also of an empty payload."""
    payload: bytes = b""
    """The bytes; a long one may be a view of bytes that do not change."""

    @property
    def payload_length(self) -> int:
        """Bytes of payload that belong to this entry, also where `payload` was not read."""
        return 0 if self.kind == DISCARD else self.length

    @property
    def end(self) -> int:
        """First byte of the area behind what the entry touches."""
        return self.offset + self.length if self.kind != MARKER else self.offset

    def intact(self) -> bool:
        """Whether the payload is the one that was issued."""
        return len(self.payload) == self.payload_length and checksum_of(self.payload) == self.checksum

    def pack_header(self) -> bytes:
        """The 40 bytes that describe the entry; the payload follows them wherever an entry is written
        whole.
        """
        return HEADER.pack(
            self.sequence, self.timestamp_ns, self.offset, self.length, self.kind, self.checksum
        )

    @classmethod
    def unpack(cls, header: bytes | memoryview, payload: bytes = b"") -> "Entry":
        """The entry of a packed header. ValueError: the size is wrong or the kind unknown. Does not check the
        payload.
        """
        if len(header) != HEADER_BYTES:
            raise ValueError(f"an entry header has {HEADER_BYTES} bytes, not {len(header)}")
        sequence, timestamp_ns, offset, length, kind, checksum = HEADER.unpack(header)
        if kind not in (WRITE, DISCARD, MARKER, BARRIER):
            raise ValueError(f"entry {sequence} has the unknown kind {kind}")
        return cls(sequence, timestamp_ns, offset, length, kind, checksum, payload)


def write_entry(sequence: int, timestamp_ns: int, offset: int, data: bytes) -> Entry:
    """The entry of a write."""
    return Entry(sequence, timestamp_ns, offset, len(data), WRITE, checksum_of(data), data)


_CHECKSUM_OF_NOTHING = checksum_of(b"")


def discard_entry(sequence: int, timestamp_ns: int, offset: int, length: int) -> Entry:
    """The entry of a discard of at most `LONGEST` bytes."""
    return Entry(sequence, timestamp_ns, offset, length, DISCARD, _CHECKSUM_OF_NOTHING)


def barrier_entry(sequence: int, timestamp_ns: int) -> Entry:
    """The entry of a barrier."""
    return Entry(sequence, timestamp_ns, 0, 0, BARRIER, _CHECKSUM_OF_NOTHING)


def marker_entry(
    sequence: int, timestamp_ns: int, ranges: Sequence[tuple[int, int]], leaf_bytes: int
) -> Entry:
    """The entry of a marker: every site hashes `ranges`, (offset, length) in bytes, in leaves of
    `leaf_bytes`.
    """
    payload = encode_marker(ranges, leaf_bytes)
    return Entry(sequence, timestamp_ns, 0, len(payload), MARKER, checksum_of(payload), payload)


def encode_marker(ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> bytes:
    """Payload of a marker: u32 leaf size, u32 count, then u64 offset and u64 length of each range;
    little-endian.
    """
    head = _MARKER_HEAD.pack(leaf_bytes, len(ranges))
    return head + b"".join(_MARKER_RANGE.pack(offset, length) for offset, length in ranges)


def decode_marker(payload: bytes) -> tuple[list[tuple[int, int]], int]:
    """Ranges and leaf size of a marker's payload. ValueError: not such a payload."""
    if len(payload) < _MARKER_HEAD.size:
        raise ValueError(f"a marker's payload has at least {_MARKER_HEAD.size} bytes, not {len(payload)}")
    leaf_bytes, count = _MARKER_HEAD.unpack_from(payload)
    if leaf_bytes == 0 or len(payload) != _MARKER_HEAD.size + count * _MARKER_RANGE.size:
        raise ValueError(
            f"a marker of {count} ranges and leaves of {leaf_bytes} bytes cannot have {len(payload)} bytes"
        )
    return list(_MARKER_RANGE.iter_unpack(payload[_MARKER_HEAD.size :])), leaf_bytes
