"""One copy-on-write B+tree: reading, a bounded cache of nodes, and the bulk edit of a checkpoint.

A node is 16 KiB and knows its volume, its own address and its checksum, so that a stale, misplaced or damaged
node is recognised. Nodes on the device are never changed; an edit makes new ones and says which it replaces.
"""

import itertools
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from xxhash import xxh3_64_intdigest

from jfs.device import BlockDevice
from jfs.errors import CorruptionError
from jfs.layout import BLOCK_BYTES, KEY_BYTES, NODE_BLOCKS, NODE_BYTES
from jfs.record import Field, Record

NODE = Record(
    "node",
    Field("checksum", "Q", "xxh3-64 of the rest of the node"),
    Field("magic", "4s", "`TRIN`"),
    Field("level", "H", "0: a leaf"),
    Field("count", "H", "keys in the node"),
    Field("uuid", "16s", "of the volume"),
    Field("address", "Q", "block where the node was written"),
    Field("generation", "Q", "of the superblock it was written for"),
)
NODE_MAGIC = b"TRIN"
CAPACITY_BYTES = NODE_BYTES - NODE.size
ITEM_OVERHEAD_BYTES = KEY_BYTES + 2
CHILD_BYTES = KEY_BYTES + 8
FANOUT = CAPACITY_BYTES // CHILD_BYTES
HIGHEST_LEVEL = 15
JOIN_BYTES = CAPACITY_BYTES // 4
CACHED_NODE_BYTES = NODE_BYTES + 512  # a leaf as it is read; the inner nodes are few
FEW_CHANGES = 8  # of the items of a leaf, one in so many: then they are put in one by one

Item: TypeAlias = tuple[bytes, bytes]
_keys_structs: list[struct.Struct | None] = [None] * (CAPACITY_BYTES // ITEM_OVERHEAD_BYTES + 1)


def _keys(raw: bytes, start: int, count: int) -> tuple[bytes, ...]:
    """Keys of a node from one on, by one C call."""
    packed = _keys_structs[count]
    if packed is None:
        packed = _keys_structs[count] = struct.Struct(f"{KEY_BYTES}s" * count)
    return packed.unpack_from(raw, NODE.size + KEY_BYTES * start)


class Leaf:
    """A leaf as it is on the device. Keys and values are cut out when asked for: in memory a leaf takes
    what it takes on the device, and one that is read for a single item costs little more than the reading.
    """

    __slots__ = ("_raw", "count")

    def __init__(self, raw: bytes, count: int) -> None:
        self._raw = raw
        self.count = count

    @property
    def keys(self) -> tuple[bytes, ...]:
        return _keys(self._raw, 0, self.count)

    def key(self, index: int) -> bytes:
        at = NODE.size + KEY_BYTES * index
        return self._raw[at : at + KEY_BYTES]

    def position(self, key: bytes) -> int:
        """How many keys are below `key`."""
        raw, low, high = self._raw, 0, self.count
        while low < high:
            middle = (low + high) >> 1
            at = NODE.size + KEY_BYTES * middle
            if raw[at : at + KEY_BYTES] < key:
                low = middle + 1
            else:
                high = middle
        return low

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        index = self.position(key)
        return self.value(index) if index < self.count and self.key(index) == key else None

    def value(self, index: int) -> bytes:
        raw, ends = self._raw, NODE.size + KEY_BYTES * self.count
        at = ends + 2 * index
        end = raw[at] | raw[at + 1] << 8
        start = raw[at - 2] | raw[at - 1] << 8 if index else ends + 2 * self.count
        return raw[start:end]

    def values(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        raw, count = self._raw, self.count
        stop = count if stop is None else stop
        ends = NODE.size + KEY_BYTES * count
        first = raw[ends + 2 * start - 2] | raw[ends + 2 * start - 1] << 8 if start else ends + 2 * count
        bounds = (first, *struct.unpack_from(f"<{stop - start}H", raw, ends + 2 * start))
        return [raw[begin:end] for begin, end in itertools.pairwise(bounds)]

    def items(self, start: int, stop: int) -> list[Item]:
        """The items from one position up to another."""
        if start >= stop:
            return []
        return list(zip(_keys(self._raw, start, stop - start), self.values(start, stop), strict=True))

    def used_bytes(self) -> int:
        """Of the node, by its items."""
        if not self.count:
            return 0
        at = NODE.size + ITEM_OVERHEAD_BYTES * self.count - 2
        return (self._raw[at] | self._raw[at + 1] << 8) - NODE.size


class Branch:
    """An inner node as it is on the device. keys[i] is not above any key below children[i]."""

    __slots__ = ("children", "keys")

    def __init__(self, raw: bytes, count: int) -> None:
        self.keys = _keys(raw, 0, count)
        self.children: tuple[int, ...] = struct.unpack_from(f"<{count}Q", raw, NODE.size + KEY_BYTES * count)


Node: TypeAlias = Leaf | Branch


def decode_node(raw: bytes, uuid: UUID, address: int, level: int) -> Node:
    """Check and decode a node; CorruptionError says what is wrong with it."""
    place = f"the tree node at block {address}"
    if len(raw) != NODE_BYTES:
        raise CorruptionError(f"{place} is cut short")
    checksum, magic, found_level, count, found_uuid, found_address, _ = NODE.struct.unpack_from(raw)
    if checksum != xxh3_64_intdigest(memoryview(raw)[8:]):
        raise CorruptionError(f"{place} has a wrong checksum")
    if magic != NODE_MAGIC or found_uuid != uuid.bytes or found_address != address:
        raise CorruptionError(
            f"{place} belongs elsewhere: to block {found_address} of {UUID(bytes=found_uuid)}"
        )
    if found_level != level:
        raise CorruptionError(f"{place} has level {found_level}, but level {level} belongs there")
    most = FANOUT if level else CAPACITY_BYTES // ITEM_OVERHEAD_BYTES
    if count > most or (level and not count):
        raise CorruptionError(f"{place} claims {count} keys")
    return Branch(raw, count) if level else Leaf(raw, count)


def encode_node(
    uuid: UUID, address: int, generation: int, level: int, keys: Sequence[bytes], rest: bytes
) -> bytes:
    """A whole node: header, keys, and `rest`, which is the children or the ends and values."""
    header = NODE.struct.pack(0, NODE_MAGIC, level, len(keys), uuid.bytes, address, generation)
    body = b"".join((header[8:], *keys, rest)).ljust(NODE_BYTES - 8, b"\0")
    return xxh3_64_intdigest(body).to_bytes(8, "little") + body


class NodeCache:
    """Decoded nodes by address, least recently used out first, bounded by (approximate) bytes."""

    def __init__(self, device: BlockDevice, uuid: UUID, limit_bytes: int = 64 << 20) -> None:
        self._device = device
        self._uuid = uuid
        self._limit = max(limit_bytes // CACHED_NODE_BYTES, 8)
        self._nodes: dict[int, Node] = {}
        self._blocks = device.size_bytes // BLOCK_BYTES

    def node(self, address: int, level: int) -> Node:
        """The node at a block; CorruptionError if that is not what is there."""
        node = self._nodes.pop(address, None)
        if node is None or isinstance(node, Leaf) != (level == 0):
            if address + NODE_BLOCKS > self._blocks:
                raise CorruptionError(f"the tree points at block {address}, outside the volume")
            raw = self._device.read(address * BLOCK_BYTES, NODE_BYTES)
            node = decode_node(raw, self._uuid, address, level)
            if len(self._nodes) >= self._limit:
                del self._nodes[next(iter(self._nodes))]
        self._nodes[address] = node
        return node

    def forget(self, address: int) -> None:
        """The block gets a new content."""
        self._nodes.pop(address, None)


class Tree:
    """The tree under one root. Immutable: an edit leads to a new Tree."""

    def __init__(self, cache: NodeCache, root: int, height: int) -> None:
        if not 1 <= height <= HIGHEST_LEVEL + 1:
            raise CorruptionError(f"the superblock claims a tree of height {height}")
        self.cache = cache
        self.root = root
        self.height = height

    def leaf(self, key: bytes) -> tuple[Leaf, bytes | None]:
        """The leaf where `key` belongs, and the lowest key of the leaf after it."""
        address, after = self.root, None
        node = self.cache.node
        for level in range(self.height - 1, 0, -1):
            branch = node(address, level)
            assert isinstance(branch, Branch)
            index = bisect_right(branch.keys, key) or 1  # the first child takes what is below all keys
            if index < len(branch.keys):
                after = branch.keys[index]
            address = branch.children[index - 1]
        leaf = node(address, 0)
        assert isinstance(leaf, Leaf)
        return leaf, after

    def get(self, key: bytes) -> bytes | None:
        return self.leaf(key)[0].get(key)

    def floor(self, key: bytes) -> bytes | None:
        """The greatest key <= `key`."""
        return self._floor(self.root, self.height - 1, key)

    def _floor(self, address: int, level: int, key: bytes) -> bytes | None:
        node = self.cache.node(address, level)
        if isinstance(node, Leaf):
            index = node.position(key + b"\0") - 1
            return node.key(index) if index >= 0 else None
        index = bisect_right(node.keys, key) - 1
        found = self._floor(node.children[max(index, 0)], level - 1, key)
        if found is None and index > 0:  # the child's lowest keys were deleted since its key was written
            found = self._floor(node.children[index - 1], level - 1, key)
        return found

    def page(self, first: bytes, last: bytes, limit: int) -> tuple[list[Item], bool]:
        """Items from `first` to `last`, about `limit` of them; and whether more may follow."""
        found: list[Item] = []
        while len(found) < limit:
            leaf, after = self.leaf(first)
            start = leaf.position(first)
            end = leaf.position(last + b"\0")
            stop = min(end, start + limit - len(found))
            found += leaf.items(start, stop)
            if stop < end:
                return found, True
            if end < leaf.count or after is None or after > last:
                return found, False
            first = after
        return found, True

    def nodes(self) -> Iterator[tuple[int, int, Node]]:
        """Every node as (address, level, node), parents first."""
        stack = [(self.root, self.height - 1)]
        while stack:
            address, level = stack.pop()
            node = self.cache.node(address, level)
            yield address, level, node
            if isinstance(node, Branch):
                stack += [(child, level - 1) for child in reversed(node.children)]


@dataclass(slots=True, eq=False)
class NewLeaf:
    """A leaf of an edit. `address` is 0 until one is allocated."""

    keys: list[bytes]
    values: list[bytes]
    address: int = 0

    def size_bytes(self) -> int:
        return ITEM_OVERHEAD_BYTES * len(self.keys) + sum(map(len, self.values))


@dataclass(slots=True, eq=False)
class NewBranch:
    """An inner node of an edit; its children are addresses of old nodes or new nodes."""

    keys: list[bytes]
    children: list["Reference"]
    address: int = 0


NewNode: TypeAlias = NewLeaf | NewBranch
Reference: TypeAlias = int | NewNode
Steps: TypeAlias = Generator[None, None, list[tuple[bytes, Reference]]]


class TreeEdit:
    """Changes to a tree, built in memory: apply sorted items, give the new nodes addresses, encode them.

    Without a tree it begins with an empty one. `replaced` are the addresses of the old nodes that the new
    tree does not use.
    """

    def __init__(self, tree: Tree | None, cache: NodeCache) -> None:
        self._cache = cache
        self._root: Reference = NewLeaf([], []) if tree is None else tree.root
        self.height = 1 if tree is None else tree.height
        self.replaced: list[int] = []
        self.new_leaves = 0  # in memory, about
        self._keys: Sequence[bytes] = ()
        self._values: Sequence[bytes | None] = ()
        self._join = True

    def apply(
        self, keys: Sequence[bytes], values: Sequence[bytes | None], *, join: bool = True
    ) -> Generator[None, None, None]:
        """Merge items (ascending; None deletes). Yields after each leaf, so that others may run.

        With `join` small neighbours are put together; without it, no new node that has an address goes away.
        """
        if not keys:
            return
        self._keys, self._values, self._join = keys, values, join
        made = yield from self._change(self._root, self.height - 1, 0, len(keys))
        while len(made) > 1:
            made = _split_branch([key for key, _ in made], [child for _, child in made])
            self.height += 1
        if not made:
            made = [(b"", NewLeaf([], []))]
            self.height = 1
        root = made[0][1]
        while self.height > 1:
            branch = self._new_branch(root, self.height - 1, peek=True)
            if len(branch.children) > 1:
                break
            if isinstance(root, int):
                self.replaced.append(root)
            root = branch.children[0]
            self.height -= 1
        self._root = root

    def _change(self, reference: Reference, level: int, low: int, high: int) -> Steps:
        if level == 0:
            yield
            return self._change_leaf(self._new_leaf(reference), low, high)
        branch = self._new_branch(reference, level)
        keys, children = branch.keys, branch.children
        new_keys: list[bytes] = []
        new_children: list[Reference] = []
        done = 0
        while low < high:
            index = max(bisect_right(keys, self._keys[low]) - 1, 0)
            end = bisect_left(self._keys, keys[index + 1], low, high) if index + 1 < len(keys) else high
            new_keys += keys[done:index]
            new_children += children[done:index]
            made = yield from self._change(children[index], level - 1, low, end)
            new_keys += [key for key, _ in made]
            new_children += [child for _, child in made]
            done, low = index + 1, end
        branch.keys = new_keys + keys[done:]
        branch.children = new_children + children[done:]
        if self._join:
            self._join_children(branch, level - 1)
        return _split_branch(branch.keys, branch.children, branch)

    def _change_leaf(self, leaf: NewLeaf, low: int, high: int) -> list[tuple[bytes, Reference]]:
        if (high - low) * FEW_CHANGES < len(leaf.keys):
            for index in range(low, high):
                _change_item(leaf, self._keys[index], self._values[index])
            return self._note_leaves(_split_leaf(leaf))
        merged: dict[bytes, bytes | None] = dict(zip(leaf.keys, leaf.values, strict=True))
        merged.update(zip(self._keys[low:high], self._values[low:high], strict=True))
        pairs = sorted([(key, value) for key, value in merged.items() if value is not None])
        leaf.keys = [key for key, _ in pairs]
        leaf.values = [value for _, value in pairs]
        return self._note_leaves(_split_leaf(leaf))

    def _note_leaves(self, made: list[tuple[bytes, Reference]]) -> list[tuple[bytes, Reference]]:
        self.new_leaves += len(made) - 1
        return made

    def _new_leaf(self, reference: Reference) -> NewLeaf:
        if isinstance(reference, NewLeaf):
            return reference
        assert isinstance(reference, int)
        leaf = self._cache.node(reference, 0)
        assert isinstance(leaf, Leaf)
        self.replaced.append(reference)
        self.new_leaves += 1
        return NewLeaf(list(leaf.keys), leaf.values())

    def _new_branch(self, reference: Reference, level: int, *, peek: bool = False) -> NewBranch:
        if isinstance(reference, NewBranch):
            return reference
        assert isinstance(reference, int)
        branch = self._cache.node(reference, level)
        assert isinstance(branch, Branch)
        if not peek:
            self.replaced.append(reference)
        return NewBranch(list(branch.keys), list(branch.children))

    def _join_children(self, branch: NewBranch, level: int) -> None:
        """Put small new children together with a neighbour where both fit with room to spare."""
        index = 0
        while index < len(branch.children) and len(branch.children) > 1:
            child = branch.children[index]
            left = max(index - 1, 0)
            if isinstance(child, int) or not _is_small(child) or not self._join_pair(branch, level, left):
                index += 1
            else:
                index = left

    def _join_pair(self, branch: NewBranch, level: int, left: int) -> bool:
        first, second = branch.children[left], branch.children[left + 1]
        first_node = self._cache.node(first, level) if isinstance(first, int) else first
        second_node = self._cache.node(second, level) if isinstance(second, int) else second
        if _room_of(first_node) + _room_of(second_node) > CAPACITY_BYTES * 3 // 4:
            return False
        merged: NewNode
        if level == 0:
            one, other = self._new_leaf(first), self._new_leaf(second)
            merged = NewLeaf(one.keys + other.keys, one.values + other.values)
        else:
            low, high = self._new_branch(first, level), self._new_branch(second, level)
            merged = NewBranch(low.keys + high.keys, low.children + high.children)
        branch.children[left : left + 2] = [merged]
        del branch.keys[left + 1]
        return True

    def new_nodes(self) -> list[tuple[int, NewNode]]:
        """(level, node) of all new nodes, children before parents."""
        found: list[tuple[int, NewNode]] = []

        def visit(reference: Reference, level: int) -> None:
            if isinstance(reference, int):
                return
            if isinstance(reference, NewBranch):
                for child in reference.children:
                    visit(child, level - 1)
            found.append((level, reference))

        visit(self._root, self.height - 1)
        return found

    def settle_leaves(self) -> None:
        """Every new leaf is on the device at its address: from now on only that is known of it."""

        def address_of(reference: Reference) -> Reference:
            if isinstance(reference, NewBranch):
                reference.children = list(map(address_of, reference.children))
            return reference.address if isinstance(reference, NewLeaf) else reference

        self._root = address_of(self._root)
        self.new_leaves = 0

    @property
    def root(self) -> int:
        """The root's address, once every new node has one."""
        return self._root if isinstance(self._root, int) else self._root.address


def encode_new(node: NewNode, level: int, uuid: UUID, generation: int) -> bytes:
    """The bytes of a new node that has its address, as have its children."""
    count = len(node.keys)
    if isinstance(node, NewBranch):
        addresses = [child if isinstance(child, int) else child.address for child in node.children]
        rest = struct.pack(f"<{count}Q", *addresses)
    else:
        end = NODE.size + ITEM_OVERHEAD_BYTES * count
        ends = [end := end + len(value) for value in node.values]
        rest = struct.pack(f"<{count}H", *ends) + b"".join(node.values)
    return encode_node(uuid, node.address, generation, level, node.keys, rest)


def _room_of(node: Node | NewNode) -> int:
    """Bytes that the content of a node takes."""
    if isinstance(node, NewLeaf):
        return node.size_bytes()
    if isinstance(node, Leaf):
        return node.used_bytes()
    return CHILD_BYTES * len(node.keys)


def _change_item(leaf: NewLeaf, key: bytes, value: bytes | None) -> None:
    keys = leaf.keys
    index = bisect_left(keys, key)
    is_there = index < len(keys) and keys[index] == key
    if value is None:
        if is_there:
            del keys[index], leaf.values[index]
    elif is_there:
        leaf.values[index] = value
    else:
        keys.insert(index, key)
        leaf.values.insert(index, value)


def _is_small(node: NewNode) -> bool:
    return _room_of(node) < JOIN_BYTES


def _split_leaf(leaf: NewLeaf) -> list[tuple[bytes, Reference]]:
    """The leaf, or as many evenly filled leaves as its items need, or none; the first keeps its identity."""
    if not leaf.keys:
        return []
    total = leaf.size_bytes()
    if total <= CAPACITY_BYTES:
        return [(leaf.keys[0], leaf)]
    target = total / -(-total // CAPACITY_BYTES)
    cuts, size = [0], 0
    for index, value in enumerate(leaf.values):
        item = ITEM_OVERHEAD_BYTES + len(value)
        if size and (size >= target or size + item > CAPACITY_BYTES):
            cuts.append(index)
            size = 0
        size += item
    keys, values = leaf.keys, leaf.values
    parts: list[tuple[bytes, Reference]] = []
    for start, end in zip(cuts, [*cuts[1:], len(keys)], strict=True):
        part = NewLeaf(keys[start:end], values[start:end]) if start else leaf
        part.keys, part.values = keys[start:end], values[start:end]
        parts.append((keys[start], part))
    return parts


def _split_branch(
    keys: list[bytes], children: list[Reference], branch: NewBranch | None = None
) -> list[tuple[bytes, Reference]]:
    """Branches over these children, evenly filled, or none; the first is `branch` if one is given."""
    if not children:
        return []
    parts = -(-len(children) // FANOUT)
    cuts = [len(children) * part // parts for part in range(parts + 1)]
    made: list[tuple[bytes, Reference]] = []
    for start, end in itertools.pairwise(cuts):
        part = branch if branch is not None and not start else NewBranch([], [])
        part.keys, part.children = keys[start:end], children[start:end]
        made.append((keys[start], part))
    return made
