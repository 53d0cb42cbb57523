"""From a quarantine back to files an operator can look at, in a directory apart from the volume.

The kept writes are blocks of the volume; the listing beside them says whose they are. What they do not hold
of a file is a hole in the restored one: the site had it in common with the others, and has been levelled
since. Whatever belongs to no file (metadata, data that no file reached yet) can be had as blocks.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import msgspec

from replication.quarantine import KeptFile, QuarantineListing, read_entries, read_listing_file
from replication.ranges import intersect, normalise, subtract, total_bytes
from vsap.entry import DISCARD, Entry

FILES: Final = "files"
UNNAMED: Final = "unnamed"
BLOCKS: Final = "blocks"
REPORT: Final = "restored.json"
ZERO_BYTES: Final = 1 << 20


class QuarantineDamaged(Exception):
    """What is kept cannot be read: one sentence that says what, and what was restored all the same."""


class Kept(NamedTuple):
    """One quarantine of a site: its name, where it is, when it was made (Unix seconds), what it holds."""

    name: str
    path: Path
    made: float
    listing: QuarantineListing


class RestoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A restored file: its path in the volume, where it is now, and how much of it was kept."""

    path: str | None
    to: str
    size_bytes: int
    kept_bytes: int
    whole: bool


class RestoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored; `other_bytes` belong to no file, `blocks` is where they are, if that was wanted."""

    id: str
    site: str
    to: str
    files: list[RestoredFile]
    file_bytes: int
    other_bytes: int
    blocks: str | None


class _Piece(NamedTuple):
    """Bytes of the volume that belong to a file."""

    start: int
    end: int
    in_file: int
    target: Path


def kept_at(directory: Path) -> list[Kept]:
    """The quarantines in a site's `quarantine/`, the oldest first. QuarantineDamaged: one cannot be read."""
    if not directory.is_dir():
        return []
    found = [
        Kept(path.name, path, path.stat().st_mtime, _listing(path))
        for path in directory.iterdir()
        if path.is_dir() and not path.name.startswith(".")  # those are not whole
    ]
    return sorted(found, key=lambda kept: (kept.listing.epoch, kept.listing.after_sequence))


def _listing(path: Path) -> QuarantineListing:
    try:
        return read_listing_file(path)
    except (OSError, msgspec.DecodeError) as error:
        raise QuarantineDamaged(f"the listing of the quarantine {path} cannot be read: {error}") from error


def places_of(files: Sequence[KeptFile]) -> dict[int, PurePosixPath]:
    """Where below the directory each file is restored, by inode: at its path, else under its number.

    A path that is none, or that another file has (of hard links one may be an old name), is not used.
    """
    places: dict[int, PurePosixPath] = {}
    taken: set[PurePosixPath] = set()
    above: set[PurePosixPath] = set()
    for file in files:
        place = PurePosixPath(FILES, *PurePosixPath(file.path or "").parts[1:])
        usable = (file.path or "").startswith("/") and len(place.parts) > 1
        clear = place not in taken | above and taken.isdisjoint(place.parents)
        if not (usable and clear and ".." not in place.parts and "\0" not in str(place)):
            place = PurePosixPath(UNNAMED, f"inode-{file.inode}")
        places[file.inode] = place
        taken.add(place)
        above.update(place.parents)
    return places


def restore(kept: Kept, to: Path, *, blocks: bool) -> RestoreResult:
    """Write the kept files (and with `blocks` every kept block, at its place in the volume) below `to`.

    `to` must be there and empty. OSError: the host refuses. QuarantineDamaged: not all could be read; what
    came before it is there.
    """
    files = [file for file in kept.listing.files if file.pieces]
    targets = {inode: to / place for inode, place in places_of(files).items()}
    pieces = sorted(
        _Piece(start, start + length, in_file, targets[file.inode])
        for file in files
        for in_file, start, length in file.pieces
    )
    for file in files:
        _make(targets[file.inode], file.size_bytes)
    image = to / BLOCKS if blocks else None
    if image is not None:
        _make(image, 0)
    try:
        for entry in read_entries(kept.path):
            _restore_entry(entry, pieces, image)
    except ValueError as error:
        raise QuarantineDamaged(f"{error}; what was kept before that is restored in {to}") from error
    finally:
        for file in files:
            os.truncate(targets[file.inode], file.size_bytes)  # the last block goes beyond the end
    result = _result(kept, to, targets, files, image)
    (to / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
    return result


def _result(
    kept: Kept, to: Path, targets: dict[int, Path], files: list[KeptFile], image: Path | None
) -> RestoreResult:
    named = normalise((start, length) for file in files for _, start, length in file.pieces)
    everything = normalise(kept.listing.ranges)
    return RestoreResult(
        id=kept.name,
        site=kept.listing.site,
        to=str(to),
        files=[
            RestoredFile(
                path=file.path,
                to=str(targets[file.inode]),
                size_bytes=file.size_bytes,
                kept_bytes=file.kept_bytes,
                whole=file.whole,
            )
            for file in files
        ],
        file_bytes=total_bytes(intersect(everything, named)),
        other_bytes=total_bytes(subtract(everything, named)),
        blocks=None if image is None else str(image),
    )


def _make(path: Path, size_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # the operator says who may read it
    os.truncate(path, size_bytes)


def _restore_entry(entry: Entry, pieces: list[_Piece], image: Path | None) -> None:
    """Put what an entry holds where it belongs; of several to one place the last one holds."""
    if image is not None:
        _put(image, entry.offset, entry, entry.offset, entry.end)
    for piece in _touched(pieces, entry.offset, entry.end):
        start, end = max(piece.start, entry.offset), min(piece.end, entry.end)
        _put(piece.target, piece.in_file + start - piece.start, entry, start, end)


def _touched(pieces: list[_Piece], start: int, end: int) -> Iterator[_Piece]:
    """The pieces that share bytes with a range; they are ascending and no block belongs to two files."""
    at = max(0, bisect_right(pieces, start, key=lambda piece: piece.start) - 1)
    while at < len(pieces) and pieces[at].start < end:
        if pieces[at].end > start:
            yield pieces[at]
        at += 1


def _put(path: Path, offset: int, entry: Entry, start: int, end: int) -> None:
    """Write what `entry` says of the bytes `start` to `end` of the volume at `offset` of a file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        if entry.kind != DISCARD:
            _write_all(file.fileno(), memoryview(entry.payload)[start - entry.offset : end - entry.offset])
            return
        for at in range(start, end, ZERO_BYTES):
            _write_all(file.fileno(), memoryview(bytes(min(ZERO_BYTES, end - at))))


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
