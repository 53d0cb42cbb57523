"""The sending half of one connection to the synchronous secondary: entries in order, copies between them."""

import errno
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio
import xxhash

from jfs.busy_wait import BusyWait
from jfs.errors import CorruptionError, DeviceError
from replication.bodies import (
    COPY_BEGIN,
    COPY_LAST,
    MAX_DATA_BYTES,
    MAX_RANGES,
    WRITE_FLUSH,
    WRITE_MORE,
    FarPosition,
    Hashes,
    Marker,
    encode_copy,
    encode_discard,
    encode_far_position,
    encode_hashes,
    encode_marker,
    encode_write,
)
from replication.channel import Channel
from replication.errors import LocalProtocolError, PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.frames import Buffer, FrameType, encode
from replication.resync import COPY_CHUNK_BYTES, HASH_LEAF_BYTES, Resync
from vsap.entry import BARRIER, DISCARD, WRITE, Entry, decode_marker

__all__ = ["Readable", "Source", "SyncStream", "encode_entry"]

AWAKE_SECONDS: Final = 300e-6
"""A secondary close by, with a quick disk, answers within this after the flush of this site."""
_CATCH_UP_BYTES: Final = 1 << 20
_RESERVE_BYTES: Final = 4 << 20
"""Room in the channel that one step of `pump` may use."""
_ZEROS: Final = bytes(COPY_CHUNK_BYTES)


class Source(Protocol):
    """Where entries are read again: vsap.queue.EntryQueue."""

    def read(
        self, from_sequence: int, limit_bytes: int = ..., limit_entries: int = ...
    ) -> Sequence[Entry]: ...


class Readable(Protocol):
    """Where copies are read: the area of this site."""

    @property
    def size_bytes(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...


def encode_entry(volume: bytes, epoch: int, entry: Entry, *, flush: bool = False) -> list[Buffer]:
    """The frame of an entry, or several of a long write; with `flush` the wish for a flush behind it.

    DeviceError if it is one that cannot be sent.
    """
    if entry.kind == WRITE:
        if len(entry.payload) > MAX_DATA_BYTES:
            return _encode_long(volume, epoch, entry, WRITE_FLUSH if flush else 0)
        return encode_write(
            volume,
            epoch,
            entry.sequence,
            entry.offset,
            entry.timestamp_ns,
            entry.payload,
            flags=WRITE_FLUSH if flush else 0,
        )
    frame = _encode_other(volume, epoch, entry)
    return frame + encode(FrameType.FLUSH, volume, epoch, entry.sequence) if flush else frame


def _encode_other(volume: bytes, epoch: int, entry: Entry) -> list[Buffer]:
    if entry.kind == BARRIER:
        return encode(FrameType.BARRIER, volume, epoch, entry.sequence)
    if entry.kind == DISCARD:
        return encode_discard(volume, epoch, entry.sequence, entry.offset, entry.timestamp_ns, entry.length)
    try:
        ranges, leaf_bytes = decode_marker(entry.payload)
    except ValueError as error:
        raise DeviceError(errno.EIO, f"entry {entry.sequence} cannot be sent: {error}") from error
    if len(ranges) > MAX_RANGES:
        raise DeviceError(errno.EIO, f"a marker of {len(ranges)} ranges is longer than a frame may be")
    marker = Marker(entry.timestamp_ns, leaf_bytes, tuple(ranges))
    return encode_marker(volume, epoch, entry.sequence, marker)


def _encode_long(volume: bytes, epoch: int, entry: Entry, last_flags: int) -> list[Buffer]:
    buffers: list[Buffer] = []
    view = memoryview(entry.payload)
    for at in range(0, len(view), MAX_DATA_BYTES):
        part = view[at : at + MAX_DATA_BYTES]
        flags = WRITE_MORE if at + len(part) < len(view) else last_flags
        offset = entry.offset + at
        buffers += encode_write(volume, epoch, entry.sequence, offset, entry.timestamp_ns, part, flags=flags)
    return buffers


class SyncStream:
    """Sends on one channel: `offer` in place while `live`; otherwise `pump` catches up from the queue."""

    def __init__(
        self,
        channel: Channel,
        *,
        volume: bytes,
        epoch: int,
        queue: Source,
        area: Readable,
        sent: int,
        newest: Callable[[], int],
        copy_from: Callable[[], Resync],
    ) -> None:
        """`sent`: the secondary has the stream up to here. `newest` is the newest entry there is.

        `copy_from` begins a copy; it is called when the queue no longer holds what the secondary lacks.
        """
        self.channel = channel
        channel.busy = BusyWait(AWAKE_SECONDS)
        self.sent = sent
        self.answered = 0
        """The newest RECEIVED of this connection; while a copy is under way it counts for nothing yet."""
        self.live = False
        self.resync: Resync | None = None
        self.marked = False
        """COPY_LAST was sent: the secondary will say that it is in step."""
        self.far: FarPosition | None = None
        self.flush_flags: int | None = None
        self._volume = volume
        self._epoch = epoch
        self._queue = queue
        self._area = area
        self._newest = newest
        self._copy_from = copy_from
        self._wake = trio.Event()
        self._far_sent: FarPosition | None = None

    def wake(self) -> None:
        """Something changed that `pump` must look at."""
        self._wake.set()

    def offer(self, entries: Sequence[Entry], *, flush: bool = False) -> None:
        """Send the next entries now if the stream is at them and the peer keeps up, with `flush` a FLUSH
        behind them in the same message; never waits, never raises.
        """
        last = entries[-1].sequence
        if self.live and entries[0].sequence == self.sent + 1 and self.channel.room > 0:
            try:
                buffers: list[Buffer] = []
                for entry in entries[:-1]:
                    buffers += encode_entry(self._volume, self._epoch, entry)
                buffers += encode_entry(self._volume, self._epoch, entries[-1], flush=flush)
                self.channel.send_nowait(buffers)
            except (PeerUnreachable, PeerRefused, RemoteProtocolError, LocalProtocolError, DeviceError):
                # The receiving task hears of it too; the entries are in the queue.
                self.live = False
                self._wake.set()
            else:
                self.sent = last
                return
        elif last > self.sent:
            self.live = False
            self._wake.set()
        if flush:
            self.flush()

    def flush(self, flags: int = 0) -> None:
        """Ask for a flush of everything sent; when the stream is behind, as soon as it is not."""
        if not self.live:
            self.flush_flags = (self.flush_flags or 0) | flags
            self._wake.set()
            return
        try:
            self.channel.send_nowait(
                encode(FrameType.FLUSH, self._volume, self._epoch, self.sent, flags=flags)
            )
        except (PeerUnreachable, PeerRefused, RemoteProtocolError):
            self.live = False
        except LocalProtocolError:
            self.flush_flags = (self.flush_flags or 0) | flags
            self.live = False
            self._wake.set()

    async def pump(self) -> None:
        """Catch up, copy, and say when it is complete; for the life of the connection.

        Raises what the channel raises, and DeviceError when this site cannot be read.
        """
        while True:
            if self.channel.room < _RESERVE_BYTES:
                # What follows sends without waiting; entries offered meanwhile go through the queue.
                self.live = False
                await self.channel.drain()
                continue
            if self.sent < self._newest():
                await self._catch_up()
                continue
            self.live = True
            if self.flush_flags is not None:
                flags, self.flush_flags = self.flush_flags, None
                self.flush(flags)
            self._send_far()
            if self._copy_step():
                await self.channel.drain()
                continue
            if not self.marked and (self.resync is None or self.resync.done):
                self.marked = True
                self.channel.send_nowait(
                    encode_copy(self._volume, self._epoch, self.sent, 0, 0, flags=COPY_LAST)
                )
            await self._wake.wait()
            self._wake = trio.Event()

    def begin_copy(self, resync: Resync) -> None:
        """Begin a copy here: the stream goes on behind the newest entry, the copy brings what was before."""
        self.sent = self._newest()
        self.resync = resync
        self.marked = False
        self.channel.send_nowait(encode_copy(self._volume, self._epoch, self.sent, 0, 0, flags=COPY_BEGIN))

    async def _catch_up(self) -> None:
        newest = self._newest()
        try:
            entries = self._queue.read(self.sent + 1, _CATCH_UP_BYTES)
        except CorruptionError:
            entries = []
        if not entries or entries[0].sequence != self.sent + 1:
            self.begin_copy(self._copy_from())
            return
        for entry in entries:
            if entry.sequence != self.sent + 1 or entry.sequence > newest or self.channel.room <= 0:
                break
            self.channel.send_nowait(encode_entry(self._volume, self._epoch, entry))
            self.sent = entry.sequence
        await self.channel.drain()

    def _copy_step(self) -> bool:
        """Send one part of the copy, as the area is now; False if there is none to send at the moment."""
        resync = self.resync
        if resync is None:
            return False
        part = resync.next_copy()
        if part is not None:
            offset, length = part
            data = self._area.read(offset, length)
            zeros = data == _ZEROS[:length]
            if zeros and resync.initial:
                return True
            content: Buffer | int = length if zeros else data
            resync.sent(part)  # before: if the send fails, the next connection finds it unacknowledged
            self.channel.send_nowait(encode_copy(self._volume, self._epoch, self.sent, offset, content))
            return True
        question = resync.next_question()
        if question is None:
            return False
        number, (offset, length) = question
        data = self._area.read(offset, length)
        view = memoryview(data)
        digests = tuple(
            xxhash.xxh3_128_digest(view[at : at + HASH_LEAF_BYTES])
            for at in range(0, length, HASH_LEAF_BYTES)
        )
        asked = Hashes(offset, length, HASH_LEAF_BYTES, digests)
        self.channel.send_nowait(encode_hashes(self._volume, self._epoch, number, asked))
        return True

    def _send_far(self) -> None:
        if self.far is not None and self.far != self._far_sent:
            self._far_sent = self.far
            self.channel.send_nowait(encode_far_position(self._volume, self._epoch, self.far))

    def far_position(self, far: FarPosition) -> None:
        """Tell the secondary what the async site has durable, at this place in the stream if it is live."""
        self.far = far
        if self.live and self.channel.room > 0:
            try:
                self._send_far()
                return
            except (PeerUnreachable, PeerRefused, RemoteProtocolError, LocalProtocolError):
                self.live = False
        self._wake.set()
