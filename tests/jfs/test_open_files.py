"""What a handle says, and when the kernel must be told that a file has other blocks."""

import os
from itertools import pairwise

import pytest

from jfs.open_files import (
    ACCESSES,
    BLOCKS_SHARE,
    CLEARS,
    DIRECT,
    HANDLE_SHIFT,
    WRITES,
    Writers,
    make_handle,
)


@pytest.mark.parametrize(
    ("flags", "clears", "bits"),
    [
        (os.O_RDONLY, False, ACCESSES),
        (os.O_RDONLY, True, ACCESSES),
        (os.O_RDONLY | os.O_NOATIME, False, 0),
        (os.O_WRONLY, False, WRITES),
        (os.O_WRONLY, True, WRITES | CLEARS),
        (os.O_RDWR, False, WRITES | ACCESSES),
        (os.O_RDWR | os.O_DIRECT, False, WRITES | ACCESSES | DIRECT),
        (os.O_RDWR | os.O_NOATIME, True, WRITES | CLEARS),
    ],
)
def test_a_handle(flags: int, clears: bool, bits: int) -> None:
    handle = make_handle(77, flags, clears=clears)
    assert handle >> HANDLE_SHIFT == 77
    assert handle & (1 << HANDLE_SHIFT) - 1 == bits


def test_a_file_is_written_while_a_handle_is_open_for_writing() -> None:
    writers = Writers()
    reading = make_handle(5, os.O_RDONLY, clears=False)
    first, second = (make_handle(5, os.O_WRONLY, clears=False) for _ in range(2))
    writers.opened(reading, 0)
    assert 5 not in writers
    writers.opened(first, 0)
    writers.opened(second, 0)
    writers.released(first)
    writers.released(reading)
    assert 5 in writers
    writers.released(second)
    assert 5 not in writers


def test_the_kernel_is_told_of_new_blocks_where_they_matter() -> None:
    writers = Writers()
    assert not writers.is_stale(5, 1), "nobody has it open for writing"
    writers.opened(make_handle(5, os.O_WRONLY, clears=False), 0)
    assert not writers.is_stale(5, 0)
    assert writers.is_stale(5, 1)
    assert not writers.is_stale(5, 1), "it knows"
    told = [blocks for blocks in range(1, 10_001) if writers.is_stale(5, blocks)]
    assert len(told) < 200, "not at every block of a file that grows"
    assert all(after - before <= before // BLOCKS_SHARE + 1 for before, after in pairwise(told))
    assert writers.is_stale(5, 0)
