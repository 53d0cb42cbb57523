"""Making changes into batches: what a batch says, and the intents that precede writes in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jfs.batch import (
    FILE_RECORD,
    LOG_RECORD,
    LOG_RUN,
    RETIRED_FILES,
    RETIRED_REGIONS,
    LogRecord,
    encode_file,
    encode_item,
    encode_numbers,
    encode_record,
    encode_region,
    encode_vouchers,
)
from jfs.coverage import Naming, RegionCoverage, is_named, snap_runs
from jfs.layout import BLOCK_BYTES
from jfs.volume import Changes, Volume
from jfs.vouchers import Voucher

LEAST_RUNS = 64  # of a region, however short the log is


@dataclass(slots=True)
class Housekeeping:
    """What a batch says besides changes: names that go, names said again, files that become a region."""

    retired_files: list[int] = field(default_factory=list)
    retired_regions: list[int] = field(default_factory=list)
    renamed_files: list[int] = field(default_factory=list)
    renamed_regions: list[int] = field(default_factory=list)
    widened: list[Naming] = field(default_factory=list)
    region: RegionCoverage | None = None


def issue_changes(
    volume: Volume,
    changes: Changes,
    housekeeping: Housekeeping,
    vouchers: Sequence[Voucher] = (),
    *,
    urgent: bool = False,
) -> None:
    """Issue one atomic batch (`urgent`: of a checkpoint), which counts only if what it vouches for is there.
    DeviceError or LogFull leave log and coverage as they were.
    """
    log, coverage = volume.writer(), volume.coverage
    segment, lsn, now_ns = log.ordinal, log.place.lsn, volume.now_ns()
    items = _items_by_ino(changes)
    namings: dict[int, Naming] = {naming.ino: naming for naming in housekeeping.widened}
    gone = set(housekeeping.retired_files)
    touched = [ino for ino in {*items, *changes.new, *changes.allocations, *changes.frees} if is_named(ino)]
    for ino in (*touched, *housekeeping.renamed_files):
        if ino not in namings:
            new = changes.new.get(ino)
            namings[ino] = coverage.describe(ino, new.pieces if new else (), segment)
    gone.difference_update(namings)
    chunks = encode_numbers(RETIRED_FILES, sorted(gone))
    chunks += encode_numbers(RETIRED_REGIONS, housekeeping.retired_regions)
    for number in housekeeping.renamed_regions:
        chunks += encode_region(number, coverage.regions[number].runs, restated=True)
    if housekeeping.region is not None:
        chunks += encode_region(coverage.next_region, housekeeping.region.runs, restated=True)
    for ino in {*items, *changes.allocations, *changes.frees, *namings}:
        naming = namings.get(ino)
        record = LogRecord(
            FILE_RECORD, ino, allocations=changes.allocations.get(ino, ()), frees=changes.frees.get(ino, ())
        )
        if naming is not None:
            record.whole, record.restated, record.ranges = naming.whole, naming.restated, naming.ranges
        chunks += encode_file(record, items.get(ino, []))
    if not chunks:
        return
    if vouchers:
        chunks.append(encode_vouchers(vouchers))
    log.append(chunks, urgent=urgent, vouches=bool(vouchers))
    coverage.drop(gone, housekeeping.retired_regions)
    with_metadata = set(touched)
    for ino, naming in namings.items():
        new = changes.new.get(ino)
        coverage.name(
            naming,
            segment,
            now_ns if ino in with_metadata else 0,
            lsn=lsn if ino in with_metadata else 0,
            sequence=new.sequence if new else 0,
        )
    for number in housekeeping.renamed_regions:
        coverage.regions[number].segment = segment
    if housekeeping.region is not None:
        added = coverage.add_region(housekeeping.region.runs, segment)
        added.settled_sequence = housekeeping.region.settled_sequence
        added.last_lsn = housekeeping.region.last_lsn
    if items or changes.allocations or changes.frees:
        volume.changed = True


def _items_by_ino(changes: Changes) -> dict[int, list[bytes]]:
    """The items of a batch, encoded, under the file that each belongs to."""
    by_ino: dict[bytes, list[bytes]] = {}
    for key, value in changes.items.items():
        encoded = encode_item(key, value)
        ino = key[:8]
        if ino in by_ino:
            by_ino[ino].append(encoded)
        else:
            by_ino[ino] = [encoded]
    return {int.from_bytes(ino, "big"): items for ino, items in by_ino.items()}


def issue_intent(volume: Volume, ino: int, file_block: int, count: int) -> None:
    """I1: name the file and the range before it is overwritten in place."""
    log, coverage = volume.writer(), volume.coverage
    naming = coverage.describe(ino, coverage.pieces(file_block, count), log.ordinal)
    if not log.has_room(0):
        # Short of room: one intent for the whole file instead of one for each range.
        naming = Naming(ino, whole=True, restated=naming.restated, ranges=())
    record = LogRecord(FILE_RECORD, ino, naming.whole, naming.restated, naming.ranges)
    segment = log.ordinal
    log.append([encode_record(record)])
    coverage.name(naming, segment, volume.now_ns())


def issue_region(volume: Volume, runs: list[tuple[int, int]]) -> RegionCoverage:
    """I1 for the blocks of a checkpoint, which are no file's: name them before they are written.

    Nodes that lie apart take much to be named one by one: more is named than that, if the log is short.
    """
    log = volume.writer()
    run_limit = max(log.room_bytes() // 4 // LOG_RUN.size, LEAST_RUNS)
    if len(runs) > run_limit:
        runs = snap_runs(runs, volume.superblock.total_blocks, run_limit)
    segment = log.ordinal
    log.append(encode_region(volume.coverage.next_region, runs, restated=True), urgent=True)
    return volume.coverage.add_region(runs, segment)


def ripe_names(volume: Volume, files: Iterable[int]) -> Housekeeping:
    """The names that may go now: those among `files` that are still ripe, and the ripe regions."""
    far, coverage = volume.far_state(), volume.coverage
    ripe = [ino for ino in files if (covered := coverage.files.get(ino)) and coverage.is_ripe(covered, far)]
    return Housekeeping(retired_files=ripe, retired_regions=coverage.ripe_regions(far))


def checkpoint_housekeeping(volume: Volume, may_coarsen: bool) -> Housekeeping:
    """What the batch of a checkpoint says so that the log before it becomes free as far as possible."""
    log, coverage = volume.writer(), volume.coverage
    housekeeping = ripe_names(volume, list(coverage.files))
    limit_bytes, size_bytes = log.owned_bytes() // 8, coverage.size_bytes()
    is_short = not log.has_room(0)
    if is_short and size_bytes >= log.room_bytes() // 2:
        # On a full volume, where the log cannot grow. Waiting would only leave less room to say it in.
        limit_bytes = min(limit_bytes, log.room_bytes() // 4)
    if may_coarsen and coverage.is_too_large(limit_bytes):
        coarsen(volume, housekeeping, limit_bytes)
        names_to_renew(volume, housekeeping)
        return housekeeping
    is_cheap = size_bytes < log.segment_blocks * BLOCK_BYTES // 4
    is_needed = len(log.segments) > log.segment_limit // 2 or is_short
    if is_cheap or (is_needed and size_bytes < log.room_bytes() // 2):
        names_to_renew(volume, housekeeping)
    return housekeeping


def names_to_renew(volume: Volume, housekeeping: Housekeeping) -> None:
    """Have everything that only older segments name said again, so that those segments become free."""
    coverage = volume.coverage
    files, regions = coverage.older_than(volume.writer().ordinal)
    gone_files, gone_regions = set(housekeeping.retired_files), set(housekeeping.retired_regions)
    housekeeping.renamed_files = [ino for ino in files if ino not in gone_files]
    housekeeping.renamed_regions = [number for number in regions if number not in gone_regions]


def coarsen(volume: Volume, housekeeping: Housekeeping, limit_bytes: int) -> None:
    """I4: say less precisely what is covered, because saying it precisely takes more than `limit_bytes`."""
    coverage = volume.coverage

    def blocks_of(ino: int) -> list[tuple[int, int]]:
        return [(start, count) for _, start, count in volume.extents(ino, frozen_only=True)]

    keep = min(coverage.policy.file_limit, limit_bytes // 2 // LOG_RECORD.size) // 2
    if len(coverage.files) > keep or coverage.region_bytes() > limit_bytes // 4:
        run_limit = max(limit_bytes // 4 // LOG_RUN.size, LEAST_RUNS)
        files, regions, region = coverage.to_region(
            blocks_of, volume.superblock.total_blocks, keep=keep, run_limit=run_limit
        )
        housekeeping.retired_files = [*{*housekeeping.retired_files, *files}]
        housekeeping.retired_regions = [*{*housekeeping.retired_regions, *regions}]
        housekeeping.region = region
    gone = set(housekeeping.retired_files)
    housekeeping.widened = [naming for naming in coverage.widen() if naming.ino not in gone]
