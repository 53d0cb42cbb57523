"""The virtual area over a real queue and area, with C in memory."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import trio

from jfs.device import BlockDevice
from jfs.errors import DeviceError
from tests.vsap.fakes import MemoryRemote
from vsap.area import FileArea
from vsap.digest import digest_ranges
from vsap.positions import WritePositions
from vsap.queue import EntryQueue
from vsap.remote import RemoteCopy
from vsap.virtual import TICK_SECONDS, VirtualArea

pytestmark = pytest.mark.usefixtures("autojump_clock")

VOLUME = UUID(int=11)
SIZE = 1 << 20
OPERATIONS = ["write", "write", "write", "discard", "read", "tick", "deliver", "flush", "barrier"]
A, B, C = b"a" * 4096, b"b" * 4096, b"c" * 4096


class Site:
    """The parts of a writing site."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.area = FileArea.create(directory / "area", SIZE)
        self.queue = EntryQueue.open(directory / "queue", VOLUME)
        self.remote = MemoryRemote(SIZE)
        self.told: list[int] = []

    def virtual(self, **options: object) -> VirtualArea:
        return VirtualArea(self.area, self.queue, self.remote, on_eligible=self.told.append, **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self.queue.close()
        self.area.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


async def settle() -> None:
    """Long enough, on the tests' clock, for what was issued to be pushed and positions to be recorded."""
    await trio.sleep(10 * TICK_SECONDS)


def test_it_is_a_block_device_and_the_fake_a_remote_copy(site: Site) -> None:
    device: BlockDevice = site.virtual()
    remote: RemoteCopy = site.remote
    assert device.size_bytes == SIZE
    assert remote.refusal() is None


async def test_reads_see_every_issued_write(site: Site) -> None:
    async with site.virtual() as device:
        assert device.write(4096, A + B) == 1
        assert device.read(0, 12288) == bytes(4096) + A + B
        assert device.write(4096, C) == 2
        assert device.discard(8192, 4096) == 3
        assert device.read(4096, 8192) == C + bytes(4096)
        assert device.issued_sequence == 3


async def test_it_may_be_cancelled_while_it_is_entered(site: Site) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with site.virtual():
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_the_caller_may_reuse_its_buffer(site: Site) -> None:
    async with site.virtual() as device:
        buffer = bytearray(A)
        device.write(0, buffer)
        device.write(4096, memoryview(buffer))
        buffer[:] = B
        await device.complete(2)
        assert device.read(0, 8192) == A + A


async def test_what_was_issued_is_pushed_a_moment_later(site: Site) -> None:
    async with site.virtual() as device:
        device.write(0, A)
        device.write(4096, B)
        assert site.queue.next_sequence == 1
        await settle()
        assert [entry.payload for entry in site.queue.read(1)] == [A, B]
        assert site.area.read(0, 8192) == A + B
        assert [entry.sequence for entry in site.remote.outstanding] == [1, 2]


async def test_much_at_once_is_pushed_at_once(site: Site) -> None:
    async with site.virtual() as device:
        device.write(0, bytes(SIZE))
        assert site.queue.next_sequence == 2


async def test_complete_means_queued_written_and_received(site: Site) -> None:
    async with site.virtual() as device:
        sequence = device.write(0, A)
        await device.complete(sequence)
        assert site.queue.read(1)[0].payload == A
        assert site.area.read(0, 4096) == A
        assert site.remote.content[:4096] == A
        assert site.remote.durable_sequence == 0


async def test_complete_waits_for_the_answer(site: Site) -> None:
    site.remote.lazy = False
    async with site.virtual() as device, trio.open_nursery() as nursery:
        done = False

        async def complete() -> None:
            nonlocal done
            await device.complete(device.write(0, A))
            done = True

        nursery.start_soon(complete)
        await settle()
        assert not done
        site.remote.deliver()
        await settle()
        assert done


async def test_complete_and_flush_say_why_the_sync_site_does_not_answer(site: Site) -> None:
    async with site.virtual() as device:
        sequence = device.write(0, A)
        site.remote.break_off("the sync site is gone")
        with pytest.raises(DeviceError, match="the sync site is gone"):
            await device.complete(sequence)
        with pytest.raises(DeviceError, match="the sync site is gone"):
            await device.flush()
        await settle()
        assert site.queue.state().common_flush_sequence == 0


async def test_a_refused_write_changes_nothing(site: Site) -> None:
    async with site.virtual() as device:
        site.remote.break_off()
        with pytest.raises(DeviceError, match="does not answer"):
            device.write(0, A)
        with pytest.raises(DeviceError, match="does not answer"):
            device.discard(0, 4096)
        with pytest.raises(DeviceError, match="does not answer"):
            await device.marker([(0, 4096)], 4096)
        await settle()
        assert device.issued_sequence == 0
        assert site.queue.read(0) == []
        assert site.area.read(0, 4096) == bytes(4096)
        site.remote.heal()
        assert device.write(0, A) == 1


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 4096), (1, 4096), (0, 100), (-4096, 4096)])
async def test_requests_outside_are_refused(site: Site, offset: int, length: int) -> None:
    async with site.virtual() as device:
        with pytest.raises(DeviceError):
            device.write(offset, bytes(length))
        with pytest.raises(DeviceError):
            device.discard(offset, length)
        with pytest.raises(DeviceError):
            device.read(offset, length)
        assert device.issued_sequence == 0


async def test_flush_makes_both_sites_durable_and_records_it(site: Site) -> None:
    async with site.virtual() as device:
        device.write(0, A)
        await device.flush()
        await settle()
        assert site.remote.durable_content[:4096] == A
        assert site.queue.state().common_flush_sequence == device.common_flush_sequence == 1


async def test_received_is_enough_when_configured_but_not_for_the_common_flush(site: Site) -> None:
    class OnlyReceives(MemoryRemote):
        async def wait_durable(self, sequence: int) -> None:
            raise AssertionError("nobody waits for the disk of C")

    site.remote = remote = OnlyReceives(SIZE, lazy=False)
    async with site.virtual(complete="received") as device, trio.open_nursery() as nursery:
        device.write(0, A)
        nursery.start_soon(device.flush)
        await settle()
        requests, remote.flush_requests = remote.flush_requests, []
        remote.deliver()
        await trio.sleep(0.02)
        assert site.queue.state().common_flush_sequence == 0
        remote.flush_requests = requests
        remote.deliver()
        await trio.sleep(0.2)
        assert site.queue.state().common_flush_sequence == 1


async def test_flushes_are_shared(site: Site) -> None:
    """One is under way, all who come meanwhile share the next."""
    site.remote.lazy = False
    ended = []
    async with site.virtual() as device, trio.open_nursery() as nursery:

        async def flush(name: int) -> None:
            device.write(name * 4096, A)
            await device.flush()
            ended.append(name)

        for name in range(10):
            nursery.start_soon(flush, name)
        for _ in range(5):
            await trio.sleep(0.02)
            site.remote.deliver()
    assert sorted(ended) == list(range(10))
    assert site.remote.flushes <= 2
    assert site.queue.state().common_flush_sequence == 10


async def test_a_flush_covers_what_was_issued_before_the_call_only_by_a_later_flush(site: Site) -> None:
    site.remote.lazy = False
    async with site.virtual() as device, trio.open_nursery() as nursery:
        device.write(0, A)
        nursery.start_soon(device.flush)
        await settle()
        device.write(4096, B)
        late = False

        async def flush_late() -> None:
            nonlocal late
            await device.flush()
            late = True
            assert site.remote.durable_content[4096:8192] == B

        nursery.start_soon(flush_late)
        await settle()
        site.remote.deliver(1)
        await trio.sleep(0.05)
        assert not late
        site.remote.deliver()
        await trio.sleep(0.05)
        site.remote.deliver()
    assert late


async def test_a_cancelled_flush_does_not_take_its_followers_along(site: Site) -> None:
    site.remote.lazy = False
    ended = False
    async with site.virtual() as device, trio.open_nursery() as nursery:
        device.write(0, A)
        leader = trio.CancelScope()

        async def lead() -> None:
            with leader:
                await device.flush()

        async def follow() -> None:
            nonlocal ended
            await device.flush()
            ended = True

        nursery.start_soon(lead)
        await settle()
        nursery.start_soon(follow)
        await settle()
        leader.cancel()
        await settle()
        await trio.sleep(0.05)
        assert not ended
        site.remote.deliver()
    assert ended


async def test_entries_are_eligible_when_the_sync_site_has_them(site: Site) -> None:
    """P1; the daemon is told what it then finds in the queue, or it would look in vain."""
    site.remote.lazy = False
    found: list[int] = []

    def tell(sequence: int) -> None:
        site.told.append(sequence)
        found.append(site.queue.state().eligible_sequence)

    async with VirtualArea(site.area, site.queue, site.remote, on_eligible=tell) as device:
        device.write(0, A)
        device.write(4096, B)
        await settle()
        assert site.told == []
        site.remote.deliver(1)
        assert device.eligible_sequence == 1
        await settle()
        assert (site.told, found) == ([1], [1])
        site.remote.deliver()
        device.write(0, C)
        await settle()
        assert site.queue.state().eligible_sequence == 2, "the append has taken it along"


async def test_without_a_sync_site_entries_are_eligible_at_once(site: Site) -> None:
    device = VirtualArea(site.area, site.queue, None, on_eligible=site.told.append)
    async with device:
        await device.complete(device.write(0, A))
        await settle()
        assert site.told == [1]
        await device.flush()
        await settle()
        assert site.queue.state().common_flush_sequence == 1
        assert site.queue.state().eligible_sequence == 1


async def test_an_unprotected_pair_is_not_waited_for(site: Site) -> None:
    site.remote.lazy = False
    site.remote.break_off()
    site.remote.run_alone(True)
    async with site.virtual() as device:
        await device.complete(device.write(0, A))
        await device.flush()
        await settle()
        assert site.told == [1]
        assert site.queue.state().common_flush_sequence == 1
        site.remote.run_alone(False)
        with pytest.raises(DeviceError):
            device.write(0, B)
        assert device.eligible_sequence == 1


async def test_what_nobody_ships_is_trimmed_by_the_flush(site: Site) -> None:
    site.queue.set_far_site(False)
    async with site.virtual() as device:
        for _ in range(5):
            device.write(0, A)
        await device.flush()
        await settle()
        assert site.queue.read(0) == []
        assert device.far_durable_sequence == device.issued_sequence == 5


async def test_the_far_position_is_what_the_daemon_said(site: Site) -> None:
    async with site.virtual() as device:
        device.write(0, A)
        device.write(8192, A)
        assert device.far_durable_sequence == 0
        assert device.waiting(0, 4096)
        assert not device.waiting(4096, 4096)
        site.queue.set_far_durable(1, 1)
        device.note_far_durable(1, 1)
        device.note_far_durable(0, 9)
        assert device.far_durable_sequence == 1
        assert not device.waiting(0, 4096)
        assert device.waiting(8192, 4096)


async def test_a_marker_is_hashed_at_its_place_in_the_stream(site: Site) -> None:
    async with site.virtual() as device:
        device.write(0, A)
        sequence, digests = await device.marker([(0, 8192), (65536, 4096)], 4096)
        device.write(0, B)
        await device.flush()
        assert sequence == 2
        there = site.remote.at_sequence[2]

        class Snapshot:
            def read(self, offset: int, length: int) -> bytes:
                return there[offset : offset + length]

        assert digest_ranges(Snapshot(), [(0, 8192), (65536, 4096)], 4096) == digests
        assert digest_ranges(site.area, [(0, 8192), (65536, 4096)], 4096) != digests
        with pytest.raises(DeviceError):
            await device.marker([(SIZE, 4096)], 4096)


@pytest.mark.parametrize(
    ("place", "leaf_bytes"),
    [((0, 4096), 0), ((0, 4096), 100), ((0, 4096), -4096), ((0, 0), 4096), ((0, 1), 4096)],
)
async def test_a_marker_that_no_site_could_carry_out_is_not_issued(
    site: Site, place: tuple[int, int], leaf_bytes: int
) -> None:
    """In the queue it would stand for ever, and stop the stream to the other sites."""
    async with site.virtual() as device:
        with pytest.raises(DeviceError):
            await device.marker([place], leaf_bytes)
        with pytest.raises(DeviceError):
            await device.marker([(0, 65536)] * 5000, 4096)
        assert device.issued_sequence == 0


async def test_positions_name_what_was_written(site: Site) -> None:
    positions = WritePositions.open(site.directory / "written", VOLUME, size_bytes=SIZE)
    device = VirtualArea(site.area, site.queue, site.remote, positions)
    async with device:
        device.write(0, A)
        device.discard(8192, 8192)
        await device.marker([(0, 4096)], 4096)
        await settle()
        assert positions.ranges_after(0) == [(0, 4096), (8192, 8192)]
        assert positions.ranges_after(1) == [(8192, 8192)]
    positions.close()


async def test_recovery_repeats_what_came_after_the_common_flush(site: Site) -> None:
    """P3: the area and C have lost what was not flushed, in part; afterwards both have everything."""
    async with site.virtual() as device:
        device.write(0, A)
        await device.flush()
        device.write(4096, B)
        device.discard(0, 4096)
        await device.marker([(0, 4096)], 4096)
        device.write(8192, C)
    site.remote.deliver(1)
    site.remote.power_cut()
    site.area.write(0, A + bytes(4096))
    device = site.virtual()
    recovery = await device.recover()
    assert recovery == (True, 2, 5, 4)
    site.remote.deliver()
    assert site.area.read(0, 12288) == site.remote.content[:12288] == bytes(4096) + B + C
    async with device:
        assert device.write(0, A) == 6
        await device.flush()
    assert await site.virtual().recover() == (True, 0, 0, 0)


async def test_recovery_says_when_the_queue_cannot_be_trusted(tmp_path: Path) -> None:
    queue = EntryQueue.open(tmp_path / "queue", VOLUME, boot=UUID(int=1))
    area = FileArea.create(tmp_path / "area", SIZE)
    async with VirtualArea(area, queue, None) as device:
        device.write(0, A)
    queue._segments.close()
    queue._environment.close()
    queue._condition.abandon()
    queue = EntryQueue.open(tmp_path / "queue", VOLUME, boot=UUID(int=2))
    assert await VirtualArea(area, queue, None).recover() == (False, 0, 0, 0)
    queue.close()
    area.close()


class FailingArea(FileArea):
    """An area whose disk fails on demand."""

    failing = False

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self.failing:
            raise DeviceError(errno.EIO, "cannot write area: the disk fails")
        super().write(offset, data)


async def test_what_stands_behind_a_barrier_is_in_the_area_before_c_is_sent_it(tmp_path: Path) -> None:
    """Else a kill in between leaves entries that C acknowledges and the area lacks (P2, P6)."""

    class Watched(FileArea):
        sent_at_flush: list[int]

        def flush(self) -> None:
            self.sent_at_flush.append(remote.sent_sequence)
            assert self.read(8192, 4096) == bytes(4096)
            super().flush()

    FileArea.create(tmp_path / "area", SIZE).close()
    area = Watched(tmp_path / "area")
    area.sent_at_flush = []
    queue = EntryQueue.open(tmp_path / "queue", VOLUME)
    remote = MemoryRemote(SIZE)
    device = VirtualArea(area, queue, remote)
    device.write(0, A)
    await device.barrier()
    behind = device.write(8192, B)
    await device.complete(behind)
    assert area.sent_at_flush == [behind - 1], "C flushes at the barrier while A does, and has no more"
    assert remote.content[:4096] == A
    assert remote.content[8192:12288] == area.read(8192, 4096) == B
    queue.close()
    area.close()


async def test_an_area_that_fails_for_a_while_loses_nothing(tmp_path: Path) -> None:
    FileArea.create(tmp_path / "area", SIZE).close()
    area = FailingArea(tmp_path / "area")
    queue = EntryQueue.open(tmp_path / "queue", VOLUME)
    remote = MemoryRemote(SIZE)
    async with VirtualArea(area, queue, remote) as device:
        area.failing = True
        sequence = device.write(0, A)
        await settle()
        assert remote.outstanding == [], "P2: the area comes before C"
        with pytest.raises(DeviceError, match="disk fails"):
            await device.complete(sequence)
        with pytest.raises(DeviceError, match="disk fails"):
            device.write(4096, B)
        with pytest.raises(DeviceError, match="disk fails"):
            device.read(0, 4096)
        assert device.issued_sequence == 1
        area.failing = False
        assert device.write(4096, B) == 2
        await device.flush()
        assert device.read(0, 8192) == remote.durable_content[:8192] == A + B
    queue.close()
    area.close()


async def test_random_work_keeps_area_remote_and_model_equal(site: Site, seed: int) -> None:
    rng = random.Random(seed)
    site.remote.lazy = False
    model = bytearray(SIZE)
    async with site.virtual() as device, trio.open_nursery() as nursery:
        for _ in range(2000):
            offset = rng.randrange(SIZE // 4096) * 4096
            length = min(rng.randrange(1, 5) * 4096, SIZE - offset)
            match rng.choice(OPERATIONS):
                case "write":
                    data = rng.randbytes(length)
                    device.write(offset, data)
                    model[offset : offset + length] = data
                case "discard":
                    device.discard(offset, length)
                    model[offset : offset + length] = bytes(length)
                case "read":
                    assert device.read(offset, length) == model[offset : offset + length]
                case "tick":
                    await trio.lowlevel.checkpoint()
                case "deliver":
                    site.remote.deliver(rng.randrange(20))
                case "flush":
                    nursery.start_soon(device.flush)
                case "barrier":
                    nursery.start_soon(device.barrier)
        site.remote.lazy = True
        await settle()  # a barrier that was begun last is issued before the last flush
        site.remote.deliver()  # to the flush that waits already
        await device.flush()
        site.remote.deliver()
        await settle()
        assert site.area.read(0, SIZE) == model == site.remote.content
        state = site.queue.state()
        assert state.common_flush_sequence == device.issued_sequence
