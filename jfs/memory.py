"""The memory of a mount, bounded: what the file system keeps in memory, as shares of one setting."""

from dataclasses import replace

from jfs.nodes import FileSystemOptions
from jfs.store import StoreOptions

DEFAULT_MEMORY_BYTES = 512 << 20
LEAST_MEMORY_BYTES = 128 << 20


def within(
    memory_bytes: int, store: StoreOptions, file_system: FileSystemOptions
) -> tuple[StoreOptions, FileSystemOptions]:
    """The options, with caches and changes in memory sized so that the process stays within so many bytes.

    The defaults of the options are made for DEFAULT_MEMORY_BYTES; a part of that is the program itself.
    """

    def share(whole: int) -> int:
        return max(whole * memory_bytes // DEFAULT_MEMORY_BYTES, 1)

    return (
        replace(
            store,
            cache_bytes=share(StoreOptions.cache_bytes),
            overlay_items=share(StoreOptions.overlay_items),
            overlay_bytes=share(StoreOptions.overlay_bytes),
            merge_leaves=share(StoreOptions.merge_leaves),
        ),
        replace(file_system, cache_inodes=share(FileSystemOptions.cache_inodes)),
    )
