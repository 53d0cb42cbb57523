"""The store: items and blocks under one file system, atomic and durable by commit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import trio

from jfs.device import BLOCK_BYTES, BlockDevice, Buffer
from jfs.errors import NoSpace
from jfs.layout import FIRST_FILE_INO, Superblock
from jfs.overlay import ABSENT, Overlay


@dataclass(frozen=True)
class StoreOptions:
    """How a store behaves."""

    commit_seconds: float = 5.0
    linger_seconds: float = 2.0
    on_log_full: str = "coarsen"


@dataclass(frozen=True)
class LogStatus:
    """What the log names now."""

    files: int
    bytes: int
    capacity_bytes: int


@dataclass(frozen=True)
class Statistics:
    """For statfs. Blocks of 4096 bytes."""

    total_blocks: int
    free_blocks: int
    available_blocks: int
    inodes: int


class Store:
    """First version: everything in memory, the same interface as the final one."""

    def __init__(self, device: BlockDevice, superblock: Superblock) -> None:
        self.device = device
        self.superblock = superblock
        self.before_commit: list[Callable[[], None]] = []
        self._overlay = Overlay()
        self._next_ino = FIRST_FILE_INO
        self._next_block = 64
        self._free: set[int] = set()

    @classmethod
    async def open(
        cls, device: BlockDevice, *, read_only: bool = False, options: StoreOptions = StoreOptions()
    ) -> "Store":
        superblock = Superblock.decode(device.read(0, BLOCK_BYTES))
        return cls(device, superblock)

    def get(self, key: bytes) -> bytes | None:
        return self._overlay.items.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._overlay.set(key, value)

    def delete(self, key: bytes) -> None:
        self._overlay.set(key, None)

    def scan(self, first: bytes, last: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Items from `first` to `last`; the caller may change the store between two of them."""
        while True:
            page = self._overlay.page(first, last, 256)
            for key in page:
                value = self._overlay.items[key]
                if value is not None:
                    yield key, value
            if len(page) < 256:
                return
            first = page[-1] + b"\0"

    def floor(self, key: bytes) -> tuple[bytes, bytes] | None:
        while (found := self._overlay.floor(key)) is not None:
            value = self._overlay.items[found]
            if value is not None:
                return found, value
            key = (
                found[:9] + (int.from_bytes(found[9:], "big") - 1).to_bytes(8, "big")
                if found[9:].strip(b"\0")
                else b""
            )
        return None

    def allocate(self, ino: int, count: int, near: int = 0) -> list[tuple[int, int]]:
        if self._next_block + count > self.superblock.total_blocks:
            raise NoSpace
        start = self._next_block
        self._next_block += count
        return [(start, count)]

    def free(self, ino: int, start: int, count: int) -> None:
        self._free.update(range(start, start + count))

    def write_data(self, ino: int, file_block: int, start_block: int, data: Buffer, *, new: bool) -> int:
        return self.device.write(start_block * BLOCK_BYTES, data)

    def read_data(self, start_block: int, count: int) -> bytes:
        return self.device.read(start_block * BLOCK_BYTES, count * BLOCK_BYTES)

    def allocate_ino(self) -> int:
        """An inode number never used before."""
        self._next_ino += 1
        return self._next_ino - 1

    async def commit(self) -> None:
        for hook in self.before_commit:
            hook()
        await self.device.flush()

    async def checkpoint(self) -> None:
        await self.commit()

    async def throttle(self) -> None:
        return

    async def run(self) -> None:
        while True:
            await trio.sleep(5)
            await self.commit()

    async def close(self) -> None:
        await self.checkpoint()

    def log_status(self) -> LogStatus:
        return LogStatus(0, 0, 4 << 20)

    def statistics(self) -> Statistics:
        free = self.superblock.total_blocks - self._next_block + len(self._free)
        return Statistics(self.superblock.total_blocks, free, free, 1)
