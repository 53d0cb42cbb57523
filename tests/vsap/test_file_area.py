"""A storage area in a file, and digests of it."""

import errno
import os
from pathlib import Path

import pytest
import xxhash

from jfs.errors import DeviceError
from vsap.area import FileArea
from vsap.digest import digest_ranges

SIZE = 1 << 20


def test_an_area_is_sparse_and_reads_as_zeros(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "area", SIZE)
    assert area.size_bytes == SIZE
    assert area.read(0, SIZE) == bytes(SIZE)
    assert area.path.stat().st_blocks == 0
    area.close()


def test_what_is_written_is_there_after_reopening(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "area", SIZE)
    area.write(4096, bytearray(b"a" * 4096))
    area.write_many(8192, [b"b" * 4096, b"c" * 8192])
    area.flush()
    area.close()
    area = FileArea(tmp_path / "area", read_only=True)
    assert area.read(0, 24576) == bytes(4096) + b"a" * 4096 + b"b" * 4096 + b"c" * 8192 + bytes(4096)
    with pytest.raises(DeviceError) as caught:
        area.write(0, bytes(4096))
    assert caught.value.errno == errno.EBADF
    area.close()


def test_more_buffers_than_the_host_takes_at_once(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "area", 2500 * 4096)
    buffers = [number.to_bytes(2, "big") * 2048 for number in range(2400)]
    area.write_many(4096, buffers)
    assert area.read(4096, 2400 * 4096) == b"".join(buffers)
    area.close()


def test_a_discard_gives_the_room_back(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "area", SIZE)
    area.write(0, b"x" * SIZE)
    area.discard(65536, SIZE - 2 * 65536)
    assert area.read(0, SIZE) == b"x" * 65536 + bytes(SIZE - 2 * 65536) + b"x" * 65536
    assert area.path.stat().st_blocks * 512 <= 3 * 65536
    assert area.path.stat().st_size == SIZE
    area.close()


@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 4096), (-4096, 4096), (0, SIZE + 4096), (1, 4096), (0, 5)]
)
def test_requests_outside_or_across_blocks_are_refused(tmp_path: Path, offset: int, length: int) -> None:
    area = FileArea.create(tmp_path / "area", SIZE)
    with pytest.raises(DeviceError):
        area.read(offset, length)
    with pytest.raises(DeviceError):
        area.write(offset, bytes(length))
    with pytest.raises(DeviceError):
        area.write_many(offset, [bytes(length)])
    with pytest.raises(DeviceError):
        area.discard(offset, length)
    area.close()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "area", SIZE)
    other = FileArea(tmp_path / "area")
    area.lock_writer(tmp_path / "writer.lock")
    with pytest.raises(DeviceError, match="another process") as caught:
        other.lock_writer(tmp_path / "writer.lock")
    assert caught.value.errno == errno.EBUSY
    area.close()
    other.lock_writer(tmp_path / "writer.lock")
    other.close()


def test_missing_and_existing_areas(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot open"):
        FileArea(tmp_path / "area")
    FileArea.create(tmp_path / "area", SIZE).close()
    with pytest.raises(DeviceError, match="cannot create"):
        FileArea.create(tmp_path / "area", SIZE)


def test_a_file_that_became_shorter_is_an_error_not_zeros(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "area", SIZE)
    with open(tmp_path / "area", "r+b") as file:
        file.truncate(SIZE // 2)
    with pytest.raises(DeviceError, match="shorter"):
        area.read(0, SIZE)
    area.close()


def test_digests_are_of_leaves_counted_from_the_range(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "area", SIZE)
    area.write(8192, b"q" * 4096)
    digests = digest_ranges(area, [(4096, 12288), (0, 4096)], 8192)
    assert digests == [
        xxhash.xxh3_128_digest(bytes(4096) + b"q" * 4096),
        xxhash.xxh3_128_digest(bytes(4096)),
        xxhash.xxh3_128_digest(bytes(4096)),
    ]
    with pytest.raises(ValueError, match="leaf"):
        digest_ranges(area, [(0, 4096)], 0)
    area.close()


def test_no_flush_is_believed_after_one_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host tells once that it could not write something, and then forgets it."""
    area = FileArea.create(tmp_path / "area", SIZE)
    area.write(0, b"x" * 4096)
    fdatasync = os.fdatasync

    def fails_once(descriptor: int) -> None:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails_once)
    for _ in range(3):
        with pytest.raises(DeviceError, match="may be lost") as caught:
            area.flush()
        assert caught.value.errno == errno.EIO
        assert area.may_have_lost
    area.accept_loss()
    area.flush()
    assert not area.may_have_lost
    area.close()
