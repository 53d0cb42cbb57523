"""One site's area as a stream of writes, and every prefix of it.

The synchronous and the asynchronous copy both receive the stream in sequence order (P1, P5), so what
C or D holds at a crash is a prefix. `StreamDevice` records the stream while jfs runs on it and can
rebuild the area as of any sequence, which is all that the theorem of the metadata log talks about.

What this model leaves out: writes lost or torn by a power cut at the writing site, for which jfs has
its own crash tests, and anything about sockets.
"""

from __future__ import annotations

from collections.abc import Iterable

BLOCK = 4096
ZERO = bytes(BLOCK)

Blocks = dict[int, bytes]


class StreamDevice:
    """A `jfs.device.BlockDevice` over a dict of blocks that remembers every write in order."""

    def __init__(self, size_bytes: int, blocks: Blocks | None = None) -> None:
        self.size_bytes = size_bytes
        self.blocks: Blocks = dict(blocks or {})
        self.base: Blocks = dict(self.blocks)
        self.stream: list[tuple[int, bytes]] = []
        self.far = 0

    def read(self, offset: int, length: int) -> bytes:
        first, last = offset // BLOCK, (offset + length) // BLOCK
        return b"".join(self.blocks.get(block, ZERO) for block in range(first, last))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        payload = bytes(data)
        assert offset % BLOCK == 0
        assert len(payload) % BLOCK == 0
        assert offset + len(payload) <= self.size_bytes
        self.stream.append((offset, payload))
        put(self.blocks, offset, payload)
        return len(self.stream)

    def discard(self, offset: int, length: int) -> int:
        return self.write(offset, bytes(length))

    def is_complete(self, sequence: int) -> bool:
        return True

    async def complete(self, sequence: int) -> None:
        assert sequence <= len(self.stream)

    async def flush(self) -> None:
        return None

    async def barrier(self) -> None:
        return None

    @property
    def issued_sequence(self) -> int:
        return len(self.stream)

    @property
    def far_durable_sequence(self) -> int:
        return self.far

    def waiting(self, offset: int, length: int) -> bool:
        end = offset + length
        return any(o < end and offset < o + len(d) for o, d in self.stream[self.far :])

    def prefix(self, sequence: int) -> Blocks:
        """The area after the first `sequence` writes."""
        blocks = dict(self.base)
        for offset, payload in self.stream[:sequence]:
            put(blocks, offset, payload)
        return blocks

    def written_after(self, sequence: int, until: int) -> set[int]:
        """Blocks that writes in (sequence, until] touched."""
        touched: set[int] = set()
        for offset, payload in self.stream[sequence:until]:
            touched.update(range(offset // BLOCK, (offset + len(payload)) // BLOCK))
        return touched


def put(blocks: Blocks, offset: int, payload: bytes) -> None:
    """Write `payload` into a dict of blocks."""
    for index in range(0, len(payload), BLOCK):
        blocks[(offset + index) // BLOCK] = payload[index : index + BLOCK]


def expand(runs: Iterable[tuple[int, int]]) -> set[int]:
    """Block numbers of `(start, count)` runs."""
    return {block for start, count in runs for block in range(start, start + count)}


def copy_runs(source: Blocks, target: Blocks, runs: Iterable[tuple[int, int]]) -> int:
    """Copy the differing blocks of `runs`; returns how many travelled."""
    copied = 0
    for block in expand(runs):
        if source.get(block, ZERO) != target.get(block, ZERO):
            target[block] = source.get(block, ZERO)
            copied += 1
    return copied
