"""Making recordings by name, and sweeping over their power cuts."""

import random
from collections.abc import Callable, Iterator
from uuid import UUID

import trio

from jfs.mkfs import make_file_system
from tests.crash.images import Images, poisoned_device
from tests.crash.judge import Judge
from tests.crash.operations import OPERATION_BYTES, Script
from tests.crash.programs import NAMES, Program
from tests.crash.recording import Recording, deterministic
from tests.crash.schedule import Schedule
from tests.devices import CrashDevice

SIZE_BYTES = 2 << 20
PROGRAM_BYTES = 8 << 20
LOG_LIMITS = (None, 1 << 20)  # a log that cannot grow, and one that can
EARLIER_LIVES = 3
LIFE_OPERATIONS = 120
VOLUME = UUID("c4a50000-0000-4000-8000-00000000a11e")


async def make_recording(workload: str) -> Recording:
    """The recording of that name, the same every time. ValueError if there is no such workload."""
    kind, _, argument = workload.partition("-")
    match kind:
        case "random":
            return await _random_recording(workload, int(argument))
        case "script":
            return await _script_recording(workload, bytes.fromhex(argument))
        case "trace":
            return await _program_recording(workload, argument)
    raise ValueError(f"there is no workload {workload!r}")


async def _fresh_device(chance: random.Random, size_bytes: int) -> CrashDevice:
    device = poisoned_device(size_bytes)
    limit = chance.choice(LOG_LIMITS)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="crash", log_limit_bytes=limit)
    return device


async def _script_recording(name: str, script: bytes) -> Recording:
    with deterministic(len(script)) as chance:
        recording = Recording(await _fresh_device(chance, SIZE_BYTES), name)
        await Script(recording, chance).run(script)
    return recording


async def _random_recording(name: str, seed: int) -> Recording:
    """Chance draws the operations; before them come earlier lives, each ended by a power cut."""
    with deterministic(seed) as chance:
        device = await _fresh_device(chance, SIZE_BYTES)
        for life in range(chance.randrange(EARLIER_LIVES + 1)):
            recording = Recording(device, name)
            await Script(recording, chance).run(_script(chance))
            point = chance.randint(recording.first_point, len(device.history))
            image = Images(device).image(Schedule(f"{name}/{life}", point, chance.randrange(1000)), chance)
            device = CrashDevice(image.size_bytes, image.blocks)
        recording = Recording(device, name)
        await Script(recording, chance).run(_script(chance))
    return recording


async def _program_recording(workload: str, argument: str) -> Recording:
    """`NAME` or `NAME.SEED`: the seed draws when the store's own commits and checkpoints fall."""
    name, _, seed = argument.partition(".")
    if name not in NAMES:
        raise ValueError(f"there is no workload {workload!r}: the traces are {', '.join(NAMES)}")
    with deterministic(int(seed or 0)) as chance:
        recording = Recording(await _fresh_device(chance, PROGRAM_BYTES), workload)
        await Program(recording, chance).run(name)
    return recording


def _script(chance: random.Random) -> bytes:
    return chance.randbytes(OPERATION_BYTES * chance.randint(LIFE_OPERATIONS // 2, LIFE_OPERATIONS))


def points_of(recording: Recording, chance: random.Random, count: int) -> Iterator[Schedule]:
    """So many power cuts of a recording, in the order of their points."""
    last = len(recording.device.history)
    points = sorted(chance.randint(recording.first_point, last) for _ in range(count))
    for point in points:
        yield Schedule(recording.name, point, chance.randrange(1000))


def sweep(workload: str, count: int, tell: Callable[[Schedule], object] | None = None) -> int:
    """Judge so many power cuts of a workload; how many there were. A violation says its schedule."""
    return trio.run(_sweep, workload, count, tell)


async def _sweep(workload: str, count: int, tell: Callable[[Schedule], object] | None) -> int:
    recording = await make_recording(workload)
    judge = Judge(recording)
    for schedule in points_of(recording, random.Random(workload), count):
        await _judge(judge, schedule)
        if tell is not None:
            tell(schedule)
    return count


async def _judge(judge: Judge, schedule: Schedule) -> None:
    try:
        await judge.judge(schedule)
    except Exception as error:
        error.add_note(f"replay it with: pytest tests/crash --crash-schedule={schedule}")
        raise


def replay(schedule: Schedule) -> None:
    """Judge one power cut."""
    trio.run(_replay, schedule)


async def _replay(schedule: Schedule) -> None:
    await _judge(Judge(await make_recording(schedule.workload)), schedule)
