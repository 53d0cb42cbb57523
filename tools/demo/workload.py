"""The application of the demo: five writers in a process of their own, each noting what was acknowledged.

    python -m tools.demo.workload MOUNTPOINT LEDGERS SOURCE-LIST

It is a process of its own because its file system is killed under it. Started again on the surviving site it
takes up every writer where it was: what is there but was never acknowledged is kept or repaired as any
application would after a crash.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.demo import history
from tools.demo.history import sync_directory
from tools.demo.ledger import RECORD_BYTES, Ledger, chapter, digest, newest, read, record, row

ENDED: Final = 0
FILE_SYSTEM_GONE: Final = 3
COPIERS: Final = 2
GIT_PAUSE_SECONDS: Final = 0.2
# Every object, the index and the references reach the disk before `git commit` returns.
GIT_OPTIONS: Final = (
    "-c", "core.fsync=all", "-c", "core.fsyncMethod=fsync", "-c", "gc.auto=0",
    "-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false",
)  # fmt: skip

Writer = Callable[[Path, Path, threading.Event], None]


def copy_tree(
    mount: Path, ledgers: Path, stop: threading.Event, *, sources: list[tuple[Path, str]], part: int
) -> None:
    """Copy every COPIERS-th file of the source tree that is not noted yet, with fsync after each."""
    path = ledgers / f"tree{part}.jsonl"
    done = {line.path for line in read(path)}
    with Ledger(path) as ledger:
        for number, (source, name) in enumerate(sources, start=1):
            if stop.is_set():
                return
            if number % COPIERS != part or name in done:
                continue
            data = source.read_bytes()
            target = mount / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            ledger.acknowledge(number, path=name, size=len(data), digest=digest(data))


def append_log(mount: Path, ledgers: Path, stop: threading.Event) -> None:
    """Append records to a log file, each with fsync."""
    path = mount / "log" / "service.log"
    path.parent.mkdir(exist_ok=True)
    with Ledger(ledgers / "log.jsonl") as ledger, path.open("ab", buffering=0) as file:
        whole = path.stat().st_size // RECORD_BYTES
        os.truncate(file.fileno(), whole * RECORD_BYTES)
        for number in range(whole + 1, sys.maxsize):
            if stop.is_set():
                return
            file.write(record(number))
            os.fsync(file.fileno())
            ledger.acknowledge(number)


def fill_database(mount: Path, ledgers: Path, stop: threading.Event) -> None:
    """Insert rows into a SQLite database, one transaction each."""
    directory = mount / "database"
    directory.mkdir(exist_ok=True)
    connection = sqlite3.connect(directory / "demo.db", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=DELETE")  # the one journal that memory-maps nothing
        connection.execute("PRAGMA synchronous=EXTRA")  # also the removal of the journal is made durable
        connection.execute("CREATE TABLE IF NOT EXISTS demo (number INTEGER PRIMARY KEY, payload BLOB)")
        (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM demo").fetchone()
        with Ledger(ledgers / "database.jsonl") as ledger:
            for number in range(last + 1, sys.maxsize):
                if stop.is_set():
                    return
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO demo VALUES (?, ?)", (number, row(number)))
                connection.execute("COMMIT")
                ledger.acknowledge(number)
    finally:
        connection.close()


def commit_to_git(mount: Path, ledgers: Path, stop: threading.Event) -> None:
    """Commit a changed file to a git repository again and again."""
    directory = mount / "repository"
    if not (directory / ".git" / "HEAD").exists():
        directory.mkdir(exist_ok=True)
        git(directory, "init", "--quiet", "--initial-branch=main")
    for lock in (directory / ".git").rglob("*.lock"):  # left by a git that was killed
        lock.unlink()
    path = ledgers / "git.jsonl"
    number = newest(read(path))
    with Ledger(path) as ledger:
        while not stop.wait(GIT_PAUSE_SECONDS):
            number += 1
            name = f"chapter-{number % 12:02d}.txt"
            (directory / name).write_bytes(chapter(number))
            git(directory, "add", name)
            git(directory, "commit", "--quiet", "--allow-empty", "--message", f"step {number}")
            for below in (directory / ".git").rglob("*/"):
                sync_directory(below)  # git does not sync the directories it renames in
            sync_directory(directory / ".git")
            ledger.acknowledge(number, digest=git(directory, "rev-parse", "HEAD").strip())


def git(directory: Path, *arguments: str) -> str:
    """Run git without the configuration of whoever runs the demo; OSError if it fails."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": "/nonexistent",
    }
    run = subprocess.run(
        ["git", *GIT_OPTIONS, *arguments],
        cwd=directory, env=environment, capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip
    if run.returncode != 0:
        raise OSError(f"git {arguments[0]}: {run.stderr.strip()}")
    return run.stdout


def write_history(mount: Path, ledgers: Path, stop: threading.Event) -> None:
    """Perform the history, step after step."""
    directory = mount / "history"
    directory.mkdir(exist_ok=True)
    path = ledgers / "history.jsonl"
    done = newest(read(path))
    with Ledger(path) as ledger:
        for step in history.steps():
            if stop.is_set():
                return
            if step.number > done:
                history.perform(step, directory)
                ledger.acknowledge(step.number)


def work(mount: Path, ledgers: Path, sources: list[tuple[Path, str]]) -> int:
    """Run every writer until SIGTERM or until the file system is gone; the exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    gone: list[str] = []

    def guarded(name: str, writer: Callable[[], None]) -> None:
        try:
            writer()
        except (OSError, sqlite3.Error) as error:
            gone.append(f"{name}: {error}")
            stop.set()

    def copier(part: int) -> Callable[[], None]:
        return lambda: copy_tree(mount, ledgers, stop, sources=sources, part=part)

    writers: dict[str, Callable[[], None]] = {f"tree{part}": copier(part) for part in range(COPIERS)}
    plain: dict[str, Writer] = {
        "log": append_log, "database": fill_database, "git": commit_to_git, "history": write_history,
    }  # fmt: skip
    for name, writer in plain.items():
        writers[name] = lambda writer=writer: writer(mount, ledgers, stop)  # type: ignore[misc]
    threads = [threading.Thread(target=guarded, args=item, daemon=True) for item in writers.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (ledgers / "ended.txt").write_text("\n".join(gone))
    return FILE_SYSTEM_GONE if gone else ENDED


def main() -> int:
    """Entry point: mount point, ledger directory, and a list of the sources, `path<TAB>name` a line."""
    mount, ledgers, listing = (Path(argument) for argument in sys.argv[1:4])
    lines = (line.partition("\t") for line in listing.read_text(encoding="utf-8").splitlines())
    return work(mount, ledgers, [(Path(source), name) for source, _, name in lines])


if __name__ == "__main__":
    sys.exit(main())
