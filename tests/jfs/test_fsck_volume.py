"""Damage below the items: nodes of the tree, the log, the superblock; power cuts while repairing; chance."""

import random
from collections.abc import Iterable
from dataclasses import replace
from stat import S_IFREG

import pytest
from xxhash import xxh3_64_intdigest

from jfs import fsck_examine
from jfs.errors import CorruptionError
from jfs.filesystem import FileSystem
from jfs.fsck import CODES, Finding, check, repair
from jfs.layout import BLOCK_BYTES, INODE, NODE_BLOCKS, NODE_BYTES, make_key
from jfs.replay import load_volume, read_superblock
from jfs.store import Store
from jfs.tree import NODE, NODE_MAGIC, Branch, Leaf, encode_node
from tests.devices import CrashDevice, MemoryDevice, Written
from tests.jfs.fsck_world import (
    MANY,
    ROOT,
    World,
    build,
    build_many,
    codes,
    flip,
    read_all,
    set_inode,
    set_items,
    set_map,
    set_superblock,
    use,
)

_worlds: dict[str, World] = {}


async def world_of(kind: str) -> World:
    """The same volume each time, made once."""
    if kind not in _worlds:
        _worlds[kind] = await (build() if kind == "small" else build_many())
    return _worlds[kind].copy()


async def assert_whole(world: World) -> None:
    """The volume has no fault, holds what it should, and stays so when it is used."""
    assert check(world.device) == []
    assert await read_all(world.device) == world.content
    await use(world.device)
    assert check(world.device) == []
    assert await read_all(world.device) == world.content


def nodes_of(device: MemoryDevice) -> list[tuple[int, int, Leaf | Branch]]:
    """(address, level, node) of every node of the tree."""
    return list(load_volume(device)[0].tree.nodes())


def reseal(device: MemoryDevice, address: int, raw: bytearray) -> None:
    """Write a node with a checksum that is right for what it says."""
    raw[:8] = xxh3_64_intdigest(raw[8:]).to_bytes(8, "little")
    device.write(address * BLOCK_BYTES, raw)


# -- the tree -----------------------------------------------------------------------------------


async def test_a_lost_leaf_costs_its_items_only() -> None:
    world = await world_of("small")
    inos = {ino: path for path, ino in world.inos.items()}
    middle = make_key(world.inos[f"/many/{MANY // 2:04}"], INODE)
    address, leaf = next(
        (address, node)
        for address, level, node in nodes_of(world.device)
        if not level and node.keys[0] <= middle <= node.keys[-1]
    )
    flip(world.device, address, 20000)
    found = check(world.device)
    assert {"tree-node", "name-dangling", "map-free-as-used", "count-inodes"} <= codes(found)
    verdict = await repair(world.device)
    assert all(finding.repaired for finding in verdict)
    assert check(world.device) == []
    touched = {inos[int.from_bytes(key[:8], "big")] for key in leaf.keys}
    left = await read_all(world.device)
    kept = {path: content for path, content in world.content.items() if path not in touched}
    assert len(kept) > len(world.content) // 2
    assert {path: left.get(path) for path in kept} == kept
    await use(world.device)
    assert check(world.device) == []


async def test_nothing_is_lost_with_the_root_node() -> None:
    """The leaves below it are found again, the free map among them."""
    world = await world_of("small")
    flip(world.device, read_superblock(world.device).tree_root)
    assert "tree-node" in codes(check(world.device))
    verdict = await repair(world.device)
    assert all(finding.repaired for finding in verdict)
    await assert_whole(world)


@pytest.mark.parametrize("which", [0, -1])
async def test_nothing_is_lost_with_an_inner_node(which: int) -> None:
    """The first one also leads to the free map."""
    world = await world_of("many")
    inner = [address for address, level, _ in nodes_of(world.device) if level == 1]
    assert len(inner) > 1
    flip(world.device, inner[which], 999)
    assert "tree-node" in codes(check(world.device))
    verdict = await repair(world.device)
    assert all(finding.repaired for finding in verdict)
    await assert_whole(world)


async def test_a_deleted_file_does_not_come_back_with_lost_nodes() -> None:
    world = await world_of("many")
    store = await Store.open(world.device)
    file_system = FileSystem(store)
    for number in range(0, 900, 2):
        path = f"/many/{number:04}"
        file_system.unlink(world.inos["/many"], path[6:].encode())
        del world.content[path]
    await file_system.close()
    flip(world.device, read_superblock(world.device).tree_root)
    await repair(world.device)
    await assert_whole(world)


async def test_the_log_knows_better_than_lost_nodes() -> None:
    world = await world_of("small")
    store = await Store.open(world.device)
    file_system = FileSystem(store)
    for number in range(0, MANY, 2):
        path = f"/many/{number:04}"
        file_system.unlink(world.inos["/many"], path[6:].encode())
        del world.content[path]
    file_system.truncate(world.inos["/dir/file"], 5)
    world.content["/dir/file"] = bytes(world.content["/dir/file"])[:5]
    await file_system.commit()
    flip(world.device, read_superblock(world.device).tree_root)
    await repair(world.device)
    await assert_whole(world)


async def test_nodes_of_a_checkpoint_that_was_cut_short_do_not_count() -> None:
    """The power goes just before the superblock is written, and then the root is damaged."""
    world = await world_of("small")
    device = CrashDevice(world.device.size_bytes, dict(world.device.blocks))
    store = await Store.open(device)
    file_system = FileSystem(store)
    for path in ("/dir/file", "/other/file", f"/many/{MANY // 2:04}"):
        file_system.setxattr(world.inos[path], b"user.new", bytes(1000))
    await file_system.commit()
    await store.checkpoint()
    world.device = MemoryDevice(device.size_bytes, dict(device.first))
    for event in device.history[: first_superblock(device)]:
        if isinstance(event, Written) and event.data is not None:
            # Of the new nodes only the first gets to the disk, which holds the new free map.
            is_node = event.data[8:12] == NODE_MAGIC
            world.device.write(event.offset, event.data[:NODE_BYTES] if is_node else event.data)
    assert check(world.device) == []
    flip(world.device, read_superblock(world.device).tree_root)
    await repair(world.device)
    await assert_whole(world)


def first_superblock(device: CrashDevice) -> int:
    """The first event of the history that writes a superblock."""
    return next(
        index
        for index, event in enumerate(device.history)
        if isinstance(event, Written) and event.offset < 2 * BLOCK_BYTES
    )


async def test_repair_writes_over_nothing_that_was_marked_used() -> None:
    """Not before its first checkpoint: what seems to be nobody's may be what a lost node led to."""
    world = await world_of("small")
    free_map = load_volume(world.device)[0].free_map
    await set_map(
        world, *[(block, 1) for block in range(100, 6000) if not free_map.is_used(block)], used=True
    )
    volume, end = load_volume(world.device)
    used = blocks_of(volume.free_map.used_runs())
    log = blocks_of((start, volume.superblock.segment_blocks) for start in end.owned)
    flip(world.device, volume.superblock.tree_root)
    device = CrashDevice(world.device.size_bytes, dict(world.device.blocks))
    await repair(device)
    written = device.history[: first_superblock(device)]
    runs = [
        (event.offset // BLOCK_BYTES, event.length // BLOCK_BYTES)
        for event in written
        if isinstance(event, Written)
    ]
    assert blocks_of(runs) - log
    assert not (blocks_of(runs) - log) & used
    world.device = device
    await assert_whole(world)


def blocks_of(runs: Iterable[tuple[int, int]]) -> set[int]:
    """The blocks of some runs."""
    return {block for start, count in runs for block in range(start, start + count)}


async def test_a_node_that_two_branches_lead_to() -> None:
    world = await world_of("small")
    root = next(node for _, level, node in nodes_of(world.device) if level)
    assert isinstance(root, Branch)
    superblock = read_superblock(world.device)
    children = [*root.children[:-1], root.children[3]]
    rest = b"".join(child.to_bytes(8, "little") for child in children)
    raw = encode_node(superblock.uuid, superblock.tree_root, superblock.generation, 1, root.keys, rest)
    world.device.write(superblock.tree_root * BLOCK_BYTES, raw)
    assert "tree-shared" in codes(check(world.device))
    await repair(world.device)
    await assert_whole(world)


@pytest.mark.parametrize("child", [1 << 40, 0])
async def test_a_branch_that_leads_astray(child: int) -> None:
    """To a block outside the volume, or to the superblock. The leaf it should lead to is found again."""
    world = await world_of("small")
    root = next(node for _, level, node in nodes_of(world.device) if level)
    assert isinstance(root, Branch)
    superblock = read_superblock(world.device)
    rest = b"".join(one.to_bytes(8, "little") for one in (*root.children[:4], child, *root.children[5:]))
    raw = encode_node(superblock.uuid, superblock.tree_root, superblock.generation, 1, root.keys, rest)
    world.device.write(superblock.tree_root * BLOCK_BYTES, raw)
    assert ("tree-shared" if child == 0 else "tree-node") in codes(check(world.device))
    await repair(world.device)
    await assert_whole(world)


async def test_keys_out_of_order() -> None:
    """The leaf has a right checksum, but two of its keys change places. Its items are not trusted."""
    world = await world_of("small")
    address, _, leaf = [node for node in nodes_of(world.device) if not node[1]][5]
    raw = bytearray(world.device.read(address * BLOCK_BYTES, NODE_BYTES))
    first, second = leaf.keys[0], leaf.keys[1]
    raw[NODE.size : NODE.size + 34] = second + first
    reseal(world.device, address, raw)
    assert "tree-node" in codes(check(world.device))
    await repair(world.device)
    assert check(world.device) == []


# -- superblock and area --------------------------------------------------------------------------


async def test_no_superblock_is_beyond_repair() -> None:
    world = await world_of("small")
    flip(world.device, 0)
    flip(world.device, 1)
    written = world.device.issued_sequence
    assert codes(check(world.device)) == {"superblock-lost"}
    assert [(finding.repairable, finding.repaired) for finding in await repair(world.device)] == [
        (False, False)
    ]
    assert world.device.issued_sequence == written


async def test_a_cut_area_is_beyond_repair() -> None:
    world = await world_of("small")
    short = MemoryDevice(world.device.size_bytes - BLOCK_BYTES, world.device.blocks)
    assert codes(check(short)) == {"area-truncated"}
    assert [(finding.repairable, finding.repaired) for finding in await repair(short)] == [(False, False)]
    assert short.issued_sequence == 0


@pytest.mark.parametrize("size_bytes", [0, BLOCK_BYTES, 2 * BLOCK_BYTES, 1 << 20])
def test_an_area_without_a_file_system(size_bytes: int) -> None:
    assert codes(check(MemoryDevice(size_bytes))) == {"superblock-lost"}


async def test_an_impossible_tree_height() -> None:
    world = await world_of("small")
    set_superblock(world, tree_height=99)
    assert codes(check(world.device)) == {"superblock-lost"}


async def test_a_superblock_cut_short_by_a_crash_is_no_fault() -> None:
    world = await world_of("small")
    store = await Store.open(world.device)
    file_system = FileSystem(store)
    file_system.make(ROOT, b"new", S_IFREG | 0o644)
    await file_system.commit()
    flip(world.device, (read_superblock(world.device).generation + 1) % 2)
    assert check(world.device) == []


async def test_a_sound_volume_is_not_written() -> None:
    world = await world_of("small")
    written = world.device.issued_sequence
    heard: list[float] = []
    assert check(world.device, lambda fraction, phase: heard.append(fraction)) == []
    assert await repair(world.device) == []
    assert world.device.issued_sequence == written
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


# -- the log --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", range(10))
async def test_a_damaged_log_keeps_what_is_before_the_damage(damaged: int) -> None:
    """Wherever it is: in a batch, or in a jump from one segment to the next."""
    world = await world_of("small")
    store = await Store.open(world.device)
    file_system = FileSystem(store)
    places = []
    for number in range(12):
        node = file_system.make(ROOT, b"log %d" % number, S_IFREG | 0o644)
        file_system.write(node.ino, 0, bytes((number,)) * 5000)
        places.append(store.volume.writer().place.block)
        await file_system.commit()
    # This batch and those after it are lost; they were durable, which the batches after them say.
    flip(world.device, places[damaged], 100)
    assert "log-damaged" in codes(check(world.device))
    verdict = await repair(world.device)
    assert all(finding.repaired for finding in verdict)
    world.content |= {f"/log {number}": bytes((number,)) * 5000 for number in range(damaged)}
    await assert_whole(world)


async def test_a_log_begun_anew_covers_everything() -> None:
    """What the damaged log covered is not known, so every block in use may differ at the far site."""
    world = await world_of("small")
    checkpoint = read_superblock(world.device).checkpoint
    set_superblock(world, checkpoint=replace(checkpoint, lsn=checkpoint.lsn + 10))
    world.device.far_lag = 1 << 40
    await repair(world.device)
    volume, end = load_volume(world.device)
    covered = blocks_of(run for region in volume.coverage.regions.values() for run in region.runs)
    log = blocks_of((start, volume.superblock.segment_blocks) for start in end.owned)
    assert blocks_of(volume.free_map.used_runs()) - covered - log - {0, 1} == set()


async def test_what_repair_writes_is_named_in_the_log() -> None:
    """I1: the far site gets every block of a repair, also when the site dies while it is on its way."""
    world = await world_of("small")
    await set_inode(world, "/dir/file", nlink=7)
    flip(world.device, read_superblock(world.device).total_blocks - 1)
    before = dict(world.device.blocks)
    world.device.far_lag = 1 << 40
    await repair(world.device)
    volume, end = load_volume(world.device)
    written = {block for block, data in world.device.blocks.items() if before.get(block) != data}
    log = blocks_of((start, volume.superblock.segment_blocks) for start in end.owned)
    covered = blocks_of(run for region in volume.coverage.regions.values() for run in region.runs)
    assert written - log - {0, 1} - covered == set()
    assert len(written - log) > NODE_BLOCKS


# -- power cuts and chance ------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(3))
async def test_a_power_cut_while_repairing(seed: int, part: int) -> None:
    """The volume is as it was, or repaired; another repair finishes."""
    world = await world_of("small")
    if part == 0:
        await set_inode(world, "/other/deep", nlink=7, parent_ino=0)
    elif part == 1:
        flip(world.device, read_superblock(world.device).tree_root)
    else:
        checkpoint = read_superblock(world.device).checkpoint
        set_superblock(world, checkpoint=replace(checkpoint, lsn=checkpoint.lsn + 10))
    before = {(one.code, one.place) for one in check(world.device)}
    device = CrashDevice(world.device.size_bytes, dict(world.device.blocks))
    await repair(device)
    rng = random.Random(seed + part)
    for at in range(len(device.history) + 1):
        world.device = device.materialise(rng, at)
        found = {(one.code, one.place) for one in check(world.device)}
        # The first checkpoint repairs, the second only gives blocks back.
        assert found == before or {code for code, _ in found} <= {"map-free-as-used"}
        await repair(world.device)
        assert check(world.device) == []
        assert await read_all(world.device) == world.content


async def test_random_bits(seed: int) -> None:
    """Whatever is flipped: the check returns, a mount works or says what is wrong, and repair ends."""
    world = await world_of("small")
    rng = random.Random(seed)
    used = sorted(world.device.blocks)
    metadata = [block for address, _, _ in nodes_of(world.device) for block in range(address, address + 4)]
    metadata += [0, 1, *range(read_superblock(world.device).tail.block, 200)]
    for _ in range(150):
        device = MemoryDevice(world.device.size_bytes, dict(world.device.blocks))
        for _ in range(rng.choice((1, 1, 2, 5, 20))):
            flip(device, rng.choice(rng.choice((used, metadata))), rng.randrange(BLOCK_BYTES * 8))
        found = check(device)
        try:
            store = await Store.open(device, read_only=True)
            list(store.scan(b"", b"\xff" * 17))
        except CorruptionError:
            assert found
        if rng.random() < 0.3:
            await assert_repair_ends(device)


async def assert_repair_ends(device: MemoryDevice) -> None:
    """After a repair, only what is beyond repair is left."""
    verdict = await repair(device)
    left = check(device)
    assert not [finding for finding in left if finding.repairable]
    assert {(one.code, one.place) for one in left} == {
        (one.code, one.place) for one in verdict if not one.repaired
    }


async def test_random_damage_with_right_checksums(seed: int) -> None:
    """Nodes sealed over nonsense, as a fault of the program would do it: nothing but findings comes of it."""
    world = await world_of("small")
    rng = random.Random(seed)
    nodes = nodes_of(world.device)
    for _ in range(150):
        device = MemoryDevice(world.device.size_bytes, dict(world.device.blocks))
        for _ in range(rng.choice((1, 2, 6))):
            address, _, node = rng.choice(nodes)
            raw = bytearray(device.read(address * BLOCK_BYTES, NODE_BYTES))
            for _ in range(rng.choice((1, 4))):
                at = rng.randrange(40, NODE_BYTES) if rng.random() < 0.4 else _telling(rng, node)
                raw[at] = rng.randrange(256) if rng.random() < 0.5 else raw[at] ^ 1 << rng.randrange(8)
            reseal(device, address, raw)
        check(device)
        await assert_repair_ends(device)


def _telling(rng: random.Random, node: Leaf | Branch) -> int:
    """A place in a node that means something: a key, an end of a value, or a value that is not filling."""
    count = len(node.keys)
    if isinstance(node, Branch) or rng.random() < 0.5:
        return NODE.size + rng.randrange(19 * count)
    return NODE.size + 19 * count + rng.randrange(2000)


async def test_random_items(seed: int) -> None:
    """Items that are changed, moved and removed at random: repair settles all of it."""
    world = await world_of("small")
    rng = random.Random(seed)
    items = list(load_volume(world.device)[0].scan(make_key(ROOT, 0), b"\xff" * 17))
    for _ in range(60):
        damaged = World(MemoryDevice(world.device.size_bytes, dict(world.device.blocks)), {}, {})
        await set_items(damaged, *[_change(rng, items) for _ in range(rng.choice((1, 3, 30)))])
        check(damaged.device)
        await assert_repair_ends(damaged.device)
        assert check(damaged.device) == []
        await read_all(damaged.device)
        await use(damaged.device)
        assert check(damaged.device) == []


def _change(rng: random.Random, items: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes | None]:
    """An item that is gone, has another's value, is somewhere else, or has a wrong byte or length."""
    key, value = rng.choice(items)
    other, another = rng.choice([item for item in items if item[0][8] == key[8]])
    match rng.randrange(6):
        case 0:
            return key, None
        case 1:
            return key, another
        case 2:
            return other[:8] + key[8:], value
        case 3:
            return key[:16] + rng.randbytes(1), value
        case 4:
            return key, value[: rng.randrange(len(value) + 1)]
    broken = bytearray(value or b"?")
    broken[rng.randrange(len(broken))] = rng.randrange(256)
    return key, bytes(broken)


# -- findings -------------------------------------------------------------------------------------


async def test_findings_of_one_code_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsck_examine, "MOST_OF_ONE_CODE", 10)
    world = await world_of("small")
    for number in range(12):
        await set_inode(world, f"/many/{number:04}", nlink=5)
    found = check(world.device)
    assert len(found) == 11
    assert "2 more" in found[-1].sentence
    assert all(isinstance(one, Finding) and one.code in CODES for one in found)
    await repair(world.device)
    await assert_whole(world)
