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
from tests.sim.sites.checkers import BLOCK, UNKNOWN, Checkers
from tests.sim.sites.cluster import Cluster
from tests.sim.sites.faults import Faults

SETTLE_SECONDS = 120.0
"""How long the sites may take, when everything is healed, to be Duplex again and to serve the application."""
ANSWER_SECONDS = 1.5
"""How long an fsync may take then, while every pair is Duplex and nothing is in its way."""
LONG_SHARE = 0.05
"""Of the runs: those with many faults, for what needs a history."""
NOT_STARTED = "not started"
REFUSALS = (PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError, ProcedureRefused)


class Scenario:
    """One run on a cluster."""

    def __init__(self, cluster: Cluster, checkers: Checkers, rng: random.Random) -> None:
        self.cluster = cluster
        self.checkers = checkers
        self.world = cluster.world
        self.rng = rng
        self.faults = Faults(cluster, checkers, rng)
        self.healing = False
        self.commands = 0
        """Commands of operators that have not ended."""
        self._forced = False
        """The pair was suspended by force: site sync may not know, and no take-over there is without loss."""
        received = cluster.world.config.options.complete == "received"
        self._stories: dict[Callable[[], Awaitable[None]], int] = {
            self.primary_lost_while_sync_is_behind: 1,
            self.both_lose_power: 5 if received else 1,
            self.power_lost_while_alone: 1,
        }
        """Several things that must come one after the other, up to the last; how often they are chosen."""

    # --- the run

    async def run(self) -> None:
        """Faults, then healing, then what must be true at the end."""
        for site in SITE_NAMES:
            self.cluster.start_daemon(site)
        await trio.sleep(0.1)
        self.cluster.start_mount("primary")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_up)
            await trio.sleep(self.rng.choice((0.1, 0.3, 1.0)))
            many = self.rng.random() < LONG_SHARE
            for _ in range(self.rng.randrange(8, 20) if many else self.rng.randrange(1, 5)):
                if self.cluster.violations:
                    break
                self.cluster.work_hard(self.rng.choice((0.02, 0.05, 0.2)))
                await trio.sleep(self.rng.choice((0.0, 0.003, 0.03)))
                name, act = self._choose()
                self.cluster.counts[f"fault: {name}"] += 1
                self.world.note(f"fault {name}")
                if act in self._stories:
                    await act()
                else:
                    nursery.start_soon(act)
                await trio.sleep(self.rng.choice((0.01, 0.1, 0.3, 0.6, 1.0, 3.0)))
            if not self.cluster.violations:
                await self._end()
            nursery.cancel_scope.cancel()

    def _choose(self) -> tuple[str, Callable[[], Awaitable[object]]]:
        faults: list[tuple[str, Callable[[], Awaitable[object]], int]] = [
            *self.faults.all(),
            ("pair suspended", self.suspend, 3),
            ("failover to sync", lambda: self.take_over("sync"), 5),
            ("failover to async", lambda: self.take_over("async"), 3),
            ("failback", self.fail_back, 3),
            ("recover", lambda: self._command("recover", lambda: recover(self.world.config)), 1),
            ("primary lost", self.lose_primary, 3),
            *((act.__name__.replace("_", " "), act, weight) for act, weight in self._stories.items()),
        ]
        names = [name for name, _, _ in faults]
        chosen = self.rng.choices(range(len(names)), weights=[weight for _, _, weight in faults])[0]
        return faults[chosen][0], faults[chosen][1]

    async def _keep_up(self) -> None:
        """What a service manager and an operator do: start what has died, mount where the writer is."""
        while True:
            await trio.sleep(self.rng.choice((0.1, 0.5, 2.0)) if not self.healing else 0.3)
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

    # --- commands

    async def lose_primary(self) -> None:
        """The writer's machine goes down, and an operator takes over at the sync site."""
        host = self.world.hosts["primary"]
        self.world.nursery.start_soon(self.faults.power, host)
        await trio.sleep(self.rng.choice((0.0, 1.0)))
        if not self.healing:
            await self.take_over("sync")

    async def primary_lost_while_sync_is_behind(self) -> None:
        """The sync site is out for a while; then the writer's machine goes down. Nobody accepts a loss."""
        if self.rng.random() < 0.5:
            await self._pair("sync", "suspend", force=False)
        else:
            self.world.network.link("primary", "sync").change(up=False)
            await trio.sleep(self.world.config.options.silence_seconds)
        self.cluster.work_hard(0.2)
        await trio.sleep(0.3)
        self.world.network.link("primary", "sync").change(up=True)
        self.world.nursery.start_soon(self.faults.power, self.world.hosts["primary"])
        await self.take_over("sync", accept=False, at="sync")

    async def both_lose_power(self) -> None:
        """Both lose power just when something is acknowledged; nobody accepts a loss."""
        self.cluster.work_hard(0.5)
        acks, end = self.cluster.counts["acknowledged"], trio.current_time() + 0.4
        while trio.current_time() < end and self.cluster.counts["acknowledged"] == acks:  # noqa: ASYNC110
            await trio.sleep(0.0001)
        sync = self.world.hosts["sync"]
        sync.cut_power()
        await trio.sleep(self.rng.choice((0.0, 0.003)))
        self.world.nursery.start_soon(self.faults.power, self.world.hosts["primary"])
        self.faults.power_on(sync)
        self.cluster.start_daemon("sync")
        await trio.sleep(0.5)
        await self.take_over("sync", accept=False, at="sync")

    async def power_lost_while_alone(self) -> None:
        """The others have writes to files left alone, which this machine loses; then it writes alone."""
        await trio.sleep(1.5)  # until the log has forgotten what is seldom written
        self.cluster.write_cold(0.3)
        await trio.sleep(0.1 + self.rng.random() * 0.1)
        host = self.world.hosts["primary"]
        links = [self.world.network.link("primary", other) for other in ("sync", "async")]
        self.world.nursery.start_soon(self.faults.power, host)
        for link in links:
            link.change(up=False)
        await trio.sleep(1.0)
        self.cluster.work_hard(0.1)
        await trio.sleep(1.0)
        for link in links:
            link.change(up=True)

    async def _command(
        self, name: str, work: Callable[[], Awaitable[object]], at: SiteName | None = None
    ) -> object:
        """What a command says; None: it was killed."""
        site: SiteName = self.rng.choice(SITE_NAMES) if at is None else at
        if not self.world.hosts[site].powered or name in self.world.hosts[site].processes:
            return NOT_STARTED
        self.commands += 1
        result = await self.cluster.operate(site, name, work)
        self.commands -= 1
        self.world.note(f"{name}: {result!r}"[:400])
        if isinstance(result, ProcedureRefused) and result.code == UNKNOWN:
            ended = "not known"
        else:
            ended = "killed" if result is None else "refused" if isinstance(result, Exception) else "done"
        self.cluster.counts[f"{name}: {ended}"] += 1
        return result

    async def take_over(
        self, to: Literal["sync", "async"], *, accept: bool | None = None, at: SiteName | None = None
    ) -> None:
        """`trisite failover`, with or without --accept-loss."""
        if accept is None:
            accept = self.rng.random() < 0.5
        accept = accept or self._forced
        with self.checkers.command(to, accept_loss=accept) as outcome:
            result = await self._command(
                f"failover --to {to}", lambda: failover(self.world.config, to, accept_loss=accept), at
            )
            outcome.append(result)
        if isinstance(result, FailoverResult):
            # After --force a site sync that reached nobody takes itself to be in step: its word excuses less.
            self.checkers.took_over(result, believed=not self._forced)

    async def fail_back(self) -> None:
        """`trisite failback`."""
        with self.checkers.command("primary") as outcome:
            outcome.append(await self._command("failback", lambda: failback(self.world.config)))

    async def suspend(self) -> None:
        """`trisite pair suspend`, and resync later."""
        target = self.rng.choice(("sync", "async"))
        force = self.rng.random() < 0.5
        for action in ("suspend", "resync"):
            await self._pair(target, action, force=force)
            await trio.sleep(self.rng.choice((0.3, 2.0)))

    async def _pair(self, target: str, action: str, *, force: bool) -> None:
        self._forced = self._forced or (force and target == "sync" and action == "suspend")

        async def ask() -> str:
            request = SetPair(target=target, action=action, force=force)  # type: ignore[arg-type]
            try:
                await ask_site(self.world.config, self.writer, request)
            except REFUSALS as error:
                return f"refused {error}"
            return "changed"

        await self._command(f"pair {action}", ask)

    # --- the end

    async def _end(self) -> None:
        """Heal; everything returns to Duplex; go back to the primary site; all areas are equal."""
        self.healing = self.cluster.always_sync = True
        self.faults.heal()
        while self.commands:
            await trio.sleep(0.5)
            self.faults.heal()
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
        asked = -10.0
        while trio.current_time() < deadline and not self.cluster.violations:
            if self.checkers.pairs_now(self.writer).get("sync") != "Duplex":
                self.cluster.work_hard(0.02)  # what comes into step does so under load
            await trio.sleep(0.2)
            states, writer = self.checkers.pairs_now(self.writer), self.writer
            if self.cluster.held and writer != "primary" and trio.current_time() > asked + 5:
                asked = trio.current_time()  # who began to hand the site over and could not, stays there
                self.cluster.held = False
                await self.take_over(writer, accept=False)
            elif all(state == "Duplex" for state in states.values()):
                if await self._served(when):
                    return
            elif "Suspend" in states.values() and trio.current_time() > asked + 5:
                asked = trio.current_time()  # the operator who suspended a pair ends that
                for target, state in states.items():
                    if state == "Suspend":
                        await self._pair(target, "resync", force=False)
        if not self.cluster.violations:
            states = self.checkers.pairs_now(self.writer)
            self.cluster.violate(
                f"{when}: writer {self.writer}, {states}, no acknowledged write or no Duplex"
            )

    async def _served(self, when: str) -> bool:
        """Whether an fsync returns. While every pair is Duplex and one mount process lives on, it must."""
        acks = self.cluster.counts["acknowledged"]
        self.cluster.work_hard(0.01)
        before = self._calm()
        began = trio.current_time()
        while trio.current_time() < began + ANSWER_SECONDS:
            await trio.sleep(0.1)
            if self.cluster.counts["acknowledged"] > acks:
                return True
            if before is None or before != self._calm():
                return False
        self.cluster.violate(f"{when}: every pair is Duplex, and no fsync returned for {ANSWER_SECONDS:g} s")
        return False

    def _calm(self) -> tuple[object, ...] | None:
        """What stays the same while nothing is in the way of an fsync; None: something is."""
        mount = self.world.hosts[self.writer].processes.get("mount")
        states = self.checkers.pairs_now(self.writer)
        if mount is None or self.commands or any(state != "Duplex" for state in states.values()):
            return None
        return (mount, self.cluster.waiting.get(mount))

    async def _return(self) -> None:
        for _ in range(6):
            with self.checkers.command("primary") as outcome:
                result = await self.cluster.operate(
                    "primary", "last failback", lambda: failback(self.world.config)
                )
                outcome.append(result)
            self.world.note(f"last failback: {result!r}"[:400])
            if not isinstance(result, Exception) and result is not None:
                self.cluster.counts["last failback: done"] += 1
                return
            await trio.sleep(3)
        self.cluster.violate(f"failback is refused though everything is healed: {result!r}")

    async def _compare(self) -> None:
        """The application ends; C and D are what A is."""
        self.cluster.mount_wanted = False
        self.cluster.end_mount()
        bad: dict[str, list[int]] = {"all": []}
        deadline = trio.current_time() + SETTLE_SECONDS
        while bad and trio.current_time() < deadline:
            await trio.sleep(0.3)
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
