"""The block device that jfs stands on, and the plainest one: a file."""

import contextlib
import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol, TypeAlias

import trio

from jfs.errors import DeviceError

BLOCK_BYTES = 4096

Buffer: TypeAlias = bytes | bytearray | memoryview


class BlockDevice(Protocol):
    """What jfs needs of a storage area. Offsets and lengths are bytes and multiples of 4096.

    Writes get ascending sequences; a write is visible to reads as soon as it is issued. Every method raises
    DeviceError, and then nothing was changed.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def issued_sequence(self) -> int:
        """The sequence of the newest write."""
        ...

    @property
    def far_durable_sequence(self) -> int:
        """Up to here the far site is durable; later writes still wait at the writer."""
        ...

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: Buffer) -> int:
        """Issue a write and return its sequence."""
        ...

    def discard(self, offset: int, length: int) -> int:
        """Issue a discard (reads as zeros afterwards) and return its sequence."""
        ...

    def is_complete(self, sequence: int) -> bool:
        """Whether every write up to `sequence` is complete, so that `complete` need not be called."""
        ...

    async def complete(self, sequence: int) -> None:
        """Wait until every write up to `sequence` is complete."""
        ...

    async def flush(self) -> None:
        """Wait until everything issued before the call is on stable storage."""
        ...

    async def barrier(self) -> None:
        """From the return on, what is issued reaches stable storage after everything issued before the call.

        That may wait for nothing: a device that keeps the order by itself needs no flush for it.
        """
        ...

    def waiting(self, offset: int, length: int) -> bool:
        """Does a write that touches these bytes still wait for the far site?"""
        ...


def check_request(size_bytes: int, offset: int, length: int) -> None:
    """Refuse a request that is not made of whole blocks inside the device."""
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise DeviceError(
            errno.EINVAL, f"request for bytes {offset}+{length} is outside the device of {size_bytes} bytes"
        )
    if offset % BLOCK_BYTES or length % BLOCK_BYTES:
        raise DeviceError(
            errno.EINVAL, f"request for bytes {offset}+{length} is not made of blocks of {BLOCK_BYTES}"
        )


FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make a range of a file read as zeros, giving its space back where the host's file system can."""
    if (
        length == 0
        or _libc.fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0
    ):
        return
    chunk_bytes = 1 << 20
    for start in range(offset, offset + length, chunk_bytes):
        os.pwrite(descriptor, bytes(min(chunk_bytes, offset + length - start)), start)


def read_fully(descriptor: int, length: int, offset: int) -> bytes:
    """pread(2) until all is there; OSError if the file ends before."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the file became shorter")
        data += more
    return data


def write_fully(descriptor: int, data: Buffer, offset: int) -> None:
    """pwrite(2) until all is written; OSError."""
    done = os.pwrite(descriptor, data, offset)
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], offset + done)


class FileDevice:
    """A file as a block device: writes complete at once, flush is fdatasync in a thread, no far site.

    `create_bytes` makes (or extends) a sparse file of that size; `exclusive` takes the file's lock so that no
    second writer opens it.
    """

    def __init__(
        self, path: Path, *, create_bytes: int | None = None, read_only: bool = False, exclusive: bool = False
    ) -> None:
        flags = os.O_RDONLY if read_only else os.O_RDWR | (os.O_CREAT if create_bytes is not None else 0)
        self.path = path
        self._sequence = 0
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
            if exclusive:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if create_bytes is not None and os.lseek(self._descriptor, 0, os.SEEK_END) < create_bytes:
                os.ftruncate(self._descriptor, create_bytes)
            self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END) // BLOCK_BYTES * BLOCK_BYTES
        except BlockingIOError as error:
            self.close()
            raise DeviceError(errno.EBUSY, f"{path} is in use by another process") from error
        except OSError as error:
            self.close()
            raise self._failure("open", error) from error

    def _failure(self, deed: str, error: OSError) -> DeviceError:
        return DeviceError(error.errno or errno.EIO, f"cannot {deed} {self.path}: {error.strerror}")

    @property
    def issued_sequence(self) -> int:
        return self._sequence

    @property
    def far_durable_sequence(self) -> int:
        return self._sequence

    def read(self, offset: int, length: int) -> bytes:
        check_request(self.size_bytes, offset, length)
        try:
            return read_fully(self._descriptor, length, offset)
        except OSError as error:
            raise self._failure("read", error) from error

    def write(self, offset: int, data: Buffer) -> int:
        check_request(self.size_bytes, offset, len(data))
        try:
            write_fully(self._descriptor, data, offset)
        except OSError as error:
            raise self._failure("write", error) from error
        self._sequence += 1
        return self._sequence

    def discard(self, offset: int, length: int) -> int:
        check_request(self.size_bytes, offset, length)
        try:
            punch_hole(self._descriptor, offset, length)
        except OSError as error:
            raise self._failure("discard in", error) from error
        self._sequence += 1
        return self._sequence

    def is_complete(self, sequence: int) -> bool:
        return True

    async def complete(self, sequence: int) -> None:
        """Writes are complete when issued."""

    async def flush(self) -> None:
        try:
            await trio.to_thread.run_sync(os.fdatasync, self._descriptor)
        except OSError as error:
            raise self._failure("flush", error) from error

    async def barrier(self) -> None:
        await self.flush()

    def waiting(self, offset: int, length: int) -> bool:
        return False

    def close(self) -> None:
        """Give the descriptor (and the lock) back; harmless when called again."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
