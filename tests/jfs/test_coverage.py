"""The log rules as pure decisions: what needs an intent, what a batch names, and when a name may go."""

from dataclasses import replace

import pytest

from jfs.batch import FILE_RECORD, REGION_RECORD, RETIRED_FILES, RETIRED_REGIONS, LogRecord, encode_record
from jfs.coverage import Coverage, CoveragePolicy, FarState, Naming, snap_runs
from jfs.runs import merge_runs

POLICY = CoveragePolicy(linger_ns=10)
MIB = 256  # blocks
FAR = FarState(far_durable_sequence=100, checkpoint_lsn=50, superblock_sequence=90, now_ns=1000)


def name(coverage: Coverage, ino: int, file_block: int, count: int, segment: int = 0) -> Naming:
    naming = coverage.describe(ino, coverage.pieces(file_block, count), segment)
    coverage.name(naming, segment, 0)
    return naming


def test_small_files_are_covered_whole_by_one_name() -> None:
    coverage = Coverage(POLICY)
    assert not coverage.covers(20, 0, 1)
    name(coverage, 20, 3, 1)
    assert coverage.covers(20, 0, 4 * MIB)
    assert not coverage.covers(20, 4 * MIB, 1)
    assert not coverage.covers(21, 0, 1)


def test_large_files_are_covered_by_ranges_and_at_last_whole() -> None:
    coverage = Coverage(POLICY)
    assert name(coverage, 20, 10 * MIB, 1).ranges == (10,)
    assert name(coverage, 20, 11 * MIB - 1, 2).ranges == (11,)
    assert not coverage.covers(20, 12 * MIB - 1, 2)
    for piece in range(20, 20 + 62):
        assert not name(coverage, 20, piece * MIB, 1).whole
    assert name(coverage, 20, 500 * MIB, 1).whole
    assert coverage.covers(20, 900 * MIB, 5000)
    assert name(coverage, 20, 900 * MIB, 1) == Naming(20, whole=False, restated=False, ranges=())


def test_a_file_written_behind_what_a_range_can_say_is_covered_whole() -> None:
    coverage = Coverage(POLICY)
    naming = name(coverage, 20, ((1 << 63) - 1) // 4096, 1)
    assert naming.whole
    assert encode_record(LogRecord(FILE_RECORD, 20, naming.whole, naming.restated, naming.ranges))
    assert not name(coverage, 21, (1 << 40) - 1, 1).whole
    assert name(coverage, 22, 1 << 40, 1).whole


def test_new_data_is_named_once_by_the_batch_that_takes_it() -> None:
    coverage = Coverage(POLICY)
    coverage.wrote_new(20, 0, 8, 5)
    coverage.wrote_new(20, 10 * MIB, 1, 6)
    taken = coverage.take_new()
    assert taken[20].sequence == 6
    assert taken[20].pieces == {0, 1, 2, 3, 10}
    coverage.wrote_new(20, 12 * MIB, 1, 7)
    coverage.give_back(taken)
    assert coverage.take_new()[20].pieces == {0, 1, 2, 3, 10, 12}


def test_a_new_segment_says_all_again() -> None:
    coverage = Coverage(POLICY)
    name(coverage, 20, 10 * MIB, 1, segment=3)
    again = name(coverage, 20, 11 * MIB, 1, segment=4)
    assert again == Naming(20, whole=False, restated=True, ranges=(10, 11))
    assert coverage.first_needed_segment() == 4
    careless = Coverage(replace(POLICY, restate=False))
    name(careless, 20, 10 * MIB, 1, segment=3)
    assert name(careless, 20, 11 * MIB, 1, segment=4).ranges == (11,)
    assert careless.first_needed_segment() == 3


@pytest.mark.parametrize(
    ("change", "ripe"),
    [
        ({}, True),
        ({"far_durable_sequence": 79}, False),
        ({"far_durable_sequence": 89}, False),
        ({"checkpoint_lsn": 40}, False),
        ({"checkpoint_lsn": 41}, True),
        ({"now_ns": 509}, False),
        ({"now_ns": 510}, True),
    ],
)
def test_a_name_goes_when_the_far_site_has_all_of_it(change: dict[str, int], ripe: bool) -> None:
    coverage = Coverage(POLICY)
    coverage.name(coverage.describe(20, {1}, 0), 0, 500, lsn=40, sequence=70)
    coverage.wrote(20, 80, 500)
    assert coverage.ripe(replace(FAR, **change))[0] == ([20] if ripe else [])


def test_without_a_rule_names_go_early() -> None:
    coverage = Coverage(replace(POLICY, wait_for_far=False))
    coverage.name(coverage.describe(20, {1}, 0), 0, 0, lsn=40, sequence=500)
    assert coverage.ripe(FAR)[0] == [20]
    coverage = Coverage(replace(POLICY, wait_for_checkpoint=False))
    coverage.name(coverage.describe(20, {1}, 0), 0, 0, lsn=60, sequence=50)
    assert coverage.ripe(FAR)[0] == [20]
    assert Coverage(replace(POLICY, intent_first=False)).covers(20, 0, 1)
    assert Coverage(replace(POLICY, name_new_data=False)).describe(20, {1}, 0).ranges == ()


def test_regions_go_when_settled_and_far() -> None:
    coverage = Coverage(POLICY)
    region = coverage.add_region([(5, 4)], 2)
    assert coverage.ripe_regions(FAR) == []
    region.settled_sequence = 95
    assert coverage.ripe_regions(FAR) == [1]
    assert coverage.ripe_regions(replace(FAR, far_durable_sequence=94)) == []
    assert coverage.first_needed_segment() == 2
    coverage.drop([], [1])
    assert coverage.first_needed_segment() is None


def test_what_only_older_segments_name() -> None:
    coverage = Coverage(POLICY)
    name(coverage, 20, 0, 1, segment=1)
    name(coverage, 21, 0, 1, segment=2)
    coverage.add_region([(5, 4)], 1)
    assert coverage.older_than(2) == ([20], [1])
    assert coverage.older_than(1) == ([], [])


def test_coarsening_loses_precision_and_nothing_else() -> None:
    coverage = Coverage(POLICY)
    for ino in range(20, 30):
        coverage.name(coverage.describe(ino, {9, 17}, 0), 0, ino, lsn=ino, sequence=1000 + ino)
    size = coverage.size_bytes()
    assert coverage.is_too_large(size - 1)
    assert not coverage.is_too_large(size)
    for naming in coverage.widen():
        coverage.name(naming, 0, 0)
    assert coverage.size_bytes() < size
    assert all(coverage.covers(ino, 1 << 30, 9) for ino in range(20, 30))
    settled = coverage.add_region([(7, 1)], 0)
    settled.settled_sequence = 5
    coverage.add_region([(90, 1)], 0)
    files, regions, region = coverage.to_region(lambda ino: [(ino * 100, 10)], 10_000, keep=5, run_limit=100)
    assert sorted(files) == [20, 21, 22, 23, 24]
    assert regions == [1]
    assert region.runs == [(7, 1), *[(ino * 100, 10) for ino in range(20, 25)]]
    assert region.settled_sequence == 1024
    assert region.last_lsn == 24


def test_runs_merge_and_snap() -> None:
    assert merge_runs([(10, 5), (3, 2), (12, 9), (5, 1)]) == [(3, 3), (10, 11)]
    snapped = snap_runs([(block, 1) for block in range(0, 100_000, 700)], 100_000, 20)
    assert len(snapped) <= 25
    assert sum(count for _, count in snapped) <= 100_000
    assert all(
        any(start <= block < start + count for start, count in snapped) for block in range(0, 100_000, 700)
    )


def test_replay_adds_up_until_retired() -> None:
    coverage = Coverage(POLICY)
    coverage.replay(LogRecord(FILE_RECORD, 20, ranges=(9,), restated=True, item_count=1), 0, 5)
    coverage.replay(LogRecord(FILE_RECORD, 20, ranges=(10,)), 1, 6)
    coverage.replay(LogRecord(FILE_RECORD, 3, item_count=1), 1, 6)
    coverage.replay(LogRecord(REGION_RECORD, 8, allocations=[(5, 5)], restated=True), 1, 7)
    coverage.replay(LogRecord(REGION_RECORD, 8, allocations=[(50, 5)]), 1, 7)
    found = coverage.files[20]
    assert (found.ranges, found.segment, found.last_lsn) == ({9, 10}, 0, 5)
    assert list(coverage.files) == [20]
    assert coverage.regions[8].runs == [(5, 5), (50, 5)]
    assert coverage.next_region == 9
    coverage.written_up_to(77)
    assert (found.last_sequence, coverage.regions[8].settled_sequence) == (77, 77)
    coverage.replay(LogRecord(FILE_RECORD, 20, whole=True, restated=True), 2, 8)
    assert (found.ranges, found.segment) == (None, 2)
    coverage.replay(LogRecord(RETIRED_FILES, numbers=(20,)), 2, 9)
    coverage.replay(LogRecord(RETIRED_REGIONS, numbers=(8,)), 2, 9)
    assert not coverage.files
    assert not coverage.regions
