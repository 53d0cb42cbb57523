"""The scheduler of the simulation: trio's tasks and cancel scopes, without a host below and without waiting.

While a run lasts it stands in for trio's own loop, clock and `sleep`: time is a number that jumps to the next
moment at which something happens, the order of tasks that can run at one moment comes from the seed, and
the tasks of a stopped process (SIGSTOP) stay where they are until it goes on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from contextvars import ContextVar
from heapq import heappop, heappush
from itertools import count
from typing import Any

import trio
import trio._core._run as trio_run
from outcome import Error, Value
from trio._core._traps import CancelShieldedCheckpoint

MOST_STEPS = 500_000
"""Task switches of one run; a usual one has some thousands."""

Timer = list[Any]
"""[moment, number, what to call or None]"""


class Parked:
    """A place where one task waits, until it is woken or a moment has come."""

    __slots__ = ("_loop", "_task", "_timer")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._task: trio.lowlevel.Task | None = None
        self._timer: Timer | None = None

    async def wait(self, until: float = math.inf) -> None:
        """Wait; it may be cancelled."""
        if self._task is not None:
            raise trio.BusyResourceError("another task waits here")
        self._task = trio.lowlevel.current_task()
        if until < math.inf:
            self._timer = self._loop.at(until, self.wake)
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def wake(self) -> None:
        """Let the task go on, if one waits."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._leave()

    def wake_at(self, moment: float) -> None:
        """Let the task go on at a moment, if it waits and not earlier anyhow."""
        if self._task is not None and (self._timer is None or self._timer[0] > moment):
            self._cancel_timer()
            self._timer = self._loop.at(moment, self.wake)

    def _abort(self, raise_cancel: Any) -> trio.lowlevel.Abort:  # noqa: ANN401
        self._leave()
        return trio.lowlevel.Abort.SUCCEEDED

    def _leave(self) -> None:
        self._task = None
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer[2] = None
            self._timer = None


class Loop(trio.abc.Clock):
    """Clock and scheduler of one run."""

    def __init__(self, seed: str, process: ContextVar[Any]) -> None:
        self.now = 0.0
        self.steps = 0
        self.too_long: Callable[[], None] = lambda: None
        """Called once when the run has had MOST_STEPS."""
        self._rng = random.Random(f"{seed} order")
        self._timers: list[Timer] = []
        self._numbers = count()
        self._process = process
        self._stopped: dict[Any, list[trio.lowlevel.Task]] = {}
        """Process -> its tasks that could run, in order."""
        self._runner: Any = None

    # --- the clock, as trio wants it

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        """Seconds since the run began."""
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Nobody waits for real."""
        return max(deadline - self.now, 0.0)

    # --- waiting

    def at(self, moment: float, call: Callable[[], object]) -> Timer:
        """Call something at a moment."""
        timer = [moment, next(self._numbers), call]
        heappush(self._timers, timer)
        return timer

    async def sleep(self, seconds: float) -> None:
        """As trio.sleep."""
        if not seconds >= 0:
            raise ValueError(f"nobody can sleep for {seconds} s")
        await self.sleep_until(self.now + seconds)

    async def sleep_until(self, moment: float) -> None:
        """As trio.sleep_until."""
        if moment <= self.now:
            await trio.lowlevel.checkpoint()
        else:
            await Parked(self).wait(moment)

    async def pass_time(self, seconds: float) -> None:
        """As sleep, where a cancellation is noticed only later."""
        task = trio.lowlevel.current_task()
        self.at(self.now + seconds, lambda: trio.lowlevel.reschedule(task))
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    # --- SIGSTOP and SIGCONT

    def stop(self, process: Any) -> None:  # noqa: ANN401
        """From now on no task of the process goes on, and none of its deadlines passes."""
        self._stopped.setdefault(process, [])

    def go_on(self, process: Any) -> None:  # noqa: ANN401
        """What was held back may run: first what has arrived, then the deadlines."""
        for task in self._stopped.pop(process, ()):
            self._runner.runq.append(task)

    def _process_of(self, scope: trio.CancelScope) -> Any:  # noqa: ANN401
        statuses: list[Any] = [scope._cancel_status]
        while statuses:
            status = statuses.pop()
            for task in status._tasks:
                return task.context.get(self._process)
            statuses += status._children
        return None

    # --- the loop

    def run_tasks(self, runner: Any, work: Any, arguments: Any, *_: Any) -> Generator[float, Any, None]:  # noqa: ANN401
        """In place of trio's loop: a generator that yields where it would wait for the host."""
        self._runner = runner
        runner.init_task = runner.spawn_impl(runner.init, (work, arguments), None, "<init>", system_task=True)
        context = trio_run.GLOBAL_RUN_CONTEXT
        try:
            while runner.tasks:
                if not self._next_moment(runner):
                    # Only trio itself can have something to say, over its own socket, when a run ends.
                    events = yield 1.0
                    runner.io_manager.process_events(events)
                    if not events:
                        waiting = "\n".join(_place(task) for task in runner.tasks)
                        raise AssertionError(f"every task waits, and nothing will ever happen:\n{waiting}")
                batch = sorted(runner.runq, key=lambda task: task._counter)
                runner.runq.clear()
                if len(batch) > 1:
                    self._rng.shuffle(batch)
                for task in batch:
                    if self._stopped and self._held_back(task):
                        continue
                    self.steps += 1
                    context.task = task
                    self._step(runner, task)
                    del context.task
                if self.steps >= MOST_STEPS:
                    self.steps = -(1 << 60)
                    self.too_long()
        finally:
            runner.close()
            context.__dict__.clear()

    def _held_back(self, task: trio.lowlevel.Task) -> bool:
        process = task.context.get(self._process)
        if process is None or process not in self._stopped:
            return False
        self._stopped[process].append(task)
        return True

    def _next_moment(self, runner: Any) -> bool:  # noqa: ANN401
        """Let time pass until something can run; False where nothing will by itself."""
        timers, deadlines = self._timers, runner.deadlines
        while True:
            if not runner.runq:
                deadline = self._next_deadline(deadlines)
                moment = min(timers[0][0], deadline) if timers else deadline
                if moment == math.inf:
                    return False
                self.now = max(self.now, moment)
            while timers and timers[0][0] <= self.now:
                call = heappop(timers)[2]
                if call is not None:
                    call()
            if deadlines.next_deadline() <= self.now:
                self._expire(deadlines)
            if runner.ki_pending:
                runner._deliver_ki_cb()
            if runner.runq:
                return True

    def _next_deadline(self, deadlines: Any) -> float:  # noqa: ANN401
        if not self._stopped:
            return float(deadlines.next_deadline())
        return min(
            (
                at
                for at, _, scope in deadlines._heap
                if at == scope._registered_deadline and not self._late(scope)
            ),
            default=math.inf,
        )

    def _late(self, scope: trio.CancelScope) -> bool:
        """Whether nobody is there for whom this deadline could pass."""
        return bool(self._stopped) and self._process_of(scope) in self._stopped

    def _expire(self, deadlines: Any) -> None:  # noqa: ANN401
        if not self._stopped:
            deadlines.expire(self.now)
            return
        due = [
            entry
            for entry in sorted(deadlines._heap, key=lambda entry: entry[0])
            if entry[0] <= self.now and entry[0] == entry[2]._registered_deadline and not self._late(entry[2])
        ]
        for _, _, scope in due:
            scope._cancel(trio_run.CancelReason(source="deadline"))

    @staticmethod
    def _step(runner: Any, task: Any) -> None:  # noqa: ANN401
        send, value = task._next_send_fn, task._next_send
        task._next_send_fn = task._next_send = None
        try:
            message = task.context.run(send, value)
        except StopIteration as stop:
            ended: Any = Value(stop.value)
        except BaseException as error:
            ended = Error(error)
        else:
            if message is CancelShieldedCheckpoint:
                runner.reschedule(task)
            else:
                task._abort_func = message.abort_func
                task._attempt_delivery_of_any_pending_cancel()
            return
        runner.task_exited(task, ended)


def _place(task: trio.lowlevel.Task) -> str:
    """Which task it is, and where it waits."""
    places = [f"{frame.f_code.co_filename}:{line}" for frame, line in task.iter_await_frames()]
    ours = [place for place in places if "/trio/" not in place]
    return f"{task.name} at {(ours or places)[-1]}"
