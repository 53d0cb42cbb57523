"""Make an empty file system."""

import time
from uuid import UUID

from jfs.device import BLOCK_BYTES, BlockDevice
from jfs.layout import FIRST_FILE_INO, LogPlace, Superblock


async def make_file_system(device: BlockDevice, *, volume_uuid: UUID, epoch: int, label: str) -> None:
    """Write an empty file system over whatever the device holds."""
    place = LogPlace(1, 64, 0)
    superblock = Superblock(
        volume_uuid,
        label,
        1,
        epoch,
        time.time_ns(),
        device.size_bytes // BLOCK_BYTES,
        64,
        2,
        1,
        256,
        16,
        (64,),
        0,
        0,
        FIRST_FILE_INO,
        place,
        place,
        True,
    )
    device.write(0, superblock.encode())
    await device.flush()
