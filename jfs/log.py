"""The metadata log on the device: segments, following the chain of batches, appending to it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from jfs.batch import (
    BATCH,
    BATCH_MAGIC,
    JUMP,
    JUMP_BATCH,
    MAGIC_AT,
    MORE,
    RECORDS_BATCH,
    VOUCHES,
    Batch,
    batch_blocks,
    broken_batch,
    decode_batch,
    encode_batch,
)
from jfs.device import BlockDevice
from jfs.errors import CorruptionError, NoSpace
from jfs.layout import BLOCK_BYTES, SEGMENT_TABLE_LIMIT, LogPlace

PART_BYTES = 128 << 10
JUMP_COPIES = 2


class LogFull(NoSpace):
    """The log has no room and cannot grow now; a checkpoint makes room."""

    def __init__(self) -> None:
        super().__init__("the metadata log is full")


@dataclass(slots=True)
class Segment:
    """A segment that the log has entered. `ordinal` counts segments in the order of entry."""

    start: int
    ordinal: int
    place: LogPlace  # the first batch in it


class LogReader:
    """Follows the chain from a place. Iterate; afterwards `place` and `segments` say where the log ends."""

    def __init__(
        self,
        device: BlockDevice,
        uuid: UUID,
        tail: LogPlace,
        segment_blocks: int,
        owned: Sequence[int] = (),
    ) -> None:
        """`owned`: the segments of the log; may change while the chain is followed."""
        self._device = device
        self._uuid = uuid
        self._segment_blocks = segment_blocks
        self.owned = owned
        self.place = tail
        self.segments = [Segment(tail.block, 0, tail)]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            segment = self.segments[-1]
            raw = memoryview(
                self._device.read(segment.start * BLOCK_BYTES, self._segment_blocks * BLOCK_BYTES)
            )
            jumped = False
            while not jumped:
                batch = self._next(raw[(self.place.block - segment.start) * BLOCK_BYTES :])
                if batch is None:
                    self._check_end(raw, segment.start)
                    return
                self.place = LogPlace(batch.lsn + 1, batch.next_block, batch.checksum)
                if batch.kind == JUMP_BATCH:
                    self._follow(batch)
                    jumped = True
                yield batch

    def _next(self, raw: memoryview) -> Batch | None:
        """The batch that continues the chain at the start of `raw`; of a jump, either copy will do."""
        batch = decode_batch(raw, self._uuid, self.place.block)
        if batch is not None and self._continues(batch):
            return batch
        copy = decode_batch(raw[BLOCK_BYTES:], self._uuid, self.place.block)
        if copy is not None and copy.kind == JUMP_BATCH and self._continues(copy):
            return copy
        return None

    def _continues(self, batch: Batch) -> bool:
        return batch.lsn == self.place.lsn and batch.chain == self.place.chain

    def _follow(self, batch: Batch) -> None:
        if len(batch.body) != JUMP.size:
            raise broken_batch(batch.lsn)
        (start,) = JUMP.struct.unpack(batch.body)
        if start + self._segment_blocks > self._device.size_bytes // BLOCK_BYTES:
            raise CorruptionError(f"log batch {batch.lsn} jumps to block {start}, outside the volume")
        self.place = LogPlace(batch.lsn + 1, start, batch.checksum)
        self.segments.append(Segment(start, self.segments[-1].ordinal + 1, self.place))

    def _check_end(self, raw: memoryview, start: int) -> None:
        """The chain ends here. If a later batch knows this one to have been durable, it was damaged.

        Later batches are looked for in the rest of the segment and in every other, also in those that only
        a jump behind the damage leads to. The first batch of a segment knows of nothing newer than the jump
        before it does: those behind it say that it was durable.
        """
        segments = [other for other in self.owned if other != start]
        segments += self._check_later(raw, start, self.place.block + 1 - start)
        looked_at = {start}
        for other in segments:
            if other not in looked_at:
                looked_at.add(other)
                whole = self._device.read(other * BLOCK_BYTES, self._segment_blocks * BLOCK_BYTES)
                segments += self._check_later(memoryview(whole), other, 0)

    def _check_later(self, raw: memoryview, start: int, first: int) -> list[int]:
        """Look at a segment from one of its blocks on; where the jumps in it lead."""
        targets: list[int] = []
        for at in range(first * BLOCK_BYTES, len(raw), BLOCK_BYTES):
            if raw[at + MAGIC_AT : at + MAGIC_AT + len(BATCH_MAGIC)] != BATCH_MAGIC:
                continue
            later = decode_batch(raw[at:], self._uuid, start + at // BLOCK_BYTES)
            if later is not None and later.lsn > self.place.lsn and later.durable_lsn > self.place.lsn:
                raise CorruptionError(
                    f"log batch {self.place.lsn} at block {self.place.block} is damaged:"
                    f" batch {later.lsn} says that it was durable once"
                )
            if later is not None and later.lsn > self.place.lsn and later.kind == JUMP_BATCH:
                (target,) = JUMP.struct.unpack(later.body)
                if target + self._segment_blocks <= self._device.size_bytes // BLOCK_BYTES:
                    targets.append(target)
        return targets


class LogWriter:
    """Appends batches. Owns the segments: live ones (in order) and spare ones.

    A new segment comes out of free blocks, which need not agree between sites. So it is discarded, directly
    before the write that records it (a jump, or a superblock): what lists the log sees it recorded then, or
    the discard still lies ahead of it in the stream.
    """

    def __init__(
        self,
        device: BlockDevice,
        uuid: UUID,
        *,
        segment_blocks: int,
        segment_limit: int,
        segments: list[Segment],
        spares: list[int],
        place: LogPlace,
        incarnation: int,
        grow: Callable[[], int | None],
        grow_urgently: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`grow` takes blocks for a segment as far as that leaves the reserve alone, `grow_urgently` any."""
        self._device = device
        self._uuid = uuid
        self._incarnation = incarnation
        self._grow = grow
        self._grow_urgently = grow_urgently
        self.segment_blocks = segment_blocks
        self.segment_limit = min(segment_limit, SEGMENT_TABLE_LIMIT)
        self.segments = segments
        self.spares = spares
        self._unrecorded: set[int] = set()
        self.place = place
        self.durable_lsn = place.lsn
        self.said_durable_lsn = 0
        """What the newest batch says in `durable_lsn`."""
        self.appended_bytes = 0

    @property
    def ordinal(self) -> int:
        """Of the segment that is being written."""
        return self.segments[-1].ordinal

    def owned(self) -> list[int]:
        return [segment.start for segment in self.segments] + self.spares

    def _rest_blocks(self) -> int:
        """What is left in the current segment; the last blocks are kept for the jump."""
        return self.segments[-1].start + self.segment_blocks - JUMP_COPIES - self.place.block

    def room_bytes(self) -> int:
        """Bytes that can be appended without growing (less what jumps may waste)."""
        waste = batch_blocks(PART_BYTES)
        usable = max(self.segment_blocks - JUMP_COPIES - waste, self.segment_blocks // 2)
        return (max(self._rest_blocks(), 0) + len(self.spares) * usable) * BLOCK_BYTES

    def owned_bytes(self) -> int:
        """Size of all segments."""
        return (len(self.segments) + len(self.spares)) * self.segment_blocks * BLOCK_BYTES

    def has_room(self, needed_bytes: int) -> bool:
        """Is there room for these bytes besides the quarter kept for checkpoints? Grows the log if need be.

        A segment taken here is recorded when the log jumps into it, or by the next checkpoint.
        """
        while self.room_bytes() < needed_bytes + self.owned_bytes() // 4:
            if len(self.segments) + len(self.spares) >= self.segment_limit:
                return False
            grown = self._take_segment(self._grow)
            if grown is None:
                return False
            self.spares.append(grown)
        return True

    def _take_segment(self, grow: Callable[[], int | None]) -> int | None:
        start = grow()
        if start is not None:
            self._unrecorded.add(start)
        return start

    def record(self, segments: Iterable[int], write: Callable[[], int]) -> int:
        """Issue the write that records these segments, just after what new ones hold; its sequence."""
        fresh = sorted(self._unrecorded.intersection(segments))
        for start in fresh:
            self._issue_again(start)
        sequence = write()
        self._unrecorded.difference_update(fresh)
        return sequence

    def _issue_again(self, start: int) -> None:
        """Issue all that a new segment holds: nothing, or the batches of a log that begins in it."""
        entered = [segment.start for segment in self.segments]
        used = self.segment_blocks if start in entered[:-1] else 0
        if start == entered[-1]:
            used = self.place.block - start
        if used:
            batches = self._device.read(start * BLOCK_BYTES, used * BLOCK_BYTES)
            self._device.write(start * BLOCK_BYTES, batches)
        if used < self.segment_blocks:
            self._device.discard((start + used) * BLOCK_BYTES, (self.segment_blocks - used) * BLOCK_BYTES)

    def begin_in(self, start: int) -> None:
        """Begin the log anew in a new segment, which the next superblock records.

        Whatever copies the device by what the log names does not know of it before: see `record`.
        """
        self._device.discard(start * BLOCK_BYTES, self.segment_blocks * BLOCK_BYTES)
        self._unrecorded.add(start)

    def capacity_bytes(self) -> int:
        return self.segment_limit * self.segment_blocks * BLOCK_BYTES

    def used_bytes(self) -> int:
        """From the tail to the place of the next batch."""
        inside = self.place.block - self.segments[-1].start
        return ((len(self.segments) - 1) * self.segment_blocks + inside) * BLOCK_BYTES

    def part_limit_bytes(self) -> int:
        """Longest body of one batch."""
        return min(PART_BYTES, (self.segment_blocks - JUMP_COPIES) * BLOCK_BYTES - BATCH.size)

    def append(self, chunks: list[bytes], *, urgent: bool = False, vouches: bool = False) -> int:
        """Issue records as one atomic change (in several batches if long); returns the number of the last.
        `vouches`: there are vouchers among them.

        `urgent`: what a checkpoint says. It must always find room, because without checkpoints the log would
        never have any again: it gets the last spare segment, which nothing else does, and one beyond the
        limit, because power cuts in the middle of checkpoints use up what is kept for them.

        DeviceError or LogFull leave the log as it was.
        """
        saved = self.place, list(self.segments), list(self.spares), self.appended_bytes
        said = self.said_durable_lsn
        unrecorded = set(self._unrecorded)
        try:
            parts = self._parts(chunks)
            for index, body in enumerate(parts):
                self._make_way(batch_blocks(len(body)), urgent)
                more = MORE if index + 1 < len(parts) else 0
                self._write(RECORDS_BATCH, body, more | (VOUCHES if vouches else 0))
        except BaseException:
            self._restore(*saved)
            self.said_durable_lsn = said
            # A jump that is taken back records nothing.
            self._unrecorded |= unrecorded.union(set(self.spares).difference(saved[2]))
            raise
        return self.place.lsn - 1

    def append_word(self, *, urgent: bool = False) -> int:
        """Issue a batch that changes nothing: it only says how far the log is durable. As `append`."""
        return self.append([b""], urgent=urgent)

    def _restore(
        self, place: LogPlace, segments: list[Segment], spares: list[int], appended_bytes: int
    ) -> None:
        grown = [segment.start for segment in self.segments[len(segments) :] if segment.start not in spares]
        self.place, self.segments, self.appended_bytes = place, segments, appended_bytes
        self.spares = spares + grown

    def _parts(self, chunks: list[bytes]) -> list[bytes]:
        if len(chunks) == 1:
            return chunks
        limit = self.part_limit_bytes()
        parts: list[bytes] = []
        size, start = 0, 0
        for index, chunk in enumerate(chunks):
            if size and size + len(chunk) > limit:
                parts.append(b"".join(chunks[start:index]))
                size, start = 0, index
            size += len(chunk)
        parts.append(b"".join(chunks[start:]))
        return parts

    def _make_way(self, blocks: int, urgent: bool) -> None:
        """Enter another segment if the current one has no room."""
        if blocks <= self._rest_blocks():
            return
        if len(self.spares) > (0 if urgent else 1):
            start = self.spares.pop(0)
        else:
            owned = len(self.segments) + len(self.spares)
            grown = self._take_segment(self._grow) if owned < self.segment_limit else None
            if grown is None and urgent and owned < SEGMENT_TABLE_LIMIT:
                grown = self._take_segment(self._grow_urgently)
            if grown is None:
                raise LogFull
            start = grown
        ordinal = self.ordinal + 1
        self.record([start], lambda: self._write_jump(start))
        if self.segments[-1].start in self._unrecorded:
            self._unrecorded.add(start)  # a jump out of a segment that nothing records
        self.place = LogPlace(self.place.lsn, start, self.place.chain)
        self.segments.append(Segment(start, ordinal, self.place))

    def _write_jump(self, start: int) -> int:
        """A jump is written twice: it alone may say that the segment it leads to belongs to the log, and then
        nothing else could tell a damaged one from the end of the log. One copy, where there is no more room.
        """
        end = self.segments[-1].start + self.segment_blocks
        copies = min(JUMP_COPIES, end - self.place.block)
        return self._write(JUMP_BATCH, JUMP.struct.pack(start), 0, copies=copies)

    def _write(self, kind: int, body: bytes, flags: int, *, copies: int = 1) -> int:
        place = self.place
        blocks, checksum = encode_batch(
            self._uuid, self._incarnation, place.lsn, place.chain, self.durable_lsn, kind, flags, body
        )
        self.said_durable_lsn = self.durable_lsn
        sequence = self._device.write(place.block * BLOCK_BYTES, blocks * copies)
        self.place = LogPlace(place.lsn + 1, place.block + len(blocks) // BLOCK_BYTES, checksum)
        self.appended_bytes += len(blocks)
        return sequence

    def recycle(self, ordinal: int) -> list[int]:
        """The tail is now the segment of this ordinal; returns the segments before it, which become spare."""
        dead = [segment.start for segment in self.segments if segment.ordinal < ordinal]
        self.segments = [segment for segment in self.segments if segment.ordinal >= ordinal]
        self.spares += dead
        return dead
