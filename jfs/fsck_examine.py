"""One look at everything on an opened volume, and the collecting of what it finds."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from jfs.directory import seed_of
from jfs.fsck_blocks import BlockUse
from jfs.fsck_codes import CODES, Fault, Finding
from jfs.fsck_items import ItemCheck
from jfs.fsck_links import Census, LinkCheck
from jfs.fsck_tree import Gap
from jfs.fsck_volume import Opened, Progress
from jfs.layout import FIRST_FILE_INO

MOST_OF_ONE_CODE = 1000
_ITEMS_SHARE = 0.85  # of the time


class Collector:
    """Findings, each place once a code, and a bounded number of each code: the rest is only counted."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str], Finding] = {}
        self._counts: Counter[str] = Counter()

    def add(self, faults: Iterable[Fault]) -> None:
        """Take faults, in order."""
        for fault in faults:
            key = (fault.code, fault.place)
            if key in self._findings:
                continue
            self._counts[fault.code] += 1
            if self._counts[fault.code] <= MOST_OF_ONE_CODE:
                self._findings[key] = fault.finding()

    def findings(self) -> list[Finding]:
        """What was found, in order; where there was too much of a code, a last finding says how much."""
        more = [
            Finding(
                code,
                "elsewhere",
                f"{count - MOST_OF_ONE_CODE} more of {code}: {CODES[code].meaning}",
                bool(CODES[code].repair),
            )
            for code, count in self._counts.items()
            if count > MOST_OF_ONE_CODE
        ]
        return [*self._findings.values(), *more]


@dataclass
class Examination:
    """What one look found: faults (those with a fix can be repaired by it), and what repair needs besides."""

    faults: list[Fault]
    gaps: list[Gap]
    unreachable: list[int]  # inodes that need a name in lost+found
    blocks: BlockUse
    records: int  # inodes
    highest_ino: int


def examine(opened: Opened, progress: Progress) -> Examination:
    """Look at everything. The faults of opening are not among those returned. DeviceError."""
    volume = opened.volume
    blocks = BlockUse(volume.superblock.total_blocks)
    for start, count in volume.free_map.used_runs():
        blocks.mark(start, count)
    walk = opened.walk(blocks)
    walk.branches()
    census = Census()
    is_new = volume.next_ino == FIRST_FILE_INO and not volume.inodes
    seed = seed_of(volume.superblock.uuid.bytes)
    item_check = ItemCheck(seed, volume.next_ino, census, blocks, has_root=not is_new)
    found = list(item_check.run(walk.items(lambda part: progress(part * _ITEMS_SHARE, "items"))))
    progress(_ITEMS_SHARE, "links")
    link_check = LinkCheck(census)
    found += link_check.run()
    progress(0.95, "free map")
    found += blocks.faults()
    found += _counters(opened, blocks, item_check.records)
    progress(1.0, "done")
    return Examination(
        walk.faults + found,
        walk.gaps,
        link_check.unreachable,
        blocks,
        item_check.records,
        max(census.inos[-1] if census.inos else 0, FIRST_FILE_INO - 1),
    )


def _counters(opened: Opened, blocks: BlockUse, records: int) -> Iterable[Fault]:
    volume = opened.volume
    free = volume.superblock.total_blocks - blocks.marked_blocks()
    if volume.free_map.free_blocks != free:
        sentence = f"the superblock counts {volume.free_map.free_blocks} free blocks, the free map {free}"
        yield Fault("count-free", "superblock", sentence)
    if volume.inodes != records:
        sentence = f"the superblock counts {volume.inodes} inodes, but there are {records}"
        yield Fault("count-inodes", "superblock", sentence)
