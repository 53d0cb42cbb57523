"""The difference copy: only what differs travels, and the far site takes it as one set (section 5, P6).

Recovery copy (C -> D), difference copy after a lost queue (A -> D), initial copy and levelling (W -> A)
are all this. The area may be written to meanwhile. What is read is therefore fuzzy, and the set also
contains every entry from `since` up to the newest one at the end of the read: applied after the blocks,
they make it exact, and its position is that newest entry. The three moments must be in this order:

1. `since`: the newest *eligible* sequence. All of it is in the area, because an entry is written to the area
   before it is sent to the synchronous copy, and eligible only after that (P1, P2).
2. The ranges are listed. They must name every block, written up to `since`, in which the far site may differ.
   (The log names newly allocated blocks when they are committed: where a file system is mounted, it commits
   between 1 and 2.)
3. The ranges are read. The newest entry after that must become eligible before the set may end (P1).

Over a narrow link the queue may be outgrown meanwhile, and entries after `since` are gone. Then there is
another *round* into the same set: a later `since`, and what was written after the one before is listed and
read again. Each round has only what was written during the one before, so they become shorter where the link
carries more than is written; where it does not, the copy is given up.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import trio

from jfs.errors import DeviceError
from replication.bodies import BLOCK_BYTES, DIGEST_BYTES, Hashes, SetKind
from replication.far_site import CHANNEL_FAILURES, FarSite
from replication.gathered import EntriesGone, Gathered, PositionedQueue, left_of
from replication.position import Position
from replication.ranges import Covered, Range, intersect, normalise, pieces, subtract, total_bytes
from replication.set_builder import Piece
from vsap.digest import Readable, digest_ranges
from vsap.entry import Entry
from vsap.queue import QueueState

COARSE_LEAF_BYTES: Final = 64 << 10
FINE_LEAF_BYTES: Final = BLOCK_BYTES
QUESTION_BYTES: Final = 8 << 20
"""Bytes of the area that one question is about."""
QUESTIONS_AT_ONCE: Final = 4
READ_BYTES: Final = 1 << 20
POLL_SECONDS: Final = 0.02
PART_BYTES: Final = 256 << 20
PART_SECONDS: Final = 60.0
"""A part of an initial copy is no more than a limited link carries in this time: so much of it, and not all,
travels again when the link breaks.
"""
ROUNDS_MAX: Final = 12
_ZEROS: Final = bytes(READ_BYTES)

WrittenAfter = Callable[[int], Awaitable[tuple[int, list[Range]]]]
"""Given the `since` of a round: that of the next one, and the ranges that name every block written after the
former up to the latter.
"""


class CopyAborted(Exception):
    """The copy cannot be made exact (entries it needs left the queue); begin again. One sentence."""


class EntrySource(PositionedQueue, Protocol):
    """The part of vsap.queue.EntryQueue that a difference copy needs."""

    def state(self) -> QueueState: ...


class AtRest:
    """The entries of an area that nobody writes to and that stands at `sequence`: none."""

    def __init__(self, sequence: int) -> None:
        self._sequence = sequence

    def state(self) -> QueueState:
        """Everything is eligible and nothing waits."""
        return QueueState(
            next_sequence=self._sequence + 1,
            eligible_sequence=self._sequence,
            common_flush_sequence=self._sequence,
            far_epoch=0,
            far_durable_sequence=0,
            dropped_through=0,
            oldest_sequence=self._sequence + 1,
            far_site=True,
            trusted=True,
            drop_reason="",
        )

    def read_index(self, from_sequence: int, limit_entries: int = 0, *, verify: bool = False) -> list[Entry]:
        """No entries."""
        return []

    def read_these(self, sequences: Sequence[int]) -> list[Entry]:
        """No entries."""
        return []


@dataclass
class CopyProgress:
    """Figures of a copy while it runs, in bytes."""

    ranges_bytes: int = 0
    """To be compared."""
    hashed_bytes: int = 0
    """Compared so far."""
    copied_bytes: int = 0
    """Sent because they differ, without zeros."""
    zeroed_bytes: int = 0
    """Differed, but were zeros here: nothing but their place was sent."""
    entries_bytes: int = 0
    """Sent from the queue, written during the copy (P6)."""
    rounds: int = 0
    """Rounds after the first that the copy needed so far."""


class DifferenceResult(NamedTuple):
    """A finished copy: the far site has `position` durable."""

    position: Position
    ranges_bytes: int
    hashed_bytes: int
    copied_bytes: int
    zeroed_bytes: int
    entries_bytes: int


async def copy_difference(
    far: FarSite,
    area: Readable,
    ranges: Iterable[Range],
    source: EntrySource,
    *,
    since: int,
    kind: SetKind = SetKind.DIFFERENCE,
    progress: CopyProgress | None = None,
    parts: bool = False,
    timestamp_ns: int = 0,
    written_after: WrittenAfter | None = None,
) -> DifferenceResult:
    """Bring the far site to the newest position; `since` was taken before `ranges` were listed (see module).

    Without `written_after` there is one round.

    `parts`: the far site holds no state, so the blocks may travel in several sets and need not wait in its
    journal as one. Returns when the far site has it durable. CopyAborted, DeviceError or the channel's
    failure leave the far site as it was.
    """
    wanted = normalise(ranges)
    copy = _Copy(far, area, source, since, progress or CopyProgress(), written_after)
    copy.progress.ranges_bytes = total_bytes(wanted)
    if parts:
        await copy.parts(wanted, timestamp_ns)
        wanted = []
    await far.begin(kind, 0, timestamp_ns)
    newest = await copy.rounds(wanted)
    position = await far.commit(newest)
    await far.wait_durable(position)
    done = copy.progress
    return DifferenceResult(
        position,
        done.ranges_bytes,
        done.hashed_bytes,
        done.copied_bytes,
        done.zeroed_bytes,
        done.entries_bytes,
    )


async def copy_nearer(
    far: FarSite, area: Readable, ranges: Iterable[Range], *, progress: CopyProgress, timestamp_ns: int = 0
) -> None:
    """Bring a site nearer to an area that is written to meanwhile, without its entries.

    What it holds then is no state of the stream: its position is NOWHERE. Returns when it has applied it.
    """
    wanted = normalise(ranges)
    progress.ranges_bytes = total_bytes(wanted)
    copy = _Copy(far, area, AtRest(0), 0, progress)
    await copy.parts(wanted, timestamp_ns)
    for offset, _ in wanted[:1]:
        # The answer to a question comes when everything before it is applied.
        await far.ask(Hashes(offset, BLOCK_BYTES, BLOCK_BYTES, (bytes(DIGEST_BYTES),)))


class _Copy:
    """One difference copy under way."""

    def __init__(
        self,
        far: FarSite,
        area: Readable,
        source: EntrySource,
        since: int,
        progress: CopyProgress,
        written_after: WrittenAfter | None = None,
    ) -> None:
        self._far = far
        self._area = area
        self._source = source
        self._since = since
        self.progress = progress
        self._written_after = written_after
        self._changed = Covered()
        """What the open set changes."""

    async def rounds(self, ranges: Sequence[Range]) -> int:
        """Into the open set: the ranges, what was written meanwhile, and the entries after that; the newest
        entry's sequence.
        """
        while True:
            # The far site compares with its area, where nothing of this set is yet: what the set has changed
            # once is sent again without a question, also where it is as before now.
            changed = self._changed.ranges()
            await self.blocks(subtract(ranges, changed))
            for again in intersect(ranges, changed):
                await self._send(again)
            try:
                return await self.entries()
            except CopyAborted:
                if self._written_after is None or self.progress.rounds >= ROUNDS_MAX:
                    raise
            self.progress.rounds += 1
            self._since, written = await self._written_after(self._since)
            ranges = normalise(written)
            self.progress.ranges_bytes += total_bytes(ranges)

    async def parts(self, ranges: Sequence[Range], timestamp_ns: int) -> None:
        """Compare the ranges and send what differs, in sets that lead to no state."""
        for group in grouped(ranges, self._far.link.portion(PART_SECONDS, PART_BYTES)):
            await self._far.begin(SetKind.PART, 0, timestamp_ns)
            await self.blocks(group)
            await self._far.commit(0, part=True)
            self._changed = Covered()

    async def blocks(self, ranges: Sequence[Range]) -> None:
        """Into the open set: compare the ranges and send what differs, several questions at a time."""
        questions = pieces(ranges, QUESTION_BYTES)
        failures: list[Exception] = []

        async def work() -> None:
            try:
                for offset, length in questions:
                    await self._compare(offset, length)
            except (*CHANNEL_FAILURES, CopyAborted, DeviceError) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(QUESTIONS_AT_ONCE):
                nursery.start_soon(work)
        if failures:
            raise failures[0]

    async def _compare(self, offset: int, length: int) -> None:
        if self._written_after is None:
            self._check_entries()
        for coarse in await self._ask(offset, length, COARSE_LEAF_BYTES):
            for start, size in pieces([coarse], QUESTION_BYTES):
                for fine in await self._ask(start, size, FINE_LEAF_BYTES):
                    await self._send(fine)
        self.progress.hashed_bytes += length

    async def _ask(self, offset: int, length: int, leaf_bytes: int) -> tuple[Range, ...]:
        digests = await trio.to_thread.run_sync(digest_ranges, self._area, [(offset, length)], leaf_bytes)
        return await self._far.ask(Hashes(offset, length, leaf_bytes, tuple(digests)))

    async def _send(self, differing: Range) -> None:
        for offset, length in pieces([differing], READ_BYTES):
            data = await trio.to_thread.run_sync(self._area.read, offset, length)
            self._changed.add(offset, length)
            for start, size, zero in zero_runs(data):
                if zero:
                    await self._far.discard(0, offset + start, 0, size)
                    self.progress.zeroed_bytes += size
                else:
                    await self._far.data(0, offset + start, 0, memoryview(data)[start : start + size])
                    self.progress.copied_bytes += size

    async def entries(self) -> int:
        """Send every entry after `since` up to the newest one of this moment; its sequence (P6)."""
        newest = self._source.state().next_sequence - 1
        while self._check_entries().eligible_sequence < newest:
            with trio.move_on_after(POLL_SECONDS):
                await self._far.changed()
        following = self._since + 1
        try:
            while following <= newest:
                following = await self._gathered(following, newest)
        except EntriesGone as error:
            raise CopyAborted(f"entry {error} left the queue during the difference copy") from error
        return newest

    async def _gathered(self, following: int, newest: int) -> int:
        """Send entries from `following` to at most `newest`; the first that is still to be sent."""
        gathered = Gathered(following)
        while gathered.last < newest and not gathered.full:
            await trio.to_thread.run_sync(gathered.gather, self._source, newest)
        await trio.to_thread.run_sync(gathered.settle)
        for piece in left_of(self._source, gathered):
            self._changed.add(piece.offset, piece.length)
            await send_piece(self._far, piece)
            self.progress.entries_bytes += piece.length if piece.data is not None else 0
        return gathered.last + 1

    def _check_entries(self) -> QueueState:
        state = self._source.state()
        if state.dropped_through > self._since:
            raise CopyAborted(
                f"entries up to {state.dropped_through} left the queue during the difference copy"
            )
        return state


async def send_piece(far: FarSite, piece: Piece) -> None:
    """One piece of entries into the open set."""
    if piece.data is None:
        await far.discard(piece.sequence, piece.offset, piece.timestamp_ns, piece.length)
    else:
        await far.data(piece.sequence, piece.offset, piece.timestamp_ns, piece.data)


def zero_runs(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """`data` (whole blocks) as runs `(start, length, is zero)`, in order; neighbours differ in kind."""
    run_start = 0
    run_zero: bool | None = None
    for start in range(0, len(data), BLOCK_BYTES):
        zero = data.startswith(_ZEROS[:BLOCK_BYTES], start)
        if zero is not run_zero:
            if run_zero is not None:
                yield run_start, start - run_start, run_zero
            run_start, run_zero = start, zero
    if run_zero is not None:
        yield run_start, len(data) - run_start, run_zero


def grouped(ranges: Iterable[Range], size: int) -> Iterator[list[Range]]:
    """The ranges cut into groups of about `size` bytes."""
    group: list[Range] = []
    total = 0
    for piece in pieces(ranges, size):
        group.append(piece)
        total += piece[1]
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group
