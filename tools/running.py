"""How a command runs its asynchronous part, and how a long-running one is asked to end."""

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def run_trio(work: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run `work` to its end; Ctrl-C arrives as KeyboardInterrupt."""
    return trio.run(work, *arguments)


def log_to_standard_error() -> None:
    """For the two commands that stay: what happens, a line each, for the journal of the service manager."""
    debug = os.environ.get("TRISITE_DEBUG", "") not in {"", "0"}
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)


async def ended_by_signal(stop: Callable[[], None]) -> None:
    """Call `stop` when the process is asked to end (SIGTERM, SIGINT); waits for ever otherwise."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop()
            return
