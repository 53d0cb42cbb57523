"""What a change costs does not depend on how much is there: counted in nodes, not in time."""

from stat import S_IFREG
from uuid import UUID

import pytest
from xxhash import xxh3_64_intdigest

from jfs import directory
from jfs.device import Buffer
from jfs.filesystem import FileSystem
from jfs.layout import NODE_BYTES, ROOT_INO
from jfs.mkfs import make_file_system
from jfs.store import Store, StoreOptions
from jfs.tree import NODE_MAGIC
from tests.devices import MemoryDevice

FILE = S_IFREG | 0o644
SERIES = 100
LARGE = 8_000
MOST_NODES = 20


class CountingDevice(MemoryDevice):
    """Counts the nodes that are written and read."""

    nodes_written = 0
    nodes_read = 0

    def write(self, offset: int, data: Buffer) -> int:
        if bytes(data[8:12]) == NODE_MAGIC:
            self.nodes_written += len(data) // NODE_BYTES
        return super().write(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        self.nodes_read += length == NODE_BYTES
        return super().read(offset, length)


async def directory_of(files: int, options: StoreOptions) -> FileSystem:
    device = CountingDevice(256 << 20)
    await make_file_system(device, volume_uuid=UUID(int=7), epoch=1, label="growth")
    file_system = FileSystem(await Store.open(device, options=options))
    for number in range(files):
        file_system.make(ROOT_INO, b"file-%08d" % number, FILE)
        await file_system.throttle()
    await file_system.store.checkpoint()
    return file_system


async def nodes_written(files: int) -> int:
    """What making some names of a series, and removing some, makes a checkpoint write."""
    file_system = await directory_of(files, StoreOptions())
    device = file_system.store.device
    assert isinstance(device, CountingDevice)
    before = device.nodes_written
    for number in range(SERIES):
        file_system.make(ROOT_INO, b"file-%08d" % (files + number), FILE)
        file_system.unlink(ROOT_INO, b"file-%08d" % (files // 2 + number))
    await file_system.store.checkpoint()
    await file_system.close()
    return device.nodes_written - before


async def test_a_series_changes_few_leaves_of_a_large_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    few = await nodes_written(LARGE)
    assert few < MOST_NODES
    monkeypatch.setattr(directory, "name_hash", lambda name, seed: xxh3_64_intdigest(name, seed) >> 9)
    many = await nodes_written(LARGE)
    assert many > 2 * few, "any other hash does as well"


async def test_a_series_is_looked_up_in_few_leaves() -> None:
    """With a cache of a few nodes."""
    file_system = await directory_of(LARGE, StoreOptions(cache_bytes=1))
    device = file_system.store.device
    assert isinstance(device, CountingDevice)
    before = device.nodes_read
    for number in range(LARGE // 2, LARGE // 2 + SERIES):
        assert file_system.store.get(_name_key(file_system, b"file-%08d" % number)) is not None
    assert device.nodes_read - before < 20
    await file_system.close()


def _name_key(file_system: FileSystem, name: bytes) -> bytes:
    return file_system._bucket(file_system.node(ROOT_INO), name)[0]
