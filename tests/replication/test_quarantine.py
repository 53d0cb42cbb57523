"""What a returning site alone has is kept whole or not at all."""

from pathlib import Path

import msgspec
import pytest

from jfs.listing import ListedFile
from replication.quarantine import KeptFile, QuarantineWriter, read_entries, read_listing_file
from replication.restoring import QuarantineDamaged, kept_at, places_of, restore
from replication.site_listing import _report
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


def kept_file(inode: int, path: str, *pieces: tuple[int, int, int], **changes: int) -> KeptFile:
    kept = sum(length for _, _, length in pieces)
    return KeptFile(
        inode=inode,
        path=path,
        ranges=[],
        bytes=kept,
        why="blocks in these ranges may be newer",
        size_bytes=changes.get("size_bytes", 8192),
        allocated_bytes=changes.get("allocated_bytes", kept),
        pieces=list(pieces),
    )


def test_files_are_restored_from_the_blocks_that_were_theirs(tmp_path: Path) -> None:
    """Later writes hold, bytes beyond the end of a file go, and what was not kept is a hole."""
    writer = QuarantineWriter(tmp_path / "quarantine", 2, 10)
    writer.add([*ENTRIES, write_entry(15, 9, 73728, b"c" * 4096)])
    whole = kept_file(16, "/dir/whole", (0, 8192, 8192), size_bytes=5000)
    part = kept_file(17, "/part", (8192, 65536, 4096), size_bytes=20000, allocated_bytes=12288)
    assert writer.finish("primary", [whole, part], complete=True) is not None
    (kept,) = kept_at(tmp_path / "quarantine")
    (to := tmp_path / "to").mkdir()
    result = restore(kept, to, blocks=True)
    assert (to / "files/dir/whole").read_bytes() == b"b" * 5000
    assert (to / "files/part").read_bytes() == bytes(20000)
    assert [(file.path, file.whole, file.kept_bytes) for file in result.files] == [
        ("/dir/whole", True, 8192),
        ("/part", False, 4096),
    ]
    assert (result.file_bytes, result.other_bytes) == (8192 + 4096, 4096 + 4096)
    image = (to / "blocks").read_bytes()
    assert image[8192:16384] == b"b" * 8192
    assert image[65536:] == bytes(8192) + b"c" * 4096
    assert msgspec.json.decode((to / "restored.json").read_bytes())["other_bytes"] == 8192


def test_damage_stops_the_restoring_and_keeps_what_came_before(tmp_path: Path) -> None:
    writer = QuarantineWriter(tmp_path / "quarantine", 2, 10)
    writer.add([write_entry(11, 5, 0, b"a" * 4096), write_entry(12, 5, 4096, b"b" * 4096)])
    path = writer.finish("primary", [kept_file(16, "/f", (0, 0, 8192))], complete=True)
    assert path is not None
    raw = bytearray((path / "entries").read_bytes())
    raw[-1] ^= 1
    (path / "entries").write_bytes(raw)
    (kept,) = kept_at(tmp_path / "quarantine")
    (to := tmp_path / "to").mkdir()
    with pytest.raises(QuarantineDamaged, match=r"entry 12 .* is damaged; what was kept before"):
        restore(kept, to, blocks=False)
    assert (to / "files/f").read_bytes() == b"a" * 4096 + bytes(4096)


def test_a_listing_of_an_older_release_is_read(tmp_path: Path) -> None:
    writer = QuarantineWriter(tmp_path, 2, 10)
    writer.add(ENTRIES)
    path = writer.finish("primary", [kept_file(16, "/f", (0, 8192, 8192))], complete=True)
    assert path is not None
    listing = msgspec.json.decode((path / "listing.json").read_bytes())
    for file in listing["files"]:
        for new in ("pieces", "size_bytes", "allocated_bytes"):
            del file[new]
    (path / "listing.json").write_bytes(msgspec.json.encode(listing))
    (kept,) = kept_at(tmp_path)
    assert not kept.listing.files[0].whole
    (to := tmp_path / "to").mkdir()
    assert restore(kept, to, blocks=True).other_bytes == 16384
    assert (to / "blocks").read_bytes()[8192:16384] == b"b" * 8192


def test_half_a_quarantine_is_none_and_a_damaged_listing_is_told(tmp_path: Path) -> None:
    assert kept_at(tmp_path / "missing") == []
    (tmp_path / ".epoch-2-after-10.part").mkdir()
    assert kept_at(tmp_path) == []
    (tmp_path / "epoch-2-after-10").mkdir()
    (tmp_path / "epoch-2-after-10" / "listing.json").write_text("{")
    with pytest.raises(QuarantineDamaged, match="cannot be read"):
        kept_at(tmp_path)


@pytest.mark.parametrize(
    "path", ["(inode 9)/f", "/../../etc/passwd", "/", "/f\0", "/taken", "/taken/below", "/dir"]
)
def test_a_path_that_cannot_be_used_is_not(path: str) -> None:
    """Names come from an area that may be damaged, and of hard links one may be an old name."""
    first = [kept_file(16, "/taken"), kept_file(17, "/dir/f")]
    places = places_of([*first, kept_file(18, path)])
    assert str(places[16]) == "files/taken"
    assert str(places[17]) == "files/dir/f"
    assert str(places[18]) == "unnamed/inode-18"


def test_a_name_that_is_no_text_can_be_told() -> None:
    """Names are bytes; a listing travels as JSON, which has none for these."""
    told = _report(ListedFile(16, "/dir/sm\udcffall", [], [], 0, "why"))
    assert told.path == "/dir/sm\\xffall"
    assert b"sm" in msgspec.json.encode(told)
