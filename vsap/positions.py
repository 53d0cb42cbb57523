"""Written positions: which bytes of an area were written after a given sequence."""

from pathlib import Path
from typing import Self
from uuid import UUID


class WritePositions:
    """A durable record of (sequence, offset, length), complete for everything after `covered_from`.

    Memory and file are bounded: the oldest positions are folded into a map of 64 KiB chunks. One process at a time.
    """

    @classmethod
    def open(cls, directory: Path, volume: UUID, *, size_bytes: int, memory_entries: int = 1 << 18) -> Self:
        """Opens or creates the record of an area of `size_bytes`. See `trusted` for one that a host crash has cut."""
        raise NotImplementedError

    @property
    def covered_from(self) -> int:
        """`ranges_after(n)` misses nothing for n >= this. (It answers for older n with what it has.)"""
        raise NotImplementedError

    @property
    def trusted(self) -> bool:
        """False: not closed cleanly before the host crashed, so positions may be missing. `reset` starts afresh."""
        raise NotImplementedError

    def append(self, sequence: int, offset: int, length: int) -> None:
        """Notes a write. Buffered; survives the process after `write_out`, the host after `flush`."""
        raise NotImplementedError

    def write_out(self) -> None:
        """Hands what is buffered to the host (no fsync): before the write it names is made, P2 in small."""
        raise NotImplementedError

    def flush(self) -> None:
        """Makes everything appended durable; blocks, so call it in a thread or where that does not matter."""
        raise NotImplementedError

    def ranges_after(self, sequence: int) -> list[tuple[int, int]]:
        """Merged, ascending (offset, length) of everything written after `sequence`; maybe more, rounded to chunks."""
        raise NotImplementedError

    def prune(self, sequence: int) -> None:
        """Forgets writes up to `sequence`: `covered_from` becomes at least that."""
        raise NotImplementedError

    def reset(self, covered_from: int) -> None:
        """Forgets everything; the record is complete for what is written after `covered_from`, and trusted."""
        raise NotImplementedError

    def close(self) -> None:
        """Makes everything durable and marks the record clean."""
        raise NotImplementedError
