"""The sending end of sets: one connection to a site that follows asynchronously.

Keeps what the far site reported, matches answers to questions, and writes the frames of sets. It decides
nothing: the shipper and the difference copy do.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from replication.bodies import (
    MAX_DATA_BYTES,
    Hashes,
    Marker,
    SetBegin,
    SetCommit,
    SetKind,
    decode_differ,
    decode_position,
    encode_discard,
    encode_hashes,
    encode_marker,
    encode_set_begin,
    encode_set_commit,
    encode_write,
)
from replication.channel import Channel
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.frames import Buffer, Frame, FrameType, total_bytes
from replication.handshake import raise_if_refused
from replication.nursery import serving_nursery
from replication.position import NOWHERE, Position

ChannelFailure = PeerUnreachable | PeerRefused | RemoteProtocolError
CHANNEL_FAILURES: Final = (PeerUnreachable, PeerRefused, RemoteProtocolError)
LONGEST_DISCARD: Final = 1 << 30
JOIN_BYTES: Final = 60 << 10


class FarSite:
    """A far site on an open channel. After a failure of the channel every method that waits raises it."""

    def __init__(
        self,
        channel: Channel,
        *,
        volume: bytes,
        epoch: int,
        on_report: Callable[["FarSite"], None] | None = None,
    ) -> None:
        """`epoch` is that of our roles; `on_report` is called after every report, and on failure."""
        self.channel = channel
        self.epoch = epoch
        self.durable = NOWHERE
        """The far site has everything up to here on stable storage, as it reported."""
        self.applied_sequence = 0
        self.tail = NOWHERE
        """The position after the last set that was sent whole: what the next one builds on."""
        self.sent_bytes = 0
        """Bytes of data sent in sets on this connection."""
        self._volume = volume
        self._on_report = on_report
        self._reports = 0
        self._failure: ChannelFailure | None = None
        self._changed = trio.Event()
        self._questions: dict[int, tuple[tuple[int, int], ...] | None] = {}
        self._last_question = 0
        self._frames = self._data_bytes = 0
        self._joined: list[Buffer] = []
        self._joined_bytes = 0
        self._saying = trio.Lock()

    # --- hearing ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Receive until the channel fails; the failure comes out of the methods that wait."""
        try:
            while True:
                for frame in await self.channel.receive():
                    self._hear(frame)
        except CHANNEL_FAILURES as error:
            self._failure = error
            self.channel.close(str(error))
            self._notify()

    def _hear(self, frame: Frame) -> None:
        raise_if_refused(frame)
        if frame.type is FrameType.POSITION:
            position = decode_position(frame)
            self.durable = Position(position.epoch, position.durable)
            self.applied_sequence = position.applied
            self._reports += 1
            if self._reports == 1:
                self.tail = self.durable
        elif frame.type is FrameType.DIFFER and frame.sequence in self._questions:
            self._questions[frame.sequence] = decode_differ(frame).ranges
        else:
            raise RemoteProtocolError(f"{self.channel.peer} sent an unexpected {frame.type.name} frame")
        self._notify()

    @property
    def failure(self) -> ChannelFailure | None:
        """Why nothing more can be said or heard; None while it can."""
        return self._failure

    def _notify(self) -> None:
        if self._on_report is not None:
            self._on_report(self)
        event, self._changed = self._changed, trio.Event()
        event.set()

    async def changed(self) -> None:
        """Wait for the next report, or raise the failure of the channel."""
        if self._failure is not None:
            raise self._failure
        await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    async def first_report(self) -> Position:
        """The position that the far site reported when the connection began."""
        while not self._reports:
            await self.changed()
        return self.durable

    async def wait_durable(self, position: Position) -> None:
        """Wait until the far site has exactly this position, or one after it in the same epoch, durable."""
        while not (self.durable.epoch == position.epoch and self.durable.sequence >= position.sequence):
            await self.changed()

    async def ask(self, question: Hashes) -> tuple[tuple[int, int], ...]:
        """The ranges of the question in which the far site holds other content."""
        self._last_question += 1
        number = self._last_question
        self._questions[number] = None
        try:
            await self.channel.send(encode_hashes(self._volume, self.epoch, number, question))
            while (answer := self._questions[number]) is None:
                await self.changed()
            return answer
        finally:
            del self._questions[number]

    # --- saying -----------------------------------------------------------------------------------------

    async def _say(self, frame: list[Buffer], *, last: bool = False) -> None:
        """Send a frame of a set; small ones are joined, which costs less than a record of TLS each."""
        self._joined += frame
        self._joined_bytes += total_bytes(frame)
        if last or self._joined_bytes >= JOIN_BYTES:
            # Several tasks may say something in one set: the lock keeps what they say in order.
            async with self._saying:
                buffers, self._joined, self._joined_bytes = self._joined, [], 0
                if buffers:
                    await self.channel.send(buffers)

    async def begin(self, kind: SetKind, sequence: int, timestamp_ns: int) -> None:
        """Begin a set that builds on `tail`; `sequence` 0 where it is not known yet."""
        self._frames = self._data_bytes = 0
        begin = SetBegin(*self.tail, timestamp_ns, kind)
        await self._say(encode_set_begin(self._volume, self.epoch, sequence, begin))

    async def data(
        self, sequence: int, offset: int, timestamp_ns: int, data: bytes | bytearray | memoryview
    ) -> None:
        """Bytes for the open set, in as many frames as they need."""
        view = memoryview(data)
        for start in range(0, len(view), MAX_DATA_BYTES):
            part = view[start : start + MAX_DATA_BYTES]
            frame = encode_write(
                self._volume, self.epoch, sequence, offset + start, timestamp_ns, part, FrameType.SET_DATA
            )
            await self._say(frame)
            self._frames += 1
            self._data_bytes += len(part)
            self.sent_bytes += len(part)

    async def discard(self, sequence: int, offset: int, timestamp_ns: int, length: int) -> None:
        """Zeros for the open set."""
        for start in range(offset, offset + length, LONGEST_DISCARD):
            part = min(LONGEST_DISCARD, offset + length - start)
            await self._say(
                encode_discard(
                    self._volume, self.epoch, sequence, start, timestamp_ns, part, FrameType.SET_DISCARD
                )
            )
            self._frames += 1

    async def marker(self, sequence: int, marker: Marker) -> None:
        """A marker, the last frame of the open set."""
        await self._say(encode_marker(self._volume, self.epoch, sequence, marker, FrameType.SET_MARKER))
        self._frames += 1

    async def commit(self, sequence: int, *, part: bool = False) -> Position:
        """End the open set: it leads to `sequence` in our epoch, or, part of an initial copy, to NOWHERE."""
        commit = SetCommit(self._frames, self._data_bytes)
        await self._say(encode_set_commit(self._volume, self.epoch, sequence, commit), last=True)
        self.tail = NOWHERE if part else Position(self.epoch, sequence)
        return self.tail


@asynccontextmanager
async def open_far_site(
    channel: Channel,
    *,
    volume: bytes,
    epoch: int,
    on_report: Callable[[FarSite], None] | None = None,
) -> AsyncIterator[FarSite]:
    """Run a channel whose hello was welcomed, as a far site; it is closed at the end."""
    async with serving_nursery() as nursery:
        far = FarSite(channel, volume=volume, epoch=epoch, on_report=on_report)
        nursery.start_soon(channel.run)
        nursery.start_soon(far.run)
        try:
            yield far
        finally:
            channel.close()
