"""The receiving end of sets: journal them, acknowledge, apply them in order (design section 5, P5).

Three activities, so that none waits for another: `serve` takes frames from a connection, one task writes and
syncs the journal (what came during a sync goes into the next one), one task applies and now and then
flushes the area. A set is applied only when its journal is durable; so after any crash the area plus the
journal is the stream at `durable`, and the area alone never shows part of a set to a promotion.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from jfs.errors import DeviceError
from replication.bodies import (
    Differ,
    Marker,
    decode_hashes,
    decode_marker,
    encode_differ,
    encode_position,
)
from replication.bodies import Position as PositionBody
from replication.channel import Channel
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.frames import Frame, FrameType
from replication.handshake import refuse
from replication.messages import RefusalCode
from replication.packing import unpack
from replication.position import NOWHERE, Position
from replication.set_apply import Area, apply_frame, differing_ranges
from replication.set_format import SET_TYPES
from replication.set_journal import CheckedFrame, JournalError, JournalledSet, SetJournal
from vsap.digest import digest_ranges

PENDING_BYTES: Final = 16 << 20
"""Frames received but not yet written to the journal, above which nothing more is received."""
HEARTBEAT_SECONDS: Final = 1.0
"""A receiver that cannot take more, or that computes, says its position this often: it is slow, not dead."""
APPLY_BYTES: Final = 8 << 20
APPLY_SECONDS: Final = 0.03
"""Pause between two rounds of applying while little waits: what is journalled is safe, and many small sets
cost less together than one by one."""
HELD_BYTES: Final = 16 << 20
"""Data of sets that is kept in memory until it is applied; what is more is read from the journal again."""
DIGESTS_KEPT: Final = 64
RETRY_SECONDS: Final = 1.0
"""An area that cannot be written (a full disk) is tried again this often."""


class NotConsistent(Exception):
    """The area holds no state of the stream: an initial copy was broken off. The argument is one sentence."""


class SetReceiver:
    """Follows a writer by sets: `run` for the life of the daemon, `serve` for each connection.

    `epoch` gives the epoch of this site's roles at any moment; frames of any other epoch are refused.
    """

    def __init__(
        self,
        area: Area,
        journal: SetJournal,
        *,
        volume: bytes,
        epoch: Callable[[], int],
        on_position: Callable[[], None] | None = None,
        backlog_bytes: int = 256 << 20,
        flush_bytes: int = 64 << 20,
        flush_seconds: float = 2.0,
    ) -> None:
        """`on_position` is called whenever `durable` or `applied` changed.

        `backlog_bytes`: data in the journal that is not applied, above which the source has to wait.
        `flush_bytes`, `flush_seconds`: how much applied data, for how long, may wait for a flush of the area.
        """
        self._area = area
        self._journal = journal
        self._volume = volume
        self._epoch = epoch
        self._on_position = on_position
        self._backlog_bytes = backlog_bytes
        self._flush_bytes = flush_bytes
        self._flush_seconds = flush_seconds
        self.durable = journal.tail
        """Everything up to here is in the journal or the area, on stable storage."""
        self.applied = journal.flushed
        """The area holds everything up to here (after a restart: at least)."""
        self._applied_ns = journal.flushed_timestamp_ns
        self.follows = False
        """Whether what the writer sends continues what is here: there is a connection, and on it nothing was
        missing, or a set made it whole. False while a copy is under way.
        """
        self.failure: str | None = None
        """Why this site takes no sets any more until its daemon is started again; None while it does."""
        self.hindrance: str | None = None
        """Why the area cannot be written at present; no sets are taken until it can."""
        self.no_room: str | None = None
        """Why the journal could not be written last (a full disk); each new connection tries again."""
        self._pending: list[CheckedFrame] = []
        self._accepted_epoch = 0
        self._pending_bytes = 0
        self._storing = False
        self._unapplied: deque[JournalledSet] = deque(journal.waiting)
        # Their frames, where they are still in memory; and those of the set that is not whole yet.
        self._held: deque[list[Frame] | None] = deque([None] * len(journal.waiting))
        self._held_bytes = 0
        self._begun: list[Frame] | None = None
        self._begun_bytes = 0
        self._unapplied_bytes = sum(one.head.data_bytes for one in journal.waiting)
        # A marker that is applied *again* finds later writes in the area already, unless it is the very last.
        self._applied_again = max(0, len(journal.waiting) - 1)
        self._checked_sets = len(journal.waiting)
        self._applied_sets = 0
        self._unflushed: JournalledSet | None = None
        self._unflushed_bytes = 0
        self._digests: dict[int, list[bytes]] = {}
        self._changed = trio.Event()
        self._serving = trio.Lock()
        self._channel: Channel | None = None
        self._closed: str | None = None
        self._flush_asked = False
        self._running = False

    # --- for the daemon ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write, sync, apply, flush until cancelled. A failure of the host goes to `failure`, not up."""
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guard, self._store_forever)
                nursery.start_soon(self._guard, self._apply_forever)
        finally:
            self._running = False
            self._notify()

    async def serve(self, channel: Channel, newest: Position | None = None) -> None:
        """Take sets from a connection whose hello was accepted, until it ends; a newer connection wins.

        `newest` is how far the stream of the writer had come when it said hello. Raises what the channel
        raises. What this side cannot accept is refused in one sentence.
        """
        if self._channel is not None:
            self._channel.close("a newer connection of the writer took its place")
        self._channel = channel
        async with self._serving:
            try:
                if self._channel is channel:
                    self.follows = self.durable == newest
                    await self._converse(channel)
            finally:
                self.follows = False
                if self._channel is channel:
                    self._channel = None
                with trio.CancelScope(shield=True):
                    await self._drop_incomplete()

    @property
    def newest_ns(self) -> int:
        """Of when the state is that a take-over here would go on with; 0 where that is not known."""
        return self._unapplied[-1].head.timestamp_ns if self._unapplied else self._applied_ns

    async def settle(self) -> Position:
        """Wait until every whole set that was received is applied; the position of the area then.

        JournalError: this site takes no sets any more, see `failure`.
        """
        await self._until(lambda: self._applied_sets >= self._checked_sets)
        return self.applied

    async def promote(self) -> Position:
        """Take no more sets, apply all whole ones, discard what is not whole, flush: the area's position.

        Asking again changes nothing. NotConsistent: the area holds no state of the stream. JournalError: the
        host refuses.
        """
        self._closed = "this site took over and follows no other any more"
        await self._end_conversation(self._closed)
        position = await self.settle()
        await self._until(lambda: self._unflushed is None, flush=True)
        if position == NOWHERE:
            raise NotConsistent("the copy to this site was never completed; its area holds no usable state")
        return position

    async def reset(self, position: Position) -> None:
        """Follow from here: the area stands, flushed, at `position` (NOWHERE: at no state). Sets are dropped.

        For a site whose area changed otherwise: it was a writer, it was made new, it diverged.
        """
        await self._end_conversation("this site begins to follow anew")
        await self._until(
            lambda: self._applied_sets >= self._checked_sets and self._unflushed is None, flush=True
        )
        await trio.to_thread.run_sync(self._journal.reset, position)
        self.durable = self.applied = position
        self._applied_ns = 0
        self._digests.clear()
        self._closed = None
        self._notify()

    def digests(self, sequence: int) -> list[bytes] | None:
        """The digests taken at the marker with this sequence; None: not applied yet, or not kept."""
        return self._digests.get(sequence)

    async def digests_at_rest(
        self, ranges: Sequence[tuple[int, int]], leaf_bytes: int
    ) -> tuple[Position, list[bytes]]:
        """Digests of the area once everything received is applied, and the position they belong to."""
        position = await self.settle()
        sets = self._checked_sets
        found = await trio.to_thread.run_sync(digest_ranges, self._area, list(ranges), leaf_bytes)
        if sets != self._checked_sets:
            # Sets that came meanwhile may have been applied under our eyes.
            return await self.digests_at_rest(ranges, leaf_bytes)
        return position, found

    # --- a connection -----------------------------------------------------------------------------------

    async def _converse(self, channel: Channel) -> None:
        if self.no_room is not None:
            await self._look_for_room()
        reason = self._closed or self.failure or self.hindrance or self.no_room
        if reason is not None:
            await refuse(channel, reason, RefusalCode.FENCED if self._closed else RefusalCode.FAULT)
            return
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_positions, channel)
            try:
                await self._take_forever(channel)
            except (PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
                # Carried out of the nursery by hand, so that callers see the exception and not a group.
                failure = error
            except (JournalError, DeviceError) as error:
                await refuse(channel, str(error), RefusalCode.FAULT)
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _look_for_room(self) -> None:
        """Before sets are asked for: a pair must not be in step in one moment and broken in the next."""
        try:
            await trio.to_thread.run_sync(self._journal.look_for_room)
            self.no_room = None
        except JournalError as error:
            self.no_room = str(error)

    async def _take_forever(self, channel: Channel) -> None:
        while True:
            frames = await channel.receive()
            self._accepted_epoch = self._epoch()
            for frame in frames:
                sentence = self._why_not(frame)
                if sentence is not None:
                    await refuse(channel, sentence, RefusalCode.SUPERSEDED)
                    raise RemoteProtocolError(f"{channel.peer}: {sentence}")
                await self._take(channel, frame)
                if frame.type is FrameType.SET_PACKED:
                    await self._room(channel)  # what a few bytes expand to is bounded, too
            await self._room(channel)

    def _why_not(self, frame: Frame) -> str | None:
        epoch = self._accepted_epoch
        if frame.epoch != epoch:
            return f"a {frame.type.name} frame of epoch {frame.epoch} for a site that is in epoch {epoch}"
        if frame.volume != self._volume:
            return f"a {frame.type.name} frame of another volume"
        return None

    async def _take(self, channel: Channel, frame: Frame) -> None:
        if frame.type is FrameType.HASHES:
            self.follows = False
            await self._answer(channel, frame)
            self._accepted_epoch = self._epoch()  # time has passed
            return
        try:
            for one in unpack(frame) if frame.type is FrameType.SET_PACKED else (frame,):
                self._take_one(one)
        except RemoteProtocolError as error:
            await refuse(channel, str(error), RefusalCode.GAP)
            raise
        self._notify()

    def _take_one(self, frame: Frame) -> None:
        if frame.type not in SET_TYPES:
            raise RemoteProtocolError(f"a {frame.type.name} frame on a connection for sets")
        if self.no_room is not None:
            raise JournalError(self.no_room)
        checked = self._journal.check(frame)
        self._pending.append(checked)
        self._pending_bytes += len(frame.body)
        if checked.head is not None:
            self._checked_sets += 1
            self._unapplied_bytes += checked.head.data_bytes

    async def _room(self, channel: Channel) -> None:
        """Wait while too much is not written, or not applied; the waiting slows down the source."""
        await self._until(
            lambda: self._pending_bytes < PENDING_BYTES and self._unapplied_bytes < self._backlog_bytes,
            channel,
        )

    async def _answer(self, channel: Channel, frame: Frame) -> None:
        """DIFFER: the leaves that are not the same in the area with everything journalled applied."""
        question = decode_hashes(frame)
        if question.offset + question.length > self._area.size_bytes:
            raise RemoteProtocolError(f"a HASHES frame for {question.length} bytes at {question.offset}")
        await self._until(lambda: self._applied_sets >= self._checked_sets, channel)
        differing = await trio.to_thread.run_sync(differing_ranges, self._area, question)
        await channel.send(encode_differ(self._volume, self._epoch(), frame.sequence, Differ(differing)))

    async def _report_positions(self, channel: Channel) -> None:
        told: PositionBody | None = None
        while channel.failure is None:
            position = self._position()
            if position != told and channel.room > 0:
                self._tell(channel, position)
                told = position
            with trio.move_on_after(HEARTBEAT_SECONDS):
                await self._changed.wait()

    def _position(self) -> PositionBody:
        """Never ahead of the truth: while an older epoch is still being applied, nothing of this one is."""
        same_epoch = self.applied.epoch == self.durable.epoch
        return PositionBody(*self.durable, self.applied.sequence if same_epoch else 0)

    def _tell(self, channel: Channel, position: PositionBody) -> None:
        try:
            channel.send_nowait(encode_position(self._volume, self._epoch(), position))
        except (PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
            # `receive` raises the same failure in the task that serves the connection.
            channel.close(str(error))

    async def _end_conversation(self, sentence: str) -> None:
        if self._channel is not None:
            self._channel.close(sentence)
        async with self._serving:
            await self._drop_incomplete()

    async def _drop_incomplete(self) -> None:
        """Write what is pending, cut off a set that is not whole. Whole ones count."""
        while (self._pending or self._storing) and self._running and self.failure is None:
            await self._changed.wait()
        if self._pending or self._storing or self.failure is not None:
            return  # The daemon ends, or the journal failed: opening it again cuts off the same.
        try:
            await trio.to_thread.run_sync(self._journal.discard_incomplete)
        except JournalError as error:
            self._fail(str(error))

    # --- the journal ------------------------------------------------------------------------------------

    async def _store_forever(self) -> None:
        while True:
            if not self._pending:
                await self._changed.wait()
                continue
            batch, self._pending, self._pending_bytes = self._pending, [], 0
            self._storing = True
            refusal: str | None = None
            try:
                whole = await trio.to_thread.run_sync(self._store, batch)
                self._held.extend(self._keep(batch))
            except JournalError as error:
                refusal, whole = str(error), []
                self._store_failed(error, batch)
            finally:
                self._storing = False
            if whole:
                self._unapplied.extend(whole)
                self.durable = whole[-1].head.after
                self.follows = self._channel is not None and self.durable != NOWHERE
            self._notify(positions=bool(whole))
            if refusal is not None:
                await self._refuse(refusal)

    def _keep(self, batch: Sequence[CheckedFrame]) -> list[list[Frame] | None]:
        """The frames of each set that is whole with this batch; None for one that takes too much memory."""
        kept: list[list[Frame] | None] = []
        for frame, head in batch:
            if frame.type is FrameType.SET_BEGIN:
                self._begun, self._begun_bytes = [], 0
            self._begun_bytes += len(frame.body)
            if self._begun is not None:
                self._begun.append(frame)
                if self._held_bytes + self._begun_bytes > HELD_BYTES:
                    self._begun = None
            if head is not None:
                kept.append(self._begun)
                self._held_bytes += self._begun_bytes if self._begun is not None else 0
                self._begun = None
        return kept

    def _store(self, batch: Sequence[CheckedFrame]) -> list[JournalledSet]:
        whole = self._journal.append(batch)
        if whole:
            self._journal.sync()
        return whole

    def _store_failed(self, error: JournalError, batch: Sequence[CheckedFrame]) -> None:
        """A full disk ends the connection, and the source tries again; a failed sync ends the service."""
        lost = [one.head for one in (*batch, *self._pending) if one.head is not None]
        self._checked_sets -= len(lost)
        self._unapplied_bytes -= sum(head.data_bytes for head in lost)
        self._pending, self._pending_bytes = [], 0
        self.failure = self._journal.failure
        self.no_room = None if self.failure is not None else str(error)

    async def _refuse(self, sentence: str) -> None:
        """End the conversation, with the reason: it is for the operator, who reads the writer's status."""
        if self._channel is not None:
            await refuse(self._channel, sentence, RefusalCode.FAULT)

    # --- the area ---------------------------------------------------------------------------------------

    async def _apply_forever(self) -> None:
        flush_at = float("inf")
        while True:
            if self._unflushed is None:
                flush_at = float("inf")
            elif (
                self._flush_asked
                or self._unflushed_bytes >= self._flush_bytes
                or trio.current_time() >= flush_at
            ):
                await self._flush()
                continue
            elif flush_at == float("inf"):
                flush_at = trio.current_time() + self._flush_seconds
            self._flush_asked = False
            if self._unapplied:
                await self._apply()
                if self._unapplied_bytes < APPLY_BYTES:
                    await trio.sleep(APPLY_SECONDS)
            else:
                with trio.move_on_at(flush_at):
                    await self._changed.wait()

    async def _apply(self) -> None:
        batch = [self._unapplied.popleft()]
        held = [self._held.popleft()]
        size = batch[0].head.data_bytes
        while self._unapplied and size < APPLY_BYTES:
            batch.append(self._unapplied.popleft())
            held.append(self._held.popleft())
            size += batch[-1].head.data_bytes
        again = max(0, self._applied_again - self._applied_sets)
        try:
            digests = await trio.to_thread.run_sync(self._apply_sets, batch, held, again)
        except DeviceError as error:
            self._unapplied.extendleft(reversed(batch))
            self._held.extendleft(reversed(held))
            self._applied_again = max(self._applied_again, self._applied_sets + len(batch) - 1)
            await self._hindered(f"the area of this site cannot be written: {error}")
            return
        self.hindrance = None
        self._held_bytes -= sum(len(frame.body) for frames in held for frame in frames or ())
        self._applied_sets += len(batch)
        self.applied = batch[-1].head.after
        self._applied_ns = batch[-1].head.timestamp_ns
        self._unapplied_bytes -= sum(one.head.data_bytes for one in batch)
        self._unflushed = batch[-1]
        self._unflushed_bytes += size
        self._digests.update(digests)
        while len(self._digests) > DIGESTS_KEPT:
            del self._digests[next(iter(self._digests))]
        self._notify(positions=True)

    async def _hindered(self, sentence: str) -> None:
        """The sets are safe in the journal, and applying them again is right: wait for room in the area."""
        self.hindrance = sentence
        self._notify()
        await self._refuse(sentence)
        await trio.sleep(RETRY_SECONDS)

    def _apply_sets(
        self, batch: Sequence[JournalledSet], held: Sequence[list[Frame] | None], again: int
    ) -> dict[int, list[bytes]]:
        """Apply whole sets; digests at their markers, but not in the first `again` sets."""
        known = [frame for frames in held if frames is not None for frame in frames]
        frames = known if None not in held else self._journal.frames_of(batch[0], batch[-1])
        digests: dict[int, list[bytes]] = {}
        commits = 0
        for frame in frames:
            if frame.type is FrameType.SET_MARKER and commits >= again:
                digests[frame.sequence] = self._digest(decode_marker(frame))
            commits += frame.type is FrameType.SET_COMMIT
            apply_frame(self._area, frame)
        return digests

    def _digest(self, marker: Marker) -> list[bytes]:
        return digest_ranges(self._area, marker.ranges, marker.leaf_bytes)

    async def _flush(self) -> None:
        """The area first, then the record that says so."""
        last = self._unflushed
        if last is None:
            return
        await trio.to_thread.run_sync(self._area.flush)
        await trio.to_thread.run_sync(self._journal.release, last)
        self._flush_asked = False
        self._unflushed_bytes = 0
        if self._unflushed is last:
            self._unflushed = None
        self._notify()

    # --- waiting ----------------------------------------------------------------------------------------

    def _notify(self, *, positions: bool = False) -> None:
        event, self._changed = self._changed, trio.Event()
        event.set()
        if positions and self._on_position is not None:
            self._on_position()

    async def _until(
        self, condition: Callable[[], bool], channel: Channel | None = None, *, flush: bool = False
    ) -> None:
        """Wait for the condition, telling the source that we live. JournalError: it cannot come true."""
        while not condition():
            if reason := self.failure or self.hindrance:
                raise JournalError(reason)
            if channel is not None and channel.failure is not None:
                raise channel.failure
            if flush and not self._flush_asked:
                self._flush_asked = True
                self._notify()
            with trio.move_on_after(HEARTBEAT_SECONDS) as scope:
                await self._changed.wait()
            if scope.cancelled_caught and channel is not None and channel.room > 0:
                self._tell(channel, self._position())

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task of `run`; what the host refuses is kept for status, and ends the service of sets."""
        try:
            await task()
        except JournalError as error:
            self._fail(str(error))
        except DeviceError as error:
            self._fail(f"the area of this site cannot be written: {error}")

    def _fail(self, sentence: str) -> None:
        self.failure = self.failure or sentence
        if self._channel is not None:
            self._channel.close(sentence)
        self._notify()
