"""Filling the holes of an area around a small write, so that its flush waits for no metadata of the host.

An area is a sparse file. A write into a hole has the host allocate blocks, and a flush then waits not for
the data alone but for what the host's file system notes of that: one to three more writes to the disk, one
after the other. A log, and a file that grows by a block at a time, paid that for each block. So a chunk is
allocated at once: what is around the write is read and written again as it is, zeros, and one write in
sixteen pays.
"""

import os
import time
from typing import Final

CHUNK_BYTES: Final = 64 << 10
"""What is allocated at once. More makes the one write that pays slower than it spares the others."""
SMALL_BYTES: Final = CHUNK_BYTES // 2
"""A write from this size on pays for itself."""
FREE_BYTES: Final = 256 << 20
"""Where the host's file system has less room than this, it is left to what is written."""
PAUSE_SECONDS: Final = 5.0
"""After a host without room, or one that refused, nothing is filled for so long."""
_KNOWN: Final = 4096
"""Chunks that are remembered as filled."""


class Filling:
    """Of one file. The caller lets nobody else write to it meanwhile: what is read here must not change
    before it is written again.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._filled: set[int] = set()
        self._resumes = 0.0

    def after_write(self, descriptor: int, offset: int, length: int) -> int:
        """Fill the chunks that a small write has touched; returns how many bytes were written for that."""
        if length >= SMALL_BYTES or not length:
            return 0
        first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
        filled = self._filled
        if first in filled and last in filled:
            return 0
        now = time.monotonic()
        if now < self._resumes:
            return 0
        count = 0
        try:
            host = os.fstatvfs(descriptor)
            if host.f_bavail * host.f_frsize < FREE_BYTES:
                self._resumes = now + PAUSE_SECONDS
                return 0
            for number in {first, last} - filled:
                count += self._fill(descriptor, number * CHUNK_BYTES)
                if len(filled) >= _KNOWN:
                    filled.clear()
                filled.add(number)
        except OSError:  # the write is made; that the host has no more room is told to the next one
            self._resumes = now + PAUSE_SECONDS
        return count

    def after_discard(self, offset: int, length: int) -> None:
        """There are holes again."""
        if length > _KNOWN * CHUNK_BYTES:
            self._filled.clear()
        elif length:
            end = (offset + length - 1) // CHUNK_BYTES + 1
            self._filled.difference_update(range(offset // CHUNK_BYTES, end))

    def _fill(self, descriptor: int, start: int) -> int:
        """Write the holes of the chunk at `start` as they are; how many bytes that was. OSError."""
        at, end, count = start, min(start + CHUNK_BYTES, self._size_bytes), 0
        while at < end and (at := os.lseek(descriptor, at, os.SEEK_HOLE)) < end:
            try:
                stop = min(os.lseek(descriptor, at, os.SEEK_DATA), end)
            except OSError:  # ENXIO: a hole up to the end of the file
                stop = end
            if stop <= at:
                break  # a host that contradicts itself
            # What stands there, not zeros: hosts have been known to report holes where data was still dirty.
            count += os.pwrite(descriptor, os.pread(descriptor, stop - at, at), at)
            at = stop
        return count
