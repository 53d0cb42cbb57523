"""What must hold of a volume after a power cut."""

import random
from dataclasses import dataclass
from stat import S_ISDIR, S_ISLNK, S_ISREG

from jfs.device import BLOCK_BYTES
from jfs.filesystem import FileSystem, Node
from jfs.fsck import check
from jfs.store import Store, StoreOptions
from tests.crash.images import POISON, Images
from tests.crash.recording import OPTIONS, Contents, Items, Promise, Recording, items_of, promises
from tests.crash.schedule import Schedule
from tests.devices import SECTOR_BYTES, CrashDevice, MemoryDevice, Noted

ROOT = 1
AFTER = b"after the crash"
GROWTH = 5000
QUICK = StoreOptions(linger_seconds=0.0)
Tree = dict[bytes, tuple[object, ...]]


@dataclass(frozen=True)
class Found:
    """A state that a crash left: its number, and what reading it through the file system shows."""

    state: int
    tree: Tree


class Violation(AssertionError):
    """A crash left what it must not leave."""


def expect(condition: bool, sentence: str) -> None:
    """Violation if it does not hold."""
    if not condition:
        raise Violation(sentence)


def visible(fs: FileSystem) -> Tree:
    """All that a user sees: path -> attributes, extended attributes, content, target or names."""
    tree: Tree = {}
    waiting = [(b"", ROOT)]
    while waiting:
        path, ino = waiting.pop()
        node = fs.node(ino)
        shown: object = None
        if S_ISDIR(node.mode):
            names = [(name.name, name.ino) for name in fs.readdir(ino) if name.name not in (b".", b"..")]
            waiting += [(path + b"/" + name, target) for name, target in names]
        elif S_ISREG(node.mode):
            shown = bytes(fs.read(ino, 0, node.size_bytes))
        elif S_ISLNK(node.mode):
            shown = fs.readlink(ino)
        attributes = {name: fs.getxattr(ino, name) for name in fs.listxattr(ino)}
        tree[path] = (*_attributes(node), attributes, shown)
    return tree


def _attributes(node: Node) -> tuple[int, ...]:
    return (
        *(node.ino, node.mode, node.uid, node.gid, node.nlink, node.size_bytes, node.rdev, node.generation),
        *(node.atime_ns, node.mtime_ns, node.ctime_ns),
    )


class Judge:
    """Judges the power cuts of one recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self._images = Images(recording.device)
        self._promises = promises(recording)

    def image(self, schedule: Schedule) -> MemoryDevice:
        """What the power cut leaves."""
        return self._images.image(schedule, schedule.chance())

    async def judge(self, schedule: Schedule) -> None:
        """Violation, or whatever a reader of the volume raises, if something is not as it must be."""
        image = self.image(schedule)
        chance = random.Random(f"second {schedule}")
        found = await self._look(image, self._promises[schedule.point])
        if schedule.has_second:
            await check_second_crash(image, found, chance)

    async def _look(self, image: MemoryDevice, promise: Promise) -> Found:
        """Mount without writing: which of the states is it, and does every sector show what it may?"""
        findings = check(image)
        expect(not findings, f"fsck finds {findings}")
        store = await Store.open(image, read_only=True)
        items = items_of(store)
        possible = range(promise.durable_state, promise.newest_state + 1)
        fitting = [number for number in self.recording.states_like(items) if number in possible]
        if not fitting:
            raise Violation(self._difference(items, promise))
        fs = FileSystem(store, OPTIONS, read_only=True)
        tree = visible(fs)
        for path, shown in tree.items():
            ino, content = shown[0], shown[-1]
            if isinstance(ino, int) and isinstance(content, bytes) and ino in self.recording.contents:
                sectors = Sectors(self.recording, promise, fitting[-1], ino)
                wrong = sectors.wrong(content)
                expect(not wrong, f"{path!r}, inode {ino}: {wrong}")
        return Found(fitting[-1], tree)

    def _difference(self, items: Items, promise: Promise) -> str:
        """How the items differ from the state that is certain."""
        known = self.recording.states_like(items)
        if known:
            return f"state {known} after states {promise.durable_state} to {promise.newest_state}"
        certain = self.recording.items_at(promise.durable_state)
        differing = [key for key in {*certain, *items} if certain.get(key) != items.get(key)]
        return (
            f"none of the states {promise.durable_state} to {promise.newest_state}; other than the first in"
            f" {[(key.hex(), certain.get(key), items.get(key)) for key in sorted(differing)[:4]]}"
        )


class Sectors:
    """What the sectors of one file may hold when its metadata are those of a state."""

    def __init__(self, recording: Recording, promise: Promise, state: int, ino: int) -> None:
        self._contents: Contents = recording.contents[ino]
        self._recording = recording
        self._promise = promise
        self._state = state
        self._ino = ino
        self._floor = max(promise.durable_tick, promise.data_ticks.get(ino, 0))
        self._now = self._contents.index(max(recording.states[state].tick, self._floor))

    def wrong(self, found: bytes) -> str:
        """A sentence about the first sector that holds what it may not, or nothing."""
        expected = self._contents.values[self._now]
        if found == expected[: len(found)].ljust(len(found), b"\0"):
            return ""
        for block in range(0, len(found), BLOCK_BYTES):
            if found[block : block + BLOCK_BYTES] == expected[block : block + BLOCK_BYTES]:
                continue
            allowed = self._allowed(block // BLOCK_BYTES)
            for start in range(block, min(block + BLOCK_BYTES, len(found)), SECTOR_BYTES):
                sector = found[start : start + SECTOR_BYTES]
                length = len(sector)
                if all(sector != old[start : start + length].ljust(length, b"\0") for old in allowed):
                    what = "poison" if sector in POISON else f"{sector[:40]!r}..."
                    return f"at byte {start} there is {what} instead of {expected[start : start + 40]!r}..."
        return ""

    def _allowed(self, block: int) -> list[bytes]:
        """The contents that may show in a block: those since its last flush, as long as the file kept it."""
        ticks, values = self._contents.ticks, self._contents.values
        end = (block + 1) * BLOCK_BYTES
        allowed = [values[self._now]]
        oldest = max(self._contents.index(max(self._floor, self._mapped_since(block))), 0)
        for index in range(self._now - 1, oldest - 1, -1):
            older, newer = values[index], values[index + 1]
            begin = max(len(older), end - BLOCK_BYTES)
            if len(newer) < min(len(older), end) or any(newer[begin:end]):
                break  # it was cut, or grew: what it grew by is durable before its size
            allowed.append(older)
        for index in range(self._now + 1, len(values)):
            if ticks[index] > self._promise.newest_tick or len(values[index]) < min(
                len(values[index - 1]), end
            ):
                break
            allowed.append(values[index])
        return allowed

    def _mapped_since(self, block: int) -> int:
        """The tick before which this block of the file was not where it is in the state."""
        since = 0
        place: int | None = None
        for number, extents in reversed(self._recording.maps.get(self._ino, [])):
            if number > self._state:
                continue
            at = next(
                (
                    start + block - first
                    for first, (start, length) in extents.items()
                    if first <= block < first + length
                ),
                None,
            )
            if place is not None and at != place:
                return since
            place = at
            if place is None:
                return 0  # a hole
            since = self._recording.states[number - 1].tick if number else 0
        return since


async def check_second_crash(image: MemoryDevice, found: Found, chance: random.Random) -> None:
    """The volume is mounted, used and hit again: all that the first crash left is still there."""
    device = CrashDevice(image.size_bytes, image.blocks)
    fs = FileSystem(await Store.open(device, options=QUICK), OPTIONS)
    await fs.settle()
    node = fs.make(ROOT, AFTER, 0o100600)
    data = chance.randbytes(GROWTH)
    fs.write(node.ino, 0, data)
    await fs.throttle()
    await fs.commit()
    device.note("after")
    if chance.random() < 0.5:
        await fs.close()
    point = chance.randint(0, len(device.history))
    schedule = Schedule("second", point, chance.randrange(1 << 30))
    crashed = Images(device).image(schedule, chance)
    findings = check(crashed)
    expect(not findings, f"after a second crash ({schedule}) fsck finds {findings}")
    fs = FileSystem(await Store.open(crashed, options=QUICK), OPTIONS)
    tree = visible(fs)
    after = tree.pop(b"/" + AFTER, None)
    is_durable = any(isinstance(event, Noted) for event in device.history[:point])
    expect(after is not None or not is_durable, f"a second crash ({schedule}) lost what was durable")
    expect(after is None or after[-1] == data, f"a second crash ({schedule}) left other content")
    before = {path: shown for path, shown in found.tree.items() if path}
    del tree[b""]
    differing = [path for path in {*before, *tree} if before.get(path) != tree.get(path)]
    expect(not differing, f"a second crash ({schedule}) changed {differing}")
    await check_growth(fs, tree)
    findings = check(crashed)
    expect(not findings, f"after growing files and a clean end fsck finds {findings}")


async def check_growth(fs: FileSystem, tree: Tree) -> None:
    """What was written behind the end and lost its size with the cut does not come back when a file grows."""
    for path, shown in tree.items():
        ino, content = shown[0], shown[-1]
        if isinstance(ino, int) and isinstance(content, bytes) and S_ISREG(fs.node(ino).mode):
            size = fs.node(ino).size_bytes
            if size != len(content):
                continue  # grown already under another of its names
            fs.setattr(ino, size=size + GROWTH)
            await fs.throttle()
            grown = bytes(fs.read(ino, 0, size + GROWTH))
            expect(grown == content + bytes(GROWTH), f"{path!r} grows with what is not its own")
    await fs.close()
