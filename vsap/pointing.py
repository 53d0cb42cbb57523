"""Entries that point into the area instead of holding a copy (design.md, section 4).

Every entry begins with a copy: what a killed process left in the queue is written to the area again from it
(P3). Where entries wait long for the far site, most of what they wrote still stands in the area. Such a
segment is looked through once it is older than POINT_SECONDS and durable at A and C; if nearly all of it
stands, its entries point into the area from then on, the little that does not is saved in a file beside it,
and the segment is removed. Before bytes that an entry points to are written over, they are saved there as
well, in the transaction that enters the write; so no entry ever loses its payload, and its checksum is proof
of that.
"""

import time
from collections.abc import Sequence
from typing import Final

import lmdb

from jfs.errors import CorruptionError
from vsap.entry import DISCARD, WRITE, Entry
from vsap.index import IN_AREA, KEY, SAVED, Record, State
from vsap.pointers import Pointers
from vsap.queue_files import QueueFiles, Transaction

POINT_SECONDS: Final = 10.0
"""Entries that have waited so long may point into the area."""
LOOK_SECONDS: Final = 1.0
"""Pause between two looks for such entries."""
LEAST_BYTES: Final = 1 << 16
"""A shorter payload is not worth a pointer."""
KEPT_SHARE: Final = 16
"""A segment is given up when at most one byte in so many has to be kept."""
STEP_BYTES: Final = 1 << 20
"""What one step compares with the area: half a millisecond."""
STEP_ENTRIES: Final = 256
MOST_POINTERS: Final = 1 << 16
MOST_BESIDE: Final = 256
"""Most that point into one mebibyte: more than sixteen do where the same bytes were written there again."""
SAVED_AT_ONCE: Final = 256 << 20
"""What one append saves at most, some tenths of a second: a push of 4 KiB writes, each into another mebibyte
to which an entry points, still is within that.
"""


class _Look:
    """A segment that is looked through: which of its payloads stand in the area."""

    def __init__(self, segment: int) -> None:
        self.segment = segment
        self.standing = Pointers()
        self.rows: list[int] = []
        """Sequences of the entries with a payload in the segment."""
        self.standing_bytes = self.kept_bytes = 0

    def examined(self, sequence: int, record: Record, *, stands: bool) -> None:
        """One of its entries: whether the area holds its payload."""
        self.rows.append(sequence)
        if stands:
            self.standing.add(sequence, record.offset, record.length)
            self.standing_bytes += record.length
        else:
            self.kept_bytes += record.length

    def written_over(self, sequence: int) -> None:
        """Bytes of an entry that stood there will be written over."""
        length = self.standing.length_of(sequence)
        self.standing.remove(sequence)
        self.standing_bytes -= length
        self.kept_bytes += length

    @property
    def worth(self) -> bool:
        """Whether little enough has to be kept."""
        return bool(self.standing) and self.kept_bytes * KEPT_SHARE <= self.standing_bytes


class PointingQueue(QueueFiles):
    """The part of the queue that has to do with pointers. All of it is the appending process's."""

    _look: _Look | None = None
    _looked_through = 0
    """Sequence of the last entry that was looked at."""
    _next_look = 0.0
    _known_pointers: Pointers | None = None

    @property
    def _pointers(self) -> Pointers:
        """What entries point to. Read from the index at first: earlier processes may have left some."""
        if self._known_pointers is None:
            self._known_pointers = Pointers()
            for place in self._reader.pointed():
                self._known_pointers.add(*place)
        return self._known_pointers

    # --- before bytes are written over

    def _overwritten(self, entries: Sequence[Entry]) -> list[int]:
        """Entries that point to bytes which `entries` are about to write over."""
        pointers, look = self._pointers, self._look
        if not pointers and look is None:
            return []
        found: set[int] = set()
        for entry in entries:
            if entry.end > entry.offset:
                found.update(pointers.touched(entry.offset, entry.end))
                if look is not None:
                    for sequence in look.standing.touched(entry.offset, entry.end):
                        look.written_over(sequence)
        return sorted(found)

    def _save(self, txn: Transaction, sequences: Sequence[int], ends: dict[int, int]) -> tuple[int, str]:
        """Save what these (ascending) entries point to, the newest first; `ends` learns where what was saved
        of their segments ended before.

        Returns the newest that cannot be kept (0: none) and the reason for a drop: more would have to be
        saved than one append may, or the area no longer has the payload. DeviceError: it cannot be read now.
        """
        room = SAVED_AT_ONCE
        for sequence in reversed(sequences):
            key = KEY.pack(sequence)
            value = txn.get(key, db=self._index)
            if value is None:
                break  # it has left the queue, and so have those before it
            try:
                record = Record.verified(key, value)
            except CorruptionError:
                return sequence, "damaged"
            if record.place != IN_AREA:
                continue
            room -= record.length
            if room < 0:
                return sequence, "limit"
            payload = self._reader.standing(record)
            if payload is None:
                return sequence, "damaged"
            self._move_saved(txn, key, record, payload, ends)
        return 0, ""

    def _move(self, txn: Transaction, key: bytes, record: Record, place: int) -> None:
        txn.put(key, record.packed(key, place), db=self._index)

    def _move_saved(
        self, txn: Transaction, key: bytes, record: Record, payload: bytes, ends: dict[int, int]
    ) -> None:
        place = self._segments.save(record.segment, payload)
        ends.setdefault(record.segment, place)
        self._move(txn, key, record, SAVED + place)

    def _forget_pointers(self) -> None:
        """The queue begins anew."""
        self._look, self._known_pointers, self._looked_through = None, None, 0

    # --- looking for what may point

    def point(self) -> bool:
        """One step: look at what has waited long; whether there is more to look at now.

        Not while an entry is in the queue that the area has refused. DeviceError: the host refuses.
        """
        now = time.monotonic()
        if now < self._next_look:
            return False
        with self._refusals("look through"):
            try:
                if self._step(self._stored_state(), time.time_ns() - int(POINT_SECONDS * 1e9)):
                    return True
            except CorruptionError:
                self._look = None  # whoever ships it will say so
        self._next_look = now + LOOK_SECONDS
        return False

    def _stored_state(self) -> State:
        """All positions, as they are stored."""
        with self._environment.begin() as txn:
            return self._state(txn)

    def _step(self, state: State, written_before_ns: int) -> bool:
        if self._looked_through < state.oldest_sequence - 1:
            self._looked_through = state.oldest_sequence - 1
        if state.first_segment == state.tail_segment:
            return False
        rows = self._reader.rows(self._looked_through + 1, STEP_BYTES, STEP_ENTRIES)
        for sequence, record in rows:
            look = self._look
            if look is not None and record.segment != look.segment:
                self._look = None
                self._give_up(look)
            if (
                record.segment >= state.tail_segment
                or sequence > state.common_flush_sequence
                or record.timestamp_ns >= written_before_ns
            ):
                return False
            if self._look is None:
                self._look = _Look(record.segment)
                if len(self._pointers) >= MOST_POINTERS:
                    self._pointers.forget_below(state.oldest_sequence)
            if record.kind != DISCARD and record.length and record.in_segment:
                self._look.examined(sequence, record, stands=self._may_point(record))
            self._looked_through = sequence
        return bool(rows)

    def _may_point(self, record: Record) -> bool:
        look = self._look
        assert look is not None
        hopeless = look.kept_bytes * KEPT_SHARE > self._segment_bytes
        place = record.offset, record.length
        return (
            record.kind == WRITE
            and record.length >= LEAST_BYTES
            and not hopeless
            and len(self._pointers) + len(look.standing) < MOST_POINTERS
            and self._pointers.most_beside(*place) + look.standing.most_beside(*place) < MOST_BESIDE
            and self._reader.standing(record) is not None
        )

    def _give_up(self, look: _Look) -> None:
        """Let the entries of a segment point into the area and remove it, if that is worth it."""
        if not look.rows:
            # A process that was killed between the commit and the removal left it behind.
            self._segments.give_up(look.segment)
        if not look.worth:
            return
        ends: dict[int, int] = {}
        try:
            with self._environment.begin(write=True) as txn:
                self._move_all(txn, look, ends)
        except (lmdb.Error, OSError, CorruptionError):
            self._segments.cut_saved(ends)
            raise
        self._pointers.take(look.standing)
        self._segments.give_up(look.segment)

    def _move_all(self, txn: Transaction, look: _Look, ends: dict[int, int]) -> None:
        for sequence in look.rows:
            key = KEY.pack(sequence)
            value = txn.get(key, db=self._index)
            if value is None:
                continue  # it has left the queue meanwhile
            record = Record.verified(key, value)
            if sequence in look.standing:
                self._move(txn, key, record, IN_AREA)
            else:
                payload = self._segments.read(record.segment, record.place, record.length)
                self._move_saved(txn, key, record, payload, ends)
