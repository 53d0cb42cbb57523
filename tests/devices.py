"""Block devices for tests: one in memory, and one that can lose what was not flushed."""

import random
from collections.abc import Hashable
from dataclasses import dataclass

import trio

from jfs.device import BLOCK_BYTES, Buffer, check_request
from jfs.errors import DeviceError

SECTOR_BYTES = 512
ZEROS = bytes(BLOCK_BYTES)
FLUSH_TICKS = 3  # a flush takes its time: others go on meanwhile


class MemoryDevice:
    """A sparse device in memory. The last `far_lag` writes are still on their way to the far site.

    `failing_writes` and `failing_flushes` count down: so many calls fail, without an effect.
    """

    def __init__(self, size_bytes: int, blocks: dict[int, bytes] | None = None) -> None:
        self.size_bytes = size_bytes // BLOCK_BYTES * BLOCK_BYTES
        self.blocks: dict[int, bytes] = {} if blocks is None else blocks
        self.issued_sequence = 0
        self.far_lag = 0
        self.flushes = 0
        self.failing_writes = 0
        self.failing_flushes = 0

    @property
    def far_durable_sequence(self) -> int:
        return max(self.issued_sequence - self.far_lag, 0)

    def read(self, offset: int, length: int) -> bytes:
        check_request(self.size_bytes, offset, length)
        get = self.blocks.get
        first = offset // BLOCK_BYTES
        return b"".join([get(block, ZEROS) for block in range(first, first + length // BLOCK_BYTES)])

    def write(self, offset: int, data: Buffer) -> int:
        check_request(self.size_bytes, offset, len(data))
        if self.failing_writes:
            self.failing_writes -= 1
            raise DeviceError(5, "this write was told to fail")
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

    def is_complete(self, sequence: int) -> bool:
        return True

    async def complete(self, sequence: int) -> None:
        """Writes are complete when issued."""

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failing_flushes:
            self.failing_flushes -= 1
            raise DeviceError(5, "this flush was told to fail")
        self.flushes += 1

    async def barrier(self) -> None:
        await self.flush()

    def waiting(self, offset: int, length: int) -> bool:
        return False


@dataclass(frozen=True)
class Written:
    """A write (or, without data, a discard) in the history of a CrashDevice."""

    offset: int
    length: int
    data: bytes | None


@dataclass(frozen=True)
class Flushed:
    """A flush came back: the first `count` events of the history are on stable storage."""

    count: int


@dataclass(frozen=True)
class Noted:
    """Something the test wants to find again in the history."""

    what: Hashable


class CrashDevice(MemoryDevice):
    """Remembers every write and flush since it was made, so that a power cut at any point can be played."""

    def __init__(self, size_bytes: int, blocks: dict[int, bytes] | None = None) -> None:
        super().__init__(size_bytes, blocks)
        self.first = dict(self.blocks)
        self.history: list[Written | Flushed | Noted] = []

    def write(self, offset: int, data: Buffer) -> int:
        sequence = super().write(offset, data)
        self.history.append(Written(offset, len(data), bytes(data)))
        return sequence

    def discard(self, offset: int, length: int) -> int:
        sequence = super().discard(offset, length)
        self.history.append(Written(offset, length, None))
        return sequence

    async def flush(self) -> None:
        count = len(self.history)
        for _ in range(FLUSH_TICKS):
            await trio.lowlevel.checkpoint()
        await super().flush()
        self.history.append(Flushed(count))

    def note(self, what: Hashable) -> None:
        """Put a remark into the history."""
        self.history.append(Noted(what))

    def noted(self, at: int) -> list[Hashable]:
        """The remarks before event `at`."""
        return [event.what for event in self.history[:at] if isinstance(event, Noted)]

    def materialise(self, rng: random.Random, at: int | None = None) -> MemoryDevice:
        """The device after a power cut before event `at` (default: now).

        It holds everything flushed, and of later writes any subset in any order, torn at 512 bytes.
        """
        events = self.history[: len(self.history) if at is None else at]
        stable = max([event.count for event in events if isinstance(event, Flushed)], default=0)
        crashed = MemoryDevice(self.size_bytes, dict(self.first))
        for event in events[:stable]:
            if isinstance(event, Written):
                _apply(crashed, event)
        later = [event for event in events[stable:] if isinstance(event, Written)]
        mood = rng.random()  # some power cuts lose nearly everything, some nearly nothing
        survivors = [event for event in later if rng.random() < mood]
        if rng.random() < 0.5:
            rng.shuffle(survivors)
        for event in survivors:
            _apply(crashed, event, torn=rng if rng.random() < 0.2 else None)
        crashed.issued_sequence = 0
        return crashed


def _apply(device: MemoryDevice, event: Written, torn: random.Random | None = None) -> None:
    if event.data is None:
        device.discard(event.offset, event.length)
        return
    data = event.data
    if torn is not None:
        old = device.read(event.offset, event.length)
        sectors = range(0, event.length, SECTOR_BYTES)
        data = b"".join([(data if torn.random() < 0.5 else old)[at : at + SECTOR_BYTES] for at in sectors])
    device.write(event.offset, data)
