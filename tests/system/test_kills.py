"""SIGKILL at random moments under load: what was acknowledged is there, the sites are sound and agree.

The short tests kill each process twice. The campaigns (`make soak`) kill fifty times each and print the toll;
`TRISITE_KILLS` sets another number.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.system.kills import IMPATIENT, SHORT_QUEUE, BrokenOff, Campaign, Ground, TakeOvers, Toll, prepared
from tests.system.load import MOUNT_GONE
from tests.system.load_ledger import Ledger
from tests.system.load_workers import WORKERS, Appender, Creator, Worker
from tools.demo.stage import SITES

KILLS_VARIABLE = "TRISITE_KILLS"
SHORT = 2
LONG = int(os.environ.get(KILLS_VARIABLE, "50"))
LONG_SECONDS = 3600

CAMPAIGNS = (
    ("mount",),
    ("sync",),
    ("async",),
    ("primary",),
    ("mount", "sync"),
    ("mount", *SITES),
)


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize("victims", [("mount",), ("sync",), ("async",)], ids="+".join)
def test_a_few_kills(tmp_path: Path, seed: int, victims: tuple[str, ...]) -> None:
    with prepared(tmp_path / "volume") as ground:
        toll = Campaign(ground, victims, seed).run(SHORT)
    assert toll.acknowledged > SHORT


@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.timeout(LONG_SECONDS)
@pytest.mark.parametrize("victims", CAMPAIGNS, ids="+".join)
def test_campaign_of_kills(
    tmp_path: Path, seed: int, victims: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with prepared(tmp_path / "volume") as ground:
        toll = Campaign(ground, victims, seed).run(LONG)
    tell(toll, seed, capsys)
    assert toll.acknowledged > LONG


@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.timeout(LONG_SECONDS)
@pytest.mark.parametrize(("victim", "options"), [("sync", IMPATIENT), ("async", SHORT_QUEUE)])
def test_campaign_of_sites_that_stay_away(
    tmp_path: Path, seed: int, victim: str, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the sync site calls fail; without the far site the queue is given up for a comparing copy."""
    with prepared(tmp_path / "volume", options=options) as ground:
        campaign = Campaign(ground, (victim,), seed, away_seconds=4.0, failing=victim == "sync")
        toll = campaign.run(max(1, LONG // 2))
    tell(toll, seed, capsys)
    assert toll.acknowledged > LONG
    assert (toll.errors > 0) == (victim == "sync")
    assert victim == "sync" or any("left the queue" in reason for reason in ground.reasons)


@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.timeout(LONG_SECONDS)
def test_campaign_of_take_overs(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    with prepared(tmp_path / "volume") as ground:
        toll = TakeOvers(ground, ("mount", "primary"), seed).run(max(1, LONG // 5))
    tell(toll, seed, capsys)
    assert toll.acknowledged > LONG


@pytest.mark.fuse
@pytest.mark.slow
def test_a_take_over_and_a_return_that_are_broken_off(tmp_path: Path, seed: int) -> None:
    with prepared(tmp_path / "volume") as ground:
        toll = BrokenOff(ground, ("mount", "primary"), seed).run(1)
    assert toll.acknowledged > 0


@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.timeout(LONG_SECONDS)
def test_campaign_of_take_overs_and_returns_that_are_broken_off(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with prepared(tmp_path / "volume") as ground:
        toll = BrokenOff(ground, ("mount", "primary"), seed).run(max(1, LONG // 5))
    tell(toll, seed, capsys)
    assert toll.acknowledged > LONG


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize("lost", [("mount",), ("mount", "primary")], ids="+".join)
def test_take_over_while_the_far_site_stands_still(tmp_path: Path, seed: int, lost: tuple[str, ...]) -> None:
    chance = random.Random(f"{seed} {lost}")
    with prepared(tmp_path / "volume") as ground:
        ground.seed = str(seed)
        work_for(ground, chance)
        ground.hold("async")
        ground.start_load()
        time.sleep(chance.uniform(0.2, 1.5))
        ground.kill(*lost)
        ground.load_ended(MOUNT_GONE)
        ground.clear_mountpoint()
        result = ground.answer("failover", "--to", "sync", "--yes")
        assert (result["writer"], result["lost"]) == ("sync", 0)
        ground.mount("sync")
        found = ground.look()
        assert (found.faults, found.acknowledged > 0) == ([], True)
        work_for(ground, chance)
        ground.release("async")
        ground.follow("sync", "async")
        ground.verify("sync,async")
        ground.unmount()
        ground.check_sites()
        ground.mount("sync")
        assert ground.look().faults == []


def tell(toll: Toll, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of the table of a campaign, for whoever runs it."""
    with capsys.disabled():
        print(
            f"\nseed {seed}: {toll.victims} killed {toll.kills} times, {toll.acknowledged} operations "
            f"acknowledged, none lost, {toll.errors} calls failed, {toll.seconds:.0f} s"
        )


def work_for(ground: Ground, chance: random.Random) -> None:
    """The load for a moment, ended in peace."""
    ground.start_load()
    time.sleep(chance.uniform(0.2, 1.0))
    ground.stop_load()


# -- the witness itself: a check that finds nothing proves nothing


def worked(tmp_path: Path, kind: type[Worker], steps: int) -> Worker:
    """A worker that has done some steps on a plain directory."""
    (tmp_path / "mount").mkdir()
    (tmp_path / "ledgers").mkdir()
    worker = kind(tmp_path / "mount", tmp_path / "ledgers", "22")
    worker.open()
    for _ in range(steps):
        worker.step()
    worker.close()
    return kind(tmp_path / "mount", tmp_path / "ledgers", "")


@pytest.mark.parametrize("kind", WORKERS, ids=lambda kind: kind.__name__)
def test_the_witness_is_content_with_what_is_there(tmp_path: Path, kind: type[Worker]) -> None:
    worker = worked(tmp_path, kind, 50)
    assert worker.ledger.acknowledged >= 50
    assert worker.check() == []


@pytest.mark.parametrize("kind", WORKERS, ids=lambda kind: kind.__name__)
def test_the_witness_tells_what_is_lost(tmp_path: Path, kind: type[Worker]) -> None:
    worker = worked(tmp_path, kind, 50)
    largest = max((path for path in worker.directory.rglob("*") if path.is_file()), key=os.path.getsize)
    data = largest.read_bytes()
    largest.write_bytes(data[: len(data) // 2])
    assert worker.check()
    largest.unlink()
    assert worker.check()


@pytest.mark.parametrize("kind", WORKERS, ids=lambda kind: kind.__name__)
def test_the_witness_tells_that_the_newest_steps_are_lost(tmp_path: Path, kind: type[Worker]) -> None:
    """Yesterday's directory with today's ledger is a loss, whatever the worker."""
    worker = worked(tmp_path, kind, 5)
    worker.directory.rename(tmp_path / "yesterday")
    (tmp_path / "mount").joinpath(worker.name).mkdir()
    for path in sorted((tmp_path / "yesterday").rglob("*")):
        target = worker.directory / path.relative_to(tmp_path / "yesterday")
        if path.is_dir():
            target.mkdir()
        else:
            target.write_bytes(path.read_bytes())
    assert worker.check() == []
    ahead = kind(tmp_path / "mount", tmp_path / "ledgers", "23")
    ahead.open()
    before = {path: path.read_bytes() for path in worker.directory.rglob("*") if path.is_file()}
    for _ in range(3):
        ahead.step()
    ahead.close()
    for path in [path for path in worker.directory.rglob("*") if path.is_file()]:
        path.unlink()
    for path, data in before.items():
        path.write_bytes(data)
    assert kind(tmp_path / "mount", tmp_path / "ledgers", "").check()


def test_a_step_that_was_only_begun_may_be_there_or_not(tmp_path: Path) -> None:
    (tmp_path / "ledgers").mkdir()
    ledger = Ledger(tmp_path / "ledgers" / "replacer.txt")
    ledger.begin(1, "slot0")
    ledger.done(1, "slot0")
    ledger.begin(2, "slot0")
    again = Ledger(tmp_path / "ledgers" / "replacer.txt")
    assert again["slot0"] == (1, 2)
    assert (again.acknowledged, again.newest) == (1, 2)
    worker = Worker(tmp_path, tmp_path / "ledgers", "")
    worker.ledger = again
    assert worker.judge("slot0", 1) == worker.judge("slot0", 2) == []
    assert worker.judge("slot0", 0)
    assert worker.judge("slot0", 3)
    assert worker.judge("slot0", None)


def test_a_removed_file_that_comes_back_is_seen(tmp_path: Path) -> None:
    worker = worked(tmp_path, Creator, Creator.KEPT + 2)
    assert not (worker.directory / "1").exists()
    (worker.directory / "1").write_bytes(b"again")
    assert worker.check() == ["creator 1: it was removed and is there"]


def test_content_that_was_never_written_is_seen(tmp_path: Path) -> None:
    worker = worked(tmp_path, Appender, 3)
    with (worker.directory / "log").open("ab") as file:
        file.write(b"x" * Appender.RECORD)
    assert worker.check()
