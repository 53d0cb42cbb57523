"""Range arithmetic against sets of single bytes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from replication.ranges import Covered, Range, coarsened, intersect, normalise, pieces, subtract, total_bytes

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=8)


def members(ranges: list[Range]) -> set[int]:
    return {byte for offset, length in ranges for byte in range(offset, offset + length)}


def is_normal(ranges: list[Range]) -> bool:
    ends = [offset + length for offset, length in ranges]
    gaps = all(end < offset for end, (offset, _) in zip(ends, ranges[1:], strict=False))
    return gaps and all(length > 0 for _, length in ranges)


@given(RANGES, RANGES)
def test_arithmetic(left: list[Range], right: list[Range]) -> None:
    one, two = normalise(left), normalise(right)
    assert is_normal(one)
    assert members(one) == members(left)
    assert total_bytes(one) == len(members(left))
    for result, expected in (
        (intersect(one, two), members(left) & members(right)),
        (subtract(one, two), members(left) - members(right)),
    ):
        assert members(result) == expected
        assert is_normal(result)


@given(RANGES, st.integers(1, 6))
def test_coarsened_fills_the_smallest_gaps(ranges: list[Range], most: int) -> None:
    exact, fewer = normalise(ranges), coarsened(ranges, most)
    assert is_normal(fewer)
    assert len(fewer) == min(most, len(exact))
    assert members(exact) <= members(fewer)
    gaps = sorted(after[0] - sum(before) for before, after in pairwise(exact))
    assert total_bytes(fewer) == total_bytes(exact) + sum(gaps[: max(0, len(exact) - most)])


@given(RANGES)
def test_covered_tells_what_is_new(ranges: list[Range]) -> None:
    covered = Covered()
    seen: set[int] = set()
    for offset, length in ranges:
        if not length:
            continue
        new = covered.add(offset, length)
        assert members(new) == members([(offset, length)]) - seen
        assert total_bytes(new) == len(members(new))
        seen |= members([(offset, length)])


@given(RANGES, st.integers(1, 5))
def test_pieces_keep_every_byte_in_order(ranges: list[Range], longest: int) -> None:
    cut = list(pieces(normalise(ranges), longest))
    assert members(cut) == members(ranges)
    assert total_bytes(cut) == len(members(ranges))
    assert cut == sorted(cut)
    assert all(length <= longest for _, length in cut)
