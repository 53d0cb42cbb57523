"""A host that refuses to keep what a pair is: the copy goes on, and what is newest is kept in the end."""

import logging

import pytest
import trio

from replication import pair_keeper
from replication.pair import Event, Kind, Pair, State
from replication.pair_keeper import PairKeeper
from replication.state import StateError
from replication.sync_ledger import SyncLedger
from tests.replication.sync_pair import until


async def test_of_what_could_not_be_kept_the_newest_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pair_keeper, "RETRY_SECONDS", 0.001)
    kept: list[Pair] = []
    full = True

    def keep(pair: Pair) -> None:
        if full:
            raise StateError("no space left")
        kept.append(pair)

    keeper = PairKeeper(keep)
    first = Pair(Kind.ASYNC, State.DUPLEX_PENDING, 1, "behind")
    second = first.after(Event.IN_STEP, "level", 2)
    third = second.after(Event.UNREACHABLE, "gone", 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        with caplog.at_level(logging.WARNING):
            keeper(first)
            keeper(second)
            await trio.sleep(0.02)
        assert not kept
        assert len(caplog.records) == 1  # told once, not at every try
        full = False
        await until(lambda: kept == [second])
        keeper(third)
        assert kept == [second, third]
        await trio.sleep(0.02)
        assert kept == [second, third]
        nursery.cancel_scope.cancel()


def test_what_the_secondary_is_told_counts_only_when_it_is_on_record() -> None:
    """Else the next mount would believe that the secondary knows of writes without it."""
    kept: list[bool] = []
    full = True

    def keep(told: bool) -> None:
        if full:
            raise OSError("no space left")
        kept.append(told)

    ledger = SyncLedger("sync", protect=True, told=True, on_told=keep, pair=None, on_pair=None)
    with pytest.raises(OSError, match="no space left"):
        ledger._tell(False)
    full = False
    ledger._tell(False)
    assert kept == [False]
