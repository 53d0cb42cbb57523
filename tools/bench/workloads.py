"""What is measured: short workloads on a directory, each bounded in count and in seconds, each read back.

A workload gets a fresh directory and returns how much it did, in which time, with the time of each operation
where that says something. Whatever it wrote it compares after the kernel's caches were dropped; a difference
is an error, not a footnote.
"""

import io
import mmap
import os
import random
import sqlite3
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

MIB: Final = 1 << 20
BLOCK: Final = 4096
RECORD: Final = 200
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
SEED: Final = 22

now = time.perf_counter


class NotAsWritten(Exception):
    """What came back is not what was written."""


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything; `seconds` bounds each timed loop."""

    stream_bytes: int
    random_bytes: int
    files: int
    synced_files: int
    seconds: float


FULL: Final = Scale(stream_bytes=128 * MIB, random_bytes=32 * MIB, files=1000, synced_files=250, seconds=2.0)
QUICK: Final = Scale(stream_bytes=16 * MIB, random_bytes=8 * MIB, files=200, synced_files=50, seconds=0.5)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one workload: `amount` of `unit` in `seconds`, and how long single operations took."""

    name: str
    unit: str
    amount: float
    seconds: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.amount / self.seconds if self.seconds > 0 else 0.0


class Loop:
    """Times single operations until a count or the time is reached."""

    def __init__(self, scale: Scale) -> None:
        self.latencies: list[float] = []
        self.began = now()
        self._deadline = self.began + scale.seconds

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Around one operation."""
        began = now()
        yield
        self.latencies.append(now() - began)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return now() > self._deadline

    def sample(self, name: str, unit: str) -> Sample:
        """What the loop came to."""
        count = len(self.latencies)
        return Sample(
            name=name, unit=unit, amount=count, seconds=now() - self.began, latencies=self.latencies
        )


def drop_caches() -> bool:
    """Make the next reads come from the file system, not from memory; False where that is denied."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError:
        return False
    return True


def expect(found: object, wanted: object, what: str) -> None:
    """NotAsWritten if they differ."""
    if found != wanted:
        raise NotAsWritten(f"{what} did not come back as it was written")


def stream(directory: Path, scale: Scale) -> list[Sample]:
    """A large file written from end to end with one fsync, read cold and read warm."""
    data = random.Random(SEED).randbytes(scale.stream_bytes)
    path = directory / "stream"
    megabytes = scale.stream_bytes / 1e6
    began = now()
    with path.open("wb", buffering=0) as file:
        for offset in range(0, len(data), MIB):
            file.write(memoryview(data)[offset : offset + MIB])
        os.fsync(file.fileno())
    samples = [Sample(name="stream write", unit="MB", amount=megabytes, seconds=now() - began, latencies=[])]
    drop_caches()
    for name in ("stream read, cold", "stream read, warm"):
        began = now()
        found = path.read_bytes()
        samples.append(Sample(name=name, unit="MB", amount=megabytes, seconds=now() - began, latencies=[]))
        expect(found, data, "the streamed file")
    drop_caches()
    return [*samples, random_reads(path, data, scale)]


def random_reads(path: Path, data: bytes, scale: Scale) -> Sample:
    """4 KiB at random places of a file that no cache holds."""
    chance = random.Random(SEED)
    found: list[tuple[int, bytes]] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        loop = Loop(scale)
        while not loop.over:
            offset = chance.randrange(len(data) // BLOCK) * BLOCK
            with loop.operation():
                found.append((offset, os.pread(descriptor, BLOCK, offset)))
        sample = loop.sample("4 KiB read at random, cold", "reads")
    finally:
        os.close(descriptor)
    for offset, block in found:
        expect(block, data[offset : offset + BLOCK], "a block of the streamed file")
    return sample


def random_writes(directory: Path, scale: Scale) -> list[Sample]:
    """4 KiB overwrites at random places of a file: each with fsync, and each with O_DIRECT."""
    chance = random.Random(SEED)
    content = bytearray(chance.randbytes(scale.random_bytes))
    path = directory / "random"
    path.write_bytes(content)
    samples = []
    for name, flags in (("4 KiB overwrite with fsync", 0), ("4 KiB overwrite with O_DIRECT", os.O_DIRECT)):
        descriptor = os.open(path, os.O_RDWR | flags)
        buffer = mmap.mmap(-1, BLOCK)  # O_DIRECT wants an aligned one
        try:
            os.fsync(descriptor)
            loop = Loop(scale)
            while not loop.over:
                offset = chance.randrange(len(content) // BLOCK) * BLOCK
                buffer[:] = chance.randbytes(BLOCK)
                with loop.operation():
                    os.pwrite(descriptor, buffer, offset)
                    if not flags:
                        os.fsync(descriptor)
                content[offset : offset + BLOCK] = buffer[:]
            samples.append(loop.sample(name, "writes"))
        finally:
            os.close(descriptor)
            buffer.close()
    drop_caches()
    expect(path.read_bytes(), bytes(content), "the overwritten file")
    return samples


def append(path: Path, loop: Loop) -> None:
    """Append records with fdatasync until the time is up."""
    record = path.name.encode().ljust(RECORD, b".")
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    try:
        while not loop.over:
            with loop.operation():
                os.write(descriptor, record)
                os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def appends(directory: Path, scale: Scale) -> list[Sample]:
    """200 byte appends with fdatasync, by one writer and by eight at once."""
    samples = []
    for writers in (1, 8):
        paths = [directory / f"append-{writers}-{number}" for number in range(writers)]
        loops = [Loop(scale) for _ in paths]
        threads = [
            threading.Thread(target=append, args=pair, daemon=True) for pair in zip(paths, loops, strict=True)
        ]
        whole = Loop(scale)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for loop in loops:
            whole.latencies += loop.latencies
        samples.append(whole.sample(f"200 B append with fdatasync, {writers} at once", "appends"))
        drop_caches()
        for path, loop in zip(paths, loops, strict=True):
            record = path.name.encode().ljust(RECORD, b".")
            expect(path.read_bytes(), record * len(loop.latencies), f"the log {path.name}")
    return samples


def small_files(directory: Path, scale: Scale) -> list[Sample]:
    """Small files through their life: created, listed, looked at, read, renamed, removed."""
    chance = random.Random(SEED)
    contents = {f"file-{number:05d}": chance.randbytes(BLOCK) for number in range(scale.files)}

    def each(name: str, operation: Callable[[str], object], keys: list[str]) -> Sample:
        loop = Loop(scale)
        for key in keys:  # not bounded in time: what follows needs every file
            with loop.operation():
                operation(key)
        return loop.sample(name, "files")

    keys = list(contents)
    samples = [each("4 KiB file created", lambda key: (directory / key).write_bytes(contents[key]), keys)]
    drop_caches()
    began = now()
    expect(sorted(os.listdir(directory)), keys, "the directory")
    listed = Sample(
        name="directory listed, cold", unit="files", amount=len(keys), seconds=now() - began, latencies=[]
    )
    samples.append(listed)
    samples.append(each("stat after listing", lambda key: (directory / key).stat(), keys))
    drop_caches()
    samples.append(each("stat, cold", lambda key: (directory / key).stat(), keys))
    drop_caches()
    found: dict[str, bytes] = {}
    samples.append(
        each("4 KiB file read, cold", lambda key: found.update({key: (directory / key).read_bytes()}), keys)
    )
    samples.append(each("4 KiB file read, warm", lambda key: (directory / key).read_bytes(), keys))
    expect(found, contents, "a small file")
    samples.append(each("rename", lambda key: (directory / key).rename(directory / f"{key}.new"), keys))
    samples.append(each("unlink", lambda key: (directory / f"{key}.new").unlink(), keys))
    expect(os.listdir(directory), [], "the emptied directory")
    return samples


def synced_files(directory: Path, scale: Scale) -> list[Sample]:
    """Small files, each created with fsync."""
    chance = random.Random(SEED)
    contents: dict[Path, bytes] = {}
    loop = Loop(scale)
    for number in range(scale.synced_files):
        path, data = directory / f"synced-{number:05d}", chance.randbytes(BLOCK)
        with loop.operation(), path.open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        contents[path] = data
        if loop.over:
            break
    sample = loop.sample("4 KiB file created with fsync", "files")
    drop_caches()
    for path, data in contents.items():
        expect(path.read_bytes(), data, f"the file {path.name}")
    return [sample]


def directories(directory: Path, scale: Scale) -> list[Sample]:
    """Directories made and removed."""
    names = [directory / f"directory-{number:05d}" for number in range(scale.files)]
    made = Loop(scale)
    for name in names:
        with made.operation():
            name.mkdir()
    sample = made.sample("mkdir", "directories")
    expect(len(os.listdir(directory)), len(names), "the list of directories")
    removed = Loop(scale)
    for name in names:
        with removed.operation():
            name.rmdir()
    return [sample, removed.sample("rmdir", "directories")]


def tree(directory: Path, scale: Scale) -> list[Sample]:
    """A tree of real files (Python's library): unpacked by tar, walked and read cold, removed by rm."""
    archive, contents = packed(scale)
    place = directory / "tree"
    place.mkdir()
    began = now()
    try:
        subprocess.run(["tar", "-xf", str(archive), "-C", str(place)], check=True, stdin=subprocess.DEVNULL)
        seconds = [now() - began]
    finally:
        archive.unlink()
    drop_caches()
    began = now()
    names = [os.path.join(top, name) for top, _, names in os.walk(place) for name in names]
    for name in names:
        os.lstat(name)
    seconds.append(now() - began)
    expect(sorted(os.path.relpath(name, place) for name in names), sorted(contents), "the tree")
    drop_caches()
    began = now()
    found = {name: (place / name).read_bytes() for name in contents}
    seconds.append(now() - began)
    expect(found, contents, "a file of the tree")
    began = now()
    subprocess.run(["rm", "-rf", str(place)], check=True, stdin=subprocess.DEVNULL)
    seconds.append(now() - began)
    expect(os.listdir(directory), [], "the directory whose tree was removed")
    what = ("tree unpacked", "tree walked with attributes, cold", "tree read, cold", "tree removed")
    return [
        Sample(name=name, unit="files", amount=len(contents), seconds=took, latencies=[])
        for name, took in zip(what, seconds, strict=True)
    ]


def packed(scale: Scale) -> tuple[Path, dict[str, bytes]]:
    """A tar file of `scale.files` files in memory (where the host has such a place), and what is in it."""
    memory = Path("/dev/shm")
    library = Path(os.__file__).parent
    contents: dict[str, bytes] = {}
    number, name = tempfile.mkstemp(suffix=".tar", dir=memory if memory.is_dir() else None)
    with os.fdopen(number, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for path in sorted(library.rglob("*.py")):
            if len(contents) >= scale.files:
                break
            known = tarfile.TarInfo(str(path.relative_to(library)))
            contents[known.name] = data = path.read_bytes()
            known.size = len(data)
            archive.addfile(known, io.BytesIO(data))
    return Path(name), contents


def database(directory: Path, scale: Scale) -> list[Sample]:
    """SQLite transactions of one row, fully synchronised, with both kinds of journal."""
    return [transactions(directory, scale, journal) for journal in ("delete", "wal")]


def transactions(directory: Path, scale: Scale, journal: str) -> Sample:
    """Transactions with one kind of journal."""
    path = directory / f"{journal}.db"
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE bench (number INTEGER PRIMARY KEY, payload BLOB)")
        loop = Loop(scale)
        while not loop.over:
            number = len(loop.latencies)
            with loop.operation():
                connection.execute("INSERT INTO bench VALUES (?, ?)", (number, b"%0100d" % number))
        sample = loop.sample(f"SQLite transaction, {journal} journal", "transactions")
    finally:
        connection.close()
    drop_caches()
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT number, payload FROM bench ORDER BY number").fetchall()
    finally:
        connection.close()
    expect(rows, [(number, b"%0100d" % number) for number in range(int(sample.amount))], "the database")
    return sample


WORKLOADS: Final[tuple[Callable[[Path, Scale], list[Sample]], ...]] = (
    stream,
    random_writes,
    appends,
    small_files,
    synced_files,
    directories,
    tree,
    database,
)
