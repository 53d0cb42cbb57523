"""What fails: links, processes, machines, disks, clocks; each takes itself back after a while.

`heal` takes everything back at once.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable

import trio

from replication.config import SITE_NAMES, SiteName
from tests.sim.sites.checkers import Checkers
from tests.sim.sites.cluster import Cluster, copy_sites
from tests.sim.sites.host import Host, Process

PAIRS: tuple[tuple[SiteName, SiteName], ...] = (("primary", "sync"), ("primary", "async"), ("sync", "async"))


class Faults:
    """The faults of one run."""

    def __init__(self, cluster: Cluster, checkers: Checkers, rng: random.Random) -> None:
        self.cluster = cluster
        self.checkers = checkers
        self.world = cluster.world
        self.rng = rng
        self.healed = False
        self._snapshots = 0
        self._stopped: dict[Process, None] = {}

    def all(self) -> list[tuple[str, Callable[[], Awaitable[object]], int]]:
        """Name, what does it, and how often it is chosen."""
        found: list[tuple[str, Callable[[], Awaitable[object]], int]] = [
            ("partition", self.partition, 6),
            ("connections reset", self.reset, 3),
            ("slow link", self.slow, 4),
            ("mount killed", self.kill_mount, 5),
            ("daemon killed", self.kill_daemon, 6),
            ("daemon killed again and again", self.kill_daemon_often, 2),
            ("process stopped", self.stop_process, 5),
            ("machine stopped", self.stop_machine, 2),
            ("power cut", self.cut_power, 6),
            ("disk full", self.fill_disk, 2),
            ("clock jump", self.jump, 2),
            ("site comes back older", self.roll_back, 2),
            ("another volume answers", self.answer_as_stranger, 2),
        ]
        return [*found, ("a flush fails", self.fail_to_flush, 8)] if self.world.disks_fail else found

    def heal(self) -> None:
        """Take everything back; the faults that still run find nothing left to do."""
        self.healed = True
        for host in self.world.hosts.values():
            host.disk.full = host.held = False
            host.disk.failures = None
            self.start_anew(host)
            self.power_on(host)
            self.send_stranger_away(host)
        for process in list(self._stopped):
            self._go_on(process)
        for pair in PAIRS:
            self.world.network.link(*pair).heal()

    def _host(self) -> Host:
        return self.world.hosts[self.rng.choice(SITE_NAMES)]

    async def partition(self) -> None:
        """One link, or all links of a site, cut for a while."""
        pairs = [self.rng.choice(PAIRS)]
        if self.rng.random() < 0.4:
            site = self.rng.choice(SITE_NAMES)
            pairs = [pair for pair in PAIRS if site in pair]
        for pair in pairs:
            self.world.network.link(*pair).change(up=False)
        await trio.sleep(self.rng.choice((0.1, 0.7, 2.0, 5.0)))
        for pair in pairs:
            self.world.network.link(*pair).change(up=True)

    async def reset(self) -> None:
        """All connections of a link break."""
        self.world.network.reset_all(*self.rng.choice(PAIRS))

    async def slow(self) -> None:
        """A link is slow or narrow for a while."""
        link = self.world.network.link(*self.rng.choice(PAIRS))
        link.latency = self.rng.choice((0.0002, 0.03, 0.3))
        link.bytes_per_second = self.rng.choice((1e9, 1e5, 2e4))
        await trio.sleep(self.rng.choice((0.5, 4.0)))
        link.hurry()

    async def kill_mount(self) -> None:
        """SIGKILL of the mount process."""
        for site in SITE_NAMES:
            self.world.hosts[site].kill("mount")

    async def kill_daemon(self) -> None:
        """SIGKILL of a daemon; it is started again at once or later."""
        host = self._host()
        host.held = self.rng.random() < 0.5
        host.kill("daemon")
        await trio.sleep(self.rng.choice((0.5, 3.0)))
        host.held = False

    async def kill_daemon_often(self) -> None:
        """A daemon that dies soon after each start: nothing it begins comes to its end."""
        host = self._host()
        for _ in range(self.rng.randrange(2, 5)):
            if self.healed:
                return
            host.kill("daemon")
            await trio.sleep(self.rng.choice((0.05, 0.2, 0.6)))

    async def stop_process(self) -> None:
        """SIGSTOP of one process, and SIGCONT later."""
        processes = list(self._host().processes.values())
        await self._stop([self.rng.choice(processes)] if processes else [])

    async def stop_machine(self) -> None:
        """Nothing runs on a machine for a while, as a virtual one that is moved; its clock goes on."""
        await self._stop(list(self._host().processes.values()))

    async def _stop(self, processes: list[Process]) -> None:
        for process in processes:
            self._stopped[process] = None
            self.world.loop.stop(process)
        await trio.sleep(self.rng.choice((0.05, 0.5, 1.0, 3.0, 5.0)))
        for process in processes:
            self._go_on(process)

    def _go_on(self, process: Process) -> None:
        if self._stopped.pop(process, process) is None:
            self.world.loop.go_on(process)

    async def cut_power(self) -> None:
        """A machine goes down at once; it comes back later."""
        await self.power(self._host())

    async def power(self, host: Host) -> None:
        """A machine goes down, and comes back."""
        host.cut_power()
        await trio.sleep(self.rng.choice((0.1, 1.0, 4.0)))
        self.power_on(host)

    def power_on(self, host: Host) -> None:
        """A machine is there again: the connections of before are gone, and who wants to reach it can."""
        if host.powered:
            return
        host.powered = True
        for other in SITE_NAMES:
            if other != host.name:
                self.world.network.reset_all(host.name, other)
                link = self.world.network.link(host.name, other)
                link.change(up=link.up)

    async def fill_disk(self) -> None:
        """No room on a machine for a while."""
        disk = self._host().disk
        disk.full = True
        await trio.sleep(self.rng.choice((0.5, 3.0)))
        disk.full = False

    async def fail_to_flush(self) -> None:
        """A disk cannot write something. Processes that believe no flush any more are started anew later, as
        an operator would; the sync site goes on by itself.
        """
        host = self._host()
        host.disk.failures = self.rng
        await trio.sleep(self.rng.choice((0.3, 2.0)))
        host.disk.failures = None
        await trio.sleep(self.rng.choice((0.1, 1.0)))
        if self.rng.random() < 0.5:
            self.start_anew(host)

    def start_anew(self, host: Host) -> None:
        """The processes of a machine where a flush has failed."""
        if host.disk.failed:
            host.disk.failed = False
            host.kill("mount")
            host.kill("daemon")

    async def jump(self) -> None:
        """A clock jumps."""
        self._host().clock_offset_ns += int(self.rng.choice((-3600e9, -5e9, 5e9, 86400e9)))

    # --- sites that come back as somebody else

    def _follower(self) -> Host | None:
        """A machine on which nobody writes, in no run-time roles and in none that a command prepares."""
        hosts = [
            host
            for name, host in self.world.hosts.items()
            if self.checkers.writes_nothing(name) and "mount" not in host.processes and not host.stranger
        ]
        return self.rng.choice(hosts) if hosts else None

    async def roll_back(self) -> None:
        """The whole directory of a site as it was a while ago: a snapshot or a copy of it was put back."""
        host = self._follower()
        if host is None or not host.powered:
            return
        directory = self.world.directory / host.name
        self._snapshots += 1
        kept = self.world.directory / f"{host.name}.{self._snapshots}"
        copy_sites(directory, kept)
        epoch = self.checkers.epoch[host.name]
        await trio.sleep(self.rng.choice((0.1, 0.5, 2.0)))
        if self.healed or host.stranger or not self.checkers.writes_nothing(host.name):
            return
        boot = host.boot
        host.cut_power()
        if self.rng.random() < 0.5:
            host.boot = boot
        shutil.rmtree(directory)
        kept.rename(directory)
        self.checkers.rolled_back(host.name, epoch)
        await trio.sleep(self.rng.choice((0.1, 1.0)))
        self.power_on(host)

    async def answer_as_stranger(self) -> None:
        """Where a site was, the daemon of another volume answers for a while."""
        host = self._follower()
        if host is None or not host.powered:
            return
        self.bring_stranger(host)
        await trio.sleep(self.rng.choice((0.3, 1.5, 3.0)))
        self.send_stranger_away(host)

    def bring_stranger(self, host: Host) -> None:
        """The next daemon there finds the directory of another volume."""
        host.kill("daemon")
        directory = self.world.directory / host.name
        directory.rename(self.world.directory / f"{host.name}.own")
        copy_sites(self.world.directory.parent / "stranger" / host.name, directory)
        host.stranger = True

    def send_stranger_away(self, host: Host) -> None:
        """The next daemon there finds its own directory again."""
        if host.stranger:
            host.kill("daemon")
            directory = self.world.directory / host.name
            shutil.rmtree(directory)
            (self.world.directory / f"{host.name}.own").rename(directory)
            host.stranger = False
