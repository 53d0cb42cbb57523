"""Digests of ranges of an area, computed alike at every site."""

from collections.abc import Sequence
from typing import Protocol

import xxhash


class Readable(Protocol):
    """What digests are computed of: an area or a device."""

    def read(self, offset: int, length: int, /) -> bytes: ...


def digest_ranges(area: Readable, ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> list[bytes]:
    """XXH3-128 digests (16 bytes each) of the leaves of every range, in order.

    A leaf is `leaf_bytes` long, counted from the start of its range; the last one of a range may be shorter.
    So range r yields `-(-length // leaf_bytes)` digests. ValueError when `leaf_bytes` is not positive.
    """
    if leaf_bytes <= 0:
        raise ValueError(f"a leaf of {leaf_bytes} bytes cannot be hashed")
    return [
        xxhash.xxh3_128_digest(area.read(start, min(leaf_bytes, offset + length - start)))
        for offset, length in ranges
        for start in range(offset, offset + length, leaf_bytes)
    ]
