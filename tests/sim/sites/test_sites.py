"""The three sites in one process from one seed: nothing acknowledged is lost, whatever fails and whenever.

A seed that fails is played again with `python -m tests.sim.sites.play SEED 1 -v`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import run_seed
from tests.sim.sites.mutants import MUTANTS, mutated
from tests.sim.sites.play import coverage, not_reached, play, play_in_parallel, prepared

SEEDS = 2000
SOAK_SEEDS, SOAK_PARTS = 50_000, 50
MUTANT_SEEDS = 1000
CAUGHT_BY = {
    "flush_answered_before_the_disk": 3,
    "flush_without_the_sync_site": 1,
    "flush_without_the_own_disk": 3,
    "failed_flush_forgotten_by_the_writer": 33,
    "failed_flush_forgotten_by_the_sync_site": 256,
    "set_applied_in_part": 1,
    "recovery_copy_without_the_log": 1,
    "shipped_before_eligible": 4,
    "levelled_without_comparing": 12,
    "positions_forgotten": 1,
    "copy_forgets_what_came_meanwhile": 3,
    "first_version_of_a_long_queue": 1,
    "power_cut_at_the_sync_site_unnoticed": 30,
    "take_over_without_proof": 317,
    "discards_not_done_at_the_sync_site": 11,
    "in_step_after_power_loss": 170,
    "written_over_without_saving": 20,
}
"""A seed that notices the mutant, to be tried first; any of the first thousand will do."""


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with prepared() as directory:
        yield directory


def play_all(first: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    result = play_in_parallel(first, count)
    with capsys.disabled():
        print(f"\n{count} runs of the three sites from seed {first} on:\n{coverage(result.counts)}")
    assert not result.broken
    assert not not_reached(result.counts)


@pytest.mark.timeout(1800)
def test_nothing_is_lost_whatever_fails(capsys: pytest.CaptureFixture[str]) -> None:
    play_all(run_seed() * 10_000, SEEDS, capsys)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(SOAK_PARTS))
def test_soak(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each part counts for itself, if the whole cannot be played to its end."""
    count = SOAK_SEEDS // SOAK_PARTS
    play_all(run_seed() * 1_000_000 + part * count, count, capsys)


@pytest.mark.parametrize("seed", range(100, 120))
def test_a_seed_is_one_run(base: Path, seed: int) -> None:
    first, second = play(base, seed), play(base, seed)
    assert first.trace == second.trace
    assert first.counts == second.counts
    assert first.steps == second.steps


def noticed(base: Path, name: str, seeds: Iterable[int]) -> bool:
    with mutated(name):
        return any(play(base, seed).violations for seed in seeds)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_broken_rule_is_noticed(base: Path, name: str) -> None:
    assert not play(base, CAUGHT_BY[name]).violations
    assert noticed(base, name, [CAUGHT_BY[name], *range(1, MUTANT_SEEDS)])


def test_every_mutant_is_tried() -> None:
    assert MUTANTS.keys() == CAUGHT_BY.keys()
