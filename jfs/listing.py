"""What the log names: the files and blocks a recovery copy must look at. Reads only."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from jfs.coverage import PIECE_BLOCKS, FileCoverage
from jfs.device import BLOCK_BYTES, BlockDevice
from jfs.errors import CorruptionError
from jfs.inode import Inode
from jfs.layout import FIRST_FILE_INO, INODE, ROOT_INO, SUPERBLOCK_SLOTS, make_key, split_key
from jfs.replay import LogEnd, load_volume, read_superblock
from jfs.runs import Run, merge_runs
from jfs.volume import Volume

TRIES = 20
DEEPEST_PATH = 4096

WHY_WHOLE = "any of its blocks may be newer"
WHY_RANGES = "blocks in these ranges may be newer"
WHY_METADATA = "only its metadata changed"
WHY_DELETED = "it was deleted"


@dataclass(frozen=True)
class ListedFile:
    """One file that the log names. `ranges` are (file block, blocks); `block_runs` those on the volume."""

    ino: int
    path: str
    ranges: list[Run]
    block_runs: list[Run]
    size_bytes: int
    why: str


@dataclass(frozen=True)
class Listing:
    """Everything in which this site may be ahead of the far one.

    `block_runs` (ascending, without overlap) hold the blocks of all files, the regions, the log and the
    superblocks: a copy of these makes the far site equal, apart from blocks that nobody owns. `log_runs` are
    those of the log and the superblocks, which are looked at always, and what decides where the log ends: a
    far site that had data which is missing here would find more of the log.
    """

    uuid: UUID
    generation: int
    files: list[ListedFile]
    block_runs: list[Run]
    log_runs: list[Run]
    volume: Volume

    def allocated_runs(self) -> Iterator[Run]:
        """All blocks in use, ascending: what a full copy must look at. Read the free map as it goes."""
        yield from self.volume.free_map.used_runs()


def read_listing(device: BlockDevice) -> Listing:
    """List what the log names, after replaying it in memory. CorruptionError if the volume cannot be read.

    A live area may change while it is read; what a checkpoint replaced stays readable until the checkpoint
    after it, so a reading during which the superblock stood still is consistent, and others are repeated. So
    is one that finds the data missing that the end of the log vouches for: it may have been written again
    since the log was read, and then the log says more by now.
    """
    unproven_lsn: int | None = None
    for _ in range(TRIES):
        generation = read_superblock(device).generation
        try:
            volume, end = load_volume(device)
            listing = _list(volume, end)
        except CorruptionError:
            if read_superblock(device).generation == generation:
                raise
            continue
        is_settled = end.unproven_lsn in (None, unproven_lsn)
        unproven_lsn = end.unproven_lsn
        if is_settled and read_superblock(device).generation == generation:
            return listing
    raise CorruptionError(f"the volume changed during each of {TRIES} attempts to list it")


def _list(volume: Volume, end: LogEnd) -> Listing:
    files = [_list_file(volume, covered) for _, covered in sorted(volume.coverage.files.items())]
    runs = [run for one in files for run in one.block_runs]
    runs += [run for region in volume.coverage.regions.values() for run in region.runs]
    log = [(start, volume.superblock.segment_blocks) for start in end.owned]
    log += [(0, len(SUPERBLOCK_SLOTS)), (volume.superblock.total_blocks - 1, 1)]
    log += [(block, 1) for block in end.decisive]
    return Listing(
        volume.superblock.uuid,
        volume.superblock.generation,
        files,
        merge_runs([*runs, *log]),
        merge_runs(log),
        volume,
    )


def _list_file(volume: Volume, covered: FileCoverage) -> ListedFile:
    value = volume.get(make_key(covered.ino, INODE))
    if value is None:
        return ListedFile(covered.ino, f"(deleted inode {covered.ino})", [], [], 0, WHY_DELETED)
    inode = Inode.decode(value)
    path = path_of(volume, covered.ino)
    if covered.ranges is not None and not covered.ranges:
        return ListedFile(covered.ino, path, [], [], inode.size_bytes, WHY_METADATA)
    pieces = covered.ranges
    file_ranges: list[Run] = []
    block_runs: list[Run] = []
    for file_block, start, count in volume.extents(covered.ino):
        for offset, part in _covered_parts(file_block, count, pieces):
            file_ranges.append((file_block + offset, part))
            block_runs.append((start + offset, part))
    why = WHY_WHOLE if pieces is None else WHY_RANGES
    return ListedFile(
        covered.ino, path, merge_runs(file_ranges), merge_runs(block_runs), inode.size_bytes, why
    )


def every_file(listing: Listing) -> Iterator[ListedFile]:
    """All files of the volume as if the log named them whole, in the order of inodes."""
    volume = listing.volume
    following = FIRST_FILE_INO
    while following < volume.next_ino:
        # The items of a file follow its inode; the next inode is looked for behind all of them.
        found = next(iter(volume.scan(make_key(following, INODE), make_key(volume.next_ino, 0))), None)
        if found is None:
            return
        ino = split_key(found[0])[0]
        if volume.get(make_key(ino, INODE)) is not None:
            yield _list_file(volume, FileCoverage(ino, None, 0))
        following = ino + 1


def _covered_parts(file_block: int, count: int, pieces: set[int] | None) -> Iterator[Run]:
    """The parts of an extent that lie in covered ranges, as (offset in the extent, blocks)."""
    if pieces is None:
        yield 0, count
        return
    position, end = file_block, file_block + count
    while position < end:
        piece = position // PIECE_BLOCKS
        stop = min(end, (piece + 1) * PIECE_BLOCKS)
        if piece in pieces:
            yield position - file_block, stop - position
        position = stop


def path_of(volume: Volume, ino: int) -> str:
    """A path to a file, by the names linked last; says so where the chain of directories is broken."""
    names: list[str] = []
    current = ino
    for _ in range(DEEPEST_PATH):
        if current == ROOT_INO:
            return "/" + "/".join(reversed(names))
        value = volume.get(make_key(current, INODE))
        if value is None:
            break
        inode = Inode.decode(value)
        if not inode.nlink and current == ino:
            return f"(unlinked inode {ino}, last named {os.fsdecode(inode.name)})"
        names.append(os.fsdecode(inode.name))
        current = inode.parent_ino
    return f"(inode {current})/" + "/".join(reversed(names))


def listed_bytes(listing: Listing) -> int:
    """Bytes that a recovery copy looks at."""
    return BLOCK_BYTES * sum([count for _, count in listing.block_runs])
