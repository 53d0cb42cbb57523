"""Power cuts at any point of any workload: the volume mounts, is sound, and holds all that was promised.

Each power cut is named by one short string, which a failure prints. To see it again:

    pytest tests/crash --crash-schedule=random-22:417:5
    TRISITE_CRASH_SCHEDULE=trace-git.3:96:12 pytest tests/crash

What the string says: schedule.py. What is checked: judge.py. What a power cut leaves: images.py.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import run_seed
from tests.crash.judge import Judge
from tests.crash.operations import OPERATION_BYTES, OPERATIONS
from tests.crash.programs import NAMES
from tests.crash.schedule import Schedule
from tests.crash.sweep import make_recording, points_of, replay, sweep

RANDOM_RECORDINGS, RANDOM_POINTS = 24, 100
PROGRAM_RECORDINGS, PROGRAM_POINTS = 2, 75
SCRIPTS, SCRIPT_POINTS = 40, 25
SOAK_POINTS = 200_000
SOAK_PROGRAM_SHARE = 10  # one recording in so many is a program


def random_name(number: int) -> str:
    """The name of a random workload of this run."""
    return f"random-{run_seed() * 1_000_000 + number}"


def program_name(number: int) -> str:
    """The name of a program of this run, its commits at other moments each time."""
    return f"trace-{NAMES[number % len(NAMES)]}.{run_seed() * 1000 + number // len(NAMES)}"


def test_one_schedule(crash_schedule: str | None) -> None:
    """The one asked for."""
    if crash_schedule is None:
        pytest.skip("no --crash-schedule was given")
    replay(Schedule.parse(crash_schedule))


@pytest.mark.parametrize("number", range(RANDOM_RECORDINGS))
def test_random_operations(number: int) -> None:
    sweep(random_name(number), RANDOM_POINTS)


@pytest.mark.parametrize("number", range(PROGRAM_RECORDINGS * len(NAMES)))
def test_programs(number: int) -> None:
    sweep(program_name(number), PROGRAM_POINTS)


def test_operations_that_hypothesis_finds() -> None:
    @settings(
        max_examples=SCRIPTS,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.tuples(st.integers(0, len(OPERATIONS) - 1), st.binary(min_size=3, max_size=3))))
    def judged(operations: list[tuple[int, bytes]]) -> None:
        script = b"".join(bytes((kind,)) + arguments for kind, arguments in operations)
        assert len(script) == OPERATION_BYTES * len(operations)
        sweep(f"script-{script.hex()}", SCRIPT_POINTS)

    judged()


FINGERPRINT = """
import sys, trio
from xxhash import xxh3_64_hexdigest
from tests.crash.sweep import make_recording
print(xxh3_64_hexdigest(repr(trio.run(make_recording, sys.argv[1]).device.history).encode()))
"""


def test_another_process_makes_the_same_recording() -> None:
    seen = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", FINGERPRINT, random_name(3)]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        root = Path(__file__).parents[2]
        seen.add(
            subprocess.run(command, env=environment, cwd=root, check=True, stdout=subprocess.PIPE).stdout
        )
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["random", "program"])
def test_a_schedule_says_it_all(kind: str) -> None:
    """The same string makes the same recording and leaves the same image, also when asked out of order."""
    name = random_name(7) if kind == "random" else program_name(1)
    first, second = (trio.run(make_recording, name) for _ in range(2))
    assert first.device.history == second.device.history
    schedules = list(points_of(first, random.Random(run_seed()), 10))
    forward = [Judge(first).image(one).blocks for one in schedules]
    judge = Judge(second)
    assert [judge.image(one).blocks for one in reversed(schedules)] == forward[::-1]
    assert [Schedule.parse(str(one)) for one in schedules] == schedules
    replay(schedules[0])


def test_what_is_no_schedule() -> None:
    for text in ("", "random-1:2", "random-1:x:3", "1:2:3:4"):
        with pytest.raises(ValueError, match="no crash schedule"):
            Schedule.parse(text)
    with pytest.raises(ValueError, match="no workload"):
        replay(Schedule("other-1", 2, 3))


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
def test_soak(capsys: pytest.CaptureFixture[str]) -> None:
    began, points, number = time.monotonic(), 0, 1000
    while points < SOAK_POINTS:
        if number % SOAK_PROGRAM_SHARE:
            points += sweep(random_name(number), RANDOM_POINTS)
        else:
            points += sweep(program_name(number // SOAK_PROGRAM_SHARE), RANDOM_POINTS)
        number += 1
    with capsys.disabled():
        print(f"\ncrash sweep: {points} power cuts in {time.monotonic() - began:.0f} s, seed {run_seed()}")
