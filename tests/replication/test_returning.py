"""What a site keeps that wrote in an epoch which the others know nothing of."""

from pathlib import Path
from uuid import UUID

import pytest

from jfs.errors import DeviceError
from replication.bodies import (
    SetBegin,
    SetCommit,
    SetKind,
    encode_set_begin,
    encode_set_commit,
    encode_write,
)
from replication.config import SiteName
from replication.frames import Decoder, FrameType
from replication.parts import Place, SitePaths, parted_at, prepare
from replication.position import NOWHERE
from replication.quarantine import read_entries
from replication.returning import keep_before_following, keep_own_writes
from replication.roles import Roles, after_failback, first_roles, following
from replication.state import SiteState, VolumeIdentity
from tests.replication.cluster import make_config
from vsap.area import FileArea
from vsap.entry import write_entry

SIZE = 64 << 20
FIRST = first_roles(1)
C2 = following(FIRST, writer="sync", async_to="async", start_sequence=100, now_ns=2)
D2 = following(FIRST, writer="async", start_sequence=90, now_ns=3)
D3 = following(D2, writer="async", start_sequence=500, now_ns=4)
D3_WITH_SYNC = following(D2, writer="async", async_to="sync", start_sequence=500, now_ns=4)


def forked_at_sync(directory: Path, state: SiteState, winner: Roles) -> Place:
    """Site sync wrote block 3 in its own epoch 2, the flushed part of it, and learned of the other one."""
    config = make_config(directory)
    place = Place(config, "sync", SitePaths(config.site("sync").directory), state)
    state.create(VolumeIdentity(uuid=UUID(int=9), name="test", size_bytes=SIZE), FIRST)
    place.make_area()
    prepare(place)
    state.adopt(C2)
    prepare(place)
    queue, positions = place.open_writer_queue(), place.open_positions()
    entry = write_entry(101, 5, 3 * 4096, b"c" * 4096)
    positions.append(101, entry.offset, entry.length)
    queue.append_batch([entry])  # killed before the area had it
    positions.close()
    queue.close()
    state.adopt(winner)
    return place


def kept_blocks(path: str | None) -> dict[int, bytes]:
    assert path is not None
    return {
        entry.offset + at: bytes(entry.payload[at : at + 4096])
        for entry in read_entries(Path(path))
        for at in range(0, entry.length, 4096)
        if entry.payload[at : at + 4096] != bytes(4096)
    }


def test_everything_since_the_parting_is_kept_also_what_was_in_the_queue_only(tmp_path: Path) -> None:
    with SiteState(tmp_path / "state") as state:
        place = forked_at_sync(tmp_path / "cluster", state, D3)
        assert parted_at(place) == 90
        record = keep_own_writes(place, D3.start_sequence)
        assert (record.everything, record.quarantined_bytes) == (True, 4096)
        assert str(record.quarantine).endswith("epoch-3-after-90")
        assert kept_blocks(record.quarantine) == {3 * 4096: b"c" * 4096}
        again = keep_own_writes(place, D3.start_sequence)
        assert kept_blocks(again.quarantine) == {3 * 4096: b"c" * 4096}


def test_what_left_the_queue_of_a_writer_that_went_on_alone_is_kept_by_its_positions(tmp_path: Path) -> None:
    """Its pair to site sync was suspended: the far site had everything, and was set back all the same."""
    config = make_config(tmp_path / "cluster")
    with SiteState(tmp_path / "state") as state:
        place = Place(config, "primary", SitePaths(config.site("primary").directory), state)
        state.create(VolumeIdentity(uuid=UUID(int=9), name="test", size_bytes=SIZE), FIRST)
        place.make_area()
        prepare(place)
        queue, positions, area = place.open_writer_queue(), place.open_positions(), FileArea(place.paths.area)
        for sequence in range(1, 103):
            entry = write_entry(sequence, 5, sequence * 4096, b"w" * 4096)
            queue.append_batch([entry], eligible_sequence=sequence)
            area.write(entry.offset, entry.payload)
            positions.append(sequence, entry.offset, entry.length)
        queue.set_common_flush(102)
        queue.set_far_durable(1, 102)
        assert queue.trim() == 102
        for opened in (queue, positions, area):
            opened.close()
        state.adopt(C2)
        record = keep_own_writes(place, C2.start_sequence)
        assert record.everything
        assert kept_blocks(record.quarantine) == {sequence * 4096: b"w" * 4096 for sequence in (101, 102)}


def test_without_positions_all_there_is_is_kept(tmp_path: Path) -> None:
    with SiteState(tmp_path / "state") as state:
        place = forked_at_sync(tmp_path / "cluster", state, D3)
        positions = place.open_positions()
        positions.reset(300)
        positions.close()
        record = keep_own_writes(place, D3.start_sequence)
        assert record.quarantined_bytes == SIZE
        assert "write positions are lost" in record.reason
        assert kept_blocks(record.quarantine) == {3 * 4096: b"c" * 4096}


def test_a_site_that_is_to_follow_at_once_keeps_its_own_first(tmp_path: Path) -> None:
    """Not while somebody still writes there; afterwards its area is no state of the stream."""
    with SiteState(tmp_path / "state") as state:
        place = forked_at_sync(tmp_path / "cluster", state, D3_WITH_SYNC)
        area = FileArea(place.paths.area)
        area.lock_writer(place.paths.writer_lock)
        with pytest.raises(DeviceError, match="a mount process still runs there; unmount it"):
            keep_before_following(place)
        area.close()
        keep_before_following(place)
        prepare(place)
        (kept,) = place.paths.quarantine.iterdir()
        assert kept_blocks(str(kept)) == {3 * 4096: b"c" * 4096}
        with place.open_journal() as journal:
            assert journal.tail.epoch == 0
        keep_before_following(place)  # prepared: nothing more


def test_what_a_site_was_sent_in_sets_is_in_its_area_before_it_plays_another_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal alone had it, or the page cache: the new part applies no set, and a power cut took it."""
    config = make_config(tmp_path / "cluster")
    with SiteState(tmp_path / "state") as state:
        place = Place(config, "primary", SitePaths(config.site("primary").directory), state)
        state.create(VolumeIdentity(uuid=UUID(int=9), name="test", size_bytes=SIZE), FIRST)
        place.make_area()
        prepare(place)
        state.adopt(C2)  # away, and levelled
        prepare(place)
        volume = place.volume.uuid.bytes
        with place.open_journal() as journal:
            journal.reset(NOWHERE)
            for buffers in (
                encode_set_begin(volume, 2, 200, SetBegin(0, 0, 5, SetKind.DIFFERENCE)),
                encode_write(volume, 2, 200, 4096, 5, b"x" * 4096, FrameType.SET_DATA),
                encode_set_commit(volume, 2, 200, SetCommit(1, 4096)),
            ):
                decoder = Decoder()
                decoder.receive_data(b"".join(buffers))
                frame = decoder.next_frame()
                assert frame is not None
                journal.append([journal.check(frame)])
            journal.sync()
        flushed: list[bytes] = []
        monkeypatch.setattr(FileArea, "flush", lambda area: flushed.append(bytes(area.read(4096, 4096))))
        state.adopt(after_failback(C2, 200, 6))
        prepare(place)
        assert set(flushed) == {b"x" * 4096}
        with place.open_journal() as journal:
            assert not journal.waiting


@pytest.mark.parametrize("site", ["primary", "async"])
def test_a_site_of_the_same_history_has_nothing_to_keep(tmp_path: Path, site: SiteName) -> None:
    config = make_config(tmp_path / "cluster")
    with SiteState(tmp_path / "state") as state:
        place = Place(config, site, SitePaths(config.site(site).directory), state)
        state.create(VolumeIdentity(uuid=UUID(int=9), name="test", size_bytes=SIZE), FIRST)
        place.make_area()
        prepare(place)
        state.adopt(D2)
        assert parted_at(place) is None
        keep_before_following(place)
        state.adopt(D3_WITH_SYNC)
        assert parted_at(place) is None
        assert not place.paths.quarantine.exists()


@pytest.mark.parametrize(
    ("received", "everything"), [(D2.start_sequence, False), (D2.start_sequence - 1, True)]
)
def test_a_sync_site_that_was_behind_is_compared_whole(
    tmp_path: Path, received: int, everything: bool
) -> None:
    """What it lacks of the time before is in no list of what it wrote."""
    config = make_config(tmp_path / "cluster")
    with SiteState(tmp_path / "state") as state:
        place = Place(config, "sync", SitePaths(config.site("sync").directory), state)
        state.create(VolumeIdentity(uuid=UUID(int=9), name="test", size_bytes=SIZE), FIRST)
        place.make_area()
        prepare(place)
        with place.open_record() as record:
            record.reset(FIRST.epoch, received)
        state.adopt(D2)
        assert keep_own_writes(place, D2.start_sequence).everything == everything
