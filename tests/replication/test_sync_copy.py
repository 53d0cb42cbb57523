"""The synchronous copy over loopback sockets: killed and brought back at every stage."""

from pathlib import Path

import pytest
import trio

from jfs.errors import DeviceError
from replication.pair import State
from replication.roles import Roles
from tests.replication.sync_pair import Secondary, Writer, blocks, identity, until


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


async def test_a_secondary_that_lost_its_memory_gets_all_since_the_flush(tmp_path: Path) -> None:
    """The secondary's host crashes: what it had received and not flushed is sent again."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        async with secondary.up():
            nursery.start_soon(copy.run)
            flushed = writer.write(1, blocks([1]))
            await copy.wait_received(flushed)
            await until(lambda: copy.in_step)
            copy.request_flush(flushed)
            await copy.wait_durable(flushed)
            last = writer.write(2, blocks([2, 3]))
            await copy.wait_received(last)
        incarnation = secondary.record.incarnation
        secondary.crash_host()
        assert secondary.record.incarnation != incarnation
        assert secondary.area.data != writer.area.data
        await until(lambda: not copy.in_step)
        async with secondary.up():
            await until(lambda: copy.in_step)
            assert copy.durable_sequence == last
            assert secondary.area.durable == writer.area.data
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
