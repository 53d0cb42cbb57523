"""Random operations through jfs's own interface and on a plain directory: nothing differs at any step."""

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import run_seed
from tests.model.machine import Machine
from tests.model.sides import Interface

EXAMPLES, SOAK_EXAMPLES, STEPS = 40, 3000, 40


class InterfaceMachine(Machine):
    """Jfs in memory."""

    ours: Interface

    def begin_ours(self) -> None:
        self.ours = Interface()

    def remount(self, *, clean: bool) -> None:
        self.ours.files.clear()
        self.ours.remount(clean=clean)

    def end_ours(self) -> None:
        self.ours.checked()


def run(examples: int) -> None:
    run_state_machine_as_test(
        seed(run_seed())(InterfaceMachine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            database=None,
            suppress_health_check=list(HealthCheck),
            deadline=None,
        ),
    )


def test_the_interface_does_what_a_directory_does() -> None:
    run(EXAMPLES)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_soak() -> None:
    run(SOAK_EXAMPLES)
