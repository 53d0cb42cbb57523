"""A host whose disk is full under the queue: the application goes on, or is told; nothing is lost unsaid."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest
from trio.testing import wait_all_tasks_blocked

from jfs.errors import DeviceError
from tests.vsap.fakes import MemoryRemote
from vsap.area import FileArea
from vsap.entry import write_entry
from vsap.queue import EntryQueue
from vsap.virtual import VirtualArea

VOLUME = UUID(int=31)
SIZE = 4 << 20
DISK_BYTES = 12 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 12 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let a tmpfs be mounted")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def queue(small_disk: Path) -> Iterator[EntryQueue]:
    queue = EntryQueue.open(small_disk / "queue", VOLUME, segment_bytes=1 << 20)
    yield queue
    queue.close()


async def test_with_flushes_the_writer_never_notices(tmp_path: Path, queue: EntryQueue, seed: int) -> None:
    """60 MB through a disk of 12: the queue is dropped each time it fills up, and says so."""
    rng = random.Random(seed)
    area = FileArea.create(tmp_path / "area", SIZE)
    remote = MemoryRemote(SIZE)
    model = bytearray(SIZE)
    async with VirtualArea(area, queue, remote) as device:
        for number in range(1, 3001):
            place = rng.randrange(SIZE // 4096 - 4) * 4096
            data = rng.randbytes(4096) * 5
            device.write(place, data)
            model[place : place + len(data)] = data
            if number % 100 == 0:
                await device.flush()
    state = queue.state()
    assert state.drop_reason == "full"
    assert 0 < state.dropped_through <= state.common_flush_sequence
    assert state.oldest_sequence == queue.read(0)[0].sequence > 1, "a gap, and whole behind it"
    assert area.read(0, SIZE) == model == remote.content
    assert queue.read(state.next_sequence - 1)[0].intact()
    area.close()


async def test_without_a_flush_the_writer_is_told_and_a_flush_helps(
    tmp_path: Path, queue: EntryQueue, seed: int
) -> None:
    """What no flush has covered cannot be dropped (P3); the refused write has changed nothing."""
    rng = random.Random(seed)
    area = FileArea.create(tmp_path / "area", SIZE)
    remote = MemoryRemote(SIZE)
    model = bytearray(SIZE)
    told: list[str] = []
    async with VirtualArea(area, queue, remote) as device:
        for _ in range(40):
            place = rng.randrange(SIZE // 4096 - 128) * 4096
            data = rng.randbytes(4096) * 128
            issued = device.issued_sequence
            try:
                device.write(place, data)
            except DeviceError as error:
                told.append(error.sentence)
                assert device.issued_sequence == issued
                await device.flush()
                device.write(place, data)
            model[place : place + len(data)] = data
            await wait_all_tasks_blocked()
        assert told
        assert all("no room" in sentence and str(queue.directory) in sentence for sentence in told)
        await device.flush()
        device.record_progress()
        assert queue.state().common_flush_sequence == device.issued_sequence
    assert area.read(0, SIZE) == model == remote.content
    area.close()


def fill(path: Path) -> None:
    """Takes every block of the disk."""
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass


def test_a_disk_filled_by_others_leaves_room_for_the_drop(small_disk: Path, queue: EntryQueue) -> None:
    """Not a byte is free: the spare room still lets the drop be committed."""
    first = [write_entry(number, 1, 0, bytes(4096)) for number in range(1, 1001)]
    queue.append_batch(first)
    queue.set_common_flush(1000)
    fill(small_disk / "others")
    queue.append_batch([write_entry(number, 1, 0, bytes(65536)) for number in range(1001, 1020)])
    state = queue.state()
    assert (state.dropped_through, state.drop_reason, state.next_sequence) == (1000, "full", 1020)
    assert len(queue.read(0, limit_bytes=1 << 30)) == 19
