"""The far link: the limit is kept for everything in sets, and nothing else stands behind it."""

import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from replication.bodies import POSITION_UNPACKS, SetKind, encode_position
from replication.bodies import Position as PositionBody
from replication.channel import Channel
from replication.errors import PeerUnreachable
from replication.far_link import LEAST_PORTION_BYTES, Compression, FarLink
from replication.far_site import FarSite, open_far_site
from replication.frames import Frame, FrameType, encode
from tests.replication.far_pair import BLOCK, VOLUME, channel_pair

KIB = 1 << 10


class Peer:
    """The far end of a connection, which takes down what came when."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.heard: list[tuple[float, Frame]] = []

    async def run(self) -> None:
        with contextlib.suppress(PeerUnreachable):
            while True:
                for frame in await self.channel.receive():
                    self.heard.append((trio.current_time(), frame))

    def count(self, kind: FrameType) -> int:
        return sum(frame.type is kind for _, frame in self.heard)


@asynccontextmanager
async def connected(link: FarLink, *, unpacks: bool = True) -> AsyncIterator[tuple[FarSite, Peer]]:
    ours, theirs = channel_pair()
    peer = Peer(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.run)
        nursery.start_soon(peer.run)
        async with open_far_site(ours, volume=VOLUME, epoch=1, link=link) as far:
            frame = b"".join(encode_position(VOLUME, 1, PositionBody(1, 5, 5)))
            if unpacks:
                theirs.send_nowait([frame])
            else:
                theirs.send_nowait([without_flags(frame)])
            await far.first_report()
            yield far, peer
            nursery.cancel_scope.cancel()
    theirs.close()


def without_flags(position: bytes) -> bytes:
    """The POSITION frame of a release that knows no SET_PACKED."""
    assert position[6:8] == POSITION_UNPACKS.to_bytes(2, "big")
    return b"".join(encode(FrameType.POSITION, VOLUME, 1, 5, position[64:]))


async def send_set(far: FarSite, content: bytes, sequence: int = 6) -> None:
    await far.begin(SetKind.COALESCED, sequence, 1)
    await far.data(sequence, 0, 1, content)
    await far.commit(sequence)


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_the_limit_is_kept_and_frames_come_evenly(
    compression: Compression, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Two MiB over 64 KiB/s take 32 s, and no second of them carries much more than its share."""
    link = FarLink(64 * KIB, compression)
    content = random.Random(seed).randbytes(2048 * KIB)
    async with connected(link) as (far, peer):
        started = trio.current_time()
        await send_set(far, content)
        await trio.testing.wait_all_tasks_blocked()
        took = trio.current_time() - started
        assert 30 < took < 34
        assert link.status().wire_bytes == pytest.approx(2048 * KIB, rel=0.05)
        for second in range(int(took)):
            bytes_then = sum(
                64 + len(frame.body) for at, frame in peer.heard if second <= at - started < second + 1
            )
            assert bytes_then <= 64 * KIB + 2 * LEAST_PORTION_BYTES


async def test_nothing_else_stands_behind_the_limit(autojump_clock: trio.testing.MockClock) -> None:
    """While minutes of data wait, the connection lives, an acknowledgement is heard and a refusal sent at
    once.
    """
    async with connected(FarLink(16 * KIB)) as (far, peer), trio.open_nursery() as nursery:
        nursery.start_soon(send_set, far, bytes(4096 * KIB))
        await trio.sleep(60)
        assert 0 < peer.count(FrameType.SET_DATA) < 70
        before = trio.current_time()
        peer.channel.send_nowait(encode_position(VOLUME, 1, PositionBody(1, 5, 5)))
        await far.changed()
        far.channel.send_nowait(encode_position(VOLUME, 1, PositionBody(1, 7, 7)))  # any frame out of turn
        while not peer.count(FrameType.POSITION):
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() - before < 0.01
        assert far.failure is None
        assert peer.channel.failure is None
        nursery.cancel_scope.cancel()


async def test_compression_is_used_where_it_helps_and_is_understood(seed: int) -> None:
    chance = random.Random(seed)
    content = b"".join(chance.choice([b"abcd", b"efghij"]) for _ in range(64 * KIB))[: 64 * BLOCK]
    for unpacks, kind in ((True, FrameType.SET_PACKED), (False, FrameType.SET_DATA)):
        link = FarLink(None, "zstd")
        async with connected(link, unpacks=unpacks) as (far, peer):
            await send_set(far, content)
            while not peer.heard:
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.05)
            assert peer.count(kind) > 0
            status = link.status()
            assert (status.wire_bytes < status.raw_bytes // 3) is unpacks
    link = FarLink(None, "zstd")
    async with connected(link) as (far, peer):
        await send_set(far, chance.randbytes(64 * BLOCK))
        await trio.sleep(0.05)
        assert peer.count(FrameType.SET_DATA) > 0
        assert link.status().wire_bytes <= link.status().raw_bytes


async def test_tasks_that_speak_at_once_are_packed_in_bounded_portions(seed: int) -> None:
    """What piles up while one of them waits for its turn goes in as many packed frames as it takes."""
    async with connected(FarLink(1 << 40, "zstd")) as (far, peer):
        await far.begin(SetKind.DIFFERENCE, 0, 1)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(far.data, 0, number * (1 << 20), 1, bytes(256 * KIB))
        await far.commit(9)
        await trio.sleep(0.05)
        assert peer.count(FrameType.SET_PACKED) >= 4
        assert peer.count(FrameType.SET_DATA) == 0


def test_portions_follow_the_limit() -> None:
    assert FarLink().portion(5, 8 << 20) == 8 << 20
    assert FarLink(1 << 20).portion(5, 8 << 20) == 5 << 20
    assert FarLink(1 << 30).portion(5, 8 << 20) == 8 << 20
    assert FarLink(16 * KIB).portion(0.25, 8 << 20) == LEAST_PORTION_BYTES
