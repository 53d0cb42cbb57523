"""A store on a device in memory, and what tests ask of it."""

import random
from uuid import UUID

from jfs.layout import BLOCK_BYTES, EXTENT, INODE, encode_extent, make_key
from jfs.mkfs import make_file_system
from jfs.store import Store, StoreOptions
from tests.devices import MemoryDevice
from tests.jfs.crash_model import check_ownership

VOLUME = UUID("570e0000-0000-4000-8000-000000000001")
EVERYTHING = (make_key(16, 0), b"\xff" * 17)
QUICK = StoreOptions(linger_seconds=0)


async def make_store(size_bytes: int = 64 << 20, options: StoreOptions = QUICK, **how: int) -> Store:
    device = MemoryDevice(size_bytes)
    await make_file_system(
        device,
        volume_uuid=VOLUME,
        epoch=3,
        label="test",
        segment_bytes=how.get("segment_bytes"),
        log_limit_bytes=how.get("log_limit_bytes"),
    )
    return await Store.open(device, options=options)


def memory(store: Store) -> MemoryDevice:
    assert isinstance(store.device, MemoryDevice)
    return store.device


async def reopened(store: Store) -> Store:
    """As after a kill of the process: what was not committed is gone."""
    copy = MemoryDevice(store.device.size_bytes, dict(memory(store).blocks))
    return await Store.open(copy, options=store.options)


def is_frozen(store: Store) -> bool:
    """Is a checkpoint under way?"""
    return store.volume.frozen is not None


def check_blocks(store: Store) -> None:
    """The free map of a store without pending changes says just what is owned."""
    volume = store.volume
    owned = [(0, 2), (volume.superblock.total_blocks - 1, 1)]
    owned += [(start, volume.superblock.segment_blocks) for start in volume.writer().owned()]
    owned += [(address, 4) for address, _, _ in volume.tree.nodes()]
    for key, value in store.scan(*EVERYTHING):
        if key[8] == EXTENT:
            owned.append((int.from_bytes(value[:8], "little"), int.from_bytes(value[8:12], "little")))
    check_ownership(owned, list(volume.free_map.used_runs()))


def write_files(store: Store, rng: random.Random, files: int, first: int = 20) -> dict[int, int]:
    """Files of one block each: inode -> block."""
    blocks = {}
    for ino in range(first, first + files):
        blocks[ino] = store.allocate(ino, 1)[0][0]
        store.write_data(ino, 0, blocks[ino], rng.randbytes(BLOCK_BYTES), new=True)
        store.put(make_key(ino, EXTENT), encode_extent(blocks[ino], 1))
        store.put(make_key(ino, INODE), b"inode")
    return blocks
