"""What a small write into a hole of an area does to the blocks around it."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsap import filling
from vsap.area import QUICK_FLUSH_BYTES, FileArea
from vsap.filling import CHUNK_BYTES, SMALL_BYTES

BLOCK = 4096
SIZE = 32 * CHUNK_BYTES


@pytest.fixture
def area(tmp_path: Path) -> Iterator[FileArea]:
    made = FileArea.create(tmp_path / "area", SIZE)
    yield made
    made.close()


def stands(area: FileArea) -> list[tuple[int, int]]:
    """The ranges (first byte, end) that the host holds blocks for."""
    found: list[tuple[int, int]] = []
    with area.path.open("rb") as file:
        at = 0
        while True:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return found
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at))


def test_a_small_write_has_its_chunk_allocated(area: FileArea) -> None:
    area.write(3 * CHUNK_BYTES + BLOCK, b"x" * BLOCK)
    assert stands(area) == [(3 * CHUNK_BYTES, 4 * CHUNK_BYTES)]
    assert area.read(3 * CHUNK_BYTES, CHUNK_BYTES) == bytes(BLOCK) + b"x" * BLOCK + bytes(
        CHUNK_BYTES - 2 * BLOCK
    )


def test_a_write_across_two_chunks_has_both_allocated(area: FileArea) -> None:
    area.write_many(CHUNK_BYTES - BLOCK, [b"x" * BLOCK, b"y" * BLOCK])
    assert stands(area) == [(0, 2 * CHUNK_BYTES)]
    assert area.read(CHUNK_BYTES - BLOCK, 2 * BLOCK) == b"x" * BLOCK + b"y" * BLOCK


def test_a_long_write_takes_its_own_room_only(area: FileArea) -> None:
    area.write(BLOCK, b"x" * SMALL_BYTES)
    assert stands(area) == [(BLOCK, BLOCK + SMALL_BYTES)]


def test_an_area_that_ends_within_a_chunk_stays_as_long_as_it_is(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "short", CHUNK_BYTES + 3 * BLOCK)
    area.write(CHUNK_BYTES, b"x" * BLOCK)
    assert stands(area) == [(CHUNK_BYTES, CHUNK_BYTES + 3 * BLOCK)]
    assert area.path.stat().st_size == CHUNK_BYTES + 3 * BLOCK
    area.close()


def test_a_chunk_is_filled_once_and_again_after_a_discard(
    area: FileArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    lseek = os.lseek

    def asking(descriptor: int, at: int, how: int) -> int:
        asked.append(at)
        return lseek(descriptor, at, how)

    monkeypatch.setattr(os, "lseek", asking)
    area.write(0, b"x" * BLOCK)
    assert asked
    asked.clear()
    area.write(BLOCK, b"x" * BLOCK)
    assert not asked
    area.discard(0, 4 * BLOCK)
    area.write(2 * BLOCK, b"z" * BLOCK)
    monkeypatch.undo()
    assert stands(area) == [(0, CHUNK_BYTES)]
    assert area.read(0, 4 * BLOCK) == bytes(2 * BLOCK) + b"z" * BLOCK + bytes(BLOCK)


def test_where_a_host_reports_holes_that_are_none_nothing_is_lost(
    area: FileArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    area.write(0, b"a" * SMALL_BYTES)

    def wrong(descriptor: int, at: int, how: int) -> int:
        if how == os.SEEK_HOLE:
            return at
        raise OSError(errno.ENXIO, "no data")

    monkeypatch.setattr(os, "lseek", wrong)
    area.write(SMALL_BYTES + BLOCK, b"b" * BLOCK)
    monkeypatch.undo()
    assert area.read(0, SMALL_BYTES + 2 * BLOCK) == b"a" * SMALL_BYTES + bytes(BLOCK) + b"b" * BLOCK


def test_nobody_writes_between_the_read_of_a_hole_and_its_write(
    area: FileArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {
        2: lambda: area.write(2 * BLOCK, b"2" * BLOCK),
        3: lambda: area.write_many(3 * BLOCK, [b"3" * BLOCK]),
        0: lambda: area.discard(0, BLOCK),
    }
    threads = [threading.Thread(target=deed) for deed in others.values()]
    pread = os.pread

    def meanwhile(descriptor: int, length: int, offset: int) -> bytes:
        data = pread(descriptor, length, offset)
        for thread in threads:
            if thread.ident is None:
                thread.start()
        for thread in threads:
            thread.join(0.1)  # it waits; without the lock it would have written
        return data

    monkeypatch.setattr(os, "pread", meanwhile)
    area.write(0, b"x" * BLOCK)
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert area.read(0, 4 * BLOCK) == bytes(2 * BLOCK) + b"2" * BLOCK + b"3" * BLOCK


def test_it_counts_as_what_a_flush_has_to_do(area: FileArea) -> None:
    for number in range(QUICK_FLUSH_BYTES // CHUNK_BYTES):
        assert area.is_quick_to_flush
        area.write(number * CHUNK_BYTES, b"x" * BLOCK)
    assert area._unflushed_bytes == QUICK_FLUSH_BYTES


def test_where_the_host_refuses_the_write_is_made(area: FileArea, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, refused = os.pwrite, []

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) != BLOCK:
            refused.append(offset)
            raise OSError(errno.ENOSPC, "full")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    area.write(5 * BLOCK, b"x" * BLOCK)
    area.write(5 * CHUNK_BYTES, b"x" * BLOCK)
    monkeypatch.undo()
    assert stands(area) == [(5 * BLOCK, 6 * BLOCK), (5 * CHUNK_BYTES, 5 * CHUNK_BYTES + BLOCK)]
    assert len(refused) == 1, "it is left alone for some seconds"


def test_a_host_with_little_room_is_left_alone(area: FileArea, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "FREE_BYTES", 1 << 62)
    area.write(5 * BLOCK, b"x" * BLOCK)
    assert stands(area) == [(5 * BLOCK, 6 * BLOCK)]


def test_a_host_that_contradicts_itself_is_not_asked_for_ever(
    area: FileArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "lseek", lambda descriptor, at, how: at)
    area.write(5 * BLOCK, b"x" * BLOCK)
    monkeypatch.undo()
    assert area.read(5 * BLOCK, BLOCK) == b"x" * BLOCK


PLACES = st.tuples(st.integers(0, SIZE // BLOCK - 1), st.integers(1, 20))
DEEDS = st.lists(st.tuples(st.sampled_from(["write", "write_many", "discard"]), PLACES), max_size=40)


@given(DEEDS)
def test_the_content_is_what_it_would_be_without(
    tmp_path_factory: pytest.TempPathFactory, deeds: list[tuple[str, tuple[int, int]]]
) -> None:
    area = FileArea.create(tmp_path_factory.mktemp("filling") / "area", SIZE)
    model = bytearray(SIZE)
    for number, (deed, (block, count)) in enumerate(deeds, 1):
        offset, count = block * BLOCK, min(count, SIZE // BLOCK - block)
        data = bytes([number]) * BLOCK
        if deed == "discard":
            area.discard(offset, count * BLOCK)
            data = bytes(BLOCK)
        elif deed == "write":
            area.write(offset, data * count)
        else:
            area.write_many(offset, [data] * count)
        model[offset : offset + count * BLOCK] = data * count
    assert area.read(0, SIZE) == model
    area.close()
    area.path.unlink()
