"""The receiver of sets: markers mean exactly their sequence, older epochs are refused, slow is not dead."""

import errno
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from jfs.errors import DeviceError
from replication import set_receiver
from replication.bodies import (
    Hashes,
    Marker,
    SetBegin,
    SetCommit,
    SetKind,
    encode_set_begin,
    encode_set_commit,
    encode_write,
)
from replication.channel import Channel
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.far_site import FarSite, open_far_site
from replication.frames import Frame, FrameType
from replication.packing import UNPACKED_BYTES_MAX, Packer
from replication.position import NOWHERE, Position
from replication.set_journal import CheckedFrame, JournalError, JournalledSet, SetJournal
from replication.set_receiver import NotConsistent, SetReceiver
from tests.replication.far_pair import BLOCK, SIZE, VOLUME, Target, channel_pair
from tests.replication.sync_pair import until
from vsap.digest import digest_ranges
from vsap.entry import decode_marker, marker_entry

WHOLE = [(0, SIZE)]


@asynccontextmanager
async def receiving(
    target: Target, *, epoch: int = 1, our_epoch: int = 1, backlog_bytes: int = 1 << 20, silence: float = 5.0
) -> AsyncIterator[tuple[FarSite, SetReceiver]]:
    """A receiver, and a connection to it as the writer of `our_epoch` sees it."""
    receiver = SetReceiver(
        target.area,
        target.open(1 << 20),
        volume=VOLUME,
        epoch=lambda: epoch,
        backlog_bytes=backlog_bytes,
        flush_seconds=60,
    )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receiver.run)
        try:
            async with connected(receiver, nursery, our_epoch, silence) as far:
                yield far, receiver
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def connected(
    receiver: SetReceiver,
    nursery: trio.Nursery,
    epoch: int = 1,
    silence: float = 5.0,
    newest: Position | None = None,
) -> AsyncIterator[FarSite]:
    ours, theirs = channel_pair(silence)

    async def serve() -> None:
        try:
            async with trio.open_nursery() as inner:
                inner.start_soon(theirs.run)
                try:
                    await receiver.serve(theirs, newest)
                except (PeerUnreachable, PeerRefused, RemoteProtocolError):
                    inner.cancel_scope.cancel()
                inner.cancel_scope.cancel()
        finally:
            theirs.close()

    nursery.start_soon(serve)
    async with open_far_site(ours, volume=VOLUME, epoch=epoch) as far:
        yield far


async def send(far: FarSite, sequence: int, block: int, *, marker: bool = False) -> None:
    """One set with one block full of the sequence."""
    await far.begin(SetKind.ENTRIES, sequence, sequence)
    await far.data(sequence, block * BLOCK, sequence, bytes([sequence]) * BLOCK)
    if marker:
        entry = marker_entry(sequence, sequence, WHOLE, 4 * BLOCK)
        ranges, leaf_bytes = decode_marker(entry.payload)
        await far.marker(sequence, Marker(sequence, leaf_bytes, tuple(ranges)))
    await far.commit(sequence)


async def applied(receiver: SetReceiver, sequence: int) -> None:
    await until(lambda: receiver.applied.sequence >= sequence)


async def test_a_marker_is_digested_at_exactly_its_sequence(seed: int) -> None:
    target = Target(random.Random(seed), Position(1, 0))
    async with receiving(target) as (far, receiver):
        await far.first_report()
        expected = bytearray(SIZE)
        for sequence in range(1, 9):
            await send(far, sequence, sequence, marker=sequence == 4)
            if sequence <= 4:
                expected[sequence * BLOCK : (sequence + 1) * BLOCK] = bytes([sequence]) * BLOCK
        await applied(receiver, 8)
        kept = receiver.digests(4)
        position, at_rest = await receiver.digests_at_rest(WHOLE, 4 * BLOCK)

    class Then:
        def read(self, offset: int, length: int, /) -> bytes:
            return bytes(expected[offset : offset + length])

    assert kept == digest_ranges(Then(), WHOLE, 4 * BLOCK)
    assert position == Position(1, 8)
    assert at_rest == digest_ranges(target.area, WHOLE, 4 * BLOCK) != kept
    assert receiver.digests(8) is None


@pytest.mark.parametrize("later", [0, 3])
async def test_a_marker_applied_again_after_a_restart_is_not_digested_over_later_writes(
    later: int, seed: int
) -> None:
    """The area already holds what came after the marker; its digests cry wolf, unless it was the last."""
    target = Target(random.Random(seed), Position(1, 0))
    async with receiving(target) as (far, receiver):
        await far.first_report()
        await send(far, 1, 1, marker=True)
        for sequence in range(2, 2 + later):
            await send(far, sequence, sequence)
        await applied(receiver, 1 + later)
        first = receiver.digests(1)
    assert first is not None
    target.revive(power_cut=False)
    async with receiving(target) as (_far, again):
        await again.settle()
        assert again.applied == Position(1, 1 + later)
        assert again.digests(1) == (first if later == 0 else None)


async def test_an_area_without_room_is_written_again_when_there_is_room(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the journal holds is applied by itself; meanwhile nothing is promoted, and status says why."""
    target = Target(random.Random(seed), Position(1, 0))
    monkeypatch.setattr(set_receiver, "RETRY_SECONDS", 0.01)
    write = target.area.write

    def full(offset: int, data: bytes | bytearray | memoryview) -> None:
        if offset == 2 * BLOCK:
            raise DeviceError(errno.ENOSPC, "no space left")
        write(offset, data)

    monkeypatch.setattr(target.area, "write", full)
    async with receiving(target) as (far, receiver):
        await far.first_report()
        for sequence in (1, 2, 3):
            await send(far, sequence, sequence)
        await until(lambda: receiver.durable == Position(1, 3) and receiver.hindrance is not None)
        assert "no space left" in str(receiver.hindrance)
        with pytest.raises(JournalError, match="no space left"):
            await receiver.promote()
        monkeypatch.setattr(target.area, "write", write)
        await until(lambda: receiver.hindrance is None)
        assert await receiver.promote() == Position(1, 3)
    assert [target.area.read(block * BLOCK, 1) for block in (1, 2, 3)] == [b"\1", b"\2", b"\3"]


async def test_a_full_disk_under_the_journal_is_told_to_the_writer_until_there_is_room(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, at once and at each further connection, before any set is asked for."""
    target = Target(random.Random(seed), Position(1, 0))
    write, full = target.files.write, True

    def writing(name: str, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(name, offset, buffers)

    async with receiving(target) as (far, receiver), trio.open_nursery() as nursery:
        await far.first_report()
        await send(far, 1, 1)
        await far.wait_durable(Position(1, 1))
        monkeypatch.setattr(target.files, "write", writing)
        await send(far, 2, 2)
        with pytest.raises(PeerRefused, match="No space left on device"):
            await far.wait_durable(Position(1, 2))
        assert "No space left on device" in str(receiver.no_room)
        for _ in range(2):
            async with connected(receiver, nursery) as again:
                with pytest.raises(PeerRefused, match="No space left on device"):
                    await again.first_report()
        full = False
        async with connected(receiver, nursery) as last:
            assert await last.first_report() == Position(1, 1)
            assert receiver.no_room is None
            await send(last, 2, 2)
            await last.wait_durable(Position(1, 2))
        await applied(receiver, 2)
    assert "room" not in target.files.files


async def test_an_older_epoch_is_refused(seed: int) -> None:
    target = Target(random.Random(seed), Position(1, 0))
    async with receiving(target, epoch=2, our_epoch=1) as (far, receiver):
        await far.first_report()
        await send(far, 1, 1)
        with pytest.raises(PeerRefused, match="of epoch 1 for a site that is in epoch 2"):
            await far.wait_durable(Position(1, 1))
        assert receiver.durable == Position(1, 0)


async def test_a_promoted_site_takes_no_more_and_an_incomplete_set_is_gone(seed: int) -> None:
    target = Target(random.Random(seed), Position(1, 0))
    async with receiving(target) as (far, receiver):
        await far.first_report()
        await send(far, 1, 1)
        await far.wait_durable(Position(1, 1))
        await far.begin(SetKind.ENTRIES, 2, 0)
        await far.data(2, 2 * BLOCK, 0, bytes([2]) * 100 * BLOCK)
        assert await receiver.promote() == Position(1, 1)
        assert await receiver.promote() == Position(1, 1)
        assert target.area.content[2 * BLOCK : 3 * BLOCK] == bytes(BLOCK)
        assert bytes(target.area.file.durable) == target.area.content
        with pytest.raises((PeerUnreachable, PeerRefused)):
            await far.wait_durable(Position(1, 2))
        async with trio.open_nursery() as nursery:
            with pytest.raises(PeerRefused, match="took over"):
                async with connected(receiver, nursery) as second:
                    await second.wait_durable(Position(1, 2))
        await receiver.reset(Position(2, 5))
        assert receiver.durable == receiver.applied == Position(2, 5)


async def test_half_an_initial_copy_is_never_promoted(seed: int) -> None:
    target = Target(random.Random(seed))
    async with receiving(target) as (far, receiver):
        assert await far.first_report() == NOWHERE
        await far.begin(SetKind.PART, 0, 0)
        await far.data(0, 0, 0, bytes([9]) * BLOCK)
        await far.commit(0, part=True)
        await until(lambda: any(target.area.content))
        with pytest.raises(NotConsistent):
            await receiver.promote()
    assert target.area.content[:BLOCK] == bytes([9]) * BLOCK


async def test_hashes_are_answered_against_everything_journalled(seed: int) -> None:
    target = Target(random.Random(seed), Position(1, 0))
    ours = bytearray(SIZE)
    async with receiving(target) as (far, _receiver):
        await far.first_report()
        for sequence in range(1, 30):
            await send(far, sequence, sequence)
            ours[sequence * BLOCK : (sequence + 1) * BLOCK] = bytes([sequence]) * BLOCK
        ours[7 * BLOCK] ^= 1

        class Ours:
            def read(self, offset: int, length: int, /) -> bytes:
                return bytes(ours[offset : offset + length])

        digests = tuple(digest_ranges(Ours(), WHOLE, BLOCK))
        assert await far.ask(Hashes(0, SIZE, BLOCK, digests)) == ((7 * BLOCK, BLOCK),)


async def test_a_source_that_is_held_back_does_not_think_the_site_dead(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the backlog waits to be applied for longer than the silence that would end the connection."""
    target = Target(random.Random(seed), Position(1, 0))
    write = target.area.write
    gate = trio.Event()

    def slow(offset: int, data: bytes | bytearray | memoryview, /) -> None:
        trio.from_thread.run(gate.wait)
        write(offset, data)

    monkeypatch.setattr(target.area, "write", slow)
    monkeypatch.setattr("replication.set_receiver.HEARTBEAT_SECONDS", 0.05)
    async with receiving(target, backlog_bytes=3 * BLOCK, silence=0.4) as (far, receiver):
        await far.first_report()
        for sequence in range(1, 5):
            await send(far, sequence, sequence)
        await trio.sleep(1.0)
        assert far.failure is None
        assert receiver.applied == Position(1, 0)
        gate.set()
        await applied(receiver, 4)
        await send(far, 5, 5)
        await far.wait_durable(Position(1, 5))


async def test_what_packed_frames_expand_to_is_bounded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred bytes become half a MiB: a receiver that cannot store takes no more of them than fit."""
    monkeypatch.setattr(set_receiver, "PENDING_BYTES", 1 << 20)
    target = Target(random.Random(seed), Position(1, 0))
    stored, append, take = threading.Event(), SetJournal.append, SetReceiver._take
    most = 0

    async def taking(self: SetReceiver, channel: Channel, frame: Frame) -> None:
        nonlocal most
        await take(self, channel, frame)
        most = max(most, self._pending_bytes)

    monkeypatch.setattr(SetReceiver, "_take", taking)

    def blocked(self: SetJournal, frames: Sequence[CheckedFrame]) -> list[JournalledSet]:
        assert stored.wait(60)
        return append(self, frames)

    monkeypatch.setattr(SetJournal, "append", blocked)
    begin = encode_set_begin(VOLUME, 1, 1, SetBegin(1, 0, 1, SetKind.ENTRIES))
    data = encode_write(VOLUME, 1, 1, 0, 1, bytes(40 * BLOCK), FrameType.SET_DATA)
    sent = 60
    packed = Packer().pack(VOLUME, 1, [*data, *data, *data])
    async with receiving(target) as (far, receiver):
        await far.first_report()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.channel.send, [*begin, *(list(packed) * sent)])
            await until(lambda: most > 1 << 20)
            stored.set()
            await far.channel.send(
                encode_set_commit(VOLUME, 1, 1, SetCommit(3 * sent, 3 * sent * 40 * BLOCK))
            )
        await applied(receiver, 1)
    assert most <= (1 << 20) + UNPACKED_BYTES_MAX


async def test_a_newer_connection_takes_the_place_of_the_old_one(seed: int) -> None:
    target = Target(random.Random(seed), Position(1, 0))
    async with receiving(target) as (far, receiver):
        await far.first_report()
        await send(far, 1, 1)
        await far.wait_durable(Position(1, 1))
        await far.begin(SetKind.ENTRIES, 2, 0)
        await far.data(2, 0, 0, bytes(100 * BLOCK))
        async with trio.open_nursery() as nursery, connected(receiver, nursery) as second:
            assert await second.first_report() == Position(1, 1)
            await send(second, 2, 2)
            await second.wait_durable(Position(1, 2))
            with pytest.raises(PeerUnreachable):
                await far.wait_durable(Position(1, 3))
        await applied(receiver, 2)


def held_bytes(receiver: SetReceiver) -> int:
    """Bodies of frames that are in memory until they are applied, also of the set that is not whole."""
    whole = [frame for frames in receiver._held if frames is not None for frame in frames]
    return sum(len(frame.body) for frame in [*whole, *(receiver._begun or ())])


async def test_what_is_held_until_it_is_applied_is_bounded(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many sets, and one that is larger than the bound: what is more is read from the journal again."""
    bound = 6 * BLOCK
    monkeypatch.setattr(set_receiver, "HELD_BYTES", bound)
    target = Target(random.Random(seed), Position(1, 0))
    write, gate = target.area.write, threading.Event()

    def blocked(offset: int, data: bytes | bytearray | memoryview, /) -> None:
        assert gate.wait(60)
        write(offset, data)

    monkeypatch.setattr(target.area, "write", blocked)
    most = kept_sets = 0
    keep = SetReceiver._keep

    def keeping(self: SetReceiver, batch: Sequence[CheckedFrame]) -> list[list[Frame] | None]:
        nonlocal most, kept_sets
        kept = keep(self, batch)
        self._held.extend(kept)
        most = max(most, held_bytes(self))
        for _ in kept:
            self._held.pop()
        kept_sets += len(kept)
        return kept

    monkeypatch.setattr(SetReceiver, "_keep", keeping)
    async with receiving(target) as (far, receiver):
        await far.first_report()
        for sequence in range(1, 20):
            await send(far, sequence, sequence)
        await far.begin(SetKind.ENTRIES, 20, 20)
        for block in range(20, 40):
            await far.data(20, block * BLOCK, 20, bytes([20]) * BLOCK)
        await far.commit(20)
        await far.wait_durable(Position(1, 20))
        assert kept_sets == 20
        assert bound // 2 < most <= bound
        gate.set()
        await applied(receiver, 20)
        await until(lambda: receiver._held_bytes == 0)
    blocks = [target.area.content[block * BLOCK] for block in range(40)]
    assert blocks == [0, *range(1, 20), *([20] * 20)]


async def test_a_site_follows_only_when_nothing_is_missing(seed: int) -> None:
    """Not while a copy is under way, nor before it is known whether there will be one."""
    target = Target(random.Random(seed), Position(1, 3))
    digest = digest_ranges(target.area, WHOLE, BLOCK)
    async with receiving(target) as (far, receiver):
        await far.first_report()
        seen = [receiver.follows]
        await far.begin(SetKind.DIFFERENCE, 0, 0)
        await far.data(0, 0, 0, bytes(BLOCK))
        await far.ask(Hashes(0, SIZE, BLOCK, tuple(digest)))
        seen.append(receiver.follows)
        await far.wait_durable(await far.commit(7))
        seen.append(receiver.follows)
        await send(far, 8, 8)
        await far.wait_durable(Position(1, 8))
        seen.append(receiver.follows)
        await far.ask(Hashes(0, SIZE, BLOCK, tuple(digest)))
        seen.append(receiver.follows)
        far.channel.close()
        async with trio.open_nursery() as nursery, connected(receiver, nursery) as second:
            await second.first_report()
            seen.append(receiver.follows)
            await send(second, 9, 9)
            await second.wait_durable(Position(1, 9))
            seen.append(receiver.follows)
        await until(lambda: not receiver.follows)
    assert seen == [False, False, True, True, False, False, True]


@pytest.mark.parametrize("newest", [Position(1, 5), Position(1, 6), Position(2, 5), None])
async def test_a_site_that_has_all_there_is_follows_from_the_first(
    newest: Position | None, seed: int
) -> None:
    target = Target(random.Random(seed), Position(1, 5))
    async with receiving(target) as (first, receiver), trio.open_nursery() as nursery:
        await first.first_report()
        async with connected(receiver, nursery, newest=newest) as far:
            await far.first_report()
            assert receiver.follows is (newest == Position(1, 5))
