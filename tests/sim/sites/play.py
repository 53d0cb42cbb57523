"""Play seeds: `python -m tests.sim.sites.play FIRST COUNT`; one again with its trace: `... SEED 1 -v`."""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from tests.sim.sites.checkers import Checkers, watching
from tests.sim.sites.cluster import Cluster, copy_sites, make_volume
from tests.sim.sites.loop import MOST_STEPS
from tests.sim.sites.scenario import Scenario
from tests.sim.sites.world import World, run

NEEDED = {
    "a take-over at the sync site": "failover --to sync: done",
    "a take-over at the async site": "failover --to async: done",
    "a return": "failback: done",
    "an overflow of the queue": "queue dropped: limit",
    "a resync of the sync site": "pair sync Duplex-Pending",
    "a resync of the async site": "pair async Duplex-Pending",
    "a queue lost with its host": "rebased",
    "a long queue sent as one set": "long queue gathered",
    "an entry that points into the area": "entries that point into the area",
    "one that was saved before it was written over": "entries saved before they were written over",
}
"""What a run of many seeds must have reached, by the count that shows it."""


def not_reached(counts: Counter[str]) -> list[str]:
    """What these seeds did not reach: then they prove nothing about it."""
    return [what for what, name in NEEDED.items() if not counts[name]]


def coverage(counts: Counter[str]) -> str:
    """How often each fault, state and procedure was reached."""
    return "\n".join(f"{number:8} {name}" for name, number in sorted(counts.items()))


@dataclass
class Outcome:
    """One run."""

    seed: int
    violations: list[str]
    trace: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    steps: int = 0


@contextmanager
def prepared() -> Iterator[Path]:
    """A directory in memory with the sites of a new volume, which every run begins with."""
    logging.disable(logging.ERROR)
    base = Path(tempfile.mkdtemp(prefix="trisite-sim-", dir="/dev/shm"))
    try:
        for name in ("template", "stranger"):
            world = World(name, base / name)
            cluster = Cluster(world, random.Random(0))
            run(world, lambda cluster=cluster: make_volume(cluster))  # type: ignore[misc]
            assert not cluster.violations, cluster.violations
        gc.collect()
        gc.freeze()  # what a run leaves behind is found without looking through the modules each time
        yield base
    finally:
        gc.unfreeze()
        logging.disable(logging.NOTSET)
        shutil.rmtree(base)


def play(base: Path, seed: int) -> Outcome:
    """One run from one seed."""
    rng = random.Random(f"options {seed}")
    options: dict[str, object] = {
        "silence_seconds": rng.choice((0.6, 2.0)),
        "protect": rng.random() < 0.75,
        "protect_timeout_seconds": rng.choice((0.6, 3.0)),
        "complete": rng.choice(("durable", "durable", "durable", "received")),
        "queue_limit_bytes": rng.choice((1 << 30, 1 << 30, 1 << 18, 1 << 16)),
    }
    link = random.Random(f"far link {seed}")
    options["far_compression"] = link.choice(("none", "zstd"))
    # A link that carries less than is written needs room in the queue, or the pair is never level.
    least = 18 if options["queue_limit_bytes"] == 1 << 30 else 21
    options["far_limit_bytes_per_second"] = link.choice((None, 1 << 21, 1 << least))
    directory = base / f"run-{seed}"
    copy_sites(base / "template", directory)
    try:
        world = World(str(seed), directory, **options)
        cluster = Cluster(world, random.Random(f"work {seed}"))
        checkers = Checkers(cluster)
        checkers.begin()
        scenario = Scenario(cluster, checkers, random.Random(f"scenario {seed}"))
        with watching(checkers):
            try:
                run(world, scenario.run)
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise
        if world.endless:
            cluster.violate(f"the sites went on for {MOST_STEPS} steps without an end")
        cluster.counts["checked"] += checkers.checked
        cluster.counts["simulated seconds"] += int(world.loop.now)
        return Outcome(seed, cluster.violations, world.trace, cluster.counts, world.loop.steps)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Result:
    """Many runs."""

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """One line for every violation."""


def play_some(first: int, count: int) -> Result:
    """Runs one after the other, in a process that does nothing else."""
    result = Result()
    with prepared() as base:
        for seed in range(first, first + count):
            outcome = play(base, seed)
            result.counts += outcome.counts
            result.broken += [f"seed {seed}: {sentence}" for sentence in outcome.violations]
    return result


def play_in_parallel(first: int, count: int) -> Result:
    """Runs on all processors: one does not know of another."""
    workers = len(os.sched_getaffinity(0))
    share = max(1, min(100, -(-count // workers)))
    begins = range(first, first + count, share)
    shares = [min(share, first + count - begin) for begin in begins]
    total = Result()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for result in pool.map(play_some, begins, shares):
            total.counts += result.counts
            total.broken += result.broken
    return total


def main() -> None:
    """See the module."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    total: Counter[str] = Counter()
    began = time.process_time()
    with prepared() as base:
        for seed in range(first, first + count):
            seed_began = time.process_time()
            outcome = play(base, seed)
            if "-t" in sys.argv:
                spent = time.process_time() - seed_began
                print(f"seed {seed}: {spent:.2f} s, {outcome.steps} steps", flush=True)
            total += outcome.counts
            if "-v" in sys.argv:
                print("\n".join(outcome.trace))
            for sentence in outcome.violations:
                print(f"seed {seed}: {sentence}", flush=True)
    print(coverage(total))
    print(f"{(time.process_time() - began) / count:.3f} s of processor time a seed")
    for what in not_reached(total):
        print(f"not reached: {what}")


if __name__ == "__main__":
    main()
