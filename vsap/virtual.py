"""The virtual storage area: entry into the queue, write to the area, hand to the synchronous copy, complete."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Self

import trio

from vsap.area import FileArea
from vsap.positions import WritePositions
from vsap.queue import EntryQueue
from vsap.remote import RemoteCopy

Buffer = bytes | bytearray | memoryview


class Recovery(NamedTuple):
    """What `VirtualArea.recover` found and did."""

    trusted: bool
    """False: the host crashed and the queue was dropped (P4): A, C and D need difference copies from the log's list."""
    first_sequence: int
    """First entry written again to A and sent again to C (0: none)."""
    last_sequence: int
    entries: int


class VirtualArea:
    """A block device (`jfs.device.BlockDevice`) whose writes are queued, written and replicated in the order of P2.

    Works inside `async with`, which runs the task that pushes at the end of a tick, or with `run` in the caller's
    nursery. All calls from the one trio thread. `queue`, `area` and `positions` are closed by whoever opened them.
    """

    def __init__(
        self,
        area: FileArea,
        queue: EntryQueue,
        remote: RemoteCopy | None,
        positions: WritePositions | None = None,
        *,
        complete: Literal["durable", "received"] = "durable",
        on_eligible: Callable[[int], None] | None = None,
    ) -> None:
        """`on_eligible(sequence)` is called when entries up to it may be shipped (tell the daemon); it must not wait."""
        raise NotImplementedError

    size_bytes: int

    async def recover(self) -> Recovery:
        """Before the first write: repeats what came after the last common flush, at A and at C (P3)."""
        raise NotImplementedError

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pushes what was collected, at the end of every tick; until cancelled."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(self, *error: object) -> None:
        """Pushes what is left and stops the task; does not flush."""
        raise NotImplementedError

    def read(self, offset: int, length: int) -> bytes:
        """Reads, seeing every issued write. DeviceError outside the area or when the host fails."""
        raise NotImplementedError

    def write(self, offset: int, data: Buffer) -> int:
        """Issues a write and returns its sequence. DeviceError, before anything has changed, when it is refused."""
        raise NotImplementedError

    def discard(self, offset: int, length: int) -> int:
        """Issues a discard and returns its (last) sequence; the range reads as zeros."""
        raise NotImplementedError

    async def complete(self, sequence: int) -> None:
        """Every write up to `sequence` is queued, in A, and received by C. DeviceError when C does not answer."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Everything issued before is on stable storage at A and at C (or received by C). Flushes are shared."""
        raise NotImplementedError

    @property
    def issued_sequence(self) -> int:
        """Sequence of the newest issued write."""
        raise NotImplementedError

    @property
    def eligible_sequence(self) -> int:
        """Entries up to here may be shipped (P1)."""
        raise NotImplementedError

    @property
    def far_durable_sequence(self) -> int:
        """The far site has everything up to here, as far as this process was told."""
        raise NotImplementedError

    def note_far_durable(self, epoch: int, sequence: int) -> None:
        """The daemon says what D has durable; the daemon has recorded it in the queue itself."""
        raise NotImplementedError

    def waiting(self, offset: int, length: int) -> bool:
        """Whether an entry that touches these bytes waits for the far site (a search)."""
        raise NotImplementedError

    async def marker(self, ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> tuple[int, list[bytes]]:
        """Issues a MARKER entry; returns its sequence and `digest_ranges` of A as it is exactly at that sequence."""
        raise NotImplementedError
