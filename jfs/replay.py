"""Reading a volume: the superblock, then the log from its tail: what is covered, and what the tree lacks."""

import secrets
from collections import deque
from dataclasses import dataclass, field

from jfs.batch import FILE_RECORD, JUMP_BATCH, Batch, broken_batch, decode_records
from jfs.coverage import Coverage, CoveragePolicy
from jfs.device import BlockDevice
from jfs.errors import CorruptionError, OtherFormatError
from jfs.layout import BLOCK_BYTES, LOG_INO, SUPERBLOCK_SLOTS, LogPlace, Superblock
from jfs.log import LogReader, LogWriter, Segment
from jfs.runs import Run
from jfs.volume import Volume

DEFAULT_CACHE_BYTES = 112 << 20


def read_superblock(device: BlockDevice) -> Superblock:
    """The newest superblock. CorruptionError if neither slot holds one, or the device is too small for it."""
    found: list[Superblock] = []
    faults: list[CorruptionError] = []
    if device.size_bytes < len(SUPERBLOCK_SLOTS) * BLOCK_BYTES:
        raise CorruptionError(f"a device of {device.size_bytes} bytes cannot hold a trisite file system")
    for slot in SUPERBLOCK_SLOTS:
        try:
            found.append(
                Superblock.decode(device.read(slot * BLOCK_BYTES, BLOCK_BYTES), f"superblock slot {slot}")
            )
        except CorruptionError as fault:
            faults.append(fault)
    others = [fault for fault in faults if isinstance(fault, OtherFormatError)]
    if others or not found:
        raise (others or faults)[-1]
    superblock = max(found, key=lambda one: one.generation)
    if superblock.total_blocks * BLOCK_BYTES > device.size_bytes:
        raise CorruptionError(
            f"the volume has {superblock.total_blocks} blocks, but the device only"
            f" {device.size_bytes // BLOCK_BYTES}: it was cut short"
        )
    return superblock


@dataclass(slots=True)
class LogEnd:
    """Where the log was found to end, and the segments it has."""

    place: LogPlace
    segments: list[Segment]
    owned: list[int]
    vouched: bool = False
    """Some of the newest batches vouch for data, and none that counts says that they were durable."""
    unproven_lsn: int | None = None
    """The batch that the log was taken to end before, because what it vouches for is not there."""
    decisive: list[int] = field(default_factory=list)
    """Blocks of the volume that decided where the log ends: what its newest batches vouch for."""


@dataclass(frozen=True, slots=True)
class Change:
    """An atomic change as it was found, or a jump: its batches, and where the log goes on behind it."""

    parts: list[tuple[Batch, int]]
    place: LogPlace
    segments: list[Segment]

    @property
    def last(self) -> Batch:
        return self.parts[-1][0]

    @property
    def vouches(self) -> bool:
        return any(batch.vouches for batch, _ in self.parts)


class Replayer:
    """Applies atomic changes, complete ones only, in order. One that vouches for data waits, and all behind
    it, until a later batch says that it was durable; at the end of the log the data must be there.
    """

    def __init__(self, volume: Volume, reader: LogReader) -> None:
        self._volume = volume
        self._reader = reader
        self._unfinished: list[tuple[Batch, int]] = []
        self._waiting: deque[Change] = deque()
        self._vouched_lsn = -1  # the newest that counts of those that vouch
        self._said_durable_lsn = 0  # by those that count
        superblock = volume.superblock
        self.end = LogEnd(superblock.tail, list(reader.segments), list(superblock.segments))
        reader.owned = self.end.owned

    def run(self) -> LogEnd:
        """Follow the log to its end. CorruptionError: `end` says how far it could be followed."""
        checkpoint = self._volume.superblock.checkpoint
        reached = self.end.place.lsn >= checkpoint.lsn
        try:
            for batch in self._reader:
                if batch.lsn == checkpoint.lsn:
                    reached = LogPlace(batch.lsn, batch.block, batch.chain) == checkpoint
                self._add(batch)
        finally:
            self._finish()
        if not reached and self.end.place != checkpoint:
            raise CorruptionError(
                f"the metadata log ends at batch {self.end.place.lsn},"
                f" but the checkpoint was made at batch {checkpoint.lsn}"
            )
        return self.end

    def _add(self, batch: Batch) -> None:
        self._unfinished.append((batch, self._reader.segments[-1].ordinal))
        if not batch.more and (batch.kind != JUMP_BATCH or len(self._unfinished) == 1):
            change = Change(self._unfinished, self._reader.place, list(self._reader.segments))
            self._unfinished = []
            self._waiting.append(change)
        while self._waiting and not self._must_wait(self._waiting[0], batch.durable_lsn):
            self._apply(self._waiting.popleft())

    def _must_wait(self, change: Change, durable_lsn: int) -> bool:
        last_lsn = change.last.lsn
        return change.vouches and last_lsn >= max(durable_lsn, self._volume.superblock.checkpoint.lsn)

    def _finish(self) -> None:
        """The log ends: what nothing says to have been durable counts as far as its data is there."""
        while self._waiting:
            change = self._waiting.popleft()
            if change.vouches and not self._is_proven(change):
                self.end.unproven_lsn = change.parts[0][0].lsn
                break
            self._apply(change)
        durable_lsn = max(self._said_durable_lsn, self._volume.superblock.checkpoint.lsn)
        self.end.vouched = self._vouched_lsn >= durable_lsn

    def _is_proven(self, change: Change) -> bool:
        vouchers = [
            voucher
            for batch, _ in change.parts
            if batch.vouches
            for record in decode_records(batch.body, batch.lsn, with_items=False)
            for voucher in record.vouchers
        ]
        if any(voucher.block >= self._volume.superblock.total_blocks for voucher in vouchers):
            raise broken_batch(change.last.lsn)
        self.end.decisive += [voucher.block for voucher in vouchers]
        return all(voucher.holds(self._volume.device) for voucher in vouchers)

    def _own_segments(self, change: Change) -> None:
        """A jump may lead to a segment that the log took for itself just then."""
        for segment in change.segments[len(self.end.segments) :]:
            if segment.start not in self.end.owned:
                self.end.owned.append(segment.start)
            if change.last.lsn >= self._volume.superblock.checkpoint.lsn:
                self._volume.free_map.set_used(segment.start, self._volume.superblock.segment_blocks)

    def _apply(self, change: Change) -> None:
        self._own_segments(change)
        self._redo(change)
        if change.vouches:
            self._vouched_lsn = change.last.lsn
        self._said_durable_lsn = max(batch.durable_lsn for batch, _ in change.parts)
        self.end.place, self.end.segments = change.place, change.segments

    def _redo(self, change: Change) -> None:
        volume = self._volume
        redo = change.parts[0][0].lsn >= volume.superblock.checkpoint.lsn
        allocations: list[Run] = []
        frees: list[tuple[int, Run]] = []
        for batch, ordinal in change.parts:
            if batch.kind == JUMP_BATCH:
                continue
            for record in decode_records(batch.body, batch.lsn, with_items=redo):
                volume.coverage.replay(record, ordinal, batch.lsn)
                if redo and record.kind == FILE_RECORD:
                    for key, value in record.items:
                        volume.set(key, value)
                    allocations += record.allocations
                    frees += [(record.ino, run) for run in record.frees]
                    volume.changed = volume.changed or bool(record.items or allocations or frees)
        # A block may be allocated and freed in one change, never the other way round.
        for start, count in allocations:
            volume.free_map.set_used(start, count)
        for ino, (start, count) in frees:
            volume.free_map.set_free(start, count)
            if ino == LOG_INO and start in self.end.owned:
                self.end.owned.remove(start)


def load_volume(
    device: BlockDevice, *, policy: CoveragePolicy | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES
) -> tuple[Volume, LogEnd]:
    """The volume as its log leaves it, in memory only: nothing is written."""
    superblock = read_superblock(device)
    volume = Volume(device, superblock, Coverage(policy or CoveragePolicy()), cache_bytes)
    end = Replayer(volume, log_reader(volume)).run()
    volume.coverage.written_up_to(device.issued_sequence)
    volume.superblock_sequence = device.issued_sequence
    return volume, end


def log_reader(volume: Volume) -> LogReader:
    """Follows the log of a volume from its tail."""
    superblock = volume.superblock
    reader = LogReader(volume.device, superblock.uuid, superblock.tail, superblock.segment_blocks)
    reader.segments[0].start = _segment_of(superblock, superblock.tail.block)
    return reader


def _segment_of(superblock: Superblock, block: int) -> int:
    """The segment that holds a block."""
    for start in superblock.segments:
        if start <= block < start + superblock.segment_blocks:
            return start
    raise CorruptionError(f"the log's tail at block {block} is in none of the log's segments")


def attach_log(volume: Volume, end: LogEnd) -> None:
    """Make a loaded volume writable: the log goes on where it ended. What was read must be durable by now."""
    superblock = volume.superblock
    live = {segment.start for segment in end.segments}
    segment_blocks = superblock.segment_blocks
    volume.log = LogWriter(
        volume.device,
        superblock.uuid,
        segment_blocks=segment_blocks,
        segment_limit=superblock.segment_limit,
        segments=end.segments,
        spares=[start for start in end.owned if start not in live],
        place=end.place,
        incarnation=secrets.randbits(64),
        grow=lambda: volume.free_map.allocate_segment(segment_blocks, end.segments[-1].start),
        grow_urgently=lambda: volume.free_map.allocate_contiguous(segment_blocks, end.segments[-1].start),
    )
