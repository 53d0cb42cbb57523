"""What only a returning site has is kept before it is overwritten: its writes, and which files they are of.

`quarantine/epoch-E-after-S/` holds
* `entries`: the writes in order, each as the 40 byte header of `vsap.entry` and its payload;
* `listing.json`: site, epoch, where the streams part, ranges, bytes, and the files, with paths where known,
  and which of the kept bytes are theirs: the area is overwritten afterwards and could not tell any more.

It is written under another name and renamed when whole, so a rerun after a kill never takes half for all.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from replication.control import FileReport, Range
from replication.ranges import normalise, total_bytes
from vsap.entry import DISCARD, HEADER_BYTES, WRITE, Entry

ENTRIES_FILE: Final = "entries"
LISTING_FILE: Final = "listing.json"


class KeptFile(FileReport, frozen=True, kw_only=True):
    """A file that kept writes belong to, as the returning site had it.

    `pieces` are (offset in the file, offset in the volume, length) of its bytes among the kept ones, of
    `allocated_bytes` that it had; a listing of an older release has none.
    """

    size_bytes: int = 0
    allocated_bytes: int = 0
    pieces: list[tuple[int, int, int]] = msgspec.field(default_factory=list)

    @property
    def kept_bytes(self) -> int:
        """How much of the file is here."""
        return sum(length for _, _, length in self.pieces)

    @property
    def whole(self) -> bool:
        """Whether everything the file had is here, not just what was written lately."""
        return bool(self.pieces) and self.kept_bytes == self.allocated_bytes


class QuarantineListing(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `listing.json`. `complete` is False where the writes themselves were not on record (a
    crash of the host, an overflow, a missed epoch): then the blocks that the metadata log named were kept.
    """

    site: str
    epoch: int
    after_sequence: int
    entries: int
    bytes: int
    complete: bool
    ranges: list[Range]
    files: list[KeptFile]


class QuarantineWriter:
    """Writes one quarantine; nothing is there under its name before `finish`."""

    def __init__(self, directory: Path, epoch: int, after_sequence: int) -> None:
        """`directory` is the site's `quarantine/`; OSError when the host refuses."""
        self.path = directory / f"epoch-{epoch}-after-{after_sequence}"
        self._work = directory / f".{self.path.name}.part"
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True, mode=0o700)
        self._file = (self._work / ENTRIES_FILE).open("xb")
        self._ranges: list[Range] = []
        self._epoch, self._after = epoch, after_sequence
        self.entries = 0
        self.bytes = 0

    @property
    def ranges(self) -> list[Range]:
        """The blocks of the entries so far, normalised."""
        self._ranges = normalise(self._ranges)
        return self._ranges

    def add(self, entries: Iterable[Entry]) -> None:
        """Keep these writes, in order; markers and barriers say nothing and are left out."""
        for entry in entries:
            if entry.kind not in (WRITE, DISCARD):
                continue
            self._file.write(entry.pack_header())
            self._file.write(entry.payload)
            self._ranges.append((entry.offset, entry.length))
            self.entries += 1
            self.bytes += entry.length

    def finish(self, site: str, files: list[KeptFile], *, complete: bool) -> Path | None:
        """Make it durable and give it its name; None (and nothing is left) when there was nothing to keep."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if not self.entries:
            shutil.rmtree(self._work)
            return None
        listing = QuarantineListing(
            site=site,
            epoch=self._epoch,
            after_sequence=self._after,
            entries=self.entries,
            bytes=total_bytes(self.ranges),
            complete=complete,
            ranges=self.ranges,
            files=files,
        )
        target = self._work / LISTING_FILE
        with target.open("xb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(listing), indent=2))
            file.flush()
            os.fsync(file.fileno())
        if self.path.exists():
            # An earlier run was whole too, and was stopped before it could say so: this one has at least as
            # much.
            shutil.rmtree(self.path)
        self._work.rename(self.path)
        _sync_directory(self.path.parent)
        return self.path

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._file.close()
        shutil.rmtree(self._work, ignore_errors=True)


def read_entries(path: Path) -> Iterator[Entry]:
    """The kept writes of a quarantine directory, in order; ValueError where the file is damaged."""
    with (path / ENTRIES_FILE).open("rb") as file:
        while header := file.read(HEADER_BYTES):
            entry = Entry.unpack(header)
            payload = b"" if entry.kind == DISCARD else file.read(entry.payload_length)
            entry = Entry.unpack(header, payload)
            if not entry.intact():
                raise ValueError(f"entry {entry.sequence} in {path} is damaged")
            yield entry


def read_listing_file(path: Path) -> QuarantineListing:
    """The listing of a quarantine directory."""
    return msgspec.json.decode((path / LISTING_FILE).read_bytes(), type=QuarantineListing)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
