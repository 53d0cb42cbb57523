"""The sending end of sets: one connection to a site that follows asynchronously.

Keeps what the far site reported, matches answers to questions, and writes the frames of sets. It decides
nothing: the shipper and the difference copy do.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from replication.bodies import (
    MAX_DATA_BYTES,
    POSITION_UNPACKS,
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
from replication.far_link import FarLink
from replication.frames import Buffer, Frame, FrameType, total_bytes
from replication.handshake import raise_if_refused
from replication.nursery import serving_nursery
from replication.packing import PACKED_DATA_BYTES, Packer
from replication.position import NOWHERE, Position

ChannelFailure = PeerUnreachable | PeerRefused | RemoteProtocolError
CHANNEL_FAILURES: Final = (PeerUnreachable, PeerRefused, RemoteProtocolError)
LONGEST_DISCARD: Final = 1 << 30
JOIN_BYTES: Final = 60 << 10
FRAME_SECONDS: Final = 0.25
"""What a limited link carries in this time goes at once."""


class FarSite:
    """A far site on an open channel. After a failure of the channel every method that waits raises it."""

    def __init__(
        self,
        channel: Channel,
        *,
        volume: bytes,
        epoch: int,
        link: FarLink | None = None,
        on_report: Callable[["FarSite"], None] | None = None,
    ) -> None:
        """`epoch` is that of our roles; `link` limits and counts (None: no limit, as it is); `on_report` is
        called after every report, and on failure.
        """
        self.channel = channel
        self.epoch = epoch
        self.durable = NOWHERE
        """The far site has everything up to here on stable storage, as it reported."""
        self.applied_sequence = 0
        self.tail = NOWHERE
        """The position after the last set that was sent whole: what the next one builds on."""
        self.link = link or FarLink()
        self._packer = Packer() if self.link.compression == "zstd" else None
        self._unpacks = False
        most = MAX_DATA_BYTES if self._packer is None else PACKED_DATA_BYTES
        self._frame_bytes = self.link.portion(FRAME_SECONDS, most)
        self._join_bytes = min(JOIN_BYTES, self._frame_bytes)
        self._volume = volume
        self._on_report = on_report
        self._reports = 0
        self._failure: ChannelFailure | None = None
        self._changed = trio.Event()
        self._questions: dict[int, tuple[tuple[int, int], ...] | None] = {}
        self._last_question = 0
        self._frames = self._data_bytes = 0
        self._joined: list[list[Buffer]] = []
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
            self._unpacks = bool(frame.flags & POSITION_UNPACKS)
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
            frame = encode_hashes(self._volume, self.epoch, number, question)
            await self.link.pace(total_bytes(frame), total_bytes(frame))
            await self.channel.send(frame)
            while (answer := self._questions[number]) is None:
                await self.changed()
            return answer
        finally:
            del self._questions[number]

    # --- saying -----------------------------------------------------------------------------------------

    async def _say(self, frame: list[Buffer], *, last: bool = False) -> None:
        """Send a frame of a set; small ones are joined, which costs less than a record of TLS each."""
        self._joined.append(frame)
        self._joined_bytes += total_bytes(frame)
        if last or self._joined_bytes >= self._join_bytes:
            # Several tasks may say something in one set: the lock keeps what they say in order.
            async with self._saying:
                frames, self._joined, self._joined_bytes = self._joined, [], 0
                for group in joined(frames, self._join_bytes):
                    await self._send(group)

    async def _send(self, frames: Sequence[Buffer]) -> None:
        """Send frames of a set, packed where the far site takes that, no faster than the link allows."""
        size = total_bytes(frames)
        if self._packer is not None and self._unpacks:
            frames = self._packer.pack(self._volume, self.epoch, frames)
        await self.link.pace(size, total_bytes(frames))
        await self.channel.send(frames)

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
        for start in range(0, len(view), self._frame_bytes):
            part = view[start : start + self._frame_bytes]
            frame = encode_write(
                self._volume, self.epoch, sequence, offset + start, timestamp_ns, part, FrameType.SET_DATA
            )
            await self._say(frame)
            self._frames += 1
            self._data_bytes += len(part)

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


def joined(frames: Sequence[Sequence[Buffer]], size: int) -> Iterator[list[Buffer]]:
    """The frames one behind the other, cut where at least `size` bytes are together."""
    group: list[Buffer] = []
    group_bytes = 0
    for frame in frames:
        group += frame
        group_bytes += total_bytes(frame)
        if group_bytes >= size:
            yield group
            group, group_bytes = [], 0
    if group:
        yield group


@asynccontextmanager
async def open_far_site(
    channel: Channel,
    *,
    volume: bytes,
    epoch: int,
    link: FarLink | None = None,
    on_report: Callable[[FarSite], None] | None = None,
) -> AsyncIterator[FarSite]:
    """Run a channel whose hello was welcomed, as a far site; it is closed at the end."""
    async with serving_nursery() as nursery:
        far = FarSite(channel, volume=volume, epoch=epoch, link=link, on_report=on_report)
        nursery.start_soon(channel.run)
        nursery.start_soon(far.run)
        try:
            yield far
        finally:
            channel.close()
