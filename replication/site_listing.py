"""What the file system in a site's area says of itself: the files its log names, and the blocks in use.

Everything here reads the area file only, so it works beside a mount that goes on writing. It blocks: call
it in a worker thread.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from jfs.device import BLOCK_BYTES, FileDevice
from jfs.listing import ListedFile, Listing, every_file, read_listing
from jfs.runs import Run
from replication.control import FileReport, ListingReply, Range
from replication.listing import in_bytes, list_allocated
from replication.parts import Place
from replication.quarantine import KeptFile
from replication.ranges import coarsened, intersect, normalise, total_bytes

FILE_RANGES: Final = 1000
REPLY_BYTES: Final = 900_000


@contextmanager
def opened_area(area: Path) -> Iterator[FileDevice]:
    """The area file, to read from; DeviceError when it cannot be opened."""
    device = FileDevice(area, read_only=True)
    try:
        yield device
    finally:
        device.close()


@contextmanager
def opened_listing(area: Path) -> Iterator[Listing]:
    """The listing of the file system in an area file; CorruptionError where none can be read."""
    with opened_area(area) as device:
        yield read_listing(device)


def _report(file: ListedFile) -> FileReport:
    """For people; very many ranges of one file are told as fewer that hold them."""
    return FileReport(
        inode=file.ino,
        path=told_path(file.path),
        ranges=coarsened(in_bytes(file.ranges), FILE_RANGES),
        bytes=BLOCK_BYTES * sum(count for _, count in file.block_runs),
        why=file.why,
    )


def told_path(path: str) -> str:
    """A path as JSON can hold it: bytes of a name that are no UTF-8 stand as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def local_files(area: Path, kept: list[Range], *, every: bool = False) -> list[KeptFile]:
    """The files the log names that have blocks in `kept` (normalised ranges of the volume), and which.

    `every`: all files of the volume, also those that the log does not name.
    """
    with opened_listing(area) as listing:
        files = every_file(listing) if every else listing.files
        found = [_kept_file(listing, file, kept) for file in files]
    return [file for file in found if file.pieces]


def _kept_file(listing: Listing, file: ListedFile, kept: list[Range]) -> KeptFile:
    report = _report(file)
    extents = [
        (first * BLOCK_BYTES, start * BLOCK_BYTES, count * BLOCK_BYTES)
        for first, start, count in listing.volume.extents(file.ino)
    ]
    return KeptFile(
        inode=report.inode,
        path=report.path,
        ranges=report.ranges,
        bytes=report.bytes,
        why=report.why,
        size_bytes=file.size_bytes,
        allocated_bytes=sum(length for _, _, length in extents),
        pieces=[
            (in_file + start - in_volume, start, count)
            for in_file, in_volume, length in extents
            for start, count in intersect([(in_volume, length)], kept)
        ],
    )


def local_ranges(area: Path) -> list[Range]:
    """Every block a recovery copy must look at: of the files named, of the log, the superblocks."""
    with opened_listing(area) as listing:
        return normalise(in_bytes(listing.block_runs))


def allocated_of(place: Place) -> list[Range]:
    """Every block in use, and those of the log and the superblocks."""
    with opened_area(place.paths.area) as device:
        return list_allocated(device)


def listing_of(place: Place, limit: int, from_inode: int = 0) -> ListingReply:
    """What the log names, at most `limit` files told one by one, and no more than one reply may hold."""
    with opened_listing(place.paths.area) as listing:
        asked = [file for file in listing.files if file.ino >= from_inode]  # they are in the order of inodes
        told = _fitting(_report(file) for file in asked[:limit])
        return ListingReply(
            files=told,
            files_listed=len(listing.files),
            bytes=_bytes_in(listing.block_runs),
            file_bytes=_bytes_in([run for file in listing.files for run in file.block_runs]),
            log_bytes=_bytes_in(listing.log_runs),
            next_inode=asked[len(told)].ino if len(told) < len(asked) else None,
        )


def _bytes_in(runs: list[Run]) -> int:
    return total_bytes(normalise(in_bytes(runs)))


def _fitting(files: Iterable[FileReport]) -> list[FileReport]:
    """The first files, up to REPLY_BYTES of them."""
    found: list[FileReport] = []
    size = 0
    for file in files:
        size += len(msgspec.json.encode(file))
        if size > REPLY_BYTES:
            break
        found.append(file)
    return found
