"""A storage area in a plain sparse file (or a block device): read, write, discard, flush."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import trio

from jfs.device import Buffer, check_request, punch_hole, read_fully, write_fully
from jfs.errors import DeviceError
from vsap.filling import Filling
from vsap.write_back import WriteBack

QUICK_FLUSH_BYTES = 1 << 20
"""A flush of more than this since the last is not begun in the event loop's thread."""
QUICK_FLUSH_SECONDS = 0.002
"""Nor is one on a disk whose last flush took longer than this."""
_BUFFERS_AT_ONCE = 1000  # the host takes 1024


def is_being_written(lock_path: Path) -> bool:
    """Whether some process is the writer of the area that `lock_path` guards; OSError from the host."""
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


class FileArea:
    """The area of one site. Offsets and lengths in bytes, multiples of 4096.

    DeviceError for a request outside the area and for whatever the host refuses.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Opens an existing area; its size is the size of the file. DeviceError when there is none."""
        self.path = path
        self._fd = -1
        self._lock = -1
        self._write_back = WriteBack()
        self._writing = threading.Lock()
        """Held by whoever changes what the file holds."""
        self._lost: DeviceError | None = None
        self._unflushed_bytes = 0
        self._flush_seconds = 0.0
        try:
            self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END) // 4096 * 4096
            self._filling = Filling(self.size_bytes)
        except OSError as error:
            self.close()
            raise self._failure("open", error) from error

    @classmethod
    def create(cls, path: Path, size_bytes: int) -> Self:
        """Creates a sparse area of `size_bytes` (a multiple of 4096) and opens it. DeviceError: there is
        one.
        """
        if size_bytes <= 0 or size_bytes % 4096:
            raise ValueError(f"an area of {size_bytes} bytes is not made of 4096 byte blocks")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, size_bytes)
            finally:
                os.close(fd)
        except OSError as error:
            raise DeviceError(error.errno or errno.EIO, f"cannot create {path}: {error.strerror}") from error
        return cls(path)

    def _failure(self, deed: str, error: OSError) -> DeviceError:
        return DeviceError(error.errno or errno.EIO, f"cannot {deed} area {self.path}: {error.strerror}")

    def lock_writer(self, lock_path: Path) -> None:
        """Takes `writer.lock` until close. DeviceError: another process is the writer of this area."""
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._failure("lock", error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise DeviceError(
                errno.EBUSY, f"area {self.path} is being written by another process, which holds {lock_path}"
            ) from error
        self._lock = lock

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`, zeros where nothing was written."""
        check_request(self.size_bytes, offset, length)
        self._believe()
        try:
            return read_fully(self._fd, length, offset)
        except OSError as error:
            raise self._failure("read", error) from error

    def write(self, offset: int, data: Buffer) -> None:
        """Writes all of `data`; it is in the host's page cache on return, durable after `flush`."""
        size = len(data)
        check_request(self.size_bytes, offset, size)
        self._unflushed_bytes += size
        with self._writing:
            self._write(offset, data)
            self._wrote(offset, size)

    def write_many(self, offset: int, buffers: Sequence[bytes]) -> None:
        """Writes buffers one behind the other with as few system calls as possible."""
        size = sum(map(len, buffers))
        check_request(self.size_bytes, offset, size)
        self._unflushed_bytes += size
        with self._writing:
            at = offset
            for first in range(0, len(buffers), _BUFFERS_AT_ONCE):
                some = buffers[first : first + _BUFFERS_AT_ONCE]
                expected = sum(map(len, some))
                try:
                    done = os.pwritev(self._fd, some, at)
                except OSError as error:
                    raise self._failure("write", error) from error
                if done < expected:
                    # Rare: a signal or a disk that fills up. The second attempt says which.
                    self._write(at, b"".join(some))
                at += expected
            self._wrote(offset, size)

    def _write(self, offset: int, data: Buffer) -> None:
        try:
            write_fully(self._fd, data, offset)
        except OSError as error:
            raise self._failure("write", error) from error

    def _wrote(self, offset: int, size: int) -> None:
        self._unflushed_bytes += self._filling.after_write(self._fd, offset, size)
        self._write_back.wrote(self._fd, offset, size)

    def discard(self, offset: int, length: int) -> None:
        """Punches a hole: the range reads as zeros and takes no room."""
        check_request(self.size_bytes, offset, length)
        with self._writing:
            try:
                punch_hole(self._fd, offset, length)
            except OSError as error:
                raise self._failure("discard in", error) from error
            finally:
                self._filling.after_discard(offset, length)

    @property
    def is_quick_to_flush(self) -> bool:
        """Whether `flush` is short work now: a visit to a thread costs as much as a small flush of a quick
        disk.
        """
        return self._unflushed_bytes <= QUICK_FLUSH_BYTES and self._flush_seconds <= QUICK_FLUSH_SECONDS

    def flush(self) -> None:
        """fdatasync; blocks: unless `is_quick_to_flush` in a thread (`trio.to_thread.run_sync`).

        A host that could not write something tells it once and forgets the data; the next fdatasync succeeds.
        So no flush is believed after one that failed, and nothing is read, until the area is opened again or
        `accept_loss`.
        """
        self._believe()
        self._unflushed_bytes = 0
        began = time.monotonic()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._lost = DeviceError(
                error.errno or errno.EIO,
                f"{self._failure('flush', error).sentence}; what came after its last flush may be lost",
            )
            raise self._lost from error
        self._flush_seconds = time.monotonic() - began

    @property
    def may_have_lost(self) -> bool:
        """Whether a flush has failed: what came after the last that did not may be lost."""
        return self._lost is not None

    def accept_loss(self) -> None:
        """The caller writes again, or counts as lost, what came after the last flush that succeeded."""
        self._lost = None

    def doubt(self, error: DeviceError) -> None:
        """What the caller was about to write again could not be: as after a flush that failed."""
        self._lost = error

    def _believe(self) -> None:
        if self._lost is not None:
            raise DeviceError(self._lost.errno, self._lost.sentence)

    def close(self) -> None:
        """Closes the file and gives the lock back. Harmless when repeated."""
        self._write_back.close()
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1


class Flushable(Protocol):
    """What `flush_quickly` needs of an area."""

    @property
    def is_quick_to_flush(self) -> bool: ...
    def flush(self) -> None: ...


async def flush_quickly(area: Flushable) -> None:
    """Flushes in place where that is short work, else in a thread. DeviceError as `flush`."""
    if area.is_quick_to_flush:
        area.flush()
    else:
        await trio.to_thread.run_sync(area.flush)
