"""How a command runs its asynchronous part, and how a long-running one is asked to end."""

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def run_trio(work: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run `work` to its end; Ctrl-C arrives as KeyboardInterrupt."""
    return trio.run(work, *arguments)


async def ended_by_signal(stop: Callable[[], None]) -> None:
    """Call `stop` when the process is asked to end (SIGTERM, SIGINT); waits for ever otherwise."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop()
            return
