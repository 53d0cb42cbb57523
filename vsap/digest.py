"""Digests of ranges of an area, computed alike at every site."""

from collections.abc import Sequence
from typing import Protocol

import xxhash


class Readable(Protocol):
    """What digests are computed of: an area or a device."""

    def read(self, offset: int, length: int, /) -> bytes: ...


def digest_ranges(area: Readable, ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> list[bytes]:
    """    return [
        xxhash.xxh3_128_digest(area.read(start, min(leaf_bytes, offset + length - start)))
        for offset, length in ranges
        for start in range(offset, offset + length, leaf_bytes)
    ]
