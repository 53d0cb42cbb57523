"""The three sites in one process from one seed: nothing acknowledged is lost, whatever fails and whenever.

A seed that fails is played again with `python -m tests.sim.sites.play SEED 1 -v`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_seed
from tests.sim.sites.mutants import MUTANTS, mutated
from tests.sim.sites.play import coverage, not_reached, play, prepared

SEEDS = 60
SOAK_SEEDS = 10_000
MUTANT_SEEDS = 1000
CAUGHT_BY: dict[str, int] = {}
"""A seed that is known to notice the mutant, to be tried first; any of the first thousand will do."""


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


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(base: Path, name: str) -> None:
    known = [CAUGHT_BY[name]] if name in CAUGHT_BY else []
    with mutated(name):
        assert any(play(base, seed).violations for seed in [*known, *range(1, MUTANT_SEEDS)])
