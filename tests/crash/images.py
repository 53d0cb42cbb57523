"""What a power cut leaves of a recorded device: all that was flushed, and some of what came after."""

import random
from itertools import accumulate

from jfs.device import BLOCK_BYTES
from tests.crash.schedule import Schedule
from tests.devices import SECTOR_BYTES, ZEROS, CrashDevice, Flushed, MemoryDevice, Written

POISON = b"POISON: nobody wrote this here! " * (BLOCK_BYTES // 32)
TORN_SHARE = 0.25
SECTORS = BLOCK_BYTES // SECTOR_BYTES


def poisoned_device(size_bytes: int) -> CrashDevice:
    """A device full of what must never be seen."""
    return CrashDevice(size_bytes, dict.fromkeys(range(size_bytes // BLOCK_BYTES), POISON))


def apply(blocks: dict[int, bytes], event: Written, torn: random.Random | None = None) -> None:
    """Play a write or a discard; `torn`: only some of its sectors."""
    first = event.offset // BLOCK_BYTES
    if event.data is None:
        for block in range(first, first + event.length // BLOCK_BYTES):
            blocks.pop(block, None)
        return
    for index in range(event.length // BLOCK_BYTES):
        data = event.data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        if torn is not None:
            data = _tear(blocks.get(first + index, ZEROS), data, torn)
        blocks[first + index] = data


def _tear(old: bytes, new: bytes, chance: random.Random) -> bytes:
    kept = chance.getrandbits(SECTORS)
    return b"".join(
        [
            (new if kept >> sector & 1 else old)[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]
            for sector in range(SECTORS)
        ]
    )


def survivors(later: list[Written], subset: int, chance: random.Random) -> list[Written]:
    """Which of the unflushed writes survive, in the order in which they reached the disk."""
    if not later or subset == 0:
        return []
    match subset:
        case 1:
            return later
        case 2:
            return later[: chance.randint(1, len(later))]
        case 3:
            lost = chance.randrange(len(later))
            return later[:lost] + later[lost + 1 :]
        case 4:
            return [chance.choice(later)]
    mood = chance.random()  # some power cuts lose nearly everything, some nearly nothing
    chosen = [event for event in later if chance.random() < mood]
    if subset > 5:
        chance.shuffle(chosen)
    return chosen


class Images:
    """The images of one recording. Quick if they are asked for with points that do not descend."""

    def __init__(self, device: CrashDevice) -> None:
        self._device = device
        self._history = device.history
        counts = (event.count if isinstance(event, Flushed) else 0 for event in self._history)
        self._stable_counts = [0, *accumulate(counts, max)]
        self._applied = 0
        self._stable = dict(device.first)

    def image(self, schedule: Schedule, chance: random.Random) -> MemoryDevice:
        """The device after the power cut."""
        stable = self._stable_counts[schedule.point]
        if stable < self._applied:
            self._applied, self._stable = 0, dict(self._device.first)
        for event in self._history[self._applied : stable]:
            if isinstance(event, Written):
                apply(self._stable, event)
        self._applied = stable
        later = [event for event in self._history[stable : schedule.point] if isinstance(event, Written)]
        blocks = dict(self._stable)
        for event in survivors(later, schedule.subset, chance):
            apply(blocks, event, chance if chance.random() < TORN_SHARE else None)
        return MemoryDevice(self._device.size_bytes, blocks)
