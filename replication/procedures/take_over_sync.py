"""Primary lost: take over at the sync site, then sync -> async (figure 10, recovery copy of figure 22)."""

from typing import Final, Literal

import msgspec
import trio

from replication.config import Config
from replication.control import (
    Adopt,
    CopyReport,
    GetListing,
    GetStatus,
    ListingReply,
    Promote,
    PromoteReply,
    SiteReport,
)
from replication.pair import Kind, State
from replication.procedures.plan import Plan, Survey
from replication.procedures.results import FailoverResult
from replication.procedures.running import (
    POLL_SECONDS,
    Progress,
    demand,
    raise_if_overtaken,
    request_if_there,
)
from replication.roles import Roles
from replication.words import size

DEAD_TARGET_SECONDS: Final = 6.0
"""How long the recovery copy may stand still because the async site is away before it is called pending."""


async def take_over_at_sync(config: Config, plan: Plan, survey: Survey, progress: Progress) -> FailoverResult:
    """Promote, let async follow, wait for the recovery copy; every step may have been taken before."""
    promoted = await promote_and_tell(config, plan, survey, progress)
    with progress.step("recovery copy"):
        recovery, report = await wait_level(config, promoted.roles, survey, progress)
    listing = await request_if_there(config, "sync", GetListing(limit=0))
    named = None if isinstance(listing, str) else listing
    return result_of(promoted, report, recovery, progress, named)


async def promote_and_tell(config: Config, plan: Plan, survey: Survey, progress: Progress) -> PromoteReply:
    """The sync site becomes the writer, the others learn it. What is lost is proven only if the old writer,
    where it answers, has not gone on alone meanwhile.
    """
    promoted = await _promote(config, plan, survey, progress)
    alone = await _tell_others(config, promoted.roles, survey, progress)
    if promoted.lost == 0 and alone is not None:
        return msgspec.structs.replace(promoted, lost=None, sentence=f"not known: {alone}")
    return promoted


async def _promote(config: Config, plan: Plan, survey: Survey, progress: Progress) -> PromoteReply:
    """The sync site becomes the writer, or says that it is already."""
    epoch = plan.roles.epoch if plan.roles.writer == "sync" else plan.roles.epoch + 1
    over_fork = plan.fork_epoch is not None
    with progress.step("promote"):
        request = Promote(
            volume=survey.volume,
            epoch=plan.fork_epoch or epoch,
            async_to="async",
            over_fork=over_fork,
            doubt=plan.doubt,
        )
        promoted = await demand(config, "sync", request)
        progress.note(f"epoch {promoted.roles.epoch} from sequence {promoted.roles.start_sequence} on")
    return promoted


async def _tell_others(config: Config, roles: Roles, survey: Survey, progress: Progress) -> str | None:
    """The async site adopts the roles; so does the primary, but only if its daemon was found alive. Why that
    one acknowledged writes alone, if it did.
    """
    if "async" in survey.reports:
        with progress.step("follow"):
            answer = await request_if_there(config, "async", Adopt(volume=survey.volume, roles=roles))
            if isinstance(answer, str):
                progress.pending(f"site async learns it from site sync later: {answer}")
    if "primary" in survey.reports:
        adopted = await request_if_there(config, "primary", Adopt(volume=survey.volume, roles=roles), 2.0)
        return None if isinstance(adopted, str) else adopted.alone
    return None


def is_level(copy: CopyReport | None) -> bool:
    """Whether nothing but queued entries is between the writer and its async site."""
    return copy is not None and copy.level


def pair_is_stopped(report: SiteReport) -> bool:
    """Whether somebody suspended or deleted the pair from the reporting writer to site async."""
    epoch = report.roles.epoch if report.roles is not None else 0
    return any(
        (pair.kind, pair.source, pair.target, pair.epoch) == (Kind.ASYNC, report.site, "async", epoch)
        and pair.state in {State.SUSPEND, State.SIMPLEX}
        for pair in report.pairs
    )


async def wait_level(
    config: Config, roles: Roles, survey: Survey, progress: Progress
) -> tuple[Literal["done", "pending"], SiteReport]:
    """Wait while the recovery copy gets on; it is pending, and begins by itself later, when async is away.

    `roles` are those in which the sync site writes; ProcedureRefused when it no longer does.
    """
    stuck_since = trio.current_time()
    seen: CopyReport | None = None
    while True:
        report = await demand(config, "sync", GetStatus(), 10.0)
        raise_if_overtaken("sync", report.roles, roles)
        copy = report.copy
        if is_level(copy):
            progress.note("level" if copy is None else f"level, {size(copy.bytes_copied)} travelled")
            return "done", report
        if "async" not in survey.reports:
            progress.pending("site async is away; the copy begins by itself when it answers")
            return "pending", report
        if pair_is_stopped(report):
            progress.pending("the pair to site async is stopped; the copy begins when it is resumed")
            return "pending", report
        if copy != seen:
            seen, stuck_since = copy, trio.current_time()
        waited = trio.current_time() - stuck_since
        if waited > DEAD_TARGET_SECONDS and not await _answers(config):
            progress.pending("site async went away; the copy goes on by itself when it answers")
            return "pending", report
        if copy is not None:
            progress.progress("recovery copy", copy.sentence)
        await trio.sleep(POLL_SECONDS)


async def _answers(config: Config) -> bool:
    answer = await request_if_there(config, "async", GetStatus(), 2.0)
    return not isinstance(answer, str)


def result_of(
    promoted: PromoteReply,
    report: SiteReport,
    recovery: Literal["done", "pending"],
    progress: Progress,
    named: ListingReply | None = None,
) -> FailoverResult:
    """The result; the numbers of the recovery copy are those the site kept when it finished.

    Where no copy was needed, or none was made yet, what the log names is told instead (`named`).
    """
    copy, kept = report.copy, report.take_over
    same = kept is not None and kept.epoch == promoted.roles.epoch
    copied = kept.copied_bytes if same and kept is not None else None
    files = kept.listed_files if same and kept is not None else None
    listed = kept.listed_bytes if same and kept is not None else None
    if copy is not None:
        copied = copy.bytes_copied if copied is None else copied
        files = copy.files_listed if files is None else files
        listed = copy.bytes_listed if listed is None else listed
    if named is not None and not files:
        files, listed = named.files_listed, named.bytes
    return FailoverResult(
        writer=promoted.roles.writer,
        epoch=promoted.roles.epoch,
        files_listed=files or 0,
        bytes_listed=listed or 0,
        bytes_copied=copied or 0,
        lost=promoted.lost,
        seconds=progress.seconds,
        sequence=promoted.roles.start_sequence,
        recovery=recovery,
        lost_sentence=promoted.sentence,
        steps=progress.events,
    )
