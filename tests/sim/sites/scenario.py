"""What happens to the sites in one run: faults and commands at moments that the seed gives, then healing."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Literal

import trio

from replication.client import ask_site
from replication.config import SITE_NAMES, SiteName
from replication.control import ControlError, SetPair
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.procedures.commands import failback, failover, recover
from replication.procedures.results import FailoverResult, ProcedureRefused
from tests.sim.sites.checkers import BLOCK, Checkers
from tests.sim.sites.cluster import Cluster
from tests.sim.sites.host import Host

PAIRS: tuple[tuple[SiteName, SiteName], ...] = (("primary", "sync"), ("primary", "async"), ("sync", "async"))
SETTLE_SECONDS = 180.0
REFUSALS = (PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError, ProcedureRefused)


class Scenario:
    """One run on a cluster."""

    def __init__(self, cluster: Cluster, checkers: Checkers, rng: random.Random) -> None:
        self.cluster = cluster
        self.checkers = checkers
        self.world = cluster.world
        self.rng = rng
        self.healing = False

    # --- the run

    async def run(self) -> None:
        """Faults, then healing, then what must be true at the end."""
        for site in SITE_NAMES:
            self.cluster.start_daemon(site)
        await trio.sleep(0.3)
        self.cluster.start_mount("primary")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up)
            await trio.sleep(self.rng.uniform(0.2, 2.0))
            for _ in range(self.rng.randrange(2, 9)):
                if self.cluster.violations:
                    break
                name, act = self._choose()
                self.cluster.counts[f"fault: {name}"] += 1
                self.world.note(f"fault {name}")
                nursery.start_soon(act)
                await trio.sleep(self.rng.choice((0.01, 0.1, 0.5, 1.0, 3.0, 6.0)))
            if not self.cluster.violations:
                await self._end(nursery)
            nursery.cancel_scope.cancel()

    def _choose(self) -> tuple[str, Callable[[], Awaitable[object]]]:
        faults: list[tuple[str, Callable[[], Awaitable[object]], int]] = [
            ("partition", self.partition, 6),
            ("connections reset", self.reset, 3),
            ("slow link", self.slow, 4),
            ("mount killed", self.kill_mount, 5),
            ("daemon killed", self.kill_daemon, 6),
            ("power cut", self.cut_power, 6),
            ("disk full", self.fill_disk, 2),
            ("clock jump", self.jump, 2),
            ("pair suspended", self.suspend, 3),
            ("failover to sync", lambda: self.take_over("sync"), 5),
            ("failover to async", lambda: self.take_over("async"), 3),
            ("failback", self.fail_back, 3),
            ("recover", lambda: self._command("recover", lambda: recover(self.world.config)), 1),
            ("primary lost", self.lose_primary, 3),
        ]
        names = [name for name, _, _ in faults]
        chosen = self.rng.choices(range(len(names)), weights=[weight for _, _, weight in faults])[0]
        return faults[chosen][0], faults[chosen][1]

    async def _keep_up(self) -> None:
        """What a service manager and an operator do: start what has died, mount where the writer is."""
        while True:
            await trio.sleep(self.rng.choice((0.2, 1.0, 3.0)) if not self.healing else 0.5)
            for site in SITE_NAMES:
                host = self.world.hosts[site]
                if host.powered and not host.held:
                    self.cluster.start_daemon(site)
            if self.cluster.mount_wanted:
                writer = self.writer
                host = self.world.hosts[writer]
                if host.powered and not host.held:
                    self.cluster.start_mount(writer)
                for site in SITE_NAMES:
                    if site != writer and self.healing:
                        self.world.hosts[site].kill("mount")

    @property
    def writer(self) -> SiteName:
        """The writer of the newest epoch."""
        roles = self.checkers.roles
        return roles[max(roles)].writer if roles else "primary"

    # --- faults

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
        await trio.sleep(self.rng.choice((0.1, 1.0, 3.0, 8.0)))
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
        await trio.sleep(self.rng.choice((1.0, 6.0)))
        link.latency, link.bytes_per_second = 0.0002, 1e9

    async def kill_mount(self) -> None:
        """SIGKILL of the mount process."""
        for site in SITE_NAMES:
            self.world.hosts[site].kill("mount")

    async def kill_daemon(self) -> None:
        """SIGKILL of a daemon; it is started again at once or later."""
        host = self._host()
        host.held = self.rng.random() < 0.5
        host.kill("daemon")
        await trio.sleep(self.rng.choice((0.5, 5.0)))
        host.held = False

    async def cut_power(self) -> None:
        """A machine goes down at once; it comes back later."""
        await self._power(self._host())

    async def _power(self, host: Host) -> None:
        host.cut_power()
        await trio.sleep(self.rng.choice((0.1, 2.0, 7.0)))
        host.powered = True
        for other in SITE_NAMES:
            if other != host.name:
                self.world.network.reset_all(host.name, other)
                self.world.network.link(host.name, other).change(
                    up=self.world.network.link(host.name, other).up
                )

    async def fill_disk(self) -> None:
        """No room on a machine for a while."""
        disk = self._host().disk
        disk.full = True
        await trio.sleep(self.rng.choice((1.0, 6.0)))
        disk.full = False

    async def jump(self) -> None:
        """A clock jumps."""
        self._host().clock_offset_ns += int(self.rng.choice((-3600e9, -5e9, 5e9, 86400e9)))

    async def lose_primary(self) -> None:
        """The writer's machine goes down, and an operator takes over at the sync site."""
        host = self.world.hosts["primary"]
        self.world.nursery.start_soon(self._power, host)
        await trio.sleep(self.rng.choice((0.0, 2.0)))
        await self.take_over("sync")

    # --- commands

    async def _command(self, name: str, work: Callable[[], Awaitable[object]]) -> object:
        site = self.rng.choice(SITE_NAMES)
        if not self.world.hosts[site].powered or name in self.world.hosts[site].processes:
            return None
        result = await self.cluster.operate(site, name, work)
        self.world.note(f"{name}: {result!r}"[:400])
        refused = isinstance(result, Exception)
        self.cluster.counts[
            f"{name}: {'refused' if refused else 'done' if result is not None else 'killed'}"
        ] += 1
        return result

    async def take_over(self, to: Literal["sync", "async"]) -> None:
        """`trisite failover`, with or without --accept-loss."""
        accept = self.rng.random() < 0.5
        self.checkers.accepting += accept
        result = await self._command(
            f"failover --to {to}", lambda: failover(self.world.config, to, accept_loss=accept)
        )
        self.checkers.accepting -= accept
        if isinstance(result, FailoverResult):
            self.checkers.took_over(result)

    async def fail_back(self) -> None:
        """`trisite failback`."""
        await self._command("failback", lambda: failback(self.world.config))

    async def suspend(self) -> None:
        """`trisite pair suspend`, and resync later."""
        target = self.rng.choice(("sync", "async"))
        force = self.rng.random() < 0.5
        for action in ("suspend", "resync"):
            await self._pair(target, action, force=force)
            await trio.sleep(self.rng.choice((0.5, 3.0)))

    async def _pair(self, target: str, action: str, *, force: bool) -> None:
        async def ask() -> str:
            request = SetPair(target=target, action=action, force=force)  # type: ignore[arg-type]
            try:
                await ask_site(self.world.config, self.writer, request)
            except REFUSALS as error:
                return f"refused {error}"
            return "changed"

        await self._command(f"pair {action}", ask)

    # --- the end

    async def _end(self, nursery: trio.Nursery) -> None:
        """Heal; everything returns to Duplex; go back to the primary site; all areas are equal."""
        await trio.sleep(9)  # what a fault takes back by itself
        for host in self.world.hosts.values():
            host.disk.full, host.held, host.powered = False, False, True
        for pair in PAIRS:
            self.world.network.link(*pair).change(up=True)
        self.healing = True
        self.world.note("healed")
        await self._settle("after the faults")
        if self.writer != "primary" and not self.cluster.violations:
            await self._return()
            await self._settle("after failback")
        if not self.cluster.violations:
            await self._compare()

    async def _settle(self, when: str) -> None:
        """Until the pairs of the newest roles are Duplex and the application is served."""
        deadline = trio.current_time() + SETTLE_SECONDS
        asked = 0.0
        while trio.current_time() < deadline and not self.cluster.violations:
            await trio.sleep(0.5)
            states = self.checkers.pairs_now(self.writer)
            if all(state == "Duplex" for state in states.values()):
                acks = self.cluster.counts["acknowledged"]
                await trio.sleep(1.5)
                if self.cluster.counts["acknowledged"] > acks:
                    return
            elif "Suspend" in states.values() and trio.current_time() > asked + 10:
                asked = trio.current_time()  # the operator who suspended a pair ends that
                for target, state in states.items():
                    if state == "Suspend":
                        await self._pair(target, "resync", force=False)
        if not self.cluster.violations:
            states = self.checkers.pairs_now(self.writer)
            self.cluster.violate(
                f"{when}: writer {self.writer}, {states}, no acknowledged write or no Duplex"
            )

    async def _return(self) -> None:
        for _ in range(6):
            result = await self.cluster.operate(
                "primary", "last failback", lambda: failback(self.world.config)
            )
            self.world.note(f"last failback: {result!r}"[:400])
            if not isinstance(result, Exception) and result is not None:
                self.cluster.counts["last failback: done"] += 1
                return
            await trio.sleep(5)
        self.cluster.violate(f"failback is refused though everything is healed: {result!r}")

    async def _compare(self) -> None:
        """The application ends; C and D are what A is."""
        self.cluster.mount_wanted = False
        self.cluster.end_mount()
        bad: dict[str, list[int]] = {"all": []}
        deadline = trio.current_time() + SETTLE_SECONDS
        while bad and trio.current_time() < deadline:
            await trio.sleep(1)
            bad = self._differing()
        for site, blocks in bad.items():
            self.cluster.violate(f"at the end site {site} differs from primary in blocks {blocks[:8]}")
        self.cluster.counts["ended equal"] += not bad

    def _differing(self) -> dict[str, list[int]]:
        """The blocks in use that differ from those at primary, by site."""
        areas = {site: self.checkers.area(site) for site in SITE_NAMES}
        used = sorted(self.checkers.allocated("primary"))

        def same(site: SiteName, at: int) -> bool:
            place = slice(at * BLOCK, at * BLOCK + BLOCK)
            return areas[site][place] == areas["primary"][place]

        found = {site: [at for at in used if not same(site, at)] for site in ("sync", "async")}
        return {site: blocks for site, blocks in found.items() if blocks}
