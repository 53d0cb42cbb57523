"""What the file system in a site's area says of itself: the files its log names, and the blocks in use.

Everything here reads the area file only, so it works beside a mount that goes on writing. It blocks: call
it in a worker thread.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from jfs.device import BLOCK_BYTES, FileDevice
from jfs.listing import ListedFile, Listing, read_listing
from jfs.runs import Run
from replication.control import FileReport, ListingReply, Range
from replication.listing import in_bytes, list_allocated
from replication.parts import Place
from replication.ranges import coarsened, normalise, total_bytes

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
        path=file.path,
        ranges=coarsened(in_bytes(file.ranges), FILE_RANGES),
        bytes=BLOCK_BYTES * sum(count for _, count in file.block_runs),
        why=file.why,
    )


def local_files(area: Path) -> list[tuple[FileReport, list[Range]]]:
    """Every file the log names, with its ranges on the volume."""
    with opened_listing(area) as listing:
        return [(_report(file), in_bytes(file.block_runs)) for file in listing.files]


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
