"""docs/queue.md and the code say the same bytes."""

import re
import struct
from contextlib import closing
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
import xxhash

from jfs.errors import CorruptionError
from vsap import condition, entry, index, payload, positions
from vsap.queue import EntryQueue

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "queue.md").read_text(encoding="utf-8")
VOLUME = UUID("00112233-4455-6677-8899-aabbccddeeff")
STRUCTS = {
    "Condition": condition.SLOT,
    "Index record": index.RECORD,
    "State": index.STATE,
    "Volume": index.VOLUME,
    "Segment": payload.HEADER,
    "Entry header": entry.HEADER,
    "Written positions": positions.HEADER,
    "Map": positions.MAP,
    "Written-positions record": positions.RECORD,
}


def rows(title: str) -> list[tuple[int, int, str]]:
    """The table of a section: offset, bytes, field."""
    section = re.split(r"^## ", PAGE.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^\| (\d+) \| (\d+) \| (.+) \|$", section, flags=re.MULTILINE)
    return [(int(offset), int(size), field) for offset, size, field in found]


def fields(layout: struct.Struct) -> list[tuple[int, int]]:
    """Offset and bytes of each field of a struct."""
    found, place = [], 0
    for count, kind in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        one = struct.calcsize("<" + kind)
        for size in [int(count or 1) * one] if kind in "sx" else [one] * int(count or 1):
            if kind != "x":
                found.append((place, size))
            place += size
    assert place == layout.size
    return found


@pytest.mark.parametrize("title", STRUCTS)
def test_the_tables_are_the_structs(title: str) -> None:
    assert [(offset, size) for offset, size, _ in rows(title)] == fields(STRUCTS[title])


def test_the_fields_of_the_state_are_named_in_their_order() -> None:
    names = [field.name for field in msgspec.structs.fields(index.State)]
    assert [re.split(r"[,: ]", field)[0] for _, _, field in rows("State")] == [*names, "check"]
    reasons = rows("State")[-2][2].split(": ", 1)[1]
    assert [reason.split()[1] for reason in reasons.split(", ")] == ["none", *index.DROP_REASONS[1:]]


def test_the_kinds_are_those_of_the_page() -> None:
    text = next(field for _, _, field in rows("Index record") if field.startswith("kind"))
    assert text == "kind: " + ", ".join(f"{kind.value} {kind.name.lower()}" for kind in entry.Kind)


@pytest.mark.parametrize(
    ("title", "magic"),
    [
        ("Condition", condition.MAGIC),
        ("Volume", index.VOLUME_MAGIC),
        ("Segment", payload.MAGIC),
        ("Written positions", positions.MAGIC),
    ],
)
def test_the_magics_are_those_of_the_page(title: str, magic: bytes) -> None:
    assert f"`{magic.decode()}`" in rows(title)[0][2]


def test_the_bytes_of_a_queue_with_one_entry(tmp_path: Path) -> None:
    """Read without any of the code that wrote them, but LMDB."""
    queue = EntryQueue.open(tmp_path, VOLUME, next_sequence=7, boot=UUID(int=3))
    data = b"payload!" * 512
    queue.append_batch([entry.write_entry(7, 99, 8192, data)], eligible_sequence=7)
    segment = (tmp_path / "segments" / "0000000001").read_bytes()
    assert segment[:8] == b"trisiteP"
    assert struct.unpack_from("<II16sQ", segment, 8) == (1, 64, VOLUME.bytes, 1)
    assert segment[64:] == data
    with queue._environment.begin() as txn:
        record = txn.get(struct.pack("@Q", 7), db=queue._index)
        state = txn.get(b"state", db=queue._meta)
        volume = txn.get(b"volume", db=queue._meta)
    assert record is not None
    assert state is not None
    fields = (99, 8192, 4096, 1, 64, 1, entry.checksum_of(data), 0)
    check = xxhash.xxh3_64_intdigest(struct.pack("@Q", 7) + record[:48])
    assert struct.unpack("<QQIIIB3xQQQ", record) == (*fields, check)
    check = xxhash.xxh3_64_intdigest(b"state" + state[:88])
    assert struct.unpack("<9Q3I3BxQ", state) == (8, 7, 6, 0, 0, 0, 4096, 7, 0, 1, 1, 4160, 1, 0, 0, check)
    assert volume == b"trisiteQ" + struct.pack("<I4x", 3) + VOLUME.bytes
    slots = (tmp_path / "condition").read_bytes()
    slot = condition.unpack_slot(slots[:512])  # the second one written: it reserves
    assert slot is not None
    assert (slot.clean, slot.volume, slot.boot) == (False, VOLUME, UUID(int=3))
    assert slot.ceiling > 7
    queue.close()


def test_a_flipped_bit_in_an_index_record_is_found(tmp_path: Path) -> None:
    """An entry whose offset changed would be right data in the wrong place at the far site."""
    with closing(EntryQueue.open(tmp_path, VOLUME)) as queue:
        queue.append_batch([entry.write_entry(1, 99, 8192, bytes(4096))], eligible_sequence=1)
        with queue._environment.begin() as txn:
            whole = txn.get(struct.pack("@Q", 1), db=queue._index)
        assert whole is not None
        for place in range(len(whole)):
            with queue._environment.begin(write=True) as txn:
                txn.put(struct.pack("@Q", 1), flipped(whole, place), db=queue._index)
            with pytest.raises(CorruptionError, match="index record of entry 1 is damaged"):
                queue.read(1)
            with pytest.raises(CorruptionError, match="index record of entry 1 is damaged"):
                queue.read_these([1])
            with pytest.raises(CorruptionError, match="index record of entry 1 is damaged"):
                queue.read_index(1, verify=True)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


@pytest.mark.parametrize("place", [0, 8, 16, 32, 40, 72, 84, 88])
def test_a_queue_whose_state_is_damaged_is_dropped(tmp_path: Path, place: int) -> None:
    """It is not believed, and numbering goes on behind everything that can have been issued."""
    with closing(EntryQueue.open(tmp_path, VOLUME)) as queue:
        queue.append_batch([entry.discard_entry(1, 1, 0, 4096)], eligible_sequence=1)
        with queue._environment.begin(write=True) as txn:
            state = txn.get(b"state", db=queue._meta)
            assert state is not None
            txn.put(b"state", flipped(state, place), db=queue._meta)
    with closing(EntryQueue.open(tmp_path, VOLUME)) as queue:
        state_now = queue.state()
        assert (queue.trusted, state_now.drop_reason, queue.read(0)) == (False, "damaged", [])
        assert state_now.next_sequence > 2


def test_a_torn_condition_leaves_the_other_slot(tmp_path: Path) -> None:
    EntryQueue.open(tmp_path, VOLUME, boot=UUID(int=3)).close()
    path = tmp_path / "condition"
    whole = path.read_bytes()
    newest = max((0, 512), key=lambda place: struct.unpack_from("<Q", whole, place + 48)[0])
    torn = bytearray(whole)
    torn[newest + 20] ^= 1
    path.write_bytes(torn)
    queue = EntryQueue.open(tmp_path, VOLUME, boot=UUID(int=4))
    assert not queue.trusted, "the older slot says that the directory was in use"
    queue.close()


def test_a_directory_without_a_readable_condition_is_not_believed(tmp_path: Path) -> None:
    queue = EntryQueue.open(tmp_path, VOLUME)
    queue.append_batch([entry.discard_entry(1, 1, 0, 4096)])
    queue.close()
    (tmp_path / "condition").unlink()
    queue = EntryQueue.open(tmp_path, VOLUME)
    assert not queue.trusted
    assert queue.read(0) == []
    queue.close()
