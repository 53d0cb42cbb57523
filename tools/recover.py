"""`trisite recover`: the files that the metadata log names, and the recovery copy of just those."""

from functools import partial
from typing import Annotated

from cyclopts import Parameter

from replication import config as configuration
from replication.procedures import commands
from replication.procedures.results import RecoverResult
from tools.errors import ExitCode
from tools.failover import steps_to
from tools.options import ConfigOption, JsonOption, config_path
from tools.render import Output, duration, size
from tools.running import run_trio

MOST_RANGES = 4  # of one file in the table; --json has them all


def recover(
    *,
    config: ConfigOption = None,
    listed: Annotated[
        bool, Parameter(name="--list", negative="", help="Only list the files; copy nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Bring the async site level with just the files that the metadata log of the writing site names.

    `failover` does this by itself; run it alone to see the list, or after a failover that could not finish.
    """
    loaded = configuration.load(config_path(config))
    output = Output(as_json=as_json)
    report = commands.ignore if listed else steps_to(output)
    result = run_trio(partial(commands.recover, loaded, list_only=listed, report=report))
    output.result(result)
    tell(output, result)
    return ExitCode.OK


def tell(output: Output, result: RecoverResult) -> None:
    """The list for a person."""
    rows = [
        (
            file.path or f"(inode {file.inode})",
            size(file.bytes),
            ranges_text(file.ranges),
            file.why,
        )
        for file in result.files
    ]
    title = f"files the metadata log of site {result.site} names"
    output.table(title, ("file", ">size", "ranges", "why"), rows)
    copied = "nothing copied" if result.bytes_copied is None else f"{size(result.bytes_copied)} copied"
    output.say(
        f"{result.files_listed:,} files, {size(result.bytes_listed)} listed, {copied}, "
        f"{duration(result.seconds)}"
    )


def ranges_text(ranges: list[tuple[int, int]]) -> str:
    """Ranges of the volume as first to last byte."""
    shown = [f"{offset}-{offset + length - 1}" for offset, length in ranges[:MOST_RANGES]]
    if len(ranges) > MOST_RANGES:
        shown.append(f"and {len(ranges) - MOST_RANGES} more")
    return ", ".join(shown)
