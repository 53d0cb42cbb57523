"""The entry queue: every write of the stream that the far site does not hold yet (design section 5, P2-P4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self
from uuid import UUID

from vsap.entry import Entry


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
    """Why entries were dropped last: "", "limit", "full", "crash" or "asked"."""


class EntryQueue:
    """The queue of one volume at the writing site. One process appends; another may read, trim and record positions.

    Methods never wait for the disk, but take LMDB's writer lock for a moment. They may be called from a worker
    thread, appends from one thread only. A process opens a queue directory once at a time.
    """

    @classmethod
    def open(
        cls,
        directory: Path,
        volume: UUID,
        *,
        limit_bytes: int = 8 << 30,
        segment_bytes: int = 64 << 20,
        next_sequence: int = 1,
    ) -> Self:
        """Opens or creates the queue; `next_sequence` numbers the first entry of a new one.

        After a crash of the host (P4) everything in it is dropped, `state().trusted` is False until
        `acknowledge_loss()`, and numbering goes on behind every sequence that can have been issued.
        CorruptionError: another volume, another format. DeviceError: the host refuses.
        """
        raise NotImplementedError

    def state(self) -> QueueState:
        """All positions, read afresh (the other process may have moved them); some microseconds."""
        raise NotImplementedError

    @property
    def next_sequence(self) -> int:
        """Sequence of the next entry, as the appending process knows it."""
        raise NotImplementedError

    @property
    def trusted(self) -> bool:
        """`state().trusted`."""
        raise NotImplementedError

    def append_batch(self, entries: Sequence[Entry], *, eligible_sequence: int | None = None) -> None:
        """Commits entries in one transaction; their sequences continue `next_sequence` (else ValueError).

        When they outgrow `limit_bytes` of waiting data the queue is dropped up to the common flush instead, and says so in
        `state().dropped_through`. DeviceError: the directory cannot take them even after that; nothing was appended.
        """
        raise NotImplementedError

    def read(self, from_sequence: int, limit_bytes: int = 2 << 20, limit_entries: int = 4096) -> list[Entry]:
        """Entries from `from_sequence` on, with payload, verified; at least one if there is one, else as many as fit.

        The first has a higher sequence than asked for when those before it were trimmed or dropped (a gap). Not
        bounded by `eligible_sequence`: the shipper does that. CorruptionError: a payload is not what was appended.
        """
        raise NotImplementedError

    def read_index(self, from_sequence: int, limit_entries: int = 65536) -> list[Entry]:
        """The same without payloads."""
        raise NotImplementedError

    def counts(self) -> QueueCounts:
        """What waits for the far site; costs the same however much waits."""
        raise NotImplementedError

    def waiting(self, offset: int, length: int) -> bool:
        """Whether an entry the far site lacks touches these bytes of the area. Scans the index (about 1 us an entry)."""
        raise NotImplementedError

    def set_eligible(self, sequence: int) -> None:
        """Records that entries up to `sequence` may be shipped; never moves back."""
        raise NotImplementedError

    def set_common_flush(self, sequence: int) -> None:
        """Records a flush common to A and C; never moves back."""
        raise NotImplementedError

    def set_far_durable(self, epoch: int, sequence: int) -> None:
        """Records what the far site holds durably; a lower epoch, or a lower sequence of the same, is ignored."""
        raise NotImplementedError

    def set_far_site(self, exists: bool) -> None:
        """Says whether there is a far site; without one `far_durable_sequence` follows the appends."""
        raise NotImplementedError

    def trim(self, *, limit_entries: int = 100_000) -> int:
        """Deletes entries that nobody needs any more (P3), in short transactions; returns how many."""
        raise NotImplementedError

    def drop(self, through: int) -> int:
        """Gives up entries up to `through` that D may still lack, but never one that P3 needs. Returns `dropped_through`."""
        raise NotImplementedError

    def reset(self, next_sequence: int) -> None:
        """Empties the queue altogether and numbers on from `next_sequence`: a new epoch, or a new start."""
        raise NotImplementedError

    def acknowledge_loss(self) -> None:
        """The difference copies that replace what a crash lost are on record elsewhere: the queue is trusted again."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes; the last process to close syncs everything and marks the queue clean."""
        raise NotImplementedError
