"""The log: records and batches come back, the chain holds, segments are entered, grown and recycled."""

import random
from collections.abc import Callable
from uuid import UUID

import pytest

from jfs.batch import (
    FILE_RECORD,
    JUMP_BATCH,
    REGION_RECORD,
    RETIRED_FILES,
    RETIRED_REGIONS,
    LogRecord,
    decode_batch,
    decode_records,
    encode_batch,
    encode_file,
    encode_item,
    encode_numbers,
    encode_region,
)
from jfs.errors import CorruptionError, DeviceError
from jfs.layout import LogPlace, make_key
from jfs.log import LogFull, LogReader, LogWriter, Segment
from tests.devices import MemoryDevice

VOLUME = UUID("10600000-0000-4000-8000-000000000001")
SEGMENT_BLOCKS = 16


def writer(
    device: MemoryDevice,
    spares: list[int],
    limit: int = 8,
    grow: Callable[[], int | None] = lambda: None,
    urgently: Callable[[], int | None] = lambda: None,
) -> LogWriter:
    tail = LogPlace(1, 16, 0)
    return LogWriter(
        device,
        VOLUME,
        segment_blocks=SEGMENT_BLOCKS,
        segment_limit=limit,
        segments=[Segment(16, 0, tail)],
        spares=spares,
        place=tail,
        incarnation=7,
        grow=grow,
        grow_urgently=urgently,
    )


def reader(device: MemoryDevice, tail: LogPlace | None = None) -> LogReader:
    return LogReader(device, VOLUME, tail or LogPlace(1, 16, 0), SEGMENT_BLOCKS)


def reader_at(device: MemoryDevice, place: LogPlace) -> LogReader:
    """From a place in the middle of the first segment."""
    found = reader(device, place)
    found.segments[0].start = 16
    return found


def test_records_come_back() -> None:
    items: list[tuple[bytes, bytes | None]] = [
        (make_key(20, 1, index), None if index % 3 == 0 else bytes([index % 256]) * (index * 7 % 4000))
        for index in range(400)
    ]
    record = LogRecord(
        FILE_RECORD, 20, whole=False, restated=True, ranges=(1, 5, 1 << 31),
        allocations=[(index * 10, 3) for index in range(1200)], frees=[(1 << 40, 9)],
    )  # fmt: skip
    chunks = encode_file(record, [encode_item(key, value) for key, value in items])
    chunks += encode_region(77, [(5, 6), (8, 9)], restated=True)
    chunks += encode_numbers(RETIRED_FILES, [3, 1 << 60]) + encode_numbers(RETIRED_REGIONS, [77])
    found = list(decode_records(b"".join(chunks), 1, with_items=True))
    files = [one for one in found if one.kind == FILE_RECORD]
    assert [item for one in files for item in one.items] == items
    assert [run for one in files for run in one.allocations] == record.allocations
    assert [run for one in files for run in one.frees] == record.frees
    assert [one.ranges for one in files if one.ranges] == [(1, 5, 1 << 31)]
    assert [one.restated for one in files].count(True) == 1
    region = next(one for one in found if one.kind == REGION_RECORD)
    assert (region.ino, region.allocations, region.restated) == (77, [(5, 6), (8, 9)], True)
    assert [tuple(one.numbers) for one in found if one.numbers] == [(3, 1 << 60), (77,)]
    bare = [item for one in decode_records(b"".join(chunks), 1, with_items=False) for item in one.items]
    assert bare == []


def test_a_body_that_does_not_hold_together_is_refused() -> None:
    body = b"".join(encode_file(LogRecord(FILE_RECORD, 20), [encode_item(make_key(20, 1), b"value")]))
    rng = random.Random(3)
    refused = 0
    for _ in range(500):
        broken = bytearray(body[: rng.randint(1, len(body))])
        broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            list(decode_records(bytes(broken), 9, with_items=True))
        except CorruptionError:
            refused += 1
    assert refused > 300


def test_every_flipped_bit_ends_the_log() -> None:
    blocks, checksum = encode_batch(VOLUME, 1, 5, 6, 4, 1, 0, b"body" * 50)
    batch = decode_batch(memoryview(blocks), VOLUME, 9)
    assert batch is not None
    assert (batch.lsn, batch.chain, batch.checksum, batch.body) == (5, 6, checksum, b"body" * 50)
    for at in range(64 + 200):
        broken = bytearray(blocks)
        broken[at] ^= 1
        assert decode_batch(memoryview(broken), VOLUME, 9) is None
    assert decode_batch(memoryview(blocks), UUID(int=5), 9) is None
    assert decode_batch(memoryview(blocks)[:100], VOLUME, 9) is None


def test_batches_follow_each_other_through_segments() -> None:
    device = MemoryDevice(1 << 20)
    log = writer(device, [64, 32, 96])
    bodies = [bytes([index]) * 9000 for index in range(12)]
    for body in bodies:
        log.append([body])
    found = reader(device)
    batches = list(found)
    assert [batch.body for batch in batches if batch.kind != JUMP_BATCH] == bodies
    assert [segment.start for segment in found.segments] == [16, 64, 32]
    assert found.place == log.place
    assert [batch.lsn for batch in batches] == list(range(1, len(batches) + 1))
    middle = found.segments[1]
    assert [batch.lsn for batch in reader(device, middle.place)] == list(
        range(middle.place.lsn, log.place.lsn)
    )


@pytest.mark.parametrize("copy", [0, 1])
def test_either_copy_of_a_jump_will_do(copy: int) -> None:
    """The segment behind it is known from the jump alone: a damaged one must not look like the log's end."""
    device = MemoryDevice(1 << 20)
    log = writer(device, [64, 32, 96])
    for index in range(12):
        log.append([bytes([index]) * 9000])
    whole = list(reader(device))
    for jump in [batch for batch in whole if batch.kind == JUMP_BATCH]:
        assert device.blocks[jump.block] == device.blocks[jump.block + 1]
        damaged = MemoryDevice(device.size_bytes, dict(device.blocks))
        damaged.blocks[jump.block + copy] = bytes([1]) * 4096
        assert list(reader(damaged)) == whole


def test_damage_before_a_jump_to_a_segment_that_nothing_else_knows() -> None:
    """What proves that the damaged batch was durable stands where only the jump behind it leads."""
    device = MemoryDevice(1 << 20)
    log = writer(device, [64, 32])
    for _ in range(7):
        log.append([bytes(8000)])
    last = max(device.blocks)
    log.append([b"in the second segment"])
    log.durable_lsn = log.place.lsn
    log.append([b"says so"])
    device.blocks[last] = bytes([1]) * 4096
    found = reader(device)
    found.owned = [16]
    with pytest.raises(CorruptionError, match="was durable once"):
        list(found)


def test_a_segment_that_is_full_but_for_one_block_has_one_jump() -> None:
    """As an earlier version left it: nothing is written over what follows the segment."""
    device = MemoryDevice(1 << 20)
    log = writer(device, [64, 32])
    log.append([bytes(10)])
    last = 16 + SEGMENT_BLOCKS - 1
    log.place = log.segments[0].place = LogPlace(log.place.lsn, last, log.place.chain)
    log.append([b"next"])
    assert last in device.blocks
    assert last + 1 not in device.blocks
    assert [batch.kind for batch in reader_at(device, log.segments[0].place)] == [JUMP_BATCH, 1]


def test_a_change_longer_than_a_batch_is_cut_and_marked() -> None:
    device = MemoryDevice(1 << 20)
    log = writer(device, [32, 48, 64, 80])
    chunks = [bytes([index]) * 5000 for index in range(25)]
    log.append(chunks)
    batches = [batch for batch in reader(device) if batch.kind != JUMP_BATCH]
    assert b"".join(batch.body for batch in batches) == b"".join(chunks)
    assert [batch.more for batch in batches] == [True] * (len(batches) - 1) + [False]


def test_a_full_log_is_left_as_it_was() -> None:
    device = MemoryDevice(1 << 20)
    log = writer(device, [32])
    log.append([b"first"])
    before = (log.place, [segment.start for segment in log.segments], list(log.spares))
    with pytest.raises(LogFull):
        log.append([bytes(30_000)] * 6)
    assert (log.place, [segment.start for segment in log.segments], log.spares) == before
    log.append([b"second"])
    assert [batch.body for batch in reader(device)] == [b"first", b"second"]


def test_the_last_spare_segment_is_for_checkpoints() -> None:
    device = MemoryDevice(1 << 20)
    log = writer(device, [32, 48])
    for _ in range(14):
        log.append([bytes(8000)])
    with pytest.raises(LogFull):
        log.append([bytes(8000)])
    assert log.spares == [48]
    log.append([bytes(30_000)], urgent=True)
    assert [segment.start for segment in log.segments] == [16, 32, 48]


def test_only_checkpoints_make_the_log_grow_beyond_its_limit() -> None:
    device = MemoryDevice(1 << 20)
    log = writer(device, [], limit=2, urgently=iter((80, 96)).__next__)
    with pytest.raises(LogFull):
        log.append([bytes(30_000)] * 2)
    for _ in range(3):
        log.append([bytes(30_000)], urgent=True)
    assert [segment.start for segment in log.segments] == [16, 80, 96]


def test_what_has_room_says_is_so() -> None:
    chance = random.Random(5)
    for _ in range(200):
        device = MemoryDevice(1 << 20)
        log = writer(device, [32, 48, 64])
        while log.has_room(needed := chance.choice((1, 4096, 20_000, 40_000))):
            log.append([bytes(needed)])
        log.append([bytes(20_000)], urgent=True)


def test_a_failed_write_is_left_out() -> None:
    device = MemoryDevice(1 << 20)
    log = writer(device, [32, 48, 64])
    log.append([b"first"])
    for _ in range(8):
        log.append([bytes(5000)])
        device.failing_writes = 1
        with pytest.raises(DeviceError):
            log.append([bytes(30_000), bytes(30_000)])
    log.append([b"last"])
    assert [batch.body for batch in reader(device)][-1] == b"last"


def test_a_new_segment_is_discarded_with_the_jump_that_stays() -> None:
    """A jump that is taken back records nothing: what was in the segment must go again before the next."""
    device = MemoryDevice(1 << 20)
    junk = dict.fromkeys(range(100, 100 + SEGMENT_BLOCKS), b"j" * 4096)
    device.blocks.update(junk)
    log = writer(device, [], limit=2, grow=iter([100]).__next__)
    log.append([bytes(50_000)])
    assert log.has_room(1_000)
    assert log.spares == [100]
    assert device.blocks[110] == junk[110], "as long as nothing records it, a segment is left alone"
    with pytest.raises(LogFull):
        log.append([bytes(30_000)] * 4)
    device.blocks.update(junk)
    log.append([bytes(12_000)], urgent=True)
    assert [segment.start for segment in log.segments] == [16, 100]
    assert not set(device.blocks.values()) & set(junk.values())


def test_the_log_grows_and_is_recycled() -> None:
    device = MemoryDevice(4 << 20)
    fresh = iter(range(100, 900, SEGMENT_BLOCKS))
    log = writer(device, [], limit=6, grow=lambda: next(fresh))
    assert log.has_room(100_000)
    assert not log.has_room(1_000_000)
    assert len(log.owned()) == 6
    for _ in range(38):
        log.append([bytes(8_000)], urgent=True)
    ordinal = log.ordinal
    assert ordinal == 5
    dead = log.recycle(ordinal)
    assert len(dead) == 5
    assert log.spares == dead
    tail = log.segments[0].place
    for _ in range(20):
        log.append([bytes(8_000)])
    assert list(reader(device, tail))[-1].lsn == log.place.lsn - 1
