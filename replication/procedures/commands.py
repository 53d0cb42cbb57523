"""What the command line calls: fail over, fail back, recover. Survey, plan, then the steps."""

import time
from collections.abc import Callable
from typing import Literal

from replication.config import Config, SiteName
from replication.control import FileReport, GetListing, ListingReply
from replication.procedures.failback import Return
from replication.procedures.plan import Plan, Survey, known_roles, plan_failback, plan_failover
from replication.procedures.results import (
    FailbackResult,
    FailoverResult,
    ListedFileReport,
    ProcedureRefused,
    RecoverResult,
    StepEvent,
    as_of_fields,
)
from replication.procedures.running import Progress, demand, request_if_there
from replication.procedures.survey import take_survey
from replication.procedures.take_over_async import take_over_at_async
from replication.procedures.take_over_sync import take_over_at_sync

Report = Callable[[StepEvent], None]
LISTING_SECONDS = 120.0


def ignore(event: StepEvent) -> None:
    """Tells nobody."""
    del event


async def failover(
    config: Config,
    to: Literal["sync", "async"],
    *,
    accept_loss: bool = False,
    plan_only: bool = False,
    report: Report = ignore,
) -> FailoverResult:
    """Take over at `to` (figures 10, 13, 14, 22); ProcedureRefused with the reason and the way out.

    May be run again at any time and finishes what an earlier run began. `plan_only` changes nothing.
    """
    began = time.monotonic()
    survey = await take_survey(config)
    listing = await _listing(config, survey) if plan_only else None
    plan = plan_failover(survey, to, accept_loss=accept_loss, listing=listing)
    progress = Progress(plan.steps, report)
    progress.started = began
    if plan_only:
        progress.plan_only()
        return _planned(plan, survey, to, listing, progress)
    if plan.kind == "take over at sync":
        return await take_over_at_sync(config, plan, survey, progress)
    return await take_over_at_async(config, plan, survey, progress)


async def _listing(config: Config, survey: Survey) -> ListingReply | None:
    if "sync" not in survey.reports:
        return None
    answer = await request_if_there(config, "sync", GetListing(limit=0), LISTING_SECONDS)
    return None if isinstance(answer, str) else answer


def _planned(
    plan: Plan, survey: Survey, to: SiteName, listing: ListingReply | None, progress: Progress
) -> FailoverResult:
    report = survey.reports[to]
    newest_ns = report.position.timestamp_ns if to == "async" and report.position and not plan.via_sync else 0
    whose = survey.reports["sync"] if plan.via_sync else report
    lost = 0 if whose.proven and plan.doubt is None else None
    as_of, behind_seconds = as_of_fields(newest_ns, time.time_ns(), lost)
    return FailoverResult(
        writer=plan.roles.writer,
        epoch=plan.roles.epoch,
        files_listed=listing.files_listed if listing is not None else 0,
        bytes_listed=listing.bytes if listing is not None else 0,
        bytes_copied=0,
        lost=lost,
        seconds=progress.seconds,
        sequence=plan.roles.start_sequence,
        recovery="pending",
        lost_sentence=whose.proven_reason if plan.doubt is None else f"not known: {plan.doubt}",
        as_of=as_of,
        behind_seconds=behind_seconds,
        steps=progress.events,
    )


async def failback(
    config: Config,
    *,
    via: Literal["A", "B"] = "A",
    plan_only: bool = False,
    report: Report = ignore,
) -> FailbackResult:
    """Return to the primary site (figures 11, 12 and 15); ProcedureRefused with the reason and the way out.

    With one area at the primary site `via` A and B are the same way. May be run again after any interruption.
    """
    del via
    began = time.monotonic()
    survey = await take_survey(config)
    plan = plan_failback(survey)
    progress = Progress(plan.steps, report)
    progress.started = began
    if not plan_only:
        return await Return(config, plan, survey, progress).run()
    progress.plan_only()
    return FailbackResult(
        writer=plan.roles.writer,
        epoch=plan.roles.epoch,
        bytes_copied=0,
        seconds=progress.seconds,
        sequence=plan.roles.start_sequence,
        quarantine=None,
        quarantined_bytes=0,
        steps=progress.events,
    )


async def _whole_listing(config: Config, site: SiteName) -> tuple[ListingReply, list[FileReport]]:
    """The listing of a site's log and all its files, which may take more than one answer."""
    listing = await demand(config, site, GetListing(), LISTING_SECONDS)
    files, following = list(listing.files), listing.next_inode
    while following is not None:
        more = await demand(config, site, GetListing(from_inode=following), LISTING_SECONDS)
        files += more.files
        following = more.next_inode
    return listing, files


async def recover(config: Config, *, list_only: bool = False, report: Report = ignore) -> RecoverResult:
    """The files that the metadata log names at the site a recovery copy would start from (figure 22).

    Without `list_only` it also sees to the recovery copy: the site must be the writer by then, or is refused.
    """
    began = time.monotonic()
    survey = await take_survey(config)
    roles = known_roles(survey)
    site: SiteName = "sync" if roles.writer == "primary" else roles.writer
    if site not in survey.reports:
        raise ProcedureRefused(
            f"site {site} holds the log to be read, and does not answer ({survey.why_silent(site)})", 4
        )
    copied: int | None = None
    if not list_only:
        if roles.writer != "sync":
            raise ProcedureRefused(
                "a recovery copy starts where site sync has taken over, "
                f"and site {roles.writer} is the writer; use --list to see what it would copy, "
                "or `trisite failover --to sync`",
                1,
            )
        copied = (await failover(config, "sync", report=report)).bytes_copied
    listing, files = await _whole_listing(config, site)
    return RecoverResult(
        site=site,
        epoch=roles.epoch,
        files=[
            ListedFileReport(
                inode=file.inode, path=file.path, ranges=file.ranges, bytes=file.bytes, why=file.why
            )
            for file in files
        ],
        files_listed=len(files),
        bytes_listed=listing.bytes,
        file_bytes=listing.file_bytes,
        log_bytes=listing.log_bytes,
        bytes_copied=copied,
        seconds=round(time.monotonic() - began, 3),
    )
