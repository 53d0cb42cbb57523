"""When a queue is a long one, of which each block travels once, and what becomes of such a set."""

import random
from collections.abc import Sequence

import pytest

from replication import shipper as shipper_module
from replication.difference import send_piece
from replication.far_site import FarSite
from replication.position import Position
from replication.set_builder import Piece
from replication.set_journal import CheckedFrame, JournalledSet, SetJournal
from replication.shipper import LONG_SECONDS, LONG_SETS
from tests.replication.far_pair import BLOCK, BLOCKS, SIZE, Target, Writer
from tests.replication.test_async_copy import following, level


def overwritten(seed: int) -> Writer:
    """A writer with a long queue: each of a few blocks was written many times."""
    writer = Writer(random.Random(seed))
    while writer.newest < 400:
        writer.write()
    writer.acknowledge()
    return writer


async def test_of_a_long_queue_each_block_travels_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = overwritten(seed)
    target = Target(writer.chance, Position(1, 0))
    sent: list[Piece] = []

    async def sending(far: FarSite, piece: Piece) -> None:
        sent.append(piece)
        await send_piece(far, piece)

    monkeypatch.setattr(shipper_module, "send_piece", sending)
    async with following(writer, target) as (shipper, receiver, _link):
        shipper._set_bytes = 8 * BLOCK
        await level(shipper, writer)
        assert receiver.applied == Position(1, 400)
        assert sum(piece.length for piece in sent) <= SIZE
        assert target.area.content == writer.states[400]


@pytest.mark.parametrize("waits_ns", [0, int(LONG_SECONDS * 1e9) + 1000])
async def test_what_has_waited_for_long_is_a_long_queue(waits_ns: int, seed: int) -> None:
    """Also where not very much waits: the link is narrow, or was away."""
    writer = overwritten(seed)
    target = Target(writer.chance, Position(1, 0))
    waiting = writer.queue.counts().bytes
    async with following(writer, target) as (shipper, _receiver, _link):
        shipper._set_bytes = waiting // 2
        shipper._now_ns = lambda: 1000 + waits_ns
        assert shipper._is_long(1, 400) is (waits_ns > 0)
        shipper._set_bytes = waiting
        assert not shipper._is_long(1, 400)
        shipper._set_bytes = waiting // LONG_SETS - 1
        assert shipper._is_long(1, 400)
        assert not shipper._is_long(1, 20)  # a few entries that are large


async def test_a_gathered_set_that_does_not_get_through_is_smaller_the_next_time(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a link that breaks often still gets something through; afterwards it is as large as before."""
    writer = overwritten(seed)
    target = Target(writer.chance, Position(1, 0))
    breaks = 2

    async def sending(far: FarSite, piece: Piece) -> None:
        nonlocal breaks
        if breaks and shipper._gathered_last and far.channel.failure is None:
            breaks -= 1
            tried.append(shipper._gathered_bytes)
            far.channel.close("the link broke")
        await send_piece(far, piece)

    tried: list[int] = []
    monkeypatch.setattr(shipper_module, "send_piece", sending)
    async with following(writer, target) as (shipper, _receiver, _link):
        shipper._set_bytes = 2 * BLOCK
        shipper._gathered_bytes = shipper._most_gathered = 64 * BLOCK
        await level(shipper, writer)
        assert tried == [64 * BLOCK, 32 * BLOCK]
        assert target.area.content == writer.states[400]
        assert shipper._gathered_bytes in {32 * BLOCK, 64 * BLOCK}  # by how many sets it took


async def test_what_is_not_written_over_travels_as_it_was_written(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In many sets, so that the far site comes nearer step by step."""
    seen: set[int] = set()
    append = SetJournal.append

    def journalled(journal: SetJournal, frames: Sequence[CheckedFrame]) -> list[JournalledSet]:
        sets = append(journal, frames)
        seen.update(one.head.after.sequence for one in sets)
        return sets

    monkeypatch.setattr(SetJournal, "append", journalled)
    writer = Writer(random.Random(seed))
    monotonous = iter(range(BLOCKS))
    writer.chance.randrange = lambda *_: next(monotonous)  # type: ignore[method-assign]
    writer.chance.choice = lambda _: 1  # type: ignore[method-assign,assignment,return-value]
    writer.chance.random = lambda: 1.0  # type: ignore[method-assign]
    for _ in range(BLOCKS):
        writer.write()
    writer.acknowledge()
    target = Target(random.Random(seed), Position(1, 0))
    async with following(writer, target) as (shipper, _receiver, _link):
        shipper._set_bytes = 2 * BLOCK
        await level(shipper, writer)
        assert len(seen) > 2
        assert target.area.content == writer.states[BLOCKS]
