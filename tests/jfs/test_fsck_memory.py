"""What a check keeps in mind beyond its share of memory waits in a temporary file, and changes no finding."""

import os
import random
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from jfs import fsck_census, fsck_examine
from jfs.device import BLOCK_BYTES
from jfs.errors import DeviceError
from jfs.freemap import FreeMap
from jfs.fsck import check, repair
from jfs.fsck_blocks import BlockUse
from jfs.fsck_census import Census
from jfs.fsck_codes import Finding
from jfs.fsck_links import check_links
from jfs.fsck_scratch import Scratch
from jfs.layout import GROUP_BLOCKS, ROOT_INO
from tests.jfs.fsck_damages import Damage
from tests.jfs.fsck_damages_names import ALL_DAMAGES
from tests.jfs.fsck_world import build, read_all

REGULAR, DIRECTORY = 8, 4


def in_order(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return sorted((one.code, one.place, one.sentence) for one in findings)


def cramp(patch: pytest.MonkeyPatch) -> None:
    """Next to no memory, and every inode in a share of its own."""
    patch.setattr(fsck_examine, "SHARE_INODES", 1)
    patch.setattr(fsck_examine, "CENSUS_BYTES", 100)
    patch.setattr(fsck_census, "NEIGHBOURS_BITS", 0)


@pytest.mark.parametrize("case", ALL_DAMAGES[::6], ids=lambda case: case.__name__)
async def test_findings_do_not_depend_on_memory(case: Damage, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await build()
    await case(world)
    expected = in_order(check(world.device))
    spilled = 0
    append = Scratch.append

    def count(scratch: Scratch, data: bytes | bytearray) -> int:
        nonlocal spilled
        spilled += 1
        return append(scratch, data)

    monkeypatch.setattr(Scratch, "append", count)
    cramp(monkeypatch)
    assert in_order(check(world.device)) == expected
    assert spilled > 100
    assert all(finding.repaired for finding in await repair(world.device))
    assert check(world.device) == []
    assert await read_all(world.device) == world.content


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_census_is_bounded() -> None:
    """Ten times the files, the same memory."""

    def look(files: int) -> None:
        census = Census(files, 1000, 100_000)
        census.add_inode(ROOT_INO, DIRECTORY, 2, names=files)
        for ino in range(100, 100 + files):
            census.add_name(ROOT_INO, ino << 8, ino, REGULAR)
        for ino in range(100, 100 + files):
            census.add_inode(ino, REGULAR, 1, ROOT_INO, ino << 8)
        unreachable: list[int] = []
        assert list(check_links(census, unreachable, lambda _: None)) == []
        assert not unreachable

    small = peak_bytes(lambda: look(4_000))
    large = peak_bytes(lambda: look(40_000))
    assert large < 1.5 * small
    assert large < 1 << 20


@pytest.mark.parametrize("inodes", [-1, 0, 1 << 63])
def test_a_wrong_number_of_inodes_costs_nothing(inodes: int) -> None:
    census = Census(inodes, 1, 1000)
    census.add_inode(ROOT_INO, DIRECTORY, 2, names=1)
    census.add_name(ROOT_INO, 256, 17, REGULAR)
    census.add_inode(17, REGULAR, 1, ROOT_INO, 256)
    assert list(check_links(census, [], lambda _: None)) == []


def test_blocks_in_use_are_bounded() -> None:
    """The same answers with some groups in memory as with all."""
    groups = 300
    rng = random.Random(7)
    runs = [
        (rng.randrange(groups * GROUP_BLOCKS - 20_000), rng.choice((1, 9, 700, 20_000))) for _ in range(2000)
    ]

    def made(memory_groups: int) -> BlockUse:
        free_map = FreeMap(groups * GROUP_BLOCKS, 64, lambda group: None, groups * GROUP_BLOCKS)
        return BlockUse(free_map, memory_groups)

    few, every = made(4), made(groups)
    assert [few.claim(*run) for run in runs] == [every.claim(*run) for run in runs]
    assert list(few.used_runs()) == list(every.used_runs())
    assert list(few.differences()) == list(every.differences())
    assert peak_bytes(lambda: sum(few.claim(*run) == [] for run in runs)) < 60_000


def test_no_room_for_the_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(DeviceError, match="TMPDIR"):
        Scratch().append(bytes(BLOCK_BYTES))


def test_the_temporary_file_goes_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.listdir("/proc/self/fd")
    scratch = Scratch()
    assert scratch.read(scratch.append(b"what was written"), 4) == b"what"
    assert os.listdir(tmp_path) == []
    del scratch
    assert os.listdir("/proc/self/fd") == before
