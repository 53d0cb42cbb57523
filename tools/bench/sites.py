"""`python -m tools.bench.sites`: what has to do with the sites: lag, memory, delay, a long queue.

For every workload how far the far site was behind, asked of the writer's daemon 20 times a second, and the
most memory that each process had. Then a long write and fsyncs with a delay on the line to the sync site.
Then what the queue costs the writer with 10 and with 1,000,000 entries in it.
"""

import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

import msgspec
import trio
from cyclopts import App, Parameter

from jfs.mountpoint import check_fuse
from replication.client import open_client
from replication.config import load
from replication.control import GetStatus
from replication.errors import PeerRefused, PeerUnreachable
from tools import render
from tools.bench import targets
from tools.bench.__main__ import run
from tools.bench.line import Line, line_to, round_trip_ms
from tools.bench.results import number, quantile
from tools.bench.workloads import BLOCK, FULL, MIB, QUICK, SEED, WORKLOADS, Scale, now
from tools.demo.stage import Stage
from tools.errors import ExitCode
from vsap.entry import WRITE, Entry, checksum_of, discard_entry
from vsap.queue import EntryQueue

SAMPLE_SECONDS: Final = 0.05
ROUND_TRIPS_MS: Final = (0.0, 2.0, 10.0, 50.0)
QUEUE_ENTRIES: Final = (10, 1_000_000)
APPENDS: Final = 2000

app = App(name="bench.sites", help=__doc__, help_format="plaintext")


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """One workload: lag of the far site in ms, and the peak memory of each process in bytes."""

    workload: str
    samples: int
    p50_ms: float
    p99_ms: float
    most_ms: float
    peak_memory_bytes: dict[str, int]


class Delayed(msgspec.Struct, frozen=True, kw_only=True):
    """With a delay to the sync site: a long write, and overwrites of 4 KiB with fsync."""

    set_ms: float
    round_trip_ms: float
    """What the line takes by itself: see `tools.bench.line`."""
    stream_mb_per_second: float
    fsync_p50_ms: float


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue costs with so many entries in it, in µs: an append, and a read of the oldest entry."""

    entries: int
    append_us: float
    read_us: float


class Sampler:
    """Asks the daemon of the writer how far the far site is behind, in a thread of its own."""

    def __init__(self, stage: Stage) -> None:
        self._config = load(stage.config)
        self.lags_ms: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._ask_forever,), daemon=True)
        self._thread.start()

    async def _ask_forever(self) -> None:
        while not self._over.is_set():
            try:
                async with open_client(self._config, "primary") as client:
                    while not self._over.is_set():
                        report = await client.ask(GetStatus())
                        if report.queue is not None:
                            self.lags_ms.append(report.queue.lag_seconds * 1e3)
                        await trio.sleep(SAMPLE_SECONDS)
            except (PeerUnreachable, PeerRefused):
                await trio.sleep(SAMPLE_SECONDS)

    def take(self) -> list[float]:
        """The samples since the last time, ascending."""
        taken, self.lags_ms = self.lags_ms, []
        return sorted(taken)

    def end(self) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join()


def measure_lag(place: Path, scale: Scale) -> list[Behind]:
    """Every workload on three sites, while the far site's lag and the memory are watched."""
    found = []
    with targets.trisite(place) as stage:
        sampler = Sampler(stage)
        try:
            for workload in WORKLOADS:
                name = workload.__name__.replace("_", " ")
                render.note(f"lag and memory: {name}")
                time.sleep(1.0)
                for process in stage.running.values():
                    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins anew
                sampler.take()
                with tempfile.TemporaryDirectory(dir=stage.mountpoint) as inner:
                    workload(Path(inner), scale)
                lags = sampler.take() or [0.0]
                memory = {who: targets.peak_memory_bytes(one.pid) for who, one in stage.running.items()}
                found.append(
                    Behind(
                        workload=name,
                        samples=len(lags),
                        p50_ms=quantile(lags, 0.5),
                        p99_ms=quantile(lags, 0.99),
                        most_ms=lags[-1],
                        peak_memory_bytes=memory,
                    )
                )
        finally:
            sampler.end()
    return found


@contextmanager
def relayed(place: Path) -> Iterator[tuple[Stage, Line]]:
    """Three sites, with a line between the mount and the sync site."""
    with targets.trisite_sites(place) as stage:
        there = load(stage.config).site("sync")
        with line_to(there.host, there.port) as line:
            text = stage.config.read_text(encoding="utf-8")
            assert text.count(str(there.port)) == 1
            direct, stage.config = stage.config, stage.config.with_name("relayed.toml")
            stage.config.write_text(text.replace(str(there.port), str(line.port)), encoding="utf-8")
            try:
                stage.mount("primary")
                yield stage, line
                stage.unmount()
            finally:
                stage.config = direct


def measure_delay(place: Path, scale: Scale) -> list[Delayed]:
    """A long write and fsyncs at every round trip time."""
    found = []
    with relayed(place) as (stage, line):
        for set_ms in ROUND_TRIPS_MS:
            render.note(f"delay: {set_ms:g} ms to the sync site and back")
            line.set_round_trip(set_ms)
            rates = [_stream(stage.mountpoint / "stream", scale) for _ in range(3)]
            fsync_ms = _overwrites(stage.mountpoint / "stream", scale)
            found.append(
                Delayed(
                    set_ms=set_ms,
                    round_trip_ms=round_trip_ms(set_ms),
                    stream_mb_per_second=statistics.median(rates),
                    fsync_p50_ms=quantile(fsync_ms, 0.5),
                )
            )
    return found


def _stream(path: Path, scale: Scale) -> float:
    """A new file written from end to end with one fsync, in MB/s."""
    data = memoryview(random.Random(SEED).randbytes(MIB))
    path.unlink(missing_ok=True)
    began = now()
    with path.open("wb", buffering=0) as file:
        for _ in range(scale.stream_bytes // MIB):
            file.write(data)
        os.fsync(file.fileno())
    return scale.stream_bytes / 1e6 / (now() - began)


def _overwrites(path: Path, scale: Scale) -> list[float]:
    """4 KiB written anywhere, with fsync: the time of each in ms, ascending."""
    chance, took = random.Random(SEED), []
    descriptor = os.open(path, os.O_RDWR)
    try:
        end = now() + scale.seconds
        while now() < end:
            began = now()
            os.pwrite(descriptor, bytes(BLOCK), chance.randrange(scale.stream_bytes // BLOCK) * BLOCK)
            os.fsync(descriptor)
            took.append((now() - began) * 1e3)
    finally:
        os.close(descriptor)
    return sorted(took)


def measure_queue(place: Path) -> list[Queued]:
    """Appends to, and reads from, queues of different lengths."""
    found = []
    for entries in QUEUE_ENTRIES:
        render.note(f"queue: {entries:,} entries")
        queue = EntryQueue.open(place / f"queue-{entries}", UUID(int=1), limit_bytes=1 << 40)
        try:
            for first in range(1, entries + 1, 1000):
                many = range(first, min(first + 1000, entries + 1))
                queue.append_batch([discard_entry(one, one, one % 1000 * BLOCK, BLOCK) for one in many])
            appends = []
            data = bytes(BLOCK)
            for sequence in range(entries + 1, entries + 1 + APPENDS):
                entry = Entry(sequence, sequence, 0, BLOCK, WRITE, checksum_of(data), data)
                began = now()
                queue.append_batch([entry])
                appends.append((now() - began) * 1e6)
            reads = []
            for _ in range(APPENDS):
                began = now()
                queue.read(1, limit_entries=1)
                reads.append((now() - began) * 1e6)
        finally:
            queue.close()
        found.append(
            Queued(entries=entries, append_us=statistics.median(appends), read_us=statistics.median(reads))
        )
    return found


@app.default
def sites(
    *,
    quick: Annotated[bool, Parameter(negative="", help="Smaller amounts.")] = False,
    output: Annotated[Path, Parameter(help="Where sites.json goes.")] = Path("build") / "bench",
    directory: Annotated[Path | None, Parameter(name="--dir", help="Where to measure.")] = None,
) -> int:
    """Measure, print three tables, write sites.json."""
    check_fuse()
    scale = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="trisite-sites-", dir=directory) as temporary:
        place = Path(temporary)
        queued = measure_queue(place)
        behind = measure_lag(place / "lag", scale)
        delayed = measure_delay(place / "delay", scale)
    out = render.Output()
    processes = sorted(behind[0].peak_memory_bytes)
    out.table(
        "lag of the far site (ms), peak memory (MiB)",
        ("workload", ">samples", ">p50", ">p99", ">most", *(f">{one}" for one in processes)),
        [
            (
                one.workload,
                str(one.samples),
                *map(number, (one.p50_ms, one.p99_ms, one.most_ms)),
                *(str(one.peak_memory_bytes[process] >> 20) for process in processes),
            )
            for one in behind
        ],
    )
    out.table(
        "delay to the sync site",
        (">set to ms", ">line takes ms", ">long write MB/s", ">of no delay", ">fsync p50 ms", ">goal ms"),
        [
            (
                f"{one.set_ms:g}",
                number(one.round_trip_ms),
                number(one.stream_mb_per_second),
                f"{one.stream_mb_per_second / delayed[0].stream_mb_per_second:.2f}",
                number(one.fsync_p50_ms),
                number(one.round_trip_ms + 1.5 * delayed[0].fsync_p50_ms),
            )
            for one in delayed
        ],
    )
    out.table(
        "length of the queue",
        (">entries", ">append us", ">read us"),
        [(f"{one.entries:,}", number(one.append_us), number(one.read_us)) for one in queued],
    )
    output.mkdir(parents=True, exist_ok=True)
    whole = {"lag": behind, "delay": delayed, "queue": queued}
    path = output / "sites.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")
    out.say(f"written: {path}")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run(app))
