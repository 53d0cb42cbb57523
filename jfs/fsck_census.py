"""All inodes and all names of a volume, as what is between them is checked: dealt out to shares.

The number of an inode says which share it belongs to; a name belongs to that of the inode that it leads to.
So a share can be checked alone. Only so many rows are in memory, the rest in a temporary file.
"""

import struct
from array import array
from collections.abc import Iterator

from jfs.fsck_scratch import Scratch
from jfs.layout import FIRST_FILE_INO

UNKNOWN_LINKS = 0xFFFFFFFF  # of an inode whose record is made anew: nothing to compare with
MOST_SHARES = 4096  # the number of inodes may be wrong
NEIGHBOURS_BITS = 8  # so many numbers in a row belong to one share
_READ_ROWS = 1 << 12

# inode, file type (mode >> 12), links, directory and bucket where it says its name is, names and directories
# in it.
_INODE = struct.Struct("<QBIQQII")
# directory, place there, inode it leads to, type it tells.
_NAME = struct.Struct("<QQQB")


class Rows:
    """Rows of one kind in one share, in the order in which they came."""

    __slots__ = ("_layout", "_scratch", "away", "fresh")

    def __init__(self, layout: struct.Struct, scratch: Scratch) -> None:
        self._layout = layout
        self._scratch = scratch
        self.fresh = bytearray()
        self.away: list[tuple[int, int]] = []  # offset and length in the temporary file

    def put_away(self) -> None:
        """Move what is in memory to the temporary file."""
        if self.fresh:
            self.away.append((self._scratch.append(self.fresh), len(self.fresh)))
            self.fresh = bytearray()

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for chunk in self._chunks():
            yield from self._layout.iter_unpack(chunk)

    def columns(self) -> Iterator[tuple[tuple[int, ...], ...]]:
        """The same, some rows at a time, turned round."""
        for chunk in self._chunks():
            yield tuple(zip(*self._layout.iter_unpack(chunk), strict=True))

    def _chunks(self) -> Iterator[bytes | memoryview]:
        chunk_bytes = _READ_ROWS * self._layout.size
        for offset, length in self.away:
            for start in range(0, length, chunk_bytes):
                yield self._scratch.read(offset + start, min(chunk_bytes, length - start))
        with memoryview(self.fresh) as fresh:
            for start in range(0, len(fresh), chunk_bytes):
                yield fresh[start : start + chunk_bytes]


class Census:
    """All inodes and all names of a volume. Inodes are added in ascending order.

    `inodes` is about how many there are: shares are made of about `share_inodes`. Rows in memory take up to
    `memory_bytes`.
    """

    def __init__(self, inodes: int, share_inodes: int, memory_bytes: int) -> None:
        self._count = count = min(max(inodes, 0) // share_inodes + 1, MOST_SHARES)
        self.scratch = scratch = Scratch()
        self._inodes = [Rows(_INODE, scratch) for _ in range(count)]
        self._names = [Rows(_NAME, scratch) for _ in range(count)]
        self._memory_bytes = self._room_bytes = memory_bytes
        self.orphans = array("Q")
        self.highest_ino = FIRST_FILE_INO - 1

    def add_inode(
        self,
        ino: int,
        kind: int,
        links: int,
        parent_ino: int = 0,
        name_suffix: int = 0,
        *,
        names: int = 0,
        directories: int = 0,
    ) -> None:
        """Note an inode: its type, link count, the directory and bucket it says its name is in (0: none), and
        of a directory how many names it has, and how many of them say that they lead to a directory."""
        row = _INODE.pack(ino, kind, min(links, UNKNOWN_LINKS), parent_ino, name_suffix, names, directories)
        self._inodes[self.share_of(ino)].fresh += row
        self._took(_INODE.size)
        self.highest_ino = max(self.highest_ino, ino)

    def add_name(self, directory_ino: int, cookie: int, target: int, kind: int) -> None:
        """Note a name of a directory."""
        row = _NAME.pack(directory_ino, cookie, target, kind)
        self._names[self.share_of(target)].fresh += row
        self._took(_NAME.size)

    def share_of(self, ino: int) -> int:
        """The share that an inode belongs to."""
        return (ino >> NEIGHBOURS_BITS) % self._count

    def _took(self, count: int) -> None:
        self._room_bytes -= count
        if self._room_bytes < 0:
            for rows in (*self._inodes, *self._names):
                rows.put_away()
            self._room_bytes = self._memory_bytes

    def shares(self) -> list[tuple[Rows, Rows]]:
        """The inodes of each share, and the names that lead to them."""
        return list(zip(self._inodes, self._names, strict=True))
