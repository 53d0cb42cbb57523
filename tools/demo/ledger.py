"""The witness: what the file system acknowledged, noted outside the mount the moment a call returned.

The contents of everything that is written follow from its number, so that a checker can make them again and
needs nothing from the process that wrote them.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

RECORD_BYTES: Final = 96  # of the appended log, newline included


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One acknowledged step: what it was, its number, and the path, size and digest where there are any."""

    number: int
    at: float
    path: str = ""
    size: int = 0
    digest: str = ""


class Ledger:
    """An append-only file of lines, written by one process, on the machine's own disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def acknowledge(self, number: int, *, path: str = "", size: int = 0, digest: str = "") -> None:
        """Note that step `number` was acknowledged, now."""
        line = Line(number=number, at=time.time(), path=path, size=size, digest=digest)
        os.write(self._file, msgspec.json.encode(line) + b"\n")


def read(path: Path) -> list[Line]:
    """The lines of a ledger; a last line cut off by a kill was not noted, so it is left out."""
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(Line)
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [decoder.decode(line) for line in whole.splitlines()]


def newest(lines: Sequence[Line]) -> int:
    """The highest number that was acknowledged; 0 for none."""
    return max((line.number for line in lines), default=0)


def digest(data: bytes) -> str:
    """The digest the ledger keeps of a content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def record(number: int) -> bytes:
    """Record `number` (from 1) of the appended log."""
    text = f"{number:010d} {hashlib.blake2b(b'log %d' % number, digest_size=32).hexdigest()}".encode()
    return text.ljust(RECORD_BYTES - 1, b".") + b"\n"


def row(number: int) -> bytes:
    """The payload of row `number` of the database: from 100 to some 8,000 bytes."""
    seed = hashlib.blake2b(b"row %d" % number, digest_size=32).digest()
    return seed * (4 + seed[0])


def chapter(number: int) -> bytes:
    """The content of file `number` of the git repository."""
    return b"".join(record(number * 100 + line) for line in range(1 + number % 40))
