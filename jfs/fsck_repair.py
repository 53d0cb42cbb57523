"""Repair: everything that can be put right without inventing data.

The repairs are changes of items in memory, made in passes until a look at the whole finds nothing more to
change. One checkpoint then makes all of them durable at once, so that a crash leaves the volume as it was
or repaired, and what is written travels to the other sites as any checkpoint does. Blocks that the repairs
set free are given back by a second checkpoint, when nothing durable refers to them any more.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from stat import S_IFDIR
from typing import NamedTuple

from jfs import directory, fsck_edit
from jfs.commit import issue_region
from jfs.coverage import Coverage, CoveragePolicy, snap_runs
from jfs.device import BlockDevice
from jfs.errors import CorruptionError, NoSpace
from jfs.freemap import decode_group
from jfs.fsck_blocks import runs_of
from jfs.fsck_codes import Fault, Finding
from jfs.fsck_examine import Collector, Examination, examine
from jfs.fsck_tree import FoundLeaf, Gap, find_leaves
from jfs.fsck_volume import Opened, Progress, open_volume
from jfs.inode import Inode
from jfs.layout import (
    BLOCK_BYTES,
    DIRENT,
    FREE_MAP_INO,
    GROUP,
    GROUP_BLOCKS,
    INODE,
    ROOT_INO,
    LogPlace,
    key_range,
    make_key,
    split_key,
)
from jfs.log import LogWriter, Segment
from jfs.replay import attach_log
from jfs.runs import Run, merge_runs
from jfs.store import Store, StoreOptions
from jfs.tree import Item
from jfs.volume import Volume

MOST_PASSES = 12
REGION_RUNS = 2048
FRESH_LSN_DISTANCE = 1 << 32  # no batch that was ever written has a number so high
LEAST_LOG_ROOM_BYTES = 64 << 10
LOST_AND_FOUND = b"lost+found"
# What is between inodes after what is in them; counts first: their repair sets what is right before names
# come and go.
_LATER = {
    "inode-links": 1,
    "inode-parent": 1,
    "name-dangling": 2,
    "name-type": 2,
    "name-second-parent": 2,
    "orphan-stale": 3,
    "orphan-unlisted": 3,
    "directory-cycle": 3,
}


class VolumeEditor:
    """Changes of items that only the next checkpoint makes durable."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def get(self, key: bytes) -> bytes | None:
        return self._volume.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._volume.set(key, value)

    def delete(self, key: bytes) -> None:
        self._volume.set(key, None)

    def scan(self, first: bytes, last: bytes) -> Iterator[Item]:
        return self._volume.scan(first, last)


async def repair(device: BlockDevice, progress: Progress | None = None) -> list[Finding]:
    """Repair what can be repaired; what was found, each with whether it is repaired now.

    A volume without a fault is not written to. DeviceError, NoSpace: the volume is as it was before, or
    repaired.
    """
    hear = progress or _unheard
    collector = Collector()
    superblocks, opened = open_volume(device)
    collector.add(superblocks.faults)
    if opened is None:
        return collector.findings()
    collector.add(opened.faults)
    look = _look(opened, hear)
    collector.add(look.faults)
    if not collector.findings():
        return []
    await device.flush()
    if look.examination.gaps:
        _mend_tree(opened, look.examination)
        look = _look(opened, hear)
    examination = _edit_until_right(opened, look, collector, hear)
    await _write(opened, examination, give_back=False)
    superblocks, opened = open_volume(device)
    if opened is not None:
        look = _look(opened, hear)
        if look.faults and not look.examination.gaps and not opened.faults:
            await _write(opened, look.examination, give_back=True)
    return _verdict(collector, device, hear)


class _Look(NamedTuple):
    """One look at everything, with all that it found in the order in which it is to be repaired."""

    examination: Examination
    faults: list[Fault]


def _look(opened: Opened, hear: Progress) -> _Look:
    faults: list[Fault] = []
    examination = examine(opened, hear, faults.extend)
    return _Look(examination, sorted(faults, key=lambda fault: _LATER.get(fault.code, 0)))


def _verdict(collector: Collector, device: BlockDevice, hear: Progress) -> list[Finding]:
    """What was found, marked as repaired where another look does not find it again."""
    after = Collector()
    superblocks, opened = open_volume(device)
    after.add(superblocks.faults)
    if opened is not None:
        after.add(opened.faults)
        examine(opened, hear, after.add)
    left = {(finding.code, finding.place): finding for finding in after.findings()}
    found = collector.findings()
    known = {(finding.code, finding.place) for finding in found}
    verdict = [replace(one, repaired=(one.code, one.place) not in left) for one in found]
    return verdict + [finding for key, finding in left.items() if key not in known]


# -- items -----------------------------------------------------------------------------------------


def _edit_until_right(opened: Opened, look: _Look, collector: Collector, hear: Progress) -> Examination:
    """Apply fixes and look again, until there is nothing more to fix. Returns the last look."""
    volume = opened.volume
    editor = VolumeEditor(volume)
    for _ in range(MOST_PASSES):
        fixes = [fault.fix for fault in look.faults if fault.fix is not None]
        unreachable = look.examination.unreachable
        volume.next_ino = max(volume.next_ino, look.examination.highest_ino + 1)
        if not fixes and not unreachable:
            break
        for fix in fixes:
            fix(editor)
        if unreachable:
            _name_lost(volume, editor, unreachable)
        look = _look(opened, hear)
        collector.add(look.faults)
    return look.examination


def _name_lost(volume: Volume, editor: VolumeEditor, inos: list[int]) -> None:
    """Give inodes a name in lost+found; the next look settles their link counts."""
    seed = directory.seed_of(volume.superblock.uuid.bytes)
    place = _lost_and_found(volume, editor, seed)
    if place is None:
        return
    for ino in inos:
        name = b"#%d" % ino
        tries = (name, *(b"%b.%d" % (name, number) for number in range(1, 100)))
        any(fsck_edit.add_name(editor, place, one, ino, seed) for one in tries)


def _lost_and_found(volume: Volume, editor: VolumeEditor, seed: int) -> int | None:
    """The inode of /lost+found, made if it is not there; another name if that one is no directory."""
    for name in (LOST_AND_FOUND, *(b"%b.%d" % (LOST_AND_FOUND, number) for number in range(1, 100))):
        bucket = editor.get(make_key(ROOT_INO, DIRENT, directory.suffix_of(name, seed)))
        try:
            entry = None if bucket is None else directory.find(bucket, name)
        except CorruptionError:
            continue
        if entry is None:
            ino = volume.next_ino
            inode = Inode(mode=S_IFDIR | 0o700, nlink=2)
            editor.put(make_key(ino, INODE), inode.encode())
            return ino if fsck_edit.add_name(editor, ROOT_INO, name, ino, seed) else None
        if entry.kind == fsck_edit.DIRECTORY_KIND and fsck_edit.load_inode(editor, entry.ino) is not None:
            return entry.ino
    return None


# -- the tree --------------------------------------------------------------------------------------


def _mend_tree(opened: Opened, examination: Examination) -> None:
    """Bring back the leaves that damaged nodes led to, and have the next checkpoint write a tree without
    gaps."""
    volume, gaps, blocks = opened.volume, examination.gaps, examination.blocks
    _recover_map(volume, examination)
    # What is marked used and belongs to nothing that can be read: nodes below the damaged ones are among it.
    lost = [run for run, is_used in blocks.differences() if not is_used]
    recovered = _items_of(_oldest_first(volume, lost), gaps, lambda key: split_key(key)[0] != FREE_MAP_INO)
    for key, value in recovered.items():
        if key not in volume.overlay.items:  # the log knows better
            volume.overlay.set(key, value)
    for gap in gaps:
        # Any change here makes the checkpoint write the nodes on the way again, without those that stand in.
        if gap.low not in volume.overlay.items:
            volume.overlay.set(gap.low, None)


def _recover_map(volume: Volume, examination: Examination) -> None:
    """If items of the free map are lost, find them: each checkpoint writes the groups that it changed, so
    the newest leaf that has a group is right."""
    first, last = key_range(FREE_MAP_INO, GROUP)
    gaps = [gap for gap in examination.gaps if gap.low <= last and (gap.high is None or gap.high > first)]
    if not gaps:
        return
    total = volume.superblock.total_blocks
    everywhere = [(start, min(GROUP_BLOCKS, total - start)) for start in range(0, total, GROUP_BLOCKS)]
    for key, value in _items_of(
        _oldest_first(volume, everywhere), gaps, lambda key: first <= key <= last
    ).items():
        group = split_key(key)[2]
        try:
            bits = decode_group(value, group)
        except CorruptionError:
            continue  # computed anew, as any other group
        for start, count in runs_of(bits):
            block = group * GROUP_BLOCKS + start
            if examination.blocks.inside(block, count):
                volume.free_map.set_used(block, count)


def _oldest_first(volume: Volume, runs: list[Run]) -> list[FoundLeaf]:
    """The lost leaves in some blocks, so that what a newer one says can replace what an older one says."""
    superblock = volume.superblock
    found = find_leaves(volume.device, superblock.uuid, superblock.generation, runs)
    return sorted(found, key=lambda leaf: leaf.generation)


def _items_of(
    leaves: list[FoundLeaf], gaps: list[Gap], is_wanted: Callable[[bytes], bool]
) -> dict[bytes, bytes]:
    """The items of lost leaves that belong into a gap."""
    return {
        key: value
        for _, leaf in leaves
        for key, value in zip(leaf.keys, leaf.values(), strict=True)
        if is_wanted(key) and any(gap.holds(key) for gap in gaps)
    }


# -- writing ---------------------------------------------------------------------------------------


async def _write(opened: Opened, examination: Examination, *, give_back: bool) -> None:
    """Make everything that was changed in memory durable, by one checkpoint."""
    volume = opened.volume
    free_map = volume.free_map
    for (start, count), is_used in examination.blocks.differences():
        if is_used:
            free_map.set_used(start, count)
        elif give_back:
            free_map.set_free(start, count)
    free_map.free_blocks = free_map.total_blocks - sum(count for _, count in free_map.used_runs())
    volume.inodes = examination.records
    volume.changed = True
    _open_log(opened, examination)
    if opened.superblocks.bad_backup:
        _write_backup(volume)
    await Store(volume, StoreOptions()).close()


def _open_log(opened: Opened, examination: Examination) -> None:
    """Let the log go on where it ended, or start it anew if it is damaged or has no room for a checkpoint."""
    volume = opened.volume
    is_sound = not any(fault.code in ("log-table", "log-damaged") for fault in opened.faults)
    if is_sound and opened.end is not None:
        attach_log(volume, opened.end)
        if volume.writer().has_room(LEAST_LOG_ROOM_BYTES):
            return
    _start_log(opened, examination)


def _start_log(opened: Opened, examination: Examination) -> None:
    """A new log in free blocks. What the old one covered is not known: the new one covers all there is."""
    volume = opened.volume
    superblock, free_map = volume.superblock, volume.free_map
    length = superblock.segment_blocks
    start = free_map.allocate_contiguous(length)
    if start is None:
        raise NoSpace(f"the log cannot be started anew: there are no {length} free blocks in a row")
    reached = max(superblock.checkpoint.lsn, 0 if opened.end is None else opened.end.place.lsn)
    place = LogPlace(reached + FRESH_LSN_DISTANCE, start, secrets.randbits(64))
    volume.log = LogWriter(
        volume.device,
        superblock.uuid,
        segment_blocks=length,
        segment_limit=superblock.segment_limit,
        segments=[Segment(start, 0, place)],
        spares=[],
        place=place,
        incarnation=secrets.randbits(64),
        grow=lambda: free_map.allocate_contiguous(length, start),
    )
    volume.log.begin_in(start)
    volume.coverage = Coverage(CoveragePolicy())
    runs = merge_runs(list(examination.blocks.used_runs()))
    if len(runs) > REGION_RUNS:
        runs = snap_runs(runs, superblock.total_blocks, REGION_RUNS)
    issue_region(volume, runs).settled_sequence = volume.device.issued_sequence


def _write_backup(volume: Volume) -> None:
    """Write the copy of the superblock again, named in the log like any block that is written in place."""
    block = volume.superblock.total_blocks - 1
    region = issue_region(volume, [(block, 1)])
    region.settled_sequence = volume.device.write(block * BLOCK_BYTES, volume.superblock.encode())


def _unheard(_fraction: float, _phase: str) -> None:
    """Nobody wants to hear of progress."""
