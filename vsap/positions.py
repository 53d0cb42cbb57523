"""Written positions: which bytes of an area were written after a given sequence.

One file, `positions`: a header, maps of 64 KiB chunks (the oldest positions, folded), then records of 24
bytes. Every flush ends with a mark that carries a checksum of what was written since the last one, so that
after a crash of the host everything up to the last whole mark is known to be there. See docs/queue.md.
"""

import errno
import os
import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self
from uuid import UUID

import xxhash
from bitarray import bitarray

from jfs.errors import CorruptionError, DeviceError
from jfs.runs import merge_runs
from vsap.condition import Condition
from vsap.payload import write_all

MAGIC = b"trisiteW"
VERSION = 1
HEADER = struct.Struct("<8sHHI16sQQQ")
"""magic, version, untrusted (0 or 1), number of maps, volume, area bytes, covered_from, checksum of the bytes
before.
"""
MAP = struct.Struct("<QQQ")
"""newest sequence folded into it, bytes of the bits that follow, checksum of the two and the bits."""
RECORD = struct.Struct("<QQQ")
"""sequence, offset, length; or a mark: sequence, MARK, checksum of the bytes since the last mark."""
MARK = (1 << 64) - 1
CHUNK_BYTES = 64 << 10
MOST_MAPS = 4

_WAY_OUT = "remove it to go on without it: the metadata log names what it named, less exactly"


class _Map(NamedTuple):
    """Chunks that hold positions with sequences up to `through`; a set bit is a touched chunk."""

    through: int
    bits: bitarray


class WritePositions:
    """A durable record of (sequence, offset, length), complete for everything after `covered_from`.

    Memory and file are bounded: the oldest positions are folded into maps of 64 KiB chunks. One process at a
    time. `flush` may be called from a worker thread; everything else from one thread. DeviceError: the host
    refuses.
    """

    def __init__(
        self, directory: Path, volume: UUID, condition: Condition, size_bytes: int, memory_entries: int
    ) -> None:
        """Use `open`."""
        self._path = directory / "positions"
        self._volume = volume
        self._condition = condition
        self._size_bytes = size_bytes
        self._memory_entries = memory_entries
        self._lock = threading.Lock()
        self._fd = -1
        self._forget()

    @classmethod
    def open(
        cls,
        directory: Path,
        volume: UUID,
        *,
        size_bytes: int,
        memory_entries: int = 1 << 18,
        boot: UUID | None = None,
    ) -> Self:
        """Opens or creates the record of an area of `size_bytes`; a new one covers everything after sequence
        0.

        See `trusted` for one that a crash of the host has cut. `boot` stands in for the host's boot id in
        tests. CorruptionError: another volume, another format. DeviceError: open elsewhere, or the host
        refuses.
        """
        condition = Condition.open(directory, volume, boot=boot)
        try:
            if not condition.alone:
                raise DeviceError(errno.EBUSY, f"{directory} is open in another process")
            positions = cls(directory, volume, condition, size_bytes, memory_entries)
            with positions._refusals("open"):
                positions._load()
        except BaseException:
            condition.abandon()
            raise
        return positions

    @contextmanager
    def _refusals(self, deed: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refused(deed, error) from error

    def _refused(self, deed: str, error: OSError) -> DeviceError:
        return DeviceError(error.errno or errno.EIO, f"cannot {deed} {self._path}: {error.strerror}")

    def _forget(self) -> None:
        self._maps: list[_Map] = []
        self._sequences = array("Q")
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._start = 0
        """Records before this are pruned, but still in the arrays."""
        self._covered_from = 0
        self._complete_through = 0
        self._newest = 0
        self._trusted = True
        self._buffer: list[bytes] = []
        self._since_mark = xxhash.xxh3_64()
        self._records_in_file = 0
        self._end = 0

    # --- loading and rewriting

    def _load(self) -> None:
        lost = self._condition.lost
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            data = b""
        if data and not self._load_maps(data, lost):
            data = b""
        if data:
            self._load_records(data, lost)
        elif self._condition.known:
            lost = True  # removed: an empty record would say that nothing was written
        if lost:
            self._trusted = False
        self._rewrite()
        self._condition.enter()

    def _load_maps(self, data: bytes, lost: bool) -> bool:
        """Reads header and maps; False: a crash of the host has destroyed them."""
        try:
            magic, version, untrusted, count, volume, size_bytes, covered, checksum = HEADER.unpack_from(data)
            if checksum != xxhash.xxh3_64_intdigest(data[: HEADER.size - 8]) or magic != MAGIC:
                raise ValueError("its header is damaged")
            if version != VERSION or volume != self._volume.bytes or size_bytes != self._size_bytes:
                raise CorruptionError(
                    f"{self._path} is of version {version}, volume {UUID(bytes=volume)} and an area of "
                    f"{size_bytes} bytes; expected {VERSION}, {self._volume} and {self._size_bytes}"
                )
            place = HEADER.size
            for _ in range(count):
                through, size, checksum = MAP.unpack_from(data, place)
                bits = data[place + MAP.size : place + MAP.size + size]
                if checksum != xxhash.xxh3_64_intdigest(data[place : place + 16] + bits):
                    raise ValueError("a map is damaged")
                self._maps.append(_Map(through, self._empty_bits(bits)))
                place += MAP.size + size
        except (ValueError, struct.error) as error:
            if lost:
                self._forget()
                return False
            raise CorruptionError(f"{self._path} cannot be read: {error}; {_WAY_OUT}") from error
        self._covered_from = covered
        self._trusted = not untrusted
        self._newest = self._complete_through = max([covered, *(one.through for one in self._maps)])
        self._end = place
        return True

    def _load_records(self, data: bytes, lost: bool) -> None:
        """Reads records; after a crash of the host only those before the last mark that is whole."""
        start = self._end
        waiting: list[tuple[int, int, int]] = []
        usable = start + (len(data) - start) // RECORD.size * RECORD.size
        place = start
        for sequence, offset, length in RECORD.iter_unpack(data[start:usable]):
            if offset == MARK:
                if xxhash.xxh3_64_intdigest(data[start:place]) != length:
                    if lost:
                        return
                    raise CorruptionError(f"{self._path} is damaged before byte {place}; {_WAY_OUT}")
                self._take(waiting)
                waiting = []
                start = place + RECORD.size
                self._complete_through = max(self._complete_through, sequence)
            else:
                waiting.append((sequence, offset, length))
            place += RECORD.size
        if not lost:
            self._take(waiting)

    def _take(self, records: list[tuple[int, int, int]]) -> None:
        for sequence, offset, length in records:
            self._remember(sequence, offset, length)

    def _empty_bits(self, data: bytes | None = None) -> bitarray:
        chunks = -(-self._size_bytes // CHUNK_BYTES)
        bits = bitarray(endian="little")
        bits.frombytes(bytes(-(-chunks // 8)) if data is None else data)
        if len(bits) < chunks:
            raise ValueError("a map is too short")
        return bits

    def _rewrite(self) -> None:
        """Writes the file anew with what is still of use, durably, and ends it with a mark."""
        temporary = self._path.with_suffix(".new")
        body = HEADER.pack(
            MAGIC,
            VERSION,
            not self._trusted,
            len(self._maps),
            self._volume.bytes,
            self._size_bytes,
            self._covered_from,
            0,
        )[:-8]
        parts = [body, struct.pack("<Q", xxhash.xxh3_64_intdigest(body))]
        for through, bits in self._maps:
            raw = bits.tobytes()
            head = struct.pack("<QQ", through, len(raw))
            parts += [head, struct.pack("<Q", xxhash.xxh3_64_intdigest(head + raw)), raw]
        first = self._start
        rows = zip(self._sequences[first:], self._offsets[first:], self._lengths[first:], strict=True)
        records = b"".join(RECORD.pack(*row) for row in rows)
        # Untrusted, the file must not claim more than it knows: the mark stays where it was.
        sequence = self._newest if self._trusted else self._complete_through
        parts += [records, RECORD.pack(sequence, MARK, xxhash.xxh3_64_intdigest(records))]
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            end = write_all(fd, 0, [b"".join(parts)])
            os.fsync(fd)
            temporary.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end = fd, end
        self._buffer.clear()
        self._since_mark.reset()
        self._records_in_file = len(self._sequences) - first
        self._complete_through = sequence

    # --- what is known

    @property
    def covered_from(self) -> int:
        """`ranges_after(n)` misses nothing for n >= this. (It answers for older n with what it has.)"""
        return self._covered_from

    @property
    def complete_through(self) -> int:
        """After a crash of the host: nothing up to this sequence is missing. Later writes may be."""
        return self._complete_through

    @property
    def trusted(self) -> bool:
        """False: not closed cleanly before the host crashed; writes after `complete_through` may be missing.

        It stays so until `acknowledge_resend` or `reset`.
        """
        return self._trusted

    def acknowledge_resend(self, from_sequence: int) -> None:
        """Everything after `from_sequence` is going to be appended again (the writer resends it).

        ValueError: that leaves a gap after `complete_through`.
        """
        if from_sequence > self._complete_through and not self._trusted:
            raise ValueError(
                f"writes {self._complete_through + 1} to {from_sequence} are not on record; "
                "a resend after them leaves a gap"
            )
        with self._lock, self._refusals("write"):
            self._trusted = True
            self._rewrite()

    # --- appending

    def append(self, sequence: int, offset: int, length: int) -> None:
        """Notes a write. Buffered; survives the process after `write_out`, the host after `flush`.

        A sequence lower than the newest (a resend) is noted under the newest: `ranges_after` may say more,
        never less.
        """
        with self._lock:
            sequence = self._remember(sequence, offset, length)
            self._buffer.append(RECORD.pack(sequence, offset, length))

    def _remember(self, sequence: int, offset: int, length: int) -> int:
        if sequence < self._newest:
            sequence = self._newest
        self._newest = sequence
        self._sequences.append(sequence)
        self._offsets.append(offset)
        self._lengths.append(length)
        if len(self._sequences) - self._start > self._memory_entries:
            self._fold()
        return sequence

    def _fold(self) -> None:
        """Moves the older half of the records into a map."""
        self._cut()
        half = len(self._sequences) // 2
        bits = self._empty_bits()
        for offset, length in zip(self._offsets[:half], self._lengths[:half], strict=True):
            bits[offset // CHUNK_BYTES : -(-(offset + length) // CHUNK_BYTES)] = 1
        self._maps.append(_Map(self._sequences[half - 1], bits))
        if len(self._maps) > MOST_MAPS:
            older, newer = self._maps[:2]
            self._maps[:2] = [_Map(newer.through, older.bits | newer.bits)]
        self._start = half
        self._cut()

    def _cut(self) -> None:
        """Takes the pruned records out of the arrays."""
        if self._start:
            for column in (self._sequences, self._offsets, self._lengths):
                del column[: self._start]
            self._start = 0

    def write_out(self) -> None:
        """Hands what is buffered to the host (no fsync): do it before the writes it names are made."""
        with self._lock:
            try:
                self._write_buffer()
            except OSError as error:
                raise self._refused("write", error) from error

    def _write_buffer(self) -> None:
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        count = len(self._buffer)
        # Kept in the buffer until it is written, so that a refusal loses nothing.
        self._end = write_all(self._fd, self._end, (data,))
        self._buffer.clear()
        self._since_mark.update(data)
        self._records_in_file += count
        if self._records_in_file > 4 * self._memory_entries:
            self._rewrite()

    def flush(self, sequence: int = 0) -> None:
        """Makes everything appended durable; blocks, so call it in a thread or where that does not matter.

        `sequence`: every write up to it has been appended, also if the newest entries were none (markers).
        """
        with self._lock, self._refusals("flush"):
            self._newest = max(self._newest, sequence)
            self._write_buffer()
            live = len(self._sequences) - self._start
            if self._records_in_file > 2 * (live + 1000):
                self._rewrite()
                return
            newest = self._newest
            if self._trusted:
                mark = RECORD.pack(newest, MARK, self._since_mark.intdigest())
                self._end = write_all(self._fd, self._end, (mark,))
                self._since_mark.reset()
                self._records_in_file += 1
            fd = os.dup(self._fd)  # a rewrite may close the other one meanwhile
        try:
            with self._refusals("flush"):
                os.fdatasync(fd)
        finally:
            os.close(fd)
        if self._trusted:
            self._complete_through = max(self._complete_through, newest)

    # --- asking and forgetting

    def ranges_after(self, sequence: int) -> list[tuple[int, int]]:
        """Merged, ascending (offset, length) of everything written after `sequence`; maybe more, as whole
        chunks.
        """
        with self._lock:
            first = max(bisect_right(self._sequences, sequence), self._start)
            ranges = list(zip(self._offsets[first:], self._lengths[first:], strict=True))
            bits = self._empty_bits()
            for one in self._maps:
                if one.through > sequence:
                    bits |= one.bits
        place = bits.find(1)
        while place >= 0:
            stop = bits.find(0, place)
            stop = len(bits) if stop < 0 else stop
            end = min(stop * CHUNK_BYTES, self._size_bytes)
            ranges.append((place * CHUNK_BYTES, end - place * CHUNK_BYTES))
            place = bits.find(1, stop)
        return merge_runs(ranges)

    def prune(self, sequence: int) -> None:
        """Forgets writes up to `sequence`: `covered_from` becomes at least that. The file follows with a
        flush.
        """
        with self._lock:
            self._covered_from = max(self._covered_from, sequence)
            self._maps = [one for one in self._maps if one.through > sequence]
            self._start = max(self._start, bisect_right(self._sequences, sequence))
            if self._start > len(self._sequences) // 2:
                self._cut()

    def reset(self, covered_from: int) -> None:
        """Forgets everything; the record is complete for what is written after `covered_from`, and trusted.

        Durable on return. Later sequences may be lower than earlier ones were (a new epoch).
        """
        with self._lock, self._refusals("reset"):
            self._forget()
            self._covered_from = self._newest = self._complete_through = covered_from
            self._rewrite()

    def close(self) -> None:
        """Makes everything durable and marks the record clean. Harmless when repeated."""
        if self._fd < 0:
            return
        try:
            self.flush()
            if self._trusted and self._condition.last():
                with self._refusals("close"):
                    os.fsync(self._fd)
                self._condition.leave()
            else:
                self._condition.abandon()
        except BaseException:
            self._condition.abandon()
            raise
        finally:
            os.close(self._fd)
            self._fd = -1
