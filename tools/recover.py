"""`trisite recover`: the files that the metadata log names, and the recovery copy of just those."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from replication import config as configuration
from replication.procedures import commands
from replication.procedures.results import ListedFileReport, RecoverResult
from tools.errors import ExitCode
from tools.failover import steps_to
from tools.options import ConfigOption, JsonOption, config_path
from tools.render import Output, duration, shown_on_terminal, size
from tools.running import run_trio

MOST_RANGES = 4  # of one file in the table; --json has them all
MOST_FILES = 40  # on a terminal, where more would push the summary's context off the screen
MOST_REASONS = 3  # in the summary


def recover(
    *,
    config: ConfigOption = None,
    listed: Annotated[
        bool, Parameter(name="--list", negative="", help="Only list the files; copy nothing.")
    ] = False,
    all_files: Annotated[
        bool, Parameter(name="--all", negative="", help="Show every file, also where the list is long.")
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
    tell(output, result, most=MOST_FILES if shown_on_terminal() and not all_files else None)
    return ExitCode.OK


def tell(output: Output, result: RecoverResult, most: int | None) -> None:
    """The list for a person, at most so many files of it, and the summary."""
    rows = [
        (
            file.path or f"(inode {file.inode})",
            size(file.bytes),
            ranges_text(file.ranges),
            file.why,
        )
        for file in result.files[:most]
    ]
    if rows:
        title = f"files the metadata log of site {result.site} names"
        output.table(title, ("file", ">may differ", "bytes of the file", "why"), rows)
    if len(rows) < len(result.files):
        output.say(f"and {len(result.files) - len(rows):,} more files; --all shows them too")
    output.say(summary(result))


def summary(result: RecoverResult) -> str:
    """One line: how much may differ in files, what is looked at besides, and why."""
    count = len(result.files)
    named = f"{count:,} {'file' if count == 1 else 'files'}, {size(result.file_bytes)} in ranges"
    parts = [named, f"plus log area {size(result.log_bytes)} (always looked at)"]
    if (regions := result.bytes_listed - result.file_bytes - result.log_bytes) > 0:
        parts.append(f"plus {size(regions)} of directories and other metadata")
    why = reasons(result.files)
    copied = "nothing copied" if result.bytes_copied is None else f"{size(result.bytes_copied)} copied"
    return f"{', '.join(parts)}{f'; why: {why}' if why else ''}; {copied}, {duration(result.seconds)}"


def reasons(files: Sequence[ListedFileReport]) -> str:
    """Why files are listed, the most frequent reasons first, each with the number of its files."""
    counted = Counter(file.why for file in files).most_common()
    shown = [f"{why} ({count:,})" for why, count in counted[:MOST_REASONS]]
    if more := sum(count for _, count in counted[MOST_REASONS:]):
        shown.append(f"other reasons ({more:,})")
    return ", ".join(shown)


def ranges_text(ranges: list[tuple[int, int]]) -> str:
    """Ranges of a file as first to last byte."""
    shown = [f"{offset}-{offset + length - 1}" for offset, length in ranges[:MOST_RANGES]]
    if len(ranges) > MOST_RANGES:
        shown.append(f"and {len(ranges) - MOST_RANGES} more")
    return ", ".join(shown)
