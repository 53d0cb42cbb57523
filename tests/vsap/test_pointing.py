"""Entries that point into the area: nothing is ever lost by it, and copies do go."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
import trio
import trio.testing

from jfs.device import Buffer
from jfs.errors import CorruptionError, DeviceError
from tests.vsap.fakes import MemoryRemote
from vsap import pointing
from vsap.area import FileArea
from vsap.entry import Entry, discard_entry, write_entry
from vsap.index import IN_AREA, KEY, Record
from vsap.payload import HEADER_BYTES, SegmentFiles
from vsap.pointers import CHUNK_BYTES, Pointers
from vsap.queue import EntryQueue
from vsap.queue_files import Transaction
from vsap.virtual import VirtualArea, apply_entries

VOLUME = UUID(int=31)
LONG = 1 << 16
AREA_BYTES = 64 * LONG
A_SEGMENT = 4
"""Long payloads in a segment."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries point as soon as they may."""
    monkeypatch.setattr(pointing, "POINT_SECONDS", 0)
    monkeypatch.setattr(pointing, "LOOK_SECONDS", 0)


def payload(number: int) -> bytes:
    return random.Random(number).randbytes(LONG)


class Site:
    """A queue and the area that its entries write to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.area = FileArea.create(directory / "area", AREA_BYTES)
        self.appended: list[Entry] = []
        self.queue = self.opened()

    def opened(self) -> EntryQueue:
        size = A_SEGMENT * LONG + 100
        return EntryQueue.open(self.directory / "queue", VOLUME, segment_bytes=size, area=self.area.path)

    def reopen(self) -> None:
        self.queue.close()
        self.queue = self.opened()

    def write(self, *places: int, size: int = LONG) -> None:
        """Entries at these places of the area (in long payloads), entered and then written."""
        first = self.queue.next_sequence
        entries = [
            write_entry(first + number, 1, place * LONG, payload(first + number)[:size])
            for number, place in enumerate(places)
        ]
        self.queue.append_batch(entries, eligible_sequence=first)
        apply_entries(self.area, entries)
        self.appended += entries

    def point(self) -> None:
        while self.queue.point():
            pass

    def held(self) -> list[Entry]:
        return self.queue.read(0, limit_bytes=1 << 30)

    def segments(self) -> list[int]:
        return [
            number for number in self.queue._segments.numbers() if self.queue._segments.path(number).exists()
        ]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.queue.close()
    site.area.close()


def test_segments_that_stand_in_the_area_are_given_up(site: Site) -> None:
    site.write(*range(10))
    site.queue.set_common_flush(10)
    before = site.queue.counts(), site.queue.state()
    site.point()
    assert site.segments() == [3], "the newest stays"
    assert site.held() == site.appended
    assert site.queue.read_these([2, 7]) == [site.appended[1], site.appended[6]]
    assert (site.queue.counts(), site.queue.state()) == before


def test_what_is_not_durable_at_both_near_sites_keeps_its_copy(site: Site) -> None:
    """It may have to be written to the area again (P3)."""
    site.write(*range(10))
    site.queue.set_common_flush(6)
    site.point()
    assert site.segments() == [2, 3]


def test_what_has_not_waited_long_keeps_its_copy(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointing, "POINT_SECONDS", 1e12)
    site.write(*range(10))
    site.queue.set_common_flush(10)
    site.point()
    assert site.segments() == [1, 2, 3]


def test_a_segment_of_which_too_much_was_written_over_stays(site: Site) -> None:
    site.write(0, 1, 2, 3, 4, 5, 6, 7, 3)
    site.queue.set_common_flush(9)
    site.point()
    assert site.segments() == [1, 3], "of the first segment a quarter would have to be kept"
    assert site.held() == site.appended


def test_short_payloads_among_long_ones_are_saved(site: Site) -> None:
    site.write(0, 1, 2)
    site.write(60, 61, size=4096)
    site.write(3, 4, 5)
    site.queue.set_common_flush(8)
    site.point()
    assert site.segments() == [2]
    assert site.held() == site.appended


@pytest.mark.parametrize("reopened", [False, True])
def test_what_is_pointed_to_is_saved_before_it_is_written_over(site: Site, reopened: bool) -> None:
    site.write(*range(10))
    site.queue.set_common_flush(10)
    site.point()
    if reopened:
        site.reopen()
    site.write(2, 5, 2)
    assert site.held() == site.appended
    site.reopen()
    assert site.held() == site.appended


def test_without_saving_the_payload_is_lost_and_noticed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail."""
    monkeypatch.setattr(pointing.PointingQueue, "_overwritten", lambda *_: [])
    site.write(*range(10))
    site.queue.set_common_flush(10)
    site.point()
    site.write(2)
    with pytest.raises(CorruptionError, match="lost a payload: entry 3 is not what was appended"):
        site.held()


def test_what_is_written_over_while_its_segment_is_looked_through_does_not_point(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointing, "STEP_ENTRIES", 1)
    monkeypatch.setattr(pointing, "KEPT_SHARE", 1)
    site.write(*range(5))
    site.queue.set_common_flush(5)
    assert site.queue.point(), "the first entry"
    site.write(0)
    site.point()
    assert site.segments() == [2]
    assert site.held() == site.appended


def test_a_reader_is_not_misled_by_what_happens_between_its_steps(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon reads the index, then the payloads; meanwhile they move to the area, and from it."""
    site.write(*range(10))
    site.queue.set_common_flush(10)
    rows = site.queue._reader.rows
    meanwhile: list[Callable[[], None]] = [site.point, lambda: site.write(1, 2)]

    def rows_and_then(*arguments: int) -> object:
        found = rows(*arguments)
        if meanwhile:
            happens = meanwhile.pop(0)
            monkeypatch.setattr(site.queue._reader, "rows", rows)
            happens()
            monkeypatch.setattr(site.queue._reader, "rows", rows_and_then)
        return found

    monkeypatch.setattr(site.queue._reader, "rows", rows_and_then)
    for _ in range(2):
        assert site.queue.read(0, limit_bytes=1 << 30)[:10] == site.appended[:10]
    assert not meanwhile


def test_where_the_area_has_lost_it_the_queue_says_so(site: Site) -> None:
    """Rot in the area: the next write there gives up the entries up to it, and a difference copy is due."""
    site.write(*range(10))
    site.queue.set_common_flush(10)
    site.point()
    site.area.write(2 * LONG, bytes(LONG))
    with pytest.raises(CorruptionError):
        site.held()
    site.write(2)
    assert [entry.sequence for entry in site.held()] == list(range(4, 12))
    state = site.queue.state()
    assert (state.dropped_through, state.drop_reason) == (3, "damaged")


def test_a_damaged_record_of_an_entry_that_points_refuses_no_write(site: Site) -> None:
    """Rot in the index: the entries up to it are given up when what it points to is written over."""
    site.write(*range(10))
    site.queue.set_common_flush(10)
    site.point()
    with site.queue._environment.begin(write=True) as txn:
        key = KEY.pack(3)
        value = txn.get(key, db=site.queue._index)
        assert value is not None
        txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=site.queue._index)
    site.write(2)
    assert [entry.sequence for entry in site.held()] == list(range(4, 12))
    assert site.queue.state().drop_reason == "damaged"


def test_a_process_without_a_free_descriptor_takes_nothing_for_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write(*range(10))
    site.queue.set_common_flush(10)
    site.point()
    with monkeypatch.context() as patch:

        def read(area: FileArea, offset: int, length: int) -> bytes:
            raise DeviceError(errno.EMFILE, "too many open files")

        patch.setattr(FileArea, "read", read)
        with pytest.raises(DeviceError, match="too many"):
            site.write(2)
        with pytest.raises(DeviceError, match="too many"):
            site.held()
    site.write(2)
    assert site.held() == site.appended


@pytest.mark.parametrize("appending", [False, True])
def test_what_was_saved_for_nothing_takes_no_room(
    site: Site, monkeypatch: pytest.MonkeyPatch, appending: bool
) -> None:
    """Where the host refuses, it is tried again and again: a disk must not fill up by that."""
    monkeypatch.setattr(pointing, "KEPT_SHARE", 1)
    site.write(0, 1, 2, 3, 2, 5)
    site.write(61, 62, size=4096)
    site.write(10)
    site.queue.set_common_flush(9)
    move = EntryQueue._move

    def refused(queue: EntryQueue, txn: Transaction, key: bytes, record: Record, place: int) -> None:
        move(queue, txn, key, record, place)
        if place > IN_AREA:
            raise OSError(errno.EIO, "no")

    if appending:
        site.point()
    else:
        monkeypatch.setattr(pointing, "LEAST_BYTES", 0)

    def saved_bytes() -> int:
        paths = map(site.queue._segments.saved_path, site.queue._segments.numbers())
        return sum(path.stat().st_size for path in paths if path.exists())

    def attempt() -> None:
        if appending:
            site.write(0, 1)
        else:
            site.queue._looked_through = 0
            site.point()

    before = saved_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(EntryQueue, "_move", refused)
        for _ in range(3):
            with pytest.raises(DeviceError, match="no"):
                attempt()
    assert saved_bytes() - before <= HEADER_BYTES
    assert site.held() == site.appended
    site.write(0, 1)
    site.point()
    assert site.held() == site.appended


@pytest.mark.parametrize("discarded", [False, True])
def test_what_one_append_saves_is_bounded(
    site: Site, monkeypatch: pytest.MonkeyPatch, discarded: bool
) -> None:
    """Where more would have to be saved the older entries are given up: the mount does not stand still."""
    monkeypatch.setattr(pointing, "SAVED_AT_ONCE", 3 * LONG)
    site.write(*range(10))
    site.queue.set_common_flush(10)
    site.point()
    if discarded:
        entry = discard_entry(11, 1, 0, 8 * LONG)
        site.queue.append_batch([entry])
        apply_entries(site.area, [entry])
        site.appended.append(entry)
    else:
        site.write(*range(8), size=4096)
    assert site.held() == site.appended[5:]
    state = site.queue.state()
    assert (state.dropped_through, state.drop_reason) == (5, "limit")


def test_only_so_many_point_to_one_place(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes written again and again: each write there, and beside it, would have to look at all."""
    monkeypatch.setattr(pointing, "MOST_BESIDE", 6)
    for number in range(1, 13):
        entries = [write_entry(number, 1, 0, bytes(LONG))]
        site.queue.append_batch(entries)
        apply_entries(site.area, entries)
        site.appended += entries
    site.write(40)
    site.queue.set_common_flush(13)
    site.point()
    assert site.segments() == [2, 3, 4]
    assert site.held() == site.appended


def test_pointers_of_entries_that_left_make_room_for_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon lets them leave, and the appending process is not told."""
    monkeypatch.setattr(pointing, "MOST_POINTERS", 4)
    for first in (0, 10):
        site.write(*range(first, first + 10))
        site.queue.set_common_flush(site.queue.next_sequence - 1)
        site.point()
        assert len(site.queue._pointers) == 4
        held = site.segments()
        site.queue.set_far_durable(1, site.queue.next_sequence - 1)
        site.queue.trim()
    assert held == [5, 6], "the fourth segment points"


def test_a_segment_that_a_killed_process_did_not_remove_goes_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write(*range(10))
    site.queue.set_common_flush(10)
    with monkeypatch.context() as patch:
        patch.setattr(SegmentFiles, "give_up", lambda *_: None)
        site.point()
    assert site.segments() == [1, 2, 3]
    site.reopen()
    site.point()
    assert site.segments() == [3]
    assert site.held() == site.appended


def test_a_segment_that_is_given_up_frees_its_room_though_another_process_has_it_open(site: Site) -> None:
    """A daemon that waits for the far site keeps open what it read last."""
    site.write(*range(10))
    site.queue.set_common_flush(10)
    with site.queue._segments.path(1).open("rb") as opened:
        site.point()
        assert opened.read() == b""


@pytest.mark.parametrize("reopened", [False, True])
def test_a_reader_that_finds_a_segment_emptied_reads_the_index_again(
    site: Site, reopened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the segment open, or opens it just before it is removed."""
    site.write(*range(10))
    site.queue.set_common_flush(10)
    assert site.held() == site.appended
    if reopened:
        site.reopen()
    read = SegmentFiles.read

    def emptied_first(files: SegmentFiles, number: int, offset: int, length: int) -> bytes:
        monkeypatch.undo()
        with monkeypatch.context() as patch:
            patch.setattr(pointing, "POINT_SECONDS", 0)
            patch.setattr(SegmentFiles, "give_up", lambda files, number: os.truncate(files.path(number), 0))
            site.point()
        return read(files, number, offset, length)

    monkeypatch.setattr(SegmentFiles, "read", emptied_first)
    assert site.held() == site.appended


def test_what_left_the_queue_leaves_nothing_behind(site: Site) -> None:
    site.write(*range(10))
    site.queue.set_common_flush(10)
    site.point()
    site.write(0, 1, 9)
    site.queue.set_common_flush(13)
    site.queue.set_far_durable(1, 13)
    site.queue.trim()
    assert list(site.queue._segments.path(1).parent.iterdir()) == []
    site.write(*range(10))
    assert site.held() == site.appended[13:]


def test_a_queue_of_format_2_is_read_on(site: Site) -> None:
    site.write(*range(3))
    with site.queue._environment.begin(write=True) as txn:
        volume = txn.get(b"volume", db=site.queue._meta)
        assert volume is not None
        txn.put(b"volume", volume[:8] + b"\2" + volume[9:], db=site.queue._meta)
    site.reopen()
    assert site.held() == site.appended


async def test_the_virtual_area_under_random_work(
    site: Site, seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Writes, discards, flushes, pointing, new processes: the queue holds the stream."""
    monkeypatch.setattr(pointing, "LEAST_BYTES", 4096)
    monkeypatch.setattr(pointing, "KEPT_SHARE", 1)
    rng = random.Random(seed)
    stream: list[bytes] = []
    pointed = 0
    for _ in range(5):
        site.reopen()
        state = site.queue.state()
        remote = MemoryRemote(AREA_BYTES, first_sequence=state.common_flush_sequence + 1)
        async with VirtualArea(site.area, site.queue, remote) as device:
            await device.recover()
            for _ in range(80):
                place = rng.randrange(400) * 4096
                match rng.choice(("write", "write", "write", "discard", "flush", "tick")):
                    case "write":
                        data = rng.randbytes(rng.choice((1, 4, 16)) * 4096)
                        device.write(place, data)
                        stream.append(data)
                    case "discard":
                        device.discard(place, 4096)
                        stream.append(b"")
                    case "flush":
                        await device.flush()
                    case "tick":
                        await trio.sleep(0.1)
                device._point()
                pointed = max(pointed, len(site.queue._pointers))
            await trio.sleep(0.1)
            assert [bytes(entry.payload) for entry in site.held()] == stream
    assert pointed > 5


class RefusingArea(FileArea):
    """An area on a disk that at times takes nothing."""

    refuses = False

    def write(self, offset: int, data: Buffer) -> None:
        if self.refuses:
            raise DeviceError(errno.ENOSPC, "the disk is full")
        super().write(offset, data)


@pytest.mark.parametrize("guarded", [True, False])
async def test_nothing_points_while_the_area_lacks_a_write_that_is_in_the_queue(
    site: Site, guarded: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Else what that write will be written over is found standing, and is lost with it: the second run shows
    that.
    """
    area = RefusingArea(site.area.path)
    async with VirtualArea(area, site.queue, MemoryRemote(AREA_BYTES)) as device:
        stream = [payload(number) for number in range(8)]
        for place, data in enumerate(stream):
            device.write(place * LONG, data)
        await device.flush()
        device.record_progress()
        area.refuses = True
        stream.append(payload(8))
        device.write(0, stream[-1])
        with pytest.raises(DeviceError):
            await device.complete(9)
        if guarded:
            device._point()
        else:
            site.point()
        assert (1 in site.segments()) is guarded
        area.refuses = False
        await trio.sleep(5)
        if guarded:
            assert [bytes(entry.payload) for entry in site.held()] == stream
        else:
            with pytest.raises(CorruptionError, match="entry 1 is not"):
                site.held()
    area.close()


@pytest.mark.parametrize("guarded", [True, False])
async def test_nothing_points_before_the_area_has_what_a_killed_process_left(
    site: Site, guarded: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """The synchronous copy may be long in coming, and recovery long: meanwhile the area is older than the
    queue.
    """
    site.write(*range(8))
    site.queue.set_common_flush(8)
    left = write_entry(9, 1, 0, payload(9))
    site.queue.append_batch([left])  # killed before the area had it
    site.reopen()
    async with VirtualArea(site.area, site.queue, MemoryRemote(AREA_BYTES, first_sequence=9)) as device:
        if not guarded:
            device._area_behind = False
        await trio.sleep(5)
        assert (1 in site.segments()) is guarded
        await device.recover()
        if guarded:
            assert site.held() == [*site.appended, left]
            await trio.sleep(5)
            assert site.held() == [*site.appended, left]
        else:
            with pytest.raises(CorruptionError, match="entry 1 is not"):
                site.held()


def test_pointers_against_a_plain_list(seed: int) -> None:
    rng = random.Random(seed)
    pointers, plain = Pointers(), dict[int, tuple[int, int]]()
    for sequence in range(1, 300):
        offset, length = rng.randrange(1000) * 4096, rng.choice((1, 16, 256, 600)) * 4096
        pointers.add(sequence, offset, length)
        plain[sequence] = offset, offset + length
        if rng.random() < 0.5:
            gone = rng.choice(list(plain))
            pointers.remove(gone)
            del plain[gone]
        if rng.random() < 0.02:
            pointers.forget_below(sequence // 2)
            plain = {one: place for one, place in plain.items() if one >= sequence // 2}
        low = rng.randrange(1000) * 4096
        high = low + rng.choice((1, 100, 500)) * 4096
        assert pointers.touched(low, high) == [
            one for one, (start, end) in sorted(plain.items()) if start < high and end > low
        ]
        assert len(pointers) == len(plain)
        shared = [
            sum(start < low + CHUNK_BYTES and end > low for start, end in plain.values())
            for low in range(offset // CHUNK_BYTES * CHUNK_BYTES, offset + length, CHUNK_BYTES)
        ]
        assert pointers.most_beside(offset, length) == max(shared)
    for one in list(plain):
        pointers.remove(one)
    assert not pointers._chunks
