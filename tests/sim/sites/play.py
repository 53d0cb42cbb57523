"""Play seeds: `python -m tests.sim.sites.play FIRST COUNT`; one seed again with its trace: `... SEED 1 -v`."""

from __future__ import annotations

import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from collections.abc import Iterator
from pathlib import Path

import trio
import trio.testing

from tests.sim.sites.checkers import Checkers, watching
from tests.sim.sites.cluster import Cluster, copy_sites, make_volume
from tests.sim.sites.scenario import Scenario
from tests.sim.sites.world import World, run

NEEDED = ("failover --to sync: done", "queue dropped: limit", "pair async Duplex-Pending", "pair sync Duplex-Pending")


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
    base = Path(tempfile.mkdtemp(prefix="trisite-sim-", dir="/dev/shm"))
    try:
        world = World("template", base / "template")
        cluster = Cluster(world, random.Random(0))
        run(world, "template", lambda: make_volume(cluster))
        assert not cluster.violations, cluster.violations
        yield base
    finally:
        shutil.rmtree(base)


def play(base: Path, seed: int) -> Outcome:
    """One run from one seed."""
    rng = random.Random(f"options {seed}")
    options = {
        "silence_seconds": rng.choice((2.0, 5.0)),
        "protect": rng.random() < 0.75,
        "protect_timeout_seconds": rng.choice((1.0, 5.0)),
        "queue_limit_bytes": rng.choice((1 << 30, 1 << 30, 1 << 18, 1 << 16)),
    }
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
        cluster.counts["checked"] += checkers.checked
        return Outcome(seed, cluster.violations, world.trace, cluster.counts, ended[0] if ended else 0.0)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """See the module."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    logging.disable()
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
    for name, number in sorted(total.items()):
        print(f"{number:8} {name}")
    print(f"{(time.process_time() - began) / count:.3f} s of processor time a seed")


if __name__ == "__main__":
    main()
