"""How long a wait may stay awake, and when it may not."""

import os
from pathlib import Path

import pytest

from jfs import busy_wait
from jfs.busy_wait import FIRST_SECONDS, BusyWait, Processors

MOST_SECONDS = 150e-6


def awake(wait: BusyWait, seconds: float, times: int) -> float:
    """How long the next wait stays awake after some that took so long."""
    for _ in range(times):
        wait.ended(seconds)
    return wait.awake_seconds


def test_short_waits_stay_awake_and_long_ones_sleep() -> None:
    wait = BusyWait(MOST_SECONDS)
    assert wait.awake_seconds == 0
    assert awake(wait, 100e-6, 1) == FIRST_SECONDS
    assert awake(wait, 100e-6, 1) == 2 * FIRST_SECONDS
    assert awake(wait, 100e-6, 10) >= 100e-6
    assert awake(wait, MOST_SECONDS, 10) == MOST_SECONDS
    assert awake(wait, 1.0, 1) == MOST_SECONDS / 2
    assert awake(wait, 1.0, 4) == 0


def test_a_wait_that_is_long_enough_grows_no_longer() -> None:
    wait = BusyWait(MOST_SECONDS)
    before = awake(wait, 30e-6, 3)
    assert 30e-6 <= before < 60e-6
    assert awake(wait, 30e-6, 100) == before


@pytest.mark.parametrize(
    ("running", "count", "enough"),
    [(1, 2, True), (3, 2, True), (4, 2, False), (1, 1, False), (12, 2, False), (12, 16, True)],
)
def test_a_processor_for_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: int, count: int, enough: bool
) -> None:
    load = tmp_path / "loadavg"
    load.write_text(f"0.50 3.25 11.10 {running}/151 30734\n")
    monkeypatch.setattr(busy_wait, "LOAD", str(load))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))
    assert Processors().are_enough() is enough


def test_where_the_load_cannot_be_told_waits_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_wait, "LOAD", str(tmp_path / "none"))
    assert not Processors().are_enough()


def test_the_load_of_this_machine_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1 << 20)))
    assert Processors().are_enough()
