"""The synchronous copy (A -> C), in the mount process: provides vsap.remote.RemoteCopy.

Every entry is in the queue before it comes here, so nothing is kept twice: on a live connection an entry is
encrypted and handed to the kernel in place; whatever the secondary lacks after an interruption is read from
the queue again, from the sequence that the secondary itself names. Where the queue no longer holds it, the
blocks that may differ are copied, in the same ordered stream.
"""

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol
from uuid import UUID, uuid4

import msgspec
import trio

from jfs.errors import CorruptionError, DeviceError
from replication.backoff import Backoff
from replication.bodies import (
    FLUSH_CLEAN,
    FLUSH_SUSPEND,
    RECEIVED_IN_STEP,
    FarPosition,
    decode_differ,
    decode_marker_digests,
    decode_received,
)
from replication.channel import Channel
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.frames import PROTOCOL_VERSION, Frame, FrameType
from replication.handshake import greet, raise_if_refused
from replication.messages import Hello, RefusalCode, Welcome
from replication.pair import Event, Pair, State
from replication.resync import Range, Resync
from replication.roles import Roles
from replication.sync_ledger import SyncLedger
from replication.sync_resume import MarkerAnswers, Remedy, on_our_history, remedy, timeouts_of_patience
from replication.sync_stream import Readable, Source, SyncStream
from vsap.entry import Entry

__all__ = ["Dial", "SyncCopy"]

Dial = Callable[[], Awaitable[Channel]]
"""Connects to the secondary; raises PeerUnreachable or PeerRefused."""
_TICKS: Final = 8
"""Looks of the watchdog in one protect_timeout."""
_LONGEST_PAUSE_SECONDS: Final = 1.0
"""Between attempts to connect: every write waits for this peer, and not longer than protect_timeout."""
_FAILURES: Final = (PeerUnreachable, PeerRefused, RemoteProtocolError, DeviceError, CorruptionError)


class _Queue(Source, Protocol):
    @property
    def next_sequence(self) -> int: ...


class SyncCopy(SyncLedger):
    """Copies to one secondary for as long as `run` runs. All calls from one trio thread."""

    def __init__(
        self,
        dial: Dial,
        *,
        volume: UUID,
        site: str,
        peer: str,
        roles: Roles,
        queue: _Queue,
        area: Readable,
        differing: Callable[[int], Sequence[Range] | None],
        allocated: Callable[[], Sequence[Range]],
        common_flush: Callable[[], int],
        protect: bool = True,
        protect_timeout_seconds: float = 10.0,
        doubted: bool = False,
        told: bool = False,
        on_told: Callable[[bool], None] | None = None,
        pair: Pair | None = None,
        on_pair: Callable[[Pair], None] | None = None,
        on_superseded: Callable[[Roles], None] | None = None,
        seed: int = 0,
    ) -> None:
        """`differing(n)`: the ranges that may differ from a secondary that has the stream up to n, or None.

        None: not known; then `allocated()`, everything in use, is compared by hash. `common_flush()`: the
        newest sequence known to be on stable storage at both. `doubted`: a crash of this host lost entries,
        and the secondary was not compared since. `told`: the secondary knows, from an earlier mount, that
        writes may be complete without it; `on_told` is to keep that, durably, before it returns. `pair`: the
        state on record, `on_pair` is told every change of it. `on_superseded` is told the newer roles when
        the secondary has them.
        """
        self._promised = pair is not None and pair.state not in (State.SIMPLEX, State.INITIAL_COPYING)
        super().__init__(peer, protect=protect, told=told, on_told=on_told, pair=pair, on_pair=on_pair)
        self.roles = roles
        self._dial = dial
        self._volume = volume
        self._site = site
        self._queue = queue
        self._area = area
        self._differing = differing
        self._allocated = allocated
        self._common_flush = common_flush
        self._protect_timeout = protect_timeout_seconds
        self._on_superseded = on_superseded
        self._incarnation = str(uuid4())
        self._backoff = Backoff(seed, longest_seconds=_LONGEST_PAUSE_SECONDS)
        self._newest = queue.next_sequence - 1
        self._flush_wanted = 0
        self._flush_sent = 0
        self._stream: SyncStream | None = None
        self._resync: Resync | None = None
        self._far: FarPosition | None = None
        self._doubted = doubted
        self._repaired = False
        self._force_copy = False
        self._out_since: float | None = None
        self._attention = trio.Event()
        self._flags_answered = 0
        self._finished = False
        self._announced = False
        """While the pair is suspended: the secondary knows that it may be behind."""
        self._markers = MarkerAnswers()

    # --- what the virtual area asks (vsap.remote.RemoteCopy) --------------------------------------------

    @property
    def remaining_bytes(self) -> int:
        """Bytes that the copy under way still has to compare or copy; 0 without one."""
        return self._resync.remaining_bytes if self._resync is not None else 0

    def send(self, entries: Sequence[Entry], *, flush: bool = False) -> None:
        """Take the next entries; they are in the queue. Never waits, never raises."""
        if entries[0].sequence <= self._newest:
            # Repeated after a restart: resuming reads them from the queue if the secondary lacks them.
            entries = [entry for entry in entries if entry.sequence > self._newest]
        if entries:
            self._newest = entries[-1].sequence
            stream = self._stream
            if stream is not None:
                flush_now = flush and self._in_step
                stream.offer(entries, flush=flush_now)
                if flush_now:
                    self._flush_wanted = self._flush_sent = self._newest
        if flush:
            self.request_flush(self._newest)

    def request_flush(self, sequence: int) -> None:
        """Ask the secondary to make everything up to `sequence` durable; never waits."""
        if sequence > self._flush_wanted:
            self._flush_wanted = sequence
        self._send_flush()

    def _send_flush(self) -> None:
        stream = self._stream
        if stream is not None and self._in_step and self._flush_wanted > max(self._durable, self._flush_sent):
            stream.flush()
            self._flush_sent = max(stream.sent, self._flush_wanted)

    # --- what the mount process asks --------------------------------------------------------------------

    def far_position(self, epoch: int, sequence: int) -> None:
        """Tell the secondary, in the stream, what the async site has made durable."""
        self._far = FarPosition(epoch, sequence)
        if self._stream is not None:
            self._stream.far_position(self._far)

    async def marker_digests(self, sequence: int) -> list[bytes]:
        """The secondary's digests of a marker that was sent; the caller sets the deadline.

        Raises PeerUnreachable if the connection is lost before the answer is here.
        """
        while True:
            digests = self._markers.take(sequence)
            if digests is not None:
                return digests
            if self._stream is None:
                raise PeerUnreachable(f"site {self.peer} is not connected: {self._pair.reason}")
            await self._progress.park()

    async def finish(self, timeout_seconds: float = 5.0) -> bool:
        """Say good-bye: a last flush, noted as clean at the secondary; `run` returns. False if not heard.

        Without protection it is no promise: the next mount may go on before the secondary can be told.
        """
        heard = False
        with trio.move_on_after(timeout_seconds):
            if self._in_step:
                heard = await self._flush_with(FLUSH_CLEAN if self._protect else 0)
        self._end()
        self._attention.set()
        if self._stream is not None:
            self._stream.channel.close("the volume was unmounted")
        return heard

    def _end(self) -> None:
        """Nobody will answer any more: who still waits, or would write, must hear of it."""
        self._finished = True
        self._permanent = self._permanent or DeviceError(errno.ENODEV, "the volume was unmounted")
        self._changed()

    async def suspend(
        self, reason: str, *, timeout_seconds: float = 5.0, force: bool = False, delete: bool = False
    ) -> None:
        """Go on without the secondary, for a while or (`delete`) until `resume` creates the pair again.

        It is told first, so that it never claims to have everything. PeerUnreachable if it cannot be told;
        `force` then goes on all the same.
        """
        told = False
        with trio.move_on_after(timeout_seconds):
            told = self._in_step and await self._flush_with(FLUSH_SUSPEND)
        if not (told or self._suspended or force) and self._protect:
            raise PeerUnreachable(
                f"site {self.peer} cannot be told that the pair is {'deleted' if delete else 'suspended'} "
                f"({self._pair.reason}); bring it back first, or add --force and never take over there"
            )
        self._suspended, self._announced = True, told
        self._in_step = False
        self._event(Event.DELETE if delete else Event.SUSPEND, reason)
        if self._stream is not None:
            self._stream.channel.close(f"the pair was {'deleted' if delete else 'suspended'}")
        self._changed()

    def resume(self, reason: str) -> None:
        """End a suspension, or create a deleted pair again: what the secondary missed is sent or copied."""
        if self._suspended:
            self._suspended = False
            self._promised = self._promised and self._pair.state is not State.SIMPLEX
            self._event(Event.CREATE if self._pair.state is State.SIMPLEX else Event.RESYNC, reason)
            self._out_since = trio.current_time()
            self._attention.set()
            self._changed()

    async def _flush_with(self, flags: int) -> bool:
        stream = self._stream
        if stream is None:
            return False
        self._flags_answered = 0
        stream.flush(flags)
        while self._flags_answered & flags != flags:
            if self._stream is not stream:
                return False
            await self._progress.park()
        return True

    # --- the connection ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the secondary connected until cancelled, or until `finish`."""
        self._out_since = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                task_status.started()
                while not self._finished:
                    if self._stopped:
                        if not self._suspended or self._announced or await self._announce():
                            await self._attention.wait()
                            self._attention = trio.Event()
                        continue
                    await self._connect_once()
                nursery.cancel_scope.cancel()
        finally:
            self._end()

    @property
    def _stopped(self) -> bool:
        """No conversation is wanted now."""
        return self._finished or self._suspended or self._permanent is not None

    async def _announce(self) -> bool:
        """Tell a secondary that was not reachable when its pair was suspended or deleted that it may lack
        what was acknowledged since: it could else take over and prove, wrongly, that nothing is lost. What a
        HELLO says of protection is on its record before it answers. False: not yet, it is time to try again.
        """
        try:
            channel = await self._dial()
            try:
                await greet(channel, self._hello(protect=False), volume=self._volume.bytes)
                self._announced = True
            finally:
                channel.close()
        except PeerRefused as error:
            self._superseded(error)
        except _FAILURES:
            pass  # why it is not connected is no news of a pair that is suspended
        if not self._announced and self._permanent is None:
            with trio.move_on_after(self._backoff.failed()):
                await self._attention.wait()
            return False
        return True

    async def _connect_once(self) -> None:
        try:
            channel = await self._dial()
            try:
                await self._converse(channel)
            finally:
                channel.close()
        except _FAILURES as error:
            self._lost(error)
        if not self._stopped:
            with trio.move_on_after(self._backoff.failed()):
                await self._attention.wait()

    async def _converse(self, channel: Channel) -> None:
        if self._protect:
            self._tell(False)
        welcome = await greet(channel, self._hello(), volume=self._volume.bytes)
        if welcome.roles is not None and welcome.roles.epoch > self.roles.epoch:
            raise PeerRefused(f"site {self.peer} is in a newer epoch", welcome.roles, RefusalCode.SUPERSEDED)
        if self._stopped:
            return  # suspended or finished while this was greeted: what is connected must not come into step
        if not self._protect:
            self._tell(True)
        self._stream = stream = SyncStream(
            channel,
            volume=self._volume.bytes,
            epoch=self.roles.epoch,
            queue=self._queue,
            area=self._area,
            sent=welcome.received_sequence,
            newest=lambda: self._newest,
            copy_from=lambda: self._begin_copy_amid(stream, welcome),
        )
        stream.far = self._far
        self._flush_sent = 0
        failures: list[Exception] = []
        try:
            self._resume_from(stream, welcome)
            async with trio.open_nursery() as nursery:

                async def guarded(work: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await work()
                    except _FAILURES as error:
                        failures.append(error)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(channel.run)
                nursery.start_soon(guarded, stream.pump)
                nursery.start_soon(guarded, self._read)
        finally:
            stream.live = False
            self._stream = None
        if failures:
            raise failures[0]

    def _hello(self, *, protect: bool | None = None) -> Hello:
        return Hello(
            version=PROTOCOL_VERSION,
            site=self._site,
            purpose="sync",
            volume=str(self._volume),
            size_bytes=self._area.size_bytes,
            roles=self.roles,
            incarnation=self._incarnation,
            newest_sequence=self._newest,
            common_flush_sequence=self._common_flush(),
            protect=self._protect if protect is None else protect,
        )

    def _resume_from(self, stream: SyncStream, welcome: Welcome) -> None:
        """Bring the secondary level: from the queue, by the copy under way, or by a new one."""
        resync = self._resync
        chosen = remedy(
            welcome,
            self.roles,
            newest=self._newest,
            queue_whole=not self._doubted,
            resync=resync,
            force_copy=self._force_copy,
        )
        if chosen is Remedy.COPY:
            stream.begin_copy(self._begin_copy(welcome))
            return
        if chosen is Remedy.GO_ON and resync is not None:
            resync.reconnected()
            stream.sent, stream.resync = welcome.copy_sequence, resync
            event = Event.PEER_EMPTY if resync.initial else Event.PEER_BEHIND
            self._event(event, f"the copy to site {self.peer} goes on")
        else:
            self._resync = None
            self._received, self._durable = welcome.received_sequence, welcome.durable_sequence
            missing = self._newest - welcome.received_sequence
            self._event(Event.PEER_BEHIND, f"site {self.peer} is connected, {missing} entries are sent")
        self._changed()

    def _begin_copy_amid(self, stream: SyncStream, welcome: Welcome) -> Resync:
        """The queue lost what the secondary lacks while connected: WELCOME tells no longer what it holds."""
        if stream.sent == welcome.received_sequence and stream.resync is None and not stream.marked:
            return self._begin_copy(welcome)
        epoch = self.roles.epoch if self._repaired else welcome.position_epoch
        now = msgspec.structs.replace(welcome, has_volume=True, position_epoch=epoch)
        return self._begin_copy(now, known=stream.resync is None)

    def _begin_copy(self, welcome: Welcome, *, known: bool = True) -> Resync:
        """Plan a copy: the ranges that may differ, or a comparison of everything in use."""
        self._force_copy = False
        self._in_step = False
        # Epoch 0: no copy to it was ever complete. Where none was promised either, nobody waits for this one;
        # a site that had everything and comes back empty has lost its disk, and protection holds.
        self._initial = (not welcome.has_volume or welcome.position_epoch == 0) and not self._promised
        if not welcome.has_volume:
            resync = Resync(welcome.incarnation, copy=self._allocated(), initial=True)
            self._event(Event.PEER_EMPTY, f"site {self.peer} is empty, everything in use is copied")
        else:
            # After a crash of this host it is this site that may lack what the secondary received.
            start = min(welcome.received_sequence, self._common_flush())
            known = known and not self._doubted and on_our_history(welcome, self.roles)
            ranges = self._differing(start) if known and welcome.received_sequence <= self._newest else None
            if ranges is not None:
                # Compared first: old positions are whole chunks, and much of it may have arrived already.
                resync = Resync(welcome.incarnation, compare=ranges)
                reason = f"what was written after sequence {start} is copied to site {self.peer}"
            else:
                resync = Resync(welcome.incarnation, compare=self._allocated())
                reason = f"it is not known what site {self.peer} lacks, everything in use is compared"
            self._event(Event.PEER_BEHIND, reason)
        self._resync = resync
        if self._out_since is None:
            self._out_since = trio.current_time()
        self._changed()
        return resync

    async def _read(self) -> None:
        stream = self._stream
        assert stream is not None
        while True:
            self._take(stream, await stream.channel.receive())

    def _look(self) -> bool:
        stream = self._stream
        if stream is None:
            return False
        try:
            frames = stream.channel.receive_in_place()
            if frames:
                self._take(stream, frames)
        except (PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
            stream.channel.fail(error)  # the receiving task hears of it and ends the conversation
            return False
        return bool(frames)

    def _take(self, stream: SyncStream, frames: Sequence[Frame]) -> None:
        changed = False
        for frame in frames:
            if frame.type is FrameType.RECEIVED:
                self._on_received(stream, frame)
                changed = True
            elif frame.type is FrameType.FLUSHED:
                self._on_flushed(stream, frame)
                changed = True
            elif frame.type is FrameType.DIFFER:
                self._on_differ(stream, frame)
            elif frame.type is FrameType.MARKER_DIGESTS:
                self._markers.add(frame.sequence, decode_marker_digests(frame))
            else:
                raise_if_refused(frame)
                raise RemoteProtocolError(f"a {frame.type.name} frame has no place here")
        if changed and self.on_received is not None:
            self.on_received()
        self._progress.unpark_all()

    def _on_received(self, stream: SyncStream, frame: Frame) -> None:
        copied = decode_received(frame)
        self._check_sent(stream, frame)
        stream.answered = max(stream.answered, frame.sequence)
        if stream.resync is not None:
            stream.resync.acknowledged(copied)
            if not frame.flags & RECEIVED_IN_STEP:
                stream.wake()
                return
        # What came while the copy's last flush was under way was answered before the word that ends it.
        self._received = max(self._received, stream.answered)
        if frame.flags & RECEIVED_IN_STEP and stream.marked and not self._in_step:
            self._now_in_step(stream, frame.sequence)

    def _now_in_step(self, stream: SyncStream, sequence: int) -> None:
        stream.resync = self._resync = None
        self._durable = max(self._durable, sequence)
        self._in_step = self._promised = True
        self._initial = False
        self._doubted = False
        self._repaired = True
        self._refusal = None
        self._out_since = None
        self._backoff.succeeded()
        self._event(Event.IN_STEP, f"site {self.peer} has everything")
        self._send_flush()

    def _on_flushed(self, stream: SyncStream, frame: Frame) -> None:
        self._check_sent(stream, frame)
        self._flags_answered |= frame.flags
        if self._in_step:
            self._received = max(self._received, frame.sequence)
            self._durable = max(self._durable, frame.sequence)

    def _check_sent(self, stream: SyncStream, frame: Frame) -> None:
        if frame.sequence > stream.sent:
            raise RemoteProtocolError(
                f"site {self.peer} acknowledges {frame.sequence}, {stream.sent} was sent last"
            )

    def _on_differ(self, stream: SyncStream, frame: Frame) -> None:
        if stream.resync is None:
            raise RemoteProtocolError("a DIFFER frame arrived and nothing is compared")
        stream.resync.answered(frame.sequence, decode_differ(frame))
        stream.wake()

    # --- states -----------------------------------------------------------------------------------------

    def _lost(self, error: Exception) -> None:
        """The connection ended, or none could be made."""
        if self._in_step:
            self._backoff.succeeded()
        self._in_step = False
        if self._out_since is None:
            self._out_since = trio.current_time()
        if not self._finished:
            self._lost_because = error.sentence if isinstance(error, PeerRefused) else str(error)
        if isinstance(error, PeerRefused):
            self._refused(error)
        elif not self._finished:
            self._event(Event.UNREACHABLE, str(error))
        self._changed()

    def _refused(self, error: PeerRefused) -> None:
        self._event(Event.REFUSED, error.sentence)
        if error.code == RefusalCode.GAP:
            self._force_copy = True
        self._superseded(error)

    def _superseded(self, error: PeerRefused) -> None:
        """Where the secondary is in a newer epoch, nothing is written here any more."""
        if error.roles is not None and error.roles.epoch > self.roles.epoch:
            self._permanent = DeviceError(errno.EROFS, error.sentence)
            if self._on_superseded is not None:
                self._on_superseded(error.roles)

    async def _watch(self) -> None:
        """Refuse writes when the secondary was out of step for too long; drop one that no longer answers."""
        tick = self._protect_timeout / _TICKS
        stalled = 0.0
        last: tuple[int, ...] = ()
        before = trio.current_time()
        while True:
            await trio.sleep(tick)
            now = trio.current_time()
            out = self._out_since
            if (
                out is not None
                and now - out >= self._protect_timeout
                and not self.unprotected
                and self._refusal is None
            ):
                self._refusal = DeviceError(errno.EIO, self._refusal_sentence())
                self._changed()
            stream = self._stream
            sent = 0 if stream is None else stream.sent
            copied = self._resync.copied_bytes if self._resync is not None else 0
            state = (self._received, self._durable, copied, sent)
            patience = self._protect_timeout * timeouts_of_patience(
                unanswered=self._received < sent,
                unflushed=self._in_step and self._durable < self._flush_wanted,
                unsent=sent < self._newest,
            )
            stalled = stalled + min(now - before, 2 * tick) if patience and state == last else 0.0
            last, before = state, now
            if stream is not None and 0 < patience <= stalled:
                stalled = 0.0
                stream.channel.close(f"site {self.peer} has acknowledged nothing for {patience:g} s")
