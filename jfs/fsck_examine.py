"""One look at everything on an opened volume, and the collecting of what it finds."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jfs.directory import seed_of
from jfs.fsck_blocks import BlockUse
from jfs.fsck_census import Census
from jfs.fsck_codes import CODES, Fault, Finding
from jfs.fsck_items import ItemCheck
from jfs.fsck_links import check_links
from jfs.fsck_tree import Gap
from jfs.fsck_volume import Opened, Progress
from jfs.layout import FIRST_FILE_INO

MOST_OF_ONE_CODE = 1000
# What a look has in memory, some 20 MB each; beyond that it uses a temporary file.
BLOCK_GROUPS = 16384  # of blocks in use: half a terabyte of the volume
SHARE_INODES = 1 << 17  # whose links are checked at once
CENSUS_BYTES = 16 << 20  # of inodes and names before that
_ITEMS_SHARE = 0.8  # of the time
_LINKS_SHARE = 0.95
Hear = Callable[[Iterable[Fault]], None]


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
    """What repair needs to know of one look, besides the faults."""

    gaps: list[Gap]
    unreachable: list[int]  # inodes that need a name in lost+found
    blocks: BlockUse
    records: int  # inodes
    highest_ino: int


def examine(opened: Opened, progress: Progress, hear: Hear) -> Examination:
    """Look at everything. `hear` gets the faults as they are found, without those of opening. DeviceError."""
    volume = opened.volume
    blocks = BlockUse(volume.free_map, BLOCK_GROUPS)
    walk = opened.walk(blocks)
    walk.branches()
    in_branches = len(walk.faults)
    hear(walk.faults)
    census = Census(volume.inodes, SHARE_INODES, CENSUS_BYTES)
    is_new = volume.next_ino == FIRST_FILE_INO and not volume.inodes
    seed = seed_of(volume.superblock.uuid.bytes)
    item_check = ItemCheck(seed, volume.next_ino, census, blocks, has_root=not is_new)
    hear(item_check.run(walk.items(lambda part: progress(part * _ITEMS_SHARE, "items"))))
    hear(walk.faults[in_branches:])
    unreachable: list[int] = []
    links_share = _LINKS_SHARE - _ITEMS_SHARE
    hear(check_links(census, unreachable, lambda part: progress(_ITEMS_SHARE + part * links_share, "links")))
    progress(_LINKS_SHARE, "free map")
    hear(blocks.faults())
    hear(_counters(opened, blocks, item_check.records))
    progress(1.0, "done")
    return Examination(walk.gaps, unreachable, blocks, item_check.records, census.highest_ino)


def _counters(opened: Opened, blocks: BlockUse, records: int) -> Iterable[Fault]:
    volume = opened.volume
    free = volume.superblock.total_blocks - blocks.marked_blocks()
    if volume.free_map.free_blocks != free:
        sentence = f"the superblock counts {volume.free_map.free_blocks} free blocks, the free map {free}"
        yield Fault("count-free", "superblock", sentence)
    if volume.inodes != records:
        sentence = f"the superblock counts {volume.inodes} inodes, but there are {records}"
        yield Fault("count-inodes", "superblock", sentence)
