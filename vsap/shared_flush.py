"""A flush that several callers share: one is under way at a time, and who waits meanwhile shares the next."""

from collections.abc import Awaitable, Callable

import trio

from jfs.errors import DeviceError


class _Round:
    """A flush under way: what it covers, and how it ended."""

    __slots__ = ("done", "error", "target")

    def __init__(self, target: int) -> None:
        self.target = target
        self.error: DeviceError | None = None
        self.done = trio.lowlevel.ParkingLot()


class SharedFlush:
    """`flush_once` makes everything that was issued when it begins durable; DeviceError when it cannot."""

    def __init__(self, flush_once: Callable[[], Awaitable[None]]) -> None:
        self._flush_once = flush_once
        self._round: _Round | None = None

    async def flush(self, issued: Callable[[], int]) -> None:
        """Return when everything issued before the call is durable. `issued()` is the newest sequence now."""
        target = issued()
        while True:
            round_ = self._round
            if round_ is None:
                await self._lead(issued())
                return
            await round_.done.park()
            if round_.target >= target:
                if round_.error is not None:
                    raise round_.error
                return

    async def _lead(self, target: int) -> None:
        """Flush for this caller and all who wait meanwhile for it."""
        round_ = self._round = _Round(target)
        cancelled = True
        try:
            try:
                await self._flush_once()
            except DeviceError as error:
                round_.error = error
                cancelled = False
                raise
            cancelled = False
        finally:
            if cancelled:
                round_.target = -1  # who waits must lead one of its own
            self._round = None
            if round_.done:
                round_.done.unpark_all()
