"""The demo's writers and its checker, on a plain directory: the checker must see every kind of loss."""

import os
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.demo import history
from tools.demo.check import Checker, marks
from tools.demo.ledger import RECORD_BYTES, read

SETTLE_SECONDS = 30.0


def run_writers(mount: Path, ledgers: Path, enough: Callable[[dict[str, int]], bool], ending: int) -> None:
    sources = ledgers / "sources.txt"
    library = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.name for path in library.glob("*.py"))[:60]
    sources.write_text("".join(f"{library / name}\tlib/{name}\n" for name in names))
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.demo.workload", str(mount), str(ledgers), str(sources)],
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not enough(marks(ledgers)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(ending)
        process.wait(SETTLE_SECONDS)


def some_of_everything(done: dict[str, int]) -> bool:
    return all(done[name] >= 3 for name in done)


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory the writers filled, killed once in the middle and taken up again, and the ledgers."""
    base = tmp_path_factory.mktemp("workload")
    mount, ledgers = base / "mnt", base / "ledgers"
    mount.mkdir()
    ledgers.mkdir()
    run_writers(mount, ledgers, some_of_everything, signal.SIGKILL)
    before = marks(ledgers)
    endless = [name for name in before if not name.startswith("tree")]
    run_writers(
        mount, ledgers, lambda done: all(done[name] >= before[name] + 3 for name in endless), signal.SIGTERM
    )
    return mount, ledgers


def copy_of(worked: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    mount, ledgers = worked
    subprocess.run(["cp", "-a", str(mount), str(ledgers), str(tmp_path)], check=True)
    return tmp_path / "mnt", tmp_path / "ledgers"


def faults(checker: Checker) -> list[str]:
    return [fault for tally in checker.run() for fault in tally.faults]


def test_what_was_written_passes(worked: tuple[Path, Path]) -> None:
    tallies = Checker(*worked).run()
    assert [tally.faults for tally in tallies] == [[], [], [], [], []]
    assert all(tally.found >= tally.acknowledged > 0 and tally.missing == 0 for tally in tallies)


def shorten_log(mount: Path) -> None:
    path = mount / "log" / "service.log"
    os.truncate(path, path.stat().st_size - RECORD_BYTES - 1)


def change_log(mount: Path) -> None:
    with (mount / "log" / "service.log").open("r+b") as file:
        file.seek(20)
        file.write(b"?")


def lose_row(mount: Path) -> None:
    connection = sqlite3.connect(mount / "database" / "demo.db")
    with connection:
        connection.execute("DELETE FROM demo WHERE number = 2")
    connection.close()


def lose_last_rows(mount: Path) -> None:
    connection = sqlite3.connect(mount / "database" / "demo.db")
    with connection:
        connection.execute("DELETE FROM demo WHERE number >= (SELECT max(number) - 1 FROM demo)")
    connection.close()


def lose_file(mount: Path) -> None:
    min((mount / "tree").rglob("*.py")).unlink()


def empty_file(mount: Path) -> None:
    next(path for path in sorted((mount / "tree").rglob("*.py")) if path.stat().st_size).write_bytes(b"")


def lose_commit(mount: Path) -> None:
    subprocess.run(["git", "reset", "--quiet", "--hard", "HEAD~2"], cwd=mount / "repository", check=True)


def damage_object(mount: Path) -> None:
    path = next(path for path in sorted((mount / "repository" / ".git" / "objects").glob("??/*")))
    path.chmod(0o600)
    path.write_bytes(b"not an object")


def resurrect_in_history(mount: Path) -> None:
    (mount / "history" / "n98").write_bytes(b"was removed long ago")


BREAKAGES = [
    shorten_log, change_log, lose_row, lose_last_rows, lose_file, empty_file, lose_commit, damage_object,
    resurrect_in_history,
]  # fmt: skip


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_every_loss_is_seen(
    worked: tuple[Path, Path], tmp_path: Path, breakage: Callable[[Path], None]
) -> None:
    mount, ledgers = copy_of(worked, tmp_path)
    breakage(mount)
    assert faults(Checker(mount, ledgers))


def test_an_earlier_state_passes_only_where_an_earlier_state_is_allowed(
    worked: tuple[Path, Path], tmp_path: Path
) -> None:
    mount, ledgers = copy_of(worked, tmp_path)
    shorten_log(mount)
    lose_last_rows(mount)
    lose_commit(mount)
    nothing_known = dict.fromkeys(marks(ledgers), 0)
    assert faults(Checker(mount, ledgers, behind=nothing_known)) == []
    assert len(faults(Checker(mount, ledgers, behind=marks(ledgers)))) == 3


@pytest.mark.parametrize("breakage", [change_log, lose_row, lose_file, resurrect_in_history, damage_object])
def test_an_earlier_state_must_be_an_exact_one(
    worked: tuple[Path, Path], tmp_path: Path, breakage: Callable[[Path], None]
) -> None:
    mount, ledgers = copy_of(worked, tmp_path)
    breakage(mount)
    assert faults(Checker(mount, ledgers, behind=dict.fromkeys(marks(ledgers), 0)))


def test_the_history_is_the_same_at_every_call_and_does_everything() -> None:
    first = [step for step, _ in zip(history.steps(), range(300), strict=False)]
    assert first == [step for step, _ in zip(history.steps(), range(300), strict=False)]
    assert {step.kind for step in first} == {"write", "rename", "remove"}


def test_a_step_of_the_history_is_recognised(tmp_path: Path) -> None:
    for step in history.steps():
        if step.number > 50:
            break
        history.perform(step, tmp_path)
    assert history.matching_step(tmp_path, 0, 60) == 50
    assert history.matching_step(tmp_path, 51, 60) is None
    (tmp_path / history.UNFINISHED).write_bytes(b"half")
    assert history.matching_step(tmp_path, 40, 51) == 50


def test_a_line_cut_off_by_a_kill_is_not_an_acknowledgement(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"number":1,"at":1.0}\n{"number":2,"at":1.1}\n{"numb')
    assert [line.number for line in read(path)] == [1, 2]
