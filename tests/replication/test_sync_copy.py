"""The synchronous copy over loopback sockets: killed and brought back at every stage."""

import errno
import random
import threading
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
import trio
import trio.lowlevel
import trio.testing
from trio.testing import wait_all_tasks_blocked

from jfs.errors import DeviceError
from replication.bodies import encode_write
from replication.channel import Channel
from replication.connections import connect, listen
from replication.errors import PeerRefused, PeerUnreachable
from replication.frames import FrameType, encode
from replication.handshake import await_hello, greet
from replication.messages import Welcome, encode_json
from replication.pair import Kind, Pair, State
from replication.roles import Roles
from replication.site_take_over import proof_of
from replication.sync_session import SyncSession
from tests.replication.sync_pair import ROLES, SIZE, VOLUME, Secondary, Writer, blocks, identity, now, until
from vsap.digest import digest_ranges


def _wait(event: threading.Event) -> None:
    event.wait(20)


async def test_writes_arrive_in_order_and_flush_makes_them_durable(tmp_path: Path) -> None:
    """Over TLS: every write is acknowledged, a flush makes all of them durable at the secondary."""
    secondary, writer = Secondary(tmp_path, identity("sync")), Writer()
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(identity("primary")))
        nursery.start_soon(copy.run)
        for number in range(1, 101):
            writer.write(number % 17, blocks([number]))
        last = writer.discard(3, 2)
        await copy.wait_received(last)
        assert secondary.area.data == writer.area.data
        await until(lambda: copy.in_step)
        last = writer.write(200, blocks([7]))
        copy.request_flush(last)
        await copy.wait_durable(last)
        assert secondary.area.durable == writer.area.data
        assert secondary.record.facts.durable_sequence == last
        assert copy.pair.state is State.DUPLEX
        nursery.cancel_scope.cancel()


async def test_what_was_missed_is_sent_again_from_the_queue(tmp_path: Path) -> None:
    """The secondary's process dies in mid-stream; it gets exactly what it lacks when it is back."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        async with secondary.up():
            nursery.start_soon(copy.run)
            await copy.wait_received(writer.write(1, blocks([1])))
            await until(lambda: copy.in_step)
        for number in range(2, 60):
            writer.write(number, blocks([number]))
        last = writer.queue.next_sequence - 1
        secondary.record.close()
        secondary.open_record()
        assert secondary.record.received_sequence == 1
        async with secondary.up():
            await copy.wait_received(last)
            await until(lambda: copy.in_step)
            assert secondary.area.data == writer.area.data
            assert secondary.record.received_sequence == last
        nursery.cancel_scope.cancel()


async def test_a_superseded_writer_is_refused_for_good(tmp_path: Path) -> None:
    """A fenced secondary answers with its roles; the writer refuses every write from then on."""
    secondary, writer = Secondary(tmp_path), Writer()
    newer = Roles(epoch=2, writer="sync", async_to="async", start_sequence=1)
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(), protect=False)
        nursery.start_soon(copy.run)
        await copy.wait_received(writer.write(1, blocks([1])))
        await until(lambda: copy.in_step)
        secondary.receiver.fence("site primary was superseded", newer)
        before = bytes(secondary.area.data)
        sequence = writer.write(2, blocks([2]))
        await until(lambda: copy.refusal() is not None)
        refusal = copy.refusal()
        assert refusal is not None
        assert "superseded" in refusal.sentence
        with pytest.raises(DeviceError, match="superseded"):
            await copy.wait_received(sequence)
        assert writer.superseded == [newer]
        assert secondary.area.data == before
        nursery.cancel_scope.cancel()


async def test_an_entry_longer_than_a_frame(tmp_path: Path) -> None:
    secondary, writer = Secondary(tmp_path), Writer()
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        nursery.start_soon(copy.run)
        await until(lambda: copy.in_step)
        await copy.wait_received(writer.write(1, blocks(range(1, 1300))))
        assert secondary.area.data == writer.area.data
        nursery.cancel_scope.cancel()


async def test_protection_refuses_and_resumes_by_itself(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """No secondary: a waiter hears a sentence after protect_timeout; writes resume when it is back."""
    secondary, writer = Secondary(tmp_path), Writer()
    reachable = False
    dial = secondary.dialer()

    async def dial_or_fail() -> object:
        if not reachable:
            raise PeerUnreachable("site sync at 192.0.2.1:7002 cannot be reached: no route")
        return await dial()  # type: ignore[misc]

    copy = writer.make_copy(dial_or_fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy.run)
        assert copy.refusal() is None
        sequence = writer.write(1, blocks([1]))
        with pytest.raises(DeviceError, match=r"site sync .*no route.*Failure-Suspend since.*daemon") as info:
            await copy.wait_received(sequence)
        assert info.value.errno == errno.EIO
        assert 10 <= trio.current_time() <= 13
        assert "\n" not in info.value.sentence
        with pytest.raises(DeviceError, match="no route"):
            await copy.wait_durable(sequence)
        assert copy.refusal() is not None
        assert not now(copy.unprotected)
        autojump_clock.autojump_threshold = float("inf")
        autojump_clock.rate = 100.0
        reachable = True
        async with secondary.up():
            await until(lambda: copy.in_step, 1000)
            assert copy.refusal() is None
            await copy.wait_received(sequence)
            assert secondary.area.data == writer.area.data
        nursery.cancel_scope.cancel()
    assert [pair.state for pair in writer.pairs][-2:] == [State.DUPLEX_PENDING, State.DUPLEX]


async def test_markers_digest_this_very_place_in_the_stream(tmp_path: Path) -> None:
    secondary, writer = Secondary(tmp_path, identity("sync")), Writer()
    ranges = [(0, 1 << 20), (2 << 20, 10 * 4096)]
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(identity("primary")))
        nursery.start_soon(copy.run)
        await until(lambda: copy.in_step)
        writer.write(3, blocks([3]))
        expected = digest_ranges(writer.area, ranges, 65536)
        sequence = writer.marker(ranges, 65536)
        writer.write(3, blocks([4]))
        with trio.fail_after(10):
            assert await copy.marker_digests(sequence) == expected
        assert digest_ranges(writer.area, ranges, 65536) != expected
        await copy.wait_received(sequence + 1)
        nursery.cancel_scope.cancel()


async def test_the_far_position_travels_in_the_stream(tmp_path: Path) -> None:
    secondary, writer = Secondary(tmp_path), Writer()
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        copy.far_position(1, 0)
        nursery.start_soon(copy.run)
        await copy.wait_received(writer.write(1, blocks([1])))
        copy.far_position(1, 1)
        await until(lambda: secondary.receiver.far_position == (1, 1))
        copy.far_position(1, 0)  # an older one changes nothing
        await copy.wait_received(writer.write(2, blocks([2])))
        assert secondary.receiver.far_position == (1, 1)
        assert secondary.far[-1] == (1, 1)
        nursery.cancel_scope.cancel()


async def test_flushes_do_not_hold_up_writes(tmp_path: Path) -> None:
    """While the secondary's disk flushes, later writes are received; FLUSHED covers only what was before."""
    secondary, writer = Secondary(tmp_path), Writer()
    released = threading.Event()
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        nursery.start_soon(copy.run)
        await until(lambda: copy.in_step)
        secondary.area.before_flush = lambda: _wait(released)
        first = writer.write(1, blocks([1]))
        copy.request_flush(first)
        await copy.wait_received(first)
        await trio.sleep(0.02)
        second = writer.write(2, blocks([2]))
        await copy.wait_received(second)
        assert copy.durable_sequence < first
        released.set()
        await copy.wait_durable(first)
        assert secondary.area.durable[4096:8192] == blocks([1])
        copy.request_flush(second)
        await copy.wait_durable(second)
        assert secondary.area.durable == writer.area.data
        nursery.cancel_scope.cancel()


async def test_a_failing_area_is_named(tmp_path: Path) -> None:
    """The secondary's disk fails: the writer's operator reads which site, and what its host said."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(), protect_timeout_seconds=0.2)
        nursery.start_soon(copy.run)
        await until(lambda: copy.in_step)
        secondary.area.fail = DeviceError(errno.ENOSPC, "no space left on device")
        sequence = writer.write(1, blocks([1]))
        with trio.fail_after(20), pytest.raises(DeviceError, match="area of site sync fails: no space"):
            await copy.wait_received(sequence)
        secondary.area.fail = None
        await until(lambda: copy.in_step and copy.refusal() is None)
        await copy.wait_received(sequence)
        assert secondary.area.data == writer.area.data
        nursery.cancel_scope.cancel()


async def test_a_secondary_that_stops_acknowledging_is_dropped(tmp_path: Path) -> None:
    """It pings and takes frames but acknowledges nothing: that is no better than being away."""
    writer = Writer()
    closed: list[str] = []

    async def handle(channel: Channel) -> None:
        hello = await await_hello(channel)
        channel.send_nowait(
            encode_json(Welcome(version=1, site="sync", roles=ROLES, has_volume=False), VOLUME.bytes, 1)
        )
        assert hello.protect
        try:
            while True:
                await channel.receive()
        except PeerUnreachable as error:
            closed.append(str(error))
            raise

    listener = await listen("127.0.0.1", 0, identity=None, plain=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handle)

        async def dial() -> Channel:
            return await connect("127.0.0.1", listener.port, identity=None, plain=True, expect="sync")

        copy = writer.make_copy(dial, protect_timeout_seconds=0.4)
        nursery.start_soon(copy.run)
        sequence = writer.write(1, blocks([1]))
        with trio.fail_after(20), pytest.raises(DeviceError, match="refused because site sync"):
            await copy.wait_received(sequence)
        await until(lambda: bool(closed))
        await until(lambda: any("acknowledged nothing" in pair.reason for pair in writer.pairs))
        listener.close()
        nursery.cancel_scope.cancel()


async def test_a_secondary_slower_than_the_writer(tmp_path: Path) -> None:
    """Far more is issued than the channel holds: the rest waits in the queue, nothing is lost or copied."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        nursery.start_soon(copy.run)
        await until(lambda: copy.in_step)
        data = blocks(range(256))
        for number in range(48):
            last = writer.write(number % 8 * 256, data)  # 48 MiB without giving the secondary a turn
            copy.request_flush(last)
            copy.far_position(1, number)
        assert copy._stream is not None
        assert copy._stream.sent < last
        await copy.wait_durable(last)
        assert secondary.area.durable == writer.area.data
        assert writer.queue.reads > 0
        assert copy.in_step
        nursery.cancel_scope.cancel()


async def test_a_newer_connection_replaces_the_older(tmp_path: Path) -> None:
    """The writer was killed and started again before the secondary noticed."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with secondary.up(), trio.open_nursery() as nursery:
        first = writer.make_copy(secondary.dialer())
        nursery.start_soon(first.run)
        await first.wait_received(writer.write(1, blocks([1])))
        await until(lambda: first.in_step)
        second = writer.make_copy(secondary.dialer())
        first._dial = trio.sleep_forever
        nursery.start_soon(second.run)
        await until(lambda: second.in_step and not first.in_step)
        await second.wait_received(writer.write(2, blocks([2])))
        assert secondary.area.data == writer.area.data
        nursery.cancel_scope.cancel()


async def test_a_clean_end_and_a_suspension_are_noted(tmp_path: Path) -> None:
    """What the secondary may conclude later: clean after a good-bye, not in step after a suspension."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with secondary.up():
        async with trio.open_nursery() as nursery:
            copy = writer.make_copy(secondary.dialer())
            nursery.start_soon(copy.run)
            await until(lambda: copy.in_step)
            assert now(secondary.record.facts.in_step)
            assert now(secondary.record.facts.protect)
            last = writer.write(1, blocks([1]))
            assert await copy.finish()
            # A flush that is asked for afterwards is answered by nobody.
            with trio.fail_after(5), pytest.raises(DeviceError, match="unmounted"):
                await copy.wait_durable(last + 1)
        assert now(secondary.record.facts.clean)
        assert secondary.record.facts.durable_sequence == last
        assert secondary.area.durable == writer.area.data
        async with trio.open_nursery() as nursery:
            copy = writer.make_copy(secondary.dialer())
            nursery.start_soon(copy.run)
            await until(lambda: copy.in_step)
            assert not now(secondary.record.facts.clean)
            await copy.suspend("for maintenance")
            assert not now(secondary.record.facts.in_step)
            assert now(copy.unprotected)
            await until(lambda: not secondary.receiver.connected)
            await wait_all_tasks_blocked()
            # That the conversation ended is no news: what the operator said stays on record.
            assert (copy.pair.state, copy.pair.reason) == (State.SUSPEND, "for maintenance")
            last = writer.write(2, blocks([2]))
            await copy.wait_received(last)
            copy.resume("maintenance is over")
            assert not now(copy.unprotected)
            await until(lambda: copy.in_step)
            assert secondary.area.data == writer.area.data
            nursery.cancel_scope.cancel()


async def test_who_waits_shielded_hears_that_the_copy_was_cancelled() -> None:
    """Another task of the mount process failed: a checkpoint, which is shielded, kept it from ending."""
    writer = Writer()

    async def dial() -> Channel:
        await trio.sleep_forever()
        raise AssertionError

    copy = writer.make_copy(dial)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(copy.run)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), pytest.raises(DeviceError, match="unmounted"):
                await copy.wait_durable(writer.write(1, blocks([1])))


async def test_a_pair_suspended_while_it_connects_does_not_come_into_step(tmp_path: Path) -> None:
    """The secondary would prove what is no longer so, and after the resync nobody would say Duplex."""
    secondary, writer = Secondary(tmp_path), Writer()
    connected, go_on = trio.Event(), trio.Event()

    async def dial() -> Channel:
        channel: Channel = await secondary.dialer()()  # type: ignore[misc]
        connected.set()
        await go_on.wait()
        return channel

    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(dial)
        nursery.start_soon(copy.run)
        await connected.wait()
        await copy.suspend("for maintenance", force=True)
        go_on.set()
        await until(lambda: bool(secondary.channels) and secondary.channels[0].failure is not None)
        assert not now(secondary.record.facts.in_step)
        assert copy.pair.state is State.SUSPEND
        copy.resume("maintenance is over")
        await until(lambda: copy.pair.state is State.DUPLEX)
        assert now(copy.in_step)
        nursery.cancel_scope.cancel()


async def test_a_flush_that_is_never_answered_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever loses it: who waits for it does not wait for ever, though the connection is alive."""
    secondary, writer = Secondary(tmp_path), Writer()
    real = SyncSession._answer_flush
    lost: list[int] = []

    async def lose_one(session: SyncSession, target: int, flags: int = 0, last: bool = False) -> None:
        if last or lost:
            await real(session, target, flags, last)
        else:
            lost.append(target)

    monkeypatch.setattr(SyncSession, "_answer_flush", lose_one)
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(), protect_timeout_seconds=0.1)
        nursery.start_soon(copy.run)
        await until(lambda: copy.in_step)
        last = writer.write(1, blocks([1]))
        copy.request_flush(last)
        with trio.fail_after(20):
            await copy.wait_durable(last)
        assert lost == [last]
        assert secondary.area.durable == writer.area.data
        nursery.cancel_scope.cancel()


async def test_suspending_an_unreachable_secondary_needs_force() -> None:
    writer = Writer()
    copy = writer.make_copy(trio.sleep_forever)
    with pytest.raises(PeerUnreachable, match="cannot be told"):
        await copy.suspend("no reason")
    assert not now(copy.unprotected)
    await copy.suspend("no reason", force=True)
    assert now(copy.unprotected)


@pytest.mark.parametrize("delete", [False, True])
async def test_a_secondary_that_was_away_is_told_when_it_is_back(tmp_path: Path, delete: bool) -> None:
    """Its pair was suspended or deleted with --force: else it could prove, wrongly, that nothing is lost."""
    secondary, writer = Secondary(tmp_path), Writer()
    copy = writer.make_copy(secondary.dialer())
    async with trio.open_nursery() as nursery:
        async with secondary.up():
            nursery.start_soon(copy.run)
            await until(lambda: copy.in_step)
            assert proof_of(secondary.record.facts, ROLES)[0]
        await until(lambda: not copy.in_step)
        await copy.suspend("the disk is dead", force=True, delete=delete)
        writer.write(1, blocks([1]))
        assert proof_of(secondary.record.facts, ROLES)[0], "it cannot know"
        async with secondary.up():
            await until(lambda: not proof_of(secondary.record.facts, ROLES)[0])
            assert copy.pair.state is (State.SIMPLEX if delete else State.SUSPEND)
            copy.resume("it is repaired")
            await until(lambda: copy.in_step)
            assert proof_of(secondary.record.facts, ROLES)[0]
            assert secondary.area.data == writer.area.data
        nursery.cancel_scope.cancel()


async def test_a_mount_tells_a_secondary_whose_pair_it_finds_suspended(tmp_path: Path) -> None:
    """Also where it was away as long as the mount before this one lived."""
    secondary, writer = Secondary(tmp_path), Writer()
    secondary.record.save(
        secondary.record.facts._replace(epoch=1, has_volume=True, in_step=True, protect=True)
    )
    pair = Pair(Kind.SYNC, State.SUSPEND, 1, "by hand")
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(), pair=pair)
        nursery.start_soon(copy.run)
        await until(lambda: not proof_of(secondary.record.facts, ROLES)[0])
        nursery.cancel_scope.cancel()


async def test_no_protection_only_after_the_secondary_was_told(tmp_path: Path) -> None:
    """A secondary that still believes the promise could prove "nothing lost" wrongly: it must hear first."""
    secondary, writer = Secondary(tmp_path), Writer()
    copy = writer.make_copy(secondary.dialer(), protect=False)
    assert not now(copy.unprotected)
    async with trio.open_nursery() as nursery:
        async with secondary.up():
            nursery.start_soon(copy.run)
            await until(lambda: copy.in_step)
            assert writer.told == [True]
            assert not now(secondary.record.facts.protect)
        await until(lambda: not copy.in_step)
        assert now(copy.unprotected)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("change", "why", "roles"),
    [
        ({"volume": str(UUID(int=5))}, "holds volume", None),
        ({"size_bytes": 4096}, "must have the size", ROLES),
        ({"roles": Roles(epoch=9, writer="primary", sync_to="sync")}, "epoch 9", ROLES),
    ],
)
async def test_a_writer_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], why: str, roles: Roles | None
) -> None:
    """With the roles of this site, unless they are those of another volume."""
    secondary, writer = Secondary(tmp_path), Writer()
    hello = msgspec.structs.replace(writer.make_copy(trio.sleep_forever)._hello(), **change)
    async with secondary.up():
        channel = await connect("127.0.0.1", secondary.port, identity=None, plain=True)
        with pytest.raises(PeerRefused, match=why) as info:
            await greet(channel, hello)
        channel.close()
        assert info.value.roles == roles


async def test_a_gap_and_a_write_outside_end_the_conversation(tmp_path: Path) -> None:
    secondary, writer = Secondary(tmp_path), Writer()
    hello = writer.make_copy(trio.sleep_forever)._hello()
    frames = {
        "was sent 5": encode_write(VOLUME.bytes, 1, 5, 0, 0, blocks([1])),
        "beyond the area": encode_write(VOLUME.bytes, 1, 1, SIZE, 0, blocks([1])),
        "of epoch 7": encode_write(VOLUME.bytes, 7, 1, 0, 0, blocks([1])),
        "no place": encode(FrameType.POSITION, VOLUME.bytes, 1, 0, bytes(24)),
    }
    async with secondary.up():
        for why, frame in frames.items():
            channel = await connect("127.0.0.1", secondary.port, identity=None, plain=True)
            assert (await greet(channel, hello)).received_sequence == 0
            channel.send_nowait(frame)
            count = len(secondary.sentences)
            await until(lambda count=count: len(secondary.sentences) > count)  # type: ignore[misc]
            assert why in secondary.sentences[-1]
            channel.close()
    assert secondary.area.data == bytes(SIZE)


async def test_streams_with_kills_at_random(tmp_path: Path) -> None:
    """Many short lives of the secondary, some with a crash of its host: it always ends up equal."""
    source = random.Random(20261122)
    secondary, writer = Secondary(tmp_path), Writer()
    copy = writer.make_copy(secondary.dialer())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy.run)
        for life in range(12):
            async with secondary.up():
                steps = source.randrange(5, 60)
                for _ in range(steps):
                    block = source.randrange(SIZE // 4096 - 8)
                    last = writer.write(block, blocks([source.randrange(256)] * source.randrange(1, 8)))
                    if source.random() < 0.2:
                        copy.request_flush(last)
                    if source.random() < 0.3:
                        await trio.lowlevel.checkpoint()
                if life % 3 == 0:
                    await until(lambda: copy.in_step)
            secondary.record.close()
            if source.random() < 0.4:
                secondary.open_record()
                secondary.crash_host()
            else:
                secondary.open_record()
        async with secondary.up():
            last = writer.write(0, blocks([1]))
            await until(lambda: copy.in_step and copy.received_sequence == last)
            assert secondary.area.data == writer.area.data
            assert secondary.record.received_sequence == last
        nursery.cancel_scope.cancel()
