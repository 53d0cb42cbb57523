"""From entries to index records and payload places, and back."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import cast

import lmdb

from jfs.errors import DeviceError
from vsap.area import FileArea
from vsap.entry import DISCARD, MARKER, Entry, checksum_of
from vsap.index import IN_AREA, KEY, RECORD, SAVED, Record, State, pack_record
from vsap.payload import HEADER_BYTES, SegmentFiles

LARGEST_SPAN = 4 << 20
"""Most bytes of neighbouring payloads that are read at once."""
LONG_PAYLOAD = 1 << 16
"""A payload from this size on is a view of what was read and no copy."""
SCAN_BATCH = 1 << 15
"""Index records one read transaction looks at: a long one would keep LMDB from using freed pages again."""
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What says nothing about the area that was to be read."""


class PayloadMoved(Exception):
    """The payload of an entry is not where the index said a moment ago. The argument says which."""


def place_payloads(
    segments: SegmentFiles, segment_bytes: int, state: State, entries: Sequence[Entry]
) -> list[tuple[bytes, bytes]]:
    """Writes the payloads behind the tail and moves it in `state`; returns the (key, value) pairs for the
    index.

    ValueError: the sequences do not continue the state's, or a payload has not the length its entry says.
    OSError: the host refuses. In both cases `state` must be thrown away; what was written is overwritten by
    the next append.
    """
    records = []
    buffers: list[bytes] = []
    segment, place, stream = state.tail_segment, state.tail_place, state.stream_bytes
    start = place
    sequence = state.next_sequence
    for entry in entries:
        payload = entry.payload
        size = len(payload)
        if entry.sequence != sequence or size != entry.payload_length:
            raise ValueError(
                f"entry {entry.sequence} with {size} bytes cannot be appended as entry {sequence}"
            )
        if place == 0 or (place + size > segment_bytes and place > HEADER_BYTES):
            if buffers:
                segments.write(segment, start, buffers)
                buffers = []
            segment += place > 0
            segments.create(segment)
            start = place = HEADER_BYTES
        key = KEY.pack(sequence)
        record = pack_record(
            key,
            entry.timestamp_ns,
            entry.offset,
            entry.length,
            segment,
            place,
            entry.kind,
            entry.checksum,
            stream,
        )
        records.append((key, record))
        if size:
            buffers.append(payload)
            place += size
            stream += size
        sequence += 1
    if buffers:
        segments.write(segment, start, buffers)
    state.tail_segment, state.tail_place, state.stream_bytes = segment, place, stream
    state.next_sequence = sequence
    return records


class IndexReader:
    """Reads the index and the payloads it points to. In any thread."""

    def __init__(
        self,
        environment: lmdb.Environment,
        index: "lmdb._Database",
        segments: SegmentFiles,
        area: Path | None,
    ) -> None:
        """Of an open environment; `area` is what entries may point into."""
        self._environment = environment
        self._index = index
        self._segments = segments
        self._area = area

    def rows(
        self, from_sequence: int, limit_bytes: int, limit_entries: int, *, verify: bool = True
    ) -> list[tuple[int, Record]]:
        """(sequence, record) from `from_sequence` on: the first in any case, more while the payloads fit.

        CorruptionError: a record is not what was put there.
        """
        found: list[tuple[int, Record]] = []
        with self._environment.begin() as txn:
            cursor = txn.cursor(self._index)
            if not cursor.set_range(KEY.pack(from_sequence)):
                return found
            room = limit_bytes
            for key, value in islice(cursor.iternext(), limit_entries):
                record = Record.verified(key, value) if verify else Record.unpack(value)
                room -= 0 if record.kind == DISCARD else record.length
                if room < 0 and found:
                    break
                found.append((KEY.unpack(key)[0], record))
        return found

    def rows_of(self, sequences: Sequence[int]) -> list[tuple[int, Record]]:
        """(sequence, record) of those of these entries that are in the queue. CorruptionError."""
        found: list[tuple[int, Record]] = []
        with self._environment.begin() as txn:
            for sequence in sequences:
                key = KEY.pack(sequence)
                value = txn.get(key, db=self._index)
                if value is not None:
                    found.append((sequence, Record.verified(key, value)))
        return found

    def touched(self, from_sequence: int, offset: int, length: int) -> bool:
        """Whether a write or discard from `from_sequence` on touches these bytes of the area."""
        end = offset + length
        for _, packed in self._batches(from_sequence):
            for _, start, size, _, _, kind, _, _, _ in RECORD.iter_unpack(packed):
                if start < end and start + size > offset and kind != MARKER:
                    return True
        return False

    def _batches(self, from_sequence: int) -> Iterator[tuple[int, bytes]]:
        """All records from a sequence on, unchecked: the sequence of the first, and many packed together."""
        first = from_sequence
        while True:
            with self._environment.begin() as txn:
                cursor = txn.cursor(self._index)
                if not cursor.set_range(KEY.pack(first)):
                    return
                first = KEY.unpack(cursor.key())[0]
                values = list(islice(cursor.iternext(keys=False), SCAN_BATCH))
            yield first, b"".join(values)
            first += len(values)

    def with_payloads(self, rows: Sequence[tuple[int, Record]]) -> list[Entry]:
        """The entries of ascending rows, verified. FileNotFoundError, PayloadMoved: a segment is gone, or
        something is elsewhere by now, or is damaged. CorruptionError: a foreign file.
        """
        self._segments.release(rows[0][1].segment)
        entries: list[Entry] = []
        number = 0
        while number < len(rows):
            sequence, record = rows[number]
            if not record.in_segment:
                entries.append(record.entry(sequence, self._elsewhere(sequence, record)))
                number += 1
                continue
            count, segment, start, size = self._span(rows, number)
            data = self._segments.read(segment, start, size) if size else b""
            if len(data) != size:
                raise PayloadMoved(f"segment {segment} ends before entry {rows[number][0]}")
            for sequence, record in rows[number : number + count]:
                place = record.place - start
                if record.kind == DISCARD:
                    payload = b""
                elif record.length < LONG_PAYLOAD:
                    payload = data[place : place + record.length]
                else:
                    payload = cast(bytes, memoryview(data)[place : place + record.length])
                if checksum_of(payload) != record.checksum:
                    raise PayloadMoved(
                        f"entry {sequence} in segment {segment} at {record.place} is not what was appended"
                    )
                entries.append(record.entry(sequence, payload))
            number += count
        return entries

    def _elsewhere(self, sequence: int, record: Record) -> bytes:
        """A payload that is in no segment."""
        if record.place == IN_AREA:
            payload = self.standing(record)
        else:
            payload = self._segments.read_saved(record.segment, record.place - SAVED, record.length)
        if payload is None or checksum_of(payload) != record.checksum:
            raise PayloadMoved(f"entry {sequence} is not what was appended")
        return payload

    def standing(self, record: Record) -> bytes | None:
        """The payload of an entry as the area holds it; None where it does not hold it. DeviceError: this
        process cannot tell now.
        """
        if self._area is None:
            return None
        try:
            with closing(FileArea(self._area, read_only=True)) as area:
                payload = area.read(record.offset, record.length)
        except DeviceError as error:
            if error.errno in PASSING:
                raise
            return None
        return payload if checksum_of(payload) == record.checksum else None

    def pointed(self) -> Iterator[tuple[int, int, int]]:
        """(sequence, offset, length) of every entry that points into the area. Scans the index."""
        for first, packed in self._batches(0):
            for number, fields in enumerate(RECORD.iter_unpack(packed)):
                if fields[4] == IN_AREA:
                    yield first + number, fields[1], fields[2]

    @staticmethod
    def _span(rows: Sequence[tuple[int, Record]], first: int) -> tuple[int, int, int, int]:
        """How many rows from `first` lie one behind the other, their segment, place and bytes."""
        segment, start = rows[first][1].segment, rows[first][1].place
        end = start
        count = 0
        for _, record in islice(rows, first, None):
            size = 0 if record.kind == DISCARD else record.length
            if record.segment != segment or (count and end + size - start > LARGEST_SPAN):
                break
            if size and record.place != end:
                break
            end += size
            count += 1
        return count, segment, start, end - start
