"""A disk that loses, keeps or tears what was written since the last sync when its power is cut.

Written as an undo log over real files: before the first change of a block after a sync its old content is
kept, so the files themselves are always what a running machine sees in its page cache.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

BLOCK = 4096
SECTOR = 512

pread, pwrite, ftruncate, close, dup = os.pread, os.pwrite, os.ftruncate, os.close, os.dup


class Changes:
    """What was changed in one file since it was synced."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = dup(descriptor)
        self.size = os.fstat(descriptor).st_size
        """As it was at the last sync."""
        self.blocks: dict[int, bytes] = {}
        """Block number -> content at the last sync (short at the end of the file)."""

    def keep(self, offset: int, length: int) -> None:
        """Before bytes change: remember the blocks they are in."""
        for block in range(offset // BLOCK, -(-(offset + length) // BLOCK)):
            if block not in self.blocks:
                self.blocks[block] = pread(self.descriptor, BLOCK, block * BLOCK)

    def made_durable(self, offset: int, data: bytes) -> None:
        """A write that was synced by itself: what is kept for its place is durable now."""
        for block in range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)):
            old = self.blocks.get(block)
            if old is not None:
                first = max(offset - block * BLOCK, 0)
                part = data[max(block * BLOCK - offset, 0) :][: BLOCK - first]
                self.blocks[block] = old[:first].ljust(first, b"\0") + part + old[first + len(part) :]

    def lose(self, rng: random.Random) -> None:
        """Put back what the power cut takes."""
        fate = rng.choice(("all", "none", "some", "some"))
        for block, old in sorted(self.blocks.items()):
            new = pread(self.descriptor, BLOCK, block * BLOCK)
            mixed = bytearray(new.ljust(BLOCK, b"\0"))
            padded = old.ljust(BLOCK, b"\0")
            share = {"all": 1.0, "none": 0.0, "some": rng.choice((0.0, 0.5, 1.0))}[fate]
            for sector in range(0, BLOCK, SECTOR):
                if rng.random() < share:
                    mixed[sector : sector + SECTOR] = padded[sector : sector + SECTOR]
            pwrite(self.descriptor, bytes(mixed), block * BLOCK)
        ftruncate(self.descriptor, self.size if fate == "all" else max(self.size, self._end()))

    def _end(self) -> int:
        """The end of the file: what was written behind the old one, whole blocks of it."""
        return max(((block + 1) * BLOCK for block in self.blocks), default=0)

    def forget(self) -> None:
        """It is synced now."""
        close(self.descriptor)


class Disk:
    """All files of one machine that are written by system calls."""

    def __init__(self) -> None:
        self._changed: dict[int, Changes] = {}
        self.full = False
        self.failures: random.Random | None = None
        """Set: the next flush of an area fails, once, and what it was for is lost by chance."""
        self.failed = False
        """A flush has failed since the machine was started anew."""
        self.cuts_with_changes = 0

    def _changes(self, descriptor: int) -> Changes:
        inode = os.fstat(descriptor).st_ino
        found = self._changed.get(inode)
        if found is None:
            found = self._changed[inode] = Changes(descriptor)
        return found

    def before_write(self, descriptor: int, offset: int, length: int) -> None:
        """Called before every write that is not synced by itself."""
        self._changes(descriptor).keep(offset, length)

    def after_durable_write(self, descriptor: int, offset: int, buffers: Sequence[bytes]) -> None:
        """Called after a write with O_DSYNC semantics."""
        found = self._changed.get(os.fstat(descriptor).st_ino)
        if found is not None:
            found.made_durable(offset, b"".join(buffers))

    def before_truncate(self, descriptor: int, size: int) -> None:
        """Called before a file is cut or made longer."""
        old = os.fstat(descriptor).st_size
        changes = self._changes(descriptor)
        if size < old:
            changes.keep(size, old - size)

    def synced(self, descriptor: int) -> None:
        """fsync or fdatasync has returned."""
        found = self._changed.pop(os.fstat(descriptor).st_ino, None)
        if found is not None:
            found.forget()

    def fails(self, descriptor: int) -> bool:
        """Whether a flush fails. Like Linux the disk tells once that it could not write something; what it
        was shows when the page cache lets it go: at once here.
        """
        rng = self.failures
        if rng is None or not os.readlink(f"/proc/self/fd/{descriptor}").endswith("/area"):
            return False
        self.failures, self.failed = None, True
        found = self._changed.pop(os.fstat(descriptor).st_ino, None)
        if found is not None:
            found.lose(rng)
            found.forget()
        return True

    def lose_power(self, rng: random.Random) -> None:
        """Lose, keep or tear what was not synced."""
        for _, changes in sorted(self._changed.items()):
            self.cuts_with_changes += bool(changes.blocks)
            if os.fstat(changes.descriptor).st_nlink:
                changes.lose(rng)
            changes.forget()
        self._changed.clear()

    def close(self) -> None:
        """Forget everything."""
        for changes in self._changed.values():
            changes.forget()
        self._changed.clear()
