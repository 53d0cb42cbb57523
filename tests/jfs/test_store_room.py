"""The store where room is short: a full volume, a full log, volumes very small and very large."""

import random
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from jfs.coverage import CoveragePolicy
from jfs.errors import FileSystemError, NoSpace
from jfs.layout import BLOCK_BYTES, EXTENT, INODE, encode_extent, make_key
from jfs.mkfs import make_file_system, segment_bytes_for
from jfs.replay import load_volume
from tests.devices import MemoryDevice
from tests.jfs.store_world import (
    EVERYTHING,
    QUICK,
    VOLUME,
    check_blocks,
    make_store,
    memory,
    reopened,
    write_files,
)


async def test_a_full_volume_can_still_be_emptied() -> None:
    store = await make_store(16 << 20)
    rng = random.Random(3)
    extents: list[tuple[int, int, int]] = []
    for ino in range(20, 1 << 30):
        if store.statistics().available_blocks < 3:
            break
        for start, count in store.allocate(ino, rng.choice((1, 1, 2, 3))):
            store.write_data(ino, 0, start, bytes(count * BLOCK_BYTES), new=True)
            store.put(make_key(ino, EXTENT, start), encode_extent(start, count))
            extents.append((ino, start, count))
        if ino % 200 == 0:
            await store.commit()
    with pytest.raises(NoSpace):
        store.allocate(20, 3)
    await store.commit()
    assert store.statistics().available_blocks < 3
    rng.shuffle(extents)
    for index, (ino, start, count) in enumerate(extents):
        store.delete(make_key(ino, EXTENT, start))
        store.free(ino, start, count)
        if index % 50 == 0:
            await rng.choice((store.commit, store.checkpoint))()
    await store.close()
    check_blocks(store)
    assert store.statistics().available_blocks > 3000
    assert store.allocate(20, 2500)


async def test_no_space_takes_nothing_and_a_commit_brings_freed_blocks_back() -> None:
    store = await make_store(16 << 20)
    left = store.statistics().available_blocks
    runs = store.allocate(20, left)
    await store.commit()
    for start, count in runs:
        store.free(20, start, count)
    with pytest.raises(NoSpace):
        store.allocate(20, 1)
    assert store.pinned_blocks == store.statistics().available_blocks == left
    await store.commit()
    assert sum(count for _, count in store.allocate(20, left)) == left


async def test_a_full_volume_takes_metadata_as_long_as_it_is_throttled() -> None:
    store = await make_store(16 << 20)
    while (left := store.statistics().available_blocks) > 20:
        store.allocate(20, min(left - 20, 64))
    rng = random.Random(1)
    refused = 0
    for turn in range(3000):
        key = make_key(rng.randrange(16, 40), 4, rng.randrange(100))
        if store.get(key) is None and store.statistics().available_blocks == 0:
            refused += 1  # what is left is for changing and removing items
        else:
            store.put(key, rng.randbytes(200))
        await store.throttle()
        if turn % 10 == 0:
            await store.commit()
    await store.close()
    assert store.volume.tree.height > 1
    assert refused > 100


async def test_a_far_site_that_is_away_never_stops_the_writer() -> None:
    """I4: with a small log, names are said again, then coarsened; and the log stays within its limit."""
    options = replace(QUICK, coverage_policy=CoveragePolicy(file_limit=200))
    store = await make_store(64 << 20, options, log_limit_bytes=512 << 10, segment_bytes=64 << 10)
    device = memory(store)
    device.far_lag = 1 << 40
    rng = random.Random(1)
    blocks = write_files(store, rng, 2000)
    for turn in range(3000):
        ino = rng.choice(list(blocks)) if turn % 10 == 0 else rng.randrange(20, 60)
        store.write_data(ino, 0, blocks[ino], rng.randbytes(BLOCK_BYTES), new=False)
        store.put(make_key(ino, INODE), b"inode %d" % turn)
        if turn % 3 == 0:
            await store.commit()
        assert store.volume.coverage.covers(ino, 0, 1)
    assert store.log_status().bytes <= store.log_status().capacity_bytes == 512 << 10
    assert store.log_status().files < 2000
    again, _ = load_volume(device)
    named = {
        block
        for region in again.coverage.regions.values()
        for run in region.runs
        for block in range(run[0], sum(run))
    }
    named |= {
        blocks[ino]
        for ino, covered in again.coverage.files.items()
        if ino in blocks and covered.ranges != set()
    }
    assert named >= set(blocks.values())
    device.far_lag = 0
    for _ in range(3):
        await store.checkpoint()
    assert store.log_status().files == 0


async def test_on_log_full_wait_waits_for_the_far_site(autojump_clock: MockClock) -> None:
    options = replace(QUICK, on_log_full="wait")
    store = await make_store(64 << 20, options, log_limit_bytes=256 << 10, segment_bytes=64 << 10)
    memory(store).far_lag = 1 << 40
    device = memory(store)
    files: list[int] = []

    async def write() -> None:
        for first in range(20, 14_000, 50):
            write_files(store, random.Random(1), 50, first)
            await store.throttle()
            await store.commit()
            files.append(first)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.sleep(3600)
        stopped_at = len(files)
        assert 10 < stopped_at < 279
        assert all(store.volume.coverage.covers(ino, 0, 1) for ino in range(20, files[-1]))
        device.far_lag = 0
    assert len(files) == 280


async def test_the_log_grows_and_shrinks() -> None:
    store = await make_store(256 << 20, segment_bytes=64 << 10, log_limit_bytes=4 << 20)
    for turn in range(1500):
        store.put(make_key(20 + turn, 3), bytes(1000))
        await store.commit()
    assert len(store.volume.writer().owned()) > 20
    again = await reopened(store)
    assert len(list(again.scan(*EVERYTHING))) == 1500
    check_blocks(again)
    for _ in range(8):
        store.put(make_key(20, 3), b"x")
        await store.checkpoint()
    await store.commit()
    assert len(store.volume.writer().owned()) <= 6
    check_blocks(await reopened(store))


async def test_too_much_is_held_up_by_throttle() -> None:
    options = replace(QUICK, pending_items=100, overlay_items=1000)
    store = await make_store(options=options)
    for ino in range(20, 5020):
        store.put(make_key(ino, 3), b"x")
        await store.throttle()
    assert len(store.volume.pending.items) <= 101
    assert len(store.volume.overlay) <= 2001


def test_segments_fit_the_volume() -> None:
    sizes = [1 << 20, 64 << 20, 256 << 20, 1 << 30, 64 << 30, 1 << 38, 16 << 40]
    found = [segment_bytes_for(size) >> 10 for size in sizes]
    assert found == [64, 64, 256, 1024, 1024, 4096, 4096]


async def test_a_volume_too_small_is_refused() -> None:
    with pytest.raises(FileSystemError, match="at least"):
        await make_file_system(MemoryDevice(1 << 20), volume_uuid=VOLUME, epoch=1, label="")


async def test_a_huge_volume_costs_a_handful_of_blocks() -> None:
    store = await make_store(16 << 40)
    assert len(memory(store).blocks) < 16
    assert store.allocate(20, 5)[0][1] == 5
