"""Compares a mounted file system with what the ledgers say was acknowledged, byte by byte.

With `behind`, the file system may be an earlier state: then it must be an exact one. Every writer's work must
end at one point, whole up to it and absent after it, and that point must not lie before `behind`, the work
that is known to have reached the site.
"""

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from tools.demo import history
from tools.demo.ledger import RECORD_BYTES, Line, digest, newest, read, record, row
from tools.demo.workload import COPIERS, git

Marks = Mapping[str, int]  # name of a ledger -> how many of its steps count


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of work came to: steps acknowledged, steps found whole and right, and what is wrong."""

    what: str
    unit: str
    acknowledged: int
    found: int
    size: int
    faults: list[str]

    @property
    def missing(self) -> int:
        """Acknowledged steps that are not there."""
        return max(0, self.acknowledged - self.found)


class Checker:
    """One look at the file system mounted at `mount`."""

    def __init__(self, mount: Path, ledgers: Path, behind: Marks | None = None) -> None:
        self.mount = mount
        self.ledgers = ledgers
        self.behind = behind

    def run(self) -> list[Tally]:
        """Check every writer's work."""
        return [self.tree(), self.log(), self.database(), self.repository(), self.history()]

    def lines(self, name: str) -> list[Line]:
        """What writer `name` was told is safe."""
        return read(self.ledgers / f"{name}.jsonl")

    def required(self, name: str, acknowledged: int) -> int:
        """How many steps of a writer must be there."""
        return acknowledged if self.behind is None else min(acknowledged, self.behind.get(name, 0))

    def shortage(self, name: str, acknowledged: int, found: int) -> list[str]:
        """The fault of having less than what must be there, if it is one."""
        required = self.required(name, acknowledged)
        if found >= required:
            return []
        return [f"{name}: {found} steps are there, {required} were acknowledged and must be"]

    def tree(self) -> Tally:
        """The copied source tree: each file by its digest; an earlier state may lack only the newest."""
        faults: list[str] = []
        total = right = size = 0
        for part in range(COPIERS):
            name = f"tree{part}"
            lines = self.lines(name)
            whole = [self.same_file(line) for line in lines]
            count = whole.index(False) if False in whole else len(whole)
            faults += self.shortage(name, len(lines), count)
            # One file may be there in part: the one that was being written.
            faults += [
                f"{line.path}: it is there, although an earlier file is not"
                for line in lines[count + 1 :]
                if self.behind is not None and (self.mount / "tree" / line.path).exists()
            ]
            faults += [
                f"{line.path}: it is missing or not as written"
                for line, good in zip(lines, whole, strict=True)
                if self.behind is None and not good
            ]
            total += len(lines)
            right += count
            size += sum(line.size for line in lines[:count])
        return Tally(
            what="source tree", unit="files", acknowledged=total, found=right, size=size, faults=faults
        )

    def same_file(self, line: Line) -> bool:
        """Whether a copied file is there with exactly the bytes that were written."""
        try:
            data = (self.mount / "tree" / line.path).read_bytes()
        except FileNotFoundError:
            return False
        return len(data) == line.size and digest(data) == line.digest

    def log(self) -> Tally:
        """The appended log: records 1 to n, then at most a part of record n + 1."""
        acknowledged = newest(self.lines("log"))
        path = self.mount / "log" / "service.log"
        data = path.read_bytes() if path.exists() else b""
        whole, rest = divmod(len(data), RECORD_BYTES)
        faults = [
            f"{path.name}: record {number} is not as written"
            for number in range(1, whole + 1)
            if data[(number - 1) * RECORD_BYTES : number * RECORD_BYTES] != record(number)
        ]
        if rest and data[-rest:].rstrip(b"\0") != record(whole + 1)[: len(data[-rest:].rstrip(b"\0"))]:
            faults.append(f"{path.name}: what follows record {whole} was never written")
        if whole > acknowledged + 1:
            faults.append(f"{path.name}: {whole} records are there, {acknowledged + 1} were written at most")
        faults += self.shortage("log", acknowledged, whole)
        return Tally(
            what="log with fsync", unit="records", acknowledged=acknowledged, found=whole, size=len(data),
            faults=faults,
        )  # fmt: skip

    def database(self) -> Tally:
        """The database: SQLite's own check, and rows 1 to n each with its payload."""
        acknowledged = newest(self.lines("database"))
        path = self.mount / "database" / "demo.db"
        faults: list[str] = []
        count = 0
        if path.exists():
            connection = sqlite3.connect(path)
            try:
                faults += [
                    f"{path.name}: {text}"
                    for (text,) in connection.execute("PRAGMA integrity_check")
                    if text != "ok"
                ]
                for number, payload in connection.execute("SELECT number, payload FROM demo ORDER BY number"):
                    count += 1
                    if number != count or payload != row(number):
                        faults.append(f"{path.name}: row {number} is not as committed")
            except sqlite3.Error as error:
                # A state from before the table was made is an earlier state like any other.
                if self.required("database", acknowledged) or "no such table" not in str(error):
                    faults.append(f"{path.name}: {error}")
            finally:
                connection.close()
        if count > acknowledged + 1:
            faults.append(f"{path.name}: {count} rows are there, {acknowledged + 1} were committed at most")
        faults += self.shortage("database", acknowledged, count)
        return Tally(
            what="SQLite database", unit="transactions", acknowledged=acknowledged, found=count,
            size=path.stat().st_size if path.exists() else 0, faults=faults,
        )  # fmt: skip

    def repository(self) -> Tally:
        """The git repository: git's own check, and the acknowledged commits in the history of HEAD."""
        lines = self.lines("git")
        directory = self.mount / "repository"
        faults: list[str] = []
        commits: list[str] = []
        if (directory / ".git" / "refs" / "heads" / "main").exists():  # else: before the first commit
            try:
                git(directory, "fsck", "--full", "--strict", "--no-dangling")
                commits = git(directory, "rev-list", "--reverse", "HEAD").split()
            except OSError as error:
                faults.append(str(error))
        there = set(commits)
        present = [line.digest in there for line in lines]
        count = present.index(False) if False in present else len(present)
        if any(present[count:]):
            faults.append("git: a commit is there although an earlier one is not")
        faults += self.shortage("git", len(lines), count)
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        return Tally(
            what="git repository",
            unit="commits",
            acknowledged=len(lines),
            found=count,
            size=size,
            faults=faults,
        )

    def history(self) -> Tally:
        """The history: the directory is exactly as it was after one of its steps."""
        acknowledged = newest(self.lines("history"))
        directory = self.mount / "history"
        required = self.required("history", acknowledged)
        found = history.matching_step(directory, required, acknowledged + 1) if directory.exists() else 0
        faults = [] if found is not None else [
            f"history: the directory is not as it was after any step from {required} to {acknowledged + 1}"
        ]  # fmt: skip
        if not directory.exists():
            faults += self.shortage("history", acknowledged, 0)
        size = sum(path.stat().st_size for path in directory.iterdir()) if directory.exists() else 0
        return Tally(
            what="history of steps", unit="steps", acknowledged=acknowledged, found=found or 0, size=size,
            faults=faults,
        )  # fmt: skip


def marks(ledgers: Path) -> dict[str, int]:
    """How far every writer is at this moment, as the ledgers say."""
    names: dict[str, Callable[[list[Line]], int]] = {f"tree{part}": len for part in range(COPIERS)}
    names |= {"log": newest, "database": newest, "git": len, "history": newest}
    return {name: count(read(ledgers / f"{name}.jsonl")) for name, count in names.items()}


LEDGERS: Final = (*(f"tree{part}" for part in range(COPIERS)), "log", "database", "git", "history")
