"""The synchronous copy brings a secondary level: by positions, by a whole copy, by comparison."""

import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import cast

import pytest
import trio
import trio.lowlevel
import trio.testing

from replication.channel import Channel
from replication.frames import Buffer, total_bytes
from replication.pair import Kind, Pair, State
from replication.roles import Roles
from tests.replication.sync_pair import SIZE, VOLUME, Secondary, Writer, blocks, now, until
from vsap.positions import WritePositions


async def test_without_protection_writes_go_on_and_positions_bring_it_level(tmp_path: Path) -> None:
    """The queue has forgotten what the secondary lacks: only the written blocks are copied."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(), protect=False)
        async with secondary.up():
            nursery.start_soon(copy.run)
            await until(lambda: copy.in_step)
            await copy.wait_received(writer.write(1, blocks(range(1, 200))))
        await until(lambda: not copy.in_step)
        assert now(copy.unprotected)
        for number in range(100):
            sequence = writer.write(number % 7 + 300, blocks([number]))
            with trio.fail_after(5):
                await copy.wait_received(sequence)
                await copy.wait_durable(sequence)
        writer.discard(3)
        writer.common_flush = writer.queue.next_sequence - 1
        writer.queue.forget(writer.common_flush)
        untouched = bytes(secondary.area.data[50 * 4096 : 60 * 4096])
        secondary.area.data[50 * 4096 : 51 * 4096] = b"?" * 4096  # would be mended by a full copy
        async with secondary.up():
            await until(lambda: copy.in_step)
            assert not now(copy.unprotected)
            assert secondary.area.data[50 * 4096 : 51 * 4096] == b"?" * 4096
            secondary.area.data[50 * 4096 : 60 * 4096] = untouched
            assert secondary.area.data == writer.area.data
            assert secondary.record.received_sequence == writer.queue.next_sequence - 1
            assert now(secondary.record.facts.in_step)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("memory_entries", "most"), [(1 << 18, 1.1), (32, 1.2)])
async def test_a_resync_sends_what_changed_and_little_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_entries: int, most: float
) -> None:
    """Random blocks, some twice, some as they were: also where old positions were folded into chunks."""
    secondary, writer = Secondary(tmp_path), Writer()
    sent, dialled = [0], list[Channel]()
    send_nowait = Channel.send_nowait

    def counted(channel: Channel, buffers: Sequence[Buffer]) -> None:
        send_nowait(channel, buffers)
        sent[0] += total_bytes(buffers) if channel in dialled else 0

    async def dial() -> Channel:
        dialled.append(await cast(Callable[[], Awaitable[Channel]], secondary.dialer())())
        return dialled[-1]

    monkeypatch.setattr(Channel, "send_nowait", counted)
    with closing(
        WritePositions.open(tmp_path / "p", VOLUME, size_bytes=SIZE, memory_entries=memory_entries)
    ) as positions:
        writer.known_after = positions.ranges_after
        async with trio.open_nursery() as nursery:
            copy = writer.make_copy(dial, protect=False)
            async with secondary.up():
                nursery.start_soon(copy.run)
                await copy.wait_received(writer.write(0, blocks(range(1, 2000))))
                await until(lambda: copy.in_step)
            await until(lambda: not copy.in_step)
            changed = Random(4).sample(range(1, 1999), 300)
            for number in [*changed, *changed[:50]]:
                positions.append(writer.write(number, blocks([200 + number % 50])), number * 4096, 4096)
            same = next(number for number in range(1, 1999) if number not in changed)
            positions.append(writer.write(same, blocks([same + 1])), same * 4096, 4096)
            writer.queue.forget(writer.queue.next_sequence - 1)
            differing = sum(
                writer.area.data[at : at + 4096] != secondary.area.data[at : at + 4096]
                for at in range(0, SIZE, 4096)
            )
            assert differing > 250
            sent[0] = 0
            async with secondary.up():
                await until(lambda: copy.in_step)
                assert secondary.area.data == writer.area.data
            assert differing * 4096 < sent[0] < differing * 4096 * most
            nursery.cancel_scope.cancel()


async def test_an_empty_secondary_is_copied_while_writes_go_on(tmp_path: Path) -> None:
    """The initial copy: zeros do not travel, writes made meanwhile arrive too."""
    secondary, writer = Secondary(tmp_path), Writer()
    for number in range(200):
        writer.write(number * 3, blocks([number + 1]))
    writer.queue.forget(200)
    copy = writer.make_copy(secondary.dialer())
    async with secondary.up(), trio.open_nursery() as nursery:
        nursery.start_soon(copy.run)
        await until(lambda: copy.pair.state is State.INITIAL_COPYING)
        assert now(copy.unprotected)
        for number in range(300):
            writer.write(number * 5, blocks([number]))
            await trio.lowlevel.checkpoint()
        await until(lambda: copy.in_step)
        assert not now(copy.unprotected)
        await copy.wait_received(writer.queue.next_sequence - 1)
        assert secondary.area.data == writer.area.data
        nursery.cancel_scope.cancel()


async def test_an_interrupted_copy_is_no_state_and_goes_on(tmp_path: Path) -> None:
    """The secondary dies in mid-copy: it says so, and the copy is not begun again."""
    secondary, writer = Secondary(tmp_path), Writer()
    for number in range(4):
        writer.write(number * 512, blocks(range(number, number + 512)))
    writer.queue.forget(4)
    copy = writer.make_copy(secondary.dialer())
    async with trio.open_nursery() as nursery:
        async with secondary.up():
            nursery.start_soon(copy.run)
            await until(lambda: copy._resync is not None and copy._resync.copied_bytes > 1 << 20)
            if copy.in_step:
                pytest.fail("the copy was over before it could be interrupted")
        await until(lambda: copy.pair.state is State.FAILURE_SUSPEND)
        before = copy._resync
        assert before is not None
        assert not now(secondary.receiver.consistent)
        copied = before.copied_bytes
        writer.write(7, blocks([99]))
        secondary.record.close()
        secondary.open_record()
        async with secondary.up():
            await until(lambda: copy.in_step)
            assert now(before.done)
            assert 1 << 20 < copied < SIZE
            assert before.copied_bytes == SIZE  # nothing that was acknowledged travelled again
            assert secondary.area.data == writer.area.data
            assert now(secondary.receiver.consistent)
        nursery.cancel_scope.cancel()


async def test_what_is_written_while_the_copy_ends_is_acknowledged_too(tmp_path: Path) -> None:
    """Between the end of the copy and the word that it is in step writes arrive, and nothing after them."""
    secondary, writer = Secondary(tmp_path), Writer()
    ends, last_flush = threading.Event(), threading.Event()

    def hold() -> None:
        last_flush.set()
        ends.wait(20)

    async with trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(), protect=False, protect_timeout_seconds=60.0)
        async with secondary.up():
            nursery.start_soon(copy.run)
            await copy.wait_received(writer.write(0, blocks(range(1, 200))))
            await until(lambda: copy.in_step)
        await until(lambda: not copy.in_step)
        writer.queue.forget(writer.write(7, blocks([99])))
        secondary.area.before_flush = hold
        async with secondary.up():
            await until(last_flush.is_set)
            last = writer.write(8, blocks([98]))
            await until(lambda: secondary.record.copy_sequence == last)
            await trio.testing.wait_all_tasks_blocked(0.05)  # the writer has the answer, too early for it
            secondary.area.before_flush = None
            ends.set()
            await until(lambda: copy.in_step)
            with trio.fail_after(10):
                await copy.wait_received(last)
                copy.request_flush(last)
                await copy.wait_durable(last)
        nursery.cancel_scope.cancel()


async def test_what_is_not_known_is_compared_and_only_differences_travel(tmp_path: Path) -> None:
    """The positions are gone too: hashes find the blocks that differ."""
    secondary, writer = Secondary(tmp_path), Writer(positions_known=False)
    async with trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer(), protect=False)
        async with secondary.up():
            nursery.start_soon(copy.run)
            await copy.wait_received(writer.write(0, blocks(range(1, 500))))
            await until(lambda: copy.in_step)
        await until(lambda: not copy.in_step)
        for number in range(5):
            writer.write(number * 100, blocks([200]))
        writer.queue.forget(writer.queue.next_sequence - 1)
        resyncs = []
        async with secondary.up():
            await until(lambda: copy._resync is not None or copy.in_step)
            resyncs.append(copy._resync)
            await until(lambda: copy.in_step)
            assert secondary.area.data == writer.area.data
        assert resyncs[0] is not None
        assert resyncs[0].copied_bytes == 5 * 4096
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("positions_known", [True, False])
async def test_a_gap_in_the_queue_while_connected(tmp_path: Path, positions_known: bool) -> None:
    """The stream fell behind and the queue forgot: a copy, which does not take the secondary for empty."""
    secondary, writer = Secondary(tmp_path), Writer(positions_known=positions_known)
    async with secondary.up(), trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        nursery.start_soon(copy.run)
        await until(lambda: copy.in_step)
        await copy.wait_received(writer.write(0, blocks(range(1, 300))))
        assert copy._stream is not None
        copy._stream.live = False
        writer.discard(0, 100)
        last = writer.write(500, blocks([5]))
        writer.queue.forget(last)
        await until(lambda: copy._resync is not None)
        assert not now(copy.unprotected)
        await until(lambda: copy.in_step)
        assert secondary.area.data == writer.area.data
        assert secondary.record.received_sequence == last
        nursery.cancel_scope.cancel()


# -- a site that holds nothing, in an epoch that began with something

SECOND = Roles(epoch=2, writer="primary", sync_to="sync", async_to="async", start_sequence=4)


def empty_secondary(tmp_path: Path) -> tuple[Secondary, Writer]:
    """A writer whose epoch began with a full area, nothing written since; a site that was made anew."""
    secondary, writer = Secondary(tmp_path), Writer(common_flush=4)
    secondary.roles = SECOND
    for number in range(4):
        writer.write(number * 512, blocks(range(number, number + 512)))
    writer.queue.forget(4)
    secondary.record.reset(0, 0, has_volume=False)
    return secondary, writer


async def test_a_site_that_holds_nothing_is_in_step_only_after_a_whole_copy(tmp_path: Path) -> None:
    secondary, writer = empty_secondary(tmp_path)
    copy = writer.make_copy(secondary.dialer(), roles=SECOND)
    async with secondary.up(), trio.open_nursery() as nursery:
        nursery.start_soon(copy.run)
        await until(lambda: copy.in_step)
        assert secondary.area.data == writer.area.data
        nursery.cancel_scope.cancel()


async def test_a_first_copy_that_another_mount_finishes_is_whole(tmp_path: Path) -> None:
    """The process that began the copy is gone: what it had left to do is found out again."""
    secondary, writer = empty_secondary(tmp_path)
    async with secondary.up():
        async with trio.open_nursery() as nursery:
            first = writer.make_copy(secondary.dialer(), roles=SECOND)
            nursery.start_soon(first.run)
            await until(lambda: first._resync is not None and first._resync.copied_bytes > 1 << 20)
            if first.in_step:
                pytest.fail("the copy was over before it could be interrupted")
            nursery.cancel_scope.cancel()
        await until(lambda: not secondary.receiver.connected)
        async with trio.open_nursery() as nursery:
            second = writer.make_copy(secondary.dialer(), roles=SECOND)
            nursery.start_soon(second.run)
            await until(lambda: second.in_step)
            assert secondary.area.data == writer.area.data
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("created", [False, True])
async def test_a_site_that_lost_its_disk_is_waited_for_unless_the_pair_is_created_anew(
    tmp_path: Path, created: bool
) -> None:
    """Protection was promised: only an operator who creates the pair again gives it up for the copy."""
    secondary, writer = empty_secondary(tmp_path)
    state = State.SIMPLEX if created else State.FAILURE_SUSPEND
    pair = Pair(Kind.SYNC, state, 1, "as it was")
    copy = writer.make_copy(secondary.dialer(), roles=SECOND, pair=pair)
    async with secondary.up(), trio.open_nursery() as nursery:
        nursery.start_soon(copy.run)
        copy.resume("asked for")
        await until(lambda: copy.pair.state is State.INITIAL_COPYING and copy._resync is not None)
        assert now(copy.unprotected) is created
        last = writer.write(3, blocks([77]))
        await copy.wait_received(last)
        assert now(copy.in_step) is not created
        await until(lambda: copy.in_step)
        assert secondary.area.data == writer.area.data
        nursery.cancel_scope.cancel()
