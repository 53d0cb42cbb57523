"""Sets and the bytes of their journal, without any I/O; docs/set_journal.md is held to the tables here.

A *set* is what a site applies as one: SET_BEGIN, any number of SET_DATA and SET_DISCARD, perhaps one
SET_MARKER, SET_COMMIT. It counts only when it is whole: the commit frame is there and its numbers are those
of the frames before it.
"""

import struct
from typing import Final, NamedTuple

import xxhash

from replication.bodies import (
    SetBegin,
    SetKind,
    decode_data,
    decode_discard,
    decode_marker,
    decode_set_begin,
    decode_set_commit,
)
from replication.errors import RemoteProtocolError
from replication.frames import Frame, FrameType
from replication.position import NOWHERE, Position

SEGMENT_MAGIC: Final = b"TRISSETS"
SLOT_MAGIC: Final = b"TRISPLAC"
JOURNAL_VERSION: Final = 1

SEGMENT_FIELDS: Final = (
    ("magic", "8s", "the bytes `TRISSETS`"),
    ("version", "I", "format version, 1"),
    ("reserved", "I", "0"),
    ("volume", "16s", "uuid of the volume"),
    ("segment", "Q", "number of this segment; the file's name in hexadecimal"),
    ("unused", "16s", "zeros"),
    ("checksum", "Q", "XXH3-64, seed 0, of the 56 bytes before it"),
)
"""(name, struct code, meaning) of the header of a segment file, big-endian, no padding."""

SLOT_FIELDS: Final = (
    ("magic", "8s", "the bytes `TRISPLAC`"),
    ("version", "I", "format version, 1"),
    ("reserved", "I", "0"),
    ("volume", "16s", "uuid of the volume"),
    ("generation", "Q", "one more than in the slot written before"),
    ("epoch", "Q", "epoch of the position; 0: the area holds no state of the stream"),
    ("sequence", "Q", "sequence of the position"),
    ("segment", "Q", "segment in which the first set that is not applied and flushed begins"),
    ("offset", "Q", "byte of that segment where it begins"),
    ("checksum", "Q", "XXH3-64, seed 0, of the 72 bytes before it"),
)
"""(name, struct code, meaning) of a slot of the `position` file, big-endian, no padding."""

TIME_FIELDS: Final = (
    (
        "timestamp",
        "Q",
        "of when the state at the position is, ns of the Unix clock; 0: not known",
    ),
    ("checksum", "Q", "XXH3-64, seed 0, of the slot and the timestamp, 88 bytes"),
)
"""The same of what follows a slot: it may be missing or wrong, and is only told to people."""

_SEGMENT: Final = struct.Struct(">" + "".join(code for _, code, _ in SEGMENT_FIELDS))
_SLOT: Final = struct.Struct(">" + "".join(code for _, code, _ in SLOT_FIELDS))
_TIME: Final = struct.Struct(">" + "".join(code for _, code, _ in TIME_FIELDS))
SEGMENT_HEADER_BYTES: Final = _SEGMENT.size
SLOT_BYTES: Final = 512
"""Distance of the two slots: one write of a disk's sector can tear only one of them."""

CONTENT_TYPES: Final = frozenset({FrameType.SET_DATA, FrameType.SET_DISCARD, FrameType.SET_MARKER})
SET_TYPES: Final = CONTENT_TYPES | {FrameType.SET_BEGIN, FrameType.SET_COMMIT}
STREAM_KINDS: Final = frozenset({SetKind.ENTRIES, SetKind.COALESCED})
"""Sets made of consecutive entries; the others may move a site to any position."""


class Place(NamedTuple):
    """A byte of the journal: places compare in the order in which they were written."""

    segment: int
    offset: int


class Slot(NamedTuple):
    """Where the area stands (applied and flushed), and where the sets after that begin.

    `timestamp_ns`: nothing written later is in it; 0 where that is not known.
    """

    generation: int
    position: Position
    place: Place
    timestamp_ns: int = 0


class SetHead(NamedTuple):
    """What is known of a whole set without its content."""

    before: Position
    after: Position
    kind: SetKind
    timestamp_ns: int
    """Timestamp of the newest entry, ns of the Unix clock."""
    frames: int
    data_bytes: int


def pack_segment_header(volume: bytes, segment: int) -> bytes:
    """The first bytes of a segment file."""
    return _sealed(_SEGMENT.pack(SEGMENT_MAGIC, JOURNAL_VERSION, 0, volume, segment, bytes(16), 0))


def is_segment_header(header: bytes, volume: bytes, segment: int) -> bool:
    """Whether these bytes begin segment number `segment` of the volume's journal."""
    return header == pack_segment_header(volume, segment)


def pack_slot(volume: bytes, slot: Slot) -> bytes:
    """The bytes of a slot of the `position` file, and of the time behind it."""
    raw = _sealed(
        _SLOT.pack(SLOT_MAGIC, JOURNAL_VERSION, 0, volume, slot.generation, *slot.position, *slot.place, 0)
    )
    return _sealed(raw + _TIME.pack(slot.timestamp_ns, 0))


def _time_behind(raw: bytes) -> int:
    """The timestamp in a slot and what follows it; 0 where none is there."""
    if len(raw) < _SLOT.size + _TIME.size or raw != _sealed(raw):
        return 0
    timestamp_ns: int = _TIME.unpack(raw[_SLOT.size :])[0]
    return timestamp_ns


def newest_slot(data: bytes, volume: bytes) -> Slot | None:
    """The valid slot with the highest generation in the content of the `position` file, or None.

    ValueError: a slot is of another volume or of a newer format.
    """
    best: Slot | None = None
    for start in (0, SLOT_BYTES):
        raw = data[start : start + _SLOT.size]
        if len(raw) < _SLOT.size or raw != _sealed(raw):
            continue
        magic, version, _, owner, generation, epoch, sequence, segment, offset, _ = _SLOT.unpack(raw)
        if magic != SLOT_MAGIC:
            continue
        if version != JOURNAL_VERSION:
            raise ValueError(f"its format has version {version}, this release reads {JOURNAL_VERSION}")
        if owner != volume:
            raise ValueError("it belongs to another volume")
        if best is None or generation > best.generation:
            timestamp_ns = _time_behind(data[start : start + _SLOT.size + _TIME.size])
            best = Slot(generation, Position(epoch, sequence), Place(segment, offset), timestamp_ns)
    return best


def _sealed(raw: bytes) -> bytes:
    """The bytes with their last eight replaced by the checksum of the others."""
    return raw[:-8] + xxhash.xxh3_64_intdigest(raw[:-8]).to_bytes(8, "big")


class SetReader:
    """Follows a sequence of set frames and says when a set is whole; refuses what is no set, or not the next.

    `tail` is the position after the last whole set. After a RemoteProtocolError, `abandon` must be called.
    """

    def __init__(self, tail: Position, size_bytes: int) -> None:
        self.tail = tail
        self._size_bytes = size_bytes
        self._begin: SetBegin | None = None
        self._epoch = 0
        self._last = 0
        self._frames = 0
        self._data_bytes = 0
        self._marked = False

    def abandon(self) -> None:
        """Forget the frames of a set that is not whole."""
        self._begin = None

    def feed(self, frame: Frame) -> SetHead | None:
        """Take the next frame; the head of the set when this was its commit.

        RemoteProtocolError: the frame does not belong here, or reaches outside of the area.
        """
        if frame.type is FrameType.SET_BEGIN:
            self._open(frame)
            return None
        begin = self._begin
        if begin is None:
            raise RemoteProtocolError(f"a {frame.type.name} frame outside of a set")
        if frame.epoch != self._epoch:
            raise RemoteProtocolError(
                f"a {frame.type.name} frame of epoch {frame.epoch} in a set of {self._epoch}"
            )
        if frame.type in CONTENT_TYPES:
            self._check_content(frame, begin)
            self._frames += 1
            return None
        if frame.type is FrameType.SET_COMMIT:
            return self._close(frame, begin)
        raise RemoteProtocolError(f"a {frame.type.name} frame in a set")

    def _open(self, frame: Frame) -> None:
        if self._begin is not None:
            raise RemoteProtocolError("a SET_BEGIN frame before the commit of the set before")
        begin = decode_set_begin(frame)
        before = Position(begin.from_epoch, begin.from_sequence)
        if before != self.tail:
            raise RemoteProtocolError(f"a set that builds on {before}, while this site is at {self.tail}")
        if frame.epoch < max(before.epoch, 1):
            raise RemoteProtocolError(f"a set of epoch {frame.epoch} that builds on {before}")
        if begin.kind is SetKind.PART and before != NOWHERE:
            raise RemoteProtocolError("part of an initial copy for a site that holds a state of the stream")
        if begin.kind in STREAM_KINDS and (before == NOWHERE or frame.sequence <= before.sequence):
            raise RemoteProtocolError(f"a set of entries from {before} to sequence {frame.sequence}")
        self._begin, self._epoch, self._last = begin, frame.epoch, frame.sequence
        self._frames = self._data_bytes = 0
        self._marked = False

    def _check_content(self, frame: Frame, begin: SetBegin) -> None:
        if self._marked:
            raise RemoteProtocolError("a frame behind the marker of a set")
        if begin.kind in STREAM_KINDS and not begin.from_sequence < frame.sequence <= self._last:
            raise RemoteProtocolError(f"entry {frame.sequence} in a set up to sequence {self._last}")
        if frame.type is FrameType.SET_DATA:
            data = decode_data(frame)
            length = len(data.data)
            self._data_bytes += length
            end = data.offset + length
        elif frame.type is FrameType.SET_DISCARD:
            discard = decode_discard(frame)
            end = discard.offset + discard.length
        else:
            self._check_marker(frame, begin)
            end = max((offset + length for offset, length in decode_marker(frame).ranges), default=0)
        if end > self._size_bytes:
            raise RemoteProtocolError(f"a {frame.type.name} frame that ends at byte {end}, behind the area")

    def _check_marker(self, frame: Frame, begin: SetBegin) -> None:
        """A marker means the state at exactly its sequence: it stands only at the end of a set of entries."""
        if begin.kind not in STREAM_KINDS or frame.sequence != self._last:
            raise RemoteProtocolError(f"marker {frame.sequence} inside of a set up to sequence {self._last}")
        self._marked = True

    def _close(self, frame: Frame, begin: SetBegin) -> SetHead:
        commit = decode_set_commit(frame)
        if (commit.frames, commit.bytes) != (self._frames, self._data_bytes):
            raise RemoteProtocolError(
                f"a set of {self._frames} frames and {self._data_bytes} bytes that should have had "
                f"{commit.frames} and {commit.bytes}"
            )
        if begin.kind in STREAM_KINDS and frame.sequence != self._last:
            raise RemoteProtocolError(f"a set up to sequence {self._last} committed as {frame.sequence}")
        after = NOWHERE if begin.kind is SetKind.PART else Position(frame.epoch, frame.sequence)
        before, self.tail, self._begin = self.tail, after, None
        return SetHead(before, self.tail, begin.kind, begin.timestamp_ns, commit.frames, commit.bytes)
