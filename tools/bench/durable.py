"""`python -m tools.bench.durable`: what it costs to make a write durable, and who pays.

Short runs on a pass-through mount and on a trisite mount, in turns, so that what else the machine does meets
both alike: read the ratios, not the rates. Beside it the processor time of each process for one operation,
and (where perf(1) may trace) how often a process called read and epoll_wait, the latter being a turn of its
event loop. On a machine that does other work --prefer makes the figures steady; with --dir in memory the disk
does not count.
"""

import mmap
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from cyclopts import App, Parameter

from jfs.mountpoint import check_fuse
from tools import render
from tools.bench.targets import passthrough, trisite
from tools.demo.stage import Stage
from tools.errors import ExitCode

BLOCK: Final = 4096
BLOCKS: Final = 8192  # of the file that is overwritten at random
RECORD: Final = b"r" * 199 + b"\n"
WRITERS: Final = 8
PROCESSES: Final = ("mount", "sync", "async", "primary")
CALLS: Final = ("read", "epoll_wait")
TICK_SECONDS: Final = 1 / os.sysconf("SC_CLK_TCK")

app = App(name="durable", help=__doc__, help_format="plaintext")


class Until:
    """The end of a run, and what was done until then."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.perf_counter() + seconds
        self.count = 0

    def going(self) -> bool:
        """Whether there is time for another operation, as there always is for one; call it before each."""
        if self.count and time.perf_counter() >= self.deadline:
            return False
        self.count += 1
        return True


def overwrite(place: Path, until: Until, flags: int = 0) -> None:
    """4 KiB at a random place of a file, with fsync (with O_DIRECT in `flags`: without)."""
    path = place / "random"
    if not path.exists():
        with path.open("wb") as made:
            made.write(random.Random(1).randbytes(BLOCKS * BLOCK))
            os.fsync(made.fileno())
    chance = random.Random(2)
    descriptor = os.open(path, os.O_RDWR | flags)
    with mmap.mmap(-1, BLOCK) as buffer:
        while until.going():
            buffer[:8] = chance.randbytes(8)
            os.pwrite(descriptor, buffer, chance.randrange(BLOCKS) * BLOCK)
            if not flags:
                os.fsync(descriptor)
    os.close(descriptor)


def direct(place: Path, until: Until) -> None:
    """The same with O_DIRECT: complete, at both near sites, when it returns."""
    overwrite(place, until, os.O_DIRECT)


def append(place: Path, until: Until, name: str = "log") -> None:
    """200 bytes at the end of a file, with fdatasync."""
    descriptor = os.open(place / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    while until.going():
        os.write(descriptor, RECORD)
        os.fdatasync(descriptor)
    os.close(descriptor)


def append_together(place: Path, until: Until) -> None:
    """The same by eight writers at once, each to a file of its own."""
    own = [Until(until.deadline - time.perf_counter()) for _ in range(WRITERS)]
    threads = [
        threading.Thread(target=append, args=(place, one, f"log-{number}")) for number, one in enumerate(own)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until.count = sum(one.count for one in own)


def create(place: Path, until: Until) -> None:
    """A file of 4 KiB made and fsynced."""
    data = bytes(BLOCK)
    number = len(os.listdir(place))
    while until.going():
        number += 1
        descriptor = os.open(place / f"file-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)


def transactions(place: Path, until: Until, journal: str) -> None:
    """SQLite transactions of one row, synchronous = full."""
    database = sqlite3.connect(place / f"{journal}.db", isolation_level=None)
    database.execute(f"PRAGMA journal_mode={journal}")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB)")
    while until.going():
        database.execute("INSERT INTO t (v) VALUES (?)", (bytes(100),))
    database.close()


def rollback(place: Path, until: Until) -> None:
    """SQLite transactions with a rollback journal."""
    transactions(place, until, "delete")


def write_ahead(place: Path, until: Until) -> None:
    """SQLite transactions with a write-ahead log."""
    transactions(place, until, "wal")


ROWS: Final[dict[str, Callable[[Path, Until], None]]] = {
    "rand_write_4k_fsync": overwrite,
    "append_200B_fdatasync": append,
    "append_200B_fdatasync_x8": append_together,
    "small_create_4k_fsync": create,
    "sqlite_rollback_full": rollback,
    "sqlite_wal_full": write_ahead,
    "rand_write_4k_direct": direct,
}
GOALS: Final = dict(zip(ROWS, (0.8, 0.8, 1.5, 1.0, 2.0, 0.8, 0.35), strict=True))


class Run(NamedTuple):
    """One row on one target: how many, how fast, and what each process needed for one of them."""

    rate: float
    microseconds: dict[str, float]


def processor_seconds(pid: int) -> float:
    """What a process has used so far, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_SECONDS


def used_us(processes: dict[str, int], before: dict[str, float], count: int) -> dict[str, float]:
    """Processor time of each process for one of `count` operations, in us, since `before` (in seconds)."""
    used = {name: processor_seconds(pid) - before[name] for name, pid in processes.items()}
    return {name: seconds / count * 1e6 for name, seconds in used.items()}


def middle(values: Iterable[float], digits: int = 0) -> str:
    """The cell of a median."""
    return f"{statistics.median(values):,.{digits}f}"


def ratios(ones: Iterable[float], others: Iterable[float]) -> str:
    """The cell of the ratios, one for each round: median, least and most."""
    found = sorted(one / other for one, other in zip(ones, others, strict=True))
    return f"{middle(found, 2)} [{found[0]:.2f} .. {found[-1]:.2f}]"


def go_first() -> None:
    """This process, and those that it starts, run before all other work of the machine; needs root."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def run(row: str, place: Path, seconds: float, processes: dict[str, int]) -> Run:
    """One short run."""
    place = place / row
    place.mkdir(exist_ok=True)
    ROWS[row](place, Until(0.05))  # makes the files, warms up
    before = {name: processor_seconds(pid) for name, pid in processes.items()}
    until = Until(seconds)
    began = time.perf_counter()
    ROWS[row](place, until)
    took = time.perf_counter() - began
    return Run(until.count / took, used_us(processes, before, until.count))


@contextmanager
def counted(pid: int, found: dict[str, int]) -> Iterator[None]:
    """Count system calls of a process meanwhile, into `found`; nothing where perf(1) cannot."""
    perf = shutil.which("perf")
    if perf is None:
        yield
        return
    events = ",".join(f"syscalls:sys_enter_{call}" for call in CALLS)
    command = [perf, "stat", "-x", ";", "-e", events, "-p", str(pid)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    time.sleep(0.2)  # until it is attached
    try:
        yield
    finally:
        process.send_signal(2)
        said = process.communicate()[1]
        for line in said.splitlines():
            fields = line.split(";")
            if len(fields) > 2 and fields[0].isdigit():
                found[fields[2].rpartition("_enter_")[2]] = int(fields[0])


def calls_of(row: str, place: Path, seconds: float, pid: int) -> dict[str, float]:
    """How often a process makes the calls in CALLS for one operation."""
    until, found = Until(seconds), dict[str, int]()
    with counted(pid, found):
        until.deadline = time.perf_counter() + seconds
        ROWS[row](place / row, until)
    return {call: count / until.count for call, count in found.items()}


def report(row: str, passed: list[Run], ours: list[Run], calls: dict[str, dict[str, float]]) -> list[str]:
    """The line of a row."""
    counts = [f"{calls.get(name, {}).get(call, 0):.1f}" for name in ("mount", "sync") for call in CALLS]
    return [
        row,
        middle(one.rate for one in passed),
        middle(one.rate for one in ours),
        ratios((one.rate for one in ours), (one.rate for one in passed)),
        f"{GOALS[row]}",
        middle(one.microseconds["passthrough"] for one in passed),
        *(middle(one.microseconds[name] for one in ours) for name in PROCESSES),
        *counts,
    ]


COLUMNS: Final = (
    "row", ">pass-through/s", ">trisite/s", ">ratio", ">goal", ">us pass-through",
    *(f">us {name}" for name in PROCESSES),
    *(f">{name} {call}" for name in ("mount", "sync") for call in CALLS),
)  # fmt: skip


def targets(stack: ExitStack, place: Path) -> tuple[Path, int, Stage]:
    """The pass-through mount with its process, and the three sites."""
    passed = stack.enter_context(passthrough(place))
    stage = stack.enter_context(trisite(place))
    source = str(place / "source").encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and source in (entry / "cmdline").read_bytes():
            return passed, int(entry.name), stage
    raise AssertionError("the pass-through mount has no process")


@app.default
def durable(
    *,
    row: Annotated[list[str] | None, Parameter(help="Only these rows.")] = None,
    rounds: Annotated[int, Parameter(help="Runs on each target.")] = 5,
    seconds: Annotated[float, Parameter(help="Of one run.")] = 1.0,
    directory: Annotated[Path | None, Parameter(name="--dir", help="Where to measure.")] = None,
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
        passed, pid, stage = targets(stack, place)
        processes = {name: stage.running[name].pid for name in PROCESSES}
        lines = []
        for name in row or ROWS:
            render.note(name)
            theirs, ours = [], []
            for _ in range(rounds):
                theirs.append(run(name, passed, seconds, {"passthrough": pid}))
                ours.append(run(name, stage.mountpoint, seconds, processes))
            calls = {
                one: calls_of(name, stage.mountpoint, seconds, processes[one]) for one in ("mount", "sync")
            }
            lines.append(report(name, theirs, ours, calls))
    render.Output().table("medians; us: processor time of one operation", COLUMNS, lines)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(app(result_action="return_value"))
