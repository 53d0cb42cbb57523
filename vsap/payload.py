"""Segment files: the payloads of the queue, one behind the other, removed a whole file at a time.

A payload's place is recorded in the index, so a segment has no structure but its header. What a killed
process wrote behind the last committed entry is overwritten by the next append.
"""

import os
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import xxhash

from jfs.errors import CorruptionError

MAGIC = b"trisiteP"
VERSION = 1
HEADER = struct.Struct("<8sII16sQ16xQ")
"""magic, version, header bytes, volume, segment number, 16 zero bytes, checksum of the bytes before."""
HEADER_BYTES = HEADER.size
_SAVED = ".saved"
_CACHED = 4
"""Segments kept open for reading."""


def pack_header(volume: UUID, number: int) -> bytes:
    """The header of segment `number`."""
    body = HEADER.pack(MAGIC, VERSION, HEADER_BYTES, volume.bytes, number, 0)[:-8]
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def write_all(fd: int, offset: int, buffers: Sequence[bytes]) -> int:
    """Writes buffers one behind the other at `offset`, whatever the host takes at once; returns the end.
    OSError.
    """
    if len(buffers) == 1:
        data = buffers[0]
        written = os.pwrite(fd, data, offset)
        if written == len(data):
            return offset + written
        buffers = (data,)
        if written:
            return write_all(fd, offset + written, (data[written:],))
    for first in range(0, len(buffers), 1000):  # the host takes 1024 at once
        some = buffers[first : first + 1000]
        size = sum(map(len, some))
        written = os.pwritev(fd, some, offset)
        if written < size:
            rest = b"".join(some)[written:]
            while rest:
                written = os.pwrite(fd, rest, offset + size - len(rest))
                rest = rest[written:]
        offset += size
    return offset


class SegmentFiles:
    """The segment files of one directory. Reading and removing may be done in any thread, writing in one."""

    def __init__(self, directory: Path, volume: UUID) -> None:
        """OSError when the directory cannot be made."""
        self._directory = directory
        self._volume = volume
        self._lock = threading.Lock()
        self._readers: dict[int, int] = {}
        self._writer = -1
        self._writing = 0
        directory.mkdir(exist_ok=True)

    def path(self, number: int) -> Path:
        """The file of a segment."""
        return self._directory / f"{number:010d}"

    def saved_path(self, number: int) -> Path:
        """The file of what was saved of a segment."""
        return self._directory / f"{number:010d}{_SAVED}"

    def numbers(self) -> list[int]:
        """Segments of which something exists, ascending."""
        names = {name.removesuffix(_SAVED) for name in os.listdir(self._directory)}
        return sorted(int(name) for name in names if name.isdigit())

    def _files(self) -> list[Path]:
        numbers = self.numbers()
        paths = [*map(self.path, numbers), *map(self.saved_path, numbers)]
        return [path for path in paths if path.exists()]

    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self._files())

    def create(self, number: int) -> None:
        """Begins segment `number`; what an appender killed before its commit left under that number is
        overwritten.
        """
        self._close_writer()
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(self.path(number), flags, 0o600)
        try:
            write_all(fd, 0, (pack_header(self._volume, number),))
        except BaseException:
            os.close(fd)
            raise
        self._writer, self._writing = fd, number

    def write(self, number: int, offset: int, buffers: Sequence[bytes]) -> None:
        """Writes payloads one behind the other into segment `number`. OSError when the host refuses
        (ENOSPC).
        """
        if number != self._writing:
            self._close_writer()
            self._writer = os.open(self.path(number), os.O_RDWR | os.O_CLOEXEC)
            self._writing = number
        write_all(self._writer, offset, buffers)

    def save(self, number: int, payload: bytes) -> int:
        """Write a payload of segment `number` into the file of what is saved of it; its place there.
        OSError: nothing was added.
        """
        fd = os.open(self.saved_path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            place = os.lseek(fd, 0, os.SEEK_END)
            if place < HEADER_BYTES:
                place = write_all(fd, 0, (pack_header(self._volume, number),))
            try:
                write_all(fd, place, (payload,))
            except OSError:
                os.ftruncate(fd, place)  # of a disk that is full, most likely
                raise
        finally:
            os.close(fd)
        return place

    def cut_saved(self, ends: Mapping[int, int]) -> None:
        """Take back what was saved of segments, down to where it ended before."""
        for number, end in ends.items():
            with suppress(OSError):
                os.truncate(self.saved_path(number), end)

    def read_saved(self, number: int, place: int, length: int) -> bytes:
        """`length` bytes of what was saved of a segment. FileNotFoundError: removed. CorruptionError: a
        foreign file.
        """
        fd = self._open_checked(self.saved_path(number), number)
        try:
            return os.pread(fd, length, place)
        finally:
            os.close(fd)

    def _close_writer(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
        self._writer, self._writing = -1, 0

    def read(self, number: int, offset: int, length: int) -> bytes:
        """`length` bytes of a segment, fewer at its end. FileNotFoundError: removed. CorruptionError: a
        foreign file.
        """
        with self._lock:
            fd = self._readers.get(number)
            if fd is None:
                fd = self._open_reader(number)
            return os.pread(fd, length, offset)

    def _open_checked(self, path: Path, number: int) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        header = os.pread(fd, HEADER_BYTES, 0)
        if header != pack_header(self._volume, number):
            os.close(fd)
            if not header:
                raise FileNotFoundError(f"{path} is about to be removed")
            raise CorruptionError(f"{path} is not segment {number} of volume {self._volume}")
        return fd

    def _open_reader(self, number: int) -> int:
        fd = self._open_checked(self.path(number), number)
        while len(self._readers) >= _CACHED:
            os.close(self._readers.pop(min(self._readers)))
        self._readers[number] = fd
        return fd

    def remove(self, numbers: Iterable[int]) -> None:
        """Removes segments and what was saved of them; those already gone are no error."""
        for number in numbers:
            self.give_up(number)
            self.saved_path(number).unlink(missing_ok=True)

    def give_up(self, number: int) -> None:
        """Removes a segment, but not what was saved of it. Its room is free at once, also where the other
        process, which does not ship while the far site is away, holds it open.
        """
        with self._lock:
            fd = self._readers.pop(number, None)
            if fd is not None:
                os.close(fd)
            with suppress(OSError):
                os.truncate(self.path(number), 0)
            self.path(number).unlink(missing_ok=True)

    def release(self, below: int) -> None:
        """Closes what is open of segments below `below`: another process may have removed the files."""
        with self._lock:
            for number in [number for number in self._readers if number < below]:
                os.close(self._readers.pop(number))

    def sync(self) -> None:
        """Makes all segments durable."""
        for path in self._files():
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        fd = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Closes all files."""
        self._close_writer()
        self.release(1 << 63)
