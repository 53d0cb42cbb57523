"""The entry queue in one process: order, positions, drops, crashes of the host, damage."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from jfs.errors import CorruptionError, DeviceError
from vsap.entry import Entry, discard_entry, marker_entry, write_entry
from vsap.queue import EntryQueue

VOLUME = UUID(int=0x1234)
FIRST_BOOT, SECOND_BOOT = UUID(int=1), UUID(int=2)
Opener = Callable[..., EntryQueue]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    queues: list[EntryQueue] = []

    def open_queue(**options: int | UUID) -> EntryQueue:
        queue = EntryQueue.open(tmp_path / "queue", VOLUME, **options)  # type: ignore[arg-type]
        queues.append(queue)
        return queue

    yield open_queue
    for queue in queues:
        queue.close()


def entries(first: int, count: int, size: int = 4096) -> list[Entry]:
    return [
        write_entry(number, 1000 + number, number * 4096, number.to_bytes(8, "big") * (size // 8))
        for number in range(first, first + count)
    ]


def crash_of_the_host(queue: EntryQueue) -> None:
    """The process is gone without closing; the files stay as they are."""
    queue._segments.close()
    queue._environment.close()
    queue._condition.abandon()
    queue._closed = True


def test_entries_come_back_in_order_with_their_payload(opened: Opener) -> None:
    queue = opened()
    written = entries(1, 10)
    queue.append_batch(written[:3])
    queue.append_batch(written[3:])
    assert queue.read(1) == written
    assert queue.read(4, limit_entries=2) == written[3:5]
    assert queue.read(4, limit_bytes=2 * 4096 + 5) == written[3:5]
    assert queue.read(4, limit_bytes=1) == written[3:4]
    assert queue.read(11) == []
    assert [entry.sequence for entry in queue.read_index(8)] == [8, 9, 10]
    assert queue.read_index(8)[0].payload == b""
    assert queue.next_sequence == 11


def test_single_entries_are_read_from_wherever_they_lie(opened: Opener) -> None:
    queue = opened(segment_bytes=20_000)
    written = [*entries(1, 9), discard_entry(10, 1, 0, 8192), *entries(11, 9)]
    queue.append_batch(written)
    assert len(queue._segments.numbers()) >= 4
    wanted = [1, 2, 5, 6, 10, 13, 19]
    assert queue.read_these(wanted) == [written[sequence - 1] for sequence in wanted]
    assert queue.read_these([]) == []
    queue.set_common_flush(5)
    queue.drop(5)
    assert [entry.sequence for entry in queue.read_these([*wanted, 20])] == [6, 10, 13, 19]


def test_all_kinds_and_several_segments(opened: Opener) -> None:
    queue = opened(segment_bytes=10_000)
    written = [
        *entries(1, 4),
        discard_entry(5, 1, 0, 1 << 30),
        marker_entry(6, 1, [(0, 4096)], 4096),
        *entries(7, 4),
        write_entry(11, 1, 0, b"L" * 40960),
        discard_entry(12, 1, 4096, 4096),
    ]
    queue.append_batch(written)
    assert queue.read(1) == written
    assert len(queue._segments.numbers()) >= 5


def test_sequences_must_continue(opened: Opener) -> None:
    queue = opened(next_sequence=100)
    with pytest.raises(ValueError, match="cannot follow"):
        queue.append_batch(entries(101, 1))
    with pytest.raises(ValueError, match="cannot be appended"):
        queue.append_batch([*entries(100, 1), *entries(102, 1)])
    assert queue.read(0) == []
    queue.append_batch(entries(100, 2))
    assert [entry.sequence for entry in queue.read(0)] == [100, 101]


def test_what_waits_is_counted_from_the_far_position(opened: Opener) -> None:
    queue = opened()
    assert queue.counts() == (0, 0, 0, 0, 0)
    queue.append_batch(entries(1, 10))
    assert queue.counts() == (10, 10 * 4096, 1, 10, 1001)
    queue.set_far_durable(1, 4)
    assert queue.counts() == (6, 6 * 4096, 5, 10, 1005)
    assert queue.waiting(5 * 4096, 4096)
    assert not queue.waiting(4 * 4096, 4096)
    assert not queue.waiting(11 * 4096, 4096)
    queue.set_far_durable(1, 10)
    assert queue.counts() == (0, 0, 0, 0, 0)


def test_a_marker_waits_but_touches_nothing(opened: Opener) -> None:
    queue = opened()
    queue.append_batch([marker_entry(1, 1, [(0, 4096)], 4096), discard_entry(2, 1, 8192, 8192)])
    assert queue.counts().entries == 2
    assert not queue.waiting(0, 4096)
    assert queue.waiting(12288, 4096)


def test_an_entry_leaves_when_far_site_and_common_flush_have_it(opened: Opener) -> None:
    """P3: either alone does not let it go."""
    queue = opened()
    queue.append_batch(entries(1, 10))
    queue.set_far_durable(1, 8)
    assert queue.trim() == 0
    queue.set_common_flush(5)
    assert queue.trim() == 5
    queue.set_common_flush(10)
    assert queue.trim() == 3
    assert [entry.sequence for entry in queue.read(0)] == [9, 10]
    assert queue.counts() == (2, 8192, 9, 10, 1009)


def test_positions_never_move_back(opened: Opener) -> None:
    queue = opened()
    queue.append_batch(entries(1, 10), eligible_sequence=7)
    queue.set_eligible(3)
    queue.set_common_flush(6)
    queue.set_common_flush(2)
    queue.set_far_durable(2, 5)
    queue.set_far_durable(1, 9)
    queue.set_far_durable(2, 4)
    state = queue.state()
    assert (state.eligible_sequence, state.common_flush_sequence) == (7, 6)
    assert (state.far_epoch, state.far_durable_sequence) == (2, 5)
    queue.set_far_durable(3, 99)
    assert queue.state().far_durable_sequence == 10, "never beyond what was appended"


def test_without_a_far_site_nothing_waits(opened: Opener) -> None:
    queue = opened()
    queue.append_batch(entries(1, 3))
    queue.set_far_site(False)
    assert queue.counts().entries == 0
    queue.append_batch(entries(4, 3))
    assert queue.counts().entries == 0
    assert queue.state().far_durable_sequence == 6
    queue.set_common_flush(6)
    assert queue.trim() == 6
    queue.set_far_site(True)
    assert queue.state().far_durable_sequence == 0


def test_an_empty_queue_holds_no_segment_and_goes_on(opened: Opener) -> None:
    queue = opened()
    queue.append_batch(entries(1, 100))
    queue.set_far_durable(1, 100)
    queue.set_common_flush(100)
    assert queue.trim() == 100
    assert queue._segments.numbers() == []
    queue.append_batch(entries(101, 5))
    assert queue.read(0) == entries(101, 5)


def test_a_queue_over_its_limit_is_dropped_up_to_the_common_flush(opened: Opener) -> None:
    queue = opened(limit_bytes=100 * 4096)
    queue.append_batch(entries(1, 60))
    queue.set_far_durable(1, 10)
    queue.set_common_flush(50)
    assert queue.state().dropped_through == 0
    queue.append_batch(entries(61, 60))
    state = queue.state()
    assert (state.dropped_through, state.drop_reason, state.oldest_sequence) == (50, "limit", 51)
    assert queue.read(11)[0].sequence == 51, "the gap shows"
    assert queue.counts() == (70, 70 * 4096, 51, 120, 1051)


def test_what_the_flush_has_not_covered_outlives_the_limit(opened: Opener) -> None:
    queue = opened(limit_bytes=4096)
    queue.append_batch(entries(1, 60))
    queue.append_batch(entries(61, 60))
    state = queue.state()
    assert (state.dropped_through, state.oldest_sequence) == (0, 1)


def test_a_drop_that_the_far_site_does_not_miss_is_no_gap(opened: Opener) -> None:
    queue = opened(limit_bytes=100 * 4096)
    queue.append_batch(entries(1, 60))
    queue.set_far_durable(1, 50)
    queue.set_common_flush(50)
    queue.append_batch(entries(61, 60))
    assert queue.state().dropped_through == 0
    assert queue.state().oldest_sequence == 51


def test_a_large_drop_keeps_the_rest(opened: Opener) -> None:
    queue = opened(segment_bytes=1 << 20)
    for first in range(1, 9001, 1000):
        queue.append_batch(entries(first, 1000, size=8))
    queue.set_common_flush(8900)
    assert queue.drop(8800) == 8800
    assert queue.state().drop_reason == "asked"
    assert queue.read(0) == entries(8801, 200, size=8)
    assert queue.counts() == (200, 1600, 8801, 9000, 9801)
    assert queue.drop(9000) == 8900
    assert queue.read(0) == entries(8901, 100, size=8)


def test_reset_starts_another_numbering(opened: Opener) -> None:
    queue = opened()
    queue.append_batch(entries(1, 20))
    queue.set_far_durable(1, 12)
    queue.reset(16)
    state = queue.state()
    assert (state.next_sequence, state.oldest_sequence) == (16, 16)
    assert (state.eligible_sequence, state.common_flush_sequence, state.dropped_through) == (15, 15, 15)
    assert state.far_durable_sequence == 12
    queue.append_batch(entries(16, 2))
    assert queue.read(0) == entries(16, 2)


def test_a_closed_queue_is_trusted_on_any_boot(opened: Opener) -> None:
    queue = opened(boot=FIRST_BOOT)
    queue.append_batch(entries(1, 5), eligible_sequence=3)
    queue.set_common_flush(2)
    before = queue.state()
    queue.close()
    queue = opened(boot=SECOND_BOOT)
    assert queue.state() == before
    assert queue.trusted
    assert queue.read(1) == entries(1, 5)


def test_a_killed_process_costs_nothing(opened: Opener) -> None:
    queue = opened(boot=FIRST_BOOT)
    queue.append_batch(entries(1, 5))
    crash_of_the_host(queue)
    queue = opened(boot=FIRST_BOOT)
    assert queue.trusted
    assert queue.read(1) == entries(1, 5)


def test_a_crash_of_the_host_drops_the_queue_and_says_so(opened: Opener) -> None:
    """P4: also when LMDB's own file is destroyed, and until somebody acknowledges the loss."""
    queue = opened(boot=FIRST_BOOT)
    queue.append_batch(entries(1, 5))
    crash_of_the_host(queue)
    (queue.directory / "index" / "data.mdb").write_bytes(os.urandom(20000))
    queue = opened(boot=SECOND_BOOT)
    state = queue.state()
    assert not state.trusted
    assert state.drop_reason == "crash"
    assert state.next_sequence > 5, "no sequence is used twice"
    assert state.dropped_through == state.common_flush_sequence == state.next_sequence - 1
    assert queue.read(0) == []
    queue.append_batch(entries(state.next_sequence, 2))
    queue.close()
    queue = opened(boot=SECOND_BOOT)
    assert not queue.trusted, "closing does not mend it"
    queue.acknowledge_loss()
    queue.close()
    assert opened(boot=SECOND_BOOT).trusted


def test_sequences_are_never_used_twice_over_many_crashes(opened: Opener) -> None:
    newest = 0
    for boot in range(1, 5):
        queue = opened(boot=UUID(int=boot))
        assert queue.next_sequence > newest
        queue.append_batch(entries(queue.next_sequence, 3))
        newest = queue.next_sequence - 1
        crash_of_the_host(queue)


def test_a_destroyed_index_on_the_same_boot_is_a_loss_too(opened: Opener) -> None:
    queue = opened(boot=FIRST_BOOT)
    queue.append_batch(entries(1, 5))
    crash_of_the_host(queue)
    (queue.directory / "index" / "data.mdb").write_bytes(b"garbage" * 5000)
    state = opened(boot=FIRST_BOOT).state()
    assert (state.trusted, state.drop_reason) == (False, "damaged")
    assert state.next_sequence > 5


def test_another_volume_is_refused(opened: Opener, tmp_path: Path) -> None:
    opened().close()
    with pytest.raises(CorruptionError, match="belongs to volume"):
        EntryQueue.open(tmp_path / "queue", UUID(int=9))


@pytest.mark.parametrize("place", [64 + 4096 + 17, 3])
def test_a_changed_payload_is_noticed(opened: Opener, place: int) -> None:
    """A bit of a payload, and of a segment's header."""
    queue = opened()
    queue.append_batch(entries(1, 3))
    path = queue._segments.path(1)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError):
        queue.read(1)


def test_a_lost_segment_is_noticed(opened: Opener) -> None:
    queue = opened()
    queue.append_batch(entries(1, 3))
    queue._segments.path(1).unlink()
    with pytest.raises(CorruptionError, match="lost segment"):
        queue.read(1)


def test_a_directory_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="cannot open"):
        EntryQueue.open(tmp_path / "file" / "queue", VOLUME)


def test_files_stay_small_while_entries_pass(opened: Opener) -> None:
    """300,000 entries through a queue that holds some thousand: neither index nor segments grow."""
    queue = opened(segment_bytes=1 << 20)
    payload_sizes, index_sizes = [], []
    batch, newest = 500, 0
    while newest < 300_000:
        queue.append_batch(entries(newest + 1, batch, size=64))
        newest += batch
        if newest % 5000 == 0:
            queue.set_common_flush(newest - 1000)
            queue.set_far_durable(1, newest - 2000)
            queue.trim()
            payload_sizes.append(queue._segments.size_bytes())
            index_sizes.append((queue.directory / "index" / "data.mdb").stat().st_size)
    assert max(payload_sizes) <= 5000 * 64 + 2 * (1 << 20)
    assert max(index_sizes) <= 2 << 20
    assert max(index_sizes[-10:]) <= max(index_sizes[:10]) + (256 << 10)
    assert queue.read(0)[0].sequence == newest - 1999


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_ten_million_entries_cost_the_same_at_the_end(opened: Opener) -> None:
    """Prints time an entry and file sizes every million entries."""
    queue = opened()
    newest, costs = 0, []
    print("\n  entries    us/entry   index bytes   segment bytes")
    for million in range(1, 11):
        begin = time.process_time()
        while newest < million * 1_000_000:
            queue.append_batch(entries(newest + 1, 500, size=512))
            newest += 500
            if newest % 10_000 == 0:
                queue.set_common_flush(newest - 1000)
                queue.set_far_durable(1, max(0, newest - 50_000))
                queue.trim()
        costs.append((time.process_time() - begin) / 1_000_000 * 1e6)
        index = (queue.directory / "index" / "data.mdb").stat().st_size
        print(f"{newest:9d}  {costs[-1]:8.2f}  {index:12d}  {queue._segments.size_bytes():14d}")
        assert index <= 16 << 20
        assert queue._segments.size_bytes() <= 60_000 * 512 + 2 * (64 << 20)
    assert costs[-1] <= 2 * min(costs)
