"""The entry: its header, its checksum, the payload of a marker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsap.entry import (
    DISCARD,
    HEADER_BYTES,
    MARKER,
    WRITE,
    Entry,
    decode_marker,
    discard_entry,
    encode_marker,
    marker_entry,
    write_entry,
)

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)


@given(U64, U64, U64, U32, st.sampled_from([WRITE, DISCARD, MARKER]), U64)
def test_a_header_is_read_as_it_was_packed(
    sequence: int, timestamp: int, offset: int, length: int, kind: int, checksum: int
) -> None:
    entry = Entry(sequence, timestamp, offset, length, kind, checksum)
    assert Entry.unpack(entry.pack_header()) == entry


def test_the_header_has_the_bytes_the_page_promises() -> None:
    header = Entry(1, 2, 4096, 8192, WRITE, 5).pack_header()
    assert header.hex() == (
        "01000000000000000200000000000000001000000000000000200000010000000500000000000000"
    )
    assert len(header) == HEADER_BYTES == 40


def test_a_wrong_header_is_refused() -> None:
    header = bytearray(write_entry(1, 2, 0, b"x").pack_header())
    with pytest.raises(ValueError, match="40 bytes"):
        Entry.unpack(bytes(header[:-1]))
    header[28] = 9
    with pytest.raises(ValueError, match="unknown kind 9"):
        Entry.unpack(bytes(header))


def test_an_entry_knows_whether_its_payload_is_its_own() -> None:
    entry = write_entry(7, 1, 4096, b"a" * 4096)
    assert entry.intact()
    assert (entry.end, entry.payload_length) == (8192, 4096)
    assert not Entry.unpack(entry.pack_header(), b"b" * 4096).intact()
    assert not Entry.unpack(entry.pack_header()).intact()


def test_a_discard_has_no_payload_but_a_length() -> None:
    entry = discard_entry(7, 1, 4096, 1 << 20)
    assert entry.intact()
    assert (entry.end, entry.payload_length) == (4096 + (1 << 20), 0)


@given(st.lists(st.tuples(U64, U64), max_size=20), st.integers(1, (1 << 32) - 1))
def test_a_marker_carries_its_ranges(ranges: list[tuple[int, int]], leaf_bytes: int) -> None:
    entry = marker_entry(3, 1, ranges, leaf_bytes)
    assert entry.intact()
    assert entry.end == entry.offset == 0
    assert decode_marker(entry.payload) == (ranges, leaf_bytes)


@given(st.binary(max_size=60))
def test_any_payload_is_a_marker_or_refused(payload: bytes) -> None:
    try:
        ranges, leaf_bytes = decode_marker(payload)
    except ValueError:
        return
    assert encode_marker(ranges, leaf_bytes) == payload
