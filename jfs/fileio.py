"""The content of files: read, write in place or into new blocks, and cutting and growing."""

from contextlib import suppress
from errno import EFBIG, EINVAL, EISDIR
from itertools import groupby
from stat import S_IFDIR, S_IFMT, S_IFREG, S_ISGID, S_ISUID, S_IXGRP

from jfs import filemap
from jfs.device import BLOCK_BYTES, Buffer
from jfs.errors import DeviceError, FileSystemError, NoSpace
from jfs.filemap import HOLE, Run
from jfs.nodes import DEFAULT_OPTIONS, NO_RUN, FileSystemOptions, Node, NodeTable, now_ns
from jfs.store import Store

BLOCK_SHIFT = 12
BLOCK_MASK = BLOCK_BYTES - 1
SIZE_MAX = (1 << 63) - 1
PIECE_EXTENTS = 256  # unmapped at once: what one operation changes must fit into the smallest log
_NS_PER_DAY = 86_400 * 10**9
_ZERO_BLOCK = bytes(BLOCK_BYTES)


def privileges_cleared(mode: int) -> int:
    """The mode after a write by somebody without privileges: no setuid, no setgid where the group may
    execute.
    """
    return mode & ~(S_ISUID | S_ISGID) if mode & S_IXGRP else mode & ~S_ISUID


def blocks_of(size_bytes: int) -> int:
    """The blocks that a file of this size reaches into."""
    return size_bytes + BLOCK_MASK >> BLOCK_SHIFT


def _with_holes(run: Run, blocks: set[int]) -> list[Run]:
    """A run with holes in place of these blocks of the volume."""
    if run.start == HOLE:
        return [run]
    parts: list[Run] = []
    for is_hole, group in groupby(range(run.length), lambda index: run.start + index in blocks):
        indexes = list(group)
        start = HOLE if is_hole else run.start + indexes[0]
        parts.append(Run(run.file_block + indexes[0], start, len(indexes)))
    return parts


class FileIO(NodeTable):
    """Reading and writing. Offsets, lengths and sizes are bytes.

    A file of many extents is cut in pieces: the first at once, with the new size and an entry in the orphan
    list, the others by `settle`. What is behind the end meanwhile cannot be seen, and goes before the file
    grows.
    """

    _goal = 0  # where the last data went: the next new file goes there

    def __init__(self, store: Store, options: FileSystemOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(store, options)
        self._cuts: dict[int, int] = {}  # inodes of which blocks below this one are still to be unmapped
        store.vouchers.size_of = self._size_of

    def _size_of(self, ino: int) -> int:
        return self.node(ino).size_bytes

    def _regular(self, ino: int) -> Node:
        node = self.node(ino)
        kind = S_IFMT(node.mode)
        if kind != S_IFREG:
            raise FileSystemError(EISDIR if kind == S_IFDIR else EINVAL)
        return node

    def _runs(self, node: Node, first: int, count: int) -> list[Run]:
        """The map of some blocks; the extent used last answers most questions without the tree."""
        file_block, start, length = node.extent
        skipped = first - file_block
        if skipped >= 0 and skipped + count <= length:
            return [Run(first, start + skipped, count)]
        found = list(filemap.runs(self.store, node.ino, first, count))
        last = found[-1]
        if last.start != HOLE:
            node.extent = last
        return found

    def _old_block(self, node: Node, file_block: int) -> bytes:
        """What a block of the file holds, with zeros after the end of the file."""
        start = self._runs(node, file_block, 1)[0].start
        if start == HOLE:
            return _ZERO_BLOCK
        block = self.store.read_data(start, 1)
        held = node.size_bytes - (file_block << BLOCK_SHIFT)
        return block if held >= BLOCK_BYTES else block[: max(held, 0)].ljust(BLOCK_BYTES, b"\0")

    def read(self, ino: int, offset: int, length: int, *, access: bool = True) -> Buffer:
        """The bytes at an offset, fewer at the end of the file; without `access` the access time stays.
        FileSystemError EISDIR, EINVAL.
        """
        node = self._regular(ino)
        if access:
            self._touch_access_time(node)
        length = min(length, node.size_bytes - offset)
        if length <= 0:
            return b""
        first = offset >> BLOCK_SHIFT
        count = (offset + length - 1 >> BLOCK_SHIFT) - first + 1
        found = self._runs(node, first, count)
        if len(found) == 1:
            start = found[0].start
            data = bytes(length) if start == HOLE else self.store.read_data(start, count)
            if start == HOLE or length == len(data):
                return data
        else:
            data = b"".join(
                bytes(run.length << BLOCK_SHIFT)
                if run.start == HOLE
                else self.store.read_data(run.start, run.length)
                for run in found
            )
        begin = offset & BLOCK_MASK
        return memoryview(data)[begin : begin + length]

    def _touch_access_time(self, node: Node) -> None:
        """The file, directory or link is read: with relatime, note when, if that says anything new."""
        access = node.atime_ns
        if not self.options.relatime:
            return
        if access <= node.mtime_ns or access <= node.ctime_ns or now_ns() - access > _NS_PER_DAY:
            node.atime_ns = now_ns()
            self.mark(node)

    def write(
        self, ino: int, offset: int, data: Buffer, *, stamp: bool = True, clear_privileges: bool = False
    ) -> int:
        """Write bytes at an offset, growing the file if they end beyond it; the last device sequence they
        got.

        `stamp` sets the times of change: not wanted where the kernel keeps them. `clear_privileges` takes
        setuid and setgid away. FileSystemError EFBIG, ENOSPC, EISDIR, EINVAL; DeviceError. Nothing is mapped
        or grown on error.
        """
        node = self._regular(ino)
        length = len(data)
        end = offset + length
        if end > SIZE_MAX:
            raise FileSystemError(EFBIG)
        if not length:
            return 0
        size = node.size_bytes
        if end > size and ino in self._cuts:
            self._finish_cut(node)
        first = offset >> BLOCK_SHIFT
        count = (end - 1 >> BLOCK_SHIFT) - first + 1
        if offset > size and size & BLOCK_MASK and size >> BLOCK_SHIFT < first:
            self._clean_tail(node)
        if offset & BLOCK_MASK or end & BLOCK_MASK:
            data = self._whole_blocks(node, offset, end, data)
        sequence = self._write_blocks(node, first, count, data, grows=end > size)
        if end > size:
            node.size_bytes = end
            self.mark_map(node)
        if clear_privileges and node.mode & (S_ISUID | S_ISGID):
            node.mode = privileges_cleared(node.mode)
            self.mark(node)
        if stamp:
            node.mtime_ns = node.ctime_ns = now_ns()
            self.mark(node)
        return sequence

    def _whole_blocks(self, node: Node, offset: int, end: int, data: Buffer) -> bytes:
        """The data with what stands before and behind it in its first and last block."""
        before = after = b""
        head = offset & BLOCK_MASK
        tail = end & BLOCK_MASK
        if head:
            block = self._old_block(node, offset >> BLOCK_SHIFT)
            before = block[:head]
        if tail:
            if end >= node.size_bytes:
                after = _ZERO_BLOCK[tail:]
            elif head and (end - 1) >> BLOCK_SHIFT == offset >> BLOCK_SHIFT:
                after = block[tail:]
            else:
                after = self._old_block(node, end >> BLOCK_SHIFT)[tail:]
        return b"".join((before, data, after))

    def _write_blocks(self, node: Node, first: int, count: int, data: Buffer, *, grows: bool) -> int:
        """Write whole blocks: holes are allocated first, then one device write a run, then the new runs are
        mapped. What is held and would change is written elsewhere. `grows`: as in `Store.write_data`.
        """
        ino = node.ino
        found = self._runs(node, first, count)
        new: list[Run] = []
        is_young = node.born_in == self._period
        changed = {block for run in found for block in self._held_in(run, first, data)}
        if len(found) == 1 and found[0].start != HOLE and not changed:
            return self.store.write_data(ino, first, found[0].start, data, new=is_young, grows=grows)
        if changed:
            found = [part for run in found for part in _with_holes(run, changed)]
        targets = self._fill_holes(node, found, new)
        view = memoryview(data)
        sequence = 0
        try:
            for run, is_new in targets:
                at = run.file_block - first << BLOCK_SHIFT
                piece = view if run.length == count else view[at : at + (run.length << BLOCK_SHIFT)]
                sequence = self.store.write_data(
                    ino, run.file_block, run.start, piece, new=is_new or is_young, grows=grows
                )
        except (DeviceError, FileSystemError):
            self._give_back(ino, new)
            raise
        for run in new:
            if changed:
                self._unmap_moved(node, run)
            node.extent = filemap.insert(self.store, ino, *run)
            node.blocks += run.length
        if new:
            self._goal = new[-1].start + new[-1].length
            self.mark_map(node)
        return sequence

    def _held_in(self, run: Run, first: int, data: Buffer) -> list[int]:
        """The blocks of a run that are held and that data for file block `first` and on would change."""
        if run.start == HOLE or not self.store.vouchers.hold_any:
            return []
        at = run.file_block - first << BLOCK_SHIFT
        piece = memoryview(data)[at : at + (run.length << BLOCK_SHIFT)]
        return self.store.vouchers.changed_by(run.start, piece)

    def _unmap_moved(self, node: Node, run: Run) -> None:
        """The file blocks of a new run are elsewhere now."""
        for old in filemap.remove(self.store, node.ino, run.file_block, run.file_block + run.length):
            self.store.free(node.ino, old.start, old.length)
            node.blocks -= old.length

    def _fill_holes(self, node: Node, found: list[Run], new: list[Run]) -> list[tuple[Run, bool]]:
        """What to write where: every hole replaced by allocated runs, which are also added to `new`.

        NoSpace leaves nothing allocated.
        """
        targets: list[tuple[Run, bool]] = []
        near = self._near(node, found[0])
        try:
            for run in found:
                if run.start != HOLE:
                    targets.append((run, False))
                    near = run.start + run.length
                    continue
                file_block = run.file_block
                for start, count in self.store.allocate(node.ino, run.length, near):
                    allocated = Run(file_block, start, count)
                    new.append(allocated)
                    targets.append((allocated, True))
                    file_block += count
                    near = start + count
        except NoSpace:
            self._give_back(node.ino, new)
            raise
        return targets

    def _near(self, node: Node, run: Run) -> int:
        """Where new blocks of this file would best be: behind the block before them."""
        if run.start != HOLE or run.file_block == 0:
            return self._goal
        file_block, start, count = node.extent
        if file_block + count == run.file_block:
            return start + count
        before = filemap.last_before(self.store, node.ino, run.file_block)
        return self._goal if before is None else before.start + before.length

    def _give_back(self, ino: int, new: list[Run]) -> None:
        for run in new:
            self.store.free(ino, run.start, run.length)

    def truncate(self, ino: int, size: int) -> None:
        """Cut or grow a file to `size` bytes; what is added reads as zeros. FileSystemError EFBIG, EINVAL,
        EISDIR.
        """
        node = self._regular(ino)
        if size < 0 or size > SIZE_MAX:
            raise FileSystemError(EINVAL if size < 0 else EFBIG)
        if size != node.size_bytes:
            if size < node.size_bytes:
                self._cut(node, size)
            else:
                if ino in self._cuts:
                    self._finish_cut(node)
                if node.size_bytes & BLOCK_MASK:
                    self._clean_tail(node)
            node.size_bytes = size
            self.mark_map(node)

    def _cut(self, node: Node, size: int) -> None:
        """Unmap what is behind the new end. The kept part of the last block goes to a new block, so that a
        crash before the commit finds the old block as it was.
        """
        if size & BLOCK_MASK:
            file_block = size >> BLOCK_SHIFT
            # Cutting must work on a full volume: the rest of the block is then cleared when the file grows.
            with suppress(NoSpace):
                self._replace_block(node, file_block, size & BLOCK_MASK)
        self._unmap(node, blocks_of(size))

    def _unmap(self, node: Node, first: int) -> bool:
        """Unmap and free the blocks of the file from `first`. False: there are more, `settle` goes on.

        From the end, so that what was removed already need not be passed over again.
        """
        ino = node.ino
        node.extent = NO_RUN
        self.mark(node)
        end = self._cuts.get(ino, filemap.BLOCK_LIMIT)
        for _ in range(PIECE_EXTENTS):
            last = filemap.last_before(self.store, ino, end - 1) if end > first else None
            if last is None or last.file_block + last.length <= first:
                if self._cuts.pop(ino, None) is not None and node.nlink:
                    self._unlist_orphan(ino)
                return True
            end = max(first, last.file_block)
            for run in filemap.remove(self.store, ino, end, last.file_block + last.length):
                self.store.free(ino, run.start, run.length)
                node.blocks -= run.length
        self._cuts[ino] = end
        self._list_orphan(ino)
        return False

    def _finish_cut(self, node: Node) -> None:
        """The file is about to grow: nothing may be mapped behind its end."""
        while not self._unmap(node, blocks_of(node.size_bytes)):
            pass

    def _clean_tail(self, node: Node) -> None:
        """Before the file grows past its last block: the bytes after its end must read as zeros.

        They may not be zeros after a crash between a write that grew the file and its commit.
        """
        kept = node.size_bytes & BLOCK_MASK
        file_block = node.size_bytes >> BLOCK_SHIFT
        start = self._runs(node, file_block, 1)[0].start
        if start == HOLE:
            return
        block = self.store.read_data(start, 1)
        if not any(block[kept:]):
            self.store.show_more(node.ino, file_block, start, block)
            return
        try:
            self._replace_block(node, file_block, kept)
        except NoSpace:
            old = self._old_block(node, file_block)
            if self.store.vouchers.changed_by(start, old):
                raise
            # Otherwise a file that grows could show what was behind its end.
            self.store.write_data(node.ino, file_block, start, old, new=False, grows=True)

    def _replace_block(self, node: Node, file_block: int, kept: int) -> None:
        """Put the first `kept` bytes of a block, and zeros, into a new block in its place. NoSpace changes
        nothing.
        """
        ino = node.ino
        start = self._runs(node, file_block, 1)[0].start
        if start == HOLE:
            return
        block = self.store.read_data(start, 1)[:kept].ljust(BLOCK_BYTES, b"\0")
        new = self.store.allocate(ino, 1, start)[0][0]
        try:
            self.store.write_data(ino, file_block, new, block, new=True)
        except (DeviceError, FileSystemError):
            self.store.free(ino, new, 1)
            raise
        moved = Run(file_block, new, 1)
        self._unmap_moved(node, moved)
        filemap.insert(self.store, ino, *moved)
        node.blocks += 1
        node.extent = NO_RUN
        self.mark_map(node)
