"""One test a kind of damage: just that is found, repair makes the volume whole, everything else is intact."""

from pathlib import Path
from stat import S_IFREG

import pytest

from jfs import directory, xattrs
from jfs.filesystem import FileSystem
from jfs.fsck import CODES, check, repair
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.fsck_damages import Damage
from tests.jfs.fsck_damages_names import ALL_DAMAGES
from tests.jfs.fsck_world import (
    VOLUME,
    Builder,
    World,
    build,
    codes,
    name_of,
    read_all,
    set_name,
    use,
)

_world: list[World] = []


async def fresh_world() -> World:
    """The same volume each time, made once."""
    if not _world:
        _world.append(await build())
    return _world[0].copy()


@pytest.mark.parametrize("case", ALL_DAMAGES, ids=lambda case: case.__name__)
async def test_damage_is_found_and_repaired(case: Damage) -> None:
    world = await fresh_world()
    expected = await case(world)
    found = check(world.device)
    assert codes(found) == expected
    assert all(finding.repairable and not finding.repaired for finding in found)
    verdict = await repair(world.device)
    assert all(finding.repaired for finding in verdict)
    assert expected <= codes(verdict)
    assert check(world.device) == []
    assert await read_all(world.device) == world.content
    await use(world.device)
    assert check(world.device) == []
    assert await read_all(world.device) == world.content


async def test_every_code_has_a_damage() -> None:
    elsewhere = {
        "superblock-lost",
        "superblock-newer",
        "superblock-older",
        "area-truncated",
        "tree-node",
        "tree-shared",
    }
    seen: set[str] = set()
    for case in ALL_DAMAGES:
        seen |= await case(await fresh_world())
    assert seen | elsewhere == set(CODES)
    assert not seen & elsewhere


async def test_names_of_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names share a bucket where their hashes are equal; here they all are."""
    monkeypatch.setattr(directory, "name_hash", lambda name, seed: 7)
    device = MemoryDevice(8 << 20)
    await make_file_system(device, volume_uuid=VOLUME, epoch=1, label="one hash")
    world = World(device, {}, {})
    store = await Store.open(device)
    builder = Builder(world, FileSystem(store))
    for name in ("a", "b", "c"):
        builder.make(f"/{name}", S_IFREG, name.encode() * 100)
    await builder.file_system.close()
    assert check(device) == []
    entries = [await name_of(world, f"/{name}") for name in ("a", "b", "c")]
    slots = (1, 0, 1)
    await set_name(
        world, "/a", *(entry._replace(slot=slot) for entry, slot in zip(entries, slots, strict=True))
    )
    assert codes(check(device)) == {"name-slot"}
    await repair(device)
    assert check(device) == []
    assert await read_all(device) == world.content


async def test_more_attributes_than_can_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await fresh_world()
    monkeypatch.setattr(xattrs, "LIST_MAX", len("user.one") + 5)
    assert codes(check(world.device)) == {"xattr-invalid"}
    await repair(world.device)
    assert check(world.device) == []
    assert await read_all(world.device) == world.content


def test_the_page_and_the_codes_agree() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fsck.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line[:3] == "| `"
    ]
    assert rows == [[f"`{code.name}`", code.meaning, code.repair or "none"] for code in CODES.values()]
