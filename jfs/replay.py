"""Reading a volume: the superblock, then the log from its tail: what is covered, and what the tree lacks."""

import secrets
from dataclasses import dataclass

from jfs.batch import FILE_RECORD, JUMP_BATCH, Batch, decode_records
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


class Replayer:
    """Applies atomic changes, complete ones only, in order."""

    def __init__(self, volume: Volume, reader: LogReader) -> None:
        self._volume = volume
        self._reader = reader
        self._unfinished: list[tuple[Batch, int]] = []
        superblock = volume.superblock
        self.end = LogEnd(superblock.tail, list(reader.segments), list(superblock.segments))
        reader.owned = self.end.owned

    def run(self) -> LogEnd:
        checkpoint = self._volume.superblock.checkpoint
        reached = self.end.place.lsn >= checkpoint.lsn
        for batch in self._reader:
            if batch.lsn == checkpoint.lsn:
                reached = LogPlace(batch.lsn, batch.block, batch.chain) == checkpoint
            if batch.kind == JUMP_BATCH:
                if not self._unfinished:
                    self._own_segments(batch)
            else:
                self._unfinished.append((batch, self._reader.segments[-1].ordinal))
                if batch.more:
                    continue
                self._apply()
            if not self._unfinished:
                self.end.place = self._reader.place
                self.end.segments = list(self._reader.segments)
        if not reached and self.end.place != checkpoint:
            raise CorruptionError(
                f"the metadata log ends at batch {self.end.place.lsn},"
                f" but the checkpoint was made at batch {checkpoint.lsn}"
            )
        return self.end

    def _own_segments(self, batch: Batch) -> None:
        """A jump may lead to a segment that the log took for itself just then."""
        for segment in self._reader.segments[len(self.end.segments) :]:
            if segment.start not in self.end.owned:
                self.end.owned.append(segment.start)
            if batch.lsn >= self._volume.superblock.checkpoint.lsn:
                self._volume.free_map.set_used(segment.start, self._volume.superblock.segment_blocks)

    def _apply(self) -> None:
        volume = self._volume
        parts, self._unfinished = self._unfinished, []
        self._own_segments(parts[-1][0])
        redo = parts[0][0].lsn >= volume.superblock.checkpoint.lsn
        allocations: list[Run] = []
        frees: list[tuple[int, Run]] = []
        for batch, ordinal in parts:
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
