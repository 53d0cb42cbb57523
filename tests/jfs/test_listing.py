"""What the log names, read from a volume at rest, unclean, or being written to."""

import random
from uuid import UUID

import pytest

from jfs.errors import CorruptionError
from jfs.inode import Inode
from jfs.layout import BLOCK_BYTES, EXTENT, INODE, ROOT_INO, encode_extent, make_key
from jfs.listing import WHY_DELETED, WHY_METADATA, WHY_RANGES, ListedFile, Listing, listed_bytes, read_listing
from jfs.mkfs import make_file_system
from jfs.replay import read_superblock
from jfs.runs import Run
from jfs.store import Store, StoreOptions
from tests.devices import CrashDevice, MemoryDevice, Written

VOLUME = UUID("11570000-0000-4000-8000-000000000001")
DIRECTORY, FILE, LARGE, OTHER = 16, 17, 18, 19
LARGE_BLOCKS = 20 * 256


def put_inode(store: Store, ino: int, parent: int, name: bytes, size_bytes: int = 0) -> None:
    mode = 0o040755 if ino in (ROOT_INO, DIRECTORY) else 0o100644
    inode = Inode(mode, parent_ino=parent, name=name, size_bytes=size_bytes)
    store.put(make_key(ino, INODE), inode.encode())


def put_data(store: Store, ino: int, blocks: int) -> list[Run]:
    runs = store.allocate(ino, blocks)
    position = 0
    for start, count in runs:
        store.write_data(ino, position, start, bytes(count * BLOCK_BYTES), new=True)
        store.put(make_key(ino, EXTENT, position), encode_extent(start, count))
        position += count
    return runs


async def small_tree(far_lag: int = 0) -> Store:
    """/dir/small, /dir/large and /other; the far site has all of it unless it lags."""
    device = MemoryDevice(128 << 20)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="x")
    device.far_lag = far_lag
    store = await Store.open(device, options=StoreOptions(linger_seconds=0))
    put_inode(store, ROOT_INO, ROOT_INO, b"")
    put_inode(store, DIRECTORY, ROOT_INO, b"dir")
    put_inode(store, FILE, DIRECTORY, b"sm\xffall", 3 * BLOCK_BYTES)
    put_inode(store, LARGE, DIRECTORY, b"large", LARGE_BLOCKS * BLOCK_BYTES)
    put_inode(store, OTHER, ROOT_INO, b"other", BLOCK_BYTES)
    put_data(store, FILE, 3)
    put_data(store, LARGE, LARGE_BLOCKS)
    put_data(store, OTHER, 1)
    await settle(store)
    return store


async def settle(store: Store) -> None:
    """Checkpoint, and retire what may be retired."""
    for _ in range(2):
        store.volume.changed = True
        await store.checkpoint()


def memory(store: Store) -> MemoryDevice:
    assert isinstance(store.device, MemoryDevice)
    return store.device


class LateDevice(MemoryDevice):
    """A device as it was, to which later writes arrive while it is read."""

    def __init__(self, device: MemoryDevice, rng: random.Random) -> None:
        super().__init__(device.size_bytes, dict(device.blocks))
        self.late: list[Written] = []
        self._rng = rng

    def read(self, offset: int, length: int) -> bytes:
        for _ in range(self._rng.choice((0, 0, 0, 1, 5))):
            if self.late:
                event = self.late.pop(0)
                self.write(event.offset, event.data or bytes(event.length))
        return super().read(offset, length)


def by_ino(listing: Listing) -> dict[int, ListedFile]:
    return {one.ino: one for one in listing.files}


def expand(runs: list[Run]) -> set[int]:
    return {block for start, count in runs for block in range(start, start + count)}


async def test_a_volume_that_is_level_lists_no_file() -> None:
    store = await small_tree()
    listing = read_listing(store.device)
    assert listing.files == []
    assert listing.uuid == VOLUME
    assert listing.generation == store.superblock.generation
    segments = {(start, store.superblock.segment_blocks) for start in store.volume.writer().owned()}
    assert expand(listing.block_runs) >= expand([*segments, (0, 2), (128 * 256 - 1, 1)])
    assert listed_bytes(listing) < 2 << 20


async def test_a_write_lists_its_file_before_any_commit() -> None:
    store = await small_tree()
    start = int.from_bytes((store.get(make_key(LARGE, EXTENT)) or b"")[:8], "little")
    store.write_data(LARGE, 9 * 256 + 5, start + 9 * 256 + 5, bytes(BLOCK_BYTES), new=False)
    listed = by_ino(read_listing(store.device))
    assert list(listed) == [LARGE]
    assert listed[LARGE].path == "/dir/large"
    assert listed[LARGE].ranges == [(9 * 256, 256)]
    assert listed[LARGE].block_runs == [(start + 9 * 256, 256)]
    assert listed[LARGE].why == WHY_RANGES
    assert listed[LARGE].size_bytes == LARGE_BLOCKS * BLOCK_BYTES
    assert expand(read_listing(store.device).block_runs) >= {start + 9 * 256 + 5}


async def test_paths_kinds_and_reasons() -> None:
    store = await small_tree(far_lag=1 << 40)
    listed = by_ino(read_listing(store.device))
    assert listed[ROOT_INO].path == "/"
    assert listed[ROOT_INO].why == WHY_METADATA
    assert listed[FILE].path == "/dir/sm\udcffall"
    assert listed[FILE].ranges == [(0, 3)]
    assert len(expand(listed[LARGE].block_runs)) == LARGE_BLOCKS
    store.delete(make_key(OTHER, INODE))
    await store.commit()
    listed = by_ino(read_listing(store.device))
    assert (listed[OTHER].why, listed[OTHER].block_runs) == (WHY_DELETED, [])


async def test_names_go_when_the_far_site_has_caught_up() -> None:
    store = await small_tree(far_lag=1 << 40)
    assert isinstance(store.device, MemoryDevice)
    await settle(store)
    assert len(read_listing(store.device).files) == 5
    store.device.far_lag = 0
    await settle(store)
    assert read_listing(store.device).files == []


async def test_allocated_runs_are_all_that_is_in_use() -> None:
    store = await small_tree()
    listing = read_listing(store.device)
    used = expand(list(listing.allocated_runs()))
    assert used == expand(list(store.volume.free_map.used_runs()))
    assert len(used) == 128 * 256 - store.statistics().free_blocks


async def test_a_broken_chain_of_directories_is_named_as_such() -> None:
    store = await small_tree(far_lag=1 << 40)
    store.delete(make_key(DIRECTORY, INODE))
    put_inode(store, 30, 31, b"a")
    put_inode(store, 31, 30, b"b")
    await store.commit()
    listed = by_ino(read_listing(store.device))
    assert listed[FILE].path == f"(inode {DIRECTORY})/sm\udcffall"
    assert listed[30].path.startswith("(inode 3")


async def test_a_live_area_is_read_consistently() -> None:
    """The writer goes on between any two reads of the reader: its writes arrive then, in their order."""
    store = await small_tree(far_lag=1 << 40)
    rng = random.Random(4)
    device = CrashDevice(store.device.size_bytes, dict(memory(store).blocks))
    device.issued_sequence, device.far_lag = 1, 1 << 40
    store = await Store.open(device, options=StoreOptions(linger_seconds=0))
    retries = 0
    for turn in range(40):
        view, already = LateDevice(device, rng), len(device.history)
        for _ in range(rng.randrange(1, 4)):
            for ino in rng.sample(range(100, 1000), 100):
                put_inode(store, ino, ROOT_INO, b"n%d" % turn)
            await store.checkpoint()
        view.late = [event for event in device.history[already:] if isinstance(event, Written)]
        started = read_superblock(view).generation
        listed = by_ino(read_listing(view))
        retries += read_superblock(view).generation > started
        assert listed[FILE].path == "/dir/sm\udcffall"
        assert listed[FILE].ranges == [(0, 3)]
    assert retries > 5


async def test_damage_in_the_tree_is_an_error_not_a_retry_for_ever() -> None:
    store = await small_tree(far_lag=1 << 40)
    assert isinstance(store.device, MemoryDevice)
    store.device.blocks[store.superblock.tree_root] = b"\xff" * BLOCK_BYTES
    with pytest.raises(CorruptionError, match="tree node"):
        read_listing(store.device)
