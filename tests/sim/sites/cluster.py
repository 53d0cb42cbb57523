"""The three sites as processes of the simulation: daemons, mount process and application, operators."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from jfs.errors import CorruptionError, DeviceError, FileSystemError
from jfs.filesystem import FileSystem
from jfs.mountpoint import MountRefused
from jfs.store import Store
from jfs.store_options import StoreOptions
from replication.config import SITE_NAMES, SiteName
from replication.creating import create_volume
from replication.errors import PeerUnreachable
from replication.mounting import Writer, open_writer
from replication.procedures.results import ProcedureRefused
from replication.site import run_site
from tests.sim.sites.files import Files, Versions, Violation
from tests.sim.sites.host import PROCESS, Process
from tests.sim.sites.loop import Parked
from tests.sim.sites.world import World

HARD_SECONDS = (0.0005, 0.003, 0.02)
EASY_SECONDS = (0.3, 1.0)
"""Between two pieces of work of the application."""
EXPECTED = (DeviceError, FileSystemError, MountRefused, CorruptionError)


class Cluster:
    """Starts and ends what runs on the machines."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.files = Files()
        self.counts: Counter[str] = Counter()
        self.mount_wanted = True
        self.mount_epoch: dict[str, int] = {}
        self.violations: list[str] = []
        self.superseded: Callable[[int, int, bool], bool] = lambda epoch, sequence, unprotected: False
        self.waiting: dict[Process, float] = {}
        """When the fsync began that the application of a mount process waits for."""
        self._finish: trio.Event | None = None
        self._paces: dict[Parked, None] = {}
        self._hard_until = self._cold_until = 0.0
        self.always_sync = False
        self.held = False
        """A mount was refused because a command that hands the site over came to no end."""

    # --- daemons

    def start_daemon(self, site: SiteName) -> None:
        """Start the daemon of a site, unless it runs or the machine has no power."""
        host = self.world.hosts[site]
        host.powered = True
        if "daemon" in host.processes:
            return
        process = Process(host, "daemon")
        self.world.nursery.start_soon(
            self._run, process, lambda: run_site(self.world.config, site, signals=False)
        )

    async def _run(self, process: Process, work: Callable[[], Awaitable[object]]) -> None:
        await process.run(work)
        if process.error is not None:
            leaves = leaves_of(process.error)
            unexpected = [error for error in leaves if not isinstance(error, EXPECTED)]
            self.world.note(f"{process.host.name} {process.name} ended: {leaves!r}")
            self.held = self.held or any("is being handed back" in str(error) for error in leaves)
            if unexpected or process.name == "daemon":
                self.violate(f"{process.name} at {process.host.name} ended with {leaves!r}")

    def violate(self, sentence: str) -> None:
        """A promise was broken."""
        if not self.world.endless:
            self.world.note(f"VIOLATION {sentence}")
        self.violations.append(sentence)

    # --- the mount process and its application

    def start_mount(self, site: SiteName) -> Process | None:
        """Start a mount process at a site."""
        host = self.world.hosts[site]
        if "mount" in host.processes or not host.powered:
            return None
        process = Process(host, "mount")
        self.world.nursery.start_soon(self._run, process, lambda: self._mount(site))
        return process

    async def _mount(self, site: SiteName) -> None:
        self._finish = finish = trio.Event()
        async with open_writer(self.world.config, site, finish=finish.set) as writer:
            self.mount_epoch[site] = writer.roles.epoch
            # What lingers in the metadata log hides what is missing in it: at times nothing does.
            lingers = self.rng.random() < 0.5
            options = (
                StoreOptions() if lingers else StoreOptions(linger_seconds=0.1, idle_checkpoint_seconds=0.3)
            )
            store = await Store.open(writer.device, options=options)
            writer.log_status, writer.store = store.log_status, store
            file_system = FileSystem(store)
            self.world.note(f"mounted at {site} epoch {writer.roles.epoch}")
            self.counts["mounted"] += 1
            self._judge(file_system, writer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.run)
                nursery.start_soon(self._work, writer, file_system)
                await finish.wait()
                nursery.cancel_scope.cancel()
            await file_system.close()
            self.counts["unmounted"] += 1

    def _judge(self, file_system: FileSystem, writer: Writer) -> None:
        try:
            if not self.superseded(writer.roles.epoch, 1 << 62, False):
                self.files.judge(file_system)
        except Violation as violation:
            self.violate(f"mounted at {writer.place.site}: {violation}")

    def end_mount(self) -> None:
        """Ask the mount process to end."""
        if self._finish is not None:
            self._finish.set()

    async def _work(self, writer: Writer, file_system: FileSystem) -> None:
        """The application: writes, and fsyncs now and then; a write that fails is tried again later."""
        written: Versions = {}
        process = PROCESS.get()
        assert process is not None
        pace = Parked(self.world.loop)
        self._paces[pace] = None
        while True:
            hard, cold = trio.current_time() < self._hard_until, trio.current_time() < self._cold_until
            pause = self.rng.choice(HARD_SECONDS if hard else EASY_SECONDS)
            await pace.wait(trio.current_time() + pause)
            try:
                for _ in range(self.rng.choice((1, 1, 3, 8))):
                    file = self.files.write(file_system, self.rng, written, cold=cold)
                await file_system.throttle()
                if not cold and (self.rng.random() < 0.4 or self.always_sync):
                    sequence = writer.device.issued_sequence
                    self.waiting[process] = trio.current_time()
                    covered = await self.files.fsync(file_system, file, written)
                    del self.waiting[process]
                    self.acknowledged(writer, covered, sequence)
            except (DeviceError, FileSystemError) as error:
                self.waiting.pop(process, None)
                self.counts[f"write refused: {type(error).__name__}"] += 1
                await trio.sleep(0.5)

    def work_hard(self, seconds: float) -> None:
        """Let the application write as fast as it can for a while."""
        self._hard_until = trio.current_time() + seconds
        for pace in self._paces:
            pace.wake()

    def write_cold(self, seconds: float) -> None:
        """Let it for a while write only what was left alone before, and sync nothing."""
        self._cold_until = trio.current_time() + seconds
        self.work_hard(seconds)

    def acknowledged(self, writer: Writer, covered: Versions, sequence: int) -> None:
        """fsync has returned to the application; what was issued up to `sequence` is safe."""
        if self.superseded(writer.roles.epoch, sequence, writer.copy.unprotected):
            return
        self.files.acknowledge(covered)
        self.counts["acknowledged"] += 1
        self.world.note(f"ack {writer.place.site} {sequence}")

    # --- operators

    async def operate(self, site: SiteName, name: str, work: Callable[[], Awaitable[object]]) -> object:
        """A command typed on the machine of a site; its result, or the refusal."""
        outcome: list[object] = []

        async def command() -> None:
            try:
                outcome.append(await work())
            except (ProcedureRefused, PeerUnreachable, MountRefused) as error:
                outcome.append(error)

        process = Process(self.world.hosts[site], name)
        self.world.nursery.start_soon(self._run, process, command)
        await process.ended.wait()
        return outcome[0] if outcome else None


def leaves_of(error: BaseException) -> list[BaseException]:
    """The exceptions in a group, or the one."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves_of(part)]
    return [error]


async def make_volume(cluster: Cluster) -> None:
    """Three daemons, an empty volume, everything at rest; the state every run begins with."""
    for site in SITE_NAMES:
        cluster.world.hosts[site].disk.full = False
        (cluster.world.directory / site).mkdir(parents=True)
        cluster.start_daemon(site)
    await trio.sleep(0.5)
    made = await cluster.operate("primary", "mkfs", lambda: create_volume(cluster.world.config))
    if isinstance(made, Exception) or made is None:
        raise Violation(f"no volume: {made}")
    await trio.sleep(5)


def copy_sites(source: Path, target: Path) -> None:
    """The sites of the template into the directory of a run; holes stay holes."""
    shutil.copytree(source, target, copy_function=_copy_sparse)


def _copy_sparse(source: str, target: str) -> str:
    import os

    with open(source, "rb") as old, open(target, "wb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            os.pwrite(new.fileno(), os.pread(old.fileno(), end - at, at), at)
            at = end
    return target
