"""Block devices for tests: one in memory, and one that can lose what was not flushed."""

from jfs.device import BLOCK_BYTES, Buffer, check_request


class MemoryDevice:
    """A sparse device in memory. `far_lag` sequences are still on their way to the far site."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes // BLOCK_BYTES * BLOCK_BYTES
        self.blocks: dict[int, bytes] = {}
        self.issued_sequence = 0
        self.far_lag = 0
        self.flushes = 0

    @property
    def far_durable_sequence(self) -> int:
        return max(self.issued_sequence - self.far_lag, 0)

    def read(self, offset: int, length: int) -> bytes:
        check_request(self.size_bytes, offset, length)
        get = self.blocks.get
        zeros = bytes(BLOCK_BYTES)
        first = offset // BLOCK_BYTES
        return b"".join([get(block, zeros) for block in range(first, first + length // BLOCK_BYTES)])

    def write(self, offset: int, data: Buffer) -> int:
        check_request(self.size_bytes, offset, len(data))
        whole = bytes(data)
        first = offset // BLOCK_BYTES
        for index in range(len(whole) // BLOCK_BYTES):
            self.blocks[first + index] = whole[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        self.issued_sequence += 1
        return self.issued_sequence

    def discard(self, offset: int, length: int) -> int:
        check_request(self.size_bytes, offset, length)
        first = offset // BLOCK_BYTES
        for block in range(first, first + length // BLOCK_BYTES):
            self.blocks.pop(block, None)
        self.issued_sequence += 1
        return self.issued_sequence

    async def complete(self, sequence: int) -> None:
        """Writes are complete when issued."""

    async def flush(self) -> None:
        self.flushes += 1

    def waiting(self, offset: int, length: int) -> bool:
        return False
