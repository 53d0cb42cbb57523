"""What the peer says is heard in place, and what is wrong with it is heard by everybody."""

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from jfs import in_place
from jfs.in_place import InPlace
from replication.channel import Channel
from replication.errors import PeerUnreachable, RemoteProtocolError
from replication.frames import Frame, FrameType, encode
from replication.sync_copy import SyncCopy
from replication.sync_stream import SyncStream
from tests.replication.sync_pair import VOLUME, Writer

EPOCH = 1


@pytest.fixture(autouse=True)
def in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits in place lets the others here have their turn by and by."""
    monkeypatch.setattr(in_place, "TURN_SECONDS", 0.05)


def run(work: Callable[[Channel, socket.socket], Awaitable[None]], *, waits: bool = True) -> None:
    """`work` with a channel, in a run that waits in place or does not, and its peer, who is no task."""
    place = InPlace()

    async def main() -> None:
        if waits:
            place.begin()
        ours, theirs = socket.socketpair()
        with theirs:
            channel = Channel(ours, peer="sync")
            with trio.fail_after(20):
                await work(channel, theirs)
            channel.close()

    trio.run(main, instruments=[place])


def say(peer: socket.socket, kind: FrameType, sequence: int) -> None:
    peer.sendall(b"".join(encode(kind, VOLUME.bytes, EPOCH, sequence)))


class Reader:
    """A task that receives as the synchronous copy's does."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.failure: Exception | None = None

    async def run(self, channel: Channel) -> None:
        try:
            while True:
                self.frames += await channel.receive()
        except (PeerUnreachable, RemoteProtocolError) as error:
            self.failure = error


def test_frames_are_heard_once() -> None:
    async def work(channel: Channel, peer: socket.socket) -> None:
        reader = Reader()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run, channel)
            await trio.testing.wait_all_tasks_blocked()
            say(peer, FrameType.FLUSHED, 1)
            assert [frame.sequence for frame in channel.receive_in_place()] == [1]
            say(peer, FrameType.FLUSHED, 2)
            await trio.testing.wait_all_tasks_blocked()
            assert [frame.sequence for frame in reader.frames] == [2]
            nursery.cancel_scope.cancel()

    run(work)


def test_an_end_is_heard_by_everybody() -> None:
    async def work(channel: Channel, peer: socket.socket) -> None:
        reader = Reader()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run, channel)
            await trio.testing.wait_all_tasks_blocked()
            peer.close()
            with pytest.raises(PeerUnreachable, match="closed the connection"):
                channel.receive_in_place()
        assert isinstance(reader.failure, PeerUnreachable)

    run(work)


def test_without_a_place_nothing_is_taken() -> None:
    async def work(channel: Channel, peer: socket.socket) -> None:
        say(peer, FrameType.FLUSHED, 1)
        assert channel.receive_in_place() == []
        assert [frame.sequence for frame in await channel.receive()] == [1]

    run(work, waits=False)


def copy_on(channel: Channel, *, sent: int) -> SyncCopy:
    """A synchronous copy that is in step, on this channel."""
    writer = Writer()
    copy = writer.make_copy(lambda: None)
    copy._stream = SyncStream(
        channel,
        volume=VOLUME.bytes,
        epoch=EPOCH,
        queue=writer.queue,
        area=writer.area,
        sent=sent,
        newest=lambda: sent,
        copy_from=lambda: pytest.fail("nothing is copied here"),
    )
    copy._in_step = True
    return copy


def test_an_fsync_hears_its_answer_itself() -> None:
    async def work(channel: Channel, peer: socket.socket) -> None:
        copy = copy_on(channel, sent=7)
        await trio.testing.wait_all_tasks_blocked()
        say(peer, FrameType.FLUSHED, 7)
        with trio.testing.assert_no_checkpoints():
            await copy.wait_durable(7)
        assert copy.received_sequence == copy.durable_sequence == 7

    run(work)


@pytest.mark.parametrize(("kind", "sequence"), [(FrameType.FLUSHED, 8), (FrameType.HELLO, 0)])
def test_a_wrong_answer_ends_the_connection(kind: FrameType, sequence: int) -> None:
    async def work(channel: Channel, peer: socket.socket) -> None:
        copy = copy_on(channel, sent=7)
        reader = Reader()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run, channel)
            await trio.testing.wait_all_tasks_blocked()
            say(peer, kind, sequence)
            with trio.CancelScope() as scope:
                scope.cancel()  # it looks, and would wait
                await copy.wait_durable(7)
            assert scope.cancelled_caught
            assert copy.durable_sequence == 0
        assert isinstance(reader.failure, RemoteProtocolError)
        with pytest.raises(RemoteProtocolError):
            channel.send_nowait(encode(FrameType.FLUSH))

    run(work)
