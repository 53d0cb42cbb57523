"""`python -m tools.bench`: the same workloads on a plain directory, a pass-through mount and a trisite mount.

The targets take turns round by round, so that they share the noise of the machine. Everything written is read
back and compared; anything that differs ends the run with an error.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, CycloptsError, Parameter

from jfs.mountpoint import check_fuse
from tools import render
from tools.bench import results, targets
from tools.bench.workloads import FULL, QUICK, WORKLOADS, NotAsWritten, Sample, Scale, drop_caches
from tools.errors import ExitCode, Failure, explain

DEFAULT_OUTPUT: Final = Path("build") / "bench"

app = App(name="bench", help=__doc__, help_format="plaintext")


@app.default
def bench(
    *,
    quick: Annotated[bool, Parameter(negative="", help="Smaller amounts, one round.")] = False,
    rounds: Annotated[
        int | None, Parameter(help="How often every target is measured; 3, or 1 with --quick.")
    ] = None,
    output: Annotated[Path, Parameter(help="Where bench.json, bench.svg and bench.md go.")] = DEFAULT_OUTPUT,
    directory: Annotated[
        Path | None, Parameter(name="--dir", help="Where to measure; the disk of this directory counts.")
    ] = None,
) -> int:
    """Measure, print a table, write bench.json, bench.svg and bench.md."""
    check_fuse()
    scale = QUICK if quick else FULL
    times = rounds if rounds is not None else 1 if quick else 3
    if times < 1:
        raise Failure("--rounds must be at least 1", ExitCode.USAGE)
    with tempfile.TemporaryDirectory(prefix="trisite-bench-", dir=directory) as place:
        samples, memory = measure(Path(place), scale, times)
    whole = results.report(samples, cold=drop_caches(), quick=quick, peak_memory_bytes=memory)
    out = render.Output()
    out.table("median [lowest .. highest]", results.columns(whole), results.rows(whole))
    out.say(results.memory(whole.peak_memory_bytes))
    written = results.save(whole, output)
    out.say(f"written: {', '.join(map(str, written))}")
    return ExitCode.OK


def measure(place: Path, scale: Scale, rounds: int) -> tuple[dict[str, list[Sample]], dict[str, int]]:
    """Set up the three targets, measure them in turns, take them down: samples, and peak memory in bytes."""
    with targets.plain(place) as plain, targets.passthrough(place) as passed, targets.trisite(place) as stage:
        mounts = dict(zip(results.TARGETS, (plain, passed, stage.mountpoint), strict=True))
        samples = take_turns(mounts, scale, rounds)
        memory = {name: targets.peak_memory_bytes(process.pid) for name, process in stage.running.items()}
    return samples, memory


def take_turns(mounts: Mapping[str, Path], scale: Scale, rounds: int) -> dict[str, list[Sample]]:
    """Every workload on one mount, then on the next; the order turns with each round."""
    samples: dict[str, list[Sample]] = {name: [] for name in mounts}
    turns = list(mounts.items())
    for number in range(rounds):
        turn = number % len(turns)
        for name, directory in turns[turn:] + turns[:turn]:
            samples[name] += one_round(name, directory, scale, f"{number + 1} of {rounds}")
    return samples


def one_round(target: str, directory: Path, scale: Scale, which: str) -> list[Sample]:
    """Every workload once on one target, each in a directory of its own."""
    samples: list[Sample] = []
    for workload in WORKLOADS:
        render.note(f"round {which}, {target}: {workload.__name__.replace('_', ' ')}")
        with tempfile.TemporaryDirectory(dir=directory) as inner:
            samples += workload(Path(inner), scale)
    return samples


def run(app: App) -> int:
    """Entry point of a measurement; a failure is one sentence. Asked to end, it takes down what it set up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        render.error(f"{' '.join(str(error).split())}; see python -m tools.bench --help")
        return ExitCode.USAGE
    except NotAsWritten as error:
        render.error(f"{error}: do not trust this file system with data, and report it")
        return ExitCode.DAMAGED
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("TRISITE_DEBUG"):
            raise
        sentence, exit_code = explain(error)
        render.error(sentence)
        return exit_code
    return int(code) if isinstance(code, int) else ExitCode.OK


if __name__ == "__main__":
    sys.exit(run(app))
