"""`python -m tools.bench.sync_away`: what an application sees, second by second, while the sync site is down.

One program overwrites and fsyncs 4 KiB at a steady pace; a second one reads. The daemon of the sync site is
killed for 5 s and for 60 s, with `protect = true` and with `protect = false`. Prints a table in Markdown for
each; seconds that look alike share a row.
"""

import errno
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import trio
from cyclopts import App, CycloptsError, Parameter

from jfs.mountpoint import check_fuse
from replication.config import load
from replication.status import Status, collect
from tools import render
from tools.demo.stage import SITES, Stage, trisite_command
from tools.errors import ExitCode, Failure, explain

BLOCK_BYTES: Final = 4096
BLOCKS: Final = 4096
PAUSE_SECONDS: Final = 0.01
AGAIN_SECONDS: Final = 0.1
"""Pause of the writer after an error."""
BEFORE_SECONDS: Final = 3
AFTER_SECONDS: Final = 3
LONGEST_RETURN_SECONDS: Final = 120
ALIKE: Final = 2.0
"""Seconds are alike when their counts differ by at most this factor."""
DOWN_SECONDS: Final = (5, 60)

app = App(name="sync_away", help=__doc__, help_format="plaintext")


@dataclass
class Second:
    """What was seen in one second; `waiting_ms` is how old the write under way was at its end."""

    acknowledged: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    longest_ms: float = 0.0
    waiting_ms: float = 0.0
    read: int = 0
    read_errors: int = 0
    state: str = "-"


class Run(NamedTuple):
    """One outage: its seconds, the second of the death and of the return, and what status said meanwhile."""

    protect: bool
    down_seconds: int
    seconds: list[Second]
    warnings: list[str]
    reason: str


class Witness:
    """The application: writes and reads in threads of its own, counts by the second since `start`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: list[Second] = [Second()]
        self._stop = threading.Event()
        self._began: float | None = None
        self._threads = [threading.Thread(target=work) for work in (self._write, self._read)]

    def start(self) -> None:
        """Begin; the file is there and whole."""
        for thread in self._threads:
            thread.start()

    def tick(self, state: str) -> None:
        """A second is over; the pair was in `state`."""
        began, second = self._began, self.seconds[-1]
        second.state = state
        second.waiting_ms = 0.0 if began is None else (time.monotonic() - began) * 1000
        self.seconds.append(Second())

    def stop(self) -> None:
        """End both; what they wait for must be able to come."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        chance = random.Random(22)
        while not self._stop.is_set():
            self._began = time.monotonic()
            try:
                with self.path.open("r+b", buffering=0) as file:
                    while not self._stop.is_set():
                        self._began = began = time.monotonic()
                        os.pwrite(
                            file.fileno(),
                            chance.randbytes(BLOCK_BYTES),
                            chance.randrange(BLOCKS) * BLOCK_BYTES,
                        )
                        os.fsync(file.fileno())
                        self._began = None
                        second = self.seconds[-1]
                        second.acknowledged += 1
                        second.longest_ms = max(second.longest_ms, (time.monotonic() - began) * 1000)
                        self._stop.wait(PAUSE_SECONDS)
            except OSError as error:
                second = self.seconds[-1]
                second.errors[errno.errorcode.get(error.errno or 0, str(error))] += 1
                second.longest_ms = max(second.longest_ms, (time.monotonic() - (self._began or 0)) * 1000)
                self._began = None
                self._stop.wait(AGAIN_SECONDS)

    def _read(self) -> None:
        chance = random.Random(23)
        with self.path.open("rb", buffering=0) as file:
            while not self._stop.wait(PAUSE_SECONDS):
                try:
                    data = os.pread(file.fileno(), BLOCK_BYTES, chance.randrange(BLOCKS) * BLOCK_BYTES)
                    self.seconds[-1].read += len(data) == BLOCK_BYTES
                except OSError:
                    self.seconds[-1].read_errors += 1


@app.default
def sync_away(
    *,
    directory: Annotated[Path | None, Parameter(name="--dir", help="Where to measure.")] = None,
    down: Annotated[tuple[int, ...], Parameter(help="Seconds that the sync site is down.")] = DOWN_SECONDS,
) -> int:
    """Measure all outages and print their tables."""
    check_fuse()
    for protect in (True, False):
        with tempfile.TemporaryDirectory(prefix="trisite-away-", dir=directory) as place:
            for one in measure(Path(place), protect, down):
                print(table(one))
    return ExitCode.OK


def measure(place: Path, protect: bool, down: Sequence[int]) -> list[Run]:
    """One volume, an outage of each length."""
    with Stage(place / "volume") as stage:
        stage.trisite("init", str(stage.directory), "--size", "1GiB", config=False)
        text = stage.config.read_text(encoding="utf-8")
        stage.config.write_text(text.replace("protect = true", f"protect = {str(protect).lower()}"))
        for site in SITES:
            stage.start(site, [*trisite_command(), "site", site, "-c", str(stage.config)])
        stage.wait_for(lambda: all(one.reachable for one in look(stage).sites.values()), "the daemons")
        stage.trisite("mkfs")
        stage.mount("primary")
        path = stage.mountpoint / "data"
        path.write_bytes(os.urandom(BLOCKS * BLOCK_BYTES))
        os.sync()
        runs = [outage(stage, path, protect, seconds) for seconds in down]
        stage.trisite("verify")
        stage.unmount()
        return runs


def outage(stage: Stage, path: Path, protect: bool, down_seconds: int) -> Run:
    """The sync site is killed, started `down_seconds` later, and watched until it is in step again."""
    stage.wait_for(lambda: state(look(stage)) == "Duplex", "the sync pair")
    witness = Witness(path)
    warnings: list[str] = []
    reason = ""
    witness.start()
    try:
        back = BEFORE_SECONDS + down_seconds
        good = number = 0
        while good < AFTER_SECONDS:
            number += 1
            began = time.monotonic()
            if number == BEFORE_SECONDS + 1:
                stage.kill("sync")
            if number == back + 1:
                stage.start("sync", [*trisite_command(), "site", "sync", "-c", str(stage.config)])
            time.sleep(0.5)  # asked in the middle of the second
            status = look(stage)
            if number == back:
                warnings, reason = status.warnings, status.pairs[0].reason
            time.sleep(max(0.0, began + 1 - time.monotonic()))
            witness.tick(state(status))
            good = good + 1 if number > back and witness.seconds[-2].state == "Duplex" else 0
            if number > back + LONGEST_RETURN_SECONDS:
                raise Failure("the sync site did not come into step again")
    finally:
        witness.stop()
    return Run(protect, down_seconds, witness.seconds[:-1], warnings, reason)


def look(stage: Stage) -> Status:
    """`trisite status`."""
    return trio.run(collect, load(stage.config))


def state(status: Status) -> str:
    """Of the synchronous pair, as the writer has it."""
    return next((pair.state for pair in status.pairs if pair.kind == "sync"), "-")


# -- the table, pure


def alike(one: Second, other: Second) -> bool:
    """Whether two seconds may share a row."""
    counts = ((one.acknowledged, other.acknowledged), (one.errors.total(), other.errors.total()))
    near = all(max(pair) <= ALIKE * min(pair) for pair in counts)
    return near and one.state == other.state and set(one.errors) == set(other.errors)


def rows(run: Run) -> list[tuple[int, list[Second]]]:
    """Seconds in a row that look alike, with the number of the first since the death of the site."""
    found: list[tuple[int, list[Second]]] = []
    for number, second in enumerate(run.seconds, start=-BEFORE_SECONDS):
        event = number in (0, run.down_seconds)
        if found and not event and alike(found[-1][1][0], second):
            found[-1][1].append(second)
        else:
            found.append((number, [second]))
    return found


def table(run: Run) -> str:
    """The outage in Markdown."""
    word = "with" if run.protect else "without"
    lines = [
        f"**Sync site down for {run.down_seconds} s, {word} protection**",
        "",
        "| second | fsyncs acknowledged a second | errors | longest write, ms | reads | pair | |",
        "|---|---:|---|---:|---:|---|---|",
    ]
    for first, seconds in rows(run):
        last = first + len(seconds) - 1
        errors = sum((one.errors for one in seconds), Counter[str]())
        said = ", ".join(f"{count} {name}" for name, count in sorted(errors.items())) or "none"
        longest = max(max(one.longest_ms, one.waiting_ms) for one in seconds)
        remark = {0: "the daemon is killed", run.down_seconds: "it is started"}.get(first, "")
        lines.append(
            f"| {first if first == last else f'{first} to {last}'} "
            f"| {span([one.acknowledged for one in seconds])} | {said} | {longest:,.0f} "
            f"| {span([one.read for one in seconds])} | {seconds[0].state} | {remark} |"
        )
    failed_reads = sum(one.read_errors for one in run.seconds)
    lines += ["", f"Reads that failed: {failed_reads}. `status` while it was down: {run.reason}"]
    lines += [f"* warning: {warning}" for warning in run.warnings]
    return "\n".join([*lines, ""])


def span(values: Sequence[int]) -> str:
    """The least and the most, or the one value there is."""
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"


def main() -> int:
    """Entry point; failures become one sentence."""
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, Failure, OSError) as error:
        sentence, code = explain(error)
        render.error(sentence)
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
