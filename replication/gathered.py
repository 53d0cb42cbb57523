"""A long queue as one set: of what was written again only the last version travels.

In two steps, so that memory is bounded whatever waits. First the *positions* of consecutive entries are
gathered from the index of the queue, until a limit or a marker, which ends its set. Then, while the set is
sent, the payloads of what nothing later in the set wrote over are read from the queue, a portion at a time.
The far site applies the set as one, so it never shows the order in which these parts were sent.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from replication.bodies import Marker
from replication.ranges import Covered
from replication.set_builder import Piece
from vsap.entry import DISCARD, MARKER, WRITE, Entry, decode_marker

GATHERED_BYTES: Final = 256 << 20
"""Data that travels as one set, at most. The far site needs as much room for it in its journal, and what was
sent of it is lost when the link breaks.
"""
GATHERED_ENTRIES: Final = 1 << 19
"""Entries of one set: their positions are in memory, 12 bytes each, and 20 for each part that is left."""
SCAN_ENTRIES: Final = 8192
"""Entries that are gathered in one step."""
PORTION_BYTES: Final = 2 << 20
PORTION_ENTRIES: Final = 1024
"""Payloads that are read at once."""


class EntriesGone(Exception):
    """Entries left the queue before they were sent. The argument is the first one's sequence."""


class PositionedQueue(Protocol):
    """The part of vsap.queue.EntryQueue that gathering needs."""

    def read_index(
        self, from_sequence: int, limit_entries: int = ..., *, verify: bool = ...
    ) -> list[Entry]: ...
    def read_these(self, sequences: Sequence[int]) -> list[Entry]: ...


class Part(NamedTuple):
    """Bytes of the area that nothing later in the set wrote to, and the entry that left them so."""

    sequence: int
    offset: int
    length: int


class Gathered:
    """Consecutive entries by their positions, at most `limit_entries` of them and about `limit_bytes` of data
    that has to travel.
    """

    def __init__(
        self, first: int, *, limit_bytes: int = GATHERED_BYTES, limit_entries: int = GATHERED_ENTRIES
    ) -> None:
        self.first = first
        self.last = first - 1
        """Sequence of the newest entry."""
        self.timestamp_ns = 0
        """Of the newest entry."""
        self.oldest_timestamp_ns = 0
        self.entry_bytes = 0
        """Data of all entries."""
        self.data_bytes = 0
        """Data that has to travel, at most: what was written over counts once."""
        self.marked = False
        """Whether the newest entry is a marker."""
        self._limit_bytes = limit_bytes
        self._limit_entries = limit_entries
        self._written = Covered()
        self._offsets = array("Q")
        self._lengths = array("I")  # 0: changes nothing
        self._parts: tuple[array[int], array[int], array[int]] | None = None

    @property
    def entries(self) -> int:
        """How many there are."""
        return self.last - self.first + 1

    @property
    def full(self) -> bool:
        """Whether the set ends here."""
        return (
            self.marked or self.data_bytes >= self._limit_bytes or len(self._offsets) >= self._limit_entries
        )

    def gather(self, queue: PositionedQueue, last: int) -> None:
        """Some more entries, up to `last`; blocks for some 50 ms. EntriesGone; what the queue raises."""
        found = queue.read_index(self.last + 1, SCAN_ENTRIES, verify=True)
        if not found or found[0].sequence != self.last + 1:
            raise EntriesGone(self.last + 1)
        for entry in found:
            if self.full or entry.sequence > last:
                break
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        if not self._offsets:
            self.oldest_timestamp_ns = entry.timestamp_ns
        self._offsets.append(entry.offset)
        self._lengths.append(entry.length if entry.kind in (WRITE, DISCARD) else 0)
        if entry.kind == WRITE:
            self.data_bytes += sum(length for _, length in self._written.add(entry.offset, entry.length))
        self.last, self.timestamp_ns = entry.sequence, entry.timestamp_ns
        self.entry_bytes += entry.payload_length
        self.marked = entry.kind == MARKER

    def settle(self) -> None:
        """Find what is left of each entry: the last writer of a byte wins. Nothing is gathered afterwards."""
        covered = Covered()
        sequences, offsets, lengths = array("Q"), array("Q"), array("I")
        for index in range(len(self._offsets) - 1, -1, -1):
            if self._lengths[index]:
                for offset, length in covered.add(self._offsets[index], self._lengths[index]):
                    sequences.append(self.first + index)
                    offsets.append(offset)
                    lengths.append(length)
        for column in (sequences, offsets, lengths):
            column.reverse()
        self._parts = sequences, offsets, lengths
        self._written = Covered()
        self._offsets, self._lengths = array("Q"), array("I")

    def portions(self) -> Iterator[list[Part]]:
        """What is left, in the order of the entries, as much at a time as is read at once."""
        assert self._parts is not None, "settle() first"
        portion: list[Part] = []
        size = 0
        for part in map(Part, *self._parts):
            if portion and (size + part.length > PORTION_BYTES or len(portion) >= PORTION_ENTRIES):
                yield portion
                portion, size = [], 0
            portion.append(part)
            size += part.length
        if portion:
            yield portion


def left_of(queue: PositionedQueue, gathered: Gathered) -> Iterator[Piece]:
    """What is left of the entries, with its data, read as it goes. EntriesGone; what the queue raises."""
    for portion in gathered.portions():
        entries = _read(queue, list(dict.fromkeys(part.sequence for part in portion)))
        for part in portion:
            entry = entries[part.sequence]
            start = part.offset - entry.offset
            data = None if entry.kind == DISCARD else memoryview(entry.payload)[start : start + part.length]
            yield Piece(part.sequence, entry.timestamp_ns, part.offset, part.length, data)


def marker_of(queue: PositionedQueue, gathered: Gathered) -> Marker | None:
    """The marker at the end of the entries, if there is one. EntriesGone; what the queue raises."""
    if not gathered.marked:
        return None
    ranges, leaf_bytes = decode_marker(_read(queue, [gathered.last])[gathered.last].payload)
    return Marker(gathered.timestamp_ns, leaf_bytes, tuple(ranges))


def _read(queue: PositionedQueue, sequences: Sequence[int]) -> dict[int, Entry]:
    found = {entry.sequence: entry for entry in queue.read_these(sequences)}
    for sequence in sequences:
        if sequence not in found:
            raise EntriesGone(sequence)
    return found
