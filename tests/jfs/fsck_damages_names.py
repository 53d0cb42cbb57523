"""Ways to damage names, attributes, the free map, the superblock and the log."""

from dataclasses import replace
from stat import S_IFDIR

from jfs import directory, xattrs
from jfs.layout import (
    BLOCK_BYTES,
    EXTENT,
    FREE_MAP_INO,
    GROUP,
    INODE,
    ORPHAN,
    ORPHAN_INO,
    SYMLINK,
    LogPlace,
    decode_extent,
    make_key,
)
from tests.jfs.fsck_damages import DAMAGES, attribute_key, damage, to_lost_and_found
from tests.jfs.fsck_world import (
    MANY,
    ROOT,
    SEED,
    World,
    flip,
    get_item,
    name_key,
    name_of,
    set_inode,
    set_items,
    set_map,
    set_name,
    set_superblock,
    superblock_of,
)

# -- names --------------------------------------------------------------------------


@damage
async def unreadable_name(world: World) -> set[str]:
    key = name_key(world, "/dir/file")
    await set_items(world, (key, (await get_item(world, key))[:-1]))
    to_lost_and_found(world, "/dir/file")
    return {"name-undecodable", "inode-unreachable", "inode-size"}


@damage
async def impossible_name(world: World) -> set[str]:
    entry = await name_of(world, "/dir/file")
    name = b"a/b"
    key = make_key(world.inos["/dir"], 3, directory.suffix_of(name, SEED))
    await set_items(
        world, (name_key(world, "/dir/file"), None), (key, directory.encode(*entry._replace(name=name)))
    )
    to_lost_and_found(world, "/dir/file")
    return {"name-invalid", "inode-unreachable", "inode-size"}


@damage
async def name_in_a_wrong_place(world: World) -> set[str]:
    entry = await name_of(world, "/dir/file")
    key = make_key(world.inos["/dir"], 3, directory.suffix_of(b"elsewhere", SEED))
    await set_items(world, (name_key(world, "/dir/file"), None), (key, directory.encode(*entry)))
    return {"name-misplaced", "inode-parent"}


@damage
async def names_without_slots(world: World) -> set[str]:
    entry = await name_of(world, "/dir/file")
    await set_name(world, "/dir/file", entry, entry)
    return {"name-slot"}


@damage
async def name_of_nothing(world: World) -> set[str]:
    entry = await name_of(world, "/fifo")
    await set_name(world, "/fifo", entry._replace(ino=5000))
    await set_items(world, (make_key(world.inos["/fifo"], INODE), None))
    del world.content["/fifo"]
    return {"name-dangling"}


@damage
async def type_in_a_name(world: World) -> set[str]:
    entry = await name_of(world, "/dir/file")
    await set_name(world, "/dir/file", entry._replace(kind=S_IFDIR >> 12))
    return {"name-type"}


@damage
async def directory_with_two_names(world: World) -> set[str]:
    ino = world.inos["/other/deep"]
    name = directory.Entry(0, S_IFDIR >> 12, ino, b"again")
    key = make_key(world.inos["/dir"], 3, directory.suffix_of(b"again", SEED))
    await set_items(world, (key, directory.encode(*name)))
    await set_inode(world, "/dir", size_bytes=4, nlink=4)
    return {"name-second-parent"}


@damage
async def root_with_a_name(world: World) -> set[str]:
    name = directory.Entry(0, S_IFDIR >> 12, ROOT, b"root")
    key = make_key(world.inos["/dir"], 3, directory.suffix_of(b"root", SEED))
    await set_items(world, (key, directory.encode(*name)))
    await set_inode(world, "/dir", size_bytes=4, nlink=4)
    return {"name-second-parent"}


@damage
async def directories_in_one_another(world: World) -> set[str]:
    """/other/deep leaves /other and goes into /other/deep/deeper."""
    deep, deeper = world.inos["/other/deep"], world.inos["/other/deep/deeper"]
    await set_name(world, "/other/deep")
    await set_inode(world, "/other", size_bytes=1, nlink=2)
    name = directory.Entry(0, S_IFDIR >> 12, deep, b"deep")
    key = make_key(deeper, 3, directory.suffix_of(b"deep", SEED))
    await set_items(world, (key, directory.encode(*name)))
    await set_inode(world, "/other/deep", parent_ino=deeper)
    await set_inode(world, "/other/deep/deeper", size_bytes=2, nlink=3)
    to_lost_and_found(world, "/other/deep")
    return {"directory-cycle"}


# -- deleted files ------------------------------------------------------------------


@damage
async def living_orphan(world: World) -> set[str]:
    await set_items(world, (make_key(ORPHAN_INO, ORPHAN, world.inos["/dir/sub"]), b""))
    return {"orphan-stale"}


@damage
async def orphan_of_nothing(world: World) -> set[str]:
    await set_items(world, (make_key(ORPHAN_INO, ORPHAN, 7777), b""))
    return {"orphan-stale"}


@damage
async def forgotten_orphan(world: World) -> set[str]:
    await set_name(world, "/dir/file")
    await set_inode(world, "/dir", size_bytes=2)
    await set_inode(world, "/dir/file", nlink=0)
    del world.content["/dir/file"]
    return {"orphan-unlisted"}


@damage
async def deleted_directory_with_a_file(world: World) -> set[str]:
    await set_name(world, "/dir/sub")
    await set_inode(world, "/dir", size_bytes=2, nlink=2)
    await set_inode(world, "/dir/sub", nlink=0)
    await set_items(world, (make_key(ORPHAN_INO, ORPHAN, world.inos["/dir/sub"]), b""))
    to_lost_and_found(world, "/dir/sub")
    return {"orphan-stale", "inode-links", "inode-unreachable"}


# -- attributes and links -----------------------------------------------------------


@damage
async def unreadable_attributes(world: World) -> set[str]:
    await set_items(world, (attribute_key(world, b"user.one"), b"\0\0"))
    return {"xattr-undecodable"}


@damage
async def attribute_of_no_namespace(world: World) -> set[str]:
    name = b"nonsense.x"
    await set_items(world, (attribute_key(world, name), xattrs.store(None, name, b"1")))
    return {"xattr-invalid"}


@damage
async def broken_acl(world: World) -> set[str]:
    name = b"system.posix_acl_access"
    await set_items(world, (attribute_key(world, name), xattrs.store(None, name, b"1")))
    return {"xattr-invalid"}


@damage
async def attribute_in_a_wrong_place(world: World) -> set[str]:
    value = await get_item(world, attribute_key(world, b"user.two"))
    await set_items(world, (attribute_key(world, b"user.two"), None), (attribute_key(world, b"x"), value))
    return {"xattr-misplaced"}


@damage
async def link_without_a_target(world: World) -> set[str]:
    await set_items(world, (make_key(world.inos["/link"], SYMLINK, 0), None))
    del world.content["/link"]
    return {"symlink-missing", "inode-size"}


@damage
async def link_with_half_a_target(world: World) -> set[str]:
    await set_items(world, (make_key(world.inos["/long link"], SYMLINK, 0), None))
    del world.content["/long link"]
    return {"symlink-invalid", "inode-size"}


@damage
async def unknown_items(world: World) -> set[str]:
    await set_items(
        world,
        (make_key(world.inos["/dir"], 77, 1), b"?"),
        (make_key(9, INODE, 0), b"?"),
        (make_key(world.inos["/dir"], INODE, 5), b"?"),
    )
    return {"item-unknown"}


# -- free map and counters ----------------------------------------------------------


@damage
async def unreadable_map(world: World) -> set[str]:
    # The damage itself makes a checkpoint, which writes every group that it changes; these it leaves alone.
    await set_items(world, (make_key(FREE_MAP_INO, GROUP, 5), b"?"), (make_key(FREE_MAP_INO, GROUP, 0), b""))
    return {"map-undecodable"}


@damage
async def used_as_free(world: World) -> set[str]:
    # The last file's block: the damage itself writes a tree, and takes free blocks from the front.
    key = make_key(world.inos[f"/many/{MANY - 1:04}"], EXTENT, 0)
    await set_map(world, decode_extent(await get_item(world, key)), used=False)
    return {"map-used-as-free"}


@damage
async def free_as_used(world: World) -> set[str]:
    await set_map(world, (6000, 20), (6030, 1), used=True)
    return {"map-free-as-used"}


@damage
async def free_counter(world: World) -> set[str]:
    set_superblock(world, free_blocks=superblock_of(world).free_blocks + 5)
    return {"count-free"}


@damage
async def inode_counter(world: World) -> set[str]:
    set_superblock(world, inodes=3)
    return {"count-inodes"}


# -- superblock and log -------------------------------------------------------------


@damage
async def other_slot(world: World) -> set[str]:
    flip(world.device, (superblock_of(world).generation + 1) % 2)
    return {"superblock-slot"}


@damage
async def backup(world: World) -> set[str]:
    flip(world.device, superblock_of(world).total_blocks - 1)
    return {"superblock-backup"}


@damage
async def slot_of_another_volume(world: World) -> set[str]:
    superblock = superblock_of(world)
    other = replace(superblock, generation=superblock.generation - 1, uuid=type(superblock.uuid)(int=5))
    world.device.write(other.generation % 2 * BLOCK_BYTES, other.encode())
    return {"superblock-slot"}


@damage
async def segment_outside(world: World) -> set[str]:
    superblock = superblock_of(world)
    set_superblock(world, segments=(*superblock.segments, superblock.total_blocks - 3))
    return {"log-table", "map-free-as-used"}


@damage
async def segments_over_each_other(world: World) -> set[str]:
    superblock = superblock_of(world)
    set_superblock(world, segments=(*superblock.segments, superblock.segments[0] + 1))
    return {"log-table", "map-free-as-used"}


@damage
async def tail_in_no_segment(world: World) -> set[str]:
    tail = superblock_of(world).tail
    set_superblock(world, tail=LogPlace(tail.lsn, 7000, tail.chain))
    return {"log-table", "map-free-as-used"}


@damage
async def log_before_the_checkpoint(world: World) -> set[str]:
    """The log cannot be read from its tail to the checkpoint: nothing is lost but what it covers."""
    checkpoint = superblock_of(world).checkpoint
    set_superblock(world, checkpoint=LogPlace(checkpoint.lsn + 10, checkpoint.block, checkpoint.chain))
    return {"log-damaged"}


ALL_DAMAGES = DAMAGES  # those of fsck_damages, then those above
