"""Every reader of foreign bytes takes anything: accepted, or the peer's fault. Memory does not grow."""

import pytest

from tests.fuzz.play import BATCH, Outcome, play, play_in_processes, report
from tests.fuzz.targets import TARGETS

GROWTH_BYTES = 8 << 20
"""What the allocator may keep of broken inputs: some times the largest that one of them is made into."""


def judge(outcome: Outcome) -> None:
    print(report(outcome))
    assert outcome.grown_bytes < GROWTH_BYTES
    assert outcome.peak_bytes < GROWTH_BYTES
    for target in TARGETS:
        assert outcome.refused[target.name], f"nothing that {target.name} refuses was tried"
        assert outcome.accepted[target.name], f"nothing that {target.name} accepts was tried"


def test_a_hundred_thousand_broken_inputs(seed: int) -> None:
    judge(play(str(seed), 0, 100_000 // BATCH))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_million_broken_inputs(seed: int) -> None:
    judge(play_in_processes(str(seed), 10_000_000 // BATCH, 2))
