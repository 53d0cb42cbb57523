"""The set journal: what counts, what is cut off, what is kept of it; and the page that shows its bytes."""

import errno
import random
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from replication.bodies import (
    Marker,
    SetBegin,
    SetCommit,
    SetKind,
    encode_discard,
    encode_marker,
    encode_set_begin,
    encode_set_commit,
    encode_write,
)
from replication.errors import RemoteProtocolError
from replication.frames import Buffer, Decoder, Frame, FrameType
from replication.journal_files import JournalFiles
from replication.position import NOWHERE, Position
from replication.set_format import (
    SEGMENT_FIELDS,
    SEGMENT_HEADER_BYTES,
    SLOT_FIELDS,
    TIME_FIELDS,
    Place,
    Slot,
    newest_slot,
    pack_segment_header,
    pack_slot,
)
from replication.set_journal import JournalError, JournalledSet, SetJournal
from tests.replication.far_pair import BLOCK, SIZE, VOLUME, Host, MemoryFiles

PAGE = Path(__file__).resolve().parents[2] / "docs" / "set_journal.md"


def frames_from(*encoded: list[Buffer]) -> list[Frame]:
    decoder = Decoder()
    frames: list[Frame] = []
    for buffers in encoded:
        decoder.receive_data(b"".join(buffers))
        frame = decoder.next_frame()
        assert frame is not None
        frames.append(frame)
    return frames


def a_set(
    before: Position,
    sequence: int,
    blocks: Sequence[int] = (0,),
    *,
    kind: SetKind = SetKind.ENTRIES,
    epoch: int = 1,
    marker: bool = False,
) -> list[Frame]:
    """A set that writes the given blocks, each with the set's sequence."""
    begin = SetBegin(*before, sequence, kind)
    data = [
        encode_write(
            VOLUME,
            epoch,
            sequence,
            block * BLOCK,
            7,
            sequence.to_bytes(8, "big") * (BLOCK // 8),
            FrameType.SET_DATA,
        )
        for block in blocks
    ]
    markers = [
        encode_marker(VOLUME, epoch, sequence, Marker(7, BLOCK, ((0, SIZE),)), FrameType.SET_MARKER)
        for _ in range(marker)
    ]
    return frames_from(
        encode_set_begin(VOLUME, epoch, sequence, begin),
        *data,
        *markers,
        encode_set_commit(VOLUME, epoch, sequence, SetCommit(len(data) + marker, len(data) * BLOCK)),
    )


def store(journal: SetJournal, *sets: list[Frame]) -> list[JournalledSet]:
    whole = journal.append([journal.check(frame) for frames in sets for frame in frames])
    journal.sync()
    return whole


def opened(directory: Path, segment_bytes: int = 64 << 20) -> SetJournal:
    return SetJournal(directory, VOLUME, SIZE, segment_bytes=segment_bytes)


@pytest.fixture
def journal(tmp_path: Path) -> SetJournal:
    with opened(tmp_path / "journal") as journal:
        journal.reset(Position(1, 0))
        return journal


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "journal").glob("*.sets"))


def test_whole_sets_are_there_after_opening_and_an_incomplete_one_is_not(
    journal: SetJournal, tmp_path: Path
) -> None:
    first = a_set(Position(1, 0), 1, [1, 2])
    second = a_set(Position(1, 1), 5, [3], marker=True)
    store(journal, first, second)
    journal.append([journal.check(frame) for frame in a_set(Position(1, 5), 6)[:-1]])
    journal.close()
    with opened(tmp_path / "journal") as again:
        assert again.flushed == Position(1, 0)
        assert again.tail == Position(1, 5)
        assert again.discarded_bytes > BLOCK
        assert [one.head.after for one in again.waiting] == [Position(1, 1), Position(1, 5)]
        assert list(again.frames_of(again.waiting[0])) == first
        assert list(again.frames_of(again.waiting[0], again.waiting[1])) == first + second
        store(again, a_set(Position(1, 5), 6))
    with opened(tmp_path / "journal") as again:
        assert again.tail == Position(1, 6)
        assert again.discarded_bytes == 0


def test_a_journal_cut_at_any_byte_holds_the_sets_that_are_whole(journal: SetJournal, tmp_path: Path) -> None:
    whole = store(journal, *[a_set(Position(1, n), n + 1, [n]) for n in range(3)])
    journal.close()
    (segment,) = segments(tmp_path)
    content = segment.read_bytes()
    ends = [one.end.offset for one in whole]
    chance = random.Random(5)
    interesting = {end + by for end in ends for by in (-1, 0, 1)} | {0, 1, 63, 64, 65}
    for size in sorted(interesting | {chance.randrange(len(content)) for _ in range(60)}):
        segment.write_bytes(content[:size])
        with opened(tmp_path / "journal") as again:
            assert len(again.waiting) == sum(end <= size for end in ends)
            assert again.tail == Position(1, len(again.waiting))
        segments_now = segments(tmp_path)
        for other in segments_now:
            if other != segment:
                other.unlink()
        # What was cut may have made the journal begin in a segment that never was: put it back.
        (tmp_path / "journal" / "position").unlink()
        segment.unlink(missing_ok=True)
        with opened(tmp_path / "journal") as fresh:
            fresh.reset(Position(1, 0))
            assert segment_number(segment) == fresh._slot.place.segment


def segment_number(path: Path) -> int:
    return int(path.stem, 16)


def test_a_flipped_bit_ends_the_journal_there(journal: SetJournal, tmp_path: Path) -> None:
    whole = store(journal, *[a_set(Position(1, n), n + 1, [n]) for n in range(3)])
    journal.close()
    (segment,) = segments(tmp_path)
    content = bytearray(segment.read_bytes())
    chance = random.Random(6)
    for _ in range(40):
        at = chance.randrange(SEGMENT_HEADER_BYTES, len(content))
        damaged = bytearray(content)
        damaged[at] ^= 1 << chance.randrange(8)
        segment.write_bytes(damaged)
        with opened(tmp_path / "journal") as again:
            assert len(again.waiting) == sum(one.end.offset <= at for one in whole)
            assert again.discarded_bytes > 0


def test_what_is_applied_and_flushed_is_unlinked(tmp_path: Path) -> None:
    with opened(tmp_path / "journal", segment_bytes=3 * BLOCK) as journal:
        journal.reset(Position(1, 0))
        most = 0
        for number in range(60):
            (one,) = store(journal, a_set(Position(1, number), number + 1, [0, 1]))
            if number % 4 == 3:
                journal.release(one)
            most = max(most, len(segments(tmp_path)))
        assert most <= 6
        assert journal.used_bytes < 8 * 3 * BLOCK
        assert journal.flushed == Position(1, 60)
    with opened(tmp_path / "journal", segment_bytes=3 * BLOCK) as again:
        assert again.waiting == []
        assert again.tail == Position(1, 60)


def test_reset_forgets_sets_and_survives(journal: SetJournal, tmp_path: Path) -> None:
    store(journal, a_set(Position(1, 0), 1))
    journal.reset(Position(3, 70))
    assert segments(tmp_path) == []
    store(journal, a_set(Position(3, 70), 71, epoch=3))
    journal.close()
    with opened(tmp_path / "journal") as again:
        assert again.flushed == Position(3, 70)
        assert [one.head.after for one in again.waiting] == [Position(3, 71)]


@pytest.mark.parametrize(
    "frames",
    [
        a_set(Position(1, 1), 2),  # a gap
        a_set(Position(2, 0), 2),  # another epoch's position
        a_set(NOWHERE, 2),
        a_set(Position(1, 0), 0),  # leads nowhere
        a_set(Position(1, 0), 2, kind=SetKind.PART),  # this site holds a state
        a_set(Position(1, 0), 2)[1:],  # no begin
        [a_set(Position(1, 0), 2)[0], *a_set(Position(1, 0), 2)],  # a begin inside
        [*a_set(Position(1, 0), 2)[:2], a_set(Position(1, 0), 2)[-1]._replace(epoch=2)],
        [*a_set(Position(1, 0), 2)[:1], a_set(Position(1, 0), 2)[-1]],  # a frame is missing
        [*a_set(Position(1, 0), 2)[:2], a_set(Position(1, 0), 3)[-1]],  # commits another sequence
        a_set(Position(1, 0), 2, [SIZE // BLOCK]),  # outside of the area
        [a_set(Position(1, 0), 2)[0], a_set(Position(1, 0), 3)[1]],  # an entry beyond the set
        [*a_set(Position(1, 0), 2, marker=True)[:3], a_set(Position(1, 0), 2)[1]],  # behind the marker
        a_set(Position(1, 0), 2, marker=True, kind=SetKind.DIFFERENCE),
        [
            a_set(Position(1, 0), 2)[0],
            *frames_from(encode_discard(VOLUME, 1, 2, SIZE, 0, BLOCK, FrameType.SET_DISCARD)),
        ],
    ],
)
def test_what_does_not_belong_is_refused_and_leaves_nothing(journal: SetJournal, frames: list[Frame]) -> None:
    checked = []
    refusal: RemoteProtocolError | None = None
    for frame in frames:
        try:
            checked.append(journal.check(frame))
        except RemoteProtocolError as error:
            refusal = error
            break
    assert refusal is not None
    journal.append(checked)
    journal.discard_incomplete()
    assert journal.tail == Position(1, 0)
    store(journal, a_set(Position(1, 0), 1))
    assert journal.tail == Position(1, 1)


def test_a_difference_set_may_lead_anywhere_and_parts_lead_nowhere(tmp_path: Path) -> None:
    with opened(tmp_path / "journal") as journal:
        assert journal.tail == NOWHERE
        store(journal, a_set(NOWHERE, 0, kind=SetKind.PART), a_set(NOWHERE, 0, kind=SetKind.PART))
        assert journal.tail == NOWHERE
        store(journal, a_set(NOWHERE, 30, kind=SetKind.DIFFERENCE))
        assert journal.tail == Position(1, 30)
        store(journal, a_set(Position(1, 30), 20, kind=SetKind.RECOVERY, epoch=2))
        assert journal.tail == Position(2, 20)


class FullDisk(JournalFiles):
    """A disk that is full while `full` says so; `broken` fails every sync."""

    full = False
    broken = False

    def write(self, name: str, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        if self.full:
            super().write(name, offset, [b"".join(buffers)[:100]])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(name, offset, buffers)

    def sync(self, name: str) -> None:
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(name)


def test_a_full_disk_costs_the_set_that_did_not_fit(tmp_path: Path) -> None:
    files = FullDisk(tmp_path / "journal")
    with SetJournal(tmp_path / "journal", VOLUME, SIZE, files=files) as journal:
        journal.reset(Position(1, 0))
        store(journal, a_set(Position(1, 0), 1))
        files.full = True
        with pytest.raises(JournalError, match="No space left"):
            store(journal, a_set(Position(1, 1), 2), a_set(Position(1, 2), 3))
        assert journal.failure is None
        assert journal.tail == Position(1, 1)
        files.full = False
        store(journal, a_set(Position(1, 1), 2))
    with opened(tmp_path / "journal") as again:
        assert again.tail == Position(1, 2)


def test_after_a_failed_sync_nothing_unsure_counts_even_after_a_restart(tmp_path: Path) -> None:
    files = FullDisk(tmp_path / "journal")
    with SetJournal(tmp_path / "journal", VOLUME, SIZE, files=files) as journal:
        journal.reset(Position(1, 0))
        store(journal, a_set(Position(1, 0), 1))
        files.broken = True
        with pytest.raises(JournalError, match="Input/output error"):
            store(journal, a_set(Position(1, 1), 2))
        with pytest.raises(JournalError):
            journal.append([])
        assert journal.failure is not None
    with opened(tmp_path / "journal") as again:
        assert again.tail == Position(1, 1)


def test_a_journal_of_another_volume_is_not_touched(journal: SetJournal, tmp_path: Path) -> None:
    journal.close()
    with pytest.raises(JournalError, match="another volume"):
        SetJournal(tmp_path / "journal", bytes(16), SIZE)
    with opened(tmp_path / "journal") as again:
        assert again.flushed == Position(1, 0)


def test_without_its_position_a_journal_with_sets_is_not_opened(journal: SetJournal, tmp_path: Path) -> None:
    store(journal, a_set(Position(1, 0), 1))
    journal.close()
    (tmp_path / "journal" / "position").write_bytes(bytes(1024))
    with pytest.raises(JournalError, match="damaged"):
        opened(tmp_path / "journal")


def test_the_older_slot_takes_the_place_of_a_torn_one() -> None:
    older = Slot(4, Position(1, 7), Place(2, 64))
    newer = Slot(5, Position(1, 9), Place(3, 64))
    raw = pack_slot(VOLUME, older).ljust(512, b"\0") + pack_slot(VOLUME, newer).ljust(512, b"\0")
    assert newest_slot(raw, VOLUME) == newer
    assert newest_slot(raw[:540] + b"\xff" + raw[541:], VOLUME) == older
    assert newest_slot(bytes(1024), VOLUME) is None
    assert newest_slot(b"", VOLUME) is None


def test_a_power_cut_while_a_new_segment_is_begun(seed: int) -> None:
    """The header of a segment may be torn, the file may not be there: no acknowledged set is lost."""
    for number in range(200):
        chance = random.Random(seed + number)
        host = Host(chance)
        files = MemoryFiles(host)
        journal = SetJournal(Path("journal"), VOLUME, SIZE, segment_bytes=2 * BLOCK, files=files)
        journal.reset(Position(1, 0))
        host.die_at = host.count + chance.randrange(1, 40)
        synced = 0
        try:
            while True:
                store(journal, a_set(Position(1, synced), synced + 1, range(chance.randrange(1, 4))))
                synced += 1
        except JournalError:
            assert host.dead
        host.die_at = None
        if chance.random() < 0.7:
            files.lose_power()
        again = SetJournal(Path("journal"), VOLUME, SIZE, segment_bytes=2 * BLOCK, files=files)
        assert again.tail.sequence in {synced, synced + 1}
        store(again, a_set(again.tail, again.tail.sequence + 1))


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("Header of a segment", SEGMENT_FIELDS),
        ("Slot of `position`", SLOT_FIELDS),
        ("Time behind a slot", TIME_FIELDS),
    ],
)
def test_the_page_shows_the_bytes(title: str, fields: Sequence[tuple[str, str, str]]) -> None:
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \| (.+) \|$", section, re.MULTILINE)
    expected = []
    offset = 0
    for name, code, meaning in fields:
        size = struct.calcsize(">" + code)
        expected.append((str(offset), str(size), name, meaning))
        offset += size
    assert rows == expected
    assert f"{offset} bytes" in section


def test_the_header_is_as_long_as_the_page_says() -> None:
    assert len(pack_segment_header(VOLUME, 1)) == SEGMENT_HEADER_BYTES == 64
    assert len(pack_slot(VOLUME, Slot(1, NOWHERE, Place(1, 64)))) == 80 + 16


def test_the_time_of_a_position_is_kept_and_never_needed() -> None:
    slot = Slot(5, Position(1, 9), Place(3, 64), 1_700_000_000_000_000_000)
    raw = pack_slot(VOLUME, slot)
    assert newest_slot(raw, VOLUME) == slot
    for older in (raw[:80], raw[:80].ljust(512, b"\0"), raw[:-1] + bytes([raw[-1] ^ 1])):
        assert newest_slot(older, VOLUME) == slot._replace(timestamp_ns=0)
