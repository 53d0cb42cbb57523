"""A writer and a synchronous secondary in one process, over real loopback sockets, with areas in memory."""

import atexit
import errno
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from uuid import UUID

import trio

from jfs.errors import DeviceError
from replication.channel import Channel
from replication.connections import Listener, connect, listen
from replication.handshake import await_hello
from replication.keys import Identity, load_identity, make_keys
from replication.pair import Pair
from replication.received_record import Facts, ReceivedRecord
from replication.roles import Roles
from replication.sync_copy import SyncCopy
from replication.sync_receiver import SyncReceiver
from vsap.entry import Entry, discard_entry, marker_entry, write_entry

VOLUME = UUID("12345678-1234-5678-1234-567812345678")
SIZE = 8 << 20
BLOCK = 4096
ROLES = Roles(epoch=1, writer="primary", sync_to="sync", async_to="async")


@cache
def identity(name: str) -> Identity:
    """The identity of a site of the one cluster that all of these tests share."""
    return load_identity(_keys(), name)


@cache
def _keys() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="trisite-test-keys-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    make_keys(directory, ["primary", "sync", "async"])
    return directory


class MemoryArea:
    """An area in memory that knows what of it was flushed."""

    def __init__(self, size_bytes: int = SIZE) -> None:
        self.size_bytes = size_bytes
        self.data = bytearray(size_bytes)
        self.durable = bytes(size_bytes)
        self.flushes = 0
        self.fail: DeviceError | None = None
        self.before_flush: Callable[[], None] | None = None
        self.fails_to_flush = False
        """The next flush fails, and the host forgets what it could not write."""
        self.may_have_lost = False

    def accept_loss(self) -> None:
        self.may_have_lost = False

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self.fail is not None:
            raise self.fail
        self.data[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    is_quick_to_flush = False

    def flush(self) -> None:
        if self.fails_to_flush:
            self.data = bytearray(self.durable)
            self.fails_to_flush, self.may_have_lost = False, True
            raise DeviceError(errno.EIO, "cannot flush")
        content = bytes(self.data)
        if self.before_flush is not None:
            self.before_flush()
        self.durable = content
        self.flushes += 1


class MemoryQueue:
    """The entries of the stream, some of them forgotten."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.next_sequence = 1
        self.trusted = True
        self.reads = 0

    def append(self, entry: Entry) -> None:
        self.entries[entry.sequence] = entry
        self.next_sequence = entry.sequence + 1

    def read(self, from_sequence: int, limit_bytes: int = 2 << 20, limit_entries: int = 4096) -> list[Entry]:
        self.reads += 1
        found: list[Entry] = []
        total = 0
        for sequence in sorted(self.entries):
            if sequence < from_sequence:
                continue
            if found and (total >= limit_bytes or len(found) >= limit_entries):
                break
            found.append(self.entries[sequence])
            total += len(self.entries[sequence].payload)
        return found

    def forget(self, through: int) -> None:
        self.entries = {s: e for s, e in self.entries.items() if s > through}


@dataclass
class Writer:
    """The primary's side: issues entries as the virtual area does (queue, area, copy)."""

    area: MemoryArea = field(default_factory=MemoryArea)
    queue: MemoryQueue = field(default_factory=MemoryQueue)
    written: list[tuple[int, int, int]] = field(default_factory=list)
    positions_known: bool = True
    known_after: Callable[[int], list[tuple[int, int]]] | None = None
    common_flush: int = 0
    pairs: list[Pair] = field(default_factory=list)
    superseded: list[Roles] = field(default_factory=list)
    told: list[bool] = field(default_factory=list)
    copy: SyncCopy | None = None

    def differing(self, after: int) -> list[tuple[int, int]] | None:
        if not self.positions_known:
            return None
        if self.known_after is not None:
            return self.known_after(after)
        return sorted({(offset, length) for sequence, offset, length in self.written if sequence > after})

    def make_copy(
        self,
        dial: Callable[[], object],
        *,
        protect: bool = True,
        protect_timeout_seconds: float = 10.0,
        roles: Roles = ROLES,
        pair: Pair | None = None,
    ) -> SyncCopy:
        self.copy = SyncCopy(
            dial,  # type: ignore[arg-type]
            volume=VOLUME,
            site="primary",
            peer="sync",
            roles=roles,
            queue=self.queue,
            area=self.area,
            differing=self.differing,
            allocated=lambda: [(0, self.area.size_bytes)],
            common_flush=lambda: self.common_flush,
            protect=protect,
            protect_timeout_seconds=protect_timeout_seconds,
            pair=pair,
            on_pair=self.pairs.append,
            on_superseded=self.superseded.append,
            on_told=self.told.append,
        )
        return self.copy

    def write(self, block: int, data: bytes) -> int:
        sequence = self.queue.next_sequence
        return self._issue(write_entry(sequence, time.time_ns(), block * BLOCK, data))

    def discard(self, block: int, blocks: int = 1) -> int:
        sequence = self.queue.next_sequence
        return self._issue(discard_entry(sequence, time.time_ns(), block * BLOCK, blocks * BLOCK))

    def marker(self, ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> int:
        entry = marker_entry(self.queue.next_sequence, time.time_ns(), ranges, leaf_bytes)
        self.queue.append(entry)
        if self.copy is not None:
            self.copy.send([entry])
        return entry.sequence

    def _issue(self, entry: Entry) -> int:
        self.queue.append(entry)
        self.written.append((entry.sequence, entry.offset, entry.length))
        if entry.payload:
            self.area.write(entry.offset, entry.payload)
        else:
            self.area.discard(entry.offset, entry.length)
        if self.copy is not None:
            self.copy.send([entry])
        return entry.sequence


class Secondary:
    """Site C: an area, a record, and a listener that can be killed and started again."""

    def __init__(self, directory: Path, identity: Identity | None = None) -> None:
        self.directory = directory
        self.identity = identity
        self.area = MemoryArea()
        self.facts: list[Facts] = []
        self.sentences: list[str] = []
        self.far: list[tuple[int, int]] = []
        self.port = 0
        self.roles = ROLES
        self.channels: list[Channel] = []
        self.open_record()

    def open_record(self) -> None:
        self.record = ReceivedRecord(self.directory / "received", VOLUME)
        self.receiver = SyncReceiver(
            self.area,
            self.record,
            volume=VOLUME,
            site="sync",
            on_facts=self.facts.append,
            on_far_position=lambda epoch, sequence: self.far.append((epoch, sequence)),
        )

    def crash_host(self) -> None:
        """Lose what was not flushed, and the boot."""
        self.record.close()
        self.area.data = bytearray(self.area.durable)
        path = self.directory / "received"
        raw = bytearray(path.read_bytes())
        raw[0:24] = bytes(24)  # what was only mapped
        path.write_bytes(raw)
        self.record = ReceivedRecord(path, VOLUME, boot="another boot")
        self.receiver = SyncReceiver(
            self.area, self.record, volume=VOLUME, site="sync", on_facts=self.facts.append
        )

    @asynccontextmanager
    async def up(self, silence_seconds: float = 5.0) -> AsyncIterator[Listener]:
        """Listening; leaving the block kills every connection."""
        listener = await listen(
            "127.0.0.1",
            self.port,
            identity=self.identity,
            plain=self.identity is None,
            silence_seconds=silence_seconds,
        )
        self.port = listener.port

        async def handle(channel: Channel) -> None:
            self.channels.append(channel)
            hello = await await_hello(channel)
            await self.receiver.serve(channel, hello, self.roles)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handle, self.sentences.append)
            try:
                yield listener
            finally:
                listener.close()
                nursery.cancel_scope.cancel()

    def dialer(self, identity: Identity | None = None) -> Callable[[], object]:
        async def dial() -> Channel:
            return await connect(
                "127.0.0.1", self.port, identity=identity, plain=identity is None, expect="sync"
            )

        return dial


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that is sure to come; the limit only ends a test that has failed."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - it looks at state that has no event
            await trio.sleep(0.002)


def blocks(numbers: Sequence[int]) -> bytes:
    """A block per number, filled with it."""
    return b"".join(bytes([number % 256]) * BLOCK for number in numbers)


def now(value: bool) -> bool:
    """The value of a property at this moment; keeps the type checker from believing that it stays so."""
    return value
