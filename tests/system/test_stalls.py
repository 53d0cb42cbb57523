"""The sync site is killed, started, stopped and continued under load: once it is in step, all go on.

Without protection the application works all the time: the sync site comes back to a queue that no longer
holds what it lacks, and to a load that does not pause for the copy. The short test does it a few times, the
campaign (`make soak`) for minutes; `TRISITE_ROUNDS` sets the number of its rounds.
"""

import os
import time
from pathlib import Path

import pytest

from tests.system.kills import Campaign, Found, Toll, prepared
from tools.errors import Failure

UNPROTECTED = "silence_seconds = 1.0\nprotect = false\nprotect_timeout_seconds = 60.0\n"
PROTECTED = UNPROTECTED.replace("protect = false", "protect = true")
"""A hung connection is given up after `protect_timeout_seconds`: here that is far beyond HANG_SECONDS."""
HANG_SECONDS = 25.0  # the longest that every worker may be without an acknowledgement while all is well
SHORT = 1
LONG = int(os.environ.get("TRISITE_ROUNDS", "100"))
LONG_SECONDS = 3600


class Stalls(Campaign):
    """Each strike: killed, started, stopped and continued, several times in a row under one load."""

    CYCLES = 4

    def strike(self) -> Found:
        """Some cycles under one load, then the whole check."""
        ground = self.ground
        ground.start_load()
        for _ in range(self.CYCLES):
            self.cycle()
        ground.stop_load()
        ground.follow("primary", "sync", "async")
        ground.verify("primary,sync", "sync,async")
        ground.unmount()
        ground.check_sites()
        ground.mount("primary")
        return self.nothing_lost()

    def cycle(self) -> None:
        """One death, return and stall of the sync site; then everybody is heard of again."""
        ground, chance = self.ground, self.chance
        if chance.random() < 0.7:
            ground.kill("sync")
            time.sleep(chance.uniform(0.0, 1.5))
            ground.start_sites(["sync"])
            time.sleep(chance.uniform(0.0, 0.6))
        for _ in range(chance.choice((1, 1, 2))):
            ground.hold("sync")
            time.sleep(chance.choice((chance.uniform(0.0, 0.4), chance.uniform(0.8, 2.5))))
            ground.release("sync")
            time.sleep(chance.uniform(0.0, 0.5))
        ground.follow("primary", "sync")
        self.all_go_on()

    def all_go_on(self) -> None:
        """Every worker has something acknowledged again; Failure if one of them waits for ever."""
        before = self.ground.acknowledged()
        deadline = time.monotonic() + HANG_SECONDS
        while any(now <= then for now, then in zip(self.ground.acknowledged(), before, strict=True)):
            if time.monotonic() > deadline:
                state = self.ground.status()["pairs"]
                raise Failure(
                    f"no fsync returned for {HANG_SECONDS:.0f} s: {before} acknowledged before, "
                    f"{self.ground.acknowledged()} now; {state}"
                )
            time.sleep(0.05)


def run(directory: Path, seed: int, options: str, rounds: int) -> Toll:
    """The rounds; each round is several cycles."""
    with prepared(directory, options=options) as ground:
        return Stalls(ground, ("sync",), seed).run(rounds)


@pytest.mark.fuse
@pytest.mark.slow
def test_a_few_stalls(tmp_path: Path, seed: int) -> None:
    assert run(tmp_path / "volume", seed, UNPROTECTED, SHORT).acknowledged > SHORT


@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.timeout(LONG_SECONDS)
@pytest.mark.parametrize("options", [UNPROTECTED, PROTECTED], ids=["unprotected", "protected"])
def test_campaign_of_stalls(
    tmp_path: Path, seed: int, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    toll = run(tmp_path / "volume", seed, options, LONG)
    with capsys.disabled():
        print(
            f"\nseed {seed}: sync killed, stopped and continued in {LONG} rounds of {Stalls.CYCLES} cycles, "
            f"{toll.acknowledged} operations acknowledged, none lost, {toll.errors} calls failed, "
            f"{toll.seconds:.0f} s"
        )
    assert toll.acknowledged > LONG
