"""How a command runs its asynchronous part, and how a long-running one is asked to end."""

import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

from jfs.in_place import InPlace

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

# <malloc.h> of glibc
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
KEPT_BYTES: Final = 64 << 20

COLLECTION_OBJECTS: Final = 20_000  # made and not yet freed again


def run_trio(work: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run `work` to its end; Ctrl-C arrives as KeyboardInterrupt."""
    return trio.run(work, *arguments)


def run_serving(
    work: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments, busy_wait: bool
) -> Result:
    """`run_trio` for the two commands that stay: their answers wait in place where they can, with `busy_wait`
    awake for a moment.
    """
    place = InPlace(stays_awake=busy_wait)

    async def run() -> Result:
        place.begin()
        collect_seldom()
        return await work(*arguments)

    return trio.run(run, instruments=[place])


def log_to_standard_error() -> None:
    """For the two commands that stay: what happens, a line each, for the journal of the service manager."""
    debug = os.environ.get("TRISITE_DEBUG", "") not in {"", "0"}
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)


def keep_freed_memory() -> None:
    """For the two commands that stay: use freed memory again rather than give it back to the host at once.

    A write of 1 MiB passes through several buffers of that size. By default glibc returns each when it is
    freed, and the host clears every page of the next one: a quarter of what a long write costs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library does as it likes
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES // 2)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def collect_seldom() -> None:
    """For the two commands that stay: look for garbage in cycles, of which they make little, now and then."""
    gc.collect()
    gc.freeze()  # what was imported stays
    gc.set_threshold(COLLECTION_OBJECTS, 20, 20)


async def ended_by_signal(stop: Callable[[], None]) -> None:
    """Call `stop` when the process is asked to end (SIGTERM, SIGINT); waits for ever otherwise."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop()
            return
