"""Reading a tree that may be damaged: what can be read, what cannot, and what can be found again.

A node that cannot be read stands as an empty one. So everything above works on what is left, and the edit
of the next checkpoint, which drops empty nodes, writes a tree without the damage.
"""

import operator
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

from jfs.device import BlockDevice
from jfs.errors import CorruptionError
from jfs.fsck_blocks import BlockUse
from jfs.fsck_codes import Fault
from jfs.layout import BLOCK_BYTES, KEY_BYTES, NODE_BLOCKS, NODE_BYTES
from jfs.overlay import Overlay
from jfs.tree import (
    NODE,
    NODE_MAGIC,
    Branch,
    Item,
    Leaf,
    Node,
    NodeCache,
    Tree,
    decode_node,
    encode_node,
)

LOWEST_KEY = bytes(KEY_BYTES)
SEARCH_BLOCKS = 256  # read at a time when looking for lost nodes
_EMPTY_LEAF = Leaf(encode_node(UUID(int=0), 0, 0, 0, (), b""), 0)


class Gap(NamedTuple):
    """A part of the key space that the tree lost: keys from `low` up to, not including, `high` (None: the
    end)."""

    low: bytes
    high: bytes | None

    def holds(self, key: bytes) -> bool:
        return key >= self.low and (self.high is None or key < self.high)


class TolerantCache(NodeCache):
    """Nodes of a tree that may be damaged. `damaged` and `mended` say what stands in for what is on the
    device."""

    def __init__(self, device: BlockDevice, uuid: UUID, limit_bytes: int) -> None:
        super().__init__(device, uuid, limit_bytes)
        self.damaged: set[int] = set()
        self.mended: dict[int, Branch] = {}

    def node(self, address: int, level: int) -> Node:
        mended = self.mended.get(address)
        if mended is not None and level:
            return mended
        if address in self.damaged:
            return self._stand_in(address, level)
        try:
            return super().node(address, level)
        except CorruptionError:
            self.damaged.add(address)
            return self._stand_in(address, level)

    def strict(self, address: int, level: int) -> Node:
        """The node as it is on the device, or CorruptionError."""
        return super().node(address, level)

    def _stand_in(self, address: int, level: int) -> Node:
        """An empty leaf, or a branch over nothing but itself, one level lower."""
        return _EMPTY_LEAF if level == 0 else branch_of((LOWEST_KEY,), (address,))


def branch_of(keys: tuple[bytes, ...], children: tuple[int, ...]) -> Branch:
    """An inner node in memory."""
    rest = struct.pack(f"<{len(children)}Q", *children)
    return Branch(encode_node(UUID(int=0), 0, 0, 1, keys, rest), len(keys))


class TreeWalk:
    """One walk over the whole tree, in order of key: first the inner nodes, then the leaves with their
    items."""

    def __init__(self, tree: Tree, cache: TolerantCache, overlay: Overlay, blocks: BlockUse) -> None:
        self._tree = tree
        self._cache = cache
        self._overlay = overlay
        self._blocks = blocks
        self._leaf_count = 0
        self._own: dict[int, list[tuple[int, int, Gap]]] = {}  # children of nodes that have others as well
        self.gaps: list[Gap] = []
        self.faults: list[Fault] = []

    def branches(self) -> None:
        """Walk the inner nodes; every node of the tree claims its blocks. Fills `faults`, `gaps`."""
        stack = [self._top()]
        if not self._claim(self._tree.root, stack[0][2]):
            self._cache.damaged.add(self._tree.root)
            return
        while stack:
            address, level, place = stack.pop()
            if level == 0:
                self._leaf_count += 1
                continue
            try:
                node = self._cache.strict(address, level)
            except CorruptionError as error:
                self._damage(address, place, error.sentence)
                continue
            assert isinstance(node, Branch)
            if not _is_ordered(node.keys, place):
                self._damage(address, place, f"the tree node at block {address} has keys out of order")
                continue
            stack += reversed(self._own_children(address, node, level, place))

    def _top(self) -> tuple[int, int, Gap]:
        return self._tree.root, self._tree.height - 1, Gap(LOWEST_KEY, None)

    def _own_children(self, address: int, node: Branch, level: int, place: Gap) -> list[tuple[int, int, Gap]]:
        """The children that are this node's own; if some are not, a node without them stands in for it."""
        every = _children(node, level, place)
        own = [one for one in every if self._claim(one[0], one[2])]
        if len(own) < len(every):
            self._own[address] = own
            if own:
                self._cache.mended[address] = branch_of(
                    tuple(place.low for _, _, place in own), tuple(child for child, _, _ in own)
                )
            else:
                self._cache.damaged.add(address)
        return own

    def _leaves(self) -> Iterator[tuple[int, Gap]]:
        """The leaves as `branches` found them, read again so that they need not be kept."""
        stack = [self._top()] if self._leaf_count else []
        while stack:
            address, level, place = stack.pop()
            if level == 0:
                yield address, place
            elif address in self._own:
                stack += reversed(self._own[address])
            elif address not in self._cache.damaged:
                node = self._cache.node(address, level)
                assert isinstance(node, Branch)
                stack += reversed(_children(node, level, place))

    def _claim(self, address: int, place: Gap) -> bool:
        if not self._blocks.inside(address, NODE_BLOCKS):
            self._fault(
                "tree-node", address, place, f"the tree points at block {address}, outside the volume"
            )
            return False
        if self._blocks.claim(address, NODE_BLOCKS) is not None:
            self._fault(
                "tree-shared",
                address,
                place,
                f"the tree node at block {address} belongs to something else as well",
            )
            return False
        return True

    def _damage(self, address: int, place: Gap, sentence: str) -> None:
        self._cache.damaged.add(address)
        self._fault("tree-node", address, place, sentence)

    def _fault(self, code: str, address: int, place: Gap, sentence: str) -> None:
        self.gaps.append(place)
        self.faults.append(Fault(code, f"block {address}", sentence))

    def items(self, progress: Callable[[float], None]) -> Iterator[Item]:
        """All items, with the changes of the overlay, ascending; `progress` hears fractions of the leaves
        read."""
        changed = sorted(self._overlay.items)
        position = 0
        leaves = self._leaves()
        following = next(leaves, None)
        number = 0
        while following is not None:
            (address, place), following = following, next(leaves, None)
            if not number % 64:
                progress(number / self._leaf_count)
            number += 1
            # What a gap between two leaves may have had in the overlay comes with the leaf after it.
            end = len(changed)
            if following is not None:
                end = bisect_left(changed, following[1].low, position)
            leaf = self._leaf(address, place)
            if position == end:
                yield from zip(leaf.keys, leaf.values(), strict=True)
                continue
            merged: dict[bytes, bytes | None] = dict(zip(leaf.keys, leaf.values(), strict=True))
            merged.update((key, self._overlay.items[key]) for key in changed[position:end])
            position = end
            yield from sorted((key, value) for key, value in merged.items() if value is not None)
        rest = ((key, self._overlay.items[key]) for key in changed[position:])
        yield from ((key, value) for key, value in rest if value is not None)

    def _leaf(self, address: int, place: Gap) -> Leaf:
        try:
            leaf = self._cache.strict(address, 0)
        except CorruptionError as error:
            self._damage(address, place, error.sentence)
            return _EMPTY_LEAF
        assert isinstance(leaf, Leaf)
        if not _is_ordered(leaf.keys, place):
            self._damage(address, place, f"the tree node at block {address} has keys out of order")
            return _EMPTY_LEAF
        return leaf


def _children(node: Branch, level: int, place: Gap) -> list[tuple[int, int, Gap]]:
    """The children of an inner node: address, level, and the keys that belong there."""
    highs = (*node.keys[1:], place.high)
    return [
        (child, level - 1, Gap(key, high))
        for key, child, high in zip(node.keys, node.children, highs, strict=True)
    ]


def _is_ordered(keys: tuple[bytes, ...], place: Gap) -> bool:
    """Do the keys of a node ascend, and lie where its parent says?"""
    if not keys:
        return True
    inside = place.holds(keys[0]) and place.holds(keys[-1])
    return inside and all(map(operator.lt, keys, keys[1:]))


class FoundLeaf(NamedTuple):
    """A leaf that no branch leads to."""

    generation: int
    leaf: Leaf


def find_leaves(
    device: BlockDevice, uuid: UUID, newest_generation: int, runs: Iterable[tuple[int, int]]
) -> Iterator[FoundLeaf]:
    """The whole leaves of a volume in some runs of blocks, none newer than a generation."""
    total = device.size_bytes // BLOCK_BYTES
    for start, count in runs:
        for first in range(start, start + count, SEARCH_BLOCKS):
            length = min(SEARCH_BLOCKS, start + count - first)
            raw = device.read(first * BLOCK_BYTES, length * BLOCK_BYTES)
            for block in range(first, first + length):
                _, magic, level, _, _, address, generation = NODE.struct.unpack_from(
                    raw, (block - first) * BLOCK_BYTES
                )
                if magic != NODE_MAGIC or address != block or level or generation > newest_generation:
                    continue
                if block + NODE_BLOCKS > total:
                    continue
                try:
                    leaf = decode_node(device.read(block * BLOCK_BYTES, NODE_BYTES), uuid, block, 0)
                except CorruptionError:
                    continue  # it is not a leaf of this volume, or not a whole one
                assert isinstance(leaf, Leaf)
                if _is_ordered(leaf.keys, Gap(LOWEST_KEY, None)):
                    yield FoundLeaf(generation, leaf)
