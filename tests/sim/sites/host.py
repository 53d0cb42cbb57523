"""The machines of the simulation: processes that can be killed, clocks that jump, disks that lose power.

Nothing of the product is replaced. The calls through which it reaches its host (files, LMDB, clocks, threads,
sockets) are, for the time of one run: each looks up on whose behalf it is called (`PROCESS`, a context
variable, which trio hands from task to task). A killed process can do nothing more from that moment on: its
descriptors are closed, and what its tasks still try while they unwind raises `Dead`.
"""

from __future__ import annotations

import errno
import os
import random
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

import trio

from replication.config import SiteName
from tests.sim.sites.disk import Disk
from tests.sim.sites.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.sim.sites.network import End, SimSocket

EPOCH_NS = 1_700_000_000_000_000_000
"""The Unix time at which every run begins."""


class Dead(BaseException):
    """Raised in a task of a process that was killed."""


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class Host:
    """One machine: its clock, its boot, its disk."""

    def __init__(self, name: SiteName, loop: Loop, rng: random.Random) -> None:
        self.name = name
        self.loop = loop
        self.rng = rng
        self.disk = Disk()
        self.clock_offset_ns = 0
        self.boot = UUID(int=1)
        """The same when the template was made: a run begins with every machine as it was left."""
        self.powered = True
        self.stranger = False
        """In place of the site's directory there is that of another volume."""
        self.held = False
        """Nobody starts the daemon again just now."""
        self.processes: dict[str, Process] = {}

    def now_ns(self) -> int:
        """The machine's own idea of the time."""
        return EPOCH_NS + int(self.loop.now * 1e9) + self.clock_offset_ns

    def kill(self, name: str) -> bool:
        """SIGKILL; False where no such process runs."""
        process = self.processes.pop(name, None)
        if process is None:
            return False
        process.kill()
        return True

    def cut_power(self) -> None:
        """Every process dies, what was not synced is lost or torn, and the next boot is another."""
        for name in list(self.processes):
            self.kill(name)
        self.powered = False
        self.boot = UUID(int=self.rng.getrandbits(128))
        self.disk.lose_power(self.rng)


class Process:
    """A process of a machine: a daemon, a mount process, or an operator's command."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.dead = False
        self.ended = trio.Event()
        self.error: BaseException | None = None
        self.descriptors: dict[int, None] = {}
        self.environments: dict[Any, None] = {}
        self.ends: dict[End, None] = {}
        self.listeners: dict[SimSocket, None] = {}
        self._scope = trio.CancelScope()
        self._task: trio.lowlevel.Task | None = None
        host.processes[name] = self

    async def run(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do the work of the process; what it raised is kept, and nobody hears of one that was killed."""
        if self.dead:  # killed before its first instruction
            self.ended.set()
            return
        PROCESS.set(self)
        self._task = trio.lowlevel.current_task()
        try:
            with self._scope:
                await work()
        except BaseException as error:
            if not self.dead:
                self.error = error
        finally:
            if not self.dead:
                self._release()
                if self.host.processes.get(self.name) is self:
                    del self.host.processes[self.name]
            self.dead = True
            self.ended.set()

    def kill(self) -> None:
        """From this instant on it does nothing more. Its tasks unwind by and by.

        One that then waits, shielded, for another task that is gone keeps the run from ending: it would
        have kept the process from ending at SIGTERM.
        """
        self.dead = True
        self._release()
        self.host.loop.go_on(self)
        self._scope.cancel()
        self.lift_shields()

    def terminate(self) -> None:
        """SIGTERM: its tasks are cancelled, and clean up before it ends."""
        self._scope.cancel()

    def _release(self) -> None:
        for end in list(self.ends):
            end.close()
        for listener in list(self.listeners):
            listener.close()
        for environment in list(self.environments):
            environment.drop()
        for descriptor in list(self.descriptors):
            REAL_CLOSE(descriptor)
        self.ends, self.listeners, self.environments, self.descriptors = {}, {}, {}, {}

    def lift_shields(self) -> None:
        """Nothing shields a process from SIGKILL."""
        waiting = [self._task] if self._task is not None else []
        while waiting:
            task = waiting.pop()
            assert task is not None
            status: Any = task._cancel_status
            while status is not None and status._scope is not self._scope:
                status._scope.shield = False
                status = status._parent
            waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]

    async def reap(self) -> None:
        """Wait until every task of a killed process has unwound."""
        while not self.ended.is_set():
            self.lift_shields()
            await trio.sleep(0.001)


def acting() -> Process | None:
    """The process on whose behalf this code runs; Dead where it was killed. None: the simulation itself."""
    process = PROCESS.get()
    if process is not None and process.dead:
        raise Dead
    return process


REAL_CLOSE = os.close


def no_room() -> OSError:
    """What a full disk says."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
