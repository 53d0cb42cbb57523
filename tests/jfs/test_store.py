"""The store: items in three layers, shared commits, errors of the device, a full volume, a full log."""

import random
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from jfs.checkpoint import Breather, Checkpoint
from jfs.errors import CorruptionError, DeviceError, FileSystemError
from jfs.layout import BLOCK_BYTES, EXTENT, INODE, LOG_INO, encode_extent, key_range, make_key
from jfs.replay import Replayer, load_volume, log_reader
from jfs.store import Store, StoreOptions
from jfs.tree import NewNode
from jfs.vouchers import BLOCKS_LIMIT
from tests.jfs.store_world import (
    EVERYTHING,
    QUICK,
    check_blocks,
    is_frozen,
    make_store,
    memory,
    reopened,
    write_files,
)


@pytest.mark.parametrize("story", range(6))
async def test_items_against_a_dictionary(seed: int, story: int) -> None:
    rng = random.Random(seed * 10 + story)
    store = await make_store()
    items: dict[bytes, bytes] = {}
    inodes = rng.choice((3, 300))
    for _ in range(1500):
        key = make_key(16 + rng.randrange(inodes), rng.choice((INODE, EXTENT + 1)), rng.randrange(1, 30))
        roll = rng.random()
        if roll < 0.5:
            items[key] = rng.randbytes(rng.randrange(300))
            store.put(key, items[key])
        elif roll < 0.8:
            store.delete(key)
            items.pop(key, None)
        elif roll < 0.97:
            assert store.get(key) == items.get(key)
            below = [other for other in items if other <= key and other[:9] == key[:9]]
            assert store.floor(key) == (None if not below else (max(below), items[max(below)]))
            first, last = key_range(key[7], rng.choice((INODE, EXTENT + 1)))
            assert list(store.scan(first, last)) == sorted(
                item for item in items.items() if first <= item[0] <= last
            )
        elif roll < 0.98:
            assert list(store.scan(*EVERYTHING)) == sorted(items.items())
        elif roll < 0.99:
            await store.checkpoint()
        else:
            await store.commit()
            store = await reopened(store)
        assert store.statistics().inodes == sum(key[8] == INODE for key in items)
    await store.close()
    check_blocks(store)


async def test_items_are_right_while_a_checkpoint_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs.checkpoint.SLICE_SECONDS", -1.0)
    rng = random.Random(5)
    store = await make_store()
    items = {make_key(ino, 3, 1): b"%200d" % ino for ino in range(16, 3016)}
    for key, value in items.items():
        store.put(key, value)
    await store.checkpoint()
    for key in items:
        store.put(key, items[key])
    looked = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.checkpoint)
        while not is_frozen(store):
            await trio.lowlevel.checkpoint()
        while is_frozen(store):
            key = make_key(rng.randrange(16, 3100), 3, 1)
            if rng.random() < 0.5:
                items[key] = b"new"
                store.put(key, b"new")
            else:
                items.pop(key, None)
                store.delete(key)
            looked += 1
            assert list(store.scan(*EVERYTHING)) == sorted(items.items())
            await trio.lowlevel.checkpoint()
    assert looked > 20
    await store.checkpoint()
    await store.commit()
    assert list(store.scan(*EVERYTHING)) == sorted(items.items())
    check_blocks(store)


async def test_changing_while_scanning_neither_hangs_nor_skips() -> None:
    store = await make_store()
    for ino in range(16, 2016):
        store.put(make_key(ino, 3), b"x")
    seen = []
    for key, _ in store.scan(*EVERYTHING):
        seen.append(key)
        store.delete(key)
        store.put(make_key(1 << 40, 3, len(seen)), b"behind")
        if len(seen) == 1000:
            await store.checkpoint()
        if len(seen) > 3000:
            break
    assert seen[:2000] == [make_key(ino, 3) for ino in range(16, 2016)]


async def test_concurrent_commits_share_their_flushes() -> None:
    store = await make_store()

    async def put_and_commit(ino: int) -> None:
        store.put(make_key(ino, INODE), b"x")
        await store.commit()

    before = memory(store).flushes
    async with trio.open_nursery() as nursery:
        for ino in range(16, 116):
            nursery.start_soon(put_and_commit, ino)
    assert memory(store).flushes - before <= 2
    again = await reopened(store)
    assert len(list(again.scan(*EVERYTHING))) == 100


async def test_what_a_commit_flushes() -> None:
    store = await make_store()
    device = memory(store)
    flushes, issued = device.flushes, device.issued_sequence
    await store.commit()
    assert (device.flushes, device.issued_sequence) == (flushes, issued)
    store.put(make_key(20, INODE), b"x")
    await store.commit()
    assert (device.flushes, device.issued_sequence) == (flushes + 1, issued + 1)
    start = store.allocate(20, 1)[0][0]
    store.write_data(20, 0, start, bytes(BLOCK_BYTES), new=True)
    store.put(make_key(20, EXTENT), encode_extent(start, 1))
    await store.commit()
    assert (device.flushes, device.issued_sequence) == (flushes + 2, issued + 3)
    store.write_data(20, 0, start, bytes(BLOCK_BYTES), new=False)
    await store.commit()
    assert (device.flushes, device.issued_sequence) == (flushes + 3, issued + 4)
    much = BLOCKS_LIMIT + 1
    start = store.allocate(20, much)[0][0]
    store.write_data(20, 0, start, bytes(much * BLOCK_BYTES), new=True)
    store.put(make_key(20, EXTENT), encode_extent(start, much))
    await store.commit()
    assert (device.flushes, device.issued_sequence) == (flushes + 5, issued + 6), "too much to vouch for"


async def test_hooks_run_when_the_batch_is_taken() -> None:
    store = await make_store()
    store.before_commit.append(lambda: store.put(make_key(20, INODE), b"by the hook"))
    await store.commit()
    assert (await reopened(store)).get(make_key(20, INODE)) == b"by the hook"


async def test_a_cancelled_commit_does_not_strand_the_others() -> None:
    store = await make_store()
    store.put(make_key(20, INODE), b"x")
    await store._round_lock.acquire()
    done = []

    async def follower() -> None:
        await store.commit()
        done.append(True)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(follower)
            scope.cancel()
            await store.commit()
        nursery.start_soon(follower)
        await trio.testing.wait_all_tasks_blocked()
        store._round_lock.release()
    assert done == [True, True]


@pytest.mark.parametrize("story", range(40))
async def test_errors_of_the_device_lose_nothing(seed: int, story: int) -> None:
    rng = random.Random(seed * 1000 + story)
    store = await make_store(8 << 20, replace(QUICK, checkpoint_bytes=1 << 16))
    device = memory(store)
    items: dict[bytes, bytes] = {}
    failures = 0
    for _ in range(150):
        key = make_key(rng.randrange(16, 60), EXTENT, rng.randrange(4))
        old = items.get(key)
        try:
            start, count = store.allocate(16, 2, 0)[0]
            if count == 2:
                store.write_data(16, 0, start, bytes(2 * BLOCK_BYTES), new=True)
        except DeviceError:
            store.free(16, start, count)
        else:
            if old is not None:
                store.free(16, int.from_bytes(old[:8], "little"), 2)
            items[key] = encode_extent(start, count)
            store.put(key, items[key])
        if rng.random() < 0.2:
            device.failing_writes = rng.randrange(3)
            device.failing_flushes = rng.randrange(3)
            try:
                await rng.choice((store.commit, store.checkpoint))()
            except DeviceError:
                failures += 1
        assert dict(store.scan(*EVERYTHING)) == items
    device.failing_writes = device.failing_flushes = 0
    assert failures > 5
    await store.commit()
    for survivor in (store, await reopened(store)):
        await survivor.checkpoint()
        await survivor.commit()
        assert dict(survivor.scan(*EVERYTHING)) == items
        check_blocks(survivor)


async def test_replaying_twice_is_the_same_as_once() -> None:
    store = await make_store()
    blocks = write_files(store, random.Random(1), 300)
    await store.checkpoint()
    for ino in range(20, 200, 3):
        store.free(ino, blocks[ino], 1)
        store.delete(make_key(ino, EXTENT))
        store.delete(make_key(ino, INODE))
        await store.commit()
    for ino in range(20, 200, 7):
        store.put(make_key(ino, EXTENT, 9), encode_extent(*store.allocate(ino, 1, blocks[20])[0]))
        await store.commit()
    volume, end = load_volume(store.device)
    once = list(volume.scan(*EVERYTHING)), list(volume.free_map.used_runs()), volume.inodes
    free_blocks = volume.free_map.free_blocks
    assert Replayer(volume, log_reader(volume)).run() == end
    assert (list(volume.scan(*EVERYTHING)), list(volume.free_map.used_runs()), volume.inodes) == once
    assert volume.free_map.free_blocks == free_blocks


async def test_freeing_twice_is_refused() -> None:
    store = await make_store()
    start, count = store.allocate(20, 4)[0]
    await store.commit()
    store.free(20, start, count)
    await store.commit()
    with pytest.raises(CorruptionError):
        store.free(20, start, count)


async def test_the_background_task_commits_checkpoints_and_retires(autojump_clock: MockClock) -> None:
    store = await make_store(options=StoreOptions(linger_seconds=0, commit_seconds=5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        write_files(store, random.Random(1), 10)
        await trio.sleep(4)
        assert (await reopened(store)).get(make_key(20, INODE)) is None
        await trio.sleep(4)
        assert (await reopened(store)).get(make_key(20, INODE)) == b"inode"
        await trio.sleep(20)
        assert store.log_status().files == 0
        assert not store.volume.coverage.regions
        quiet = store.device.issued_sequence
        await trio.sleep(600)
        assert store.device.issued_sequence == quiet
        await store.close()


async def test_what_was_done_is_durable_a_second_later(autojump_clock: MockClock) -> None:
    """sync(2) reaches a FUSE file system only as WRITE requests: what they brought must not wait for long."""
    store = await make_store()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        for turn in range(30):
            await trio.sleep(0.37)
            store.put(make_key(20 + turn, INODE), b"x")
            await trio.sleep(1.01)
            assert (await reopened(store)).get(make_key(20 + turn, INODE)) == b"x"
        await store.close()


async def test_the_background_task_survives_errors_of_the_device(autojump_clock: MockClock) -> None:
    store = await make_store()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        await trio.sleep(1)
        memory(store).failing_flushes = 3
        store.put(make_key(20, INODE), b"x")
        await trio.sleep(60)
        assert (await reopened(store)).get(make_key(20, INODE)) == b"x"
        await store.close()


async def test_closed_cleanly_is_marked() -> None:
    store = await make_store()
    marks = [store.superblock.clean]
    store.put(make_key(20, INODE), b"x")
    await store.checkpoint()
    marks.append(store.superblock.clean)
    await store.close()
    assert marks == [True, False]
    again = await reopened(store)
    assert again.superblock.clean
    generation = again.superblock.generation
    await again.close()
    assert again.superblock.generation == generation


async def test_nothing_follows_the_superblock_of_a_closed_store() -> None:
    store = await make_store()
    store.put(make_key(20, INODE), b"x")
    await store.close()
    issued = store.device.issued_sequence
    store.free(LOG_INO, store.volume.writer().spares.pop(), store.volume.writer().segment_blocks)
    await store.commit()
    assert store.device.issued_sequence == issued


async def test_read_only_writes_nothing() -> None:
    store = await make_store()
    store.put(make_key(20, INODE), b"x")
    await store.commit()
    issued = store.device.issued_sequence
    reader = await Store.open(store.device, read_only=True)
    assert reader.get(make_key(20, INODE)) == b"x"
    await reader.commit()
    await reader.close()
    with pytest.raises(FileSystemError):
        reader.allocate(20, 1)
    with pytest.raises(FileSystemError):
        reader.write_data(20, 0, 500, bytes(BLOCK_BYTES), new=True)
    with pytest.raises(FileSystemError):
        await reader.checkpoint()
    reader.put(make_key(20, INODE), b"y")
    with pytest.raises(FileSystemError):
        await reader.commit()
    assert store.device.issued_sequence == issued


async def test_a_higher_epoch_is_written_down() -> None:
    store = await make_store()
    again = await Store.open(store.device, options=replace(QUICK, epoch=9))
    await again.close()
    assert (await reopened(again)).superblock.epoch == 9
    lower = await Store.open(store.device, options=replace(QUICK, epoch=2))
    await lower.close()
    assert lower.superblock.epoch == 9


async def test_a_value_too_long_is_refused() -> None:
    store = await make_store()
    with pytest.raises(ValueError, match="longer than"):
        store.put(make_key(20, 4), bytes(4001))


async def test_inode_numbers_are_not_used_again() -> None:
    store = await make_store()
    first = store.allocate_ino()
    store.put(make_key(first, INODE), b"x")
    store.delete(make_key(first, INODE))
    await store.commit()
    again = await reopened(store)
    second = again.allocate_ino()
    again.put(make_key(second, INODE), b"x")
    await again.checkpoint()
    third = await reopened(again)
    assert third.allocate_ino() == second + 1


async def test_a_checkpoint_holds_few_leaves_however_many_change(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    write = Checkpoint._write

    async def counting(
        checkpoint: Checkpoint, nodes: list[tuple[int, NewNode]], addresses: list[int], breather: Breather
    ) -> None:
        held.append(sum(level == 0 for level, _ in nodes))
        await write(checkpoint, nodes, addresses, breather)

    monkeypatch.setattr(Checkpoint, "_write", counting)
    store = await make_store(options=replace(QUICK, merge_leaves=4))
    items = {make_key(ino, INODE): b"%300d" % ino for ino in range(16, 4016)}
    for key, value in items.items():
        store.put(key, value)
    await store.checkpoint()
    assert store.volume.tree.height > 1
    for turn in range(3):
        for key in list(items)[turn::40]:  # in nearly every leaf
            items[key] = b"%350d" % turn
            store.put(key, items[key])
        for key in list(items)[turn * 900 :][:500]:
            del items[key]
            store.delete(key)
        await store.checkpoint()
    assert sum(held) > 200
    assert max(held) < 30
    assert dict(store.scan(*EVERYTHING)) == items
    store = await reopened(store)
    assert dict(store.scan(*EVERYTHING)) == items
    check_blocks(store)
