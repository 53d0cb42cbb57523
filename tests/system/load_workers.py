"""The workers of the load: each does one kind of durable work, and can tell later what of it is not there."""

import os
import random
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from tests.system.load_ledger import Ledger, content

BLOCK: Final = 4096


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, chance: random.Random) -> None:
    """A new file with this content, written in pieces of any length, and fsync."""
    with path.open("wb", buffering=0) as file:
        at = 0
        while at < len(data):
            at += file.write(data[at : at + chance.randint(1, 1 << 16)])
        os.fsync(file.fileno())


class Worker:
    """One kind of work in a directory of its own. `step` is one operation, noted when it is acknowledged."""

    def __init__(self, mount: Path, ledgers: Path, seed: str) -> None:
        self.name = type(self).__name__.lower()
        self.directory = mount / self.name
        self.ledger = Ledger(ledgers / f"{self.name}.txt")
        self.chance = random.Random(f"{seed} {self.name} {self.ledger.newest}")
        self.held = ExitStack()

    def open(self) -> None:
        """Get ready, also after a fault in the middle of a step."""
        self.directory.mkdir(exist_ok=True)
        sync_directory(self.directory.parent)

    def step(self) -> None:
        """One operation."""
        raise NotImplementedError

    def descriptor(self, path: Path, flags: int) -> int:
        """Open a file until `close`."""
        opened = os.open(path, flags, 0o600)
        self.held.callback(os.close, opened)
        return opened

    def close(self) -> None:
        """Close what is open, also after half an `open`."""
        self.held.close()

    def check(self) -> list[str]:
        """What is not as it was acknowledged."""
        raise NotImplementedError

    def judge(self, key: str, found: int | None) -> list[str]:
        """The fault, if a register holds `found` (None: no version at all)."""
        done, begun = self.ledger[key]
        if found is not None and done <= found <= begun:
            return []
        return [f"{self.name} {key}: version {found} is there, {done} was acknowledged and {begun} begun"]

    def match(self, key: str, data: bytes | None, largest: int) -> int | None:
        """Which version of a register this content is; no file is version 0."""
        if data is None:
            return 0
        done, begun = self.ledger[key]
        for version in range(begun, max(done, 1) - 1, -1):
            if data == content(f"{self.name} {key}", version, largest):
                return version
        return None


def read_if_there(path: Path) -> bytes | None:
    """The content of a file, None if it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


class Creator(Worker):
    """New files, with fsync of file and directory; old ones removed, with fsync of the directory."""

    KEPT: Final = 30
    LARGEST: Final = 200_000
    CREATED: Final = 1
    REMOVED: Final = 2

    def open(self) -> None:
        """Also: remove what a fault left half done."""
        super().open()
        self.next = 1 + max((int(key) for key in self.ledger.registers), default=0)
        self.kept = []
        for key in sorted(self.ledger.registers, key=int):
            known = self.ledger[key]
            if known.begun == known.done == self.CREATED:
                self.kept.append(key)
            elif known.done < self.REMOVED:
                self.remove(key)

    def step(self) -> None:
        """Create one, and remove the oldest if there are many."""
        key = str(self.next)
        self.ledger.begin(self.CREATED, key)
        self.next += 1
        write_durably(self.directory / key, content(f"{self.name} {key}", 1, self.LARGEST), self.chance)
        sync_directory(self.directory)
        self.ledger.done(self.CREATED, key)
        self.kept.append(key)
        if len(self.kept) > self.KEPT:
            self.remove(self.kept[0])
            del self.kept[0]

    def remove(self, key: str) -> None:
        """Remove a file."""
        self.ledger.begin(self.REMOVED, key)
        (self.directory / key).unlink(missing_ok=True)
        sync_directory(self.directory)
        self.ledger.done(self.REMOVED, key)

    def check(self) -> list[str]:
        """A file that was created and not removed is there, whole; a removed one is not, and no other is."""
        faults = []
        names = set(os.listdir(self.directory)) if self.ledger.acknowledged else set()
        faults += [f"{self.name}: {name} was never made" for name in names - set(self.ledger.registers)]
        for key, (done, begun) in self.ledger.registers.items():
            there = key in names
            if done == self.REMOVED:
                faults += [f"{self.name} {key}: it was removed and is there"] if there else []
            elif done == self.CREATED and (there or begun == self.CREATED):
                wanted = content(f"{self.name} {key}", 1, self.LARGEST)
                if read_if_there(self.directory / key) != wanted:
                    faults.append(f"{self.name} {key}: it is not as written")
        return faults


class Appender(Worker):
    """Records appended to one file, each with fdatasync. The version is the number of records."""

    RECORD: Final = 99
    KEY: Final = "records"

    def open(self) -> None:
        """Also: cut off what was not acknowledged, as a program that was told of an error has to."""
        super().open()
        self.file = self.descriptor(self.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.count = self.ledger[self.KEY].done
        os.ftruncate(self.file, self.count * self.RECORD)
        os.fsync(self.file)
        sync_directory(self.directory)

    def record(self, number: int) -> bytes:
        """Record `number`, from 1."""
        return f"{number:020d}{random.Random(number).randbytes(39).hex()}\n".encode()

    def step(self) -> None:
        """Append some records."""
        count = self.count + self.chance.choice((1, 1, 1, 2, 50, 200))
        self.ledger.begin(count, self.KEY)
        os.write(self.file, b"".join(self.record(number) for number in range(self.count + 1, count + 1)))
        os.fdatasync(self.file)
        self.ledger.done(count, self.KEY)
        self.count = count

    def check(self) -> list[str]:
        """Records 1 to n, and what follows is a beginning of the next (or zeros where nothing arrived)."""
        data = read_if_there(self.directory / "log") or b""
        done, begun = self.ledger[self.KEY]
        wanted = b"".join(self.record(number) for number in range(1, begun + 1))
        sure = done * self.RECORD
        if len(data) > len(wanted):
            return [f"{self.name}: {len(data)} bytes are there, {len(wanted)} were written at most"]
        if data[:sure] != wanted[:sure]:
            return [f"{self.name}: {done} records were acknowledged, and they are not as written"]
        strange = any(one not in (0, two) for one, two in zip(data[sure:], wanted[sure:], strict=False))
        return [f"{self.name}: what follows record {done} was never written"] if strange else []


class Replacer(Worker):
    """Files replaced by rename: write a new one, fsync, rename over the old one, fsync the directory."""

    SLOTS: Final = 6
    LARGEST: Final = 60_000

    def step(self) -> None:
        """Replace one slot; sometimes remove it, which is a version like any other."""
        key = f"slot{self.chance.randrange(self.SLOTS)}"
        version = self.ledger[key].begun + 1
        fresh = self.directory / f"{key}.new"
        write_durably(fresh, content(f"{self.name} {key}", version, self.LARGEST), self.chance)
        self.ledger.begin(version, key)
        fresh.rename(self.directory / key)
        sync_directory(self.directory)
        self.ledger.done(version, key)

    def check(self) -> list[str]:
        """Each slot holds one version, whole."""
        keys = self.ledger.registers
        return [
            fault
            for key in keys
            for fault in self.judge(key, self.match(key, read_if_there(self.directory / key), self.LARGEST))
        ]


class Mover(Worker):
    """Files moved between directories, both synced. The version says in which directory a file is."""

    FILES: Final = 5
    DIRECTORIES: Final = 3

    def place(self, key: str, version: int) -> Path:
        """Where a file is in a version."""
        return self.directory / f"d{version % self.DIRECTORIES}" / key

    def open(self) -> None:
        """Also: make what is not there, and find where a fault left the others."""
        super().open()
        for number in range(self.DIRECTORIES):
            (self.directory / f"d{number}").mkdir(exist_ok=True)
        sync_directory(self.directory)
        for key in (f"file{number}" for number in range(self.FILES)):
            if self.ledger[key].done:
                # One move can be open, so the file is where it was or where it was to go.
                done, begun = self.ledger[key]
                found = next(at for at in range(begun, done - 1, -1) if self.place(key, at).exists())
                self.settle(key, found)
            else:
                self.ledger.begin(1, key)
                data = content(f"{self.name} {key}", 1, BLOCK)
                write_durably(self.place(key, 1), data, self.chance)
                self.settle(key, 1)

    def settle(self, key: str, found: int) -> None:
        """Make the present place durable; as a version of its own, so that the order of versions holds."""
        version = found
        while version < self.ledger[key].begun:
            version += self.DIRECTORIES
        self.ledger.begin(version, key)
        for number in range(self.DIRECTORIES):
            sync_directory(self.directory / f"d{number}")
        self.ledger.done(version, key)

    def step(self) -> None:
        """Move one file."""
        key = f"file{self.chance.randrange(self.FILES)}"
        now = self.ledger[key].begun
        version = now + self.chance.randint(1, self.DIRECTORIES - 1)
        self.ledger.begin(version, key)
        self.place(key, now).rename(self.place(key, version))
        sync_directory(self.place(key, version).parent)
        sync_directory(self.place(key, now).parent)
        self.ledger.done(version, key)

    def check(self) -> list[str]:
        """Each file is in exactly one directory, one where it may be, with its content."""
        faults = []
        for key, (done, begun) in self.ledger.registers.items():
            if not done:
                continue
            there = [n for n in range(self.DIRECTORIES) if self.place(key, n).exists()]
            may = {done % self.DIRECTORIES, begun % self.DIRECTORIES}
            if len(there) != 1 or there[0] not in may:
                faults.append(f"{self.name} {key}: it is in {there}, and should be in one of {may}")
            elif self.place(key, there[0]).read_bytes() != content(f"{self.name} {key}", 1, BLOCK):
                faults.append(f"{self.name} {key}: its content changed")
        return faults


class Overwriter(Worker):
    """Blocks of one file overwritten in place, with fsync, fdatasync or O_DSYNC. A block is a register."""

    BLOCKS: Final = 600
    LONGEST: Final = 40

    def open(self) -> None:
        """Also: make the file."""
        super().open()
        self.version = self.ledger.newest
        self.file = self.descriptor(self.directory / "blocks", os.O_RDWR | os.O_CREAT)
        self.direct = self.descriptor(self.directory / "blocks", os.O_RDWR | os.O_DSYNC)
        os.ftruncate(self.file, self.BLOCKS * BLOCK)
        os.fsync(self.file)
        sync_directory(self.directory)

    def block(self, number: int, version: int) -> bytes:
        """What a version of a block holds."""
        if version == 0:
            return bytes(BLOCK)
        return random.Random(f"{number} {version}").randbytes(64) * (BLOCK // 64 - 1) + b"%32d%32d" % (
            number, version,
        )  # fmt: skip

    def step(self) -> None:
        """Overwrite a run of blocks."""
        self.version += 1
        count = self.chance.choice((1, 1, 2, self.LONGEST))
        first = self.chance.randrange(self.BLOCKS - count)
        run = range(first, first + count)
        keys = [str(number) for number in run]
        self.ledger.begin(self.version, *keys)
        data = b"".join(self.block(number, self.version) for number in run)
        kind = self.chance.randrange(3)
        written = os.pwrite(self.direct if kind == 0 else self.file, data, first * BLOCK)
        if kind == 1:
            os.fsync(self.file)
        elif kind == 2:
            os.fdatasync(self.file)
        if written == len(data):
            self.ledger.done(self.version, *keys)

    def check(self) -> list[str]:
        """Each block holds one version, one of those that may be."""
        if not self.ledger.registers:
            return []
        data = read_if_there(self.directory / "blocks") or b""
        faults = []
        for key in self.ledger.registers:
            number = int(key)
            found = data[number * BLOCK : (number + 1) * BLOCK]
            tail = found[-32:].strip(b"\0 ") or b"0"
            version = int(tail) if tail.isdigit() else None
            whole = version is not None and found == self.block(number, version)
            faults += self.judge(key, version if whole else None)
        return faults


class Rows(Worker):
    """A SQLite database, one transaction a step. The version is the number of rows.

    With synchronous=FULL a commit is durable in the journal modes truncate and wal; in mode delete SQLite
    does not sync the directory, and says so.
    """

    MODE = "truncate"
    KEY: Final = "rows"
    LARGEST: Final = 6_000

    def open(self) -> None:
        """Also: let SQLite roll back or forward what a fault left."""
        super().open()
        self.database = sqlite3.connect(self.directory / "rows.db", isolation_level=None)
        self.held.enter_context(closing(self.database))
        self.database.execute("PRAGMA locking_mode=exclusive")
        self.database.execute(f"PRAGMA journal_mode={self.MODE}")
        self.database.execute("PRAGMA synchronous=FULL")
        self.database.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, data BLOB)")
        sync_directory(self.directory)
        (self.count,) = self.database.execute("SELECT count(*) FROM rows").fetchone()
        done, begun = self.ledger[self.KEY]
        if not done <= self.count <= begun:
            raise AssertionError(f"{self.count} rows are there, {done} were committed and {begun} begun")

    def step(self) -> None:
        """One transaction of one or some rows."""
        count = self.count + self.chance.choice((1, 1, 4))
        self.ledger.begin(count, self.KEY)
        self.database.execute("BEGIN IMMEDIATE")
        for number in range(self.count + 1, count + 1):
            data = content(self.name, number, self.LARGEST)
            self.database.execute("INSERT INTO rows VALUES (?, ?)", (number, data))
        self.database.execute("COMMIT")
        self.ledger.done(count, self.KEY)
        self.count = count

    def check(self) -> list[str]:
        """SQLite finds nothing wrong, and the rows are 1 to n with their content."""
        if not self.ledger[self.KEY].done:
            return []
        database = sqlite3.connect(self.directory / "rows.db")
        try:
            database.execute("PRAGMA locking_mode=exclusive")  # a WAL without memory shared by mmap
            said = [text for (text,) in database.execute("PRAGMA integrity_check")]
            found = list(database.execute("SELECT number, data FROM rows ORDER BY number"))
        except sqlite3.Error as error:
            return [f"{self.name}: {error}"]
        finally:
            database.close()
        faults = [f"{self.name}: {text}" for text in said if text != "ok"]
        faults += self.judge(self.KEY, len(found))
        for index, (number, data) in enumerate(found, start=1):
            if number != index or data != content(self.name, index, self.LARGEST):
                faults.append(f"{self.name}: row {index} is not as committed")
        return faults


class WalRows(Rows):
    """The same with a write-ahead log."""

    MODE = "wal"


WORKERS: Final = (Creator, Appender, Replacer, Mover, Overwriter, Rows, WalRows)
