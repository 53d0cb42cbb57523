"""What the queue keeps in LMDB: one record an entry, and one record of positions. The bytes are in
docs/queue.md.
"""

import struct
from typing import NamedTuple

import msgspec
import xxhash

from jfs.errors import CorruptionError
from vsap.entry import Entry

FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""In format 2 no entry points into the area."""
KEY = struct.Struct("@Q")
"""Key of an index record: the sequence, in the byte order of the machine (MDB_INTEGERKEY asks for that)."""
RECORD = struct.Struct("<QQIIIB3xQQQ")
"""timestamp_ns, offset, length, segment number, place in the segment, kind, zeros, checksum of the payload,
stream position, check.
"""
VOLUME = struct.Struct("<8sI4x16s")
"""Value of b"volume": magic, format version, volume."""
VOLUME_MAGIC = b"trisiteQ"
STATE = struct.Struct("<QQQQQQQQQIIIBBBxQ")
"""Value of b"state": the fields of `State`, in their order, and the check."""
CHECK = struct.Struct("<Q")
"""The end of a record and of the state: checksum of the key and everything before."""
RECORD_BYTES = KEY.size + RECORD.size + 8
"""Bytes of the index that an entry takes at least (8 are LMDB's)."""

DROP_REASONS = ("", "limit", "full", "crash", "damaged", "asked")


IN_AREA = 0
"""`place` of an entry whose payload is what the area holds there; its segment may be gone."""
SAVED = 1 << 31
"""Added to the `place` of an entry whose payload is in the file of what was saved of its segment."""


class StateDamaged(CorruptionError):
    """The state record is not what was put there."""


def pack_record(key: bytes, *fields: int) -> bytes:
    """The stored bytes of an index record under this key."""
    return _checked(key, RECORD.pack(*fields, 0))


def _checked(key: bytes, packed: bytes) -> bytes:
    """`packed` with the check in its last 8 bytes."""
    body = packed[: -CHECK.size]
    return body + CHECK.pack(xxhash.xxh3_64_intdigest(key + body))


class QueueCounts(NamedTuple):
    """What waits for the far site (sequence > far_durable_sequence). All zero when nothing waits."""

    entries: int
    bytes: int
    """Payload bytes."""
    oldest_sequence: int
    newest_sequence: int
    oldest_timestamp_ns: int


class QueueState(NamedTuple):
    """The positions of the queue at one instant, shared by the two processes."""

    next_sequence: int
    """Sequence of the next entry to be appended."""
    oldest_sequence: int
    """First entry that is in the queue; `next_sequence` when it is empty."""
    eligible_sequence: int
    """Entries up to here may be shipped (P1)."""
    common_flush_sequence: int
    """Entries up to here are on stable storage at A and C (P3)."""
    far_epoch: int
    far_durable_sequence: int
    """The far site has everything up to here durable, as (far_epoch, far_durable_sequence)."""
    dropped_through: int
    """Entries up to here were dropped before the far site had them (0: never); a gap for the shipper."""
    far_site: bool
    """False: there is no far site, far_durable_sequence follows what is appended."""
    trusted: bool
    """False: the host crashed and entries were lost (P4), until `acknowledge_loss`."""
    drop_reason: str
    """Why entries were dropped last: "", "limit", "full", "crash", "damaged" or "asked"."""


class Record(NamedTuple):
    """An index record: an entry without its payload, and where that is."""

    timestamp_ns: int
    offset: int
    length: int
    segment: int
    place: int
    """Byte of the segment file where the payload begins; IN_AREA, or with SAVED."""
    kind: int
    checksum: int
    stream_bytes: int
    """Payload bytes of all entries before this one since the queue was made: what waits is a difference of
    two.
    """

    @classmethod
    def unpack(cls, value: bytes) -> "Record":
        """The record of stored bytes, unchecked: for figures and searches."""
        return cls(*RECORD.unpack(value)[:-1])

    @classmethod
    def verified(cls, key: bytes, value: bytes) -> "Record":
        """The record of stored bytes; CorruptionError where they are not what was put under this key."""
        if len(value) != RECORD.size or _checked(key, value) != value:
            raise CorruptionError(f"the index record of entry {KEY.unpack(key)[0]} is damaged")
        return cls.unpack(value)

    @property
    def in_segment(self) -> bool:
        """Whether the payload is where it was appended."""
        return IN_AREA < self.place < SAVED

    def packed(self, key: bytes, place: int) -> bytes:
        """The stored bytes of this record under its key, with the payload at another place."""
        return pack_record(key, *self._replace(place=place))

    def entry(self, sequence: int, payload: bytes = b"") -> Entry:
        """The entry this record stands for."""
        return Entry(sequence, self.timestamp_ns, self.offset, self.length, self.kind, self.checksum, payload)


class State(msgspec.Struct):
    """The positions of the queue, as they are stored. `QueueState` in vsap.queue is what callers see."""

    next_sequence: int = 1
    eligible_sequence: int = 0
    common_flush_sequence: int = 0
    far_epoch: int = 0
    far_durable_sequence: int = 0
    dropped_through: int = 0
    stream_bytes: int = 0
    """Payload bytes appended since the queue was made."""
    oldest_sequence: int = 1
    """Sequence of the first index record; `next_sequence` when there is none."""
    oldest_stream_bytes: int = 0
    """`stream_bytes` of the first index record; the state's own when there is none."""
    first_segment: int = 1
    """Segments below this are removed."""
    tail_segment: int = 1
    tail_place: int = 0
    """Where the next payload goes; 0: the tail segment does not exist yet."""
    far_site: int = 1
    untrusted: int = 0
    drop_reason: int = 0
    """Index in DROP_REASONS."""

    def pack(self) -> bytes:
        """The stored bytes."""
        packed = STATE.pack(
            self.next_sequence,
            self.eligible_sequence,
            self.common_flush_sequence,
            self.far_epoch,
            self.far_durable_sequence,
            self.dropped_through,
            self.stream_bytes,
            self.oldest_sequence,
            self.oldest_stream_bytes,
            self.first_segment,
            self.tail_segment,
            self.tail_place,
            self.far_site,
            self.untrusted,
            self.drop_reason,
            0,
        )
        return _checked(b"state", packed)

    @classmethod
    def unpack(cls, data: bytes) -> "State":
        """The state of stored bytes; StateDamaged where they are not what was put there."""
        if len(data) != STATE.size:
            raise StateDamaged("the state record of the queue is damaged")
        *fields, check = STATE.unpack(data)
        if check != xxhash.xxh3_64_intdigest(b"state" + data[: -CHECK.size]):
            raise StateDamaged("the state record of the queue is damaged")
        return cls(*fields)

    @property
    def held_bytes(self) -> int:
        """What the entries in the queue weigh: payload, and index."""
        return (
            self.stream_bytes
            - self.oldest_stream_bytes
            + (self.next_sequence - self.oldest_sequence) * RECORD_BYTES
        )

    def public(self) -> QueueState:
        """What callers see."""
        return QueueState(
            self.next_sequence,
            self.oldest_sequence,
            self.eligible_sequence,
            self.common_flush_sequence,
            self.far_epoch,
            self.far_durable_sequence,
            self.dropped_through,
            bool(self.far_site),
            not self.untrusted,
            DROP_REASONS[self.drop_reason],
        )
