"""The shipper: the writer's queue to the site that follows asynchronously (design section 5).

It lives in the daemon of the writing site, so it goes on when the mount process dies, and nobody ever
waits for it. It ships entries only when they are eligible (P1), as they are while the queue is short,
coalesced when it is long; several sets are under way at a time. What the far site reports durable may
leave the queue. Where the far site cannot be continued from the queue, a difference copy goes first
(`position.judge` decides).
"""

import contextlib
import errno
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

import trio

from jfs.errors import CorruptionError, DeviceError
from replication.backoff import Backoff
from replication.bodies import SetKind
from replication.channel import Channel
from replication.control import ControlError
from replication.difference import (
    CopyAborted,
    CopyProgress,
    DifferenceResult,
    EntrySource,
    copy_difference,
    send_piece,
)
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.far_link import FarLink
from replication.far_site import FarSite, open_far_site
from replication.gathered import GATHERED_BYTES, EntriesGone, Gathered, left_of, marker_of
from replication.messages import RefusalCode
from replication.pair import Event, Pair, PairError, State
from replication.position import (
    EpochStart,
    Judgement,
    Position,
    Remedy,
    Standing,
    Stream,
    judge,
)
from replication.ranges import Range
from replication.set_builder import SHORT_ENTRIES, SetPlan, plan_sets
from vsap.digest import Readable
from vsap.entry import Entry
from vsap.queue import QueueCounts, QueueState

POLL_SECONDS: Final = 0.05
"""The queue is looked at this often without being notified: the mount process may have died."""
TRIM_SECONDS: Final = 0.1
GATHER_SECONDS: Final = 0.016
"""Pause after a set that took everything there was. What comes meanwhile is sent, synced, acknowledged and
applied as one set; set by set, a busy writer would lose its processors to its own shipping."""
SET_BYTES: Final = 8 << 20
SET_SECONDS: Final = 5.0
"""A set is no more than a limited link carries in this time: what was sent of it is lost when the link
breaks.
"""
LONG_SETS: Final = 4
LONG_SECONDS: Final = 10.0
"""More than so many sets wait, or more than one, for so long: a long queue, of which each block travels once,
as one set.
"""
LONG_SET_SECONDS: Final = 60.0
"""Such a set is no more than a limited link carries in this time."""
WORTHWHILE: Final = 0.75
"""Where more than this share of the data would travel in one set all the same, it travels in many: the far
site comes nearer step by step then.
"""
IN_FLIGHT_BYTES: Final = 32 << 20
IN_FLIGHT_SETS: Final = 256
REFUSED_SECONDS: Final = 2.0
TEMPORARY_REFUSALS: Final = frozenset({RefusalCode.BUSY, RefusalCode.FAULT, RefusalCode.GAP})
STOPPED_STATES: Final = frozenset({State.SIMPLEX, State.SUSPEND})


class ShippedQueue(EntrySource, Protocol):
    """The part of vsap.queue.EntryQueue that shipping needs; see there."""

    def counts(self) -> QueueCounts: ...
    def read(self, from_sequence: int, limit_bytes: int = ...) -> list[Entry]: ...
    def set_far_durable(self, epoch: int, sequence: int) -> None: ...
    def trim(self) -> int: ...
    def drop(self, through: int) -> int: ...


class StageLag(NamedTuple):
    """What has not reached a stage: entries, bytes of data, age of the oldest in seconds."""

    entries: int
    bytes: int
    seconds: float


class Lag(NamedTuple):
    """How far the far site is behind. `durable` is what losing two sites at once would cost."""

    sent: StageLag
    durable: StageLag
    applied: StageLag


class _Sent(NamedTuple):
    """A set that was sent on this connection."""

    last: int
    entries: int
    entry_bytes: int
    data_bytes: int
    """What of it travelled, at most."""
    oldest_timestamp_ns: int


class _Recopy(Exception):
    """The queue can no longer continue the far site: judge its position again."""


LEVELLED: Final = "a copy brought it level; it follows from the queue"


class Shipper:
    """Ships one volume's queue to one far site; `run` for the life of the daemon in one epoch."""

    def __init__(
        self,
        queue: ShippedQueue,
        area: Readable,
        dial: Callable[[], Awaitable[Channel]],
        *,
        volume: bytes,
        history: tuple[EpochStart, ...],
        ranges_for: Callable[[Remedy, Position], Awaitable[list[Range]]],
        pair: Pair,
        doubted: Callable[[], bool] = lambda: False,
        settle_log: Callable[[], Awaitable[None]] | None = None,
        on_far: Callable[[Position, int], None] | None = None,
        on_pair: Callable[[Pair], None] | None = None,
        seed: int = 0,
        link: FarLink | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`dial` connects, says hello and returns the channel, not running yet. It raises channel errors.

        `history`: the epochs up to the current one. `ranges_for(remedy, far)` lists what a difference copy
        must look at. `doubted()`: a crash of this host lost entries, and the far site was not compared
        since. `settle_log` returns when the mounted file system has committed everything it wrote (at once
        where none is mounted), or raises ControlError. `on_far(durable, applied_sequence)` and
        `on_pair(pair)` are told of every change.
        """
        self._queue = queue
        self._area = area
        self._dial = dial
        self._volume = volume
        self._history = history
        self._epoch = max(start.epoch for start in history)
        self._ranges_for = ranges_for
        self._doubted = doubted
        self._settle_log = settle_log
        self._on_far = on_far
        self._on_pair = on_pair
        self._now_ns = now_ns
        self._backoff = Backoff(seed)
        self._link = link or FarLink()
        self._set_bytes = self._link.portion(SET_SECONDS, SET_BYTES)
        self._most_gathered = self._link.portion(LONG_SET_SECONDS, GATHERED_BYTES)
        self._gathered_bytes = self._most_gathered
        self._gathered_last = 0  # of a gathered set that the far site has not reported durable
        self._as_written_to = 0  # gathering up to here is not worthwhile
        self.pair = pair
        """The state of the pair, since when and why."""
        self.judgement: Judgement | None = None
        """How the far site stood when it was last reached."""
        self.progress = CopyProgress()
        """Figures of the difference copy that is under way, or of the last one."""
        self.copying = False
        """Whether a difference copy is under way."""
        self.last_copy: DifferenceResult | None = None
        """The last difference copy that was finished."""
        self.durable: Position | None = None
        """What the far site reported last, on this or an earlier connection; None: nothing yet."""
        self.applied_sequence = 0
        self._far: FarSite | None = None
        self._follows = False  # the far site holds a prefix: its position may be recorded and trimmed by
        self._sent: deque[_Sent] = deque()
        self._wake = trio.Event()
        self._trim_wanted = trio.Event()
        self._drain_to = 0  # Suspending ends here, however fast the writer goes on

    # --- for the daemon ---------------------------------------------------------------------------------

    def notify(self) -> None:
        """Something became eligible; cheap, and never required: the queue is looked at anyway."""
        self._wake.set()

    def suspend(self, reason: str) -> None:
        """Drain what is eligible now, then stop until `resume`."""
        self._drain_to = self._queue.state().eligible_sequence
        self._event(Event.SUSPEND, reason)
        self.notify()

    def delete(self, reason: str) -> None:
        """Stop at once, until `resume` creates the pair again; what waits stays in the queue or the log."""
        self._event(Event.DELETE, reason)
        self.notify()

    def resume(self, reason: str) -> None:
        """Ship again, also where the pair was deleted: then it is created again."""
        self._event(Event.CREATE if self.pair.state is State.SIMPLEX else Event.RESYNC, reason)
        self.notify()

    async def run(self) -> None:
        """Ship until cancelled. Failures of the far site are told through the pair, none is raised."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trim_forever)
            while True:
                if self.pair.state in STOPPED_STATES:
                    await self._wait(None)
                    continue
                pause = await self._attempt()
                if pause > 0:
                    await trio.sleep(pause)

    def lag(self) -> Lag:
        """How far the far site is behind, per stage."""
        counts = self._queue.counts()
        newest = self._queue.state().next_sequence - 1
        now_ns = self._now_ns()
        recorded = newest - counts.entries
        durable = self.durable.sequence if self._follows and self.durable is not None else 0
        durable_sequence = min(newest, max(recorded, durable))
        sent_sequence = max(durable_sequence, self._far.tail.sequence if self._far and self._follows else 0)
        # What was reported and is not on record yet is no lag any more.
        waiting_bytes = counts.bytes - sum(
            one.entry_bytes for one in self._sent if recorded < one.last <= durable_sequence
        )
        beyond = [one for one in self._sent if one.last > durable_sequence]
        behind = [one for one in self._sent if self.applied_sequence < one.last <= durable_sequence]
        unsent_bytes = max(0, waiting_bytes - sum(one.entry_bytes for one in beyond))
        oldest = self._timestamp_of(durable_sequence + 1, newest)
        applied_oldest = behind[0].oldest_timestamp_ns if behind else oldest
        return Lag(
            sent=_stage(
                newest - sent_sequence, unsent_bytes, self._timestamp_of(sent_sequence + 1, newest), now_ns
            ),
            durable=_stage(newest - durable_sequence, max(0, waiting_bytes), oldest, now_ns),
            applied=_stage(
                newest - durable_sequence + sum(one.entries for one in behind),
                max(0, waiting_bytes) + sum(one.entry_bytes for one in behind),
                applied_oldest,
                now_ns,
            ),
        )

    def _timestamp_of(self, sequence: int, newest: int) -> int:
        """Of the first entry from here on; 0 if there is none."""
        found = self._queue.read_index(sequence, 1) if sequence <= newest else []
        return found[0].timestamp_ns if found else 0

    # --- a connection -----------------------------------------------------------------------------------

    async def _attempt(self) -> float:
        """One connection, until it ends; the seconds to wait before the next."""
        try:
            channel = await self._dial()
            async with open_far_site(
                channel, volume=self._volume, epoch=self._epoch, link=self._link, on_report=self._note
            ) as far:
                self._far = far
                await self._converse(far)
        except PeerRefused as error:
            self._event(Event.REFUSED, error.sentence)
            pause = self._backoff.failed()
            return pause if error.code in TEMPORARY_REFUSALS else max(pause, REFUSED_SECONDS)
        except (PeerUnreachable, RemoteProtocolError) as error:
            self._event(Event.UNREACHABLE, str(error))
            return self._backoff.failed()
        except CorruptionError as error:
            # What is damaged in the queue cannot be shipped: given up, a difference copy takes its place.
            self._event(Event.PEER_BEHIND, error.sentence)
            self._queue.drop(self._queue.state().eligible_sequence)
            return self._backoff.failed()
        except DeviceError as error:
            self._event(Event.UNREACHABLE, f"this site cannot read what it ships: {error.sentence}")
            return self._backoff.failed()
        except (CopyAborted, _Recopy) as error:
            self._event(Event.PEER_BEHIND, str(error))
            return 0.0
        finally:
            self._far = None
            self._follows = self.copying = False
            self._sent.clear()
            if self._gathered_last:
                # It did not get through: a smaller one may, where links break often or a journal is small.
                self._gathered_bytes = max(self._set_bytes, self._gathered_bytes // 2)
                self._gathered_last = 0
        return 0.0

    async def _converse(self, far: FarSite) -> None:
        position = await far.first_report()
        state = self._queue.state()
        judgement = self.judgement = judge(position, self._stream(state))
        if judgement.remedy is Remedy.STOP:
            raise PeerRefused(judgement.sentence, code=RefusalCode.SUPERSEDED)
        if self.pair.state is not State.DUPLEX or judgement.remedy is not Remedy.QUEUE:
            blank = judgement.standing is Standing.BLANK
            self._event(Event.PEER_EMPTY if blank else Event.PEER_BEHIND, judgement.sentence)
        if judgement.remedy is not Remedy.QUEUE and self.pair.state not in STOPPED_STATES:
            await self._copy(far, judgement, since=state.eligible_sequence)
        self._backoff.succeeded()
        self._follows = True
        self._note(far)
        copied = judgement.remedy is not Remedy.QUEUE  # then the judgement is of how it was before
        self._event(Event.IN_STEP, LEVELLED if copied else judgement.sentence)
        await self._ship(far)

    def _stream(self, state: QueueState) -> Stream:
        promised = Position(state.far_epoch, state.far_durable_sequence) if state.far_epoch else None
        oldest = state.oldest_sequence if state.oldest_sequence < state.next_sequence else None
        return Stream(self._history, oldest, state.next_sequence, promised, self._doubted())

    async def _copy(self, far: FarSite, judgement: Judgement, *, since: int) -> None:
        """The difference copy; the order of `since`, the commit and the listing is the one it demands."""
        self.progress = CopyProgress()
        self.copying = True
        ranges = await self._list(judgement.remedy, far.durable)
        self.last_copy = await copy_difference(
            far,
            self._area,
            ranges,
            self._queue,
            since=since,
            kind=SetKind.RECOVERY if judgement.remedy is Remedy.LISTED else SetKind.DIFFERENCE,
            progress=self.progress,
            parts=judgement.standing is Standing.BLANK,
            timestamp_ns=self._now_ns(),
            written_after=self._written_after,
        )
        self.copying = False

    async def _list(self, remedy: Remedy, after: Position) -> list[Range]:
        try:
            if self._settle_log is not None:
                await self._settle_log()
            return await self._ranges_for(remedy, after)
        except CorruptionError as error:
            raise DeviceError(errno.EIO, f"what to copy cannot be listed: {error.sentence}") from error
        except ControlError as error:
            raise DeviceError(errno.EIO, f"the log here cannot be settled: {error.sentence}") from error

    async def _written_after(self, since: int) -> tuple[int, list[Range]]:
        """For another round of a difference copy."""
        following = self._queue.state().eligible_sequence
        return following, await self._list(Remedy.LISTED, Position(self._epoch, since))

    async def _ship(self, far: FarSite) -> None:
        while self.pair.state not in STOPPED_STATES:
            if self.pair.state not in (State.DUPLEX, State.SUSPENDING):
                # Resumed before it had drained: this conversation goes on, and nothing was left out of it.
                self._event(Event.IN_STEP, "the far site follows, it was resumed before it stopped")
            state = self._queue.state()
            following = far.tail.sequence + 1
            if state.dropped_through >= following:
                raise _Recopy(f"entries up to {state.dropped_through} left the queue ({state.drop_reason})")
            suspending = self.pair.state is State.SUSPENDING
            last = min(state.eligible_sequence, self._drain_to) if suspending else state.eligible_sequence
            if last >= following:
                if self._room(far):
                    await self._send(far, following, last)
                    if far.tail.sequence >= last:
                        await trio.sleep(GATHER_SECONDS)
                    continue
            elif suspending and far.durable >= far.tail:
                self._event(Event.DRAINED, self.pair.reason)
                continue
            await self._wait(far)

    async def _send(self, far: FarSite, following: int, eligible: int) -> None:
        if self._is_long(following, eligible) and await self._send_gathered(far, following, eligible):
            return
        entries = [entry for entry in self._read(following) if entry.sequence <= eligible]
        if not entries or entries[0].sequence != following:
            raise _Recopy(f"entry {following} left the queue before it was shipped")
        for plan in plan_sets(entries):
            size = plan.entry_bytes
            self._sent.append(_Sent(plan.last, plan.entries, size, size, plan.oldest_timestamp_ns))
            await self._send_set(far, plan)

    def _read(self, following: int) -> list[Entry]:
        return self._queue.read(following, self._set_bytes)

    async def _send_set(self, far: FarSite, plan: SetPlan) -> None:
        await far.begin(plan.kind, plan.last, plan.timestamp_ns)
        for piece in plan.pieces:
            await send_piece(far, piece)
        if plan.marker is not None:
            await far.marker(plan.last, plan.marker)
        await far.commit(plan.last)

    def _is_long(self, following: int, last: int) -> bool:
        """Whether so much waits that overwrites are looked for in all of it."""
        if last - following < SHORT_ENTRIES or following <= self._as_written_to:
            return False
        counts = self._queue.counts()
        recorded = self._queue.state().next_sequence - 1 - counts.entries
        sent = sum(one.entry_bytes for one in self._sent if one.last > recorded)
        unsent_sets = (counts.bytes - sent) / self._set_bytes
        if unsent_sets <= 1:
            return False
        age_ns = self._now_ns() - self._timestamp_of(following, last)
        return unsent_sets > LONG_SETS or age_ns > LONG_SECONDS * 1e9

    async def _send_gathered(self, far: FarSite, following: int, eligible: int) -> bool:
        """What waits, as much as one set may hold, without what was written over; False: too little was."""
        gathered = Gathered(following, limit_bytes=self._gathered_bytes)
        try:
            while gathered.last < eligible and not gathered.full:
                await trio.to_thread.run_sync(gathered.gather, self._queue, eligible)
            if gathered.data_bytes > WORTHWHILE * gathered.entry_bytes:
                self._as_written_to = gathered.last
                return False
            await trio.to_thread.run_sync(gathered.settle)
            self._sent.append(
                _Sent(
                    gathered.last,
                    gathered.entries,
                    gathered.entry_bytes,
                    gathered.data_bytes,
                    gathered.oldest_timestamp_ns,
                )
            )
            self._gathered_last = gathered.last
            await far.begin(SetKind.COALESCED, gathered.last, gathered.timestamp_ns)
            for piece in left_of(self._queue, gathered):
                await send_piece(far, piece)
            marker = marker_of(self._queue, gathered)
        except EntriesGone as error:
            raise _Recopy(f"entry {error} left the queue before it was shipped") from error
        if marker is not None:
            await far.marker(gathered.last, marker)
        await far.commit(gathered.last)
        return True

    def _room(self, far: FarSite) -> bool:
        """Whether another set may be under way."""
        waiting = [one.data_bytes for one in self._sent if one.last > far.durable.sequence]
        return len(waiting) < IN_FLIGHT_SETS and sum(waiting) < IN_FLIGHT_BYTES

    def _note(self, far: FarSite) -> None:
        """The far site reported, or its channel failed. Only a site that follows may move anything here."""
        self._wake.set()
        if not self._follows:
            return
        self.durable = far.durable
        self.applied_sequence = far.applied_sequence
        if self._gathered_last and far.durable.sequence >= self._gathered_last:
            self._gathered_bytes = min(self._most_gathered, 2 * self._gathered_bytes)
            self._gathered_last = 0
        while self._sent and self._sent[0].last <= self.applied_sequence:
            self._sent.popleft()
        self._trim_wanted.set()
        if self._on_far is not None:
            self._on_far(far.durable, far.applied_sequence)

    async def _wait(self, far: FarSite | None) -> None:
        with trio.move_on_after(POLL_SECONDS):
            await self._wake.wait()
        self._wake = trio.Event()
        if far is not None and far.failure is not None:
            raise far.failure

    async def _trim_forever(self) -> None:
        while True:
            with trio.move_on_after(1.0):
                # The common flush may be what was missing, so it is tried without a report too.
                await self._trim_wanted.wait()
            self._trim_wanted = trio.Event()
            try:
                # Seldom, not at every report: while this process writes there, the appender waits for it.
                if self._follows and self.durable is not None:
                    await trio.to_thread.run_sync(self._queue.set_far_durable, *self.durable)
                await trio.to_thread.run_sync(self._queue.trim)
            except DeviceError as error:
                self._event(Event.UNREACHABLE, f"the queue of this site cannot be trimmed: {error.sentence}")
            await trio.sleep(TRIM_SECONDS)

    def _event(self, event: Event, reason: str) -> None:
        before = self.pair
        with contextlib.suppress(PairError):  # an event that means nothing in this state changes nothing
            self.pair = self.pair.after(event, reason, self._now_ns())
        if self.pair != before and self._on_pair is not None:
            self._on_pair(self.pair)


def _stage(entries: int, size: int, oldest_timestamp_ns: int, now_ns: int) -> StageLag:
    seconds = max(0, now_ns - oldest_timestamp_ns) / 1e9 if entries and oldest_timestamp_ns else 0.0
    return StageLag(entries, size, seconds)
