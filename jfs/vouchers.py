"""New data that a batch of the log vouches for: one flush for both, and no batch counts without its data.

A batch must not make blocks reachable whose data a power cut may have lost. Of much new data it is issued
behind a barrier. Of little it names every block with a checksum of what the file shows of it (a *voucher*): a
replay that finds something else takes the batch, which was never acknowledged then, for the end of the log.

So what a batch vouches for is *held*: it must stay as it is until a later batch, itself durable, says that
the one that vouches was (`durable_lsn`). Bytes behind those may change, so a file that grows goes on in
place; any other write moves the block. A block that was freed is used again when the batch that frees it
is durable, and that one says so too.
"""

from collections.abc import Callable
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from jfs.device import BLOCK_BYTES, BlockDevice, Buffer

BLOCKS_LIMIT = 64  # of one batch; flushing more takes longer than the barrier


class NewBlock(NamedTuple):
    """A block of a file that the next batch makes reachable, or lets the file reach further into."""

    ino: int
    file_block: int
    data: Buffer
    sequence: int


class Voucher(NamedTuple):
    """The first `size_bytes` of a block have this checksum."""

    block: int
    size_bytes: int
    checksum: int

    def holds(self, device: BlockDevice) -> bool:
        """Is that what the device has?"""
        data = memoryview(device.read(self.block * BLOCK_BYTES, BLOCK_BYTES))
        return xxh3_64_intdigest(data[: self.size_bytes]) == self.checksum


class Held(NamedTuple):
    """What must stay as it is of a block, and the newest batch that vouches for it."""

    size_bytes: int
    checksum: int
    lsn: int


class Vouchers:
    """What the next batch may vouch for, and what earlier ones do. Blocks are those of the volume."""

    def __init__(self) -> None:
        self.size_of: Callable[[int], int] | None = None
        """The size of a file in bytes, as the next batch will say it."""
        self._new: dict[int, NewBlock] | None = {}  # None: too many
        self._held: dict[int, Held] = {}

    # --- what the next batch makes reachable

    def note(self, ino: int, file_block: int, start: int, data: Buffer, sequence: int) -> None:
        """Whole blocks were written that the next batch makes reachable."""
        if self._new is None:
            return
        count = len(data) // BLOCK_BYTES
        if count + len(self._new) > BLOCKS_LIMIT:
            self._new = None
            return
        view = memoryview(data)
        for index in range(count):
            block = view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            self._new[start + index] = NewBlock(ino, file_block + index, block, sequence)

    def rewrote(self, start: int, data: Buffer, sequence: int) -> None:
        """Blocks were written again; of those among them that are new, this is the data now."""
        if not self._new:
            return
        view = memoryview(data)
        for index in range(len(data) // BLOCK_BYTES):
            known = self._new.get(start + index)
            if known is not None:
                block = view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
                self._new[start + index] = NewBlock(known.ino, known.file_block, block, sequence)

    def freed(self, start: int, count: int) -> None:
        """Blocks belong to no file any more."""
        if self._new:
            for block in self._new.keys() & range(start, start + count):
                del self._new[block]

    def take(self) -> dict[int, NewBlock] | None:
        """What the batch that begins now makes reachable; None: too much to vouch for."""
        taken, self._new = self._new, {}
        return taken

    def give_back(self) -> None:
        """That batch was not issued: the next one makes it reachable, but cannot vouch for it, because it may
        have been written over or freed since it was taken.
        """
        self._new = None

    def vouch(self, taken: dict[int, NewBlock], flushed_sequence: int) -> list[Voucher]:
        """Vouchers for what no flush has covered yet, as far as the files reach into it."""
        found: list[Voucher] = []
        for block, new in taken.items():
            if new.sequence > flushed_sequence:
                size = BLOCK_BYTES
                if self.size_of is not None:
                    size = min(size, self.size_of(new.ino) - new.file_block * BLOCK_BYTES)
                if size > 0:
                    checksum = xxh3_64_intdigest(memoryview(new.data)[:size])
                    found.append(Voucher(block, size, checksum))
        return found

    # --- what must stay as it is

    def hold(self, vouchers: list[Voucher], lsn: int) -> None:
        """The batch of this number vouches for these."""
        for block, size, checksum in vouchers:
            before = self._held.get(block)
            if before is not None and before.size_bytes > size:
                size, checksum = before.size_bytes, before.checksum
            self._held[block] = Held(size, checksum, lsn)

    def release(self, durable_lsn: int) -> None:
        """A durable batch says that those below this number were durable."""
        if self._held:
            self._held = {block: held for block, held in self._held.items() if held.lsn >= durable_lsn}

    @property
    def hold_any(self) -> bool:
        """Is anything held?"""
        return bool(self._held)

    def held_among(self, start: int, count: int) -> list[int]:
        """The blocks, ascending, that are held."""
        if not self._held:
            return []
        return sorted(self._held.keys() & range(start, start + count))

    def changed_by(self, start: int, data: Buffer) -> list[int]:
        """The blocks, ascending, that are held and that whole blocks written at `start` would change where
        they are vouched for. (The kernel writes pages: what is appended comes with all that is before it.)
        """
        changed: list[int] = []
        view = memoryview(data)
        for block in self.held_among(start, len(data) // BLOCK_BYTES):
            at, held = (block - start) * BLOCK_BYTES, self._held[block]
            if xxh3_64_intdigest(view[at : at + held.size_bytes]) != held.checksum:
                changed.append(block)
        return changed
