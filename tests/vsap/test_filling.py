"""What a small write into a hole of an area does to the blocks around it."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsap.area import FileArea
from vsap.filling import CHUNK_BYTES, SMALL_BYTES

BLOCK = 4096
SIZE = 16 * CHUNK_BYTES


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
    other = threading.Thread(target=area.write, args=(2 * BLOCK, b"other" + bytes(BLOCK - 5)))
    pread = os.pread

    def meanwhile(*how: int) -> bytes:
        data = pread(*how)
        if other.ident is None:
            other.start()
            other.join(0.2)  # it waits; without the lock it would have written
        return data

    monkeypatch.setattr(os, "pread", meanwhile)
    area.write(0, b"x" * BLOCK)
    other.join()
    monkeypatch.undo()
    assert area.read(2 * BLOCK, BLOCK).startswith(b"other")


def test_a_full_disk_only_keeps_it_from_filling(area: FileArea, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) != BLOCK:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    area.write(5 * BLOCK, b"x" * BLOCK)
    monkeypatch.undo()
    assert stands(area) == [(5 * BLOCK, 6 * BLOCK)]


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
