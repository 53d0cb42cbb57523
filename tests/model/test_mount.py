"""Random operations on a real mount and on a plain directory: nothing differs at any step.

The mount ends and begins again in between, also by SIGKILL.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from jfs.device import FileDevice
from jfs.fsck import check
from tests.conftest import run_seed
from tests.model.machine import Machine
from tests.model.sides import Calls
from tests.system.plain_mount import Mount

EXAMPLES, SOAK_EXAMPLES, STEPS = 2, 200, 25


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    mount = Mount(tmp_path)
    try:
        mount.start(size="64M")
        yield mount
    finally:
        mount.clear_away()


def machine_on(mount: Mount) -> type[Machine]:
    """Every run of the machine works in a directory of its own."""
    numbers = itertools.count()

    class MountMachine(Machine):
        ours: Calls

        def begin_ours(self) -> None:
            self.ours = Calls(mount.path / str(next(numbers)))
            self.ours.root.mkdir()
            self.ours.root.chmod(0o755)

        def remount(self, *, clean: bool) -> None:
            if clean:
                mount.unmount()
            else:
                mount.kill()
                for descriptor in self.ours.files.values():
                    with suppress(OSError):  # of the mount that is gone
                        os.close(descriptor)
                self.ours.files.clear()
            mount.start()

        def end_ours(self) -> None:
            """What is left stays, for the check at the end."""

    return MountMachine


def run(mount: Mount, examples: int) -> None:
    run_state_machine_as_test(
        seed(run_seed())(machine_on(mount)),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            database=None,
            phases=[Phase.generate],  # a mount takes its time: no search for a shorter story
            suppress_health_check=list(HealthCheck),
            deadline=None,
        ),
    )
    mount.unmount()
    device = FileDevice(mount.image)
    try:
        assert check(device) == []
    finally:
        device.close()


@pytest.mark.fuse
def test_the_mount_does_what_a_directory_does(mount: Mount) -> None:
    run(mount, EXAMPLES)


@pytest.mark.fuse
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_soak(mount: Mount) -> None:
    run(mount, SOAK_EXAMPLES)
