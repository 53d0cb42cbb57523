"""Keeping long writes from filling the host's page cache.

What is written to an area is hardly ever read from the page cache of its host: an application's reads are
answered from that of the mount, and the other sites are only written to. So long writes are written back as
they come, a window at a time, and their pages given up, for the next window to use again. Memory stays with
the applications, a flush finds little left to do, and few pages are taken that were not in use a moment ago:
on virtual machines that give free memory back to their host taking one costs more than the copy into it.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final

LONG_BYTES: Final = 64 << 10
"""Writes from this size on; what is written in smaller pieces may be written again soon, and stays."""
WINDOW_BYTES: Final = 4 << 20
"""What is written back at once."""
_WINDOWS_BEHIND: Final = 2
"""So many windows later a window is on the disk, as a rule, and its pages can go."""


class WriteBack:
    """Of one file; hints to the host, which may ignore them. Calls come from one thread at a time."""

    def __init__(self) -> None:
        self._window: list[tuple[int, int]] = []
        self._window_bytes = 0
        self._behind: list[list[tuple[int, int]]] = []
        self._thread: ThreadPoolExecutor | None = None
        self._work: Future[None] | None = None
        self._closed = False

    def wrote(self, descriptor: int, offset: int, length: int) -> None:
        """Take note of a write that was made. `descriptor` must stay open until `close` has returned."""
        if length < LONG_BYTES or self._closed:
            return
        window = self._window
        if window and sum(window[-1]) == offset:
            window[-1] = (window[-1][0], window[-1][1] + length)
        else:
            window.append((offset, length))
        self._window_bytes += length
        if self._window_bytes >= WINDOW_BYTES:
            self._end_window(descriptor)

    def _end_window(self, descriptor: int) -> None:
        window, self._window, self._window_bytes = self._window, [], 0
        if self._work is not None and not self._work.done():
            return  # a slow disk: the host deals with the rest
        self._behind.append(window)
        ranges = list(window)
        if len(self._behind) > _WINDOWS_BEHIND:
            ranges += self._behind.pop(0)
        # A process that may have no more threads, or that ends, goes without.
        with suppress(RuntimeError):
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "write back")
            self._work = self._thread.submit(_advise, descriptor, ranges)

    def close(self) -> None:
        """Wait for what was begun, begin nothing more. Harmless when repeated."""
        self._closed = True
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None


def _advise(descriptor: int, ranges: list[tuple[int, int]]) -> None:
    """Linux begins to write back what of a range is dirty, and gives up what is not."""
    for offset, length in ranges:
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
