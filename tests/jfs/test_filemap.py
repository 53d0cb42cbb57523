"""The map of a file against a plain dictionary of blocks."""

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from jfs import filemap
from jfs.filemap import HOLE, Run
from jfs.layout import EXTENT, decode_extent, encode_extent, make_key, split_key

INO = 77
SPAN = 40


class PlainItems:
    """The items of a store, in a dictionary."""

    def __init__(self) -> None:
        self.items: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.items.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.items[key] = value

    def delete(self, key: bytes) -> None:
        del self.items[key]

    def scan(self, first: bytes, last: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self.items):
            if first <= key <= last:
                yield key, self.items[key]

    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        below = [found for found in self.items if found <= key and split_key(found)[:2] == split_key(key)[:2]]
        return (max(below), self.items[max(below)]) if below else None


def blocks_of(runs: list[Run]) -> dict[int, int]:
    return {run.file_block + index: run.start + index for run in runs for index in range(run.length)}


def check(store: PlainItems, expected: dict[int, int]) -> None:
    found = list(filemap.extents(store, INO))
    assert blocks_of(found) == expected
    for left, right in pairwise(found):
        assert left.file_block + left.length <= right.file_block, "extents overlap"
        joined = (left.file_block + left.length, left.start + left.length) == (right.file_block, right.start)
        assert not joined, "neighbours that continue each other are one extent"


Step = tuple[bool, int, int, bool]
steps = st.lists(
    st.tuples(st.booleans(), st.integers(0, SPAN), st.integers(1, 12), st.booleans()), min_size=1, max_size=40
)


@given(steps)
def test_insert_and_remove_match_a_dictionary(todo: list[Step]) -> None:
    store = PlainItems()
    expected: dict[int, int] = {}
    # Items of other inodes and kinds around the file's own must never show.
    for ino in (INO - 1, INO + 1):
        store.put(make_key(ino, EXTENT, 0), encode_extent(900_000, 100))
    store.put(make_key(INO, EXTENT - 1), b"the inode")
    fresh = 10_000
    for add, first, count, follow in todo:
        if not add:
            gone = filemap.remove(store, INO, first, first + count)
            assert blocks_of(gone) == {b: p for b, p in expected.items() if first <= b < first + count}
            expected = {b: p for b, p in expected.items() if not first <= b < first + count}
        else:
            for run in list(filemap.runs(store, INO, first, count)):
                if run.start != HOLE:
                    continue
                fresh += 0 if follow else 100
                filemap.insert(store, INO, run.file_block, fresh, run.length)
                expected.update(blocks_of([Run(run.file_block, fresh, run.length)]))
                fresh += run.length
        check(store, expected)


@given(steps, st.integers(0, SPAN), st.integers(1, SPAN))
def test_runs_cover_what_was_asked_for_without_gaps(todo: list[Step], first: int, count: int) -> None:
    store = PlainItems()
    expected: dict[int, int] = {}
    for number, (_, start, length, _) in enumerate(todo):
        if all(block not in expected for block in range(start, start + length)):
            filemap.insert(store, INO, start, 1000 * (number + 1), length)
            expected.update({start + index: 1000 * (number + 1) + index for index in range(length)})
    place = first
    for run in filemap.runs(store, INO, first, count):
        assert run.file_block == place
        assert run.length > 0
        for index in range(run.length):
            wanted = expected.get(place + index, HOLE)
            assert (run.start + index if run.start else HOLE) == wanted
        place += run.length
    assert place == first + count


def test_find_and_last_before() -> None:
    store = PlainItems()
    filemap.insert(store, INO, 5, 100, 3)
    assert filemap.find(store, INO, 4) is None
    assert filemap.find(store, INO, 7) == Run(5, 100, 3)
    assert filemap.find(store, INO, 8) is None
    assert filemap.last_before(store, INO, 50) == Run(5, 100, 3)
    assert filemap.last_before(store, INO, 4) is None


def test_an_extent_never_outgrows_its_length_field() -> None:
    store = PlainItems()
    filemap.insert(store, INO, 0, 1000, filemap.COUNT_MAX)
    filemap.insert(store, INO, filemap.COUNT_MAX, 1000 + filemap.COUNT_MAX, 1)
    assert [decode_extent(value)[1] for value in store.items.values()] == [filemap.COUNT_MAX, 1]
