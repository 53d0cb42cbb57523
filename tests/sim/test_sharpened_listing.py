"""The listing of a difference copy: log and write positions sharpen each other, and check each other."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from jfs.coverage import CoveragePolicy
from jfs.listing import read_listing
from replication.listing import (
    CHUNK_BYTES,
    in_bytes,
    list_allocated,
    list_copy,
    sharpen,
    unexplained,
    written_after,
)
from replication.ranges import Range, intersect, normalise, subtract, total_bytes
from tests.sim.stream import BLOCK, ZERO, StreamDevice, copy_runs, expand
from tests.sim.test_theorem import SIZE_BYTES, run_workload

CHUNK = CHUNK_BYTES // BLOCK


class KnownPositions:
    """Positions as exact as a test knows them."""

    def __init__(self, ranges: list[Range], *, trusted: bool = True, covered_from: int = 0) -> None:
        self.ranges = ranges
        self.trusted = trusted
        self.covered_from = covered_from

    def ranges_after(self, sequence: int) -> list[Range]:
        return self.ranges


def rounded(blocks: set[int]) -> list[Range]:
    """Positions that were folded: whole chunks."""
    return normalise((block // CHUNK * CHUNK_BYTES, CHUNK_BYTES) for block in blocks)


def exact(blocks: set[int]) -> list[Range]:
    return normalise((block * BLOCK, BLOCK) for block in blocks)


def runs(ranges: list[Range]) -> list[tuple[int, int]]:
    return [(offset // BLOCK, length // BLOCK) for offset, length in ranges]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("folded", [False, True])
def test_the_sharpened_copy_is_enough_and_smaller(number: int, folded: bool, seed: int) -> None:
    """Over real workloads of the file system: every block in use is equal after the copy, no false alarm."""
    device, cases = trio.run(run_workload, seed + number, CoveragePolicy())
    sharper = 0
    for case in cases:
        near, far = device.prefix(case.near), device.prefix(case.far)
        written = device.written_after(case.far, case.near)
        positions = KnownPositions(rounded(written) if folded else exact(written))
        at_crash = StreamDevice(SIZE_BYTES, near)
        found = list_copy(at_crash, case.far, positions)
        assert found.fault is None, found.fault
        copy_runs(near, far, runs(found.ranges))
        in_use = expand(read_listing(at_crash).allocated_runs())
        assert not {block for block in in_use if near.get(block, ZERO) != far.get(block, ZERO)}
        assert in_use <= expand(runs(list_allocated(at_crash)))
        assert total_bytes(found.ranges) <= found.listed_bytes
        sharper += total_bytes(found.ranges) < found.listed_bytes
        assert sum(file.bytes for file in found.files) <= found.listed_bytes
    assert folded or sharper


def test_a_write_that_the_log_does_not_name_is_told_loudly_and_copied(seed: int) -> None:
    for number in range(20):
        device, cases = trio.run(run_workload, seed + number, CoveragePolicy())
        at_crash = StreamDevice(SIZE_BYTES, device.prefix(cases[-1].near))
        everything = normalise(in_bytes(read_listing(at_crash).block_runs))
        unnamed = subtract(list_allocated(at_crash), everything)
        if unnamed:
            break
    else:
        pytest.fail("no workload left a block in use that the log need not name")
    stray = (unnamed[-1][0], BLOCK)
    found = list_copy(at_crash, cases[-1].far, KnownPositions([stray]))
    assert found.fault is not None
    assert str(stray[0]) in found.fault
    assert intersect(found.ranges, [stray]) == [stray]
    assert subtract(everything, found.ranges) == []


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (None, "no write positions"),
        (KnownPositions([], trusted=False), "crash of the host"),
        (KnownPositions([], covered_from=8), "begin after sequence 8"),
    ],
)
def test_without_trusted_positions_the_log_alone_decides(
    positions: KnownPositions | None, words: str, seed: int
) -> None:
    written, sentence = written_after(positions, 7)
    assert written is None
    assert words in sentence
    device, _ = trio.run(run_workload, seed, CoveragePolicy())
    listing = read_listing(device)
    found = sharpen(listing, SIZE_BYTES, 7, written, sentence)
    assert found.ranges == normalise(in_bytes(listing.block_runs))
    assert [file.why for file in found.files] == [file.why for file in listing.files]


BLOCK_SETS = st.sets(st.integers(0, 5 * CHUNK - 3), max_size=12)


@given(BLOCK_SETS, BLOCK_SETS, BLOCK_SETS, st.booleans())
def test_rounding_accuses_nobody_and_hides_no_sure_fault(
    touched: set[int], listed: set[int], used: set[int], folded: bool
) -> None:
    size = (5 * CHUNK - 2) * BLOCK
    positions = rounded(touched) if folded else exact(touched)
    written = intersect(positions, [(0, size)])
    found = expand(runs(unexplained(written, exact(listed), exact(used), size)))
    truly = (touched & used) - listed
    if not folded:
        # Exact positions name every fault, but where a whole chunk happens to be written.
        assert found == truly
    elif not truly:
        # What really was written is explained, so nothing may be told.
        assert not found
    for chunk in {block // CHUNK for block in truly}:
        blocks = set(range(chunk * CHUNK, min((chunk + 1) * CHUNK, size // BLOCK)))
        if not blocks & listed and blocks <= used:
            assert found & blocks
