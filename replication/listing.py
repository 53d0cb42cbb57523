"""What a difference copy must look at: the files of the metadata log, sharpened by the write positions.

The log is what must be right: it names every file that may be newer here. The positions after the far
site's are what is exact, where they are trusted. The copy looks at the intersection, and always at what
is not a file's (log, superblocks, regions). Each checks the other: a block in use that was written after
the far site's position and that the log does not name is a fault, told loudly; then the union is copied.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from jfs.device import BLOCK_BYTES, BlockDevice
from jfs.listing import ListedFile, Listing, read_listing
from jfs.runs import Run
from replication.ranges import Range, intersect, normalise, subtract, total_bytes
from replication.words import size

CHUNK_BYTES: Final = 64 << 10
"""Old positions are only known to within such a chunk."""


class Positions(Protocol):
    """The part of vsap.positions.WritePositions that sharpening needs."""

    @property
    def trusted(self) -> bool: ...
    @property
    def covered_from(self) -> int: ...
    def ranges_after(self, sequence: int) -> list[tuple[int, int]]: ...


class CopyFile(NamedTuple):
    """A file that is looked at: `bytes` of it may be newer, in `ranges` of the volume, and why."""

    inode: int
    path: str
    size_bytes: int
    bytes: int
    ranges: list[Range]
    why: str


class CopyListing(NamedTuple):
    """What a difference copy looks at, and how that was found."""

    files: list[CopyFile]
    ranges: list[Range]
    """Normalised; of files and of everything else."""
    listed_bytes: int
    """What the log alone would have named."""
    sharpened: str
    """A sentence: by which positions the listing was sharpened, or why it was not."""
    fault: str | None
    """A sentence when log and positions contradict each other; the union is copied then."""


def list_copy(device: BlockDevice, far_sequence: int, positions: Positions | None) -> CopyListing:
    """What may be newer on `device` than at a far site at `far_sequence`. Blocks on files.

    `positions` are those of this area, or None. What is written after they were read is not named here: it
    is in
    the entries of the copy, whose `since` was taken before. CorruptionError, DeviceError.
    """
    written, sentence = written_after(positions, far_sequence)
    return sharpen(read_listing(device), device.size_bytes, far_sequence, written, sentence)


def list_allocated(device: BlockDevice) -> list[Range]:
    """Every block in use, and those of the log and superblocks: what a full comparison looks at."""
    listing = read_listing(device)
    return normalise(in_bytes([*listing.allocated_runs(), *listing.block_runs]))


def written_after(positions: Positions | None, sequence: int) -> tuple[list[Range] | None, str]:
    """The ranges written after `sequence` if they are known for sure; and a sentence."""
    if positions is None:
        return None, "no write positions are kept here; the log alone decides"
    if not positions.trusted:
        return None, "the write positions were cut by a crash of the host; the log alone decides"
    if positions.covered_from > sequence:
        return None, (
            f"the write positions begin after sequence {positions.covered_from}, "
            f"the far site is at {sequence}; the log alone decides"
        )
    return normalise(positions.ranges_after(sequence)), f"sharpened by what was written after {sequence}"


def sharpen(
    listing: Listing, size_bytes: int, far_sequence: int, written: list[Range] | None, sentence: str
) -> CopyListing:
    """The listing of the log, cut down to what was written (None: not known)."""
    everything = normalise(in_bytes(listing.block_runs))
    listed = {one.ino: normalise(in_bytes(one.block_runs)) for one in listing.files}
    of_files = normalise([part for ranges in listed.values() for part in ranges])
    fault: str | None = None
    ranges = everything
    if written is not None:
        used = normalise(in_bytes(listing.allocated_runs()))
        unnamed = unexplained(written, everything, used, size_bytes)
        ranges = normalise([*subtract(everything, of_files), *intersect(of_files, written)])
        if unnamed:
            fault = (
                f"{size(total_bytes(unnamed))} in use, the first at byte {unnamed[0][0]}, were written after "
                f"sequence {far_sequence} and the metadata log does not name them; all of both are copied, "
                "and `trisite fsck` and a report of this fault are in order"
            )
            ranges = normalise([*everything, *written])
    sure = written if fault is None else None
    files = [_copy_file(one, listed[one.ino], sure) for one in listing.files]
    return CopyListing(files, ranges, total_bytes(everything), sentence, fault)


def _copy_file(one: ListedFile, listed: list[Range], written: list[Range] | None) -> CopyFile:
    ranges, why = listed, one.why
    if written is not None and listed:
        ranges = intersect(listed, written)
        blocks, of = total_bytes(ranges) // BLOCK_BYTES, total_bytes(listed) // BLOCK_BYTES
        why = f"{why}; {blocks} of {of} blocks were written since" if blocks < of else why
    return CopyFile(one.ino, one.path, one.size_bytes, total_bytes(ranges), ranges, why)


def unexplained(
    written: Sequence[Range], listed: Sequence[Range], used: Sequence[Range], size_bytes: int
) -> list[Range]:
    """What was written and is in use, but is not listed, for sure; all arguments are normalised.

    Old positions are rounded to whole chunks. So a chunk that is written as a whole accuses nobody as long as
    some block of it is listed, or in nobody's use: that one may have been the write.
    """
    accused = subtract(intersect(written, used), listed)
    innocent = normalise([*subtract(written, used), *intersect(written, listed)])
    found: list[Range] = []
    for offset, length in accused:
        for chunk in range(offset // CHUNK_BYTES * CHUNK_BYTES, offset + length, CHUNK_BYTES):
            whole = (chunk, min(CHUNK_BYTES, size_bytes - chunk))  # the last one of an area may be short
            rounded = intersect([whole], written) == [whole] and bool(intersect([whole], innocent))
            if not rounded:
                found += intersect([whole], [(offset, length)])
    return normalise(found)


def in_bytes(runs: Iterable[Run]) -> list[Range]:
    """Runs of blocks as ranges of bytes."""
    return [(start * BLOCK_BYTES, count * BLOCK_BYTES) for start, count in runs]
