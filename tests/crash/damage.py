"""Flipped bits, and what must hold of a volume that has one: every answer about metadata is right, or an
error.

Data blocks have no checksums, so the content of files may differ; nothing else may. One exception, named as
such: batches at the very end of the log of a volume that was not closed, of which no other batch says that
they were durable, and the blocks that they vouch for. A damaged one looks like one that a power cut tore: the
volume is whole, but of an earlier moment.
"""

import random
from dataclasses import dataclass
from stat import S_ISDIR, S_ISLNK, S_ISREG

from jfs.batch import decode_records
from jfs.device import BLOCK_BYTES
from jfs.errors import CorruptionError, FileSystemError
from jfs.filesystem import FileSystem
from jfs.fsck import check, repair
from jfs.layout import EXTENT, NODE_BLOCKS, SUPERBLOCK_SLOTS, key_range
from jfs.replay import load_volume, log_reader
from jfs.store import Store
from tests.crash.images import Images
from tests.crash.judge import ROOT, expect
from tests.crash.recording import OPTIONS, Recording, digest_of, items_of
from tests.crash.schedule import Schedule
from tests.crash.sweep import make_recording
from tests.devices import MemoryDevice

ALL_SURVIVES = 1  # a choice whose subset is everything
MOST_BYTES = 1 << 20
Answer = tuple[object, ...]


@dataclass(frozen=True)
class Subject:
    """A volume, what it says of each inode, and where its metadata is."""

    blocks: dict[int, bytes]
    size_bytes: int
    answers: dict[int, Answer]
    used: list[int]
    metadata: list[int]
    unproven: set[int]  # blocks of batches at the end of the log, and what these vouch for
    states: set[int]  # digests of all states that ever were

    def flipped(self, place: int, bit: int) -> MemoryDevice:
        """The volume with one bit of a block flipped."""
        data = bytearray(self.blocks.get(place, bytes(BLOCK_BYTES)))
        data[bit // 8] ^= 1 << bit % 8
        return MemoryDevice(self.size_bytes, self.blocks | {place: bytes(data)})

    def draw(self, chance: random.Random) -> tuple[int, int]:
        """A block and a bit: anywhere, in what is used, or in metadata."""
        anywhere = range(self.size_bytes // BLOCK_BYTES)
        place = chance.choice(chance.choice((anywhere, self.used, self.metadata, self.metadata)))
        # The beginning of a block says the most.
        limit = BLOCK_BYTES if chance.random() < 0.5 else 200
        return place, chance.randrange(limit * 8)


def answer_of(fs: FileSystem, ino: int) -> Answer:
    """All that can be asked about an inode, but the content of a file. CorruptionError, FileSystemError."""
    node = fs.node(ino)
    names = target = None
    if S_ISDIR(node.mode):
        names = sorted((name.name, name.ino, name.kind) for name in fs.readdir(ino))
    elif S_ISLNK(node.mode):
        target = fs.readlink(ino)
    extents = list(fs.store.scan(*key_range(ino, EXTENT)))
    attributes = sorted((name, fs.getxattr(ino, name)) for name in fs.listxattr(ino))
    if S_ISREG(node.mode):
        fs.read(ino, 0, min(node.size_bytes, MOST_BYTES))
    return (node.encode(), names, target, extents, attributes)


async def make_subject(workload: str, *, clean: bool) -> Subject:
    """A volume in the middle of a workload: closed, or as a power cut finds it that spares every write."""
    recording = await make_recording(workload)
    last = len(recording.device.history)
    point = random.Random(f"{workload} {clean}").randint((recording.first_point + last) // 2, last)
    image = image_at(recording, workload, point)
    if not load_volume(image)[0].inodes:
        # Nothing was committed yet: each mount makes a root directory, as old as itself.
        image = image_at(recording, workload, last)
    if clean:
        await FileSystem(await Store.open(image), OPTIONS).close()
    return await subject_of(image, {state.digest for state in recording.states}, closed=clean)


def image_at(recording: Recording, workload: str, point: int) -> MemoryDevice:
    """What a power cut at a point leaves that spares every write."""
    schedule = Schedule(workload, point, ALL_SURVIVES)
    return Images(recording.device).image(schedule, schedule.chance())


async def subject_of(image: MemoryDevice, states: set[int], *, closed: bool) -> Subject:
    """A volume, asked for everything while it is whole."""
    fs = FileSystem(await Store.open(image, read_only=True), OPTIONS, read_only=True)
    answers: dict[int, Answer] = {}
    waiting = [ROOT]
    while waiting:
        ino = waiting.pop()
        answers[ino] = answer_of(fs, ino)
        names = answers[ino][1]
        if isinstance(names, list):
            waiting += [target for _, target, _ in names if target not in answers]
    volume, end = load_volume(image)
    metadata = [*SUPERBLOCK_SLOTS] * 4
    for address, _, _ in volume.tree.nodes():
        metadata += range(address, address + NODE_BLOCKS)
    for segment in end.segments:
        metadata += range(segment.start, segment.start + volume.superblock.segment_blocks)
    used = [block for start, count in volume.free_map.used_runs() for block in range(start, start + count)]
    unproven = set() if closed else unproven_blocks(image)
    return Subject(image.blocks, image.size_bytes, answers, used, metadata, unproven, states)


def unproven_blocks(image: MemoryDevice) -> set[int]:
    """Blocks of the batches that no later one says were durable, and those that these vouch for."""
    volume, _ = load_volume(image)
    batches = list(log_reader(volume))
    proven = max([batch.durable_lsn for batch in batches], default=0)
    blocks: set[int] = set()
    for batch in batches:
        if batch.lsn >= proven:
            blocks.update(range(batch.block, batch.next_block))
            if batch.vouches:
                records = decode_records(batch.body, batch.lsn, with_items=False)
                blocks.update(voucher.block for record in records for voucher in record.vouchers)
    return blocks


async def examine(subject: Subject, place: int, bit: int, *, with_repair: bool) -> str:
    """Check, mount and read a volume with a flipped bit: "unharmed", "earlier", "found", "refused"."""
    image = subject.flipped(place, bit)
    findings = check(image)
    try:
        store = await Store.open(image, read_only=True)
        fs = FileSystem(store, OPTIONS, read_only=True)
    except CorruptionError:
        expect(bool(findings), "a mount is refused, but fsck finds nothing")
        return "refused"
    if place in subject.unproven and digest_of(items_of(store)) in subject.states:
        expect(not findings, f"an earlier moment, but fsck finds {findings}")
        return "earlier"
    failed = False
    for ino, answer in subject.answers.items():
        try:
            expect(answer_of(fs, ino) == answer, f"inode {ino} is not what it was: {answer_of(fs, ino)}")
        except (CorruptionError, FileSystemError):
            failed = True
    expect(bool(findings) or not failed, "reading fails, but fsck finds nothing")
    if with_repair and findings:
        await check_repair(image)
    return "found" if findings else "unharmed"


async def check_repair(image: MemoryDevice) -> None:
    """A repair ends, and leaves nothing but what is beyond repair."""
    verdict = await repair(image)
    left = check(image)
    expect(not [one for one in left if one.repairable], f"a repair leaves {left}")
    said = {(one.code, one.place) for one in verdict if not one.repaired}
    expect({(one.code, one.place) for one in left} == said, f"a repair leaves {left} and says {said}")
