"""The virtual storage area: entry into the queue, write to the area, hand to the synchronous copy,
complete.
"""

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Self, cast

import trio

from jfs.device import BLOCK_BYTES, Buffer, check_request
from jfs.errors import CorruptionError, DeviceError
from vsap.area import FileArea, flush_quickly
from vsap.digest import digest_ranges
from vsap.entry import (
    BARRIER,
    DISCARD,
    LONGEST,
    WRITE,
    Entry,
    barrier_entry,
    checksum_of,
    discard_entry,
    marker_entry,
)
from vsap.pointing import LOOK_SECONDS
from vsap.positions import WritePositions
from vsap.queue import EntryQueue, QueueState
from vsap.remote import RemoteCopy
from vsap.shared_flush import SharedFlush

PUSH_BYTES = 1 << 20
"""More than this is pushed at once."""
TICK_SECONDS = 0.010
"""What nobody waits for is pushed after this time: a flush that comes meanwhile takes it along. So it is with
the record of what is eligible, which an append may take along."""
MOST_LEAVES = 1 << 16
LARGEST_LEAF_BYTES = 1 << 30
"""What a marker may ask for: its digests travel in one frame."""
RETRY_SECONDS = 1.0
"""Pause between attempts to push what the host refused."""
_NOWHERE = (1 << 63, 0)


class Recovery(NamedTuple):
    """What `VirtualArea.recover` found and did."""

    trusted: bool
    """False: entries were lost with the host (P4): A, C and D need difference copies from the log's list."""
    first_sequence: int
    """First entry written again to A and sent again to C (0: none)."""
    last_sequence: int
    entries: int


def apply_entries(area: FileArea, entries: Sequence[Entry]) -> None:
    """Makes the writes and discards of `entries` in order, neighbours together, and flushes at barriers."""
    number, count = 0, len(entries)
    while number < count:
        entry = entries[number]
        number += 1
        if entry.kind == WRITE:
            end = entry.offset + entry.length
            buffers = [entry.payload]
            while number < count and (after := entries[number]).offset == end and after.kind == WRITE:
                buffers.append(after.payload)
                end += after.length
                number += 1
            if len(buffers) == 1:
                area.write(entry.offset, entry.payload)
            else:
                area.write_many(entry.offset, buffers)
        elif entry.kind == DISCARD:
            area.discard(entry.offset, entry.length)
        elif entry.kind == BARRIER:
            area.flush()


def before_barrier(entries: Sequence[Entry]) -> int:
    """How many entries stand before the first barrier; all of them if there is none."""
    return next((place for place, entry in enumerate(entries) if entry.kind == BARRIER), len(entries))


def _unchanging(data: Buffer) -> bytes:
    """The data, copied if it could be changed before it is pushed. A view of bytes does as bytes do."""
    if type(data) is memoryview and type(data.obj) is bytes:
        return cast(bytes, data)
    return bytes(data)


class _EntryMissing(CorruptionError):
    """An entry is not in the queue that must be."""


class VirtualArea:
    """A block device (`jfs.device.BlockDevice`) whose writes are queued, written and replicated in P2's
    order.

    Works inside `async with`, which runs the task that pushes at the end of a tick. All calls from the one
    trio thread. `queue`, `area` and `positions` are closed by whoever opened them.
    """

    def __init__(
        self,
        area: FileArea,
        queue: EntryQueue,
        remote: RemoteCopy | None,
        positions: WritePositions | None = None,
        *,
        complete: Literal["durable", "received"] = "durable",
        on_eligible: Callable[[int], None] | None = None,
    ) -> None:
        """`on_eligible(sequence)`: the queue says now that entries up to it may be shipped; must not wait."""
        state = queue.state()
        self.size_bytes = area.size_bytes
        self._area = area
        self._queue = queue
        self._remote = remote
        self._positions = positions
        self._durable = complete == "durable"
        self._on_eligible = on_eligible
        self._issued = self._pushed = queue.next_sequence - 1
        self._timestamp = 0
        self._pending: list[Entry] = []
        self._pending_bytes = 0
        self._unwritten: list[Entry] = []
        """In the queue, but the area has refused them: tried again with the next push."""
        self._area_behind = state.common_flush_sequence < queue.next_sequence - 1
        """The area may lack what a killed process left in the queue, until `recover` has written it."""
        self._low, self._high = _NOWHERE
        self._failure: DeviceError | None = None
        self._eligible = self._recorded_eligible = self._told_eligible = state.eligible_sequence
        self._area_flushed = self._common = state.common_flush_sequence
        self._far = (state.far_epoch, state.far_durable_sequence)
        self._far_site = state.far_site
        self._shared = SharedFlush(self._flush_once)
        self._wake = trio.Event()
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        if remote is not None:
            remote.on_received = self._on_progress

    # --- life

    async def __aenter__(self) -> Self:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        # Nothing here may be cancelled: who does not return is not left either, and the nursery stays open.
        self._nursery.start_soon(self.run)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Pushes what is left and stops the task; does not flush. DeviceError: it could not be pushed."""
        try:
            self._push()
            self.record_progress()
        finally:
            if self._nursery is not None and self._manager is not None:
                self._nursery.cancel_scope.cancel()
                # Not told of an error of the body: it goes on as it is, not wrapped in a group.
                await self._manager.__aexit__(None, None, None)

    async def run(self) -> None:
        """Pushes what was collected and records how far it came, at the end of a tick; until cancelled."""
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(TICK_SECONDS)
            refused = False
            for work in (self._push, self.record_progress, self._point):
                try:
                    work()
                except DeviceError:
                    # What was not pushed is kept: writes are refused and waiters told why. Positions that
                    # were not recorded only promise less, entries that do not point keep their copies.
                    # Meanwhile the host may recover.
                    refused = True
            if refused:
                await trio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def recover(self) -> Recovery:
        """Before the first write: repeats what came after the last common flush, at A and at C (P3)."""
        state = self._queue.state()
        if not state.trusted:
            return Recovery(False, 0, 0, 0)
        first = sequence = state.common_flush_sequence + 1
        try:
            for entries in self._after_common_flush(state):
                self._note_positions(entries)
                apply_entries(self._area, entries)
                self._send(entries)
                sequence = entries[-1].sequence + 1
                await trio.lowlevel.checkpoint()
        except _EntryMissing:
            return Recovery(False, 0, 0, 0)
        self._area_behind = False
        self._on_progress()
        return Recovery(
            True, first if sequence > first else 0, sequence - 1 if sequence > first else 0, sequence - first
        )

    def _after_common_flush(self, state: QueueState) -> Iterator[list[Entry]]:
        """All entries after the last common flush, from the queue. _EntryMissing: nothing takes an entry out
        before the common flush, so somebody else has.
        """
        sequence = state.common_flush_sequence + 1
        while sequence < state.next_sequence:
            entries = self._queue.read(sequence)
            if not entries or entries[0].sequence != sequence:
                raise _EntryMissing(f"entry {sequence} is not in the queue any more")
            yield entries
            sequence = entries[-1].sequence + 1

    # --- reading and issuing

    def read(self, offset: int, length: int) -> bytes:
        """Reads, seeing every issued write. DeviceError outside the area or when the host fails."""
        if offset < self._high and offset + length > self._low:
            self._push()
        return self._area.read(offset, length)

    def write(self, offset: int, data: Buffer) -> int:
        """Issues a write and returns its sequence. DeviceError, before anything has changed, when refused."""
        length = len(data)
        self._admit(offset, length)
        sequence = self._issued + 1
        payload = _unchanging(data)
        self._issue(Entry(sequence, self._now(), offset, length, WRITE, checksum_of(payload), payload))
        return sequence

    def discard(self, offset: int, length: int) -> int:
        """Issues a discard and returns its (last) sequence; the range reads as zeros."""
        self._admit(offset, length)
        for start in range(offset, offset + length, LONGEST):
            size = min(LONGEST, offset + length - start)
            self._issue(discard_entry(self._issued + 1, self._now(), start, size))
        return self._issued

    def _admit(self, offset: int, length: int) -> None:
        """Raises the DeviceError of a request that must not begin."""
        check_request(self.size_bytes, offset, length)
        if self._remote is not None:
            refusal = self._remote.refusal()
            if refusal is not None:
                raise refusal
        if self._failure is not None:
            self._push()

    def _now(self) -> int:
        """Nanoseconds since 1970, never going back."""
        now = time.time_ns()
        if now > self._timestamp:
            self._timestamp = now
        return self._timestamp

    def _issue(self, entry: Entry) -> None:
        self._issued = entry.sequence
        pending = self._pending
        pending.append(entry)
        if entry.offset < self._low:
            self._low = entry.offset
        end = entry.end
        if end > self._high:
            self._high = end
        self._pending_bytes += len(entry.payload)
        if self._pending_bytes >= PUSH_BYTES:
            try:
                self._push()
            except DeviceError:
                # The write is issued all the same; complete() and the next write() say why it cannot go on.
                self._wake.set()
        elif len(pending) == 1:
            self._wake.set()

    # --- the push (P2)

    def _push(self, *, flush: bool = False) -> None:
        """Queue commit, then area, then frames to C, for everything issued; with `flush` C is asked in the
        same breath to make them durable. DeviceError: some of it is kept back.
        """
        if not self._pending and not self._unwritten:
            return
        try:
            if self._pending:
                self._queue.append_batch(self._pending, eligible_sequence=self._eligible)
                self._recorded_eligible = self._eligible
                self._unwritten = self._unwritten + self._pending if self._unwritten else self._pending
                self._pending = []
                self._pending_bytes = 0
            entries = self._unwritten
            self._note_positions(entries)
            self._write_and_send(entries, flush)
        except DeviceError as error:
            self._failure = error
            self._write_again()
            raise
        self._failure = None
        self._unwritten = []
        self._low, self._high = _NOWHERE
        self._pushed = entries[-1].sequence
        if self._remote is None or self._remote.unprotected:
            self._on_progress()

    def _write_and_send(self, entries: Sequence[Entry], flush: bool) -> None:
        """Part by part: A has it before C is sent it. At a barrier between two C flushes while A does."""
        while entries:
            first = before_barrier(entries)
            apply_entries(self._area, entries[:first])
            part, entries = entries[: first + 1], entries[first + 1 :]
            self._send(part, flush=flush and not entries)
            apply_entries(self._area, part[first:])

    def _note_positions(self, entries: Sequence[Entry]) -> None:
        positions = self._positions
        if positions is not None:
            for entry in entries:
                if entry.end > entry.offset:
                    positions.append(entry.sequence, entry.offset, entry.length)
            positions.write_out()

    def _send(self, entries: Sequence[Entry], *, flush: bool = False) -> None:
        if self._remote is not None:
            self._remote.send(entries, flush=flush)

    # --- progress

    def _on_progress(self) -> None:
        """What C has (or that it is not waited for) has changed: more may be eligible, or commonly
        flushed.
        """
        remote = self._remote
        alone = remote is None or remote.unprotected
        eligible = self._pushed if alone or remote is None else min(remote.received_sequence, self._pushed)
        if eligible > self._eligible:
            self._eligible = eligible
        if eligible > self._told_eligible or self._common_flush() > self._common:
            self._wake.set()

    def _common_flush(self) -> int:
        """Sequence up to which A and C both are on stable storage."""
        remote = self._remote
        if remote is None or remote.unprotected:
            return self._area_flushed
        return min(self._area_flushed, remote.durable_sequence)

    def record_progress(self) -> None:
        """Writes the positions of this process into the queue, where the daemon finds them, and tells it."""
        eligible, common = self._eligible, self._common_flush()
        if eligible > self._recorded_eligible or common > self._common:
            self._queue.set_progress(eligible, common)
            self._recorded_eligible = eligible
        if eligible > self._told_eligible:
            self._told_eligible = eligible
            if self._on_eligible is not None:
                self._on_eligible(eligible)
        if common > self._common:
            self._common = common
            if not self._far_site:
                # Nobody ships, so nobody else trims.
                self._queue.trim()

    def _point(self) -> None:
        """Lets entries that wait long point into the area. Not while the area lacks one that is in the queue:
        it would be written over what was only just found standing.
        """
        if not self._unwritten and not self._area_behind and self._queue.point():
            self._wake.set()

    def is_complete(self, sequence: int) -> bool:
        """Every write up to `sequence` is queued, in A, and received by C."""
        remote = self._remote
        if sequence > self._pushed:
            return False
        return remote is None or remote.received_sequence >= sequence or remote.unprotected

    async def complete(self, sequence: int) -> None:
        """Every write up to `sequence` is queued, in A, and received by C. DeviceError when C does not
        answer.

        Returns without a checkpoint when that is so already.
        """
        if sequence > self._pushed:
            self._push()
        remote = self._remote
        if remote is not None and remote.received_sequence < sequence and not remote.unprotected:
            await remote.wait_received(sequence)

    async def barrier(self) -> None:
        """Nothing issued after this is on stable storage, at A or at C, before everything issued before it.

        Costs no round trip: each site flushes for itself when it comes to the barrier.
        """
        if self._issued <= self._common_flush():
            return
        if self._area.is_quick_to_flush:
            self._admit(0, 0)
            self._issue(barrier_entry(self._issued + 1, self._now()))
        else:
            await self.flush()

    async def flush(self) -> None:
        """Everything issued before is on stable storage at A and at C (or received by C). Flushes are
        shared.
        """
        await self._shared.flush(lambda: self._issued)

    async def _flush_once(self) -> None:
        kept_back: DeviceError | None = None
        self._write_again()
        try:
            self._push(flush=True)
        except DeviceError as error:
            # A full queue can only be dropped up to a common flush, so what is pushed is flushed all the
            # same.
            kept_back = error
        await self._flush_both(self._pushed)
        if kept_back is not None:
            self.record_progress()
            self._push(flush=True)
            await self._flush_both(self._pushed)

    def _write_again(self) -> None:
        """A flush of the area failed, so the host has forgotten something: everything after the last common
        flush is written again, from the queue (P3), and the next flush counts. Where that cannot be done
        nothing is read and no flush succeeds; it is tried again with each.
        """
        if not self._area.may_have_lost:
            return
        self._area.accept_loss()
        try:
            for entries in self._after_common_flush(self._queue.state()):
                apply_entries(self._area, entries)
        except (DeviceError, CorruptionError) as error:
            self._area.doubt(DeviceError(errno.EIO, f"area {self._area.path} may have lost data: {error}"))

    async def _flush_both(self, target: int) -> None:
        """A and C at the same time: C works while this one waits for A. DeviceError of either."""
        remote = self._remote
        if remote is not None:
            remote.request_flush(target)
        try:
            await flush_quickly(self._area)
        except DeviceError:
            self._write_again()
            raise
        if remote is not None:
            await (remote.wait_durable if self._durable else remote.wait_received)(target)
        self._area_flushed = max(self._area_flushed, target)
        # Recorded a moment later: a position that is behind the truth only promises less (P3).
        self._on_progress()

    # --- positions, search, marker

    @property
    def issued_sequence(self) -> int:
        """Sequence of the newest issued write."""
        return self._issued

    @property
    def eligible_sequence(self) -> int:
        """Entries up to here may be shipped (P1)."""
        return self._eligible

    @property
    def common_flush_sequence(self) -> int:
        """A and C are on stable storage up to here."""
        return self._common

    @property
    def far_durable_sequence(self) -> int:
        """The far site has everything up to here, as far as this process was told; everything if there is
        none.
        """
        return self._far[1] if self._far_site else self._issued

    def note_far_durable(self, epoch: int, sequence: int) -> None:
        """The daemon says what D has durable; the daemon has recorded it in the queue itself."""
        self._far = max(self._far, (epoch, sequence))

    def waiting(self, offset: int, length: int) -> bool:
        """Whether an entry that touches these bytes waits for the far site (a search)."""
        self._push()
        return self._queue.waiting(offset, length)

    def _check_marker(self, ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> None:
        """DeviceError for a marker that a site could not carry out: once queued, it would stop the stream."""
        if leaf_bytes <= 0 or leaf_bytes % BLOCK_BYTES:
            raise DeviceError(errno.EINVAL, f"a marker cannot have leaves of {leaf_bytes} bytes")
        for offset, length in ranges:
            check_request(self.size_bytes, offset, length)
            if not length:
                raise DeviceError(errno.EINVAL, f"a marker cannot have a range of no bytes at {offset}")
        leaves = sum(-(-length // leaf_bytes) for _, length in ranges)
        if leaves > MOST_LEAVES or leaf_bytes > LARGEST_LEAF_BYTES:
            raise DeviceError(
                errno.EINVAL, f"a marker of {leaves} leaves of {leaf_bytes} bytes is too much to ask at once"
            )

    async def marker(self, ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> tuple[int, list[bytes]]:
        """Issues a MARKER entry; returns its sequence and `digest_ranges` of A exactly as it is at that
        sequence.

        The digests are computed in one go, without a task switch: ask for some MiB at a time.
        """
        self._check_marker(ranges, leaf_bytes)
        self._admit(0, 0)
        sequence = self._issued + 1
        self._issue(marker_entry(sequence, self._now(), ranges, leaf_bytes))
        self._push()
        digests = digest_ranges(self._area, ranges, leaf_bytes)
        await trio.lowlevel.checkpoint()
        return sequence, digests
