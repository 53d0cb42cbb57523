"""The file system: POSIX operations on inodes and names, over a store. Knows nothing of FUSE and nothing of
sites.

Operations are plain calls that raise FileSystemError with the errno of the system call (CorruptionError where
the volume cannot be right, DeviceError where the device refuses). They change memory and issue data;
`commit`, `fsync` and the store's background work make it durable. Nobody checks permissions here: the kernel
does (default_permissions).
"""

from dataclasses import dataclass
from stat import S_IFDIR

from jfs.directory import NAME_MAX
from jfs.errors import CorruptionError
from jfs.layout import BLOCK_BYTES, FIRST_FILE_INO, INODE, ROOT_INO, make_key
from jfs.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Name, Namespace, Owner
from jfs.nodes import DEFAULT_OPTIONS, FileSystemOptions, Node, now_ns
from jfs.store import Store

__all__ = [
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "FileSystem",
    "FileSystemOptions",
    "Name",
    "Node",
    "Owner",
    "Usage",
]

INODES_PER_BLOCK = 4  # for statfs only: inodes are not set aside, they take room as they come


@dataclass(frozen=True)
class Usage:
    """What statfs reports. Blocks of `block_bytes`."""

    block_bytes: int
    blocks: int
    blocks_free: int
    blocks_available: int
    inodes: int
    inodes_free: int
    name_max: int


class FileSystem(Namespace):
    """A mounted volume. What a crash left of files without names goes with the first `settle`."""

    def __init__(
        self, store: Store, options: FileSystemOptions = DEFAULT_OPTIONS, *, read_only: bool = False
    ) -> None:
        super().__init__(store, options)
        self.read_only = read_only
        if store.get(make_key(ROOT_INO, INODE)) is None:
            if store.volume.inodes or store.volume.next_ino != FIRST_FILE_INO:
                raise CorruptionError("the root directory has no inode")
            self._make_root()
        if not read_only:
            self._take_up_orphans()

    def _make_root(self) -> None:
        """A fresh volume has no root directory yet. Read only, it is in memory alone."""
        now = now_ns()
        root = Node(
            mode=S_IFDIR | 0o755,
            nlink=2,
            parent_ino=ROOT_INO,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            btime_ns=now,
            ino=ROOT_INO,
        )
        self._remember(root)
        if not self.read_only:
            self.mark(root)

    def statfs(self) -> Usage:
        """Room and inodes of the volume."""
        found = self.store.statistics()
        free = found.available_blocks * INODES_PER_BLOCK
        return Usage(
            BLOCK_BYTES,
            found.total_blocks,
            found.free_blocks,
            found.available_blocks,
            found.inodes + free,
            free,
            NAME_MAX,
        )

    async def sync(self) -> None:
        """Everything done so far is durable on return."""
        await self.commit()

    async def close(self) -> None:
        """Remove the files without names that were still held, and close the store."""
        try:
            if not self.read_only:
                self._take_up_orphans()
                await self.settle()
        finally:
            await self.store.close()
