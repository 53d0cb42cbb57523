"""What a returning site alone has is kept whole or not at all."""

from pathlib import Path

import pytest

from replication.quarantine import QuarantineWriter, read_entries, read_listing_file
from vsap.entry import discard_entry, marker_entry, write_entry

ENTRIES = [
    write_entry(11, 5, 8192, b"a" * 4096),
    marker_entry(12, 6, [(0, 4096)], 4096),
    discard_entry(13, 7, 65536, 8192),
    write_entry(14, 8, 8192, b"b" * 8192),
]


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    writer = QuarantineWriter(tmp_path, 2, 10)
    writer.add(ENTRIES)
    path = writer.finish("primary", [], complete=True)
    assert path is not None
    assert list(read_entries(path)) == [ENTRIES[0], ENTRIES[2], ENTRIES[3]]
    listing = read_listing_file(path)
    assert listing.ranges == [(8192, 8192), (65536, 8192)]
    assert (listing.entries, listing.bytes, listing.after_sequence) == (3, 16384, 10)


def test_a_killed_run_leaves_nothing_under_the_name_and_the_next_one_is_whole(tmp_path: Path) -> None:
    killed = QuarantineWriter(tmp_path, 2, 10)
    killed.add(ENTRIES[:1])
    assert not killed.path.exists()
    killed._file.close()  # what the kernel does for a process that was killed
    again = QuarantineWriter(tmp_path, 2, 10)
    again.add(ENTRIES)
    path = again.finish("primary", [], complete=True)
    assert path == killed.path
    assert len(list(read_entries(path))) == 3


def test_nothing_to_keep_leaves_nothing(tmp_path: Path) -> None:
    assert QuarantineWriter(tmp_path, 2, 10).finish("primary", [], complete=True) is None
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found(tmp_path: Path) -> None:
    writer = QuarantineWriter(tmp_path, 2, 10)
    writer.add(ENTRIES)
    path = writer.finish("primary", [], complete=True)
    assert path is not None
    raw = bytearray((path / "entries").read_bytes())
    raw[100] ^= 1
    (path / "entries").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        list(read_entries(path))
