"""The queue shared by two processes, and the order of a push under SIGKILL."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jfs.errors import CorruptionError
from tests.vsap.worker import BLOCKS, VOLUME, payload
from vsap.area import FileArea
from vsap.condition import Condition
from vsap.queue import EntryQueue

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: object) -> "subprocess.Popen[str]":
    """A worker that has said that it is under way."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.vsap.worker", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def stop(worker: "subprocess.Popen[str]") -> None:
    worker.kill()
    worker.communicate()


def wait_for_entries(queue: EntryQueue, more_than: int) -> None:
    """Returns when the worker has appended beyond a sequence."""
    deadline = time.monotonic() + 60
    while queue.state().next_sequence <= more_than + 1:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_process_appends_and_another_reads_and_trims(tmp_path: Path) -> None:
    count = 20_000
    daemon = EntryQueue.open(tmp_path, VOLUME)
    worker = start("append", tmp_path, count)
    try:
        position, deadline = 0, time.monotonic() + 60
        while position < count:
            assert time.monotonic() < deadline
            entries = daemon.read(position + 1, limit_bytes=50_000)
            for entry in entries:
                position += 1
                assert (entry.sequence, entry.payload) == (position, payload(position))
            daemon.set_far_durable(1, position)
            daemon.set_common_flush(position)
            daemon.trim(limit_entries=500)
        assert worker.wait(30) == 0
    finally:
        stop(worker)
    daemon.trim()
    assert daemon.counts().entries == 0
    assert daemon.state().eligible_sequence == count
    assert daemon._segments.numbers() == []
    daemon.close()
    again = EntryQueue.open(tmp_path, VOLUME)
    assert again.trusted
    assert again.next_sequence == count + 1
    again.close()


def test_a_killed_appender_leaves_whole_batches_and_is_followed_by_another(tmp_path: Path) -> None:
    daemon = EntryQueue.open(tmp_path, VOLUME)
    for _ in range(3):
        worker = start("append", tmp_path, 10_000_000)
        wait_for_entries(daemon, daemon.state().next_sequence + 1000)
        stop(worker)
        newest = daemon.state().next_sequence - 1
        entries = daemon.read(0, limit_bytes=1 << 30, limit_entries=1 << 30)
        assert [entry.sequence for entry in entries] == list(range(entries[0].sequence, newest + 1))
        assert all(entry.payload == payload(entry.sequence) for entry in entries)
        daemon.set_common_flush(newest)
        daemon.set_far_durable(1, newest - 5)
        daemon.trim(limit_entries=1 << 30)
    daemon.close()


def test_a_process_that_dies_holds_nothing_up(tmp_path: Path) -> None:
    """Killed in the middle of whatever it did: its locks and its reader's slot are found free."""
    queue = EntryQueue.open(tmp_path, VOLUME)
    queue.close()
    for _ in range(3):
        worker = start("append", tmp_path, 10_000_000)
        queue = EntryQueue.open(tmp_path, VOLUME)
        wait_for_entries(queue, queue.state().next_sequence)
        stop(worker)
        queue.set_common_flush(queue.state().next_sequence - 1)
        queue.set_far_durable(1, queue.state().next_sequence - 1)
        assert queue.trim(limit_entries=1 << 30) > 0
        queue.close()


def unnamed_differences(directory: Path) -> list[int]:
    """Blocks in which A and C differ although no entry after the common flush names them."""
    with EntryQueueContext(directory / "queue") as queue:
        assert queue.trusted
        first = queue.state().common_flush_sequence + 1
        named = {
            place // 4096
            for entry in queue.read_index(first)
            for place in range(entry.offset, entry.end, 4096)
        }
    area, remote = FileArea(directory / "area"), FileArea(directory / "remote")
    differing = [
        block for block in range(BLOCKS) if area.read(block * 4096, 4096) != remote.read(block * 4096, 4096)
    ]
    area.close()
    remote.close()
    return [block for block in differing if block not in named]


class EntryQueueContext:
    """A queue for the length of a `with`."""

    def __init__(self, directory: Path) -> None:
        self.queue = EntryQueue.open(directory, VOLUME, area=directory.parent / "area")

    def __enter__(self) -> EntryQueue:
        return self.queue

    def __exit__(self, *error: object) -> None:
        self.queue.close()


def prepare(directory: Path) -> None:
    directory.mkdir()
    for name in ("area", "remote"):
        FileArea.create(directory / name, BLOCKS * 4096).close()


def killed_at_steps(directory: Path, rng: random.Random, runs: int, *mutant: str) -> list[list[int]]:
    """What is unnamed after each of `runs` processes that killed themselves at a random step."""
    found = []
    for run in range(runs):
        place = directory / f"{mutant}{run}"
        prepare(place)
        worker = start("write", place, rng.randrange(1 << 30), rng.randrange(1, 400), *mutant)
        assert worker.wait(60) == -signal.SIGKILL
        stop(worker)
        found.append(unnamed_differences(place))
        check_payloads(place)
    return found


def check_payloads(directory: Path) -> None:
    """Every entry that is in the queue can be read, also where it points into the area."""
    with EntryQueueContext(directory / "queue") as queue:
        held = queue.read(0, limit_bytes=1 << 30, limit_entries=1 << 30)
        assert len(held) == queue.next_sequence - queue.state().oldest_sequence


def test_after_a_kill_the_queue_names_every_difference(tmp_path: Path, seed: int) -> None:
    """P2, killed at every kind of step: what A and C differ in is in entries after the common flush."""
    assert killed_at_steps(tmp_path, random.Random(seed), 10) == [[]] * 10


def test_the_mutant_that_writes_the_area_first_is_found(tmp_path: Path, seed: int) -> None:
    """The test above can fail: with the order of P2 turned round, it does."""
    try:
        found = any(killed_at_steps(tmp_path, random.Random(seed), 10, "area-first"))
    except CorruptionError:
        found = True  # what an entry pointed to was written over before it was saved
    assert found


def test_killed_at_any_moment_and_continued(tmp_path: Path, seed: int) -> None:
    """The same site is killed again and again from outside, at moments nobody chose."""
    rng = random.Random(seed)
    directory = tmp_path / "site"
    prepare(directory)
    for _ in range(5):
        worker = start("write", directory, rng.randrange(1 << 30), 0)
        time.sleep(rng.random() * 0.2)
        stop(worker)
        assert unnamed_differences(directory) == []
        check_payloads(directory)
        recover(directory)


def test_a_reader_beside_writers_that_are_killed(tmp_path: Path, seed: int) -> None:
    """The daemon reads and trims, one mount process after the other is killed and recovers by itself: what
    is in the queue can be read at any moment, wherever its payload is just then.
    """
    rng = random.Random(seed)
    prepare(tmp_path / "site")
    pointed = 0
    with EntryQueueContext(tmp_path / "site" / "queue") as queue:
        for _ in range(6):
            worker = start("write", tmp_path / "site", rng.randrange(1 << 30), rng.randrange(200, 4000))
            while worker.poll() is None:
                state = queue.state()
                pointed += len(list(queue._reader.pointed()))
                queue.read(rng.randint(state.oldest_sequence, state.next_sequence), 1 << 18)
                queue.read_these(sorted(rng.sample(range(state.oldest_sequence, state.next_sequence + 9), 9)))
                if rng.random() < 0.1:
                    queue.set_far_durable(1, rng.randint(state.oldest_sequence, state.next_sequence))
                    queue.trim()
            assert worker.returncode == -signal.SIGKILL
            stop(worker)
            held = queue.read(0, limit_bytes=1 << 30, limit_entries=1 << 30)
            assert len(held) == queue.state().next_sequence - queue.state().oldest_sequence
    assert pointed
    assert unnamed_differences(tmp_path / "site") == []


def recover(directory: Path) -> None:
    """What recovery does for A and C: every entry after the common flush, again, in order (P3)."""
    area, remote = FileArea(directory / "area"), FileArea(directory / "remote")
    with EntryQueueContext(directory / "queue") as queue:
        first = queue.state().common_flush_sequence + 1
        for entry in queue.read(first, limit_bytes=1 << 30, limit_entries=1 << 30):
            for side in (area, remote):
                if entry.payload:
                    side.write(entry.offset, entry.payload)
                else:
                    side.discard(entry.offset, entry.length)
        queue.set_common_flush(queue.next_sequence - 1)
    assert area.read(0, BLOCKS * 4096) == remote.read(0, BLOCKS * 4096)
    area.close()
    remote.close()


@pytest.mark.parametrize("first", ["daemon", "mount"])
def test_the_last_to_close_marks_the_queue_clean(tmp_path: Path, first: str) -> None:
    """Whoever stays behind: after a clean end of both, even another boot finds the queue trusted."""
    queue = EntryQueue.open(tmp_path, VOLUME)
    worker = start("append", tmp_path, 50 if first == "mount" else 300_000)
    if first == "mount":
        assert worker.wait(30) == 0
        queue.close()
    else:
        queue.close()
        assert worker.wait(60) == 0
    stop(worker)
    record = EntryQueueContext(tmp_path)
    assert record.queue.trusted
    record.queue.close()
    condition = Condition.open(tmp_path, VOLUME)
    newest = condition._newest()
    assert newest is not None
    assert newest.clean
    condition.abandon()
