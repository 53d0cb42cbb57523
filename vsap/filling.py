"""Filling the holes of an area around a small write, so that its flush waits for no metadata of the host.

An area is a sparse file. A write into a hole has the host allocate blocks, and a flush then waits not for
the data alone but for what the host's file system notes of that: one to three more writes to the disk, one
after the other. A log, and a file that grows by a block at a time, paid that for each block. So a chunk is
allocated at once: what is around the write is read and written again as it is, zeros, and one write in
sixteen pays.
"""

import os
from typing import Final

CHUNK_BYTES: Final = 64 << 10
"""What is allocated at once. More makes the one write that pays slower than it spares the others."""
SMALL_BYTES: Final = CHUNK_BYTES // 2
"""A write from this size on pays for itself."""
_KNOWN: Final = 4096
"""Chunks that are remembered as filled."""


class Filling:
    """Of one file. The caller lets nobody else write to it meanwhile: what is read here must not change
    before it is written again.
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        """`descriptor` stays the caller's."""
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._filled: set[int] = set()

    def before_write(self, offset: int, length: int) -> None:
        """Fill the chunks that a small write is about to touch, but for the write's own bytes."""
        if length >= SMALL_BYTES or not length:
            return
        first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
        filled = self._filled
        if first in filled and last in filled:
            return
        for number in {first, last} - filled:
            if len(filled) >= _KNOWN:
                filled.clear()
            filled.add(number)
            self._fill(number * CHUNK_BYTES, offset, offset + length)

    def after_discard(self, offset: int, length: int) -> None:
        """There are holes again."""
        if length > _KNOWN * CHUNK_BYTES:
            self._filled.clear()
        elif length:
            end = (offset + length - 1) // CHUNK_BYTES + 1
            self._filled.difference_update(range(offset // CHUNK_BYTES, end))

    def _fill(self, start: int, low: int, high: int) -> None:
        """Write the holes of the chunk at `start` as they are, except low..high."""
        end = min(start + CHUNK_BYTES, self._size_bytes)
        low, high = min(max(low, start), end), min(max(high, start), end)
        try:
            for first, behind in ((start, low), (high, end)):
                self._fill_holes(first, behind)
        except OSError:
            return  # a full disk, most likely: the write itself tells whether there is room for it

    def _fill_holes(self, at: int, end: int) -> None:
        descriptor = self._descriptor
        while at < end and (at := os.lseek(descriptor, at, os.SEEK_HOLE)) < end:
            try:
                stop = min(os.lseek(descriptor, at, os.SEEK_DATA), end)
            except OSError:  # ENXIO: a hole up to the end of the file
                stop = end
            # What stands there, not zeros: hosts have been known to report holes where data was still dirty.
            os.pwrite(descriptor, os.pread(descriptor, stop - at, at), at)
            at = stop
