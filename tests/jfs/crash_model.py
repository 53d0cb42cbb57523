"""A random workload on a store, and what must hold of the store after a power cut at any point of it."""

import random
import struct
from dataclasses import dataclass, field
from uuid import UUID

import trio

from jfs import checkpoint, log
from jfs.errors import NoSpace
from jfs.layout import (
    BLOCK_BYTES,
    EXTENT,
    INODE,
    NODE_BLOCKS,
    decode_extent,
    encode_extent,
    make_key,
    split_key,
)
from jfs.mkfs import make_file_system
from jfs.replay import load_volume
from jfs.runs import Run
from jfs.store import Store, StoreOptions
from tests.devices import SECTOR_BYTES, CrashDevice, MemoryDevice

SIZE_BYTES = 8 << 20
VOLUME = UUID("c4a5e000-0000-4000-8000-000000000001")
FIRST_INO, LAST_INO = 16, 40
FILE_BLOCKS = 12
STAMP = struct.Struct("<QQQ")


def small_store(checkpoint_bytes: int) -> StoreOptions:
    """Options that make what a large volume does happen on a small one: many checkpoints, in many parts."""
    return StoreOptions(
        checkpoint_bytes=checkpoint_bytes, merge_leaves=checkpoint_bytes >> 16, linger_seconds=0
    )


def stamped(ino: int, file_block: int, version: int, count: int) -> bytes:
    """Blocks of a file in which every sector says which it is."""
    sectors = [
        STAMP.pack(ino, file_block + index, version).ljust(SECTOR_BYTES, b".") * (BLOCK_BYTES // SECTOR_BYTES)
        for index in range(count)
    ]
    return b"".join(sectors)


@dataclass
class State:
    """What the store holds at one moment: items, and the version of what each extent holds."""

    items: dict[bytes, bytes] = field(default_factory=dict)
    versions: dict[bytes, int] = field(default_factory=dict)
    newest: int = 0  # no version above this one was ever written

    def copy(self) -> "State":
        return State(dict(self.items), dict(self.versions))


class Workload:
    """Random changes; remembers the state at the moment each batch is taken."""

    def __init__(self, device: CrashDevice, store: Store, rng: random.Random, state: State) -> None:
        self.device = device
        self.store = store
        self.rng = rng
        self.now = state
        self.states: list[State] = [state.copy()]
        self.version = state.newest
        store.before_commit.append(lambda: self.states.append(self.now.copy()))

    def step(self) -> None:
        """One operation, atomic as those of a file system are."""
        ino = self.rng.randint(FIRST_INO, LAST_INO)
        roll = self.rng.random()
        if roll < 0.35:
            self._put(make_key(ino, INODE), self.rng.randbytes(self.rng.randint(1, 200)))
        elif roll < 0.45:
            self._put(make_key(ino, 4, self.rng.randrange(50)), self.rng.randbytes(self.rng.randint(1, 3000)))
        elif roll < 0.55:
            self._delete(make_key(ino, 4, self.rng.randrange(50)))
        elif roll < 0.80:
            self._write(make_key(ino, EXTENT, self.rng.randrange(0, 4) * FILE_BLOCKS))
        else:
            self._remove(ino)

    def _put(self, key: bytes, value: bytes) -> None:
        self.store.put(key, value)
        self.now.items[key] = value

    def _delete(self, key: bytes) -> None:
        self.store.delete(key)
        self.now.items.pop(key, None)
        self.now.versions.pop(key, None)

    def _write(self, key: bytes) -> None:
        ino, _, file_block = split_key(key)
        self.version += 1
        value = self.now.items.get(key)
        in_place = value is not None and self.rng.random() < 0.6
        if value is not None and in_place and not self.store.vouchers.held_among(*decode_extent(value)):
            start, count = decode_extent(value)
            data = stamped(ino, file_block, self.version, count)
            self.store.write_data(ino, file_block, start, data, new=False)
            self.now.versions[key] = self.version
            return
        self._free(key)
        try:
            (start, count), *rest = self.store.allocate(ino, self.rng.randint(1, FILE_BLOCKS))
        except NoSpace:
            self._delete(key)
            return
        for run in rest:
            self.store.free(ino, *run)
        self.store.write_data(ino, file_block, start, stamped(ino, file_block, self.version, count), new=True)
        self._put(key, encode_extent(start, count))
        self.now.versions[key] = self.version

    def _free(self, key: bytes) -> None:
        value = self.now.items.get(key)
        if value is not None:
            self.store.free(split_key(key)[0], *decode_extent(value))

    def _remove(self, ino: int) -> None:
        for key in [key for key in self.now.items if split_key(key)[0] == ino]:
            if key[8] == EXTENT:
                self._free(key)
            self._delete(key)

    async def commit(self) -> None:
        """Commit; afterwards the state that the next batch took is certain."""
        wanted = len(self.states)
        await self.store.commit()
        self.device.note(("durable", wanted))

    async def run(self, steps: int) -> None:
        """Operations, commits and checkpoints beside each other."""
        async with trio.open_nursery() as nursery:
            for _ in range(steps):
                self.step()
                roll = self.rng.random()
                if roll < 0.08:
                    await self.commit()
                elif roll < 0.16:
                    nursery.start_soon(self.commit)
                elif roll < 0.19:
                    nursery.start_soon(self.store.checkpoint)
                elif roll < 0.22:
                    await self.store.checkpoint()
                elif roll < 0.6:
                    await trio.lowlevel.checkpoint()


def check_after_crash(crashed: MemoryDevice, workload: Workload, noted: list[object]) -> State:
    """The volume reads, is one of the states it may be in, and owns its blocks once. Returns that state."""
    volume, end = load_volume(crashed)
    items = {key: value for key, value in volume.scan(b"", b"\xff" * 17) if key[:8] != (2).to_bytes(8, "big")}
    durable = max([what[1] for what in noted if isinstance(what, tuple)], default=0)
    possible = [
        index for index in range(durable, len(workload.states)) if workload.states[index].items == items
    ]
    assert possible, f"a state that was never committed (at least state {durable} was)"
    certain = workload.states[durable] if durable < len(workload.states) else State()
    found = State(items, newest=workload.version)
    for key, value in items.items():
        if key[8] != EXTENT:
            continue
        start, count = decode_extent(value)
        oldest = certain.versions[key] if certain.items.get(key) == value else 0
        found.versions[key] = check_content(crashed, key, start, count, oldest, workload.version)
    owned: list[Run] = [(0, 2), (crashed.size_bytes // BLOCK_BYTES - 1, 1)]
    owned += [(start, volume.superblock.segment_blocks) for start in end.owned]
    owned += [(address, NODE_BLOCKS) for address, _, _ in volume.tree.nodes()]
    owned += [decode_extent(value) for key, value in items.items() if key[8] == EXTENT]
    check_ownership(owned, list(volume.free_map.used_runs()))
    assert volume.free_map.free_blocks == crashed.size_bytes // BLOCK_BYTES - sum(count for _, count in owned)
    assert volume.inodes == sum(key[8] == INODE for key in items)
    return found


def check_content(device: MemoryDevice, key: bytes, start: int, count: int, oldest: int, newest: int) -> int:
    """Every sector is of this file and neither too old nor from the future. Returns the oldest version."""
    ino, _, file_block = split_key(key)
    data = device.read(start * BLOCK_BYTES, count * BLOCK_BYTES)
    oldest_seen = newest
    for at in range(0, len(data), SECTOR_BYTES):
        found = STAMP.unpack_from(data, at)
        assert found[:2] == (ino, file_block + at // BLOCK_BYTES), "a block shows older or foreign content"
        assert oldest <= found[2] <= newest, f"version {found[2]} where {oldest} to {newest} must be"
        oldest_seen = min(oldest_seen, found[2])
    return oldest_seen


def check_ownership(owned: list[Run], used: list[Run]) -> None:
    """No block has two owners, and the free map says just that."""
    joined: list[Run] = []
    for start, count in sorted(owned):
        if joined and joined[-1][0] + joined[-1][1] > start:
            raise AssertionError(f"block {start} has two owners")
        if joined and joined[-1][0] + joined[-1][1] == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((start, count))
    assert joined == used, "the free map differs from what is owned"


def tell(story: int) -> None:
    """One crash story, the same every time: trio draws the order of tasks from a generator, seeded here."""
    vars(trio._core._run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    trio._core._run._r.seed(story)
    checkpoint.SLICE_SECONDS = -1.0  # let the others run at every opportunity, not by the clock
    log.PART_BYTES = random.Random(story).choice((256, 1024, 65536))  # often several batches for one change
    trio.run(crash_story, story)


async def crash_story(
    seed: int, *, lives: int = 4, steps: tuple[int, ...] = (4, 20, 60), cuts: int = 4
) -> None:
    """Several lives of one volume, each ended by a power cut at a random point."""
    rng = random.Random(seed)
    device = CrashDevice(SIZE_BYTES)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="crash")
    made = len(device.history)
    state = State()
    for _ in range(lives):
        options = small_store(rng.choice((1, 4, 64)) << 16)
        store = await Store.open(device, options=options)
        workload = Workload(device, store, rng, state)
        await workload.run(rng.randint(1, rng.choice(steps)))
        if rng.random() < 0.2:
            await store.close()
        for _ in range(cuts):
            at = rng.randint(made, len(device.history))
            crashed = device.materialise(rng, at)
            state = check_after_crash(crashed, workload, device.noted(at))
        device, made = CrashDevice(SIZE_BYTES, crashed.blocks), 0
