"""A volume on which nothing was ever committed, and one that lost its root directory: not the same."""

import pytest

from jfs.errors import CorruptionError
from jfs.filesystem import FileSystem
from jfs.fsck import check
from jfs.layout import INODE, make_key
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.store_world import VOLUME
from tests.jfs.world import ROOT, names, new_file_system


async def test_a_fresh_volume_mounts_read_only() -> None:
    """After mkfs, or a power cut before the first commit: an empty directory, and nothing is written."""
    device = MemoryDevice(8 << 20)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="fresh")
    written = device.issued_sequence
    fs = FileSystem(await Store.open(device, read_only=True), read_only=True)
    assert names(fs) == set()
    await fs.commit()
    await fs.close()
    assert device.issued_sequence == written
    assert check(device) == []


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_lost_root_directory_is_not_made_anew(read_only: bool) -> None:
    """Whatever was in it would be out of reach, and nobody would be told."""
    fs = await new_file_system()
    fs.make(ROOT, b"file", 0o100644)
    await fs.commit()
    fs.store.delete(make_key(ROOT, INODE))
    await fs.store.close()
    store = await Store.open(fs.store.device, read_only=read_only)
    with pytest.raises(CorruptionError, match="root directory"):
        FileSystem(store, read_only=read_only)
