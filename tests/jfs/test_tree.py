"""The tree against a dictionary: edits, reading, and nodes that are not what they should be."""

import random
from uuid import UUID

import pytest

from jfs.errors import CorruptionError
from jfs.layout import BLOCK_BYTES, NODE_BLOCKS, NODE_BYTES, VALUE_LIMIT_BYTES, make_key
from jfs.tree import NodeCache, Tree, TreeEdit, encode_new
from tests.devices import MemoryDevice

VOLUME = UUID("7ee00000-0000-4000-8000-000000000001")
LAST = b"\xff" * 17


class Forest:
    """A tree on a device, edited again and again; addresses are handed out once."""

    def __init__(self, cache_bytes: int = 1 << 20) -> None:
        self.device = MemoryDevice(1 << 30)
        self.cache = NodeCache(self.device, VOLUME, cache_bytes)
        self.tree: Tree | None = None
        self.next_address = 8
        self.items: dict[bytes, bytes] = {}

    def edit(self, changes: dict[bytes, bytes | None]) -> Tree:
        before = {address for address, _, _ in self.tree.nodes()} if self.tree else set()
        edit = TreeEdit(self.tree, self.cache)
        keys = sorted(changes)
        for _ in edit.apply(keys, [changes[key] for key in keys]):
            pass
        made = set()
        for level, node in edit.new_nodes():
            node.address = self.next_address
            made.add(node.address)
            self.next_address += NODE_BLOCKS
            self.device.write(node.address * BLOCK_BYTES, encode_new(node, level, VOLUME, 1))
        self.tree = Tree(self.cache, edit.root, edit.height)
        after = {address for address, _, _ in self.tree.nodes()}
        assert after == (before - set(edit.replaced)) | made
        assert len(edit.replaced) == len(set(edit.replaced))
        for key, value in changes.items():
            if value is None:
                self.items.pop(key, None)
            else:
                self.items[key] = value
        return self.tree


def all_items(tree: Tree, limit: int = 100) -> list[tuple[bytes, bytes]]:
    found, first, more = [], b"", True
    while more:
        page, more = tree.page(first, LAST, limit)
        found += page
        first = page[-1][0] + b"\0" if page else b""
    return found


@pytest.mark.parametrize("story", range(12))
def test_edits_against_a_dictionary(seed: int, story: int) -> None:
    rng = random.Random(seed * 100 + story)
    forest = Forest(cache_bytes=rng.choice((1, 1 << 20)))
    inodes = rng.choice((5, 200, 5000))
    sizes = rng.choice((10, 200, VALUE_LIMIT_BYTES))
    forest.edit({})
    for _ in range(12):
        changes: dict[bytes, bytes | None] = {}
        deleting = rng.random()
        for _ in range(rng.choice((1, 30, 1500))):
            key = make_key(rng.randrange(inodes), rng.randint(1, 6), rng.randrange(3))
            changes[key] = None if rng.random() < deleting else rng.randbytes(rng.randint(0, sizes))
        tree = forest.edit(changes)
        assert all_items(tree, rng.choice((1, 7, 1000))) == sorted(forest.items.items())
        keys = sorted(forest.items)
        for _ in range(50):
            key = make_key(rng.randrange(inodes), rng.randint(1, 6), rng.randrange(3))
            assert tree.get(key) == forest.items.get(key)
            below = [other for other in keys if other <= key]
            assert tree.floor(key) == (below[-1] if below else None)


def test_a_tree_shrinks_to_one_leaf() -> None:
    forest = Forest()
    forest.edit({make_key(ino, 1): bytes(100) for ino in range(100_000)})
    assert forest.tree is not None
    assert forest.tree.height == 3
    tree = forest.edit({make_key(ino, 1): None for ino in range(100_000) if ino != 777})
    assert tree.height == 1
    assert all_items(tree) == [(make_key(777, 1), bytes(100))]
    assert all_items(forest.edit({make_key(777, 1): None})) == []


def test_nodes_are_well_filled() -> None:
    forest = Forest()
    rng = random.Random(1)
    keys = [make_key(ino, 1) for ino in range(20_000)]
    tree = forest.edit(dict.fromkeys(keys, bytes(100)))
    assert len(list(tree.nodes())) < 20_000 * 119 / NODE_BYTES * 1.1
    for part in range(0, 20_000, 500):
        tree = forest.edit(dict.fromkeys(rng.sample(keys, 20_000)[part : part + 450], None))
    left = len(forest.items)
    assert len(list(tree.nodes())) < left * 119 / NODE_BYTES * 5


def test_a_small_change_replaces_one_path() -> None:
    forest = Forest()
    forest.edit({make_key(ino, 1): bytes(100) for ino in range(20_000)})
    assert forest.tree is not None
    edit = TreeEdit(forest.tree, forest.cache)
    steps = sum(1 for _ in edit.apply([make_key(5, 1)], [b"x"]))
    assert steps == 1
    assert len(edit.replaced) == forest.tree.height == len(edit.new_nodes())


@pytest.mark.parametrize("what", ["bit", "volume", "address", "level", "outside", "zeros"])
def test_a_wrong_node_is_recognised(what: str) -> None:
    forest = Forest(cache_bytes=1)
    tree = forest.edit({make_key(ino, 1): bytes(100) for ino in range(2000)})
    victim = next(address for address, level, _ in tree.nodes() if level == 0)
    raw = bytearray(forest.device.read(victim * BLOCK_BYTES, NODE_BYTES))
    cache, height = NodeCache(forest.device, VOLUME), tree.height
    if what == "bit":
        raw[5000] ^= 1
    elif what == "zeros":
        raw = bytearray(NODE_BYTES)
    elif what == "address":
        other = [address for address, level, _ in tree.nodes() if level == 0][1]
        raw = bytearray(forest.device.read(other * BLOCK_BYTES, NODE_BYTES))
    elif what == "level":
        raw = bytearray(forest.device.read(tree.root * BLOCK_BYTES, NODE_BYTES))
        victim, height = tree.root, 1
    elif what == "volume":
        cache = NodeCache(forest.device, UUID(int=1))
    forest.device.write(victim * BLOCK_BYTES, raw)
    with pytest.raises(CorruptionError, match="tree"):
        list(Tree(cache, 1 << 40 if what == "outside" else tree.root, height).nodes())


def test_the_cache_is_bounded() -> None:
    forest = Forest(cache_bytes=1)
    tree = forest.edit({make_key(ino, 1): bytes(1000) for ino in range(2000)})
    assert all_items(tree) == sorted(forest.items.items())
    assert len(forest.cache._nodes) <= 8
