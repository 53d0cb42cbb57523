"""A secondary that has lost what it had received and not flushed."""

from pathlib import Path

import trio

from replication.sync_copy import SyncCopy
from tests.replication.sync_pair import Secondary, Writer, blocks, until


async def write_durably(copy: SyncCopy, writer: Writer) -> None:
    """The first write of a pair: it is received, in step and flushed."""
    flushed = writer.write(1, blocks([1]))
    await copy.wait_received(flushed)
    await until(lambda: copy.in_step)
    copy.request_flush(flushed)
    await copy.wait_durable(flushed)


async def test_a_secondary_that_lost_its_memory_gets_all_since_the_flush(tmp_path: Path) -> None:
    """The secondary's host crashes: what it had received and not flushed is sent again."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        async with secondary.up():
            nursery.start_soon(copy.run)
            await write_durably(copy, writer)
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


async def test_what_a_disk_could_not_write_is_sent_again(tmp_path: Path) -> None:
    """A flush of the secondary fails, once: the host has forgotten the data and does not tell again."""
    secondary, writer = Secondary(tmp_path), Writer()
    async with trio.open_nursery() as nursery:
        copy = writer.make_copy(secondary.dialer())
        async with secondary.up():
            nursery.start_soon(copy.run)
            await write_durably(copy, writer)
            incarnation = secondary.record.incarnation
            last = writer.write(2, blocks([2, 3]))
            await copy.wait_received(last)
            secondary.area.fails_to_flush = True
            copy.request_flush(last)
            await copy.wait_durable(last)
            assert secondary.area.durable == writer.area.data
            assert secondary.record.incarnation != incarnation
        nursery.cancel_scope.cancel()
