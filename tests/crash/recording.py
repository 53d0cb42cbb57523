"""A workload on a recorded device: every state that a commit took, and every file's content over time.

*States* are all items of the volume at the moment a batch captured them: after a crash the items must be
those of one state, not older than the last commit that had returned. *Ticks* number the changes of content:
a block that is overwritten in place may show any tick since its last flush, as long as the file had it.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from stat import S_ISREG
from types import SimpleNamespace

import pytest
import trio

from jfs import attributes, checkpoint, fileio, filesystem, log, mkfs, namespace, nodes, replay
from jfs.filesystem import FileSystem, FileSystemOptions
from jfs.layout import EXTENT, FREE_MAP_INO, INODE, decode_extent, split_key
from jfs.store import Store, StoreOptions
from tests.devices import CrashDevice, Noted

CELL = 32
OPTIONS = FileSystemOptions(relatime=False)
FIRST_KEY, LAST_KEY = bytes(17), b"\xff" * 17
FREE_MAP = FREE_MAP_INO.to_bytes(8, "big")
Items = dict[bytes, bytes]
Extents = dict[int, tuple[int, int]]  # file block -> start block, count


@contextmanager
def deterministic(seed: int) -> Iterator[random.Random]:
    """Clocks, incarnations and the order of tasks all come from the seed. Inside a run of trio."""
    chance = random.Random(seed)
    clock = count(1_700_000_000_000_000_000, 1_000_003)
    vars(trio._core._run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    trio._core._run._r.seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        for module in (attributes, fileio, filesystem, namespace, nodes):
            patch.setattr(module, "now_ns", clock.__next__)
        patch.setattr(mkfs, "time", SimpleNamespace(time_ns=clock.__next__))
        patch.setattr(replay, "secrets", SimpleNamespace(randbits=chance.getrandbits))
        patch.setattr(checkpoint, "SLICE_SECONDS", -1.0)  # let others run at every opportunity
        patch.setattr(log, "PART_BYTES", chance.choice((256, 1024, 131_072)))
        patch.setattr(fileio, "PIECE_EXTENTS", chance.choice((1, 256)))
        yield chance


def items_of(store: Store) -> Items:
    """All items but the free map, which follows from them."""
    return {key: value for key, value in store.scan(FIRST_KEY, LAST_KEY) if key[:8] != FREE_MAP}


def digest_of(items: Items) -> int:
    """A number that tells sets of items apart and can be kept up item by item. Of this process only."""
    digest = 0
    for item in items.items():
        digest ^= hash(item)
    return digest


@dataclass(frozen=True)
class State:
    """What a batch captured: `changes` since the state before."""

    digest: int
    tick: int
    changes: dict[bytes, bytes | None]


@dataclass
class Contents:
    """One file's content after each tick that changed it."""

    ticks: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)

    def add(self, tick: int, value: bytes) -> None:
        self.ticks.append(tick)
        self.values.append(value)

    def index(self, tick: int) -> int:
        """Of the content that the file had at a tick; -1 if it did not exist yet."""
        return bisect_right(self.ticks, tick) - 1


class Recording:
    """See the module."""

    def __init__(self, device: CrashDevice, name: str) -> None:
        self.device = device
        self.name = name
        self.first_point = 0
        self.states: list[State] = []
        self.items: Items = {}
        self.contents: dict[int, Contents] = {}
        self.maps: dict[int, list[tuple[int, Extents]]] = {}  # of each file: state, its extents from there on
        self.tick = 0
        self._digest = 0
        self._by_digest: dict[int, list[int]] = {}

    # -- while it is made ----------------------------------------------------------------------------

    async def open(self, options: StoreOptions) -> FileSystem:
        """Mount the volume as the workload wants it, and watch what its commits capture."""
        store = await Store.open(self.device, options=options)
        store.volume.now_ns = count(1, 1_000_003).__next__
        file_system = FileSystem(store, OPTIONS)
        if not self.states:
            self._begin(file_system)
        store.before_commit.append(lambda: self._capture(dict(store.volume.pending.items)))
        return file_system

    def _begin(self, file_system: FileSystem) -> None:
        """The first state: what the device holds already."""
        self._capture(dict(items_of(file_system.store)))
        for ino in self.maps:
            node = file_system.node(ino)
            if S_ISREG(node.mode):
                self.add_content(ino, bytes(file_system.read(ino, 0, node.size_bytes)))
        self.first_point = len(self.device.history)

    def _capture(self, changes: dict[bytes, bytes | None]) -> None:
        touched = set()
        for key, value in changes.items():
            old = self.items.pop(key, None)
            if old is not None:
                self._digest ^= hash((key, old))
            if value is not None:
                self.items[key] = value
                self._digest ^= hash((key, value))
            if key[8] == EXTENT or (key[8] == INODE and value is not None):
                touched.add(split_key(key)[0])
        number = len(self.states)
        self.states.append(State(self._digest, self.tick, changes))
        self._by_digest.setdefault(self._digest, []).append(number)
        self.device.note(("state", number))
        for ino in touched:
            self.maps.setdefault(ino, []).append((number, self._extents(ino)))

    def _extents(self, ino: int) -> Extents:
        prefix = ino.to_bytes(8, "big") + bytes((EXTENT,))
        return {
            int.from_bytes(key[9:], "big"): decode_extent(value)
            for key, value in self.items.items()
            if key.startswith(prefix)
        }

    @contextmanager
    def change(self) -> Iterator[None]:
        """Around a change of content: from here on a crash may show its tick."""
        self.tick += 1
        self.device.note(("tick", self.tick))
        yield

    def add_content(self, ino: int, content: bytes) -> None:
        """The content of a file from this tick on."""
        self.contents.setdefault(ino, Contents()).add(self.tick, content)

    def content(self, ino: int) -> bytes:
        """The content of a file now."""
        return self.contents[ino].values[-1] if ino in self.contents else b""

    async def make_durable(self, act: Callable[[], object]) -> None:
        """Await something after which everything done so far must survive."""
        state, tick = len(self.states), self.tick
        await act()  # type: ignore[misc]
        self.device.note(("durable", state, tick))

    async def make_data_durable(self, file_system: FileSystem, ino: int) -> None:
        """fdatasync of one file: its content must survive."""
        tick = self.tick
        await file_system.fsync(ino, datasync=True)
        self.device.note(("data", ino, tick))

    # -- when it is judged ---------------------------------------------------------------------------

    def states_like(self, items: Items) -> list[int]:
        """The numbers of the states that had just these items."""
        return self._by_digest.get(digest_of(items), [])

    def items_at(self, number: int) -> Items:
        """All items of a state; for messages."""
        items: Items = {}
        for state in self.states[: number + 1]:
            for key, value in state.changes.items():
                items.pop(key, None)
                if value is not None:
                    items[key] = value
        return items


@dataclass(frozen=True)
class Promise:
    """What must have survived before a point, and what may have: numbers of states and ticks."""

    durable_state: int
    durable_tick: int
    newest_state: int
    newest_tick: int
    data_ticks: dict[int, int]


def promises(recording: Recording) -> list[Promise]:
    """For every point, what must have survived a power cut before it."""
    found: list[Promise] = []
    now = Promise(0, 0, 0, 0, {})
    for event in (*recording.device.history, None):
        found.append(now)
        match event.what if isinstance(event, Noted) else None:
            case ("durable", int(state), int(tick)):
                state, tick = max(state, now.durable_state), max(tick, now.durable_tick)
                now = replace(now, durable_state=state, durable_tick=tick)
            case ("data", int(ino), int(tick)):
                now = replace(now, data_ticks=now.data_ticks | {ino: tick})
            case ("state", int(number)):
                now = replace(now, newest_state=number)
            case ("tick", int(tick)):
                now = replace(now, newest_tick=tick)
    return found


def pattern(ino: int, tick: int, offset: int, length: int) -> bytes:
    """Bytes that say whose they are, where they belong, and which change wrote them."""
    first, last = offset // CELL, (offset + length - 1) // CELL
    cells = b"".join([b"i%07x.t%07x.at%011x|" % (ino, tick, cell) for cell in range(first, last + 1)])
    begin = offset - first * CELL
    return cells[begin : begin + length]
