"""One connection of the writer at the synchronous secondary: its frames applied, flushed and answered.

All of a burst is applied before one RECEIVED answers it. A FLUSH that is quick is done at the end of its
burst and answered in the same message; another one is done in a thread while further frames are applied.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

import trio

from jfs.busy_wait import BusyWait
from jfs.errors import DeviceError
from replication.bodies import (
    COPY_BEGIN,
    COPY_LAST,
    DIGEST_BYTES,
    FLUSH_CLEAN,
    FLUSH_SUSPEND,
    WRITE_FLUSH,
    WRITE_MORE,
    Differ,
    MarkerDigests,
    decode_copy,
    decode_data,
    decode_discard,
    decode_far_position,
    decode_hashes,
    decode_marker,
    encode_differ,
    encode_marker_digests,
    encode_received,
)
from replication.channel import Channel
from replication.errors import LocalProtocolError, PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.frames import Frame, FrameType, encode
from replication.messages import Hello, RefusalCode, Refused, encode_json
from replication.roles import Roles
from replication.set_apply import differing_ranges
from vsap.area import flush_quickly
from vsap.digest import digest_ranges

if TYPE_CHECKING:
    from replication.sync_receiver import SyncReceiver

__all__ = ["ReceivingArea", "ReceivingPositions", "SyncSession"]

RECORD_SECONDS: Final = 0.1
"""Pause between two records of what is durable: what a crash of this host may make it forget that it has.
About as long as what the far site has stays in the writer's queue (`shipper.TRIM_SECONDS`), which sends it
again; what has left the queue is compared instead.
"""
AWAKE_SECONDS: Final = 500e-6
"""An application that waits for each write makes the next one within this, of a writer close by."""
_DIGESTS_A_FRAME: Final = 65536
_ENTRIES: Final = frozenset({FrameType.WRITE, FrameType.DISCARD, FrameType.MARKER, FrameType.BARRIER})
_Buffer = bytes | bytearray | memoryview


class ReceivingArea(Protocol):
    """The area that the stream is applied to: vsap.area.FileArea."""

    @property
    def size_bytes(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: _Buffer) -> None: ...
    def discard(self, offset: int, length: int) -> None: ...
    @property
    def is_quick_to_flush(self) -> bool: ...
    def flush(self) -> None: ...
    @property
    def may_have_lost(self) -> bool: ...
    def accept_loss(self) -> None: ...


class ReceivingPositions(Protocol):
    """What was written: vsap.positions.WritePositions."""

    def append(self, sequence: int, offset: int, length: int) -> None: ...
    def write_out(self) -> None: ...
    def flush(self) -> None: ...
    def prune(self, sequence: int) -> None: ...


class SyncSession:
    """One connection of the writer."""

    def __init__(self, receiver: "SyncReceiver", channel: Channel, hello: Hello, roles: Roles) -> None:
        self.channel = channel
        channel.busy = BusyWait(AWAKE_SECONDS)
        self.finished = trio.Event()
        self._receiver = receiver
        self._area = receiver.area
        self._record = receiver.record
        self._positions = receiver.positions
        self._hello = hello
        self._roles = roles
        self._volume = receiver.volume.bytes
        self._epoch = roles.epoch
        self._copied = 0
        self._unanswered = False
        self._flush_wanted = trio.Event()
        self._flush_asked = False
        self._flush_flags = 0
        self._last_seen = False
        self._entered = False
        self._facts_lock = trio.Lock()
        self._unrecorded = trio.Event()
        self._handlers: dict[FrameType, Callable[[Frame], Awaitable[None] | None]] = {
            FrameType.WRITE: self._write,
            FrameType.DISCARD: self._discard,
            FrameType.MARKER: self._marker,
            FrameType.BARRIER: self._barrier,
            FrameType.COPY: self._copy,
            FrameType.HASHES: self._hashes,
            FrameType.FLUSH: self._flush,
            FrameType.FAR_POSITION: self._far_position,
        }

    # --- life -------------------------------------------------------------------------------------------

    def stop(self, sentence: str, code: RefusalCode, roles: Roles) -> None:
        """Refuse the writer in mid-conversation; nothing that is still on its way will be applied."""
        try:
            self.channel.send_nowait(_refused(sentence, code, roles))
        except (PeerUnreachable, PeerRefused, RemoteProtocolError, LocalProtocolError):
            return
        finally:
            self.channel.close(sentence)

    async def run(self) -> None:
        """WELCOME, then the stream, until the connection ends."""
        await self._note_hello()
        self.channel.send_nowait(encode_json(self._receiver.welcome(self._roles), self._volume, self._epoch))
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flusher)
            nursery.start_soon(self._recorder)
            try:
                while True:
                    await self._burst(await self.channel.receive())
            except (PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
                failure = error
            except DeviceError as error:
                failure = error
                self.stop(
                    f"the area of site {self._receiver.site} fails: {error.sentence}",
                    RefusalCode.FAULT,
                    self._roles,
                )
            except _Gap as error:
                failure = RemoteProtocolError(str(error))
                self.stop(str(error), RefusalCode.GAP, self._roles)
            finally:
                self.channel.close("the conversation ended")
                nursery.cancel_scope.cancel()
        if self._unrecorded.is_set():
            with trio.CancelScope(shield=True), suppress(DeviceError):
                await self._record_facts()
        if failure is not None:
            raise failure if not isinstance(failure, DeviceError) else PeerUnreachable(failure.sentence)

    async def _burst(self, frames: Sequence[Frame]) -> None:
        volume, epoch = self._volume, self._epoch
        for frame in frames:
            if self.channel.failure is not None:
                return  # fenced, or replaced, while a frame of this burst was waited for
            if frame.volume != volume or frame.epoch != epoch:
                raise RemoteProtocolError(
                    f"a {frame.type.name} frame of epoch {frame.epoch} or of another volume arrived"
                )
            handler = self._handlers.get(frame.type)
            if handler is None:
                raise RemoteProtocolError(f"a {frame.type.name} frame has no place in the synchronous stream")
            if not self._entered and frame.type in _ENTRIES:
                await self._enter()
            waiting = handler(frame)
            if waiting is not None:
                await waiting
        if self._may_flush_in_place():
            stream = self._stream
            self._flush_in_place(stream)
            await self._answer_flush(stream)
            return
        if self._flush_asked:
            self._flush_wanted.set()
        if self._unanswered:
            await self._answer()

    async def _answer(self) -> None:
        # Waits when the writer reads none of its answers: then nothing more is read from it either.
        self._unanswered = False
        await self.channel.send(encode_received(self._volume, self._epoch, self._stream, self._copied))

    # --- the stream -------------------------------------------------------------------------------------

    @property
    def _stream(self) -> int:
        record = self._record
        return record.copy_sequence if record.facts.copying else record.received_sequence

    def _advance(self, sequence: int) -> None:
        if self._record.facts.copying:
            self._record.copy_sequence = sequence
        else:
            self._record.received_sequence = sequence
        self._unanswered = True

    def _expect(self, sequence: int) -> None:
        """The one check of continuity: every entry follows the one before it."""
        stream = self._stream
        if sequence != stream + 1:
            raise _Gap(f"site {self._receiver.site} has the stream up to {stream} and was sent {sequence}")

    async def _enter(self) -> None:
        """Before the first entry of a connection: from here on the area holds the stream of this epoch."""
        self._entered = True
        facts = self._record.facts
        if not facts.copying:
            await self._save(epoch=self._epoch, has_volume=True)

    def _note(self, sequence: int, offset: int, length: int) -> None:
        if offset + length > self._area.size_bytes:
            raise RemoteProtocolError(
                f"a write of {length} bytes at {offset}, beyond the area's {self._area.size_bytes} bytes"
            )
        if self._positions is not None:
            # Before the write it names, so that no written block is ever unknown.
            self._positions.append(sequence, offset, length)
            self._positions.write_out()

    def _write(self, frame: Frame) -> None:
        offset, _, data = decode_data(frame)
        self._expect(frame.sequence)
        self._note(frame.sequence, offset, len(data))
        self._area.write(offset, data)
        if not frame.flags & WRITE_MORE:
            self._advance(frame.sequence)
        if frame.flags & WRITE_FLUSH:
            self._ask_for_flush(0)

    def _discard(self, frame: Frame) -> None:
        offset, _, length = decode_discard(frame)
        self._expect(frame.sequence)
        self._note(frame.sequence, offset, length)
        self._area.discard(offset, length)
        self._advance(frame.sequence)

    async def _barrier(self, frame: Frame) -> None:
        self._expect(frame.sequence)
        await flush_quickly(self._area)
        self._advance(frame.sequence)

    async def _marker(self, frame: Frame) -> None:
        marker = decode_marker(frame)
        self._expect(frame.sequence)
        if any(offset + length > self._area.size_bytes for offset, length in marker.ranges):
            raise RemoteProtocolError("a MARKER frame for a range beyond the area")
        # The stream stands still meanwhile: the digests are of exactly this place in it.
        digests = await trio.to_thread.run_sync(digest_ranges, self._area, marker.ranges, marker.leaf_bytes)
        self._advance(frame.sequence)
        for first in range(0, max(len(digests), 1), _DIGESTS_A_FRAME):
            part = tuple(digests[first : first + _DIGESTS_A_FRAME])
            answer = MarkerDigests(marker.leaf_bytes, first, len(digests), part)
            await self.channel.send(encode_marker_digests(self._volume, self._epoch, frame.sequence, answer))

    async def _far_position(self, frame: Frame) -> None:
        far = decode_far_position(frame)
        facts = self._record.facts
        if far.epoch > self._epoch or (far.epoch, far.sequence) < self._receiver.far_position:
            return
        if far.epoch != facts.far_epoch:
            self._record.far_sequence = 0
            await self._save(far_epoch=far.epoch)
        self._record.far_sequence = far.sequence
        if far.epoch == self._epoch:
            self._receiver.prune(far.sequence)
        if self._receiver.on_far_position is not None:
            self._receiver.on_far_position(far.epoch, far.sequence)

    # --- copies -----------------------------------------------------------------------------------------

    async def _copy(self, frame: Frame) -> None:
        copy = decode_copy(frame)
        if copy.flags & COPY_BEGIN:
            # durable_sequence, where the copy began from, stays until it is complete.
            self._record.copy_sequence = frame.sequence
            await self._save(has_volume=True, copying=True, in_step=False, clean=False)
            self._unanswered = True
        elif copy.flags & COPY_LAST:
            if frame.sequence != self._stream:
                raise _Gap(f"the copy ended at {frame.sequence}, the stream is at {self._stream}")
            self._last_seen = True
            self._ask_for_flush(0)
        else:
            if not self._record.facts.copying:
                raise RemoteProtocolError("a COPY frame arrived and no copy has begun")
            self._note(max(frame.sequence, 1), copy.offset, copy.length)
            if copy.data is None:
                self._area.discard(copy.offset, copy.length)
            else:
                self._area.write(copy.offset, copy.data)
            self._copied += 1
            self._unanswered = True

    async def _hashes(self, frame: Frame) -> None:
        question = decode_hashes(frame)
        if question.offset + question.length > self._area.size_bytes:
            raise RemoteProtocolError("a HASHES frame for a range beyond the area")
        if len(question.digests) * DIGEST_BYTES > question.length:
            raise RemoteProtocolError("a HASHES frame with more digests than data")
        differing = await trio.to_thread.run_sync(differing_ranges, self._area, question)
        answer = Differ(differing)
        await self.channel.send(encode_differ(self._volume, self._epoch, frame.sequence, answer))

    # --- flushing ---------------------------------------------------------------------------------------

    def _flush(self, frame: Frame) -> None:
        self._ask_for_flush(frame.flags)

    def _ask_for_flush(self, flags: int) -> None:
        self._flush_flags |= flags
        self._flush_asked = True

    async def _flusher(self) -> None:
        """Flush whenever asked; whatever is asked for meanwhile shares the next flush."""
        try:
            while True:
                await self._flush_wanted.wait()
                self._flush_wanted = trio.Event()
                if self._flush_asked:
                    await self._flush_and_answer()
        except (PeerUnreachable, PeerRefused, RemoteProtocolError):
            return  # the receiving task hears the same
        except DeviceError as error:
            sentence = f"the area of site {self._receiver.site} cannot be flushed: {error.sentence}"
            self.stop(sentence, RefusalCode.FAULT, self._roles)

    def _may_flush_in_place(self) -> bool:
        """Whether a plain flush is wanted, none is under way, and it is short work."""
        return (
            self._flush_asked
            and self.channel.failure is None
            and not (self._flush_flags or self._last_seen or self._facts_lock.locked())
            and self._area.is_quick_to_flush
        )

    def _flush_in_place(self, stream: int) -> None:
        self._flush_asked = False
        self._area.flush()
        facts = self._record.facts
        if not facts.copying and facts.durable_sequence != stream:
            # Believed now and answered now, put on record a moment later: after a crash of this host the
            # record is a lower bound, and what is between is sent again or compared.
            self._record.facts = facts._replace(durable_sequence=stream)
            self._unrecorded.set()

    async def _recorder(self) -> None:
        """Put on record what is durable, now and then: for every flush it would cost another one."""
        try:
            while True:
                await self._unrecorded.wait()
                async with self._facts_lock:
                    await self._record_facts()
                await trio.sleep(RECORD_SECONDS)
        except DeviceError as error:
            sentence = f"site {self._receiver.site} cannot keep on record what it has: {error.sentence}"
            self.stop(sentence, RefusalCode.FAULT, self._roles)

    async def _record_facts(self) -> None:
        self._unrecorded = trio.Event()
        facts = self._record.facts
        if self._area.is_quick_to_flush:
            self._record.store(facts)
        else:
            await trio.to_thread.run_sync(self._record.store, facts)

    async def _flush_and_answer(self) -> None:
        target, flags, last = self._stream, self._flush_flags, self._last_seen
        self._flush_asked = False
        self._flush_flags, self._last_seen = 0, False
        await self._make_durable(target, flags, last)
        await self._answer_flush(target, flags, last)

    async def _answer_flush(self, target: int, flags: int = 0, last: bool = False) -> None:
        """FLUSHED; before it, in the same message, the RECEIVED of what it covers if that says more."""
        answer: list[_Buffer] = []
        if self._unanswered:
            self._unanswered = False
            facts = self._record.facts
            if last or facts.copying or not facts.in_step or target != self._stream:
                answer += encode_received(self._volume, self._epoch, self._stream, self._copied)
        if last:
            answer += encode_received(self._volume, self._epoch, target, self._copied, in_step=True)
        answer += encode(FrameType.FLUSHED, self._volume, self._epoch, target, flags=flags)
        await self.channel.send(answer)

    async def _make_durable(self, target: int, flags: int, last: bool) -> None:
        flushes = [self._area.flush]
        if self._positions is not None and last:
            flushes.append(self._positions.flush)
        async with self._facts_lock:
            changes: dict[str, int] = {}
            if last:
                changes.update(epoch=self._epoch, copying=False, in_step=True, has_volume=True)
            if last or not self._record.facts.copying:
                changes.update(durable_sequence=target)
            if flags & FLUSH_SUSPEND:
                changes.update(in_step=False)
            if flags & FLUSH_CLEAN:
                changes.update(clean=True)
            await self._save_after(flushes, changes)

    async def _note_hello(self) -> None:
        """A writer is here: what the last one said about being in step holds only on the same terms."""
        facts = self._record.facts
        same = facts.epoch == self._epoch and (facts.protect or not self._hello.protect)
        await self._save(in_step=facts.in_step and same, protect=self._hello.protect, clean=False)

    async def _save(self, **changes: int) -> None:
        async with self._facts_lock:
            await self._save_after([], changes)

    async def _save_after(self, flushes: Sequence[Callable[[], None]], changes: dict[str, int]) -> None:
        """Flush and then make the facts durable, in one visit to a worker thread; then believe them.

        The caller holds the lock of the facts.
        """
        before = self._record.facts
        facts = before._replace(**changes)  # type: ignore[arg-type]

        def work() -> None:
            for flush in flushes:
                flush()
            if facts != before and self.channel.failure is None:  # fenced meanwhile: nothing more is noted
                self._record.store(facts)

        if flushes or facts != before:
            await trio.to_thread.run_sync(work)
        if self.channel.failure is not None:
            raise PeerUnreachable("the conversation ended")  # fenced: positions stand still from then on
        if before.copying and not facts.copying:
            # In one step with the facts: what came while they were written was counted there.
            self._record.received_sequence = self._record.copy_sequence
        self._record.facts = facts
        on_facts = self._receiver.on_facts
        if on_facts is not None and facts.promise != before.promise:
            await trio.to_thread.run_sync(on_facts, facts)


class _Gap(Exception):
    """An entry is missing in the stream."""


def _refused(sentence: str, code: RefusalCode, roles: Roles) -> list[_Buffer]:
    return encode_json(Refused(sentence=sentence, code=code, roles=roles), epoch=roles.epoch)
