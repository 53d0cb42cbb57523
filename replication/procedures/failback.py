"""The way back to the primary site: level it while the application goes on, then switch (figures 11 and 15).

Figure 12 (`via` B) differs in the first embodiment only, where B is an area of its own; in the fourth
embodiment the primary site has one area, and both ways are this one.
"""

import time

import trio

from replication.config import Config, SiteName
from replication.control import (
    Adopt,
    CreateVolume,
    Drain,
    FinishMount,
    GetLevel,
    GetStatus,
    Level,
    LevelStatus,
    ReportRanges,
    ReturnReport,
)
from replication.procedures.plan import Plan, Survey
from replication.procedures.results import FailbackResult, ProcedureRefused, Quarantined
from replication.procedures.running import (
    POLL_SECONDS,
    Progress,
    demand,
    raise_if_overtaken,
    request_if_there,
)
from replication.roles import Roles, after_failback
from replication.words import size


class Return:
    """One run of the way back; it holds what a step finds out for the ones after it."""

    def __init__(self, config: Config, plan: Plan, survey: Survey, progress: Progress) -> None:
        self._config = config
        self._roles = plan.roles
        self._plan = plan
        self._survey = survey
        self._progress = progress
        self._returns: dict[SiteName, ReturnReport] = {}
        self._bytes_copied = 0
        self._sequence = plan.roles.start_sequence

    async def run(self) -> FailbackResult:
        """All steps; a run before this one may have taken any of them."""
        names = [step.name for step in self._plan.steps]
        if self._plan.kind == "nothing":
            return self._result(self._roles)
        if names == ["switch"]:
            with self._progress.step("switch"):
                await self._switch(self._roles, self._plan.steps[0].sites)
            return self._result(self._roles)
        with self._progress.step("keep"):
            await self._keep()
        with self._progress.step("level"):
            await self._level_all("level")
        with self._progress.step("finish"):
            await self._finish()
        with self._progress.step("last difference"):
            await self._level_all("last difference")
        if "drain" in names:
            with self._progress.step("drain"):
                await self._drain()
        with self._progress.step("switch"):
            roles = after_failback(self._roles, self._sequence, time.time_ns())
            # The old writer first: from then on nobody writes in the old epoch, whatever happens next.
            there = [site for site in roles_order(self._roles) if site in self._survey.reports]
            await self._switch(roles, (self._roles.writer, *there))
        return self._result(roles)

    async def _keep(self) -> None:
        notes: list[str] = []
        for site in self._plan.targets:
            await self._make_anew(site)
            await demand(self._config, site, Adopt(volume=self._survey.volume, roles=self._roles))
            request = ReportRanges(epoch=self._roles.epoch, after_sequence=self._roles.start_sequence)
            found = await demand(self._config, site, request, 600.0)
            self._returns[site] = found
            kept = "nothing" if found.quarantine is None else size(found.quarantined_bytes)
            notes.append(f"site {site}: {kept} of its own to keep ({found.reason})")
        self._progress.note("; ".join(notes))

    async def _make_anew(self, site: SiteName) -> None:
        """A site whose disk was replaced holds nothing: it is made with an empty area, and levelled whole."""
        volume = self._survey.reports[self._roles.writer].volume
        if volume is None or self._survey.reports[site].volume is not None:
            return
        request = CreateVolume(
            uuid=volume.uuid,
            name=volume.name,
            size_bytes=volume.size_bytes,
            roles=self._roles,
            blank=True,
        )
        await demand(self._config, site, request)

    async def _level_all(self, step: str) -> None:
        for site in self._plan.targets:
            found = self._returns[site]
            request = Level(
                target=site,
                after_sequence=self._roles.start_sequence,
                ranges=found.ranges,
                everything=found.everything,
            )
            await demand(self._config, self._roles.writer, request)
            status = await self._wait_level(step)
            self._bytes_copied += status.bytes_copied
            self._sequence = status.position
            self._progress.note(f"{size(status.bytes_copied)} travelled, level at sequence {status.position}")

    async def _wait_level(self, step: str) -> LevelStatus:
        while True:
            status = await demand(self._config, self._roles.writer, GetLevel())
            if status.error is not None:
                raise ProcedureRefused(
                    f"levelling stopped: {status.error}; nothing has changed for the application, "
                    "run the command again once that is put right",
                    4,
                )
            if not status.running:
                return status
            self._progress.progress(step, status.sentence)
            await trio.sleep(POLL_SECONDS)

    async def _finish(self) -> None:
        finished = await demand(self._config, self._roles.writer, FinishMount(), 120.0)
        if not finished.finished:
            raise ProcedureRefused(
                f"the volume is still in use at site {self._roles.writer}: {finished.sentence}; "
                "everything is safe and the primary site is nearly level, stop the application and "
                "run the command again",
                1,
            )
        self._sequence = finished.sequence

    async def _drain(self) -> None:
        if self._roles.async_to not in self._survey.reports:
            self._progress.pending("site async gets the rest from the primary site when it answers")
            return
        while True:
            answer = await demand(self._config, self._roles.writer, Drain(sequence=self._sequence))
            if answer.drained:
                self._progress.note(f"durable and applied up to sequence {self._sequence}")
                return
            if answer.stopped:
                self._progress.pending(
                    f"the pair from site {self._roles.writer} to site async was stopped; site async gets the "
                    "rest from the primary site"
                )
                return
            self._progress.progress("drain", answer.sentence)
            alive = await request_if_there(self._config, "async", GetStatus(), 2.0)
            if isinstance(alive, str):
                self._progress.pending("site async went away; it gets the rest from the primary site later")
                return
            await trio.sleep(POLL_SECONDS)

    async def _switch(self, roles: Roles, sites: tuple[SiteName, ...]) -> None:
        request = Adopt(volume=self._survey.volume, roles=roles)
        for site in dict.fromkeys(sites):
            if site in {"primary", self._roles.writer}:
                adopted = await demand(self._config, site, request)
                raise_if_overtaken(site, adopted.roles, roles)
            else:
                answer = await request_if_there(self._config, site, request)
                if isinstance(answer, str):
                    self._progress.note(f"site {site} learns it when it is back: {answer}")

    def _result(self, roles: Roles) -> FailbackResult:
        kept = [
            Quarantined(site=site, path=found.quarantine, bytes=found.quarantined_bytes)
            for site, found in self._returns.items()
            if found.quarantine is not None
        ]
        return FailbackResult(
            writer=roles.writer,
            epoch=roles.epoch,
            bytes_copied=self._bytes_copied,
            seconds=self._progress.seconds,
            sequence=roles.start_sequence,
            quarantine=kept[0].path if kept else None,
            quarantined_bytes=sum(found.bytes for found in kept),
            quarantines=kept,
            steps=self._progress.events,
        )


def roles_order(old: Roles) -> tuple[SiteName, ...]:
    """Who learns of the new epoch after the old writer: the others, the new writer last."""
    others: tuple[SiteName, ...] = ("sync", "async")
    return (*(site for site in others if site != old.writer), "primary")
