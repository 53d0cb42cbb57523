"""Waiting in place: without a turn of the event loop, as long as nobody else needs the thread.

A turn of trio's loop costs about as much as a short request, and a request with its answer takes several. A
task that is the only one that could run, and that waits for a descriptor, may as well wait for it itself,
together with everything that the loop waits for: if anything else comes first, the loop has its turn. Timers
are as late as they are in the loop, a millisecond; those set by a task that has not waited since, at most by
TURN_SECONDS.

Where what comes is expected within moments, the wait stays awake for them (`busy_wait`).

Only a process that begins its run with an InPlace waits so. Without one (in tests, in the simulation, in
commands) `current()` is None and every wait is the loop's.
"""

import os
import select
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar, cast

import trio

from jfs.busy_wait import CROWDED_SECONDS, PAUSE_FACTOR, PAUSE_SECONDS, BusyWait, Processors

__all__ = ["InPlace", "QuickLock", "current", "noticing"]

T = TypeVar("T")

TURN_SECONDS: Final = 0.01
"""After this long without one, the loop has a turn whatever comes."""
_MOST_POLLS: Final = 32
_LOOKS: Final = 6
"""A wait that stays awake looks so often, some 10 microseconds long, before it asks who else wants to run."""

_current: trio.lowlevel.RunVar["InPlace | None"] = trio.lowlevel.RunVar("in_place", None)


def current() -> "InPlace | None":
    """The one of this run; None where there is none."""
    return _current.get()


def event_polls() -> set[int]:
    """The descriptors of this process by which an event loop waits."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if Path(f"/proc/self/fd/{name}").readlink() == Path("anon_inode:[eventpoll]"):
                found.add(int(name))
        except OSError:
            continue  # closed meanwhile: the one that lists
    return found


@types.coroutine
def noticing(work: Coroutine[Any, Any, T], waits: Callable[[], None]) -> Generator[Any, Any, T]:
    """Do `work` in this task; the moment it has to wait for the loop the first time, call `waits`."""
    try:
        trap = work.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    waits()
    while True:
        try:
            sent = yield trap
        except BaseException as error:
            step = partial(work.throw, error)
        else:
            step = partial(work.send, sent)
        try:
            trap = step()
        except StopIteration as end:
            return cast(T, end.value)


class QuickLock:
    """Like a trio.Lock, but taken at once, without a turn of the loop, where it is free."""

    __slots__ = ("_taken", "_waiting")

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def acquire(self) -> None:
        """Take it, at once or when it is one's turn."""
        if self._taken:
            await self._waiting.park()  # woken by `release`, which leaves it taken
        self._taken = True

    def release(self) -> None:
        """Give it to the one that has waited longest, or back."""
        if self._waiting:
            self._waiting.unpark()
        else:
            self._taken = False

    async def __aenter__(self) -> None:
        if self._taken:
            await self._waiting.park()
        self._taken = True

    async def __aexit__(self, *error: object) -> None:
        self.release()


class InPlace(trio.abc.Instrument):
    """Made before trio.run, which gets it as an instrument; `begin` is called inside."""

    def __init__(self, *, stays_awake: bool = False) -> None:
        """`stays_awake`: waits that are given a BusyWait may use it."""
        self._processors = Processors() if stays_awake else None
        self._others = event_polls()
        self._loop: int | None = None
        self._runnable = 0
        self._turned = True
        self._now = self._until = 0.0
        self._polls: dict[int, select.poll] = {}
        self._watched: set[int] = set()

    def begin(self) -> None:
        """Wait in place from now on; not where the descriptor of the loop cannot be told."""
        found = event_polls() - self._others
        if len(found) == 1:
            (self._loop,) = found
            _current.set(self)

    # --- what trio tells

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """One more that wants to run."""
        self._runnable += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """One of them runs."""
        self._runnable -= 1

    def after_io_wait(self, timeout: float) -> None:
        """The loop has had a turn."""
        self._turned = True

    # --- what tasks ask

    def watch(self, descriptor: int) -> None:
        """What comes from this descriptor ends every wait in place: its reader may be the one that waits."""
        self._watched.add(descriptor)
        self._polls.clear()

    def may_go_on(self) -> bool:
        """Whether a task may work on without giving the loop a turn: nobody else can run, no timer is due."""
        return self._seconds_left() > 0

    def wait(self, descriptor: int, busy: BusyWait | None = None) -> bool:
        """Wait until `descriptor` is readable; False when something else wants the thread. Then the caller
        waits by the loop. With `busy` it may stay awake meanwhile.
        """
        left = self._seconds_left()
        if left <= 0:
            return False
        poll = self._polls.get(descriptor) or self._new_poll(descriptor)
        began = self._now
        if busy is None or self._processors is None or began < busy.asleep_until:
            return descriptor in dict(poll.poll(left * 1000))
        found = self._look(poll, busy, self._processors, began, left)
        if not found:
            found = poll.poll(max(0.0, began + left - monotonic()) * 1000)
        busy.ended(monotonic() - began)
        return descriptor in dict(found)

    @staticmethod
    def _look(
        poll: select.poll, busy: BusyWait, processors: Processors, now: float, left: float
    ) -> list[tuple[int, int]]:
        """Look whether anything came, as long as `busy` says and while there is a processor for everybody."""
        end = now + min(left, busy.awake_seconds)
        while now < end:
            if not processors.are_enough():
                busy.crowded(now, PAUSE_SECONDS)
                break
            for _ in range(_LOOKS):
                found = poll.poll(0)
                if found:
                    return found
                before = monotonic()
                os.sched_yield()  # to one that waits for this very processor; at once, if there is none
                now = monotonic()
                if now - before > CROWDED_SECONDS:
                    busy.crowded(now, PAUSE_FACTOR * (now - before))
                    return []
        return []

    def _seconds_left(self) -> float:
        """Until the loop must have a turn."""
        if self._runnable:
            return 0.0
        now = self._now = monotonic()
        if self._turned:
            self._turned = False
            deadline = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self._until = now + min(deadline, TURN_SECONDS)
        return self._until - now

    def _new_poll(self, descriptor: int) -> select.poll:
        if len(self._polls) >= _MOST_POLLS:
            self._polls.clear()
        poll = self._polls[descriptor] = select.poll()
        for watched in {descriptor, *self._watched, self._loop}:
            if watched is not None:
                poll.register(watched, select.POLLIN)
        return poll
