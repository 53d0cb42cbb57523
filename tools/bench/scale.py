"""`python -m tools.bench.scale`: what large volumes, directories and files cost, and how that grows.

jfs alone, on a plain sparse file, without sites. Each step runs in a process of its own (`scale_steps`), so
that its memory is its own; volumes and sizes are as the table says. The whole takes about an hour and some
10 GB of disk; --quick a hundredth of the amounts.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import App, CycloptsError, Parameter

from jfs.mountpoint import check_fuse
from tools import render
from tools.bench.scale_steps import LOADS, Row
from tools.errors import ExitCode, Failure, explain

DEFAULT_OUTPUT: Final = Path("build") / "bench"
LIMIT_SECONDS: Final = 7200  # of one step: it hangs
LARGEST_EXT4_FILE: Final = (16 << 40) - 4096
COLUMNS: Final = ("what", ">number", ">seconds", ">us each", ">peak memory", ">on disk")

app = App(name="scale", help=__doc__, help_format="plaintext")


class Measured(msgspec.Struct, frozen=True):
    """A figure and the step it came from."""

    step: str
    row: Row


@app.default
def scale(
    *,
    quick: Annotated[bool, Parameter(negative="", help="A hundredth of the amounts.")] = False,
    output: Annotated[Path, Parameter(help="Where scale.json and scale.md go.")] = DEFAULT_OUTPUT,
    directory: Annotated[
        Path | None, Parameter(name="--dir", help="Where to measure; needs about 10 GB.")
    ] = None,
) -> int:
    """Measure, print two tables, write scale.json and scale.md."""
    check_fuse()
    with tempfile.TemporaryDirectory(prefix="trisite-scale-", dir=directory) as place:
        found = measure(Path(place), 100 if quick else 1)
    text = f"{table(found)}\n\n{growth(found)}\n"
    output.mkdir(parents=True, exist_ok=True)
    (output / "scale.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    (output / "scale.md").write_text(text, encoding="utf-8")
    out = render.Output()
    out.say(text)
    out.say(f"written: {output / 'scale.json'}, {output / 'scale.md'}")
    faults = sum(one.row.faults for one in found)
    if faults:
        raise Failure(f"fsck found {faults} faults: do not trust this file system with data, and report it")
    return ExitCode.OK


def measure(place: Path, less: int) -> list[Measured]:
    """All steps, one after the other; an image is removed when nothing needs it any more."""
    found: list[Measured] = []
    image = place / "image"

    def step(name: str, *numbers: int) -> None:
        render.note(f"{name} {' '.join(map(str, numbers))}")
        found.extend(Measured(name, row) for row in run_step(name, image, numbers))

    counts = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= 1_000_000 // less]
    for before, count in zip([0, *counts], counts, strict=False):
        step("grow", before, count)
        step("mount_loads", count)
    image.unlink()
    step("one_directory", *counts)
    step("check")
    step("empty_directory", counts[-1])
    image.unlink()
    files = 5_000_000 // less
    step("many_files", files)
    step("check")
    step("mount_only")
    step("walk", files)
    step("random_changes", 200_000 // less)
    for changes in (1_000, 10_000, 60_000):
        step("crash", changes)
        step("mount_only")
    image.unlink()
    for name, number in (
        ("sparse_file", 1 << 40),
        ("extents", 100_000 // less),
        ("fill", 2 << 30),
        ("huge_volume", LARGEST_EXT4_FILE),
    ):
        image.unlink(missing_ok=True)
        step(name, number)
    step("mount_only")
    step("check")
    return found


def run_step(name: str, image: Path, numbers: Sequence[int]) -> list[Row]:
    """One step in a process of its own; Failure if it does not succeed."""
    command = [sys.executable, "-m", "tools.bench.scale_steps", name, str(image), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failure(f"the step {name} on {image} ended with {done.returncode}: {last}")
    return [msgspec.json.decode(line, type=Row) for line in done.stdout.splitlines()]


def amount(count: float) -> str:
    """Bytes, as a person reads them."""
    unit = next((u for u in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if count >= 1 << u[0]), (0, "B"))
    return f"{count / (1 << unit[0]):,.{1 if unit[0] == 30 else 0}f} {unit[1]}"


def table(found: Sequence[Measured]) -> str:
    """The figures that stand for themselves."""
    lines = [head(COLUMNS)]
    for _, row in (msgspec.structs.astuple(one) for one in found):
        if row.load:
            continue
        each = f"{row.seconds / row.amount * 1e6:,.0f}" if row.amount > 1 else ""
        number = f"{row.amount:,}" if row.amount > 1 else ""
        cells = [row.what, number, f"{row.seconds:,.1f}", each, amount(row.memory_bytes)]
        lines.append(f"| {' | '.join([*cells, amount(row.disk_bytes)])} |")
    return "\n".join(lines)


def growth(found: Sequence[Measured]) -> str:
    """The series: processor time of one operation by the number of files, or by how full the volume is."""
    lines = [head(("by", "at", *(f">{load}" for load in LOADS)))]
    series: dict[tuple[str, str], dict[str, float]] = {}
    for one in found:
        row = one.row
        if row.load:
            series.setdefault((one.step, row.at), {})[row.load] = row.cpu_seconds / row.amount * 1e6
    for (step, at), values in series.items():
        cells = [f"{values[load]:,.0f}" if load in values else "" for load in LOADS]
        lines.append(f"| {' | '.join((step.replace('_', ' '), at, *cells))} |")
    return "\n".join(lines)


def head(columns: Sequence[str]) -> str:
    """The two first lines of a table; `>` before a column: numbers."""
    names = " | ".join(column.lstrip(">") for column in columns)
    lines = " | ".join("---:" if column.startswith(">") else "---" for column in columns)
    return f"| {names} |\n| {lines} |"


def main() -> int:
    """Entry point; a failure is one sentence."""
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        render.error(f"{' '.join(str(error).split())}; see python -m tools.bench.scale --help")
        return ExitCode.USAGE
    except (Exception, KeyboardInterrupt) as error:
        sentence, exit_code = explain(error)
        render.error(sentence)
        return exit_code
    return int(code) if isinstance(code, int) else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
