"""Open files as the mount sees them: what a handle says, and who has a file open for writing. Pure.

A handle is the inode number and four bits (HANDLE_SHIFT): writes through it clear setuid and setgid; reads
through it are accesses; it is open for writing; writes through it are the application's own (O_DIRECT), not
the kernel's writing back of pages. Reads of a handle that is open for writing only are the kernel's own, for
parts of pages.
"""

import os
from dataclasses import dataclass

HANDLE_SHIFT = 4
CLEARS = 1
ACCESSES = 2
WRITES = 4
DIRECT = 8
BLOCKS_SHARE = 16
"""st_blocks of a file that is open for writing is right to this part of it after an fsync."""


def make_handle(ino: int, flags: int, *, clears: bool) -> int:
    """The handle of an inode opened with `flags`; `clears`: a write by its owner takes privileges away."""
    access = flags & os.O_ACCMODE
    handle = ino << HANDLE_SHIFT
    if clears and access != os.O_RDONLY:
        handle |= CLEARS
    if access != os.O_WRONLY and not flags & os.O_NOATIME:
        handle |= ACCESSES
    if access != os.O_RDONLY:
        handle |= WRITES
    if flags & os.O_DIRECT:
        handle |= DIRECT
    return handle


@dataclass(slots=True)
class _Written:
    """A file that is open for writing."""

    blocks: int
    """That the kernel was last made to ask for."""
    handles: int = 0


class Writers:
    """The files that are open for writing, and how many blocks of them the kernel believes in."""

    def __init__(self) -> None:
        self._files: dict[int, _Written] = {}

    def __contains__(self, ino: int) -> bool:
        return ino in self._files

    def opened(self, handle: int, blocks: int) -> None:
        """Count a new handle, if it is open for writing."""
        if handle & WRITES:
            self._files.setdefault(handle >> HANDLE_SHIFT, _Written(blocks)).handles += 1

    def released(self, handle: int) -> None:
        """A handle is closed."""
        if handle & WRITES:
            written = self._files[handle >> HANDLE_SHIFT]
            written.handles -= 1
            if not written.handles:
                del self._files[handle >> HANDLE_SHIFT]

    def is_stale(self, ino: int, blocks: int) -> bool:
        """Whether the kernel must be told that it has an old number of blocks. True counts as told.

        Not at every fsync of a file that grows: what the kernel forgets it asks for at the next write.
        """
        written = self._files.get(ino)
        if written is None or abs(blocks - written.blocks) * BLOCKS_SHARE <= written.blocks:
            return False
        written.blocks = blocks
        return True
