"""`trisite failover` and `trisite failback`: another site becomes the writer, and the way back."""

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Literal

from cyclopts import Parameter

from replication import config as configuration
from replication.procedures import commands
from replication.procedures.results import FailbackResult, FailoverResult, StepEvent
from tools.errors import ExitCode, Failure
from tools.options import ConfigOption, JsonOption, PlanOption, YesOption, config_path
from tools.render import Output, confirm, duration, size
from tools.running import run_trio

Planned = Callable[[], Awaitable[FailoverResult | FailbackResult]]


def failover(
    *,
    to: Annotated[Literal["sync", "async"], Parameter(help="The site that takes over.")],
    config: ConfigOption = None,
    plan: PlanOption = False,
    accept_loss: Annotated[
        bool,
        Parameter(negative="", help="Go on although acknowledged writes may be missing; they are named."),
    ] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> int:
    """Make another site the writer after the writing site was lost; mount there with --at when it is done.

    Killed at any step, it is run again and finishes.
    """
    loaded = configuration.load(config_path(config))
    output = Output(as_json=as_json)
    planned = partial(commands.failover, loaded, to, accept_loss=accept_loss, plan_only=True)
    if plan:
        return show_plan(output, planned)
    agree(output, planned, f"make site {to} the writer", yes=yes)
    report = steps_to(output)
    result = run_trio(partial(commands.failover, loaded, to, accept_loss=accept_loss, report=report))
    output.result(result)
    tell_failover(output, result)
    return ExitCode.OK


def failback(
    *,
    config: ConfigOption = None,
    via: Annotated[
        Literal["A", "B"],
        Parameter(help="The area of the primary site that is levelled; with one area both are the same way."),
    ] = "A",
    plan: PlanOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> int:
    """Return to the primary site, level it while the application goes on, then switch over.

    The mount at the present writer ends at the switch; mount again with --at primary. Killed at any step, it
    is run again and finishes.
    """
    loaded = configuration.load(config_path(config))
    output = Output(as_json=as_json)
    planned = partial(commands.failback, loaded, via=via, plan_only=True)
    if plan:
        return show_plan(output, planned)
    agree(output, planned, "return to the primary site", yes=yes)  # not asked where there is nothing to do
    result = run_trio(partial(commands.failback, loaded, via=via, report=steps_to(output)))
    output.result(result)
    tell_failback(output, result)
    return ExitCode.OK


def steps_to(output: Output) -> Callable[[StepEvent], None]:
    """Tell every step as it happens, on standard error: the answer is what comes at the end."""

    def tell(event: StepEvent) -> None:
        detail = f": {event.detail}" if event.detail else ""
        place = f"[{event.number}/{event.total}]"
        if event.status == "started":
            output.note(f"{place} {event.sentence}")
        elif event.status == "progress":
            output.note(f"{place} {event.name}{detail}")
        else:
            output.note(f"{place} {event.name} {event.status} in {duration(event.seconds)}{detail}")

    return tell


def show_plan(output: Output, planned: Planned) -> int:
    """`--plan`: the steps and what they cost; nothing is changed."""
    result = run_trio(planned)
    output.result(result)
    tell_plan(output, result)
    return ExitCode.OK


def tell_plan(output: Output, result: FailoverResult | FailbackResult) -> None:
    """The steps for a person, and what would be lost."""
    steps = result.steps
    if not steps:
        output.say("nothing to do: it is so already")
        return
    output.table("", (">step", "what", "cost"), [(str(s.number), s.sentence, s.cost) for s in steps])
    if isinstance(result, FailoverResult):
        output.say(f"lost: {lost_text(result.lost, result.lost_sentence)}")


def agree(output: Output, planned: Planned, what: str, *, yes: bool) -> None:
    """Show the plan and ask, unless told not to; Failure if the answer is no or nobody can be asked."""
    if yes:
        return
    result = run_trio(planned)
    if not result.steps:
        return
    if shown_before_asking(output):
        tell_plan(Output(aside=output.as_json), result)
    answer = confirm(f"{what}?")
    if answer is None:
        raise Failure("there is no terminal to ask on; give --yes to go on without asking", ExitCode.REFUSED)
    if not answer:
        raise Failure("nothing was changed, as you answered no", ExitCode.REFUSED)


def shown_before_asking(output: Output) -> bool:
    """Whether somebody is there who reads the plan; a script has the error, and `--plan` for the steps."""
    return not output.as_json or sys.stdin.isatty()


def tell_failover(output: Output, result: FailoverResult) -> None:
    """The outcome of a take-over for a person."""
    output.say(
        f"site {result.writer} is the writer, epoch {result.epoch}, after {duration(result.seconds)}",
        style="bold",
    )
    output.say(f"lost: {lost_text(result.lost, result.lost_sentence)}")
    if result.as_of is not None and result.behind_seconds is not None:
        output.say(
            f"it goes on with the state of {result.as_of}, {duration(result.behind_seconds)} before the "
            "take-over: nothing written later had reached it"
        )
    if result.recovery != "not needed":
        output.say(
            f"recovery copy {result.recovery}: {result.files_listed:,} files, {size(result.bytes_listed)} "
            f"looked at with the log area, {size(result.bytes_copied)} copied"
        )
    output.say(f"next: trisite mount --at {result.writer} MOUNTPOINT")


def lost_text(lost: int | None, sentence: str) -> str:
    """The loss as a person reads it, once: many sentences begin with the very word."""
    short = "not known" if lost is None else f"{lost:,} operations" if lost else "nothing"
    if not sentence or sentence.startswith(short):
        return sentence or short
    return f"{short} ({sentence})"


def tell_failback(output: Output, result: FailbackResult) -> None:
    """The outcome of a return for a person."""
    if not result.steps:
        output.say(f"nothing to do: site {result.writer} is the writer, epoch {result.epoch}")
        return
    output.say(
        f"site {result.writer} is the writer again, epoch {result.epoch}, after {duration(result.seconds)}; "
        f"{size(result.bytes_copied)} copied",
        style="bold",
    )
    for kept in result.quarantines:
        output.say(
            f"{size(kept.bytes)} that site {kept.site} has and the volume no longer has are set aside there, "
            f"in {kept.path}"
        )
        output.say(f"  look into it on its machine: trisite quarantine --at {kept.site}")
    output.say(f"next: trisite mount --at {result.writer} MOUNTPOINT")
