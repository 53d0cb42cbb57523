"""The asynchronous copy under random death of either end, with writes going on: the far site is always the
stream at exactly the position it reports (P1, P5, P6), and never before what it acknowledged.
"""

import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel

from jfs.errors import CorruptionError, DeviceError
from replication import difference
from replication.channel import Channel
from replication.difference import ROUNDS_MAX
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.pair import Kind, Pair, State
from replication.position import EpochStart, Position, Remedy, Standing
from replication.ranges import Range
from replication.set_journal import JournalError
from replication.set_receiver import NotConsistent, SetReceiver
from replication.shipper import Shipper
from tests.replication.far_pair import (
    BLOCK,
    BLOCKS,
    SIZE,
    VOLUME,
    Target,
    Writer,
    blocks_that_differ,
    channel_pair,
)
from tests.replication.sync_pair import until
from vsap.entry import Entry

FIRST = (EpochStart(1, 0),)
WRITTEN_MEANWHILE = 3000
"""Then the application rests: a copy that it outruns on a slow machine would never end."""


def new_receiver(target: Target, epoch: int = 1) -> SetReceiver:
    return SetReceiver(
        target.area,
        target.open(),
        volume=VOLUME,
        epoch=lambda: epoch,
        flush_bytes=6 * BLOCK,
        flush_seconds=0.005,
    )


def new_shipper(
    writer: Writer,
    dial_to: "Link",
    history: tuple[EpochStart, ...] = FIRST,
) -> Shipper:
    async def ranges_for(remedy: Remedy, far: Position) -> list[Range]:
        """As sharp as the contract allows: nothing that was written after this moment is named."""
        if remedy is Remedy.ALLOCATED:
            return [(0, SIZE)]
        stream = writer.stream[far.sequence : writer.queue.eligible]
        return [(entry.offset, entry.length) for entry in stream if entry.kind != 3]

    return Shipper(
        writer.queue,
        writer.area,
        dial_to.dial,
        volume=VOLUME,
        history=history,
        ranges_for=ranges_for,
        pair=Pair(Kind.ASYNC, State.INITIAL_COPYING, 0, "new"),
    )


class Link:
    """Connections from a shipper to a receiver, in one nursery."""

    def __init__(self, receiver: SetReceiver, nursery: trio.Nursery) -> None:
        self.receiver = receiver
        self.nursery = nursery
        self.channel: Channel | None = None

    async def dial(self) -> Channel:
        ours, theirs = channel_pair()
        self.channel = ours
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, channel: Channel) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.run)
                with contextlib.suppress(PeerUnreachable, PeerRefused, RemoteProtocolError):
                    await self.receiver.serve(channel)
                channel.close()
        finally:
            channel.close()


@asynccontextmanager
async def following(writer: Writer, target: Target) -> AsyncIterator[tuple[Shipper, SetReceiver, Link]]:
    """Shipper and receiver at work; both die when the block ends."""
    receiver = new_receiver(target)
    async with trio.open_nursery() as nursery:
        link = Link(receiver, nursery)
        shipper = new_shipper(writer, link)
        nursery.start_soon(receiver.run)
        nursery.start_soon(shipper.run)
        yield shipper, receiver, link
        nursery.cancel_scope.cancel()


async def promoted(target: Target) -> Position:
    """The position of a far site whose daemon was started again and promoted. NotConsistent."""
    receiver = new_receiver(target)
    position: Position | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        with contextlib.suppress(NotConsistent):
            position = await receiver.promote()
        nursery.cancel_scope.cancel()
    if position is None:
        raise NotConsistent("the initial copy was broken off")
    return position


async def level(shipper: Shipper, writer: Writer, seconds: float = 5.0) -> None:
    """Wait until the far site has everything that is eligible, durable and applied."""

    def is_level() -> bool:
        wanted = writer.queue.eligible
        return (
            shipper.durable is not None
            and shipper.durable.sequence >= wanted
            and shipper.applied_sequence >= wanted
        )

    await until(is_level, seconds)


def assert_is_stream(target: Target, writer: Writer, position: Position) -> None:
    differing = blocks_that_differ(target.area.content, writer.states[position.sequence])
    assert not differing, f"blocks {differing} are not those of the stream at {position}"


async def one_life(seed: int) -> None:
    """Rounds of shipping, each ended by the death of both processes, perhaps of the far host."""
    chance = random.Random(seed)
    writer = Writer(chance)
    target = Target(chance, None if chance.random() < 0.25 else Position(1, 0))
    acknowledged = 0
    for _ in range(3):
        target.host.count = 0
        target.host.die_at = chance.choice([None, chance.randrange(1, 60), chance.randrange(1, 800)])
        try:
            async with following(writer, target) as (shipper, _receiver, link):
                # So that a queue of some entries is a long one, or is not.
                shipper._set_bytes = chance.choice([BLOCK, 8 * BLOCK, 8 << 20])
                shipper._gathered_bytes = shipper._most_gathered = chance.choice([8 * BLOCK, 1 << 20])
                may_drop = 0.1
                for _ in range(chance.choice([5, 30, 100])):
                    writer.step()
                    await trio.sleep(0.002 if shipper.copying else chance.choice([0, 0, 0.001]))
                    if chance.random() < may_drop:
                        may_drop /= 20
                        writer.queue.drop(chance.randint(0, writer.queue.eligible))
                    if chance.random() < 0.03 and link.channel is not None:
                        link.channel.close()
                    shipper.notify()
                    if shipper.durable is not None:
                        acknowledged = max(acknowledged, shipper.durable.sequence)
        except JournalError:
            assert target.host.dead
        target.revive(power_cut=chance.random() < 0.6)
        try:
            position = await promoted(target)
        except NotConsistent:
            assert not acknowledged  # an initial copy was broken off, and the site says so
            continue
        assert_is_stream(target, writer, position)
        assert acknowledged <= position.sequence <= writer.queue.eligible, (acknowledged, position)


@pytest.mark.parametrize("number", range(25))
async def test_any_death_leaves_a_state_of_the_stream(number: int, seed: int) -> None:
    await one_life(seed * 1000 + number)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
async def test_many_deaths(seed: int) -> None:
    for number in range(2000):
        await one_life(seed * 100_000 + number)


async def test_the_far_site_follows_and_the_queue_is_trimmed(seed: int) -> None:
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    async with following(writer, target) as (shipper, _, _link):
        for _ in range(50):
            writer.write()
            writer.acknowledge()
            shipper.notify()
            await trio.lowlevel.checkpoint()
        await level(shipper, writer)
        assert shipper.pair.state is State.DUPLEX
        assert target.area.content == writer.states[50]
        await until(lambda: writer.queue.oldest == 51)
        lag = shipper.lag()
        assert (lag.sent.entries, lag.durable.entries, lag.applied.entries) == (0, 0, 0)
        writer.write()
        lag = shipper.lag()
        assert lag.durable.entries == 1
        assert lag.durable.bytes == writer.stream[-1].payload_length
        assert lag.sent.entries == 1
    assert shipper.judgement is not None
    assert shipper.judgement.standing is Standing.CONTIGUOUS


async def test_what_is_not_eligible_is_never_shipped(seed: int) -> None:
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    for _ in range(20):
        writer.write()
    writer.push()
    writer.acknowledge(11)
    async with following(writer, target) as (shipper, receiver, _link):
        await level(shipper, writer)
        await trio.sleep(0.1)
        assert receiver.durable == Position(1, 11)
        assert target.area.content == writer.states[11]


async def test_a_gap_is_closed_by_a_difference_copy(seed: int) -> None:
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    async with following(writer, target) as (shipper, _, _link):
        for _ in range(10):
            writer.write()
        writer.acknowledge()
        await level(shipper, writer)
    for _ in range(30):
        writer.write()
    writer.acknowledge()
    writer.queue.drop(35)
    async with following(writer, target) as (shipper, receiver, _link):
        await level(shipper, writer)
        assert shipper.last_copy is not None
        assert 0 < shipper.last_copy.copied_bytes <= SIZE
        assert shipper.judgement is not None
        assert shipper.judgement.standing is Standing.GAP
        assert receiver.applied == Position(1, 40)
        assert target.area.content == writer.states[40]


async def test_a_new_far_site_gets_an_initial_copy_without_zeros(seed: int) -> None:
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance)
    for _ in range(4):
        writer.write()
    writer.acknowledge()
    writer.queue.drop(4)
    async with following(writer, target) as (shipper, receiver, _link):
        await level(shipper, writer)
        assert shipper.last_copy is not None
        assert shipper.last_copy.ranges_bytes == SIZE
        assert shipper.last_copy.hashed_bytes == SIZE
        used = sum(any(writer.states[4][at : at + BLOCK]) for at in range(0, SIZE, BLOCK))
        assert shipper.last_copy.copied_bytes == used * BLOCK < SIZE
        assert receiver.durable == Position(1, 4)
        assert target.area.content == writer.states[4]


@pytest.mark.parametrize("dies", ["far site", "writer", "connection"])
async def test_an_initial_copy_goes_on_where_it_was_broken_off(
    dies: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the far site had received whole does not travel again, whichever end died."""
    monkeypatch.setattr(difference, "PART_BYTES", 2 * BLOCK)
    monkeypatch.setattr(difference, "QUESTIONS_AT_ONCE", 1)
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance)
    while sum(any(writer.states[-1][at : at + BLOCK]) for at in range(0, SIZE, BLOCK)) < BLOCKS - 8:
        writer.write()
    writer.acknowledge()
    writer.queue.drop(writer.newest)
    read = writer.area.read

    def half(offset: int, length: int, /) -> bytes:
        if offset > SIZE // 2:
            raise DeviceError(5, "the first half is enough")
        return read(offset, length)

    monkeypatch.setattr(writer.area, "read", half)
    async with following(writer, target) as (shipper, receiver, link):
        await until(lambda: shipper.pair.state is State.FAILURE_SUSPEND)
        await receiver.settle()
        first = shipper.progress.copied_bytes
        missing = blocks_that_differ(target.area.content, writer.states[-1])
        assert 0 < len(missing) < BLOCKS - 8
        if dies == "connection":
            monkeypatch.setattr(writer.area, "read", read)
            await level(shipper, writer)
            assert link.channel is not None
            second = shipper.progress.copied_bytes
    if dies != "connection":
        monkeypatch.setattr(writer.area, "read", read)
        target.revive(power_cut=dies == "far site")
        missing = blocks_that_differ(target.area.content, writer.states[-1])
        async with following(writer, target) as (shipper, receiver, link):
            await level(shipper, writer)
            second = shipper.progress.copied_bytes
    assert first > 0
    assert second <= len(missing) * BLOCK
    assert target.area.content == writer.states[-1]


async def test_a_copy_is_exact_while_the_application_writes(seed: int) -> None:
    """P6, and P1 for what is read from an area that is ahead of C."""
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    for _ in range(60):
        writer.write()
    writer.acknowledge()
    writer.queue.drop(60)
    async with following(writer, target) as (shipper, receiver, _link):
        seen: set[int] = set()
        with trio.fail_after(60):
            while shipper.last_copy is None:
                if writer.newest < WRITTEN_MEANWHILE:
                    writer.write()
                    writer.push()
                if chance.random() < 0.5:
                    writer.acknowledge(chance.randint(writer.queue.eligible, writer.newest))
                await trio.lowlevel.checkpoint()
                if receiver.applied.sequence not in seen and receiver.applied == receiver.durable:
                    seen.add(receiver.applied.sequence)
        writer.acknowledge()
        await level(shipper, writer)
        assert target.area.content == writer.states[writer.newest]
    assert shipper.last_copy.position.sequence > 60


@pytest.mark.parametrize("outgrown", [1, 3, ROUNDS_MAX + 2])
async def test_a_queue_outgrown_during_a_copy_costs_another_round_and_not_the_copy(
    outgrown: int, seed: int
) -> None:
    """Where the application writes more than the link carries the copy is given up, and the pair says so."""
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    for _ in range(40):
        writer.write()
    writer.acknowledge()
    writer.queue.drop(40)
    left = outgrown
    aborted: list[str] = []
    async with following(writer, target) as (shipper, receiver, _link):
        listed = shipper._ranges_for

        async def list_and_outgrow(remedy: Remedy, far: Position) -> list[Range]:
            """The moment after a listing, when everything that is written is in the entries only."""
            nonlocal left
            ranges = await listed(remedy, far)
            if left:
                left -= 1
                for _ in range(5):
                    writer.write()
                writer.acknowledge()
                writer.queue.drop(writer.newest - chance.randrange(3))
            elif outgrown > ROUNDS_MAX and not aborted and "left the queue" in shipper.pair.reason:
                aborted.append(shipper.pair.reason)
            return ranges

        shipper._ranges_for = list_and_outgrow
        await level(shipper, writer)
        assert not left
        assert bool(aborted) is (outgrown > ROUNDS_MAX)
        assert shipper.last_copy is not None
        if outgrown <= ROUNDS_MAX:
            assert shipper.progress.rounds == outgrown
            assert receiver.applied == shipper.last_copy.position
        assert target.area.content == writer.states[writer.newest]


async def test_a_far_site_that_is_ahead_is_compared_whole(seed: int) -> None:
    """The far site took writes that the new writer never had: all blocks are compared, and it goes back."""
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    for _ in range(30):
        writer.write()
    writer.acknowledge()
    async with following(writer, target) as (shipper, _, _link):
        await level(shipper, writer)
    other = Writer(chance, epoch=2)
    for entry in writer.stream[:20]:
        other.stream.append(entry)
        other.states.append(writer.states[entry.sequence])
        other.queue.append(entry)
    other.acknowledge()
    other.queue.drop(20)
    other.write()
    other.acknowledge()
    receiver = new_receiver(target, epoch=2)
    async with trio.open_nursery() as nursery:
        link = Link(receiver, nursery)
        shipper = new_shipper(other, link, (EpochStart(1, 0), EpochStart(2, 20)))
        nursery.start_soon(receiver.run)
        nursery.start_soon(shipper.run)
        await level(shipper, other)
        assert shipper.judgement is not None
        assert shipper.judgement.standing is Standing.AHEAD
        assert receiver.applied == Position(2, 21)
        assert target.area.content == other.states[21]
        nursery.cancel_scope.cancel()


def test_the_model_has_enough_blocks() -> None:
    assert BLOCKS * BLOCK == SIZE


async def test_a_suspended_pair_drains_stops_and_goes_on(seed: int) -> None:
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    for _ in range(10):
        writer.write()
    writer.acknowledge()
    async with following(writer, target) as (shipper, receiver, _link):
        await until(lambda: shipper.pair.state is State.DUPLEX)
        shipper.suspend("an operator asked for it")
        await until(lambda: shipper.pair.state is State.SUSPEND)
        assert shipper.pair.reason == "an operator asked for it"
        assert receiver.durable == Position(1, 10)
        writer.write()
        writer.acknowledge()
        await trio.sleep(0.1)
        assert receiver.durable == Position(1, 10)
        shipper.resume("an operator asked for it")
        await level(shipper, writer)
        assert shipper.pair.state is State.DUPLEX
        assert target.area.content == writer.states[11]


async def test_a_pair_that_is_resumed_before_it_had_drained_is_duplex_again(seed: int) -> None:
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    async with following(writer, target) as (shipper, _receiver, _link):
        await until(lambda: shipper.pair.state is State.DUPLEX)
        for _ in range(10):
            writer.write()
        writer.acknowledge()
        shipper.suspend("an operator asked for it")
        assert shipper.pair.state is State.SUSPENDING
        shipper.resume("an operator asked for it")
        await until(lambda: shipper.pair.state is State.DUPLEX)
        await level(shipper, writer)
        assert target.area.content == writer.states[10]


async def test_what_this_site_cannot_read_is_told_and_tried_again(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    for _ in range(10):
        writer.write()
    writer.acknowledge()
    writer.queue.drop(10)
    read = writer.area.read

    def broken(offset: int, length: int, /) -> bytes:
        raise DeviceError(5, "the disk is broken")

    monkeypatch.setattr(writer.area, "read", broken)
    async with following(writer, target) as (shipper, _receiver, _link):
        await until(lambda: shipper.pair.state is State.FAILURE_SUSPEND)
        assert "the disk is broken" in shipper.pair.reason
        monkeypatch.setattr(writer.area, "read", read)
        await level(shipper, writer)
        assert target.area.content == writer.states[10]


async def test_damage_in_the_queue_is_replaced_by_a_difference_copy(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(1, 0))
    for _ in range(10):
        writer.write()
    writer.acknowledge()
    read = writer.queue.read

    def damaged(from_sequence: int, limit_bytes: int = 2 << 20) -> list[Entry]:
        if writer.queue.oldest <= 6:
            raise CorruptionError("entry 6 is not what was appended")
        return read(from_sequence, limit_bytes)

    monkeypatch.setattr(writer.queue, "read", damaged)
    async with following(writer, target) as (shipper, _receiver, _link):
        await level(shipper, writer)
        assert shipper.last_copy is not None
        assert target.area.content == writer.states[10]


async def test_a_superseded_writer_stops(seed: int) -> None:
    """The far site follows a newer epoch: nothing of ours reaches it, and the pair says so."""
    chance = random.Random(seed)
    writer, target = Writer(chance), Target(chance, Position(2, 4))
    for _ in range(10):
        writer.write()
    writer.acknowledge()
    async with following(writer, target) as (shipper, receiver, _link):
        await until(lambda: shipper.judgement is not None)
        await trio.sleep(0.05)
        assert receiver.durable == Position(2, 4)
        assert shipper.pair.state is State.FAILURE_SUSPEND
        assert "epoch 2" in shipper.pair.reason
        assert target.area.content == bytes(SIZE)
