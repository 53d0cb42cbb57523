"""Writing a checkpoint: the frozen changes merged into a new tree, then a superblock that points to it."""

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

import trio

from jfs.commit import issue_region
from jfs.coverage import RegionCoverage
from jfs.freemap import FreeMap, FrozenMap
from jfs.layout import BLOCK_BYTES, NODE_BLOCKS, LogPlace, Superblock
from jfs.log import Segment
from jfs.overlay import Overlay
from jfs.runs import Run, merge_runs
from jfs.tree import NewNode, Tree, TreeEdit, encode_new
from jfs.volume import Volume

SLICE_SECONDS = 0.002
MERGE_ITEMS = 1024
WRITE_NODES = 64
LEAVES_LIMIT = 512  # new leaves in memory, some 40 KiB each, before they are written
_FIRST_KEY = b""
_LAST_KEY = b"\xff" * 17


class Breather:
    """Lets other tasks run when this one has computed for a slice of time."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    async def breathe(self) -> None:
        if time.monotonic() - self._since > SLICE_SECONDS:
            await trio.lowlevel.checkpoint()
            self._since = time.monotonic()


def place_nodes(edit: TreeEdit, free_map: FreeMap, frozen_map: FrozenMap) -> Generator[None, None, list[int]]:
    """Give every new node an address and put the free map that results into the same tree.

    The free map's own items change when nodes are allocated, which can make more new nodes: repeated until
    nothing changes. Returns the addresses; NoSpace leaves `free_map` as it was.
    """
    addresses: list[int] = []
    freed = 0
    try:
        while True:
            fresh = [node for _, node in edit.new_nodes() if not node.address]
            taken = free_map.allocate_nodes(len(fresh))
            addresses += taken
            for node, address in zip(fresh, taken, strict=True):
                node.address = address
                frozen_map.set(address, NODE_BLOCKS, used=True)
            for address in edit.replaced[freed:]:
                frozen_map.set(address, NODE_BLOCKS, used=False)
            freed = len(edit.replaced)
            items = frozen_map.take_changed()
            if not items:
                return addresses
            yield from edit.apply([key for key, _ in items], [value for _, value in items], join=False)
    except BaseException:
        for address in addresses:
            free_map.release(address, NODE_BLOCKS)
        raise


def node_writes(
    nodes: list[tuple[int, NewNode]], superblock: Superblock, generation: int
) -> Generator[tuple[int, bytes], None, None]:
    """(address, bytes) of all new nodes, neighbours in one write."""
    ordered = sorted(nodes, key=lambda pair: pair[1].address)
    parts: list[bytes] = []
    start = 0
    for level, node in ordered:
        if parts and (node.address != start + len(parts) * NODE_BLOCKS or len(parts) == WRITE_NODES):
            yield start, b"".join(parts)
            parts = []
        if not parts:
            start = node.address
        parts.append(encode_new(node, level, superblock.uuid, generation))
    if parts:
        yield start, b"".join(parts)


@dataclass(slots=True)
class Frozen:
    """The state at the freeze, which the checkpoint writes."""

    free_map: FrozenMap
    inodes: int
    next_ino: int
    owned: list[int]
    place: LogPlace
    ordinal: int = 0


class Checkpoint:
    """One checkpoint, from the freeze to the durable superblock.

    Creating it freezes the changes. When the batch that holds everything up to the freeze is issued:
    logged(), merge(), flush, issue_superblock(), flush, finish(). Until the superblock is issued it can be
    given up with abandon().
    """

    def __init__(self, volume: Volume, leaves_limit: int = LEAVES_LIMIT) -> None:
        self._volume = volume
        self._leaves_limit = leaves_limit
        self._edit = TreeEdit(volume.tree, volume.cache)
        self._addresses: set[int] = set()  # of the new nodes
        self._replaced = 0  # of the nodes replaced, those that were looked at
        self._regions: list[RegionCoverage] = []
        self._tail: Segment | None = None
        self._next: Superblock | None = None
        log = volume.writer()
        volume.frozen, volume.overlay = volume.overlay, Overlay()
        self._frozen = Frozen(
            volume.free_map.freeze(), volume.inodes, volume.next_ino, log.owned(), log.place
        )

    def logged(self) -> None:
        """The log holds everything up to the freeze: replay will begin here."""
        log, frozen = self._volume.writer(), self._frozen
        for start in set(log.owned()).difference(frozen.owned):
            frozen.free_map.set(start, log.segment_blocks, used=True)
        frozen.owned = log.owned()
        frozen.place, frozen.ordinal = log.place, log.ordinal
        log.appended_bytes = 0
        self._volume.changed = False

    async def merge(self) -> None:
        """Build the new tree and issue its nodes, letting others run in between."""
        volume, edit = self._volume, self._edit
        breather = Breather()
        assert volume.frozen is not None
        first = _FIRST_KEY
        page_items = min(MERGE_ITEMS, 2 * self._leaves_limit + 1)  # each may change a leaf of its own
        while keys := volume.frozen.page(first, _LAST_KEY, page_items):
            for _ in edit.apply(keys, [volume.frozen.items[key] for key in keys]):
                await breather.breathe()
            first = keys[-1] + b"\0"
            if edit.new_leaves > self._leaves_limit:
                await self._write_leaves(breather)
        self._take_back()
        placing = place_nodes(edit, volume.free_map, self._frozen.free_map)
        while True:
            try:
                next(placing)
            except StopIteration as stop:
                self._addresses.update(stop.value)
                await self._write(edit.new_nodes(), stop.value, breather)
                break
            await breather.breathe()
        # Before the flush that follows: names said again later may be lost with the batches that say them.
        needed = volume.coverage.first_needed_segment()
        ordinal = self._frozen.ordinal if needed is None else min(needed, self._frozen.ordinal)
        self._tail = next(segment for segment in volume.writer().segments if segment.ordinal >= ordinal)

    async def _write_leaves(self, breather: Breather) -> None:
        """Write the new leaves there are, so that memory does not grow with the leaves that change.

        One that changes again after that gets another place.
        """
        edit, frozen_map = self._edit, self._frozen.free_map
        self._take_back()
        leaves = [(level, node) for level, node in edit.new_nodes() if level == 0]
        taken = self._volume.free_map.allocate_nodes(len(leaves))
        self._addresses.update(taken)
        for (_, leaf), address in zip(leaves, taken, strict=True):
            leaf.address = address
            frozen_map.set(address, NODE_BLOCKS, used=True)
        await self._write(leaves, taken, breather)
        edit.settle_leaves()

    def _take_back(self) -> None:
        """The places of leaves that were written and have changed since: nothing ever led to them."""
        replaced = self._edit.replaced
        latest = replaced[self._replaced :]
        replaced[self._replaced :] = [address for address in latest if address not in self._addresses]
        self._replaced = len(replaced)
        for address in self._addresses.intersection(latest):
            self._addresses.remove(address)
            self._frozen.free_map.set(address, NODE_BLOCKS, used=False)
            self._volume.free_map.release(address, NODE_BLOCKS)

    async def _write(
        self, nodes: list[tuple[int, NewNode]], addresses: list[int], breather: Breather
    ) -> None:
        """Issue new nodes at these addresses, which the log names first."""
        volume = self._volume
        runs: list[Run] = merge_runs([(address, NODE_BLOCKS) for address in addresses])
        if runs:
            self._regions.append(issue_region(volume, runs))
        generation = volume.superblock.generation + 1
        for address, data in node_writes(nodes, volume.superblock, generation):
            for node in range(address, address + len(data) // BLOCK_BYTES, NODE_BLOCKS):
                volume.cache.forget(node)
            volume.device.write(address * BLOCK_BYTES, data)
            await breather.breathe()

    def issue_superblock(self, *, clean: bool) -> None:
        """Issue the superblock; it takes effect, and finish() may be called, when a flush has covered it."""
        volume, frozen = self._volume, self._frozen
        assert self._tail is not None
        generation = volume.superblock.generation + 1
        following = replace(
            volume.superblock,
            generation=generation,
            tree_root=self._edit.root,
            tree_height=self._edit.height,
            segments=tuple(frozen.owned),
            free_blocks=frozen.free_map.free_blocks,
            inodes=frozen.inodes,
            next_ino=frozen.next_ino,
            checkpoint=frozen.place,
            tail=self._tail.place,
            clean=clean,
        )
        sequence = volume.writer().record(
            frozen.owned, lambda: volume.device.write(generation % 2 * BLOCK_BYTES, following.encode())
        )
        self._next = following
        volume.superblock_sequence = sequence
        self._settle_regions(sequence)

    def _settle_regions(self, sequence: int) -> None:
        for region in self._regions:
            region.settled_sequence = sequence

    def finish(self) -> None:
        """The superblock is durable: the old tree's nodes and the log before the tail are free."""
        volume = self._volume
        assert self._next is not None
        assert self._tail is not None
        volume.superblock = self._next
        volume.tree = Tree(volume.cache, self._next.tree_root, self._next.tree_height)
        volume.frozen = None
        volume.free_map.thaw(written=True)
        for address in self._edit.replaced:
            volume.cache.forget(address)
            volume.free_map.release(address, NODE_BLOCKS)
        volume.writer().recycle(self._tail.ordinal)

    def abandon(self) -> None:
        """Go back to before the freeze; the changes since stay."""
        volume = self._volume
        assert volume.frozen is not None
        volume.frozen.absorb(volume.overlay)
        volume.overlay, volume.frozen = volume.frozen, None
        volume.free_map.thaw(written=False)
        for address in self._addresses:
            volume.free_map.release(address, NODE_BLOCKS)
        self._settle_regions(volume.device.issued_sequence)
        volume.changed = True
