"""Power cuts while fsck repairs: the volume is as it was or repaired, and another repair ends the work."""

import random
from collections.abc import Awaitable, Callable
from stat import S_IFREG

import pytest

from jfs.filesystem import FileSystem
from jfs.fsck import check, repair
from jfs.replay import read_superblock
from jfs.store import Store
from tests.conftest import run_seed
from tests.crash.images import Images
from tests.crash.schedule import Schedule
from tests.devices import CrashDevice
from tests.jfs.fsck_damages_names import ALL_DAMAGES
from tests.jfs.fsck_world import ROOT, World, build, flip, read_all

CUTS, SOAK_CUTS = 6, 300
_worlds: list[World] = []


async def lost_node(world: World) -> None:
    flip(world.device, read_superblock(world.device).tree_root)


async def damaged_log(world: World) -> None:
    """In the first of several segments, with data, changes and removals behind the damage."""
    store = await Store.open(world.device)
    fs = FileSystem(store)
    places = []
    for number in range(60):
        node = fs.make(ROOT, b"log %d" % number, S_IFREG | 0o644)
        fs.write(node.ino, 0, bytes((number,)) * 9000)
        if number % 3 == 2:
            fs.unlink(ROOT, b"log %d" % (number - 2))
        places.append(store.volume.writer().place.block)
        await fs.commit()
    flip(world.device, places[random.Random(run_seed()).randrange(40)], 100)


Case = Callable[[World], Awaitable[object]]
DAMAGES: list[Case] = [*ALL_DAMAGES, lost_node, damaged_log]


async def fresh_world() -> World:
    """The same volume each time, made once."""
    if not _worlds:
        _worlds.append(await build())
    return _worlds[0].copy()


@pytest.mark.parametrize("case", DAMAGES, ids=lambda case: case.__name__)
async def test_a_power_cut_while_repairing(case: Case) -> None:
    await cut_repairs(case, CUTS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", DAMAGES, ids=lambda case: case.__name__)
async def test_soak(case: Case) -> None:
    await cut_repairs(case, SOAK_CUTS)


async def cut_repairs(case: Case, cuts: int) -> None:
    world = await fresh_world()
    await case(world)
    before = {(one.code, one.place) for one in check(world.device)}
    device = CrashDevice(world.device.size_bytes, dict(world.device.blocks))
    await repair(device)
    wanted = await read_all(device)
    chance = random.Random(f"{case.__name__} {run_seed()}")
    images = Images(device)
    for point in sorted(chance.randint(0, len(device.history)) for _ in range(cuts)):
        schedule = Schedule(case.__name__, point, chance.randrange(1000))
        image = images.image(schedule, chance)
        found = {(one.code, one.place) for one in check(image)}
        # The first checkpoint repairs, the second only gives blocks back.
        assert found == before or {code for code, _ in found} <= {"map-free-as-used"}, str(schedule)
        await repair(image)
        assert check(image) == [], str(schedule)
        assert await read_all(image) == wanted, str(schedule)
