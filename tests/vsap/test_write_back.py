"""What long writes have the host do with their pages."""

import ctypes
import mmap
import os
import threading
from pathlib import Path

import pytest

from vsap.area import FileArea
from vsap.write_back import LONG_BYTES, WINDOW_BYTES, WriteBack

Range = tuple[int, int]
ANY = 7  # a descriptor that nothing is done with


class Host:
    """Takes the hints instead of the host; the first waits until `let_go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hints: list[Range] = []
        self.let_go = threading.Event()
        self.let_go.set()
        monkeypatch.setattr(os, "posix_fadvise", self._take)

    def _take(self, descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        self.let_go.wait()
        self.hints.append((offset, length))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def done(writing: WriteBack) -> None:
    if writing._work is not None:
        writing._work.result()


def test_a_window_is_written_back_when_it_is_full_and_given_up_two_later(host: Host) -> None:
    writing = WriteBack()
    for number in range(4 * WINDOW_BYTES // (1 << 20)):
        writing.wrote(ANY, number << 20, 1 << 20)
        done(writing)
    first, second, third, fourth = ((number * WINDOW_BYTES, WINDOW_BYTES) for number in range(4))
    assert host.hints == [first, second, third, first, fourth, second]
    writing.close()


def test_what_is_written_in_small_pieces_stays(host: Host) -> None:
    writing = WriteBack()
    for number in range(2 * WINDOW_BYTES // 4096):
        writing.wrote(ANY, number * 4096, 4096)
    done(writing)
    assert host.hints == []
    writing.close()


def test_writes_here_and_there_are_told_one_by_one(host: Host) -> None:
    writing = WriteBack()
    places = [number * 10 * LONG_BYTES for number in range(WINDOW_BYTES // LONG_BYTES)]
    for place in places:
        writing.wrote(ANY, place, LONG_BYTES)
    done(writing)
    assert host.hints == [(place, LONG_BYTES) for place in places]
    writing.close()


def test_a_disk_that_cannot_keep_up_is_not_waited_for(host: Host) -> None:
    host.let_go.clear()
    writing = WriteBack()
    for number in range(5):
        writing.wrote(ANY, number * WINDOW_BYTES, WINDOW_BYTES)
    assert host.hints == []
    host.let_go.set()
    writing.close()
    assert host.hints == [(0, WINDOW_BYTES)]


def test_a_process_without_threads_writes_all_the_same(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writing = WriteBack()
    for number in range(3):
        writing.wrote(ANY, number * WINDOW_BYTES, WINDOW_BYTES)
    writing.close()
    assert host.hints == []


def test_nothing_is_done_with_a_descriptor_after_close(host: Host) -> None:
    host.let_go.clear()
    writing = WriteBack()
    writing.wrote(ANY, 0, WINDOW_BYTES)
    threading.Timer(0.1, host.let_go.set).start()
    writing.close()
    assert host.hints == [(0, WINDOW_BYTES)], "what was begun was waited for"
    writing.wrote(ANY, WINDOW_BYTES, WINDOW_BYTES)
    assert len(host.hints) == 1


def resident(path: Path) -> int:
    """How many bytes of a file are in the page cache: mincore(2), which has nothing read."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = len(mapped) // mmap.PAGESIZE
        answer = (ctypes.c_ubyte * pages)()
        first = ctypes.c_ubyte.from_buffer(mapped)
        try:
            assert libc.mincore(ctypes.byref(first), ctypes.c_size_t(len(mapped)), answer) == 0
        finally:
            del first
        return sum(one & 1 for one in answer) * mmap.PAGESIZE


def test_the_host_gives_the_pages_up(tmp_path: Path) -> None:
    area = FileArea.create(tmp_path / "area", 16 * WINDOW_BYTES)
    data = os.urandom(WINDOW_BYTES)
    for number in range(16):
        area.write(number * WINDOW_BYTES, data)
        area.flush()
        done(area._write_back)
    held = resident(area.path)
    assert area.read(3 * WINDOW_BYTES, WINDOW_BYTES) == data
    with area.path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    area.close()
    if resident(area.path):
        pytest.skip("a file system in memory")
    assert held <= 4 * WINDOW_BYTES
