"""Buckets, slots and cookies of directories."""

from errno import ENOSPC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs import directory
from jfs.errors import CorruptionError, FileSystemError

names = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name)
inodes = st.integers(min_value=1, max_value=2**64 - 1)
kinds = st.integers(min_value=1, max_value=15)


@given(st.binary(min_size=1, max_size=255), st.integers(min_value=0, max_value=2**64 - 1))
def test_cookies_are_positive_and_leave_room_for_the_names_not_stored(name: bytes, seed: int) -> None:
    suffix = directory.suffix_of(name, seed)
    highest = suffix | directory.SLOT_COUNT - 1
    assert directory.COOKIE_PARENT < suffix <= highest < 2**63
    assert directory.split_cookie(highest) == (suffix, directory.SLOT_COUNT - 1)


def test_the_seed_changes_where_names_go() -> None:
    assert directory.suffix_of(b"name", 1) != directory.suffix_of(b"name", 2)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), inodes, kinds), max_size=60))
def test_a_bucket_behaves_like_a_dictionary_whose_slots_stay(steps: list[tuple[bool, int, int, int]]) -> None:
    bucket: bytes | None = None
    expected: dict[bytes, tuple[int, int]] = {}
    slots: dict[bytes, int] = {}
    for add, number, ino, kind in steps:
        name = b"name%d" % number
        if add and name in expected:
            bucket = directory.replace(bucket or b"", name, ino, kind)
            expected[name] = (ino, kind)
        elif add:
            bucket = directory.insert(bucket, name, ino, kind)
            expected[name] = (ino, kind)
            free = min(set(range(directory.SLOT_COUNT)) - set(slots.values()))
            slots[name] = free
        elif name in expected:
            bucket = directory.remove(bucket or b"", name)
            del expected[name], slots[name]
        else:
            with pytest.raises(KeyError):
                directory.remove(bucket or b"", name)
        found = list(directory.entries(bucket or b""))
        assert {entry.name: (entry.ino, entry.kind) for entry in found} == expected
        assert {entry.name: entry.slot for entry in found} == slots
        assert [entry.slot for entry in found] == sorted(slots.values())
        for wanted in (b"name%d" % other for other in range(10)):
            entry = directory.find(bucket or b"", wanted)
            assert (entry is None) == (wanted not in expected)
            assert entry is None or (entry.ino, entry.kind, entry.slot) == (*expected[wanted], slots[wanted])
    assert (bucket is None) == (not expected)


@given(names, names, inodes)
def test_find_is_not_fooled_by_a_name_that_ends_alike(name: bytes, other: bytes, ino: int) -> None:
    bucket = directory.insert(None, name, ino, 8)
    found = directory.find(bucket, other)
    assert (found is not None) == (name == other)


def test_a_full_bucket_is_refused_and_left_as_it_was() -> None:
    bucket = b""
    fits = 4000 // (255 + 11)
    for number in range(fits):
        bucket = directory.insert(bucket, b"%0255d" % number, 5, 8)
    with pytest.raises(FileSystemError) as caught:
        directory.insert(bucket, b"%0255d" % fits, 5, 8)
    assert caught.value.errno == ENOSPC
    assert len(list(directory.entries(bucket))) == fits


@pytest.mark.parametrize("cut", range(1, 15))
def test_a_torn_bucket_is_noticed(cut: int) -> None:
    bucket = directory.insert(None, b"name", 7, 8)
    torn = bucket[:-cut]
    if torn:
        with pytest.raises(CorruptionError, match="ends inside"):
            list(directory.entries(torn))
    else:
        assert list(directory.entries(torn)) == []


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        (b"page-0017.png", b"page-0"),
        (b"page-0017_left.png", b"page-0"),
        (b"song123.mp3", b"song"),
        (b"part.00000017", b"part.00000"),
        (b"7", b""),
        (b".profile", b".prof"),
        (b"read.me", b"r"),
        (b"archive.tar.gz", b"archive."),
        (b"1700000123.M5P77.host", b"1700000123.M5"),
    ],
)
def test_the_stem_of_a_name(name: bytes, stem: bytes) -> None:
    assert directory.stem_of(name) == stem


@pytest.mark.parametrize(
    "pattern", [b"file-%08d", b"IMG_%06d.jpg", b"f%06d", b"frame_%05d_left.exr", b"log.%d"]
)
def test_names_of_a_series_lie_side_by_side(pattern: bytes) -> None:
    """A thousand of them, among a hundred thousand, are in some ten pieces of the directory."""
    order = sorted(range(100_000), key=lambda number: directory.suffix_of(pattern % number, 7))
    wanted = [20_000 <= number < 21_000 for number in order]
    pieces = sum(one and not before for before, one in zip([False, *wanted], wanted, strict=False))
    spread = [place for place, one in enumerate(wanted) if one]
    assert pieces < 1000
    assert len({place // 300 for place in spread}) < 30


def test_any_names_have_hashes_of_their_own() -> None:
    """Also where much of the name is the same for all."""
    for names in (
        [b"%x" % (number * 0x9E3779B97F4A7C15 % (1 << 64)) for number in range(100_000)],
        [b"1700000000.M%dP%d.host" % (number * 7919 % 1_000_000, number) for number in range(100_000)],
        [b"file-%08d" % number for number in range(100_000)],
    ):
        assert len({directory.suffix_of(name, 7) for name in names}) > len(names) - 10
