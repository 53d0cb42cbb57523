"""Opening a volume that may be damaged, without writing: superblocks, the log, the free map as it stands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from jfs.coverage import Coverage, CoveragePolicy
from jfs.device import BlockDevice
from jfs.errors import CorruptionError, OtherFormatError
from jfs.freemap import FreeMap, decode_group
from jfs.fsck_blocks import BlockUse
from jfs.fsck_codes import Fault
from jfs.fsck_tree import TolerantCache, TreeWalk
from jfs.layout import BLOCK_BYTES, FREE_MAP_INO, GROUP, SUPERBLOCK_SLOTS, Superblock, make_key
from jfs.replay import LogEnd, Replayer, log_reader
from jfs.tree import Tree
from jfs.volume import Volume

CACHE_BYTES = 16 << 20
Progress = Callable[[float, str], None]


@dataclass
class Superblocks:
    """The superblocks that could be read. `faults` do not count the slots: whether one is missing, the log
    says."""

    newest: Superblock | None
    faults: list[Fault] = field(default_factory=list)
    bad_slots: list[Fault] = field(default_factory=list)
    bad_backup: bool = False


def read_superblocks(device: BlockDevice) -> Superblocks:
    """Both slots and the copy in the last block."""
    found = Superblocks(None)
    slots: list[Superblock] = []
    for slot in SUPERBLOCK_SLOTS:
        place = f"superblock slot {slot}"
        if (slot + 1) * BLOCK_BYTES > device.size_bytes:
            found.bad_slots.append(Fault("superblock-slot", place, f"the device ends before {place}"))
            continue
        try:
            slots.append(Superblock.decode(device.read(slot * BLOCK_BYTES, BLOCK_BYTES), place))
        except OtherFormatError as error:
            code = "superblock-newer" if error.newer else "superblock-older"
            found.faults.append(Fault(code, place, error.sentence))
            return found
        except CorruptionError as error:
            found.bad_slots.append(Fault("superblock-slot", place, error.sentence))
    if not slots:
        sentences = "; ".join(fault.sentence for fault in found.bad_slots)
        found.faults.append(Fault("superblock-lost", "superblock", f"there is no superblock: {sentences}"))
        return found
    newest = max(slots, key=lambda superblock: superblock.generation)
    if newest.total_blocks * BLOCK_BYTES > device.size_bytes:
        sentence = (
            f"the volume has {newest.total_blocks} blocks, but the storage area only"
            f" {device.size_bytes // BLOCK_BYTES}"
        )
        found.faults.append(Fault("area-truncated", "volume", sentence))
        return found
    found.newest = newest
    other = min(slots, key=lambda superblock: superblock.generation)
    if (other.uuid, other.total_blocks) != (newest.uuid, newest.total_blocks):
        place = f"superblock slot {other.generation % 2}"
        found.faults.append(Fault("superblock-slot", place, f"{place} is of another volume"))
    _read_backup(device, newest, found)
    return found


def _read_backup(device: BlockDevice, newest: Superblock, found: Superblocks) -> None:
    place = "the copy of the superblock"
    block = newest.total_blocks - 1
    sentence = f"{place} is of another volume"
    try:
        backup = Superblock.decode(device.read(block * BLOCK_BYTES, BLOCK_BYTES), place)
        found.bad_backup = (backup.uuid, backup.total_blocks) != (newest.uuid, newest.total_blocks)
    except CorruptionError as error:
        found.bad_backup = True
        sentence = error.sentence
    if found.bad_backup:
        found.faults.append(Fault("superblock-backup", f"block {block}", sentence))


@dataclass
class Opened:
    """A volume in memory as a mount would see it, as far as it can be read. `end` is None if the log cannot
    be."""

    volume: Volume
    cache: TolerantCache
    superblocks: Superblocks
    faults: list[Fault]
    end: LogEnd | None

    def walk(self, blocks: BlockUse) -> TreeWalk:
        """A walk over the tree and what changed since, after superblocks, log and tree claimed their
        blocks."""
        total = self.volume.superblock.total_blocks
        blocks.claim(0, len(SUPERBLOCK_SLOTS))
        blocks.claim(total - 1, 1)
        for start in self.segments():
            blocks.claim(start, self.volume.superblock.segment_blocks)
        return TreeWalk(self.volume.tree, self.cache, self.volume.overlay, blocks)

    def segments(self) -> list[int]:
        """The segments of the log; none of a log that cannot be read."""
        if self.end is None:
            return []
        return self.end.owned


def open_volume(device: BlockDevice) -> tuple[Superblocks, Opened | None]:
    """Read the volume; None if there is no superblock to begin with. DeviceError if the device cannot be
    read."""
    superblocks = read_superblocks(device)
    superblock = superblocks.newest
    if superblock is None:
        return superblocks, None
    try:
        volume = Volume(device, superblock, Coverage(CoveragePolicy()), CACHE_BYTES)
    except CorruptionError as error:
        superblocks.faults.append(Fault("superblock-lost", "superblock", error.sentence))
        return superblocks, None
    cache = TolerantCache(device, superblock.uuid, CACHE_BYTES)
    volume.cache = cache
    volume.tree = Tree(cache, superblock.tree_root, superblock.tree_height)
    volume.free_map = FreeMap(
        superblock.total_blocks,
        superblock.reserve_blocks,
        lambda group: _readable_group(volume, group),
        superblock.free_blocks,
    )
    opened = Opened(volume, cache, superblocks, [], None)
    fault = _check_table(superblock)
    if fault is not None:
        opened.faults.append(fault)
        return superblocks, opened
    opened.end = _replay(opened)
    if superblocks.bad_slots and not _is_interrupted(superblock, opened.end):
        opened.faults += superblocks.bad_slots
    return superblocks, opened


def _readable_group(volume: Volume, group: int) -> bytes | None:
    """The free map's item of a group; one that cannot be read counts as all free here, and is a finding
    elsewhere."""
    value = volume.tree.get(make_key(FREE_MAP_INO, GROUP, group))
    try:
        decode_group(value, group)
    except CorruptionError:
        return None
    return value


def _is_interrupted(superblock: Superblock, end: LogEnd) -> bool:
    """May the other slot be unreadable because its writing was cut short, or because it was never written?

    A checkpoint issues a batch before its superblock, so after a crash there is more log than the one batch
    that stands behind the last checkpoint of a volume that was closed cleanly.
    """
    return superblock.generation == 1 or not superblock.clean or end.place.lsn > superblock.checkpoint.lsn + 1


def _check_table(superblock: Superblock) -> Fault | None:
    """The fault of the table of log segments, if it has one."""
    length = superblock.segment_blocks
    starts = sorted(superblock.segments)
    first, last = len(SUPERBLOCK_SLOTS), superblock.total_blocks - 1
    if not starts or starts[0] < first or starts[-1] + length > last:
        return Fault("log-table", "log", "the log has a segment outside the volume, or none")
    if any(start + length > following for start, following in pairwise(starts)):
        return Fault("log-table", "log", "two segments of the log overlap")
    tail = superblock.tail.block
    if not any(start <= tail < start + length for start in starts):
        return Fault("log-table", "log", f"the log's tail at block {tail} is in none of its segments")
    return None


def _replay(opened: Opened) -> LogEnd:
    """Read the log as a mount does; what comes after damage is left out and reported."""
    volume = opened.volume
    replayer = Replayer(volume, log_reader(volume))
    end = replayer.end
    try:
        replayer.run()
    except CorruptionError as error:
        opened.faults.append(Fault("log-damaged", "log", error.sentence))
    volume.coverage.written_up_to(volume.device.issued_sequence)
    volume.superblock_sequence = volume.device.issued_sequence
    return end
