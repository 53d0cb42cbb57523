"""A synchronous copy in memory that keeps the RemoteCopy protocol, and complains when its caller does not."""

import errno
from collections.abc import Callable, Sequence

import trio

from jfs.errors import DeviceError
from vsap.entry import DISCARD, MARKER, WRITE, Entry


class MemoryRemote:
    """C as a bytearray. Entries travel when the test says `deliver`, or when somebody waits for them
    (`lazy`).

    `power_cut` takes it back to what was flushed. `break_off` makes it refuse, as protection does.
    """

    def __init__(self, size_bytes: int, *, lazy: bool = True, first_sequence: int = 1) -> None:
        self.content = bytearray(size_bytes)
        self.durable_content = bytes(size_bytes)
        self.lazy = lazy
        self.on_received: Callable[[], None] | None = None
        self.received_sequence = first_sequence - 1
        self.durable_sequence = first_sequence - 1
        self.unprotected = False
        self.broken: DeviceError | None = None
        self.outstanding: list[Entry] = []
        self.sent_sequence = first_sequence - 1
        self.flush_requests: list[int] = []
        self.flushes = 0
        self.at_sequence: dict[int, bytes] = {}
        self._changed = trio.Event()

    def send(self, entries: Sequence[Entry], *, flush: bool = False) -> None:
        for entry in entries:
            resent = entry.sequence <= self.sent_sequence
            assert resent or entry.sequence == self.sent_sequence + 1, "entries are sent in order"
            assert entry.intact()
            self.sent_sequence = max(self.sent_sequence, entry.sequence)
            self.outstanding.append(entry)
        if flush:
            self.request_flush(self.sent_sequence)

    def request_flush(self, sequence: int) -> None:
        assert sequence <= self.sent_sequence, "all are sent before a flush is asked for"
        self.flush_requests.append(sequence)

    def refusal(self) -> DeviceError | None:
        return None if self.unprotected else self.broken

    def deliver(self, count: int = 1 << 30) -> None:
        """C receives the next `count` entries and does the flushes asked for up to there."""
        if self.broken is not None:
            return
        some, self.outstanding = self.outstanding[:count], self.outstanding[count:]
        for entry in some:
            self._apply(entry)
            self.received_sequence = max(self.received_sequence, entry.sequence)
        ready = [sequence for sequence in self.flush_requests if sequence <= self.received_sequence]
        if ready:
            self.flush_requests = [s for s in self.flush_requests if s > self.received_sequence]
            self.flushes += 1
            self.durable_content = bytes(self.content)
            self.durable_sequence = self.received_sequence
        self._tell()

    def _apply(self, entry: Entry) -> None:
        if entry.kind == WRITE:
            self.content[entry.offset : entry.end] = entry.payload
        elif entry.kind == DISCARD:
            self.content[entry.offset : entry.end] = bytes(entry.length)
        elif entry.kind == MARKER:
            self.at_sequence[entry.sequence] = bytes(self.content)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        if self.on_received is not None:
            self.on_received()

    def break_off(self, sentence: str = "the sync site does not answer") -> None:
        self.broken = DeviceError(errno.EIO, sentence)
        self._tell()

    def heal(self) -> None:
        self.broken = None
        self._tell()

    def run_alone(self, alone: bool) -> None:
        self.unprotected = alone
        self._tell()

    def power_cut(self) -> None:
        """C starts again with what was durable, and has received nothing after it."""
        self.content[:] = self.durable_content
        self.received_sequence = self.durable_sequence
        self.outstanding = []
        self.flush_requests = []

    async def wait_received(self, sequence: int) -> None:
        await self._wait(lambda: self.received_sequence >= sequence)

    async def wait_durable(self, sequence: int) -> None:
        await self._wait(lambda: self.durable_sequence >= sequence)

    async def _wait(self, reached: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        if self.lazy:
            self.deliver()
        while not reached() and not self.unprotected:
            if self.broken is not None:
                raise self.broken
            await self._changed.wait()
