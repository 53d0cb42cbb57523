"""Ways to damage inodes and extents, and what all the damages use."""

from collections.abc import Awaitable, Callable
from stat import S_IFDIR, S_IFREG

from jfs import directory, xattrs
from jfs.layout import (
    BLOCK_BYTES,
    EXTENT,
    INODE,
    XATTR,
    decode_extent,
    encode_extent,
    make_key,
)
from jfs.store import Store
from tests.jfs.fsck_world import (
    ROOT,
    SEED,
    World,
    get_item,
    name_key,
    name_of,
    set_inode,
    set_items,
    set_name,
    set_superblock,
)

Damage = Callable[[World], Awaitable[set[str]]]
DAMAGES: list[Damage] = []


def damage(case: Damage) -> Damage:
    """A way to damage a volume: says which codes are found; `content` becomes what should be left."""
    DAMAGES.append(case)
    return case


def whole_blocks(content: bytes | int) -> bytes:
    assert isinstance(content, bytes)
    return content.ljust(-(-len(content) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")


def cut_out(world: World, path: str, block: int) -> None:
    content = world.content[path]
    assert isinstance(content, bytes)
    at = block * BLOCK_BYTES
    world.content[path] = content[:at] + bytes(BLOCK_BYTES) + content[at + BLOCK_BYTES :]


def kind_and_suffix(key: bytes) -> tuple[int, int]:
    return key[8], int.from_bytes(key[9:], "big")


def to_lost_and_found(world: World, path: str) -> None:
    world.content["/lost+found"] = S_IFDIR
    new = f"/lost+found/#{world.inos[path]}"
    for old in [one for one in world.content if one == path or one.startswith(path + "/")]:
        world.content[new + old[len(path) :]] = world.content.pop(old)


def attribute_key(world: World, name: bytes) -> bytes:
    return make_key(world.inos["/attributes"], XATTR, xattrs.suffix_of(name, SEED))


async def replace_extent(world: World, path: str, block: int, start: int, count: int) -> None:
    await set_items(world, (make_key(world.inos[path], EXTENT, block), encode_extent(start, count)))


# -- inodes -------------------------------------------------------------------------


@damage
async def unreadable_record(world: World) -> set[str]:
    await set_items(world, (make_key(world.inos["/dir/file"], INODE), b"xx"))
    world.content["/dir/file"] = whole_blocks(world.content["/dir/file"])
    return {"inode-undecodable"}


@damage
async def unreadable_record_of_an_empty_file(world: World) -> set[str]:
    await set_items(world, (make_key(world.inos["/empty"], INODE), b"xx"))
    del world.content["/empty"]
    return {"inode-undecodable", "name-dangling"}


@damage
async def record_without_a_type(world: World) -> set[str]:
    await set_inode(world, "/dir/sub", mode=0o755)
    return {"inode-undecodable"}


@damage
async def no_record_of_a_file(world: World) -> set[str]:
    await set_items(world, (make_key(world.inos["/twin"], INODE), None))
    world.content["/twin"] = world.content["/dir/twin"] = whole_blocks(world.content["/twin"])
    return {"inode-missing"}


@damage
async def no_record_of_a_directory(world: World) -> set[str]:
    await set_items(world, (make_key(world.inos["/other/deep"], INODE), None))
    return {"inode-missing"}


@damage
async def no_record_of_a_link(world: World) -> set[str]:
    await set_items(world, (make_key(world.inos["/long link"], INODE), None))
    return {"inode-missing"}


@damage
async def attributes_without_a_record(world: World) -> set[str]:
    key = make_key(999, XATTR, xattrs.suffix_of(b"user.x", SEED))
    await set_items(world, (key, xattrs.store(None, b"user.x", b"value")))
    return {"inode-missing"}


@damage
async def number_that_would_be_given_again(world: World) -> set[str]:
    set_superblock(world, next_ino=max(world.inos.values()))
    return {"inode-number"}


@damage
async def names_in_a_file(world: World) -> set[str]:
    entry = await name_of(world, "/dir/file")
    key = make_key(world.inos["/other/file"], *kind_and_suffix(name_key(world, "/dir/file")))
    await set_items(world, (key, directory.encode(*entry)))
    return {"inode-foreign"}


@damage
async def blocks_of_a_directory(world: World) -> set[str]:
    await set_items(world, (make_key(world.inos["/dir"], EXTENT, 0), encode_extent(7000, 3)))
    return {"inode-foreign"}


@damage
async def size_too_small(world: World) -> set[str]:
    await set_inode(world, "/dir/file", size_bytes=5)
    world.content["/dir/file"] = whole_blocks(world.content["/dir/file"])
    return {"inode-size"}


@damage
async def size_of_a_directory(world: World) -> set[str]:
    await set_inode(world, "/dir", size_bytes=0)
    return {"inode-size"}


@damage
async def size_of_a_link(world: World) -> set[str]:
    await set_inode(world, "/link", size_bytes=3)
    return {"inode-size"}


@damage
async def size_of_a_fifo(world: World) -> set[str]:
    await set_inode(world, "/fifo", size_bytes=3)
    return {"inode-size"}


@damage
async def block_count(world: World) -> set[str]:
    await set_inode(world, "/other/file", blocks=99)
    return {"inode-blocks"}


@damage
async def link_count_of_a_file(world: World) -> set[str]:
    await set_inode(world, "/twin", nlink=1)
    return {"inode-links"}


@damage
async def link_count_of_a_directory(world: World) -> set[str]:
    await set_inode(world, "/dir", nlink=9)
    return {"inode-links"}


@damage
async def link_count_of_the_root(world: World) -> set[str]:
    await set_inode(world, "", nlink=0)
    return {"inode-links"}


@damage
async def parent_of_a_directory(world: World) -> set[str]:
    await set_inode(world, "/other/deep", parent_ino=world.inos["/dir"])
    return {"inode-parent"}


@damage
async def parent_of_a_file(world: World) -> set[str]:
    await set_inode(world, "/other/file", name=b"another name")
    return {"inode-parent"}


@damage
async def file_without_a_name(world: World) -> set[str]:
    await set_name(world, "/dir/file")
    to_lost_and_found(world, "/dir/file")
    return {"inode-unreachable", "inode-size"}


@damage
async def directory_without_a_name(world: World) -> set[str]:
    await set_name(world, "/other/deep")
    await set_inode(world, "/other", size_bytes=1, nlink=2)
    to_lost_and_found(world, "/other/deep")
    return {"inode-unreachable"}


@damage
async def lost_and_found_is_a_file(world: World) -> set[str]:
    key = make_key(ROOT, 3, directory.suffix_of(b"lost+found", SEED))
    entry = directory.Entry(0, S_IFREG >> 12, world.inos["/twin"], b"lost+found")
    await set_items(world, (key, directory.encode(*entry)))
    await set_inode(world, "", size_bytes=len([path for path in world.content if path.count("/") == 1]) + 1)
    await set_inode(world, "/twin", nlink=3)
    world.content["/lost+found"] = world.content["/twin"]
    await set_name(world, "/dir/file")
    await set_inode(world, "/dir", size_bytes=2)
    world.content["/lost+found.1"] = S_IFDIR
    world.content[f"/lost+found.1/#{world.inos['/dir/file']}"] = world.content.pop("/dir/file")
    return {"inode-unreachable"}


@damage
async def no_root(world: World) -> set[str]:
    await set_items(world, (make_key(ROOT, INODE), None))
    return {"root-missing"}


@damage
async def root_is_a_file(world: World) -> set[str]:
    await set_inode(world, "", mode=S_IFREG | 0o644)
    return {"root-missing"}


# -- extents ------------------------------------------------------------------------


@damage
async def unreadable_extent(world: World) -> set[str]:
    key = make_key(world.inos["/fragmented"], EXTENT, 4)
    await set_items(world, (key, b"?"))
    cut_out(world, "/fragmented", 4)
    return {"extent-undecodable", "inode-blocks", "map-free-as-used"}


@damage
async def extent_outside(world: World) -> set[str]:
    await replace_extent(world, "/fragmented", 4, 1 << 40, 1)
    cut_out(world, "/fragmented", 4)
    return {"extent-range", "inode-blocks", "map-free-as-used"}


@damage
async def extent_of_nothing(world: World) -> set[str]:
    await replace_extent(world, "/fragmented", 4, 1000, 0)
    cut_out(world, "/fragmented", 4)
    return {"extent-range", "inode-blocks", "map-free-as-used"}


@damage
async def extent_over_another(world: World) -> set[str]:
    await replace_extent(world, "/dir/file", 2, 6500, 1)
    return {"extent-overlap"}


@damage
async def extent_half_over_another(world: World) -> set[str]:
    await replace_extent(world, "/dir/file", 3, 6500, 2)
    world.content["/dir/file"] = whole_blocks(world.content["/dir/file"]) + bytes(BLOCK_BYTES)
    return {"extent-overlap", "inode-blocks", "inode-size", "map-used-as-free"}


@damage
async def blocks_of_two_files(world: World) -> set[str]:
    start, _ = decode_extent(await get_item(world, make_key(world.inos["/dir/file"], EXTENT, 0)))
    await replace_extent(world, "/fragmented", 4, start, 1)
    cut_out(world, "/fragmented", 4)
    return {"extent-shared", "inode-blocks", "map-free-as-used"}


@damage
async def blocks_of_a_file_and_the_tree(world: World) -> set[str]:
    store = await Store.open(world.device, read_only=True)
    leaf = [address for address, level, _ in store.volume.tree.nodes() if level == 0][-1]
    # The damage itself writes the tree anew, so the node that is hit is one that the writing leaves alone.
    await replace_extent(world, "/fragmented", 4, leaf, 1)
    cut_out(world, "/fragmented", 4)
    return {"extent-shared", "inode-blocks", "map-free-as-used"}


@damage
async def blocks_of_a_file_and_the_superblock(world: World) -> set[str]:
    await replace_extent(world, "/fragmented", 4, 0, 1)
    cut_out(world, "/fragmented", 4)
    return {"extent-shared", "inode-blocks", "map-free-as-used"}
