"""Make an empty file system. Costs a handful of blocks whatever the size of the volume."""

import time
from uuid import UUID

from jfs.checkpoint import node_writes, place_nodes
from jfs.device import BlockDevice
from jfs.errors import FileSystemError
from jfs.freemap import FIRST_BLOCK, FreeMap
from jfs.layout import BLOCK_BYTES, FIRST_FILE_INO, SEGMENT_TABLE_LIMIT, LogPlace, Superblock
from jfs.tree import NodeCache, TreeEdit

FIRST_SEGMENTS = 4
SMALLEST_VOLUME_BYTES = 2 << 20
SMALLEST_SEGMENT_BYTES = 64 << 10
USUAL_SEGMENT_BYTES = 1 << 20
LARGEST_SEGMENT_BYTES = 4 << 20
LARGE_VOLUME_BYTES = 1 << 38
LARGEST_LOG_BYTES = 256 << 20
LOG_SHARE = 16  # the log may take a sixteenth of the volume
URGENT_SEGMENTS = 8  # that checkpoints may take beyond the limit
EINVAL = 22


def segment_bytes_for(volume_bytes: int) -> int:
    """64 KiB for the smallest volumes, 1 MiB from 1 GiB on, 4 MiB from 256 GiB on."""
    if volume_bytes >= LARGE_VOLUME_BYTES:
        return LARGEST_SEGMENT_BYTES
    segment = SMALLEST_SEGMENT_BYTES
    while segment < USUAL_SEGMENT_BYTES and segment * 1024 < volume_bytes:
        segment *= 2
    return segment


def reserve_blocks_for(total_blocks: int) -> int:
    """Blocks kept from data, so that commits, checkpoints and deletions work on a full volume."""
    return min(max(total_blocks // 32, 64), 16384)


async def make_file_system(
    device: BlockDevice,
    *,
    volume_uuid: UUID,
    epoch: int,
    label: str,
    segment_bytes: int | None = None,
    log_limit_bytes: int | None = None,
) -> None:
    """Write an empty file system over whatever the device holds. FileSystemError if it is too small."""
    if device.size_bytes < SMALLEST_VOLUME_BYTES:
        raise FileSystemError(EINVAL, f"a volume needs at least {SMALLEST_VOLUME_BYTES >> 20} MiB")
    total = device.size_bytes // BLOCK_BYTES
    segment_blocks = (segment_bytes or segment_bytes_for(device.size_bytes)) // BLOCK_BYTES
    reserve = reserve_blocks_for(total)
    limit_bytes = log_limit_bytes or min(device.size_bytes // LOG_SHARE, LARGEST_LOG_BYTES)
    most = SEGMENT_TABLE_LIMIT - URGENT_SEGMENTS
    limit = min(max(limit_bytes // (segment_blocks * BLOCK_BYTES), FIRST_SEGMENTS), most)
    segments = [reserve + index * segment_blocks for index in range(FIRST_SEGMENTS)]

    free_map = FreeMap(total, reserve, lambda group: None, total)
    free_map.set_used(0, FIRST_BLOCK)
    free_map.set_used(total - 1, 1)
    free_map.set_used(segments[0], FIRST_SEGMENTS * segment_blocks)
    frozen_map = free_map.freeze()
    edit = TreeEdit(None, NodeCache(device, volume_uuid))
    for _ in place_nodes(edit, free_map, frozen_map):
        pass  # nobody waits while a file system is made
    start = LogPlace(1, segments[0], 0)
    superblock = Superblock(
        uuid=volume_uuid,
        label=label,
        generation=1,
        epoch=epoch,
        created_ns=time.time_ns(),
        total_blocks=total,
        reserve_blocks=reserve,
        tree_root=edit.root,
        tree_height=edit.height,
        segment_blocks=segment_blocks,
        segment_limit=limit,
        segments=tuple(segments),
        free_blocks=frozen_map.free_blocks,
        inodes=0,
        next_ino=FIRST_FILE_INO,
        checkpoint=start,
        tail=start,
        clean=True,
    )
    # An older superblock must not win over this one, and no old batch may seem to begin this log.
    device.write(0, bytes(FIRST_BLOCK * BLOCK_BYTES))
    device.discard(start.block * BLOCK_BYTES, FIRST_SEGMENTS * segment_blocks * BLOCK_BYTES)
    for address, data in node_writes(edit.new_nodes(), superblock, superblock.generation):
        device.write(address * BLOCK_BYTES, data)
    await device.flush()
    encoded = superblock.encode()
    device.write((total - 1) * BLOCK_BYTES, encoded)
    device.write(superblock.generation % 2 * BLOCK_BYTES, encoded)
    await device.flush()
