"""A writer and a far site in memory, on a host that can be killed at any operation or lose its power.

What counts is said in one place: after any death, `recovered` must be the stream at exactly its position,
and not before what was acknowledged.
"""

import errno
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jfs.errors import DeviceError
from replication.channel import Channel
from replication.journal_files import JournalFiles
from replication.position import Position
from replication.set_journal import SetJournal
from vsap.entry import DISCARD, MARKER, WRITE, Entry, discard_entry, marker_entry, write_entry
from vsap.queue import QueueCounts, QueueState

VOLUME = bytes(range(16))
BLOCK = 4096
BLOCKS = 48
SIZE = BLOCKS * BLOCK
SECTOR = 512


class Host:
    """Counts operations on stable storage; from the fatal one on everything fails, as for a dead process."""

    def __init__(self, chance: random.Random, die_at: int | None = None) -> None:
        self.chance = chance
        self.die_at = die_at
        self.count = 0

    @property
    def dead(self) -> bool:
        return self.die_at is not None and self.count >= self.die_at

    def tick(self) -> None:
        """One operation; OSError when it is the fatal one or later."""
        self.count += 1
        if self.dead:
            raise OSError(errno.EIO, "the host died")


class MemoryFile:
    """Content as the process sees it, content on stable storage, and the writes in between."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        put(self.content, offset, data)
        self.pending.append((offset, data))

    def sync(self) -> None:
        self.durable = bytearray(self.content)
        self.pending = []

    def lose_power(self, chance: random.Random) -> None:
        """Any subset of the sectors written since the last sync is there, in any order."""
        for offset, data in self.pending:
            for start in range(0, len(data), SECTOR):
                if chance.random() < 0.5:
                    put(self.durable, offset + start, data[start : start + SECTOR])
        self.content = bytearray(self.durable)
        self.pending = []


def put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class MemoryFiles(JournalFiles):
    """Journal files in memory: names and contents survive as far as they were synced."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.files: dict[str, MemoryFile] = {}
        self.durable_names: dict[str, MemoryFile] = {}

    def names(self) -> list[str]:
        return sorted(self.files)

    def size(self, name: str) -> int:
        return len(self.files[name].content)

    def write(self, name: str, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        data = b"".join(buffers)
        file = self.files.setdefault(name, MemoryFile())
        try:
            self.host.tick()
        except OSError:
            if self.host.count == self.host.die_at:
                file.write(offset, data[: self.host.chance.randrange(len(data) + 1)])
            raise
        file.write(offset, data)

    def read(self, name: str, offset: int, length: int) -> bytes:
        return bytes(self.files[name].content[offset : offset + length])

    def sync(self, name: str) -> None:
        self.host.tick()
        self.files[name].sync()

    def truncate(self, name: str, size: int) -> None:
        self.host.tick()
        file = self.files[name]
        del file.content[size:]
        put(file.content, size, b"")

    def unlink(self, name: str) -> None:
        self.host.tick()
        self.files.pop(name, None)

    def sync_directory(self) -> None:
        self.host.tick()
        self.durable_names = dict(self.files)

    def close(self) -> None:
        """Nothing is open."""

    def lose_power(self) -> None:
        """Names changed since the directory was synced are there or not; contents as far as synced."""
        chance = self.host.chance
        names: dict[str, MemoryFile] = {}
        for name in sorted({*self.files, *self.durable_names}):
            before, now = self.durable_names.get(name), self.files.get(name)
            kept = now if before is now or chance.random() < 0.5 else before
            if kept is not None:
                names[name] = kept
        for file in names.values():
            file.lose_power(chance)
        self.files = names
        self.durable_names = dict(names)


class MemoryArea:
    """An area on the same host."""

    def __init__(self, host: Host, size_bytes: int = SIZE) -> None:
        self.host = host
        self.size_bytes = size_bytes
        self.file = MemoryFile()
        self.file.content = bytearray(size_bytes)
        self.file.sync()

    @property
    def content(self) -> bytes:
        return bytes(self.file.content)

    def _tick(self) -> None:
        try:
            self.host.tick()
        except OSError as error:
            raise DeviceError(errno.EIO, "the host died") from error

    def read(self, offset: int, length: int, /) -> bytes:
        return bytes(self.file.content[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size_bytes
        self._tick()
        self.file.write(offset, bytes(data))

    def discard(self, offset: int, length: int, /) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None:
        self._tick()
        self.file.sync()


class Target:
    """What of a far site survives its death: its host, journal files and area."""

    def __init__(self, chance: random.Random, position: Position | None = None) -> None:
        self.chance = chance
        self.host = Host(chance)
        self.files = MemoryFiles(self.host)
        self.area = MemoryArea(self.host)
        journal = self.open()
        if position is not None:
            journal.reset(position)

    def open(self, segment_bytes: int = 3 * BLOCK) -> SetJournal:
        return SetJournal(Path("journal"), VOLUME, SIZE, segment_bytes=segment_bytes, files=self.files)

    def revive(self, *, power_cut: bool) -> None:
        """A new process on the host; after a power cut only what was synced is sure."""
        self.host.die_at = None
        if power_cut:
            self.files.lose_power()
            self.area.file.lose_power(self.chance)


class Writer:
    """A stream of writes, its area A, its queue; C acknowledges when the test says so.

    Keeps the content of the area at every sequence. `area` lags behind the queue by the writes not `pushed`
    (P2: entries are committed to the queue before the area is written).
    """

    def __init__(self, chance: random.Random, epoch: int = 1) -> None:
        self.chance = chance
        self.epoch = epoch
        self.states: list[bytes] = [bytes(SIZE)]
        self.stream: list[Entry] = []
        self.area = MemoryArea(Host(chance))
        self.queue = MemoryQueue()
        self.pushed = 0
        self.on_write: Callable[[], None] = lambda: None

    @property
    def newest(self) -> int:
        return len(self.stream)

    def write(self, *, marker: bool = False) -> Entry:
        """Issue a random write, discard or marker."""
        sequence = self.newest + 1
        at = self.chance.randrange(BLOCKS)
        count = min(self.chance.choice([1, 1, 1, 2, 5]), BLOCKS - at)
        state = bytearray(self.states[-1])
        if marker:
            entry = marker_entry(sequence, sequence, [(0, SIZE)], 16 * BLOCK)
        elif self.chance.random() < 0.15:
            entry = discard_entry(sequence, sequence, at * BLOCK, count * BLOCK)
            state[entry.offset : entry.end] = bytes(entry.length)
        else:
            data = b"".join(
                sequence.to_bytes(8, "big") * (BLOCK // 8 - 1) + bytes([index]) * 8 for index in range(count)
            )
            entry = write_entry(sequence, sequence, at * BLOCK, data)
            state[entry.offset : entry.end] = data
        self.stream.append(entry)
        self.states.append(bytes(state))
        self.queue.append(entry)
        return entry

    def push(self, through: int | None = None) -> None:
        """The area is written."""
        through = self.newest if through is None else through
        for entry in self.stream[self.pushed : through]:
            if entry.kind == WRITE:
                self.area.write(entry.offset, entry.payload)
            elif entry.kind == DISCARD:
                self.area.discard(entry.offset, entry.length)
        self.pushed = max(self.pushed, through)

    def acknowledge(self, through: int | None = None) -> None:
        """C has it (P1): it was pushed, and is eligible."""
        through = self.newest if through is None else through
        self.push(through)
        self.queue.eligible = max(self.queue.eligible, through)

    def step(self) -> None:
        """A random advance of everything."""
        for _ in range(self.chance.randrange(3)):
            self.write(marker=self.chance.random() < 0.05)
        if self.chance.random() < 0.7:
            self.push(self.chance.randint(self.pushed, self.newest))
        if self.chance.random() < 0.7:
            self.acknowledge(self.chance.randint(self.queue.eligible, self.pushed))


class MemoryQueue:
    """The entry queue, without files. `trimmed` is the last entry that left it."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.next = 1
        self.eligible = 0
        self.oldest = 1
        self.dropped = 0
        self.far = Position(0, 0)
        self.trimming = True

    def append(self, entry: Entry) -> None:
        self.entries[entry.sequence] = entry
        self.next = entry.sequence + 1

    def state(self) -> QueueState:
        values: dict[str, Any] = {
            "next_sequence": self.next,
            "oldest_sequence": self.oldest,
            "eligible_sequence": self.eligible,
            "common_flush_sequence": self.eligible,
            "far_epoch": self.far.epoch,
            "far_durable_sequence": self.far.sequence,
            "dropped_through": self.dropped,
            "far_site": True,
            "trusted": True,
            "drop_reason": "limit" if self.dropped else "",
        }
        return QueueState(**{name: values[name] for name in QueueState._fields})

    def read(self, from_sequence: int, limit_bytes: int = 2 << 20) -> list[Entry]:
        found: list[Entry] = []
        size = 0
        for sequence in range(max(from_sequence, self.oldest), self.next):
            if found and size + self.entries[sequence].payload_length > limit_bytes:
                break
            found.append(self.entries[sequence])
            size += found[-1].payload_length
        return found

    def read_index(
        self, from_sequence: int, limit_entries: int = 65536, *, verify: bool = False
    ) -> list[Entry]:
        return self.read(from_sequence, SIZE * self.next)[:limit_entries]

    def read_these(self, sequences: Sequence[int]) -> list[Entry]:
        return [self.entries[sequence] for sequence in sequences if sequence in self.entries]

    def counts(self) -> QueueCounts:
        first = max(self.far.sequence + 1, self.oldest)
        waiting = [self.entries[sequence] for sequence in range(first, self.next)]
        if not waiting:
            return QueueCounts(0, 0, 0, 0, 0)
        size = sum(entry.payload_length for entry in waiting)
        return QueueCounts(len(waiting), size, first, self.next - 1, waiting[0].timestamp_ns)

    def set_far_durable(self, epoch: int, sequence: int) -> None:
        self.far = max(self.far, Position(epoch, sequence))

    def trim(self) -> int:
        through = min(self.far.sequence, self.eligible) if self.trimming else 0
        return self._forget(through)

    def drop(self, through: int) -> int:
        """As if the queue had outgrown its limit."""
        self._forget(through)
        self.dropped = self.oldest - 1
        return self.dropped

    def _forget(self, through: int) -> int:
        gone = range(self.oldest, min(through, self.next - 1) + 1)
        for sequence in gone:
            del self.entries[sequence]
        self.oldest += len(gone)
        return len(gone)


def channel_pair(silence_seconds: float = 5.0) -> tuple[Channel, Channel]:
    """Two ends of a connection without TLS."""
    left, right = socket.socketpair()
    return (
        Channel(left, peer="the far site", silence_seconds=silence_seconds),
        Channel(right, peer="the writer", silence_seconds=silence_seconds),
    )


def blocks_that_differ(left: bytes, right: bytes) -> list[int]:
    return [
        at // BLOCK for at in range(0, len(left), BLOCK) if left[at : at + BLOCK] != right[at : at + BLOCK]
    ]


__all__ = [
    "BLOCK",
    "BLOCKS",
    "MARKER",
    "SIZE",
    "VOLUME",
    "Host",
    "MemoryArea",
    "MemoryFiles",
    "MemoryQueue",
    "Target",
    "Writer",
    "blocks_that_differ",
    "channel_pair",
]
