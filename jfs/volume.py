"""A volume in memory: the tree, what changed since, the free map, the log and what it covers."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from jfs.coverage import Coverage, FarState, NewData
from jfs.device import BlockDevice
from jfs.errors import CorruptionError
from jfs.freemap import FreeMap
from jfs.layout import (
    EXTENT,
    FREE_MAP_INO,
    GROUP,
    INODE,
    Superblock,
    decode_extent,
    key_range,
    make_key,
    split_key,
)
from jfs.log import LogWriter
from jfs.overlay import ABSENT, PREFIX_BYTES, Absent, Overlay
from jfs.runs import Run
from jfs.tree import Item, NodeCache, Tree
from jfs.vouchers import NewBlock

FIRST_PAGE_ITEMS = 32
PAGE_ITEMS = 512
_BATCH_BYTES = 6144  # vouchers, and what is left of the last block
TIGHT_NODES = 8  # what one operation may change, and the free map


@dataclass(slots=True)
class Changes:
    """What a batch will make durable: everything since the last one."""

    items: dict[bytes, bytes | None] = field(default_factory=dict)
    allocations: dict[int, list[Run]] = field(default_factory=dict)
    frees: dict[int, list[Run]] = field(default_factory=dict)
    new: dict[int, NewData] = field(default_factory=dict)
    new_sequence: int = 0  # newest write of new data that the batch makes reachable
    new_blocks: dict[int, NewBlock] | None = None  # that data, if it is little
    value_bytes: int = 0

    def is_empty(self) -> bool:
        return not (self.items or self.allocations or self.frees or self.new)

    def size_bytes(self) -> int:
        """Bytes in the log, about, rather too many than too few."""
        runs = sum(map(len, self.allocations.values())) + sum(map(len, self.frees.values()))
        return 48 * len(self.items) + self.value_bytes + 12 * runs + 300 * len(self.new) + _BATCH_BYTES

    def rough_bytes(self) -> int:
        """The same at once, counted by the items alone."""
        return 72 * len(self.items) + self.value_bytes + _BATCH_BYTES

    def absorb(self, newer: "Changes") -> None:
        """Take over the changes of a newer set."""
        self.items.update(newer.items)
        for mine, theirs in ((self.allocations, newer.allocations), (self.frees, newer.frees)):
            for ino, runs in theirs.items():
                mine.setdefault(ino, []).extend(runs)
        self.new_sequence = max(self.new_sequence, newer.new_sequence)
        self.value_bytes += newer.value_bytes


class Volume:
    """The state that the store, the commit and the checkpoint share. Only reads the device."""

    def __init__(
        self, device: BlockDevice, superblock: Superblock, coverage: Coverage, cache_bytes: int
    ) -> None:
        self.device = device
        self.superblock = superblock
        self.coverage = coverage
        self.cache = NodeCache(device, superblock.uuid, cache_bytes)
        self.tree = Tree(self.cache, superblock.tree_root, superblock.tree_height)
        self.overlay = Overlay()
        self.frozen: Overlay | None = None
        self.pending = Changes()
        self.free_map = FreeMap(
            superblock.total_blocks,
            superblock.reserve_blocks,
            lambda group: self.tree.get(make_key(FREE_MAP_INO, GROUP, group)),
            superblock.free_blocks,
        )
        self.inodes = superblock.inodes
        self.next_ino = superblock.next_ino
        self.superblock_sequence = 0
        self.log: LogWriter | None = None  # None: read only
        self.changed = False  # is there anything to checkpoint?
        self.now_ns: Callable[[], int] = time.monotonic_ns

    def writer(self) -> LogWriter:
        """The log, of a volume that may be written."""
        assert self.log is not None
        return self.log

    def far_state(self) -> FarState:
        return FarState(
            self.device.far_durable_sequence,
            self.superblock.checkpoint.lsn,
            self.superblock_sequence,
            self.now_ns(),
        )

    def is_tight(self, more_items: int) -> bool:
        """Might the tree find no room? Each item that waits, and `more_items`, may split a leaf."""
        items = len(self.overlay) + more_items
        nodes = 2 * items + self.tree.height + TIGHT_NODES
        return items > 0 and self.free_map.node_places(nodes) < nodes

    def surplus_segments(self, first_segments: int) -> int:
        """How many spare segments the log should give back now, down to those it had at first."""
        log = self.writer()
        surplus = len(log.owned()) - first_segments
        if self.free_map.may_give_segment(log.segment_blocks):
            return min(surplus // 2, len(log.spares) - first_segments)
        return min(surplus, len(log.spares) - 1)

    # -- items -------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        value = self.overlay.items.get(key, ABSENT)
        if value is not Absent.ABSENT:
            return value
        if self.frozen is not None:
            value = self.frozen.items.get(key, ABSENT)
            if value is not Absent.ABSENT:
                return value
        return self.tree.get(key)

    def set(self, key: bytes, value: bytes | None) -> None:
        """Change an item in memory, counting inodes."""
        if key[8] == INODE:
            old = self.overlay.items.get(key, ABSENT)
            had = old if old is not Absent.ABSENT else self.get(key)
            if (had is None) != (value is None):
                self.inodes += 1 if had is None else -1
                self.next_ino = max(self.next_ino, split_key(key)[0] + 1)
        self.overlay.set(key, value)

    def scan(self, first: bytes, last: bytes, *, frozen_only: bool = False) -> Iterator[Item]:
        """Items from `first` to `last`, ascending, read a page at a time.

        The caller may change items between two of them: those changed within the page that was read already
        (up to 512 items ahead) are seen as they were. `frozen_only` leaves the newest overlay out.
        """
        limit = FIRST_PAGE_ITEMS
        after: bytes | None = first
        while after is not None:
            items, after = self._page(after, last, limit, frozen_only)
            yield from items
            limit = PAGE_ITEMS

    def _page(
        self, first: bytes, last: bytes, limit: int, frozen_only: bool
    ) -> tuple[list[Item], bytes | None]:
        items, more = self.tree.page(first, last, limit)
        boundary = items[-1][0] if more and items else last
        layers: list[tuple[list[bytes], Overlay]] = []
        for layer in (self.frozen, None if frozen_only else self.overlay):
            if layer is None:
                continue
            keys = layer.page(first, boundary, limit)
            if len(keys) == limit:
                boundary, more = keys[-1], True
            if keys:
                layers.append((keys, layer))
        if layers:
            merged: dict[bytes, bytes | None] = dict(items)
            for keys, layer in layers:
                merged.update([(key, layer.items[key]) for key in keys])
            items = sorted([(key, value) for key, value in merged.items() if value is not None])
            if more:
                items = items[: bisect_right(items, boundary, key=lambda item: item[0])]
        return items, boundary + b"\0" if more else None

    def floor(self, key: bytes) -> Item | None:
        """The greatest item whose key is <= `key`, of the same inode and kind."""
        prefix = key[:PREFIX_BYTES]
        while True:
            best = self.overlay.floor(key) or b""
            if self.frozen is not None:
                best = max(best, self.frozen.floor(key) or b"")
            in_tree = self.tree.floor(key)
            if in_tree is not None and in_tree > best and in_tree.startswith(prefix):
                best = in_tree
            if not best:
                return None
            value = self.get(best)
            if value is not None:
                return best, value
            suffix = int.from_bytes(best[PREFIX_BYTES:], "big")
            if suffix == 0:
                return None
            key = prefix + (suffix - 1).to_bytes(8, "big")

    def extents(self, ino: int, *, frozen_only: bool = False) -> Iterator[tuple[int, int, int]]:
        """(file block, start block, count) of a file, ascending. CorruptionError if outside the volume."""
        total = self.superblock.total_blocks
        for key, value in self.scan(*key_range(ino, EXTENT), frozen_only=frozen_only):
            start, count = decode_extent(value)
            if start + count > total:
                raise CorruptionError(f"inode {ino} has an extent outside the volume: blocks {start}+{count}")
            yield int.from_bytes(key[PREFIX_BYTES:], "big"), start, count
