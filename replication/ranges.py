"""Ranges of bytes `(offset, length)`: sorted, merged lists, and the bytes of a set accounted for already."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import pairwise

from jfs.runs import Run, merge_runs

Range = Run


def normalise(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes as ascending ranges that neither overlap nor touch; empty ranges vanish."""
    return merge_runs(ranges)


def total_bytes(ranges: Iterable[Range]) -> int:
    """The bytes in ranges that do not overlap."""
    return sum(length for _, length in ranges)


def intersect(left: Sequence[Range], right: Sequence[Range]) -> list[Range]:
    """The bytes in both; both must be normalised, and so is the result."""
    found: list[Range] = []
    one = two = 0
    while one < len(left) and two < len(right):
        start = max(left[one][0], right[two][0])
        left_end = left[one][0] + left[one][1]
        right_end = right[two][0] + right[two][1]
        if start < min(left_end, right_end):
            found.append((start, min(left_end, right_end) - start))
        if left_end <= right_end:
            one += 1
        else:
            two += 1
    return found


def subtract(left: Sequence[Range], right: Sequence[Range]) -> list[Range]:
    """The bytes of `left` that are not in `right`; both must be normalised, and so is the result."""
    rest: list[Range] = []
    at = 0
    for offset, length in left:
        start, end = offset, offset + length
        while at < len(right) and right[at][0] + right[at][1] <= start:
            at += 1
        look = at
        while look < len(right) and right[look][0] < end:
            hole, hole_end = right[look][0], right[look][0] + right[look][1]
            if hole > start:
                rest.append((start, hole - start))
            start = max(start, hole_end)
            look += 1
        if start < end:
            rest.append((start, end - start))
    return rest


def coarsened(ranges: Iterable[Range], most: int) -> list[Range]:
    """Normalised, and at most `most` of them: where there are more, the smallest gaps are filled."""
    exact = normalise(ranges)
    if len(exact) <= most:
        return exact
    gaps = [(after[0] - sum(before), number) for number, (before, after) in enumerate(pairwise(exact))]
    ends = sorted(number for _, number in nlargest(most - 1, gaps))
    found: list[Range] = []
    first = 0
    for last in (*ends, len(exact) - 1):
        found.append((exact[first][0], sum(exact[last]) - exact[first][0]))
        first = last + 1
    return found


def pieces(ranges: Iterable[Range], longest: int) -> Iterator[Range]:
    """The ranges cut into pieces of at most `longest` bytes, in order."""
    for offset, length in ranges:
        for start in range(offset, offset + length, longest):
            yield start, min(longest, offset + length - start)


class Covered:
    """A growing set of bytes that answers, for each addition, which of them are new."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, offset: int, length: int) -> list[Range]:
        """Add a range; the parts of it that were not covered before, ascending."""
        end = offset + length
        # Every covered interval that overlaps or touches [offset, end] is replaced by one.
        first = bisect_left(self._ends, offset)
        last = bisect_right(self._starts, end)
        new: list[Range] = []
        at = offset
        for index in range(first, last):
            if self._starts[index] > at:
                new.append((at, self._starts[index] - at))
            at = max(at, self._ends[index])
        if at < end:
            new.append((at, end - at))
        if first < last:
            offset = min(offset, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [offset]
        self._ends[first:last] = [end]
        return new

    def ranges(self) -> list[Range]:
        """Everything that was added, normalised."""
        return [(start, end - start) for start, end in zip(self._starts, self._ends, strict=True)]
