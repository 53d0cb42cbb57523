"""Play seeds: `python -m tests.sim.sites.play FIRST COUNT`; one again with its trace: `... SEED 1 -v`."""

from __future__ import annotations

import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from tests.sim.sites.checkers import Checkers, watching
from tests.sim.sites.cluster import Cluster, copy_sites, make_volume
from tests.sim.sites.scenario import Scenario
from tests.sim.sites.world import MOST_STEPS, World, run

NEEDED = {
    "a take-over at the sync site": "failover --to sync: done",
    "a take-over at the async site": "failover --to async: done",
    "a return": "failback: done",
    "an overflow of the queue": "queue dropped: limit",
    "a resync of the sync site": "pair sync Duplex-Pending",
    "a resync of the async site": "pair async Duplex-Pending",
    "a queue lost with its host": "rebased",
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
    simulated_seconds: float = 0.0


@contextmanager
def prepared() -> Iterator[Path]:
    """A directory in memory with the sites of a new volume, which every run begins with."""
    logging.disable(logging.ERROR)
    base = Path(tempfile.mkdtemp(prefix="trisite-sim-", dir="/dev/shm"))
    try:
        world = World("template", base / "template")
        cluster = Cluster(world, random.Random(0))
        run(world, "template", lambda: make_volume(cluster))
        assert not cluster.violations, cluster.violations
        yield base
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(base)


def play(base: Path, seed: int) -> Outcome:
    """One run from one seed."""
    rng = random.Random(f"options {seed}")
    options: dict[str, object] = {
        "silence_seconds": rng.choice((2.0, 5.0)),
        "protect": rng.random() < 0.75,
        "protect_timeout_seconds": rng.choice((1.0, 5.0)),
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
        ended: list[float] = []

        async def main() -> None:
            await scenario.run()
            ended.append(trio.current_time())

        with watching(checkers):
            run(world, str(seed), main)
        if world.endless:
            cluster.violate(f"the sites went on for {MOST_STEPS} steps without an end")
        cluster.counts["checked"] += checkers.checked
        return Outcome(seed, cluster.violations, world.trace, cluster.counts, ended[0] if ended else 0.0)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


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
                print(f"seed {seed}: {spent:.2f} s for {outcome.simulated_seconds:.0f} s", flush=True)
            total += outcome.counts
            total["simulated seconds"] += int(outcome.simulated_seconds)
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
