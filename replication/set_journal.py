"""The set journal of a site that follows asynchronously: sets are whole and durable before they are applied.

Append-only segment files hold the set frames as they were received. The `position` file says where the *area*
stands (applied and flushed) and at which byte the sets after that begin. So at every instant

    the area, plus the whole sets from the place in `position` on  =  the stream up to the journal's tail

and a set that was cut short is worth nothing: opening the journal cuts it off. Segments go, whole, once
everything in them is applied and the area is flushed. All methods block on files; one thread may append while
another reads and releases.
"""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from replication.errors import RemoteProtocolError
from replication.frames import HEADER_BYTES, Buffer, Decoder, Frame, FrameType, encode, total_bytes
from replication.journal_files import JournalFiles
from replication.position import NOWHERE, Position
from replication.set_format import (
    SEGMENT_HEADER_BYTES,
    SLOT_BYTES,
    Place,
    SetHead,
    SetReader,
    Slot,
    is_segment_header,
    newest_slot,
    pack_segment_header,
    pack_slot,
)

POSITION_FILE: Final = "position"
ROOM_FILE: Final = "room"
ROOM_BYTES: Final = 1 << 20
SEGMENT_SUFFIX: Final = ".sets"
SEGMENT_NAME: Final = re.compile(r"([0-9a-f]{16})\.sets$")
DEFAULT_SEGMENT_BYTES: Final = 64 << 20
_READ_BYTES: Final = 1 << 20


class JournalError(Exception):
    """The journal cannot be read or written: one sentence. It takes no more sets until it is reopened."""


class CheckedFrame(NamedTuple):
    """A set frame that belongs where it stands; with the head of the set when it makes it whole."""

    frame: Frame
    head: SetHead | None


class JournalledSet(NamedTuple):
    """A whole set in the journal, and the places where its bytes begin and end."""

    head: SetHead
    start: Place
    end: Place


class SetJournal:
    """The journal of one volume at one site. See the module for what it promises."""

    def __init__(
        self,
        directory: Path,
        volume: bytes,
        size_bytes: int,
        *,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        files: JournalFiles | None = None,
    ) -> None:
        """Open (and make) the journal of an area of `size_bytes`; what is not a whole set is cut off.

        A new journal stands at NOWHERE, see `reset`. JournalError: it cannot be read, or is not of `volume`.
        """
        self._volume = volume
        self._size_bytes = size_bytes
        self._segment_bytes = segment_bytes
        self._failure: str | None = None
        self._new_names = False
        self._segments: set[int] = set()
        self.discarded_bytes = 0
        """Bytes that were cut off at opening: of a set that was not whole, or damaged."""
        self.waiting: list[JournalledSet] = []
        """The whole, durable sets that were there at opening and must be applied (again), oldest first."""
        try:
            self._files = files if files is not None else JournalFiles(directory)
            self._slot = self._load_slot()
            self._start = self._end = self._whole = self._synced = self._slot.place
            self._reader = SetReader(self._slot.position, size_bytes)
            self._recover()
            self._whole_tail = self._reader.tail
        except OSError as error:
            raise JournalError(f"the set journal {directory} cannot be opened: {error.strerror}") from error
        except ValueError as error:
            raise JournalError(f"the set journal {directory} cannot be used: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; nothing is flushed. Harmless when repeated."""
        self._files.close()

    # --- what there is ----------------------------------------------------------------------------------

    @property
    def flushed(self) -> Position:
        """The position of the area that survives a crash of the host: applied, flushed and recorded."""
        return self._slot.position

    @property
    def flushed_timestamp_ns(self) -> int:
        """Of when the state at `flushed` is: nothing written later is in it; 0 where that is not known."""
        return self._slot.timestamp_ns

    @property
    def tail(self) -> Position:
        """The position after the last whole set that was checked: what the next set must build on."""
        return self._reader.tail

    @property
    def used_bytes(self) -> int:
        """About how many bytes of sets are not released yet."""
        segments = self._end.segment - self._slot.place.segment
        return segments * self._segment_bytes + self._end.offset - self._slot.place.offset

    @property
    def failure(self) -> str | None:
        """Why the journal takes no more sets; None while it does."""
        return self._failure

    # --- appending --------------------------------------------------------------------------------------

    def check(self, frame: Frame) -> CheckedFrame:
        """Take note of the next set frame, before it is appended. No I/O.

        RemoteProtocolError: it does not belong here; the set it is part of must be discarded.
        """
        return CheckedFrame(frame, self._reader.feed(frame))

    def append(self, frames: Sequence[CheckedFrame]) -> list[JournalledSet]:
        """Write checked frames, in their order, to the host's cache; the sets that are whole with them.

        Nothing counts before `sync`. JournalError: the host refuses (no room, say); what was whole before
        stays, and sets may be appended again from there.
        """
        self._refuse_if_failed()
        try:
            return self._append(frames)
        except OSError as error:
            try:
                self._cut(self._whole)
            except OSError:
                raise self._fail("cannot be written", error) from error
            self._reader = SetReader(self._whole_tail, self._size_bytes)
            raise JournalError(f"the set journal cannot be written: {error.strerror}") from error

    def sync(self) -> None:
        """Put what was appended on stable storage; then it may be acknowledged and applied. JournalError."""
        self._refuse_if_failed()
        try:
            for segment in sorted(self._segments):
                if segment >= self._synced.segment:
                    self._files.sync(segment_name(segment))
            if self._new_names:
                self._files.sync_directory()
                self._new_names = False
        except OSError as error:
            raise self._fail("cannot be made durable", error) from error
        self._synced = self._whole

    def look_for_room(self) -> None:
        """JournalError while the host does not even take a MiB more."""
        try:
            try:
                self._files.write(ROOM_FILE, 0, [bytes(ROOM_BYTES)])
            finally:
                self._files.unlink(ROOM_FILE)
        except OSError as error:
            raise JournalError(f"the set journal cannot be written: {error.strerror}") from error

    def discard_incomplete(self) -> None:
        """Cut off the frames of a set that is not whole: its source is gone or was refused. JournalError."""
        self._reader.abandon()
        if self._end == self._whole or self._failure is not None:
            return
        try:
            self._cut(self._whole)
        except OSError as error:
            raise self._fail("cannot be cut", error) from error

    # --- applying ---------------------------------------------------------------------------------------

    def frames_of(self, first: JournalledSet, last: JournalledSet | None = None) -> Iterator[Frame]:
        """The frames of the sets from `first` to `last` (that one alone), read back in bounded portions.

        JournalError: they are damaged, or the host refuses.
        """
        end = (last or first).end
        try:
            for frame, behind in self._read_frames(first.start, end):
                yield frame
                if behind == end:
                    return
        except RemoteProtocolError as error:
            raise JournalError(f"the set journal is damaged after {first.head.before}: {error}") from error
        except OSError as error:
            raise JournalError(f"the set journal cannot be read: {error.strerror}") from error
        raise JournalError(f"the set journal ends too early after {first.head.before}")

    def release(self, one: JournalledSet) -> None:
        """Record that the area is flushed with everything up to `one` applied; old segments are unlinked."""
        try:
            self._write_slot(one.head.after, one.end, one.head.timestamp_ns)
            self._unlink(segment for segment in list(self._segments) if segment < one.end.segment)
        except OSError as error:
            raise self._fail("cannot record what is applied", error) from error

    def reset(self, position: Position, timestamp_ns: int = 0) -> None:
        """Forget every set: the area stands, flushed, at `position` (NOWHERE: at no state of the stream).

        `timestamp_ns`: of when that state is, where it is known.
        """
        try:
            self._begin_afresh(position, timestamp_ns)
        except OSError as error:
            raise self._fail("cannot be reset", error) from error

    # --- inside: appending ------------------------------------------------------------------------------

    def _append(self, frames: Sequence[CheckedFrame]) -> list[JournalledSet]:
        whole: list[JournalledSet] = []
        buffers: list[Buffer] = []
        first = self._end
        for frame, head in frames:
            if self._end.offset >= self._segment_bytes or self._end.segment not in self._segments:
                self._write(first, buffers)
                buffers = []
                first = self._new_segment()
            if frame.type is FrameType.SET_BEGIN:
                self._start = self._end
            raw = encode(frame.type, frame.volume, frame.epoch, frame.sequence, frame.body, flags=frame.flags)
            buffers += raw
            self._end = Place(self._end.segment, self._end.offset + total_bytes(raw))
            if head is not None:
                whole.append(JournalledSet(head, self._start, self._end))
        self._write(first, buffers)
        if whole:
            self._whole = whole[-1].end
            self._whole_tail = whole[-1].head.after
        return whole

    def _write(self, place: Place, buffers: Sequence[Buffer]) -> None:
        if buffers:
            self._files.write(segment_name(place.segment), place.offset, buffers)

    def _new_segment(self) -> Place:
        number = self._end.segment + (self._end.segment in self._segments)
        self._files.write(segment_name(number), 0, [pack_segment_header(self._volume, number)])
        self._segments.add(number)
        self._new_names = True
        self._end = Place(number, SEGMENT_HEADER_BYTES)
        return self._end

    def _cut(self, place: Place) -> None:
        """Cut everything from `place` on, durably, so that it can never come back in front of later sets."""
        self._unlink(segment for segment in self._segments if segment > place.segment)
        if place.segment in self._segments:
            name = segment_name(place.segment)
            self._files.truncate(name, place.offset)
            self._files.sync(name)
        self._files.sync_directory()
        self._end = place

    def _unlink(self, segments: Iterable[int]) -> None:
        for segment in sorted(segments, reverse=True):
            self._files.unlink(segment_name(segment))
            self._segments.discard(segment)

    def _begin_afresh(self, position: Position, timestamp_ns: int = 0) -> None:
        """Continue, with no set, in a segment that never was; what is older goes once that is recorded."""
        fresh = Place(max(self._segments | {self._end.segment}) + 1, SEGMENT_HEADER_BYTES)
        self._write_slot(position, fresh, timestamp_ns)
        self._unlink(self._segments)
        self._files.sync_directory()
        self._start = self._end = self._whole = self._synced = fresh
        self._reader = SetReader(position, self._size_bytes)
        self._whole_tail = position
        self._failure = None
        self.waiting = []

    def _refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise JournalError(self._failure)

    def _fail(self, what: str, error: OSError) -> JournalError:
        """No more sets until a restart or a reset: what was written since the last sync may be lost or not.

        It must not count after a restart either: the host may hold it in its cache without ever writing it.
        """
        self._failure = f"the set journal {what}: {error.strerror}"
        with contextlib.suppress(OSError):
            self._cut(self._synced)
        return JournalError(self._failure)

    # --- inside: the position file ----------------------------------------------------------------------

    def _load_slot(self) -> Slot:
        names = self._files.names()
        self._segments = {int(match[1], 16) for name in names if (match := SEGMENT_NAME.match(name))}
        if ROOM_FILE in names:
            self._files.unlink(ROOM_FILE)
        data = self._files.read(POSITION_FILE, 0, 2 * SLOT_BYTES) if POSITION_FILE in names else b""
        slot = newest_slot(data, self._volume)
        if slot is not None:
            # A process that was killed may have left it in the host's cache only: nothing is built on it yet.
            self._files.sync(POSITION_FILE)
            return slot
        if self._segments:
            raise ValueError("there are sets, but both copies of the position are damaged")
        first = Slot(1, NOWHERE, Place(1, SEGMENT_HEADER_BYTES))
        self._store_slot(first)
        self._files.sync_directory()
        return first

    def _write_slot(self, position: Position, place: Place, timestamp_ns: int = 0) -> None:
        slot = Slot(self._slot.generation + 1, position, place, timestamp_ns)
        self._store_slot(slot)
        self._slot = slot

    def _store_slot(self, slot: Slot) -> None:
        start = slot.generation % 2 * SLOT_BYTES
        self._files.write(POSITION_FILE, start, [pack_slot(self._volume, slot).ljust(SLOT_BYTES, b"\0")])
        self._files.sync(POSITION_FILE)

    # --- inside: opening --------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find the whole sets after the recorded place, make them durable, cut off the rest."""
        self._unlink([segment for segment in self._segments if segment < self._slot.place.segment])
        start = self._slot.place
        try:
            for frame, end in self._read_frames(self._slot.place):
                if frame.type is FrameType.SET_BEGIN:
                    start = Place(end.segment, end.offset - HEADER_BYTES - len(frame.body))
                head = self._reader.feed(frame)
                if head is not None:
                    self._whole = end
                    self.waiting.append(JournalledSet(head, start, end))
        except RemoteProtocolError:
            # A torn frame, or one that does not continue: nothing from here on was ever acknowledged.
            self._reader.abandon()
        self._reader.abandon()
        self.discarded_bytes = self._bytes_behind(self._whole)
        if self._is_usable(self._whole):
            self._cut(self._whole)
            self._new_names = True
            self.sync()
        else:
            self._begin_afresh(self._reader.tail)

    def _bytes_behind(self, place: Place) -> int:
        behind = -place.offset if place.segment in self._segments else 0
        sizes = [self._files.size(segment_name(one)) for one in self._segments if one >= place.segment]
        return max(0, sum(sizes) + behind)

    def _is_usable(self, place: Place) -> bool:
        """Whether sets can be appended at `place`: its segment is not there yet, or begins as it should."""
        return place.segment not in self._segments or self._has_header(place.segment)

    def _has_header(self, segment: int) -> bool:
        header = self._files.read(segment_name(segment), 0, SEGMENT_HEADER_BYTES)
        return is_segment_header(header, self._volume, segment)

    def _read_frames(self, place: Place, until: Place | None = None) -> Iterator[tuple[Frame, Place]]:
        """The frames from `place` on, each with the place behind it; reads nothing behind `until`.

        Ends where a segment ends without a next one; RemoteProtocolError where something else is found.
        """
        decoder = Decoder()
        at = place
        while at.segment in self._segments:
            if not self._has_header(at.segment):
                raise RemoteProtocolError(f"segment {at.segment} has a damaged header")
            offset = at.offset
            stop = until.offset if until is not None and until.segment == at.segment else sys.maxsize
            while data := self._files.read(segment_name(at.segment), offset, min(_READ_BYTES, stop - offset)):
                offset += len(data)
                decoder.receive_data(data)
                while (frame := decoder.next_frame()) is not None:
                    at = Place(at.segment, at.offset + HEADER_BYTES + len(frame.body))
                    yield frame, at
            if at.offset < offset:
                raise RemoteProtocolError(f"segment {at.segment} ends inside of a frame")
            at = Place(at.segment + 1, SEGMENT_HEADER_BYTES)


def segment_name(segment: int) -> str:
    """The file of a segment."""
    return f"{segment:016x}{SEGMENT_SUFFIX}"
