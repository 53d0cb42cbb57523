"""`trisite verify`: do the sites hold the same? Compared by hash at one point of the stream."""

from functools import partial
from typing import Annotated, Final, NamedTuple

from cyclopts import Parameter

from replication import config as configuration
from replication.config import SITE_NAMES, Config, SiteName
from replication.verify import Comparison, VerifyResult
from replication.verify import verify as compare_sites
from tools.errors import ExitCode, Failure, explain
from tools.options import ConfigOption, JsonOption, config_path
from tools.render import Output, duration, size
from tools.running import run_trio

SAME: Final = 0
DIFFERENT: Final = 1
SHOWN: Final = 8  # differing ranges for a person; --json has them all


class Pair(NamedTuple):
    """Two sites."""

    one: str
    other: str


def verify(
    *,
    config: ConfigOption = None,
    between: Annotated[
        str | None, Parameter(help="Only these two sites, as SITE,SITE; else the writer with each other.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Compare sites by hash while they work; exit code 0 the same, 1 different."""
    output = Output(as_json=as_json)
    loaded = configuration.load(config_path(config))
    pair = None if between is None else named_pair(loaded, between)
    try:
        with output.working("comparing") as report:
            result = run_trio(partial(compare_sites, loaded, between=pair, report=report))
    except (KeyboardInterrupt, configuration.ConfigurationError):
        raise
    except Exception as error:
        sentence, code = explain(error)
        if code != DIFFERENT:
            raise
        raise Failure(sentence, ExitCode.OPERATIONAL) from error  # 1 means different, nothing else
    output.result(result)
    tell(output, result)
    return outcome(result, pair)


def named_pair(config: Config, text: str) -> Pair:
    """The two sites of --between."""
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or names[0] == names[1]:
        raise Failure(
            f"--between takes two of {', '.join(SITE_NAMES)} as SITE,SITE, and {text!r} is not that",
            ExitCode.USAGE,
        )
    for name in names:
        config.site(name)
    return Pair(*names)


def outcome(result: VerifyResult, pair: Pair | None) -> int:
    """The exit code; Failure where what was asked for could not be compared."""
    if any(not comparison.same for comparison in result.compared):
        return DIFFERENT
    asked = [one for one in result.not_compared if pair is None or one.site in pair]
    if not result.compared or (pair is not None and asked):
        reasons = "; ".join(f"site {one.site}: {one.sentence}" for one in asked) or "too few sites take part"
        raise Failure(f"not compared: {reasons}", ExitCode.UNREACHABLE)
    return SAME


def tell(output: Output, result: VerifyResult) -> None:
    """The outcome for a person."""
    for comparison in result.compared:
        names = " and ".join(comparison.between)
        if comparison.same:
            output.say(f"{names} are the same: {size(comparison.bytes)} compared")
        else:
            output.say(
                f"{names} DIFFER in {size(comparison.differing_bytes)} of {size(comparison.bytes)}: "
                f"{differing(comparison)}",
                style="bold red",
            )
    for one in result.not_compared:
        output.say(f"site {one.site} was NOT compared: {one.sentence}", style="bold red")
    if result.compared:
        output.say(summary(result))


def summary(result: VerifyResult) -> str:
    """The last line: what the answer covers, and which site it says nothing about."""
    outcome = "same" if result.same else "DIFFERENT"
    sites = ordered({site for comparison in result.compared for site in comparison.between})
    missing = "".join(f"; it says nothing about site {one.site}" for one in result.not_compared)
    return (
        f"{outcome}: {', '.join(sites)}, at sequence {result.sequence:,}, {duration(result.seconds)}{missing}"
    )


def ordered(sites: set[SiteName]) -> list[SiteName]:
    """The sites in the order in which they are always named."""
    return [site for site in SITE_NAMES if site in sites]


def differing(comparison: Comparison) -> str:
    """The first ranges that differ, first to last byte of the volume."""
    shown = [f"{offset}-{offset + length - 1}" for offset, length in comparison.differing[:SHOWN]]
    if len(comparison.differing) > SHOWN:
        shown.append(f"and {len(comparison.differing) - SHOWN} more ranges")
    return ", ".join(shown)
