"""Inodes in memory: loaded once, changed as objects, written back as records just before each commit.

The table is bounded: beyond `cache_inodes` the one not used for longest goes (a changed one is encoded
first), whether the kernel knows it or not. What the kernel holds is kept apart, as plain counts (`lookups`),
because it may hold millions.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOTDIR, ESTALE
from stat import S_IFDIR, S_IFMT
from typing import cast

from jfs import directory
from jfs.errors import FileSystemError, NoSpace
from jfs.filemap import Run
from jfs.inode import Inode
from jfs.layout import INODE, NODE_BLOCKS, ORPHAN, ORPHAN_INO, make_key
from jfs.lookups import LookupCounts
from jfs.store import Store

NO_RUN = Run(0, 0, 0)
_CLOCK_REALTIME_COARSE = 5  # Linux; Python's time module has no name for it
LEAST_RESERVE = 64  # blocks: for the tree to change while names are removed one by one
_ITEM_BYTES = 32  # of the tree, for a key and its place in a node
UNKNOWN, NONE, SOME = range(3)  # what is known about the extended attributes of an inode


@dataclass(frozen=True)
class FileSystemOptions:
    """How a file system behaves.

    `cache_inodes`: inodes kept in memory. `relatime`: reading a file sets its access time when it is older
    than its last change or a day; False: never.
    """

    cache_inodes: int = 50_000
    relatime: bool = True


DEFAULT_OPTIONS = FileSystemOptions()


@dataclass(slots=True, eq=False)
class Node(Inode):
    """An inode in memory, with what only matters while it is there."""

    ino: int = 0
    dirty: bool = False
    # The commit period in which size, blocks or extents changed last: what fdatasync must make durable.
    changed_in: int = 0
    # The period in which the file was made; in it nothing durable leads to its blocks.
    born_in: int = 0
    # The extent used last; NO_RUN when the map was cut.
    extent: Run = NO_RUN
    xattrs: int = UNKNOWN


def now_ns() -> int:
    """Now, from the clock the kernel stamps its own changes with, so that the stamps of both never run
    backwards.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class NodeTable:
    """The inodes of a volume. The base of FileSystem."""

    def __init__(self, store: Store, options: FileSystemOptions = DEFAULT_OPTIONS) -> None:
        self.store = store
        self.options = options
        self.seed = directory.seed_of(store.superblock.uuid.bytes)
        self._nodes: OrderedDict[int, Node] = OrderedDict()
        self._dirty: dict[int, Node] = {}
        self._lookups = LookupCounts()
        self._orphans: set[int] = set()  # what the orphan list names
        self._period = 1
        self._durable_period = 0
        store.before_commit.append(self._begin_period)

    def node(self, ino: int) -> Node:
        """The inode. FileSystemError ESTALE if there is none with this number."""
        known = self._nodes.get(ino)
        if known is not None:
            self._nodes.move_to_end(ino)
            return known
        value = self.store.get(make_key(ino, INODE))
        if value is None:
            raise FileSystemError(ESTALE)
        node = cast(Node, Node.decode(value))
        node.ino = ino
        # Nobody knows whether its last change is durable: take it as changed just now.
        node.changed_in = self._period
        self._remember(node)
        return node

    def living_node(self, ino: int) -> Node:
        """An inode that has a name or that somebody holds; of others only what is left is still to go.
        FileSystemError ESTALE.
        """
        node = self.node(ino)
        if not node.nlink and ino not in self._lookups:
            raise FileSystemError(ESTALE)
        return node

    def directory_node(self, ino: int) -> Node:
        """The inode of a directory. FileSystemError ENOTDIR (ESTALE) if it is none."""
        node = self.node(ino)
        if S_IFMT(node.mode) != S_IFDIR:
            raise FileSystemError(ENOTDIR)
        return node

    def _remember(self, node: Node) -> None:
        self._nodes[node.ino] = node
        while len(self._nodes) > self.options.cache_inodes:
            ino, oldest = self._nodes.popitem(last=False)
            if oldest.dirty:
                self._encode(oldest)
                del self._dirty[ino]

    def mark(self, node: Node) -> None:
        """Note that the inode changed and must be written with the next commit."""
        if not node.dirty:
            node.dirty = True
            self._dirty[node.ino] = node

    def mark_map(self, node: Node) -> None:
        """Note that size, blocks or extents changed: fdatasync must commit."""
        node.changed_in = self._period
        if not node.dirty:
            node.dirty = True
            self._dirty[node.ino] = node

    def _need_room(self, share: int = 1) -> None:
        """NoSpace if new items could not be written out: data stops at the reserve, names at half of it (or
        at LEAST_RESERVE), what makes names longer at a `share` of that.

        What waits in memory for the next checkpoint is counted twice, for the nodes it will need.
        """
        free_map, overlay = self.store.volume.free_map, self.store.volume.overlay
        limit = max(free_map.reserve_blocks >> 1, min(free_map.reserve_blocks, LEAST_RESERVE))
        waiting = overlay.value_bytes + _ITEM_BYTES * len(overlay) >> 11
        if free_map.free_blocks + free_map.pinned_blocks - waiting < limit // share:
            raise NoSpace
        # Free blocks that lie apart are of no use to the tree.
        places = limit * 5 // 8 // share // NODE_BLOCKS
        if free_map.node_places(places) < places:
            raise NoSpace

    def _encode(self, node: Node) -> None:
        node.dirty = False
        self.store.put(make_key(node.ino, INODE), node.encode())

    def _begin_period(self) -> None:
        """Called by the store as a commit begins: what changes from now on belongs to the next one."""
        for node in self._dirty.values():
            self._encode(node)
        self._dirty.clear()
        self._period += 1

    def _forget_node(self, ino: int) -> None:
        """The inode is gone: drop it from memory without writing it."""
        node = self._nodes.pop(ino, None)
        if node is not None and node.dirty:
            node.dirty = False
            del self._dirty[ino]

    def _list_orphan(self, ino: int) -> None:
        """Something of the inode is still to be removed: a mount after a crash shall see to it."""
        if ino not in self._orphans:
            self._orphans.add(ino)
            self.store.put(make_key(ORPHAN_INO, ORPHAN, ino), b"")

    def _unlist_orphan(self, ino: int) -> None:
        if ino in self._orphans:
            self._orphans.remove(ino)
            self.store.delete(make_key(ORPHAN_INO, ORPHAN, ino))

    async def commit(self) -> None:
        """Everything done before the call is durable on return."""
        period = self._period
        await self.store.commit()
        self._durable_period = max(self._durable_period, period)

    async def fsync(self, ino: int, datasync: bool = False) -> None:
        """Make a file durable; with `datasync` its times may stay behind, as fdatasync(2) allows.

        A write in place to a file whose map is durable then needs only the flush, no log batch.
        """
        await self.fsync_all([(ino, datasync)])

    async def fsync_all(self, files: Sequence[tuple[int, bool]]) -> None:
        """`fsync` of several files, as (inode, datasync), at once."""
        if all(datasync and self._is_mapped_durably(ino) for ino, datasync in files):
            await self.store.device.flush()
        else:
            await self.commit()

    def _is_mapped_durably(self, ino: int) -> bool:
        node = self._nodes.get(ino)
        return node is not None and node.changed_in <= self._durable_period
