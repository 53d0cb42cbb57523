"""Single flipped bits over whole volumes: mount, read, fsck and repair never fail in an unforeseen way, and
no answer about metadata is wrong in silence. A failure prints the volume, the block and the bit.
"""

import random
import time
from collections.abc import Callable
from types import ModuleType

import pytest

from jfs import batch, layout, tree
from jfs.log import LogReader
from tests.conftest import run_seed
from tests.crash.damage import Subject, examine, make_subject, subject_of
from tests.crash.test_sweep import program_name, random_name
from tests.jfs.fsck_world import build

SUBJECTS, FLIPS = 20, 250
LARGE_FLIPS = 400
SOAK_FLIPS = 200_000
REPAIR_SHARE = 0.1


async def flip_bits(subject: Subject, name: str, count: int) -> set[str]:
    """Examine so many flips; the kinds of ends that they had."""
    chance = random.Random(f"{name} {run_seed()}")
    ends = set()
    for _ in range(count):
        place, bit = subject.draw(chance)
        try:
            ends.add(await examine(subject, place, bit, with_repair=chance.random() < REPAIR_SHARE))
        except Exception as error:
            error.add_note(f"in {name}, block {place}, bit {bit}")
            raise
    return ends


def subject_name(number: int) -> str:
    return program_name(number // 4) if number % 4 == 3 else random_name(number + 500)


@pytest.mark.parametrize("number", range(SUBJECTS))
async def test_flipped_bits(number: int) -> None:
    """In volumes that were closed, and in such that a power cut left."""
    name = subject_name(number)
    ends = await flip_bits(await make_subject(name, clean=number % 2 == 0), name, FLIPS)
    assert {"unharmed", "refused"} <= ends


async def test_flipped_bits_in_a_tree_of_many_nodes() -> None:
    world = await build()
    ends = await flip_bits(await subject_of(world.device, set(), closed=True), "many nodes", LARGE_FLIPS)
    assert ends == {"unharmed", "found", "refused"}


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
async def test_soak(capsys: pytest.CaptureFixture[str]) -> None:
    began, flips, number = time.monotonic(), 0, 1000
    while flips < SOAK_FLIPS:
        name = subject_name(number)
        await flip_bits(await make_subject(name, clean=bool(number // 4 % 2)), name, 1000)
        flips, number = flips + 1000, number + 1
    with capsys.disabled():
        print(f"\ndamage: {flips} flipped bits in {time.monotonic() - began:.0f} s, seed {run_seed()}")


def believe(module: ModuleType) -> Callable[[pytest.MonkeyPatch], None]:
    """Mutant: a checksum that is right whatever it covers."""

    def break_rule(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(module, "xxh3_64_intdigest", lambda content: 0)

    return break_rule


def any_end_of_the_log(patch: pytest.MonkeyPatch) -> None:
    """Mutant: where the chain breaks, the log ends, whatever later batches know."""
    patch.setattr(LogReader, "_check_end", lambda *_: None)


MUTANTS = {
    "checksum of nodes": believe(tree),
    "checksum of batches": believe(batch),
    "checksum of superblocks": believe(layout),
    "end of the log": any_end_of_the_log,
}


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_check_left_out_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    error = await first_failure()
    assert error is not None, f"without the rule '{name}' nothing went wrong"
    assert "block" in error.__notes__[0]


async def first_failure() -> Exception | None:
    for number in range(2 * SUBJECTS):
        name = subject_name(number)
        subject = await make_subject(name, clean=number % 2 == 0)
        try:
            await flip_bits(subject, name, FLIPS)
        except Exception as error:
            return error
    return None
