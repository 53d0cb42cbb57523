"""The far site behind a black hole for minutes, under load: the application does not notice, nothing grows,
and at every instant of the catch-up the far site is a state of the past that could be promoted.

`make soak` lets it be away for ten minutes (`TRISITE_AWAY_SECONDS`) and looks at a hundred instants; the
short test does the same with seconds and a few. The figures are printed.
"""

import os
import random
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from replication.config import load
from tests.system import paced
from tests.system.kills import OPTIONS, ROOT, prepare
from tests.system.namespaces import NetGround, Network
from tests.system.paced import BLOCK_BYTES, Note, notes
from tests.system.promotable import copy_site, promoted, resident_bytes

pytestmark = [pytest.mark.fuse]

AWAY_SECONDS = float(os.environ.get("TRISITE_AWAY_SECONDS", "600"))
PACE = 50.0  # writes with fsync a second
GROWTH_BYTES = 64 << 20
PATIENT = OPTIONS.replace("silence_seconds = 1.0", "silence_seconds = 10.0")
"""The far site is held while it is copied: it must not be taken for silent."""
QUEUE = f'{PATIENT}queue_limit_bytes = "4GiB"\n'
OVERFLOW = f'{PATIENT}queue_limit_bytes = "2MiB"\n'
NAME = "paced"


class Plan(NamedTuple):
    """How long each part lasts, in seconds; at how many instants of the catch-up is looked; on what link."""

    before: float
    away: float
    after: float
    instants: int
    rate: str


SHORT = Plan(before=1.5, away=4.0, after=0.0, instants=3, rate="16mbit")
LONG = Plan(before=120.0, away=AWAY_SECONDS, after=120.0, instants=100, rate="6mbit")


class FarAway:
    """One run: the load, the black hole, the catch-up."""

    def __init__(self, ground: NetGround, seed: int, plan: Plan) -> None:
        self.ground = ground
        self.seed = seed
        self.plan = plan
        self.noted = ground.ledgers / "paced.notes"
        self.chance = random.Random(f"{seed} instants")
        self.figures: list[str] = []

    def run(self) -> None:
        """All of it; AssertionError at the first thing that is not as it must be."""
        ground, plan = self.ground, self.plan
        file = ground.mountpoint / NAME
        paced.prepare(file)
        ground.follow("primary", "sync", "async")
        ground.wait_for(ground.queue_is_empty, "an empty queue")
        words = [sys.executable, "-m", "tests.system.paced", str(file), str(self.noted), str(self.seed)]
        ground.start("application", [*words, str(PACE)], cwd=ROOT)
        time.sleep(plan.before)
        memory = self.memory()
        began = time.monotonic()
        ground.network.swallow("async")
        most = memory
        while time.monotonic() < began + plan.away:
            time.sleep(min(1.0, plan.away))
            most = max(most, self.memory())
        ended = time.monotonic()
        self.figures.append(f"mount memory before {memory >> 20} MiB, at most {most >> 20} MiB meanwhile")
        assert most - memory <= GROWTH_BYTES
        ground.wait_for(lambda: ground.status()["queue"] is not None, "an answer of the writer")
        waited = ground.status()["queue"] or {"bytes": 0}
        missed = [note for note in notes(self.noted) if note.began >= began]
        distinct = len({paced.block_of(self.seed, note.number) for note in missed})
        self.figures.append(
            f"missed: {len(missed)} writes of {BLOCK_BYTES} bytes to {distinct} distinct blocks "
            f"({distinct * BLOCK_BYTES:,} bytes); waiting in the queue {waited['bytes']:,} bytes"
        )
        self.catch_up(distinct)
        time.sleep(plan.after)
        ground.end("application")
        self.tell_latency(began, ended)
        ground.follow("primary", "sync", "async")
        ground.verify("primary,sync", "sync,async")
        ground.unmount()
        ground.check_sites()

    def memory(self) -> int:
        """Of the mount process, in bytes."""
        return resident_bytes(self.ground.running["mount"].pid)

    def caught_up(self) -> bool:
        """Whether the far site follows, with no more waiting than a steady load has."""
        status = self.ground.status()
        following = any((one["kind"], one["state"]) == ("async", "Duplex") for one in status["pairs"])
        return following and (status["lag_seconds"] or 0.0) < 1.0

    def catch_up(self, distinct: int) -> None:
        """Let the far site back, on a narrow link so that there are instants, and look at them."""
        ground, plan = self.ground, self.plan
        ground.network.narrow("async", plan.rate)
        carried, first = ground.network.carried("async"), notes(self.noted)[-1].number
        ground.network.swallow("async", silent=False)
        last = during = 0
        states: set[int] = set()
        for number in range(plan.instants):
            time.sleep(self.chance.uniform(0.0, 0.5))
            during += during == number and not (number and self.caught_up())
            last = self.look(number, last)
            states.add(last)
        ground.network.narrow("async", None)
        ground.wait_for(self.caught_up, "the far site to catch up", seconds=600)
        carried = ground.network.carried("async") - carried
        meanwhile = (notes(self.noted)[-1].number - first) * BLOCK_BYTES
        share = (carried - meanwhile) / (distinct * BLOCK_BYTES)
        self.figures += [
            f"{plan.instants} instants looked at, {during} of them before it had caught up, {len(states)} "
            f"different states (writes {min(states)} to {max(states)}): fsck 0, a state of the past at each",
            f"carried to the far site until it had caught up: {carried:,} bytes, with all headers and the "
            f"metadata log; {meanwhile:,} bytes were written meanwhile; the rest is {share:.2f} of the "
            f"distinct bytes missed",
        ]

    def look(self, number: int, last: int) -> int:
        """Copy the far site as it is at this instant and promote the copy; the write it stands at."""
        ground = self.ground
        target = ground.directory / f"instant-{number}"
        ground.hold("async")
        try:
            newest = self.newest_begun()
            copy_site(ground.directory / "async", target)
        finally:
            ground.release("async")
        _, blocks = promoted(load(ground.config), target, NAME)
        state = paced.state_of(self.seed, blocks)
        assert last <= state <= newest
        shutil.rmtree(target)
        return state

    def newest_begun(self) -> int:
        """The newest write that may have begun by now."""
        found: list[Note] = notes(self.noted)
        return found[-1].number + 1

    def tell_latency(self, began: float, ended: float) -> None:
        """p50 and p99 of the writes before, during and after."""
        found = notes(self.noted)
        settled = found[0].began + min(5.0, self.plan.before / 3)  # caches warm up
        parts = {
            "before": [note.seconds for note in found if settled <= note.began < began],
            "away": [note.seconds for note in found if began <= note.began < ended],
            "after": [note.seconds for note in found if note.began > found[-1].began - self.plan.after],
        }
        for name, values in parts.items():
            if len(values) > 2:
                cuts = statistics.quantiles(values, n=100)
                self.figures.append(
                    f"fsync {name}: {len(values)} writes, p50 {cuts[49] * 1000:.2f} ms, "
                    f"p99 {cuts[98] * 1000:.2f} ms"
                )


@pytest.mark.slow
@pytest.mark.parametrize("options", [QUEUE, OVERFLOW], ids=["queue", "difference"])
def test_away_for_a_moment(tmp_path: Path, seed: int, network: Network, options: str) -> None:
    with prepare(NetGround(tmp_path / "volume", network, options=options)) as ground:
        run = FarAway(ground, seed, SHORT)
        run.run()
    print("\n".join(run.figures))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("options", [QUEUE, OVERFLOW], ids=["queue", "difference"])
def test_away_for_long(
    tmp_path: Path, seed: int, network: Network, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with prepare(NetGround(tmp_path / "volume", network, options=options)) as ground:
        run = FarAway(ground, seed, LONG)
        try:
            run.run()
        finally:
            with capsys.disabled():
                print(f"\nseed {seed}: far site away for {LONG.away:.0f} s")
                print("\n".join(run.figures))
