"""Take over at the async site, with what it has (figure 13) or, by way of sync, with all (figure 14)."""

from typing import Final

import trio

from replication.config import Config
from replication.control import Adopt, Drain, FinishMount, GetStatus, Promote, PromoteReply
from replication.procedures.plan import Plan, Survey
from replication.procedures.results import FailoverResult, ProcedureRefused, as_of_fields
from replication.procedures.running import POLL_SECONDS, Progress, demand, request_if_there
from replication.procedures.take_over_sync import (
    pair_is_stopped,
    promote_and_tell,
    result_of,
    wait_level,
)

STOPPED: Final = (
    "the pair from site sync to site async is stopped, so site async does not become level; resume it with "
    "`trisite pair resync sync,async` (or create it, if it was deleted) and run the command again, or stay "
    "at site sync with `trisite failover --to sync`"
)


async def take_over_at_async(
    config: Config, plan: Plan, survey: Survey, progress: Progress
) -> FailoverResult:
    """Figure 13, or figure 14 when the plan goes by the sync site."""
    if plan.via_sync:
        return await _by_sync(config, plan, survey, progress)
    epoch = plan.roles.epoch if plan.roles.writer == "async" else plan.roles.epoch + 1
    with progress.step("promote async"):
        over_fork = plan.fork_epoch is not None
        request = Promote(
            volume=survey.volume, epoch=plan.fork_epoch or epoch, async_to=None, over_fork=over_fork
        )
        promoted = await demand(config, "async", request)
        progress.note(f"epoch {promoted.roles.epoch} from sequence {promoted.roles.start_sequence} on")
    adopt = Adopt(volume=survey.volume, roles=promoted.roles)
    for site in ("sync", "primary"):
        if site in survey.reports:
            await request_if_there(config, site, adopt, 2.0)
    return _result(promoted, progress)


def _result(promoted: PromoteReply, progress: Progress) -> FailoverResult:
    as_of, behind_seconds = as_of_fields(promoted.as_of_ns, promoted.roles.since, promoted.lost)
    return FailoverResult(
        writer=promoted.roles.writer,
        epoch=promoted.roles.epoch,
        files_listed=0,
        bytes_listed=0,
        bytes_copied=0,
        lost=promoted.lost,
        seconds=progress.seconds,
        sequence=promoted.roles.start_sequence,
        recovery="not needed",
        lost_sentence=promoted.sentence,
        as_of=as_of,
        behind_seconds=behind_seconds,
        steps=progress.events,
    )


async def _by_sync(config: Config, plan: Plan, survey: Survey, progress: Progress) -> FailoverResult:
    """Bring async level with sync first; only then does it take over, so nothing that sync has is lost."""
    promoted = await promote_and_tell(config, plan, survey, progress)
    with progress.step("recovery copy"):
        recovery, report = await wait_level(config, promoted.roles, survey, progress)
    if recovery != "done":
        if pair_is_stopped(report):
            raise ProcedureRefused(STOPPED, 1)
        raise ProcedureRefused(
            "site async went away during the recovery copy; site sync writes meanwhile, "
            "run the command again once site async answers",
            4,
        )
    with progress.step("turn"):
        finished = await demand(config, "sync", FinishMount())
        if not finished.finished:
            raise ProcedureRefused(f"site sync still writes: {finished.sentence}", 1)
        await _drained(config, finished.sequence)
        turned = await demand(
            config,
            "async",
            Promote(
                volume=survey.volume,
                epoch=promoted.roles.epoch + 1,
                async_to="sync",
                drained_sequence=finished.sequence,
            ),
        )
        await request_if_there(config, "sync", Adopt(volume=survey.volume, roles=turned.roles))
    first = result_of(promoted, report, recovery, progress)
    return FailoverResult(
        writer=turned.roles.writer,
        epoch=turned.roles.epoch,
        files_listed=first.files_listed,
        bytes_listed=first.bytes_listed,
        bytes_copied=first.bytes_copied,
        lost=first.lost,
        seconds=progress.seconds,
        sequence=turned.roles.start_sequence,
        recovery="done",
        lost_sentence=first.lost_sentence,
        steps=progress.events,
    )


async def _drained(config: Config, sequence: int) -> None:
    while True:
        answer = await demand(config, "sync", Drain(sequence=sequence))
        if answer.drained:
            return
        if answer.stopped:
            raise ProcedureRefused(STOPPED, 1)
        alive = await request_if_there(config, "async", GetStatus(), 2.0)
        if isinstance(alive, str):
            raise ProcedureRefused(
                f"site async went away before it had everything ({alive}); run the command again once it "
                "answers, or stay at site sync with `trisite failover --to sync`",
                4,
            )
        await trio.sleep(POLL_SECONDS)
