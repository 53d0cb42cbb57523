"""The plans of the procedures: pure functions of what the reachable sites said (figures 10, 11, 13, 14, 15,
22).

A plan holds every step of its procedure, also those that a run before it finished: a step looks first whether
it is done. So the plan of a rerun is the same list, and killing a procedure anywhere costs nothing but time.
"""

from typing import Literal

import msgspec

from replication.config import SITE_NAMES, SiteName
from replication.control import ListingReply, SiteReport
from replication.procedures.results import ProcedureRefused
from replication.roles import Roles, fork_sentence, parting, role_of, time_text
from replication.state import why_alone
from replication.words import sites as sites_text
from replication.words import size


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step: a stable name, what it does, what it costs, and the sites it needs."""

    name: str
    sentence: str
    cost: str
    sites: tuple[SiteName, ...]


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What the sites answered; a site that did not is in `silent` with the reason."""

    reports: dict[SiteName, SiteReport]
    silent: dict[SiteName, str]

    def newest(self) -> Roles | None:
        """The roles of the newest epoch any reachable site knows."""
        known = [report.roles for report in self.reports.values() if report.roles is not None]
        return max(known, key=lambda roles: roles.epoch, default=None)

    @property
    def volume(self) -> str:
        """The uuid of the volume that the sites hold (see `disagreement`); empty where none holds one."""
        found = (report.volume.uuid for report in self.reports.values() if report.volume is not None)
        return next(found, "")

    def forks(self) -> list[Roles]:
        """The roles of the newest epoch where sites know more than one of its number; empty: they agree."""
        newest = self.newest()
        told = [self.reports[site].roles for site in SITE_NAMES if site in self.reports]
        found = {
            one.identity: one
            for one in told
            if one is not None and newest is not None and one.epoch == newest.epoch
        }
        return list(found.values()) if len(found) > 1 else []

    def own_writes(self, site: SiteName, winner: Roles) -> int | None:
        """How many writes only `site` has that wrote beside `winner`; None where it does not say."""
        report = self.reports.get(site)
        parted = parting(report.history, winner) if report is not None else None
        if report is None or parted is None or report.next_sequence is None:
            return None
        return report.next_sequence - 1 - parted

    def disagreement(self) -> str | None:
        """What to tell where sites hold different volumes, which no procedure may mix; None: they do not."""
        holders: dict[str, list[str]] = {}
        for site in SITE_NAMES:
            volume = self.reports[site].volume if site in self.reports else None
            if volume is not None:
                holders.setdefault(volume.uuid, []).append(site)
        if len(holders) < 2:
            return None
        told = "; ".join(f"site {' and '.join(sites)}: {uuid}" for uuid, sites in holders.items())
        return (
            f"the sites hold different volumes ({told}); put the right directory and keys back at the wrong "
            "one, or stop its daemon and go on without it"
        )

    def why_silent(self, site: SiteName) -> str:
        """Why a site did not answer, to be told behind its name."""
        return self.silent.get(site, "it was not asked").removeprefix(f"site {site} at ")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of a procedure from the roles that hold now; `via_sync` is figure 14, `targets` are
    levelled, `fork_epoch` is the number that ends a fork. `doubt`: why site sync, by its own word in step,
    may lack acknowledged writes all the same.
    """

    kind: Literal["take over at sync", "take over at async", "return", "nothing"]
    roles: Roles
    steps: list[Step]
    via_sync: bool = False
    targets: tuple[SiteName, ...] = ()
    fork_epoch: int | None = None
    doubt: str | None = None


def known_roles(survey: Survey) -> Roles:
    """The newest roles; refused when no site answers, none has a volume, or sites hold different ones.

    Also where two sites were promoted to the same epoch: which goes on is for an operator to say.
    """
    if (sentence := survey.disagreement()) is not None:
        raise ProcedureRefused(sentence, 1)
    if forks := survey.forks():
        raise ProcedureRefused(fork_sentence(forks), 1)
    roles = survey.newest()
    if roles is not None:
        return roles
    if survey.reports:
        raise ProcedureRefused("no site has a volume yet; make one with `trisite mkfs`", 1)
    reasons = "; ".join(survey.silent[site] for site in SITE_NAMES if site in survey.silent)
    raise ProcedureRefused(f"no site answers ({reasons}); start their daemons with `trisite site NAME`", 4)


def plan_failover(
    survey: Survey, to: SiteName, *, accept_loss: bool, listing: ListingReply | None = None
) -> Plan:
    """Figures 10 and 22 (`to` sync), 13 and 14 (`to` async). `listing` is what the sync site's log names,
    for costs.
    """
    if survey.disagreement() is None and (forks := survey.forks()):
        return _plan_fork(survey, to, forks, accept_loss=accept_loss)
    roles = known_roles(survey)
    if to not in survey.reports:
        raise ProcedureRefused(
            f"site {to} cannot take over, it does not answer ({survey.why_silent(to)}); "
            f"start its daemon with `trisite site {to}`",
            4,
        )
    if survey.reports[to].volume is None:
        raise ProcedureRefused(f"site {to} cannot take over, it has no part of the volume yet", 1)
    if to == "primary":
        raise ProcedureRefused("the primary site takes over with `trisite failback`", 1)
    if roles.writer != to:
        _refuse_living_writer(survey, roles, accept_loss=accept_loss)
    if to == "sync":
        return _plan_sync(survey, roles, accept_loss=accept_loss, listing=listing)
    return _plan_async(survey, roles, accept_loss=accept_loss, listing=listing)


def _plan_fork(survey: Survey, to: SiteName, forks: list[Roles], *, accept_loss: bool) -> Plan:
    """One of the writers of a forked epoch goes on in a higher one; the others follow, and keep their own."""
    roles = next((one for one in forks if one.writer == to), None)
    report = survey.reports.get(to)
    if not accept_loss or roles is None or report is None or report.roles != roles:
        told = "; ".join(
            _of_its_own(survey, one.writer, other) for one in forks for other in forks if one != other
        )
        raise ProcedureRefused(f"{fork_sentence(forks)}: {told}", 5)
    writers = [one.writer for one in forks]
    if mounted := [site for site in writers if site in survey.reports and survey.reports[site].mounted]:
        raise ProcedureRefused(
            f"the volume is mounted at site {' and '.join(mounted)}; unmount it while the fork is settled, "
            "so that everything the other writer has can be kept",
            1,
        )
    losing = [_of_its_own(survey, one.writer, roles) for one in forks if one is not roles]
    promote = Step(
        name="promote" if to == "sync" else "promote async",
        sentence=f"site {to} goes on as the writer, the other writer of epoch {roles.epoch} follows it",
        cost=f"{'; '.join(losing)}, which goes to its quarantine",
        sites=(to,),
    )
    number = max(one.roles.epoch for one in survey.reports.values() if one.roles is not None) + 1
    steps = [promote, *(_recovery_steps(survey, None) if to == "sync" else [])]
    kind: Literal["take over at sync", "take over at async"] = (
        "take over at sync" if to == "sync" else "take over at async"
    )
    return Plan(kind=kind, roles=roles, steps=steps, fork_epoch=number)


def _of_its_own(survey: Survey, site: SiteName, winner: Roles) -> str:
    writes = survey.own_writes(site, winner)
    many = "what it wrote, how much it does not say" if writes is None else f"{writes:,} writes"
    return f"site {site} has {many} of its own"


def _refuse_living_writer(survey: Survey, roles: Roles, *, accept_loss: bool) -> None:
    """A writer that is alive and mounted is not taken over by accident."""
    report = survey.reports.get(roles.writer)
    if report is not None and report.mounted and not accept_loss:
        raise ProcedureRefused(
            f"site {roles.writer} is alive and the volume is mounted there; unmount it there first, "
            "or take over all the same with --accept-loss (its later writes fail)",
            1,
        )


def _plan_sync(survey: Survey, roles: Roles, *, accept_loss: bool, listing: ListingReply | None) -> Plan:
    report = survey.reports["sync"]
    if roles.writer == "async":
        raise ProcedureRefused(
            "site async is the writer; the way back from there is `trisite failback`, with the primary",
            1,
        )
    ahead = writes_ahead_of_sync(survey, roles)
    doubt = None
    if roles.writer != "sync":
        doubt = doubt_of_sync(survey, roles)
        _refuse_unproven(report, roles, accept_loss=accept_loss, ahead=ahead, doubt=doubt)
    refused = f"the old writer is refused from now on{_cut_off(survey, roles)}"
    steps = [
        Step(
            name="promote",
            sentence=f"site sync becomes the writer, {refused}",
            cost="no copy" if not ahead else f"site async is set back by {ahead:,} writes that only it has",
            sites=("sync",),
        ),
        *_recovery_steps(survey, listing),
    ]
    return Plan(kind="take over at sync", roles=roles, steps=steps, doubt=doubt)


def _cut_off(survey: Survey, roles: Roles) -> str:
    """What a take-over does to an old writer that lives, or whose mount process does."""
    writer, sync = survey.reports.get(roles.writer), survey.reports.get("sync")
    if roles.writer == "sync":
        return ""
    if writer is not None and writer.mounted:
        return f"; site {roles.writer} is alive and mounted: what is written there fails (EIO)"
    if writer is None and sync is not None and sync.heard is not None and sync.heard.connected:
        return (
            f"; the mount at site {roles.writer} may be alive, as site sync knows it, and what is written "
            "there fails (EIO)"
        )
    return ""


def doubt_of_sync(survey: Survey, roles: Roles) -> str | None:
    """What other sites say that contradicts a site sync which by its own word has everything; None: nothing.

    It is told only when it is reachable that its pair was suspended or deleted with --force. But the writer
    knows, and what site async has beyond site sync was never held back for it (P1).
    """
    writer = survey.reports.get(roles.writer)
    alone = why_alone(writer.pairs, roles.writer, roles.epoch) if writer is not None else None
    if alone is not None:
        return alone
    ahead = writes_ahead_of_sync(survey, roles)
    if ahead:
        lacks = f"site async has {ahead:,} writes that site sync has not"
        return f"{lacks}, so site {roles.writer} went on without it"
    return None


def writes_ahead_of_sync(survey: Survey, roles: Roles) -> int:
    """How many writes of this epoch site async has that site sync, suspended or behind, has not; 0: none
    known. A site sync that is in step has them all (P1), if it was asked after site async.
    """
    sync, far = survey.reports.get("sync"), survey.reports.get("async")
    if sync is None or far is None or far.position is None or role_of(roles, "sync") != "sync":
        return 0
    if far.position.epoch != roles.epoch or sync.roles != roles or sync.received_sequence is None:
        return 0
    return max(0, far.position.durable_sequence - sync.received_sequence)


def _refuse_unproven(
    report: SiteReport, roles: Roles, *, accept_loss: bool, ahead: int, doubt: str | None
) -> None:
    if role_of(roles, "sync") != "sync":
        raise ProcedureRefused(
            f"site sync has no part in epoch {roles.epoch}, the writer is {roles.writer}; "
            "bring it level first with `trisite failback`",
            1,
        )
    if (doubt is not None or not report.proven) and not accept_loss:
        why = doubt if doubt is not None and report.proven else report.proven_reason
        better = f"; site async has {ahead:,} writes more: take over there (--to async)" if ahead else ""
        raise ProcedureRefused(
            f"taking over at sync could lose acknowledged data: {why}{better}; "
            "bring the primary site back, or run again with --accept-loss",
            5,
        )


def _recovery_steps(survey: Survey, listing: ListingReply | None) -> list[Step]:
    cost = "only blocks that differ travel"
    if listing is not None:
        cost = (
            f"{listing.files_listed:,} files with {size(listing.file_bytes)}, and the log area of "
            f"{size(listing.log_bytes)}, are compared; {cost}"
        )
    if "async" not in survey.reports:
        return [
            Step(
                name="recovery copy",
                sentence=f"site async follows when it is back ({survey.why_silent('async')})",
                cost=cost,
                sites=(),
            )
        ]
    return [
        Step(name="follow", sentence="site async follows site sync", cost="no copy", sites=("async",)),
        Step(
            name="recovery copy",
            sentence="the files that the log of site sync names are brought level at site async",
            cost=cost,
            sites=("sync", "async"),
        ),
    ]


def _plan_async(survey: Survey, roles: Roles, *, accept_loss: bool, listing: ListingReply | None) -> Plan:
    promote = Step(
        name="promote async",
        sentence="site async applies what it has journalled and becomes the writer",
        cost=f"no copy; {newest_at_async(survey.reports['async'])}",
        sites=("async",),
    )
    if roles.writer == "async":
        return Plan(kind="take over at async", roles=roles, steps=[promote])
    ahead = writes_ahead_of_sync(survey, roles)
    is_level = not ahead and (roles.writer == "sync" or role_of(roles, "sync") == "sync")
    if "sync" in survey.reports and is_level:
        first = _plan_sync(survey, roles, accept_loss=accept_loss, listing=listing)
        turn = Step(
            name="turn",
            sentence="site sync stops writing and follows site async",
            cost="no copy, both hold the same",
            sites=("sync", "async"),
        )
        steps = [*first.steps, turn]
        return Plan(kind="take over at async", roles=roles, steps=steps, via_sync=True, doubt=first.doubt)
    if not accept_loss:
        report = survey.reports["async"]
        missing = missing_at_async(report)
        known = f"{missing} writes are known missing" if missing else "how many writes is not known"
        why = f"site sync does not answer ({survey.why_silent('sync')})"
        way_out = "bring site sync back"
        if ahead:
            why = f"site sync is {ahead:,} writes behind site async and cannot bring it level"
            way_out = "bring the primary site back"
        raise ProcedureRefused(
            f"{why}, so taking over at async could lose the last acknowledged writes ({known}, "
            f"{newest_at_async(report)}); {way_out}, or accept that with --accept-loss",
            5,
        )
    return Plan(kind="take over at async", roles=roles, steps=[promote])


def newest_at_async(report: SiteReport) -> str:
    """From when the state is that site async could go on with, as far as it knows."""
    if report.position is None or not report.position.timestamp_ns:
        return "of when its state is, it does not know"
    return f"its state is of {time_text(report.position.timestamp_ns)}"


def missing_at_async(report: SiteReport) -> int | None:
    """The writes site async knows it lacks; None where it cannot know that there are any."""
    if report.position is None:
        return None
    return max(0, report.newest_known - report.position.durable_sequence) or None


def plan_failback(survey: Survey) -> Plan:
    """Figures 11 and 15: back to the primary site, through levelling it while the application goes on."""
    roles = known_roles(survey)
    if roles.writer == "primary":
        return _plan_finished_return(survey, roles)
    for site in (roles.writer, "primary"):
        if site not in survey.reports:
            raise ProcedureRefused(
                f"the way back needs site {site}, which does not answer ({survey.why_silent(site)}); "
                f"start its daemon with `trisite site {site}` and run again",
                4,
            )
    targets: tuple[SiteName, ...] = ("primary",)
    if roles.writer == "async":
        if "sync" not in survey.reports:
            raise ProcedureRefused(
                "the way back from site async needs site sync too, which does not answer "
                f"({survey.why_silent('sync')}); start its daemon with `trisite site sync` and run again",
                4,
            )
        # After figure 14 sync follows async already, and needs no levelling.
        targets = ("primary",) if roles.async_to == "sync" else ("primary", "sync")
    return Plan(kind="return", roles=roles, steps=_return_steps(survey, roles, targets), targets=targets)


def _plan_finished_return(survey: Survey, roles: Roles) -> Plan:
    behind = tuple(
        site
        for site, report in survey.reports.items()
        if report.roles is not None and report.roles.epoch < roles.epoch
    )
    if not behind:
        return Plan(kind="nothing", roles=roles, steps=[])
    step = Step(
        name="switch",
        sentence=f"tell {sites_text(behind)} that primary writes again",
        cost="no copy",
        sites=behind,
    )
    return Plan(kind="return", roles=roles, steps=[step])


def _return_steps(survey: Survey, roles: Roles, targets: tuple[SiteName, ...]) -> list[Step]:
    writer = roles.writer
    names, one = sites_text(targets), len(targets) == 1
    steps = [
        Step(
            name="keep",
            sentence=f"{names} {'learns' if one else 'learn'} who writes; what the volume no longer has goes "
            "to quarantine there",
            cost="no copy",
            sites=targets,
        ),
        Step(
            name="level",
            sentence=f"site {writer} brings {names} level while the application goes on",
            cost="what was written since the take-over is compared, only blocks that differ travel",
            sites=(writer, *targets),
        ),
        Step(
            name="finish",
            sentence=f"the mount at site {writer} flushes and ends; the application stops here",
            cost="the application is down until it is mounted at primary",
            sites=(writer,),
        ),
        Step(
            name="last difference",
            sentence=f"what was written during the levelling goes to {names}",
            cost="only blocks that differ travel",
            sites=(writer, *targets),
        ),
    ]
    if roles.async_to is not None and roles.async_to not in targets:
        away = roles.async_to not in survey.reports
        sentence = (
            f"site {roles.async_to} does not answer and gets the rest from primary later"
            if away
            else f"site {roles.async_to} makes durable what is still under way"
        )
        steps.append(
            Step(
                name="drain",
                sentence=sentence,
                cost="what waits in the queue",
                sites=() if away else (roles.async_to,),
            )
        )
    steps.append(
        Step(
            name="switch",
            sentence=f"epoch {roles.epoch + 1}: primary writes, sync and async follow",
            cost="no copy",
            sites=SITE_NAMES,
        )
    )
    return steps
