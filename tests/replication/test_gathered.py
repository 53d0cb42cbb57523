"""What travels of a long queue: exactly what its entries leave behind, each byte once, in bounded memory."""

import random
import tracemalloc
from collections.abc import Sequence

import pytest

from replication.bodies import Marker
from replication.gathered import EntriesGone, Gathered, left_of, marker_of
from tests.replication.far_pair import BLOCK, BLOCKS, SIZE, MemoryQueue, Writer
from vsap.entry import Entry


def gathered(
    queue: MemoryQueue, first: int, last: int, limit_bytes: int = 1 << 30, limit_entries: int = 1 << 20
) -> Gathered:
    found = Gathered(first, limit_bytes=limit_bytes, limit_entries=limit_entries)
    while found.last < last and not found.full:
        found.gather(queue, last)
    found.settle()
    return found


@pytest.mark.parametrize("number", range(40))
def test_what_is_left_is_what_the_entries_leave_behind(number: int, seed: int) -> None:
    chance = random.Random(seed * 1000 + number)
    writer = Writer(chance)
    for _ in range(chance.choice([3, 40, 300])):
        writer.write(marker=chance.random() < 0.01)
    first = chance.randint(1, writer.newest)
    limits = chance.choice([(1 << 30, 1 << 20), (10 * BLOCK, 1 << 20), (1 << 30, 7)])
    found = gathered(writer.queue, first, writer.newest, *limits)
    state = bytearray(writer.states[first - 1])
    touched: set[int] = set()
    data_bytes = 0
    for piece in left_of(writer.queue, found):
        blocks = range(piece.offset // BLOCK, (piece.offset + piece.length) // BLOCK)
        assert touched.isdisjoint(blocks)  # so each travels once
        touched.update(blocks)
        state[piece.offset : piece.offset + piece.length] = piece.data or bytes(piece.length)
        data_bytes += piece.length if piece.data is not None else 0
        assert first <= piece.sequence <= found.last
    assert bytes(state) == writer.states[found.last]
    assert data_bytes <= found.data_bytes <= found.entry_bytes
    stream = writer.stream[first - 1 : found.last]
    assert found.entry_bytes == sum(entry.payload_length for entry in stream)
    assert found.oldest_timestamp_ns == stream[0].timestamp_ns
    assert found.timestamp_ns == stream[-1].timestamp_ns


def test_a_marker_ends_a_set(seed: int) -> None:
    writer = Writer(random.Random(seed))
    for _ in range(10):
        writer.write()
    writer.write(marker=True)
    writer.write()
    found = gathered(writer.queue, 1, writer.newest)
    assert found.last == 11
    assert marker_of(writer.queue, found) == Marker(11, 16 * BLOCK, ((0, SIZE),))
    assert marker_of(writer.queue, gathered(writer.queue, 12, 12)) is None


def test_the_limits_are_kept(seed: int) -> None:
    writer = Writer(random.Random(seed))
    for _ in range(500):
        writer.write()
    assert gathered(writer.queue, 1, 500, limit_entries=30).last == 30
    largest = max(entry.payload_length for entry in writer.stream)
    found = gathered(writer.queue, 1, 500, limit_bytes=20 * BLOCK)
    assert 20 * BLOCK <= found.data_bytes < 20 * BLOCK + largest
    assert gathered(writer.queue, 1, 17).last == 17


def test_entries_that_left_the_queue_are_missed(seed: int) -> None:
    writer = Writer(random.Random(seed))
    for _ in range(20):
        writer.write()
    writer.acknowledge()
    found = gathered(writer.queue, 1, 20)
    writer.queue.drop(8)
    with pytest.raises(EntriesGone):
        gathered(writer.queue, 5, 20)
    writer.queue.drop(20)
    with pytest.raises(EntriesGone):
        list(left_of(writer.queue, found))


class Endless:
    """A queue of entries that overwrite a few blocks again and again."""

    def read_index(self, first: int, limit_entries: int = 1, *, verify: bool = False) -> list[Entry]:
        assert verify  # what is left out is decided by these records
        return [
            Entry(number, number, number % BLOCKS * BLOCK, BLOCK, 1, 0)
            for number in range(first, first + limit_entries)
        ]

    def read_these(self, sequences: Sequence[int]) -> list[Entry]:
        raise NotImplementedError


def test_positions_take_little_memory() -> None:
    """A dozen bytes for an entry, also while what is left is looked for."""
    entries = 200_000
    tracemalloc.start()
    try:
        found = Gathered(1, limit_bytes=1 << 40, limit_entries=entries)
        while not found.full:
            found.gather(Endless(), 1 << 40)
        tracemalloc.reset_peak()
        found.settle()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.entries == entries
    assert peak < entries * 16
