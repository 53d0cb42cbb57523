"""What the log must name: the blocks that may be newer here than at the far site. Pure: no device, no clock.

I1: a write in place is covered before it is issued; new data is named by the batch that records its extent.
I2: a name may go when the far site has everything it stands for, or when a later segment names it again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jfs.batch import (
    FILE_RECORD,
    LOG_RECORD,
    LOG_RUN,
    REGION_RECORD,
    RETIRED_FILES,
    RETIRED_REGIONS,
    LogRecord,
)
from jfs.runs import Run, join_runs, merge_runs

PIECE_BLOCKS = 256  # a range is an aligned piece of 1 MiB of a file
PIECE_LIMIT = 1 << 32  # of ranges a record can say; a file written behind them (4 PiB) is named whole


@dataclass(frozen=True)
class CoveragePolicy:
    """How precise, how long, how much; and the rules, which only a test switches off."""

    small_pieces: int = 4  # the first 4 MiB of a file are one range: small files are covered whole
    range_limit: int = 64  # more ranges than this become the whole file
    linger_ns: int = 2_000_000_000
    file_limit: int = 65_536
    intent_first: bool = True
    name_new_data: bool = True
    wait_for_far: bool = True
    wait_for_checkpoint: bool = True
    restate: bool = True


@dataclass(slots=True, eq=False)
class FileCoverage:
    """What is covered of one file. `ranges` None: all of it; empty: only its metadata is named."""

    ino: int
    ranges: set[int] | None
    segment: int  # everything covered is named in this segment or later ones
    last_sequence: int = 0  # newest write to a covered block
    last_lsn: int = 0  # newest batch with metadata of the file
    touched_ns: int = 0


@dataclass(slots=True, eq=False)
class RegionCoverage:
    """Blocks of the volume, whoever owns them. `settled_sequence` None: they are still being written."""

    number: int
    runs: list[Run]
    segment: int
    settled_sequence: int | None = None
    last_lsn: int = 0


@dataclass(slots=True)
class NewData:
    """New blocks of a file that no batch has recorded yet."""

    pieces: set[int]
    sequence: int


@dataclass(frozen=True, slots=True)
class Naming:
    """What a batch says of one file, and what becomes covered with it."""

    ino: int
    whole: bool
    restated: bool
    ranges: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FarState:
    """What the far site has, as seen when retirement is decided."""

    far_durable_sequence: int
    checkpoint_lsn: int
    superblock_sequence: int
    now_ns: int


class Coverage:
    """The covered files and regions. Deciding (`describe`, `ripe`) is apart from applying."""

    def __init__(self, policy: CoveragePolicy) -> None:
        self.policy = policy
        self.files: dict[int, FileCoverage] = {}
        self.regions: dict[int, RegionCoverage] = {}
        self.new: dict[int, NewData] = {}
        self.next_region = 1

    # -- I1 ----------------------------------------------------------------

    def pieces(self, file_block: int, count: int) -> set[int]:
        """The ranges that hold these blocks of a file."""
        found = set(range(file_block // PIECE_BLOCKS, (file_block + count - 1) // PIECE_BLOCKS + 1))
        if min(found) < self.policy.small_pieces:
            found.update(range(self.policy.small_pieces))
        return found

    def covers(self, ino: int, file_block: int, count: int) -> bool:
        """May these blocks be overwritten in place without an intent?"""
        covered = self.files.get(ino)
        if covered is None:
            return not self.policy.intent_first
        ranges = covered.ranges
        if ranges is None or not self.policy.intent_first:
            return True
        first, last = file_block // PIECE_BLOCKS, (file_block + count - 1) // PIECE_BLOCKS
        if first == last:
            return first in ranges
        return all(piece in ranges for piece in range(first, last + 1))

    def wrote(self, ino: int, sequence: int, now_ns: int) -> None:
        """A covered block of the file was written in place."""
        covered = self.files.get(ino)
        if covered is not None:
            covered.last_sequence = sequence
            covered.touched_ns = now_ns

    def wrote_new(self, ino: int, file_block: int, count: int, sequence: int) -> None:
        """New blocks were written; the next batch must name them."""
        new = self.new.get(ino)
        if new is None:
            self.new[ino] = NewData(self.pieces(file_block, count), sequence)
            return
        new.sequence = sequence
        first, last = file_block // PIECE_BLOCKS, (file_block + count - 1) // PIECE_BLOCKS
        if first not in new.pieces or last not in new.pieces or last - first > 1:
            new.pieces |= self.pieces(file_block, count)

    def take_new(self) -> dict[int, NewData]:
        """The new data so far, for the batch that is being put together."""
        taken, self.new = self.new, {}
        return taken

    def give_back(self, taken: dict[int, NewData]) -> None:
        """The batch could not be issued."""
        for ino, older in taken.items():
            new = self.new.setdefault(ino, older)
            if new is not older:
                new.pieces |= older.pieces
                new.sequence = max(new.sequence, older.sequence)

    def describe(self, ino: int, pieces: Iterable[int], segment: int) -> Naming:
        """How a batch in `segment` names a file with these ranges: all covered ones, if first there."""
        covered = self.files.get(ino)
        if not self.policy.name_new_data:
            pieces = ()
        if covered is None:
            wanted, restated = set(pieces), True
        else:
            restated = covered.segment != segment and self.policy.restate
            if covered.ranges is None:
                return Naming(ino, whole=restated, restated=restated, ranges=())
            wanted = covered.ranges.union(pieces)
            if len(wanted) <= self.policy.range_limit and not restated:
                wanted -= covered.ranges
        if len(wanted) > self.policy.range_limit or max(wanted, default=0) >= PIECE_LIMIT:
            return Naming(ino, whole=True, restated=restated, ranges=())
        return Naming(ino, whole=False, restated=restated, ranges=tuple(sorted(wanted)))

    def name(self, naming: Naming, segment: int, now_ns: int, *, lsn: int = 0, sequence: int = 0) -> None:
        """A batch with this naming was issued. `lsn`: it had metadata; `sequence`: of the new data named."""
        covered = self._cover(naming, segment)
        covered.last_lsn = max(covered.last_lsn, lsn)
        covered.last_sequence = max(covered.last_sequence, sequence)
        covered.touched_ns = max(covered.touched_ns, now_ns)

    def _cover(self, said: Naming | LogRecord, segment: int) -> FileCoverage:
        """Take over what a batch in `segment` says of a file."""
        covered = self.files.get(said.ino)
        if covered is None:
            covered = self.files[said.ino] = FileCoverage(said.ino, set(), segment)
        if said.whole:
            covered.ranges = None
        elif covered.ranges is not None:
            covered.ranges.update(said.ranges)
        if said.restated:
            covered.segment = segment
        return covered

    def add_region(self, runs: list[Run], segment: int) -> RegionCoverage:
        """A batch that names these blocks was issued (or is about to be: nothing else happens in between)."""
        region = RegionCoverage(self.next_region, runs, segment)
        self.regions[region.number] = region
        self.next_region += 1
        return region

    # -- I2 ----------------------------------------------------------------

    def is_ripe(self, covered: FileCoverage, far: FarState) -> bool:
        """May the name of a file go?"""
        if far.now_ns - covered.touched_ns < self.policy.linger_ns:
            return False
        if self.policy.wait_for_far and far.far_durable_sequence < covered.last_sequence:
            return False
        return not self.policy.wait_for_checkpoint or self._is_checkpointed(covered.last_lsn, far)

    def _is_checkpointed(self, lsn: int, far: FarState) -> bool:
        far_has_it = far.far_durable_sequence >= far.superblock_sequence or not self.policy.wait_for_far
        return lsn < far.checkpoint_lsn and far_has_it

    def ripe(self, far: FarState) -> tuple[list[int], list[int]]:
        """Files and regions whose names may go."""
        files = [ino for ino, covered in self.files.items() if self.is_ripe(covered, far)]
        return files, self.ripe_regions(far)

    def ripe_regions(self, far: FarState) -> list[int]:
        """Regions whose names may go."""
        return [
            region.number
            for region in self.regions.values()
            if region.settled_sequence is not None
            and (not self.policy.wait_for_far or far.far_durable_sequence >= region.settled_sequence)
            and self._is_checkpointed(region.last_lsn, far)
        ]

    def drop(self, files: Iterable[int], regions: Iterable[int]) -> None:
        """A batch that retires these was issued."""
        for ino in files:
            self.files.pop(ino, None)
        for number in regions:
            self.regions.pop(number, None)

    def first_needed_segment(self) -> int | None:
        """The oldest segment in which something live is named."""
        oldest = [covered.segment for covered in self.files.values()]
        oldest += [region.segment for region in self.regions.values()]
        return min(oldest, default=None)

    def older_than(self, segment: int) -> tuple[list[int], list[int]]:
        """Files and regions that older segments name and this one does not: to be named again here."""
        files = [ino for ino, covered in self.files.items() if covered.segment < segment]
        return files, [region.number for region in self.regions.values() if region.segment < segment]

    # -- I4 ----------------------------------------------------------------

    def size_bytes(self) -> int:
        """What naming everything again would take in the log, about."""
        ranges = sum([len(covered.ranges or ()) for covered in self.files.values()])
        runs = sum([len(region.runs) for region in self.regions.values()])
        return LOG_RECORD.size * (len(self.files) + len(self.regions)) + 4 * ranges + LOG_RUN.size * runs

    def is_too_large(self, bytes_limit: int) -> bool:
        """Is it time to be less precise?"""
        return len(self.files) > self.policy.file_limit or self.size_bytes() > bytes_limit

    def widen(self) -> list[Naming]:
        """RANGE -> FILE: namings that make every file with ranges covered whole."""
        return [
            Naming(covered.ino, whole=True, restated=True, ranges=())
            for covered in self.files.values()
            if covered.ranges
        ]

    def region_bytes(self) -> int:
        """The share of the regions in that."""
        return LOG_RUN.size * sum([len(region.runs) for region in self.regions.values()])

    def to_region(
        self, blocks_of: Callable[[int], Iterable[Run]], total_blocks: int, *, keep: int, run_limit: int
    ) -> tuple[list[int], list[int], RegionCoverage]:
        """FILE -> REGION: all but the `keep` files touched last and all settled regions become one region.

        Returns the files and regions that it replaces, and the region, not added yet.
        """
        oldest = sorted(self.files.values(), key=lambda covered: covered.touched_ns)
        files = oldest[: max(len(oldest) - keep, 0)]
        regions = [region for region in self.regions.values() if region.settled_sequence is not None]
        runs = [run for region in regions for run in region.runs]
        for covered in files:
            if covered.ranges is None or covered.ranges:
                runs += blocks_of(covered.ino)
        sequences = [covered.last_sequence for covered in files]
        sequences += [region.settled_sequence or 0 for region in regions]
        lsns = [covered.last_lsn for covered in files] + [region.last_lsn for region in regions]
        merged = merge_runs(runs)
        if len(merged) > run_limit:
            merged = snap_runs(merged, total_blocks, run_limit)
        region = RegionCoverage(0, merged, 0, max(sequences, default=0), max(lsns, default=0))
        return [covered.ino for covered in files], [region.number for region in regions], region

    # -- replay ------------------------------------------------------------

    def replay(self, record: LogRecord, segment: int, lsn: int) -> None:
        """Take over what a record of the log says."""
        if record.kind == FILE_RECORD:
            if is_named(record.ino):
                self._replay_file(record, segment, lsn)
        elif record.kind == REGION_RECORD:
            region = self.regions.get(record.ino)
            if region is None:
                region = self.regions[record.ino] = RegionCoverage(record.ino, [], segment, 0)
            if record.restated:
                region.segment = segment
            region.runs = merge_runs([*region.runs, *record.allocations])
            self.next_region = max(self.next_region, record.ino + 1)
        elif record.kind == RETIRED_FILES:
            self.drop(record.numbers, ())
        elif record.kind == RETIRED_REGIONS:
            self.drop((), record.numbers)

    def _replay_file(self, record: LogRecord, segment: int, lsn: int) -> None:
        covered = self._cover(record, segment)
        if record.item_count or record.frees or record.allocations:
            covered.last_lsn = lsn

    def written_up_to(self, sequence: int) -> None:
        """After a replay: every covered write has at most this sequence."""
        for covered in self.files.values():
            covered.last_sequence = sequence
        for region in self.regions.values():
            region.settled_sequence = sequence


def is_named(ino: int) -> bool:
    """Is this a file (not the free map, the orphan list, the tree or the log, which other rules cover)?"""
    return ino == 1 or ino > 5


def snap_runs(runs: Sequence[Run], total_blocks: int, run_limit: int) -> list[Run]:
    """At most `run_limit` runs (or a few less fine ones) that hold all blocks of the given ones."""
    grain = 256
    while total_blocks // grain > run_limit:
        grain *= 2
    grains = sorted(
        {piece for start, count in runs for piece in range(start // grain, (start + count - 1) // grain + 1)}
    )
    return join_runs([(piece * grain, min(grain, total_blocks - piece * grain)) for piece in grains])
