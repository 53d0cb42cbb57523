"""Written positions: never less than what was written, bounded, and honest after a crash of the host."""

import itertools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jfs.errors import CorruptionError, DeviceError
from jfs.runs import merge_runs
from vsap.positions import CHUNK_BYTES, WritePositions

VOLUME = UUID(int=5)
SIZE = 64 << 20
FIRST_BOOT, SECOND_BOOT = UUID(int=1), UUID(int=2)
Opener = Callable[..., WritePositions]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    records: list[WritePositions] = []

    def open_positions(*, memory_entries: int = 1 << 18, boot: UUID | None = None) -> WritePositions:
        record = WritePositions.open(
            tmp_path / "written", VOLUME, size_bytes=SIZE, memory_entries=memory_entries, boot=boot
        )
        records.append(record)
        return record

    yield open_positions
    for record in records:
        record.close()


def crash_of_the_host(positions: WritePositions) -> None:
    positions._condition.abandon()
    positions._fd = -1


def test_ranges_are_merged_and_after_a_sequence(opened: Opener) -> None:
    positions = opened()
    for sequence, block in [(1, 9), (2, 3), (3, 4), (4, 3), (5, 8)]:
        positions.append(sequence, block * 4096, 4096)
    assert positions.ranges_after(0) == [(3 * 4096, 2 * 4096), (8 * 4096, 2 * 4096)]
    assert positions.ranges_after(3) == [(3 * 4096, 4096), (8 * 4096, 4096)]
    assert positions.ranges_after(5) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=30))
def test_merged_covers_the_same_bytes(ranges: list[tuple[int, int]]) -> None:
    result = merge_runs(list(ranges))
    assert {b for start, size in result for b in range(start, start + size)} == {
        b for start, size in ranges for b in range(start, start + size)
    }
    assert all(size > 0 for _, size in result)
    assert all(a + b < c for (a, b), (c, _) in itertools.pairwise(result))


def test_a_closed_record_is_complete_on_any_boot(opened: Opener) -> None:
    positions = opened(boot=FIRST_BOOT)
    positions.append(7, 4096, 8192)
    positions.close()
    positions = opened(boot=SECOND_BOOT)
    assert positions.trusted
    assert positions.ranges_after(0) == [(4096, 8192)]
    assert positions.complete_through == 7


def test_a_killed_process_costs_nothing_that_was_written_out(opened: Opener) -> None:
    positions = opened(boot=FIRST_BOOT)
    positions.append(1, 0, 4096)
    positions.flush()
    positions.append(2, 8192, 4096)
    positions.write_out()
    crash_of_the_host(positions)
    positions = opened(boot=FIRST_BOOT)
    assert positions.trusted
    assert positions.ranges_after(0) == [(0, 4096), (8192, 4096)]


@pytest.mark.parametrize("damage", ["none", "cut", "zeros"])
def test_a_crash_of_the_host_leaves_what_was_flushed(opened: Opener, damage: str) -> None:
    """Whatever became of the bytes behind the last flush, nothing before it is missing, and it is known where
    that is.
    """
    positions = opened(boot=FIRST_BOOT)
    positions.append(1, 0, 4096)
    positions.append(2, 8192, 4096)
    positions.flush(5)
    size = positions._path.stat().st_size
    positions.append(6, 65536, 4096)
    positions.write_out()
    crash_of_the_host(positions)
    if damage == "cut":
        positions._path.write_bytes(positions._path.read_bytes()[: size + 10])
    elif damage == "zeros":
        positions._path.write_bytes(positions._path.read_bytes()[:size] + bytes(240))
    positions = opened(boot=SECOND_BOOT)
    assert not positions.trusted
    assert positions.complete_through == 5
    assert positions.ranges_after(0) == [(0, 4096), (8192, 4096)]
    positions.close()
    positions = opened(boot=SECOND_BOOT)
    assert not positions.trusted, "closing does not mend it"
    with pytest.raises(ValueError, match="gap"):
        positions.acknowledge_resend(6)
    positions.acknowledge_resend(5)
    positions.append(6, 65536, 4096)
    crash_of_the_host(positions)
    positions = opened(boot=SECOND_BOOT)
    assert positions.trusted


def test_a_destroyed_header_after_a_crash_leaves_nothing_to_trust(opened: Opener) -> None:
    positions = opened(boot=FIRST_BOOT)
    positions.append(1, 0, 4096)
    positions.flush()
    crash_of_the_host(positions)
    positions._path.write_bytes(bytes(500))
    positions = opened(boot=SECOND_BOOT)
    assert (positions.trusted, positions.complete_through) == (False, 0)
    positions.reset(40)
    assert positions.trusted
    assert positions.covered_from == 40


def test_damage_without_a_crash_is_loud(opened: Opener) -> None:
    positions = opened()
    positions.append(1, 0, 4096)
    positions.close()
    data = bytearray(positions._path.read_bytes())
    data[-40] ^= 1
    positions._path.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"damaged.*remove it to go on"):
        opened()


def test_a_record_that_was_removed_is_not_one_that_names_nothing(opened: Opener) -> None:
    positions = opened()
    positions.append(1, 0, 4096)
    positions.close()
    positions._path.unlink()
    positions = opened()
    assert not positions.trusted
    with pytest.raises(ValueError, match="leaves a gap"):
        positions.acknowledge_resend(1)
    positions.reset(1)
    assert positions.trusted


def test_another_volume_or_size_is_refused(opened: Opener, tmp_path: Path) -> None:
    opened().close()
    with pytest.raises(CorruptionError):
        WritePositions.open(tmp_path / "written", UUID(int=6), size_bytes=SIZE)
    with pytest.raises(CorruptionError):
        WritePositions.open(tmp_path / "written", VOLUME, size_bytes=2 * SIZE)


def test_a_resend_under_a_lower_sequence_is_noted(opened: Opener) -> None:
    positions = opened()
    positions.append(10, 0, 4096)
    positions.append(4, 8192, 4096)
    assert positions.ranges_after(3) == [(0, 4096), (8192, 4096)]
    assert (8192, 4096) in positions.ranges_after(9)


def test_memory_and_file_are_bounded(opened: Opener) -> None:
    positions = opened(memory_entries=1000)
    rng = random.Random(3)
    touched = set()
    for sequence in range(1, 50_001):
        block = rng.randrange(SIZE // 4096)
        touched.add(block)
        positions.append(sequence, block * 4096, 4096)
        if sequence % 10 == 0:
            positions.write_out()
    assert len(positions._sequences) <= 1001
    assert positions._path.stat().st_size <= 5000 * 24 + 10 * SIZE // CHUNK_BYTES
    found = {b // 4096 for o, n in positions.ranges_after(0) for b in range(o, o + n, 4096)}
    assert touched <= found
    positions.close()
    assert {b // 4096 for o, n in opened().ranges_after(0) for b in range(o, o + n, 4096)} >= touched


def test_what_is_pruned_is_forgotten_in_memory_and_file(opened: Opener) -> None:
    positions = opened(memory_entries=100)
    for sequence in range(1, 1001):
        positions.append(sequence, sequence * 4096, 4096)
    positions.prune(950)
    assert positions.covered_from == 950
    assert positions.ranges_after(950) == [(951 * 4096, 50 * 4096)]
    positions.prune(1000)
    positions.append(1001, 0, 4096)
    assert positions.ranges_after(0) == [(0, 4096)]
    for sequence in range(1002, 4000):
        positions.append(sequence, 4096, 4096)
        positions.prune(sequence)
    positions.flush()
    assert positions._path.stat().st_size <= 24 * 2000
    positions.close()
    assert opened().ranges_after(0) == []


def test_a_second_opener_is_refused(opened: Opener) -> None:
    opened()
    with pytest.raises(DeviceError, match="open in another process"):
        opened()


class PositionsModel(RuleBasedStateMachine):
    """Against a list: never less than was written after a sequence the record answers for; not much more."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.positions = self._open()
        self.written: list[tuple[int, int]] = []
        self.sequence = 0

    def _open(self) -> WritePositions:
        return WritePositions.open(self.directory, VOLUME, size_bytes=SIZE, memory_entries=20)

    def teardown(self) -> None:
        self.positions.close()
        shutil.rmtree(self.directory)

    @rule(blocks=st.lists(st.integers(0, 200), max_size=15))
    def append(self, blocks: list[int]) -> None:
        for block in blocks:
            self.sequence += 1
            self.positions.append(self.sequence, block * 4096, 4096)
            self.written.append((self.sequence, block))

    @rule(back=st.integers(0, 40))
    def prune(self, back: int) -> None:
        self.positions.prune(max(0, self.sequence - back))

    @rule()
    def flush(self) -> None:
        self.positions.flush()

    @rule()
    def write_out(self) -> None:
        self.positions.write_out()

    @rule()
    def reopen(self) -> None:
        self.positions.close()
        self.positions = self._open()

    @rule()
    def reset(self) -> None:
        self.positions.reset(self.sequence)
        self.written.clear()

    @invariant()
    def misses_nothing(self) -> None:
        covered = self.positions.covered_from
        for after in {covered, self.sequence - 3, self.sequence}:
            if after < covered:
                continue
            found = {b // 4096 for o, n in self.positions.ranges_after(after) for b in range(o, o + n, 4096)}
            wanted = {block for sequence, block in self.written if sequence > after}
            assert wanted <= found
            chunks = {block * 4096 // CHUNK_BYTES for _, block in self.written}
            assert {block * 4096 // CHUNK_BYTES for block in found} <= chunks
            if len(self.written) <= 20:
                assert found == wanted or len(self.positions._maps)


PositionsModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPositionsModel = PositionsModel.TestCase
