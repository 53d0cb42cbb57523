"""The entry queue: every write of the stream that the far site does not hold yet (P2 to P4).

LMDB holds a small record an entry, segment files hold the payloads. Neither is synced at a commit: what is
appended survives the death of the process, not of the host. See docs/queue.md.
"""

import errno
from collections.abc import Callable, Sequence

import lmdb

from jfs.errors import CorruptionError, DeviceError
from vsap.entry import Entry
from vsap.index import DROP_REASONS, KEY, QueueCounts, QueueState, Record, State
from vsap.pointing import PointingQueue
from vsap.queue_files import Transaction, is_full
from vsap.records import PayloadMoved, place_payloads

__all__ = ["EntryQueue", "QueueCounts", "QueueState"]

RESERVED_AHEAD = 1 << 20
"""Sequences recorded durably as possibly issued, at a time: one fsync a million entries."""
TRIM_BATCH = 2048
"""Entries one transaction of `trim` deletes: the appender waits for about a millisecond."""
_REBUILD_FACTOR = 4


class _Full(Exception):
    """The host's disk (or LMDB's map) has no room."""


class EntryQueue(PointingQueue):
    """The queue of one volume at the writing site. One process appends; another may read, trim and record
    positions.

    Methods never wait for the disk, but take LMDB's writer lock for a moment. They may be called from a
    worker thread, appends from one thread only. A process opens a queue directory once at a time.
    """

    # --- positions

    def _change(self, deed: str, change: Callable[[State], None]) -> State:
        with self._refusals(deed), self._environment.begin(write=True) as txn:
            state = self._state(txn)
            change(state)
            self._put_state(txn, state)
        return state

    def state(self) -> QueueState:
        """All positions, read afresh (the other process may have moved them); some microseconds."""
        with self._refusals("read"), self._environment.begin() as txn:
            return self._state(txn).public()

    @property
    def next_sequence(self) -> int:
        """Sequence of the next entry, as the appending process knows it."""
        return self._next

    @property
    def trusted(self) -> bool:
        """`state().trusted`."""
        return self.state().trusted

    def set_progress(self, eligible_sequence: int, common_flush_sequence: int) -> None:
        """Records up to where entries may be shipped, and a flush common to A and C; neither moves back."""

        def change(state: State) -> None:
            state.eligible_sequence = max(state.eligible_sequence, eligible_sequence)
            state.common_flush_sequence = max(state.common_flush_sequence, common_flush_sequence)

        self._change("write to", change)

    def set_eligible(self, sequence: int) -> None:
        """Records that entries up to `sequence` may be shipped; never moves back."""
        self.set_progress(sequence, 0)

    def set_common_flush(self, sequence: int) -> None:
        """Records a flush common to A and C; never moves back."""
        self.set_progress(0, sequence)

    def set_far_durable(self, epoch: int, sequence: int) -> None:
        """Records what the far site holds durably; a lower epoch, or a lower sequence of the same, is
        ignored.

        Never beyond what was appended.
        """

        def change(state: State) -> None:
            known = (state.far_epoch, state.far_durable_sequence)
            told = (epoch, min(sequence, state.next_sequence - 1))
            if state.far_site:
                state.far_epoch, state.far_durable_sequence = max(known, told)

        self._change("write to", change)

    def set_far_site(self, exists: bool) -> None:
        """Says whether there is a far site; without one `far_durable_sequence` follows the appends.

        When there is one again nothing is known of it: its position is (0, 0) until `set_far_durable`.
        """

        def change(state: State) -> None:
            if not exists:
                state.far_durable_sequence = state.next_sequence - 1
            elif not state.far_site:
                state.far_epoch = state.far_durable_sequence = 0
            state.far_site = int(exists)

        self._change("write to", change)

    def acknowledge_loss(self) -> None:
        """The difference copies that replace what a crash lost are on record elsewhere: the queue is trusted
        again.
        """

        def change(state: State) -> None:
            state.untrusted = 0

        self._change("write to", change)

    # --- appending

    def append_batch(self, entries: Sequence[Entry], *, eligible_sequence: int | None = None) -> None:
        """Commits entries in one transaction; their sequences continue `next_sequence` (else ValueError).

        When they outgrow `limit_bytes` the queue is dropped up to the common flush instead, and says so in
        `state().dropped_through`. DeviceError: the directory cannot take them even after that; nothing was
        appended.
        """
        if not entries:
            return
        last = entries[-1].sequence
        if last >= self._condition.ceiling:
            self._condition.reserve(last + RESERVED_AHEAD)
        try:
            self._append(entries, eligible_sequence)
        except _Full as full:
            if not self._make_room():
                raise self._refused("append to", OSError(errno.ENOSPC, str(full))) from full
            try:
                self._append(entries, eligible_sequence)
            except _Full as again:
                raise self._refused("append to", OSError(errno.ENOSPC, str(again))) from again
            finally:
                self._keep_spare()
        self._next = last + 1

    def _append(self, entries: Sequence[Entry], eligible_sequence: int | None) -> None:
        removed: list[int] = []
        ends: dict[int, int] = {}
        try:
            overwritten = self._overwritten(entries)
            with self._environment.begin(write=True) as txn:
                state = self._state(txn)
                if state.next_sequence != entries[0].sequence:
                    raise ValueError(
                        f"entry {entries[0].sequence} cannot follow entry {state.next_sequence - 1}"
                    )
                # The payload is written inside the transaction: the other process may have moved the tail.
                records = place_payloads(self._segments, self._segment_bytes, state, entries)
                txn.cursor(self._index).putmulti(records, append=True)
                if eligible_sequence is not None and eligible_sequence > state.eligible_sequence:
                    state.eligible_sequence = eligible_sequence
                if not state.far_site:
                    state.far_durable_sequence = state.next_sequence - 1
                if overwritten:
                    lost, reason = self._save(txn, overwritten, ends)
                    if lost:
                        removed += self._drop(txn, state, lost, reason)
                if state.held_bytes > self.limit_bytes:
                    removed += self._drop(txn, state, state.common_flush_sequence, "limit")
                self._put_state(txn, state)
        except (lmdb.Error, OSError, DeviceError) as error:
            self._segments.cut_saved(ends)
            if isinstance(error, DeviceError):
                raise
            if is_full(error):
                raise _Full(str(error)) from error
            raise self._refused("append to", error) from error
        for sequence in overwritten:
            self._pointers.remove(sequence)
        if removed:
            self._segments.remove(removed)

    def _make_room(self) -> bool:
        """Drops what may be dropped because the host's disk is full; whether that gave anything back."""
        (self.directory / "spare").unlink(missing_ok=True)
        held = self.state().oldest_sequence
        self._drop_now("full")
        return self.state().oldest_sequence > held

    # --- deleting

    def trim(self, *, limit_entries: int = 100_000) -> int:
        """Deletes entries that nobody needs any more (P3), in short transactions; returns how many."""
        deleted = 0
        while deleted < limit_entries:
            some = self._trim_some(min(TRIM_BATCH, limit_entries - deleted))
            if not some:
                break
            deleted += some
        if deleted:
            # A reader that was killed would otherwise keep its pages for ever.
            self._environment.reader_check()
        return deleted

    def _trim_some(self, most: int) -> int:
        with self._refusals("trim"):
            with self._environment.begin() as txn:
                state = self._state(txn)
            if min(state.far_durable_sequence, state.common_flush_sequence) < state.oldest_sequence:
                return 0
            with self._environment.begin(write=True) as write:
                state = self._state(write)
                through = min(state.far_durable_sequence, state.common_flush_sequence)
                oldest = state.oldest_sequence
                removed = self._forget(write, state, min(through, oldest + most - 1))
                self._put_state(write, state)
            self._segments.remove(removed)
        return state.oldest_sequence - oldest

    def drop(self, through: int) -> int:
        """Gives up entries up to `through` that D may lack, but never one that P3 needs. Returns
        `dropped_through`.
        """
        return self._drop_now("asked", through)

    def _drop_now(self, reason: str, through: int | None = None) -> int:
        with self._refusals("drop entries of"):
            with self._environment.begin(write=True) as txn:
                state = self._state(txn)
                limit = state.common_flush_sequence
                removed = self._drop(txn, state, limit if through is None else min(through, limit), reason)
                self._put_state(txn, state)
            self._segments.remove(removed)
        return state.dropped_through

    def _drop(self, txn: Transaction, state: State, through: int, reason: str) -> range:
        through = min(through, state.next_sequence - 1)
        if through >= state.oldest_sequence and through > state.far_durable_sequence:
            state.dropped_through = max(state.dropped_through, through)
            state.drop_reason = DROP_REASONS.index(reason)
        return self._forget(txn, state, through)

    def _forget(self, txn: Transaction, state: State, through: int) -> range:
        """Deletes the records up to `through`; returns the segments to be removed once that is committed."""
        gone = min(through, state.next_sequence - 1) - state.oldest_sequence + 1
        if gone <= 0:
            return range(0)
        kept = state.next_sequence - state.oldest_sequence - gone
        cursor = txn.cursor(self._index)
        if gone > TRIM_BATCH and gone > _REBUILD_FACTOR * kept:
            # Giving whole pages back costs a fraction of deleting record by record.
            records = list(cursor.iternext()) if kept and cursor.set_range(KEY.pack(through + 1)) else []
            txn.drop(self._index, delete=False)
            cursor = txn.cursor(self._index)
            cursor.putmulti(records, append=True)
        else:
            cursor.first()
            for _ in range(gone):
                cursor.delete()
        state.oldest_sequence += gone
        first = state.first_segment
        if kept and cursor.first():
            record = Record.unpack(cursor.value())
            state.oldest_stream_bytes, state.first_segment = record.stream_bytes, record.segment
        else:
            # Empty: the appender begins a new segment, so that this one can go too.
            state.oldest_stream_bytes = state.stream_bytes
            if state.tail_place:
                state.tail_segment, state.tail_place = state.tail_segment + 1, 0
            state.first_segment = state.tail_segment
        return range(first, state.first_segment)

    def reset(self, next_sequence: int) -> None:
        """Empties the queue altogether and numbers on from `next_sequence`: a new epoch, or a new start."""
        self._condition.reserve(max(self._condition.ceiling, next_sequence + RESERVED_AHEAD))
        with self._refusals("reset"):
            with self._environment.begin(write=True) as txn:
                state = self._state(txn)
                removed = self._forget(txn, state, state.next_sequence - 1)
                state.next_sequence = state.oldest_sequence = next_sequence
                state.eligible_sequence = state.common_flush_sequence = next_sequence - 1
                state.dropped_through = next_sequence - 1
                state.drop_reason = DROP_REASONS.index("asked")
                state.far_durable_sequence = min(state.far_durable_sequence, next_sequence - 1)
                if not state.far_site:
                    state.far_durable_sequence = next_sequence - 1
                self._put_state(txn, state)
            self._segments.remove(removed)
        self._next = next_sequence
        self._forget_pointers()

    # --- reading

    def counts(self) -> QueueCounts:
        """What waits for the far site; costs the same however much waits."""
        with self._refusals("read"), self._environment.begin() as txn:
            state = self._state(txn)
            cursor = txn.cursor(self._index)
            first = max(state.far_durable_sequence + 1, state.oldest_sequence)
            if not cursor.set_range(KEY.pack(first)):
                return QueueCounts(0, 0, 0, 0, 0)
            record = Record.unpack(cursor.value())
        return QueueCounts(
            state.next_sequence - first,
            state.stream_bytes - record.stream_bytes,
            first,
            state.next_sequence - 1,
            record.timestamp_ns,
        )

    def waiting(self, offset: int, length: int) -> bool:
        """Whether an entry the far site lacks touches these bytes of the area. Scans the index: 0.4 us an
        entry.
        """
        with self._refusals("read"):
            return self._reader.touched(self.state().far_durable_sequence + 1, offset, length)

    def read_index(
        self, from_sequence: int, limit_entries: int = 65536, *, verify: bool = False
    ) -> list[Entry]:
        """The same as `read` without payloads: for figures, and, with `verify`, for what is decided by them.

        CorruptionError (only with `verify`): a record is not what was appended.
        """
        with self._refusals("read"):
            rows = self._reader.rows(from_sequence, 1 << 62, limit_entries, verify=verify)
        return [record.entry(sequence) for sequence, record in rows]

    def read_these(self, sequences: Sequence[int]) -> list[Entry]:
        """The entries with these sequences (ascending), with payload, verified; without those that left the
        queue.

        CorruptionError: a record or payload is not what was appended.
        """
        return self._read(lambda: self._reader.rows_of(sequences))

    def read(self, from_sequence: int, limit_bytes: int = 2 << 20, limit_entries: int = 4096) -> list[Entry]:
        """Entries from `from_sequence` on, with payload, verified; one if there is one, more as far as they
        fit.

        The first has a higher sequence than asked for when those before it were trimmed or dropped (a gap).
        Not bounded by `eligible_sequence`: the shipper does that. CorruptionError: a record or payload is not
        what was appended.
        """
        return self._read(lambda: self._reader.rows(from_sequence, limit_bytes, limit_entries))

    def _read(self, find: Callable[[], list[tuple[int, Record]]]) -> list[Entry]:
        before: list[tuple[int, Record]] = []
        while True:
            with self._refusals("read"):
                rows = find()
                if not rows:
                    return []
                try:
                    return self._reader.with_payloads(rows)
                except (FileNotFoundError, PayloadMoved) as error:
                    # The other process dropped or moved them after the index was read; it says now what is
                    # where.
                    if rows == before:
                        lost = isinstance(error, FileNotFoundError)
                        what = f"has lost segment {rows[0][1].segment}" if lost else "has lost a payload"
                        raise CorruptionError(f"the queue in {self.directory} {what}: {error}") from error
                    before = rows
