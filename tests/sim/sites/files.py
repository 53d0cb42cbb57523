"""What an application wrote, and what it was told is safe: the judge of lost writes, apart from the product.

Every sector says which file, block and version it is. After each mount all files are read: a sector may show
any version from the newest acknowledged one on, and none that was never written.
"""

from __future__ import annotations

import random
import stat
import struct
from typing import Final

from jfs.filesystem import FileSystem
from jfs.layout import ROOT_INO

SECTOR: Final = 512
BLOCK: Final = 4096
STAMP: Final = struct.Struct("<4sIII")
MAGIC: Final = b"sIm!"
Versions = dict[tuple[int, int], int]
"""(file, block) -> version."""
FILES: Final = 8
HOT_FILES: Final = 2
"""Most writes go to these; the others are left alone long enough to be forgotten by the metadata log."""
BLOCKS: Final = 6


class Violation(AssertionError):
    """The product broke a promise."""


def block_of(file: int, block: int, version: int) -> bytes:
    """The bytes of one version of one block: each sector is stamped."""
    stamp = STAMP.pack(MAGIC, file, block, version)
    return (stamp * (SECTOR // STAMP.size)) * (BLOCK // SECTOR)


class Files:
    """The versions that were issued and acknowledged."""

    def __init__(self) -> None:
        self.issued: dict[tuple[int, int], int] = {}
        self.acknowledged: dict[tuple[int, int], int] = {}
        self.acks = 0
        self.loss_accepted = False

    def write(
        self, file_system: FileSystem, rng: random.Random, written: Versions, *, cold: bool = False
    ) -> int:
        """One write of a few blocks into some file; which file. `written`: what this mount has written.

        `cold`: into one that is usually left alone.
        """
        if cold:
            file = rng.randrange(HOT_FILES, FILES)
        else:
            file = rng.randrange(HOT_FILES if rng.random() < 0.7 else FILES)
        ino = self._inode(file_system, file)
        first = rng.randrange(BLOCKS)
        for block in range(first, min(first + rng.choice((1, 1, 2, 5)), BLOCKS)):
            version = self.issued.get((file, block), 0) + 1
            self.issued[file, block] = version
            file_system.write(ino, block * BLOCK, block_of(file, block, version))
            written[file, block] = version
        return file

    def _inode(self, file_system: FileSystem, file: int) -> int:
        name = b"file-%d" % file
        found = file_system.lookup(ROOT_INO, name)
        if found is None:
            found = file_system.make(ROOT_INO, name, stat.S_IFREG | 0o644)
        return found.ino

    async def fsync(self, file_system: FileSystem, file: int, written: Versions) -> Versions:
        """fsync the file; what the application may now rely on."""
        covered = {place: version for place, version in written.items() if place[0] == file}
        await file_system.fsync(self._inode(file_system, file))
        return covered

    def acknowledge(self, covered: Versions) -> None:
        """These versions were promised."""
        self.acks += 1
        for place, version in covered.items():
            self.acknowledged[place] = max(version, self.acknowledged.get(place, 0))

    def judge(self, file_system: FileSystem) -> None:
        """Read everything after a mount."""
        found: dict[tuple[int, int], int] = {}
        for file in range(FILES):
            node = file_system.lookup(ROOT_INO, b"file-%d" % file)
            content = file_system.read(node.ino, 0, BLOCKS * BLOCK) if node is not None else b""
            data = bytes(content).ljust(BLOCKS * BLOCK, b"\0")
            for block in range(BLOCKS):
                place = (file, block)
                found[place] = self._judge_block(place, data[block * BLOCK : (block + 1) * BLOCK])
        if self.loss_accepted:
            self.loss_accepted = False
            self.acknowledged = {
                place: min(version, found[place]) for place, version in self.acknowledged.items()
            }

    def _judge_block(self, place: tuple[int, int], data: bytes) -> int:
        """The oldest version that a sector of the block shows."""
        oldest = 1 << 32
        for at in range(0, BLOCK, SECTOR):
            sector = data[at : at + SECTOR]
            version = 0
            if any(sector):
                magic, file, block, version = STAMP.unpack_from(sector)
                if (
                    magic != MAGIC
                    or (file, block) != place
                    or sector != sector[: STAMP.size] * (SECTOR // STAMP.size)
                ):
                    raise Violation(f"file {place[0]} block {place[1]} shows what was never written there")
            if version > self.issued.get(place, 0):
                raise Violation(f"{place} shows version {version}, which was never written")
            if version < self.acknowledged.get(place, 0) and not self.loss_accepted:
                raise Violation(
                    f"file {place[0]} block {place[1]}: version {self.acknowledged[place]} was acknowledged, "
                    f"and {version} is there"
                )
            oldest = min(oldest, version)
        return oldest
