"""A storage area in a plain sparse file (or a block device): read, write, discard, flush."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self


class FileArea:
    """The area of one site. Offsets and lengths in bytes. DeviceError for what the host's file system refuses."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Opens an existing area; its size is the size of the file. DeviceError when there is none."""
        raise NotImplementedError

    @classmethod
    def create(cls, path: Path, size_bytes: int) -> Self:
        """Creates a sparse area file of `size_bytes` (a multiple of 4096) and opens it; FileExistsError if there is one."""
        raise NotImplementedError

    size_bytes: int
    path: Path

    def lock_writer(self, lock_path: Path) -> None:
        """Takes `writer.lock` until close. DeviceError: another process is the writer of this area."""
        raise NotImplementedError

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`, zeros where nothing was written. DeviceError outside the area."""
        raise NotImplementedError

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes all of `data`; it is in the host's page cache on return, durable after `flush`."""
        raise NotImplementedError

    def write_many(self, offset: int, buffers: Sequence[bytes]) -> None:
        """Writes buffers one behind the other with as few system calls as possible."""
        raise NotImplementedError

    def discard(self, offset: int, length: int) -> None:
        """Punches a hole: the range reads as zeros and takes no room."""
        raise NotImplementedError

    def flush(self) -> None:
        """fdatasync; blocks, so call it in a thread (`trio.to_thread.run_sync`)."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the file and gives the lock back."""
        raise NotImplementedError
