"""Batches that vouch for their data: what counts after a power cut, what is held, and until when."""

from contextlib import suppress

import pytest
import trio
import xxhash

from jfs import listing
from jfs.errors import NoSpace
from jfs.layout import BLOCK_BYTES
from jfs.replay import load_volume
from jfs.vouchers import BLOCKS_LIMIT, Voucher, Vouchers
from tests.devices import MemoryDevice
from tests.jfs.power_cut import (
    BLOCK,
    FILE,
    ROOT,
    content,
    cut,
    fresh,
    fresh_with_file,
    is_batch,
    mounted_again,
    unflushed_commit,
)

digest = xxhash.xxh3_64_intdigest


# --- the notes alone


def test_the_newest_data_of_a_block_is_vouched_for() -> None:
    vouchers = Vouchers()
    vouchers.note(20, 0, 100, BLOCK * 2, 1)
    vouchers.rewrote(101, b"y" * BLOCK_BYTES, 2)
    vouchers.rewrote(102, b"z" * BLOCK_BYTES, 3)
    taken = vouchers.take()
    assert taken is not None
    assert {block: bytes(new.data[:1]) for block, new in taken.items()} == {100: b"x", 101: b"y"}
    assert [one.block for one in vouchers.vouch(taken, 1)] == [101], "a flush has covered the other"
    assert vouchers.take() == {}


def test_as_much_as_the_file_shows_is_vouched_for() -> None:
    vouchers = Vouchers()
    vouchers.size_of = {20: BLOCK_BYTES + 10, 21: 0}.__getitem__
    vouchers.note(20, 0, 100, BLOCK * 3, 1)
    vouchers.note(21, 0, 200, BLOCK, 2)
    taken = vouchers.take()
    assert taken is not None
    assert [(one.block, one.size_bytes) for one in vouchers.vouch(taken, 0)] == [(100, 4096), (101, 10)]


def test_too_much_is_not_vouched_for() -> None:
    vouchers = Vouchers()
    vouchers.note(20, 0, 100, BLOCK * BLOCKS_LIMIT, 1)
    vouchers.note(20, BLOCKS_LIMIT, 500, BLOCK, 2)
    assert vouchers.take() is None
    vouchers.note(20, 0, 100, BLOCK, 3)
    assert len(vouchers.take() or {}) == 1, "the next batch begins anew"


def test_what_was_given_back_is_not_vouched_for() -> None:
    vouchers = Vouchers()
    vouchers.note(20, 0, 100, BLOCK * 2, 1)
    vouchers.take()
    vouchers.note(20, 1, 101, b"y" * BLOCK_BYTES, 2)
    vouchers.give_back()
    assert vouchers.take() is None
    assert vouchers.take() == {}


def test_what_is_held_and_until_when() -> None:
    vouchers = Vouchers()
    vouchers.hold([Voucher(100, 4096, digest(BLOCK)), Voucher(101, 50, digest(BLOCK[:50]))], 7)
    assert vouchers.held_among(99, 5) == [100, 101]
    assert vouchers.changed_by(99, b"y" * 3 * BLOCK_BYTES) == [100, 101]
    longer = (b"x" * 50).ljust(BLOCK_BYTES, b"y")
    assert vouchers.changed_by(100, BLOCK + longer) == [], "bytes behind those that count may change"
    vouchers.hold([Voucher(101, 20, digest(BLOCK[:20]))], 8)
    shorter = (b"x" * 49).ljust(BLOCK_BYTES, b"y")
    assert vouchers.changed_by(101, shorter) == [101], "still what the batch before vouches for"
    vouchers.release(8)
    assert vouchers.held_among(99, 5) == [101]
    vouchers.release(9)
    assert not vouchers.hold_any


# --- with a file system


async def test_data_and_batch_need_one_flush() -> None:
    device, fs = await fresh()
    node = fs.make(ROOT, b"f", FILE)
    places = set()
    for number in range(1, 40):
        flushes = device.flushes
        # The kernel writes the page again, from its beginning.
        page = (number - 1) * 200 // BLOCK_BYTES
        fs.write(node.ino, page * BLOCK_BYTES, b"a" * (number * 200 - page * BLOCK_BYTES))
        places.add(fs._runs(node, page, 1)[0].start)
        await fs.fsync(node.ino)
        assert device.flushes == flushes + 1
    assert len(places) == 2, "a file that grows stays where it is"
    assert await content(cut(device, lambda _: False), b"f") == b"a" * 39 * 200


@pytest.mark.parametrize(
    ("kept", "expected"), [("batch", b"old"), ("data", b"old"), ("both", b"old and new")]
)
async def test_a_batch_without_its_data_does_not_count(kept: str, expected: bytes) -> None:
    device, fs, node = await fresh_with_file(b"old")
    fs.write(node.ino, 3, b" and new")
    await unflushed_commit(fs, device)
    after = cut(device, lambda event: kept == "both" or is_batch(event) == (kept == "batch"))
    assert await content(after, b"f") == expected
    assert load_volume(after)[1].unproven_lsn is not None or kept != "batch"


async def test_what_follows_a_batch_that_vouches_is_not_durable_without_it() -> None:
    device, fs = await fresh()
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, b"a" * 100)
    await unflushed_commit(fs, device)
    fs.truncate(node.ino, 3000)  # shows more of the block than was vouched for
    fs.write(node.ino, 8192, b"b")
    await fs.store._issue_pending()
    expected = (b"a" * 100).ljust(8192, b"\0") + b"b"
    assert await content(cut(device, is_batch), b"f") == expected, "a barrier came before"


async def test_what_was_acknowledged_stays_when_it_is_written_again() -> None:
    """The block is moved: a power cut in the middle of the second write finds the first."""
    device, fs, node = await fresh_with_file(BLOCK * 3)
    fs.write(node.ino, 5000, b"y" * 10)
    assert await content(cut(device, lambda _: True), b"f") == BLOCK * 3, (
        "no batch leads to the new block yet"
    )
    await fs.commit()
    expected = bytearray(BLOCK * 3)
    expected[5000:5010] = b"y" * 10
    assert await content(cut(device, lambda _: False), b"f") == bytes(expected)
    start = fs._runs(node, 1, 1)[0].start
    fs.write(node.ino, 8192, b"z")
    assert fs._runs(node, 2, 1)[0].start != start
    assert node.blocks == 3


async def test_a_log_that_says_more_was_durable_once() -> None:
    """A batch that is known to have been durable counts whatever became of what it vouched for."""
    device, fs, node = await fresh_with_file()
    fs.make(ROOT, b"g", FILE)
    await fs.commit()
    start = fs._runs(node, 0, 1)[0].start
    fs.write(node.ino, 0, b"y" * BLOCK_BYTES)
    assert fs._runs(node, 0, 1)[0].start == start, "written in place again"
    assert await content(cut(device, lambda _: True), b"f") == b"y" * BLOCK_BYTES


async def test_a_mount_does_not_overwrite_what_the_end_of_the_log_vouches_for() -> None:
    device, _, node = await fresh_with_file()
    again, fs = await mounted_again(cut(device, lambda _: False))
    fs.write(node.ino, 0, b"y" * BLOCK_BYTES)
    assert await content(cut(again, lambda event: not is_batch(event)), b"f") == b"y" * BLOCK_BYTES


async def test_a_full_volume_can_be_overwritten() -> None:
    """Where nothing can be moved any more, `make_room` has the log say that what is held was durable."""
    _, fs = await fresh()
    node = fs.make(ROOT, b"f", FILE)
    offset = 0
    for piece in (b"x" * (1 << 20), BLOCK):
        with suppress(NoSpace):
            while True:
                fs.write(node.ino, offset, piece)
                offset += len(piece)
                await fs.commit()
    with pytest.raises(NoSpace):
        fs.write(node.ino, offset - BLOCK_BYTES, b"y" * BLOCK_BYTES)
    await fs.make_room()
    fs.write(node.ino, offset - BLOCK_BYTES, b"y" * BLOCK_BYTES)
    await fs.commit()
    assert bytes(fs.read(node.ino, offset - BLOCK_BYTES, 1 << 20)) == b"y" * BLOCK_BYTES


async def test_a_held_block_is_used_again_when_what_freed_it_is_durable() -> None:
    device, fs = await fresh()
    store = fs.store
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, BLOCK)
    await unflushed_commit(fs, device)
    held = fs._runs(node, 0, 1)[0].start
    fs.unlink(ROOT, b"f")
    await fs.settle()
    await store._issue_pending()
    assert store.volume.free_map.is_used(held)
    await store._flush()
    assert not store.volume.free_map.is_used(held)


async def test_a_listing_reads_again_where_the_end_of_the_log_was_overtaken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The area is live: what the log vouched for when it was read may have been written again since."""
    device, _, _ = await fresh_with_file()
    real, readings = load_volume, 0

    def load(reading: MemoryDevice) -> object:
        nonlocal readings
        readings += 1
        if readings == 1:
            with monkeypatch.context() as patch:
                patch.setattr(Voucher, "holds", lambda voucher, device: False)
                return real(reading)
        return real(reading)

    monkeypatch.setattr(listing, "load_volume", load)
    names = {one.path for one in listing.read_listing(device).files}
    assert readings == 2
    assert "/f" in names


async def test_many_writers_share_what_is_vouched_for() -> None:
    device, fs = await fresh()
    nodes = [fs.make(ROOT, b"%d" % number, FILE) for number in range(8)]
    flushes = device.flushes

    async def append(number: int) -> None:
        fs.write(nodes[number].ino, 0, b"%d" % number * 200)
        await fs.fsync(nodes[number].ino)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(append, number)
    assert device.flushes - flushes <= 2
    for number in range(8):
        assert await content(cut(device, lambda _: False), b"%d" % number) == b"%d" % number * 200
