"""Power cuts at any point: what was committed is there, batches are whole, no block has two owners.

And the test bites: with any one of the rules of commit and checkpoint left out, it fails.
"""

from collections.abc import Iterator

import pytest

from jfs import checkpoint, log
from jfs.batch import Batch
from jfs.errors import CorruptionError
from jfs.freemap import FreeMap
from jfs.log import LogReader
from jfs.store import Store
from jfs.volume import Changes
from tests.jfs.crash_model import tell

STORIES = 60
MUTANT_STORIES = 250


@pytest.fixture(autouse=True)
def _keep_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stories set these; give them back afterwards."""
    monkeypatch.setattr(checkpoint, "SLICE_SECONDS", checkpoint.SLICE_SECONDS)
    monkeypatch.setattr(log, "PART_BYTES", log.PART_BYTES)


def stories(seed: int, part: int, count: int) -> Iterator[int]:
    return iter(range(seed * 1_000_000 + part * 1000, seed * 1_000_000 + part * 1000 + count))


@pytest.mark.parametrize("part", range(4))
def test_power_cuts(seed: int, part: int) -> None:
    for story in stories(seed, part, STORIES):
        try:
            tell(story)
        except BaseException as error:
            error.add_note(f"story {story}")
            raise


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_power_cuts_soak(seed: int) -> None:
    for story in stories(seed, 0, 100_000):
        tell(story)


async def no_flush(store: Store, changes: Changes) -> None:
    """Mutant: the batch may be durable before the new data it makes reachable."""


async def no_node_flush(store: Store) -> None:
    """Mutant: the superblock may be durable before the tree it points to."""


def free_at_once(free_map: FreeMap, start: int, count: int) -> None:
    """Mutant: freed blocks are allocatable before their freeing is durable."""
    free_map.set_free(start, count)


def follow_any(reader: LogReader, batch: Batch) -> bool:
    """Mutant: a batch of an earlier life with the right number continues the log."""
    return batch.lsn == reader.place.lsn


MUTANTS: dict[str, list[tuple[type, str, object]]] = {
    "data flush": [(Store, "_order_new_data", no_flush)],
    "node flush": [(Store, "_flush_nodes", no_node_flush)],
    "pinned frees": [(FreeMap, "pin", free_at_once), (FreeMap, "unpin", lambda *_: None)],
    "chain": [(LogReader, "_continues", follow_any)],
    "atomic parts": [(Batch, "more", property(lambda batch: False, lambda batch, value: None))],
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_left_out_is_noticed(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, attribute, mutant in MUTANTS[name]:
        monkeypatch.setattr(place, attribute, mutant)
    for story in stories(seed, 9, MUTANT_STORIES):
        try:
            tell(story)
        except (AssertionError, CorruptionError):
            return
        except BaseExceptionGroup as group:
            if group.subgroup((AssertionError, CorruptionError)) is None:
                raise
            return
    pytest.fail(f"without the rule '{name}' nothing went wrong in {MUTANT_STORIES} stories")
