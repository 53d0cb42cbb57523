"""Which bytes of the area stand for the payload of an entry. Pure."""

from typing import Final

CHUNK_BYTES: Final = 1 << 20


class Pointers:
    """Ranges of the area, each under the sequence of its entry; they overlap where the bytes are the same.

    Memory: some 250 bytes a range of up to 1 MiB.
    """

    def __init__(self) -> None:
        self._ranges: dict[int, tuple[int, int]] = {}
        self._chunks: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._ranges)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._ranges

    def add(self, sequence: int, offset: int, length: int) -> None:
        """The bytes from `offset` on stand for entry `sequence`."""
        self._ranges[sequence] = offset, offset + length
        for chunk in range(offset // CHUNK_BYTES, -(-(offset + length) // CHUNK_BYTES)):
            self._chunks.setdefault(chunk, []).append(sequence)

    def remove(self, sequence: int) -> None:
        """They do so no longer; harmless if they never did."""
        offset, end = self._ranges.pop(sequence, (0, 0))
        for chunk in range(offset // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
            sequences = self._chunks[chunk]
            sequences.remove(sequence)
            if not sequences:
                del self._chunks[chunk]

    def length_of(self, sequence: int) -> int:
        """Bytes that stand for an entry, 0 for one that has none."""
        offset, end = self._ranges.get(sequence, (0, 0))
        return end - offset

    def most_beside(self, offset: int, length: int) -> int:
        """How many lie in the fullest of the mebibytes that these bytes are in."""
        chunks = range(offset // CHUNK_BYTES, -(-(offset + length) // CHUNK_BYTES))
        return max((len(self._chunks.get(chunk, ())) for chunk in chunks), default=0)

    def take(self, other: "Pointers") -> None:
        """Those of `other` as well."""
        for sequence, (offset, end) in other._ranges.items():
            self.add(sequence, offset, end - offset)

    def forget_below(self, sequence: int) -> None:
        """Entries before this one have left the queue."""
        for one in [one for one in self._ranges if one < sequence]:
            self.remove(one)

    def touched(self, offset: int, end: int) -> list[int]:
        """The entries whose bytes lie between `offset` and `end`, ascending."""
        found = {
            sequence
            for chunk in range(offset // CHUNK_BYTES, -(-end // CHUNK_BYTES))
            for sequence in self._chunks.get(chunk, ())
            if self._ranges[sequence][0] < end and self._ranges[sequence][1] > offset
        }
        return sorted(found)
