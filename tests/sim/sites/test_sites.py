"""The three sites in one process from one seed: nothing acknowledged is lost, whatever fails and whenever.

A seed that fails is played again with `python -m tests.sim.sites.play SEED 1 -v`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import run_seed
from tests.sim.sites.mutants import MUTANTS, mutated
from tests.sim.sites.play import coverage, not_reached, play, prepared

SEEDS = 80
SOAK_SEEDS = 10_000
MUTANT_SEEDS = 1000
CAUGHT_BY = {
    "flush_answered_before_the_disk": 3,
    "flush_without_the_sync_site": 1,
    "flush_without_the_own_disk": 7,
    "set_applied_in_part": 1,
    "recovery_copy_without_the_log": 3,
    "shipped_before_eligible": 5,
    "levelled_without_comparing": 2,
    "positions_forgotten": 2,
    "copy_forgets_what_came_meanwhile": 14,
}
"""A seed that notices the mutant, to be tried first; any of the first thousand will do."""


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with prepared() as directory:
        yield directory


def play_all(base: Path, first: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    total: Counter[str] = Counter()
    broken: list[str] = []
    for seed in range(first, first + count):
        outcome = play(base, seed)
        total += outcome.counts
        broken += [f"seed {seed}: {sentence}" for sentence in outcome.violations]
    with capsys.disabled():
        print(f"\n{count} runs of the three sites from seed {first} on:\n{coverage(total)}")
    assert not broken
    assert not not_reached(total)


def test_nothing_is_lost_whatever_fails(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play_all(base, run_seed() * 1000, SEEDS, capsys)


@pytest.mark.soak
def test_soak(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play_all(base, run_seed() * 1_000_000, SOAK_SEEDS, capsys)


@pytest.mark.parametrize("seed", [117, 219])
def test_a_seed_is_one_run(base: Path, seed: int) -> None:
    first, second = play(base, seed), play(base, seed)
    assert len(first.trace) > 50
    assert first.trace == second.trace
    assert first.counts == second.counts


def noticed(base: Path, name: str, seeds: Iterable[int]) -> bool:
    with mutated(name):
        return any(play(base, seed).violations for seed in seeds)


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_broken_rule_is_noticed(base: Path, name: str) -> None:
    assert noticed(base, name, [CAUGHT_BY[name], *range(1, MUTANT_SEEDS)])


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - CAUGHT_BY.keys()))
def test_a_rarely_needed_rule_is_missed(base: Path, name: str) -> None:
    assert noticed(base, name, range(1, MUTANT_SEEDS))
