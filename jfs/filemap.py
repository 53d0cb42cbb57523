"""The extents of a file: which blocks of the volume hold which blocks of the file; what is not mapped is a
hole.

An extent is an item of the tree: the key's suffix is its first block in the file, the value its start on the
volume and its length in blocks. Extents of one file never overlap; neighbours that continue each other on the
volume are one extent, as far as its 32-bit length goes. These functions change the map only; blocks are
allocated, written and freed by their callers.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from jfs.layout import EXTENT, decode_extent, encode_extent, make_key, split_key

COUNT_MAX = (1 << 32) - 1
BLOCK_LIMIT = 1 << 52  # file blocks: 2**63 bytes and beyond cannot be addressed
HOLE = 0  # block 0 of the volume is a superblock and never data, so it can stand for "nothing"


class Items(Protocol):
    """What the map needs of the store."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(self, first: bytes, last: bytes) -> Iterator[tuple[bytes, bytes]]: ...
    def floor(self, key: bytes) -> tuple[bytes, bytes] | None: ...


class Run(NamedTuple):
    """``length`` blocks of the file from ``file_block``, at ``start`` on the volume; HOLE where there are
    none.
    """

    file_block: int
    start: int
    length: int


def last_before(store: Items, ino: int, file_block: int) -> Run | None:
    """The whole extent that begins at a block of the file or is the nearest before it; or None."""
    item = store.floor(make_key(ino, EXTENT, file_block))
    return None if item is None else Run(split_key(item[0])[2], *decode_extent(item[1]))


def find(store: Items, ino: int, file_block: int) -> Run | None:
    """The whole extent that holds a block of the file, or None for a hole."""
    found = last_before(store, ino, file_block)
    return found if found is not None and file_block < found.file_block + found.length else None


def extents(store: Items, ino: int, first: int = 0, end: int = BLOCK_LIMIT) -> Iterator[Run]:
    """The whole extents that touch file blocks [first, end), ascending."""
    if first > 0:
        before = find(store, ino, first)
        if before is not None:
            yield before
            first = before.file_block + before.length
    if first < end:
        for key, value in store.scan(make_key(ino, EXTENT, first), make_key(ino, EXTENT, end - 1)):
            start, count = decode_extent(value)
            yield Run(split_key(key)[2], start, count)


def runs(store: Items, ino: int, first: int, count: int) -> Iterator[Run]:
    """File blocks [first, first + count) cut into mapped runs and holes, ascending, without gaps."""
    end = first + count
    for file_block, start, length in extents(store, ino, first, end):
        if file_block > first:
            yield Run(first, HOLE, file_block - first)
            first = file_block
        skipped = first - file_block
        length = min(length - skipped, end - first)
        yield Run(first, start + skipped, length)
        first += length
    if first < end:
        yield Run(first, HOLE, end - first)


def insert(store: Items, ino: int, file_block: int, start: int, count: int) -> Run:
    """Map a run where there is a hole now, joined with the extents it continues; the extent it is now part
    of.
    """
    if file_block > 0:
        left = find(store, ino, file_block - 1)
        if left is not None and left.start + left.length == start and left.length + count <= COUNT_MAX:
            file_block, start, count = left.file_block, left.start, left.length + count
    right = store.get(make_key(ino, EXTENT, file_block + count))
    if right is not None:
        right_start, right_count = decode_extent(right)
        if right_start == start + count and count + right_count <= COUNT_MAX:
            store.delete(make_key(ino, EXTENT, file_block + count))
            count += right_count
    store.put(make_key(ino, EXTENT, file_block), encode_extent(start, count))
    return Run(file_block, start, count)


def remove(store: Items, ino: int, first: int, end: int = BLOCK_LIMIT) -> list[Run]:
    """Unmap file blocks [first, end); what was mapped there. Extents that stick out keep their ends."""
    removed = []
    for file_block, start, count in list(extents(store, ino, first, end)):
        cut_first = max(first, file_block)
        cut_end = min(end, file_block + count)
        removed.append(Run(cut_first, start + cut_first - file_block, cut_end - cut_first))
        if cut_first == file_block:
            store.delete(make_key(ino, EXTENT, file_block))
        else:
            store.put(make_key(ino, EXTENT, file_block), encode_extent(start, cut_first - file_block))
        rest = file_block + count - cut_end
        if rest:
            store.put(make_key(ino, EXTENT, cut_end), encode_extent(start + count - rest, rest))
    return removed
