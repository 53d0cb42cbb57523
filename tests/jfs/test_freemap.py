"""The free map: encodings, allocation, pinned blocks, and the frozen copy of a checkpoint."""

import random

import pytest
from bitarray.util import zeros

from jfs.errors import CorruptionError, NoSpace
from jfs.freemap import FreeMap, decode_group, encode_group, pieces
from jfs.layout import GROUP_BLOCKS, NODE_BLOCKS, split_key
from jfs.runs import join_runs

TOTAL = 3 * GROUP_BLOCKS + 100


def make_map(total: int = TOTAL, reserve: int = 64) -> FreeMap:
    return FreeMap(total, reserve, lambda group: None, total)


def blocks(runs: list[tuple[int, int]]) -> set[int]:
    return {block for start, count in runs for block in range(start, start + count)}


@pytest.mark.parametrize(
    ("used", "size"), [([], 0), ([(0, 8192)], 1), ([(0, 5)], 3), ([(5, 1)], 1025), ([(0, 4), (9, 1)], 1025)]
)
def test_encodings_come_back_and_are_short(used: list[tuple[int, int]], size: int) -> None:
    bits = zeros(GROUP_BLOCKS, "little")
    for start, count in used:
        bits[start : start + count] = 1
    value = encode_group(bits)
    assert len(value or b"") == size
    assert decode_group(value, 0) == bits


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x02\x01", b"\x03" + bytes(5), b"\x04" + bytes(1024)])
def test_a_value_that_cannot_be_read_is_refused(value: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_group(value, 7)


def test_pieces_and_joined_runs() -> None:
    assert list(pieces(8190, 8196)) == [(0, 8190, 2), (1, 0, 8192), (2, 0, 2)]
    assert join_runs([(1, 2), (3, 4), (9, 1)]) == [(1, 6), (9, 1)]


def test_allocation_follows_the_hint_and_prefers_long_runs() -> None:
    free_map = make_map()
    assert free_map.allocate(10, near=500) == [(500, 10)]
    assert free_map.allocate(10, near=510) == [(510, 10)]
    free_map.set_used(530, 1)
    assert free_map.allocate(20, near=520) == [(520, 10), (531, 10)]
    assert free_map.allocate(20, near=525) == [(541, 20)]
    assert free_map.allocate(3 * 1024, near=0)[0][1] >= 1024


def test_a_run_may_cross_groups() -> None:
    free_map = make_map()
    assert free_map.allocate(20, near=GROUP_BLOCKS - 10) == [(GROUP_BLOCKS - 10, 20)]


@pytest.mark.parametrize("story", range(5))
def test_allocation_against_a_set(seed: int, story: int) -> None:
    rng = random.Random(seed + story)
    free_map = make_map()
    held: list[tuple[int, int]] = []
    used: set[int] = set()
    for _ in range(600):
        if rng.random() < 0.6:
            count = rng.choice((1, 3, 50, 900))
            free = free_map.free_blocks
            try:
                runs = free_map.allocate(count, rng.choice((0, rng.randrange(TOTAL))))
            except NoSpace:
                assert free - count < free_map.reserve_blocks
                assert free_map.free_blocks == free
                continue
            assert sum(run[1] for run in runs) == count
            assert not blocks(runs) & used
            assert min(blocks(runs)) >= free_map.reserve_blocks
            used |= blocks(runs)
            held += runs
        elif held:
            start, count = held.pop(rng.randrange(len(held)))
            free_map.pin(start, count)
            if rng.random() < 0.5:
                free_map.unpin(start, count)
                used -= blocks([(start, count)])
        assert free_map.free_blocks == TOTAL - len(used)
    assert blocks(list(free_map.used_runs())) == used


def test_every_last_block_can_be_had_and_the_reserve_stays() -> None:
    free_map = make_map()
    for block in range(64, TOTAL, 2):
        free_map.set_used(block, 1)
    left = free_map.free_blocks - free_map.reserve_blocks
    runs = free_map.allocate(left)
    assert sum(count for _, count in runs) == left
    with pytest.raises(NoSpace):
        free_map.allocate(1)
    addresses = free_map.allocate_nodes(10)
    assert len(set(addresses)) == 10
    assert max(addresses) < 64


def test_nodes_that_do_not_fit_leave_the_map_alone() -> None:
    free_map = make_map()
    for block in range(2, TOTAL, 3):
        free_map.set_used(block, 1)
    free_map.set_free(1000, 12)
    free = free_map.free_blocks
    with pytest.raises(NoSpace):
        free_map.allocate_nodes(4)
    assert free_map.free_blocks == free
    assert len(free_map.allocate_nodes(3)) == 3


def test_a_segment_leaves_the_reserve_alone() -> None:
    free_map = make_map()
    start = free_map.allocate_segment(256, 5000)
    assert start == 5000
    free_map.set_used(64, TOTAL - 64 - 700)
    assert free_map.allocate_segment(256, 0) == TOTAL - 700
    assert free_map.allocate_segment(256, 0) is None


def test_pinned_blocks_are_not_given_out() -> None:
    free_map = make_map()
    free_map.set_used(0, TOTAL - 100)
    free_map.pin(5000, 300)
    assert blocks(free_map.allocate(36)) <= blocks([(TOTAL - 100, 100)])
    with pytest.raises(NoSpace):
        free_map.allocate(10)
    free_map.unpin(5000, 300)
    assert free_map.allocate(300, near=5000) == [(5000, 300)]


def test_freeing_what_is_free_is_corruption() -> None:
    free_map = make_map()
    free_map.set_used(100, 10)
    with pytest.raises(CorruptionError):
        free_map.pin(105, 10)
    with pytest.raises(CorruptionError):
        free_map.pin(TOTAL - 5, 10)


def test_replay_twice_is_once() -> None:
    free_map = make_map()
    for _ in range(2):
        free_map.set_used(100, 50)
        free_map.set_free(120, 10)
    assert list(free_map.used_runs()) == [(100, 20), (130, 20)]
    assert free_map.free_blocks == TOTAL - 40


def test_the_frozen_map_is_the_moment_of_the_freeze() -> None:
    free_map = make_map()
    free_map.set_used(0, 2)
    run = free_map.allocate(100, near=1000)[0]
    free_map.pin(1000, 10)
    frozen = free_map.freeze()
    free_map.allocate(50, near=2000)
    free_map.unpin(1000, 10)
    frozen.set(3 * GROUP_BLOCKS, NODE_BLOCKS, used=True)
    items = {split_key(key)[2]: value for key, value in frozen.take_changed()}
    assert decode_group(items[0], 0).count() == 2 + run[1] - 10
    assert decode_group(items[3], 3).count() == NODE_BLOCKS
    assert frozen.free_blocks == TOTAL - 2 - 90 - NODE_BLOCKS
    assert frozen.take_changed() == []
    frozen.set(3 * GROUP_BLOCKS, NODE_BLOCKS, used=False)
    assert [decode_group(value, 3).count() for _, value in frozen.take_changed()] == [0]


def test_a_node_is_not_put_where_blocks_were_freed_after_the_freeze() -> None:
    """The log behind the checkpoint says that they were freed; replayed, it would free the node."""
    free_map = make_map(reserve=2)
    free_map.set_used(0, TOTAL)
    free_map.set_free(2000, NODE_BLOCKS)
    free_map.freeze()
    for start in (100, 3000):
        free_map.pin(start, 4 * NODE_BLOCKS)
        free_map.unpin(start, 4 * NODE_BLOCKS)
    assert free_map.allocate_nodes(1) == [2000]
    with pytest.raises(NoSpace):
        free_map.allocate_nodes(1)
    free_map.thaw(written=True)
    free_map.freeze()
    assert len(free_map.allocate_nodes(8)) == 8


def test_a_node_is_not_put_where_blocks_came_and_went_after_the_freeze() -> None:
    """They were free at the freeze; but the log behind the checkpoint says that they were freed."""
    free_map = make_map(reserve=2)
    free_map.set_used(0, TOTAL)
    free_map.set_free(2000, 2 * NODE_BLOCKS)
    free_map.freeze()
    assert free_map.allocate(NODE_BLOCKS, 2000) == [(2000, NODE_BLOCKS)]
    free_map.pin(2000, NODE_BLOCKS)
    free_map.unpin(2000, NODE_BLOCKS)
    assert free_map.allocate_nodes(1) == [2000 + NODE_BLOCKS]
    with pytest.raises(NoSpace):
        free_map.allocate_nodes(1)
    free_map.thaw(written=True)
    free_map.freeze()
    assert free_map.allocate_nodes(1) == [2000]


def test_an_abandoned_freeze_is_written_next_time() -> None:
    free_map = make_map()
    free_map.set_used(10, 5)
    free_map.freeze()
    free_map.thaw(written=False)
    assert len(free_map.freeze().take_changed()) == 1
    free_map.thaw(written=True)
    assert free_map.freeze().take_changed() == []


def test_sixteen_tebibytes_cost_nothing() -> None:
    total = (16 << 40) // 4096
    loaded: list[int] = []

    def load(group: int) -> None:
        loaded.append(group)

    free_map = FreeMap(total, 16384, load, total)
    assert free_map.allocate(5, near=total // 2) == [(total // 2, 5)]
    assert len(loaded) <= 3, "that block, and the first groups for a look at what the tree has left"


def node_runs(free_map: FreeMap) -> int:
    """Places for nodes, counted by looking at every block."""
    found = length = 0
    for block in range(free_map.total_blocks):
        length = 0 if free_map.is_used(block) else length + 1
        found += length > 0 and length % NODE_BLOCKS == 0
    return found


def test_data_leaves_places_for_the_tree_however_scattered_the_free_blocks_are() -> None:
    """Nodes move while data comes and goes in single blocks: the last runs of four are not data's."""
    rng = random.Random(8)
    free_map = make_map(1024, 64)
    data: list[int] = []
    nodes = free_map.allocate_nodes(30)
    least = node_runs(free_map)
    for _ in range(3000):
        try:
            runs = free_map.allocate(rng.choice((1, 1, 2, 5)))
        except NoSpace:
            rng.shuffle(data)
            for _ in range(rng.choice((1, 40))):
                free_map.release(data.pop(), 1)
            moved = free_map.allocate_nodes(4)
            for _ in range(4):
                free_map.release(nodes.pop(rng.randrange(len(nodes))), NODE_BLOCKS)
            nodes += moved
        else:
            data += [block for start, count in runs for block in range(start, start + count)]
            least = min(least, node_runs(free_map))
        places = node_runs(free_map)
        assert free_map.node_places(10_000) == places
        assert free_map.node_places(5) == min(places, 5)
    assert least >= 4, "moving four nodes takes places before it gives others"
    assert len(set(data)) == len(data)
