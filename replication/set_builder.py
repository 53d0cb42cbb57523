"""How entries of the queue become sets: pure.

Short queue: the entries as they are, at once. Long queue: overwrites inside the set are coalesced, so a block
that was written ten times travels once; the far site applies the set as one, so time order is kept. A marker
ends its set: it means the state at exactly its sequence.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from replication.bodies import Marker, SetKind
from replication.ranges import Covered
from vsap.entry import DISCARD, MARKER, WRITE, Entry, decode_marker

SHORT_ENTRIES: Final = 32
"""Up to so many entries travel as they are: looking for overwrites would cost more than it saves."""


class Piece(NamedTuple):
    """Bytes of the area as one entry left them; `data` None: zeros."""

    sequence: int
    timestamp_ns: int
    offset: int
    length: int
    data: bytes | memoryview | None


class SetPlan(NamedTuple):
    """A set of consecutive entries, `last` the sequence it leads to."""

    kind: SetKind
    last: int
    timestamp_ns: int
    """Of the newest entry."""
    oldest_timestamp_ns: int
    entries: int
    entry_bytes: int
    pieces: list[Piece]
    marker: Marker | None


def as_piece(entry: Entry) -> Piece:
    """The whole of a write or discard."""
    data = None if entry.kind == DISCARD else entry.payload
    return Piece(entry.sequence, entry.timestamp_ns, entry.offset, entry.length, data)


def coalesce(entries: Sequence[Entry]) -> list[Piece]:
    """What the entries leave behind, as pieces that do not overlap: the last writer of a byte wins.

    Markers and barriers have no effect on the area and are left out.
    """
    covered = Covered()
    pieces: list[Piece] = []
    for entry in reversed(entries):
        if entry.kind not in (WRITE, DISCARD):
            continue
        for offset, length in covered.add(entry.offset, entry.length):
            if length == entry.length:
                pieces.append(as_piece(entry))
                continue
            data: memoryview | None = None
            if entry.kind != DISCARD:
                start = offset - entry.offset
                data = memoryview(entry.payload)[start : start + length]
            pieces.append(Piece(entry.sequence, entry.timestamp_ns, offset, length, data))
    pieces.reverse()
    return pieces


def plan_sets(entries: Sequence[Entry]) -> list[SetPlan]:
    """Consecutive entries as sets: one, or as many as markers demand."""
    plans: list[SetPlan] = []
    first = 0
    for index, entry in enumerate(entries):
        if entry.kind == MARKER:
            plans.append(_plan(entries[first : index + 1]))
            first = index + 1
    if first < len(entries):
        plans.append(_plan(entries[first:]))
    return plans


def _plan(entries: Sequence[Entry]) -> SetPlan:
    last = entries[-1]
    marker: Marker | None = None
    if last.kind == MARKER:
        ranges, leaf_bytes = decode_marker(last.payload)
        marker = Marker(last.timestamp_ns, leaf_bytes, tuple(ranges))
    short = len(entries) <= SHORT_ENTRIES
    writes = [entry for entry in entries if entry.kind in (WRITE, DISCARD)]
    return SetPlan(
        kind=SetKind.ENTRIES if short else SetKind.COALESCED,
        last=last.sequence,
        timestamp_ns=last.timestamp_ns,
        oldest_timestamp_ns=entries[0].timestamp_ns,
        entries=len(entries),
        entry_bytes=sum(entry.payload_length for entry in entries),
        pieces=[as_piece(entry) for entry in writes] if short else coalesce(writes),
        marker=marker,
    )
