"""Feed broken inputs to every reader: `python -m tests.fuzz.play COUNT [SEED]`.

A thousand inputs are a batch, drawn from `SEED:N` alone; `... 1 SEED:N` plays it again.
"""

import multiprocessing
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import TARGETS

BATCH = 1000
PAGE = resource.getpagesize()


class Outcome(NamedTuple):
    """What a process saw."""

    inputs: int
    accepted: Counter[str]
    refused: Counter[str]
    grown_bytes: int
    """Resident memory at the end, above that after the first tenth."""
    peak_bytes: int
    """The most there ever was, above the same."""
    processor_seconds: float


def play_batch(schedule: str, accepted: Counter[str], refused: Counter[str]) -> None:
    """One batch. AssertionError naming it, from what a reader raised that it must not raise."""
    rng = random.Random(schedule)
    for target in TARGETS:
        good = 0
        for _ in range(target.share):
            try:
                target.feed(rng)
            except target.errors:
                continue
            except Exception as error:
                raise AssertionError(f"batch {schedule}, {target.name}: {error!r}") from error
            good += 1
        accepted[target.name] += good
        refused[target.name] += target.share - good


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def play(seed: str, first: int, count: int, step: int = 1) -> Outcome:
    """Batches `first`, `first + step`, ... below `count`."""
    accepted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    numbers = range(first, count, step)
    settled = peak = 0
    began = time.process_time()
    for done, number in enumerate(numbers):
        play_batch(f"{seed}:{number}", accepted, refused)
        if done <= len(numbers) // 10:
            settled = resident_bytes()
        peak = max(peak, resident_bytes())
    spent = time.process_time() - began
    return Outcome(len(numbers) * BATCH, accepted, refused, resident_bytes() - settled, peak - settled, spent)


def play_in_processes(seed: str, batches: int, processes: int) -> Outcome:
    """The same by several processes; memory is that of the one that grew most."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        jobs = [(seed, first, batches, processes) for first in range(processes)]
        outcomes = pool.starmap(play, jobs, chunksize=1)
    accepted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for one in outcomes:
        accepted += one.accepted
        refused += one.refused
    return Outcome(
        sum(one.inputs for one in outcomes),
        accepted,
        refused,
        max(one.grown_bytes for one in outcomes),
        max(one.peak_bytes for one in outcomes),
        sum(one.processor_seconds for one in outcomes),
    )


def report(outcome: Outcome) -> str:
    """Figures for people."""
    lines = [
        f"{target.name:10} {outcome.accepted[target.name]:10,} accepted "
        f"{outcome.refused[target.name]:10,} refused"
        for target in TARGETS
    ]
    lines.append(
        f"{outcome.inputs:,} inputs, {outcome.processor_seconds:.0f} s of processor; memory grew by "
        f"{outcome.grown_bytes / 1024:.0f} KiB, at most by {outcome.peak_bytes / 1024:.0f} KiB"
    )
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    count, seed = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "22"
    if ":" in seed:
        play_batch(seed, Counter(), Counter())
        return
    print(report(play_in_processes(seed, -(-count // BATCH), 2)))


if __name__ == "__main__":
    main()
