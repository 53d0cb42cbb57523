"""A log that fsck begins anew: what lists the log sees it whole, or all of it lies ahead in the stream."""

from dataclasses import replace

import pytest

from jfs import log
from jfs.errors import CorruptionError
from jfs.fsck import check, repair
from jfs.layout import BLOCK_BYTES, SUPERBLOCK_SLOTS, Superblock
from jfs.log import LogReader
from jfs.replay import load_volume, read_superblock
from tests.devices import CrashDevice, Written
from tests.jfs.fsck_world import build, read_all, set_superblock

JUNK = b"junk" * (BLOCK_BYTES // 4)


def names_segments(event: Written) -> set[int]:
    """The segments that a write records, if it is one of a superblock."""
    if event.offset // BLOCK_BYTES not in SUPERBLOCK_SLOTS or event.data is None:
        return set()
    try:
        return set(Superblock.decode(event.data, "superblock").segments)
    except CorruptionError:
        return set()


@pytest.mark.parametrize("part_bytes", [log.PART_BYTES, 600])
async def test_a_log_begun_anew_is_issued_with_what_records_it(
    part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy made by what the log names does not hold its segments until a superblock does. So all that is
    in them goes out directly before that superblock: such a copy, and what it gets from then on, is whole.
    """
    monkeypatch.setattr(log, "PART_BYTES", part_bytes)
    world = await build()
    checkpoint = read_superblock(world.device).checkpoint
    set_superblock(world, checkpoint=replace(checkpoint, lsn=checkpoint.lsn + 10))
    before = set(read_superblock(world.device).segments)
    device = CrashDevice(world.device.size_bytes, dict(world.device.blocks))
    await repair(device)
    writes = [event for event in device.history if isinstance(event, Written)]
    recorded = next(
        index
        for index, event in enumerate(writes)
        if names_segments(event) and names_segments(event) != before
    )
    new = names_segments(writes[recorded]) - before
    length = read_superblock(device).segment_blocks
    inside = {block for start in new for block in range(start, start + length)}
    issued: set[int] = set()
    for event in reversed(writes[:recorded]):
        first = event.offset // BLOCK_BYTES
        blocks = set(range(first, first + event.length // BLOCK_BYTES))
        if not blocks <= inside:
            break
        issued |= blocks
    assert issued == inside
    assert check(device) == []
    assert await read_all(device) == world.content


async def test_what_a_new_segment_held_is_not_taken_for_the_log() -> None:
    """Junk in the free blocks where the log begins anew is gone when it is recorded."""
    world = await build()
    free = [block for block in range(200, 6000) if block not in world.device.blocks]
    world.device.blocks |= dict.fromkeys(free, JUNK)
    checkpoint = read_superblock(world.device).checkpoint
    set_superblock(world, checkpoint=replace(checkpoint, lsn=checkpoint.lsn + 10))
    await repair(world.device)
    volume, end = load_volume(world.device)
    for start in end.owned:
        held = world.device.read(start * BLOCK_BYTES, volume.superblock.segment_blocks * BLOCK_BYTES)
        assert JUNK not in held
    superblock = volume.superblock
    reader = LogReader(world.device, superblock.uuid, superblock.tail, superblock.segment_blocks)
    assert list(reader)
