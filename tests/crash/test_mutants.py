"""The sweep bites: with any one rule of commit, checkpoint, replay or allocation broken, it fails."""

import pytest

from jfs.errors import CorruptionError
from tests.crash.judge import Violation
from tests.crash.mutants import MUTANTS
from tests.crash.sweep import sweep

RECORDINGS, POINTS = 150, 60
# Where to begin: some rules matter only in few workloads, and looking for those takes its time.
FIRST = {
    "free_before_the_batch_is_durable": 27,
    "no_flush_of_the_superblock": 16,
    "old_nodes_free_at_once": 9,
    "size_before_the_data": 48,
}


def is_noticed(error: BaseException) -> bool:
    """Is this how the sweep fails: a violation, or a volume that cannot be read?"""
    if isinstance(error, BaseExceptionGroup):
        return any(is_noticed(one) for one in error.exceptions)
    return isinstance(error, Violation | CorruptionError)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    for number in range(FIRST.get(name, 0), RECORDINGS):
        try:
            sweep(f"random-{number}", POINTS)
        except BaseException as error:
            if not is_noticed(error):
                raise
            return
    pytest.fail(f"with '{name}' nothing went wrong in {RECORDINGS} recordings")
