"""The few operations on files that the set journal is made of; a test replaces them to crash a host."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_MOST_BUFFERS: Final = min(1024, os.sysconf("SC_IOV_MAX"))


class JournalFiles:
    """Files of one directory, by name. Everything raises OSError; blocks, so it is called in a thread.

    A write is durable after `sync` of its file; a new file, an unlinked one, after `sync_directory`.
    """

    def __init__(self, directory: Path) -> None:
        """Use `directory`, which is made if it is not there."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()  # one thread appends while another reads

    def names(self) -> list[str]:
        """The names of the files there are, ascending."""
        return sorted(os.listdir(self._directory))

    def size(self, name: str) -> int:
        """Bytes in the file; FileNotFoundError if there is none."""
        return (self._directory / name).stat().st_size

    def write(self, name: str, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write the buffers one behind the other; the file is made if it is not there."""
        descriptor = self._open(name)
        waiting = list(buffers)
        while waiting:
            part = waiting[:_MOST_BUFFERS]
            written = os.pwritev(descriptor, part, offset)
            offset += written
            done = 0
            while done < len(part) and written >= len(part[done]):
                written -= len(part[done])
                done += 1
            del waiting[:done]
            if written:
                waiting[0] = memoryview(waiting[0])[written:]

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        return os.pread(self._open(name, create=False), length, offset)

    def sync(self, name: str) -> None:
        """The file's content and size are on stable storage on return."""
        os.fdatasync(self._open(name, create=False))

    def truncate(self, name: str, size: int) -> None:
        """Cut the file; durable after `sync`."""
        os.ftruncate(self._open(name, create=False), size)

    def unlink(self, name: str) -> None:
        """Remove the file; harmless if there is none."""
        with self._lock:
            descriptor = self._descriptors.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
        (self._directory / name).unlink(missing_ok=True)

    def sync_directory(self) -> None:
        """Names that were made or removed are on stable storage on return."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close every file; harmless when repeated."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, name: str, *, create: bool = True) -> int:
        with self._lock:
            descriptor = self._descriptors.get(name)
            if descriptor is None:
                flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
                descriptor = os.open(self._directory / name, flags, 0o600)
                self._descriptors[name] = descriptor
            return descriptor
