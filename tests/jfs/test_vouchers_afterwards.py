"""Batches that vouch for their data: what comes after a power cut, an error, or a copy, on top of them."""

import pytest
import trio

from jfs import log
from jfs.device import BLOCK_BYTES
from jfs.errors import DeviceError
from jfs.listing import read_listing
from tests.devices import SECTOR_BYTES, CrashDevice, MemoryDevice, Written
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
from tests.jfs.world import found

OTHER = b"y" * BLOCK_BYTES


def written_by(device: CrashDevice) -> list[Written]:
    return [event for event in device.history if isinstance(event, Written)]


def play(events: list[Written], device: MemoryDevice) -> None:
    """Make the same writes on another device."""
    for event in events:
        if event.data is None:
            device.discard(event.offset, event.length)
        else:
            device.write(event.offset, event.data)


async def test_a_batch_that_was_not_issued_leaves_no_word_of_data_written_over_since() -> None:
    device, fs = await fresh()
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, BLOCK)
    period = fs._period
    device.failing_flushes = 1

    async def checkpoint_that_fails() -> None:
        with pytest.raises(DeviceError):
            await fs.store.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(checkpoint_that_fails)
        while fs._period == period:
            await trio.lowlevel.checkpoint()
        fs.write(node.ino, 0, OTHER)  # while the checkpoint waits for its barrier
    await fs.commit()
    assert await content(cut(device, lambda _: False), b"f") == OTHER


@pytest.mark.parametrize("part_bytes", [128 << 10, 256])
async def test_a_batch_that_does_not_count_confirms_nothing_for_good(
    part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone says that an acknowledged one was durable, and will be overwritten."""
    device, fs, _ = await fresh_with_file()
    monkeypatch.setattr(log, "PART_BYTES", part_bytes)
    before = len(written_by(device))
    for number in range(8):
        fs.write(fs.make(ROOT, b"lost %d" % number, FILE).ino, 0, b"z")
    await unflushed_commit(fs, device)
    (first, *rest) = [event for event in written_by(device)[before:] if is_batch(event)]
    assert bool(rest) == (part_bytes == 256)
    again, fs = await mounted_again(cut(device, lambda event: event is first))
    monkeypatch.undo()
    fs.write(found(fs, b"f").ino, 0, OTHER)
    for number in range(8):
        fs.make(ROOT, b"also lost %d" % number, FILE)
    await unflushed_commit(fs, again)
    after = cut(again, lambda event: not is_batch(event))
    for event in written_by(again):
        if is_batch(event) and event.data is not None and len(event.data.rstrip(b"\0")) > SECTOR_BYTES:
            whole = after.read(event.offset, BLOCK_BYTES)
            after.write(event.offset, event.data[:SECTOR_BYTES] + whole[SECTOR_BYTES:])
    assert await content(after, b"f") == OTHER


async def test_a_batch_that_did_not_count_never_does() -> None:
    """The sync site has its data: after a take-over it would take back what was acknowledged since."""
    device, fs, node = await fresh_with_file()
    fs.make(ROOT, b"g", FILE)
    await fs.commit()
    fs.unlink(ROOT, b"f")
    fs.write(found(fs, b"g").ino, 0, BLOCK)
    await unflushed_commit(fs, device)
    sync_site = cut(device, lambda _: True)
    again, fs = await mounted_again(cut(device, is_batch))
    node = found(fs, b"f")
    await fs.commit()
    fs.write(node.ino, 0, OTHER)
    await fs.fsync(node.ino, datasync=True)
    play(written_by(again), sync_site)
    assert await content(sync_site, b"f") == OTHER


async def test_what_stands_behind_the_end_of_a_file_is_never_shown() -> None:
    """A power cut may leave older content there, which an overwrite clears: in a cache, so far."""
    device, fs = await fresh()
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, b"a" * 100)
    place = fs._runs(node, 0, 1)[0].start * BLOCK_BYTES
    await unflushed_commit(fs, device)
    torn = cut(device, lambda _: True)
    torn.write(place, torn.read(place, BLOCK_BYTES)[:SECTOR_BYTES].ljust(BLOCK_BYTES, b"#"))
    again, fs = await mounted_again(torn)
    node = found(fs, b"f")
    fs.write(node.ino, 0, b"b" * 50)
    fs.truncate(node.ino, 3000)
    await fs.store._issue_pending()
    assert b"#" not in (await content(cut(again, is_batch), b"f") or b"")
    assert await content(cut(again, lambda _: True), b"f") == (b"b" * 50 + b"a" * 50).ljust(3000, b"\0")


@pytest.mark.parametrize("flush_between", [False, True])
async def test_what_frees_a_block_says_that_the_batch_that_vouches_for_it_was_durable(
    flush_between: bool,
) -> None:
    """A free block is nobody's, and may differ at another site."""
    device, fs = await fresh()
    node = fs.make(ROOT, b"f", FILE)
    fs.write(node.ino, 0, BLOCK)
    held = fs._runs(node, 0, 1)[0].start
    if flush_between:  # one that does not cover the batch
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.store._flush)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            assert fs.store._flushed_sequence < device.issued_sequence
            await fs.store._issue_pending()
    else:
        await unflushed_commit(fs, device)
    fs.unlink(ROOT, b"f")
    await fs.settle()
    fs.make(ROOT, b"g", FILE)
    await fs.commit()
    after = cut(device, lambda _: False)
    after.discard(held * BLOCK_BYTES, BLOCK_BYTES)
    assert await content(after, b"g") == b""


async def test_a_site_made_equal_finds_the_same_end_of_the_log() -> None:
    """The far site has the data of a batch that does not count here, where a power cut took it."""
    device, fs = await fresh()
    fs.write(fs.make(ROOT, b"f", FILE).ino, 0, BLOCK)
    await unflushed_commit(fs, device)
    far_site = cut(device, lambda event: not is_batch(event))
    here = cut(device, is_batch)
    for start, count in read_listing(here).block_runs:
        far_site.write(start * BLOCK_BYTES, here.read(start * BLOCK_BYTES, count * BLOCK_BYTES))
    assert await content(far_site, b"f") == await content(here, b"f")
