"""`python -m tools.bench.against busy_wait=false`: what an option is worth.

Two volumes at three sites each, one as `trisite init` leaves it, one with the options that are named, are
measured in turns in short runs, so that what else the machine does meets both alike: read the ratios, not the
rates. With --code another checkout's code serves the second volume. --prefer and --dir: see
`tools.bench.durable`.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from cyclopts import App, Parameter

from jfs.mountpoint import check_fuse
from tools import render
from tools.bench.durable import PROCESSES, ROWS, Until, go_first, middle, processor_seconds, ratios, used_us
from tools.bench.targets import trisite
from tools.demo.stage import Stage
from tools.errors import ExitCode

DIRECTORIES: Final = 4
WARM_SECONDS: Final = 0.1

app = App(name="against", help=__doc__, help_format="plaintext")


class Timed(Until):
    """An end of a run that notes when each operation began."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.began: list[float] = []

    def going(self) -> bool:
        """As `Until.going`."""
        self.began.append(time.perf_counter())
        return super().going()


def rename(place: Path, until: Until) -> None:
    """A file in one of four directories gets a name that was not there."""
    number = 0
    paths = [place / f"d{number % DIRECTORIES}" / f"f{number}" for number in range(10 * DIRECTORIES)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    while until.going():
        at = number % len(paths)
        paths[at] = paths[at].rename(paths[at].with_name(f"f{at}-{number}-{time.monotonic_ns()}"))
        number += 1
    for path in paths:
        path.unlink()


def mkdir(place: Path, until: Until) -> None:
    """A directory made."""
    first = time.monotonic_ns()
    while until.going():
        (place / f"{first}-{until.count}").mkdir()


def create(place: Path, until: Until) -> None:
    """A file of 4 KiB made, not synced."""
    first = time.monotonic_ns()
    data = bytes(4096)
    while until.going():
        (place / f"{first}-{until.count}").write_bytes(data)


NAMES: Final[dict[str, Callable[[Path, Until], None]]] = {
    "small_rename": rename,
    "mkdir": mkdir,
    "small_create_4k": create,
}


class Run(NamedTuple):
    """One short run: operations a second, the median of their times, processor time of each process."""

    rate: float
    median_us: float
    processor_us: dict[str, float]


def run(row: str, stage: Stage, seconds: float) -> Run:
    """One short run on one volume."""
    work = {**ROWS, **NAMES}[row]
    place = stage.mountpoint / row
    place.mkdir(exist_ok=True)
    work(place, Until(WARM_SECONDS))
    processes = {name: stage.running[name].pid for name in PROCESSES}
    before = {name: processor_seconds(pid) for name, pid in processes.items()}
    until = Timed(seconds)
    work(place, until)
    took = [after - begun for begun, after in zip(until.began, until.began[1:], strict=False)] or [0.0]
    return Run(
        until.count / (sum(took) or seconds),
        statistics.median(took) * 1e6,
        used_us(processes, before, until.count),
    )


@contextmanager
def with_code(code: Path | None) -> Iterator[None]:
    """Processes started meanwhile run the code of another checkout."""
    before = os.environ.get("PYTHONPATH")
    if code is not None:
        os.environ["PYTHONPATH"] = str(code.absolute())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def report(row: str, first: list[Run], second: list[Run]) -> list[str]:
    """The line of a row."""
    used = [
        " : ".join(middle(one.processor_us[name] for one in runs) for runs in (first, second))
        for name in PROCESSES
    ]
    return [
        row,
        middle(one.rate for one in first),
        middle(one.rate for one in second),
        ratios((one.rate for one in first), (one.rate for one in second)),
        middle(one.median_us for one in first),
        middle(one.median_us for one in second),
        *used,
    ]


COLUMNS: Final = (
    "row", ">first/s", ">second/s", ">ratio", ">p50 us first", ">second",
    *(f">processor us {name}" for name in PROCESSES),
)  # fmt: skip


def changed(*options: str) -> Callable[[Path], None]:
    """Adds options to a configuration that `trisite init` made."""

    def change(config: Path) -> None:
        text = config.read_text(encoding="utf-8")
        if "\n[options]" not in text:
            text += "\n[options]\n"
        config.write_text(
            text.replace("[options]\n", "[options]\n" + "".join(f"{one}\n" for one in options), 1),
            encoding="utf-8",
        )

    return change


@app.default
def against(
    *options: str,
    row: Annotated[list[str] | None, Parameter(help="Only these rows.")] = None,
    rounds: Annotated[int, Parameter(help="Runs on each volume.")] = 6,
    seconds: Annotated[float, Parameter(help="Of one run.")] = 0.5,
    directory: Annotated[Path | None, Parameter(name="--dir", help="Where to measure.")] = None,
    code: Annotated[Path | None, Parameter(help="A checkout whose code serves the second volume.")] = None,
    prefer: Annotated[
        bool, Parameter(negative="", help="Before all other work of this machine; needs root.")
    ] = False,
) -> int:
    """Measure and print a table."""
    check_fuse()
    if prefer:
        go_first()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trisite-", dir=directory)))
        for name in ("first", "second"):
            (place / name).mkdir()
        ours = stack.enter_context(trisite(place / "first"))
        with with_code(code):
            other = stack.enter_context(trisite(place / "second", changed(*options)))
        lines = []
        for name in row or (*ROWS, *NAMES):
            render.note(name)
            first: list[Run] = []
            second: list[Run] = []
            for number in range(rounds):
                for one, runs in ((ours, first), (other, second))[:: -1 if number % 2 else 1]:
                    runs.append(run(name, one, seconds))
            lines.append(report(name, first, second))
    render.Output().table("medians; processor: of one operation, first : second", COLUMNS, lines)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(app(result_action="return_value"))
