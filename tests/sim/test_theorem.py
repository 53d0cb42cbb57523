"""The theorem of the metadata log: after recovery by the log alone, C and D hold the same blocks.

Over random workloads, crash points, remounts and far-site positions. And it bites: the same test fails
when intent records are left out (I1) and when coverage is retired before the far site has the blocks (I2).
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from uuid import UUID

import pytest
import trio

from jfs.coverage import CoveragePolicy
from jfs.filesystem import FileSystem
from jfs.listing import read_listing
from jfs.mkfs import make_file_system
from jfs.store import Store, StoreOptions
from tests.sim.stream import ZERO, StreamDevice, copy_runs, expand
from tests.sim.workload import Workload

VOLUME = UUID("5e5b1d3a-0000-4000-8000-7472697369fe")
SIZE_BYTES = 48 << 20
CASES = int(os.environ.get("TRISITE_THEOREM_CASES", "500"))
SOAK_CASES = 20_000
CRASHES_PER_RUN = 10


@dataclass
class Case:
    """Where C and D stood at a crash."""

    near: int
    far: int


@dataclass
class Verdict:
    """What recovery did in one case."""

    different: set[int]
    copied_blocks: int
    pending_blocks: int
    sharper_missed: set[int]


async def run_workload(seed: int, policy: CoveragePolicy) -> tuple[StreamDevice, list[Case]]:
    """A volume under random operations while D follows at random; the cases at which it may crash."""
    rng = random.Random(seed)
    device = StreamDevice(SIZE_BYTES)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="theorem")
    device.far = device.issued_sequence
    options = StoreOptions(linger_seconds=0.0, coverage_policy=policy)
    store = await Store.open(device, options=options)
    workload = Workload(FileSystem(store), rng)
    cases: list[Case] = []
    lazy = rng.random()
    for _ in range(rng.choice((60, 120, 240))):
        workload.step()
        roll = rng.random()
        if roll < 0.25:
            await store.commit()
        elif roll < 0.30:
            await store.checkpoint()
        elif roll < 0.32:
            # The mount process dies and comes back: what was not committed is gone, the log is replayed.
            store = await Store.open(device, options=options)
            workload.file_system = FileSystem(store)
            workload.find_again()
        if rng.random() < lazy * 0.3:
            device.far = rng.randint(device.far, device.issued_sequence)
        if rng.random() < 0.1:
            # An acknowledgement of D may be on its way: D is at or beyond what the primary knows, C beyond D.
            far = rng.randint(device.far, device.issued_sequence)
            cases.append(Case(rng.randint(far, device.issued_sequence), far))
    cases.append(Case(device.issued_sequence, device.far))
    return device, rng.sample(cases, min(len(cases), CRASHES_PER_RUN))


def recover(device: StreamDevice, case: Case) -> Verdict:
    """The recovery copy by C's log alone, then C against D over all allocated blocks."""
    near, far = device.prefix(case.near), device.prefix(case.far)
    at_crash = StreamDevice(SIZE_BYTES, near)
    listing = read_listing(at_crash)
    runs = list(listing.block_runs)
    allocated = expand(listing.allocated_runs())
    pending = device.written_after(case.far, case.near)
    copied = copy_runs(near, far, runs)
    different = {block for block in allocated if near.get(block, ZERO) != far.get(block, ZERO)}
    # Sharper than the files: what was written after D's position and is in use must lie inside the listing.
    outside = (pending & allocated) - expand(runs)
    return Verdict(different, copied, len(pending), outside)


def run_cases(seed: int, policy: CoveragePolicy) -> list[tuple[Case, Verdict]]:
    """All crash points of one seeded run."""
    device, cases = trio.run(run_workload, seed, policy)
    return [(case, recover(device, case)) for case in cases]


def check(first_seed: int, wanted: int) -> None:
    done = nontrivial = 0
    seed = first_seed
    while done < wanted:
        for case, verdict in run_cases(seed, CoveragePolicy()):
            where = f"seed {seed}, C at {case.near}, D at {case.far}"
            assert not verdict.different, (
                f"{where}: blocks {sorted(verdict.different)[:10]} differ after recovery"
            )
            assert not verdict.sharper_missed, (
                f"{where}: {sorted(verdict.sharper_missed)[:10]} outside the listing"
            )
            assert verdict.copied_blocks <= verdict.pending_blocks
            done += 1
            nontrivial += verdict.copied_blocks > 0
        seed += 1
    assert nontrivial > wanted // 2, "most crashes must have had something to recover"


def test_recovery_by_the_log_makes_the_far_site_equal(seed: int) -> None:
    check(seed, CASES)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_recovery_by_the_log_makes_the_far_site_equal_soak(seed: int) -> None:
    check(seed, SOAK_CASES)


@pytest.mark.parametrize(
    "policy",
    [CoveragePolicy(intent_first=False), CoveragePolicy(wait_for_far=False)],
    ids=["without-I1", "without-I2"],
)
def test_the_theorem_bites(policy: CoveragePolicy, seed: int) -> None:
    for offset in range(60):
        if any(verdict.different for _, verdict in run_cases(seed + offset, policy)):
            return
    pytest.fail("a broken log rule went unnoticed over 60 runs")
