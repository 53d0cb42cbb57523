"""What a site must not forget is there after a restart; epochs never go back."""

from pathlib import Path
from uuid import UUID

import lmdb
import pytest

from replication.parts import previous_part
from replication.roles import after_failback, first_roles
from replication.state import LevelRecord, SiteState, StateError, TakeOverRecord, VolumeIdentity, sealed
from tests.replication.roles_made import after_take_over_at_sync

IDENTITY = VolumeIdentity(uuid=UUID(int=7), name="home", size_bytes=1 << 30)
NORMAL = first_roles(1)
AT_SYNC = after_take_over_at_sync(NORMAL, 100, 2)
BACK = after_failback(AT_SYNC, 200, 3)


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    level = LevelRecord(
        epoch=2, ranges=[(0, 4096)], everything=False, quarantine=None, quarantined_bytes=0, reason="why"
    )
    take_over = TakeOverRecord(epoch=2, start_sequence=100, lost=0, sentence="nothing")
    with SiteState(tmp_path, now_ns=lambda: 5) as state:
        assert (state.identity, state.roles, state.held_epoch, state.prepared_epoch) == (None, None, 0, 0)
        state.create(IDENTITY, NORMAL)
        assert state.adopt(AT_SYNC)
        state.set_level(level)
        state.set_take_over(take_over)
        state.set_held_epoch(2)
        state.note_newest(33)
        state.set_pair("async", "sync", "async", "Duplex", "level")
    with SiteState(tmp_path) as state:
        assert (state.identity, state.roles) == (IDENTITY, AT_SYNC)
        assert (state.level, state.take_over, state.held_epoch) == (level, take_over, 2)
        assert (state.newest_known, state.pairs()[0].since) == (33, 5)
        assert state.epoch_starts() == [(1, 0), (2, 100)]
        state.set_level(None)
        assert state.level is None


def test_that_it_was_made_with_nothing_is_remembered(tmp_path: Path) -> None:
    with SiteState(tmp_path) as state:
        state.create(IDENTITY, NORMAL)
        assert not state.began_blank
        state.create(IDENTITY, NORMAL, blank=True)
    with SiteState(tmp_path) as state:
        assert state.began_blank
        assert previous_part(state, "sync") == "away"
        assert state.adopt(AT_SYNC)
        assert previous_part(state, "async") == "async"


def test_only_a_higher_epoch_is_adopted(tmp_path: Path) -> None:
    with SiteState(tmp_path) as state:
        state.create(IDENTITY, AT_SYNC)
        assert not state.adopt(NORMAL)
        assert not state.adopt(AT_SYNC)
        assert state.adopt(BACK)
        assert [roles.epoch for roles in state.history()] == [2, 3]


def test_transitions_are_kept_in_order_and_the_oldest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.state.MOST_EVENTS", 5)
    with SiteState(tmp_path, now_ns=lambda: 7) as state:
        state.create(IDENTITY, NORMAL)
        assert (state.events(0, 9), state.newest_event) == ([], 0)
        for number in range(12):
            name = ("Duplex", "Suspend")[number % 2]
            state.set_pair("sync", "primary", "sync", name, f"reason {number}", "resync")
            state.set_pair("sync", "primary", "sync", name, "said again, which is no transition")
    with SiteState(tmp_path) as state:
        assert [event.number for event in state.events(0, 9)] == [8, 9, 10, 11, 12]
        assert [event.number for event in state.events(9, 2)] == [10, 11]
        last = state.events(11, 9)[0]
        assert (last.before, last.state, last.event, last.reason) == (
            "Duplex",
            "Suspend",
            "resync",
            "reason 11",
        )
        assert state.newest_event == 12
        state.create(IDENTITY, NORMAL)
        assert (state.events(0, 9), state.newest_event) == ([], 0)


def test_a_pair_keeps_its_time_while_its_state_stays(tmp_path: Path) -> None:
    moments = iter(range(10, 100))
    with SiteState(tmp_path, now_ns=lambda: next(moments)) as state:
        first = state.set_pair("sync", "primary", "sync", "Duplex", "level")
        again = state.set_pair("sync", "primary", "sync", "Duplex", "still level")
        changed = state.set_pair("sync", "primary", "sync", "Failure-Suspend", "it died")
        assert (first.since, again.since, again.reason) == (10, 10, "still level")
        assert changed.since > 10


def test_a_record_is_of_its_epoch_whatever_the_clock_says(tmp_path: Path) -> None:
    """The clock was an hour ahead when the pair was suspended in epoch 1, and is behind that of epoch 2."""
    clock = [7200 * 10**9]
    with SiteState(tmp_path, now_ns=lambda: clock[0]) as state:
        state.create(IDENTITY, NORMAL)
        assert state.set_pair("async", "primary", "async", "Suspend", "asked").epoch == 1
        assert state.adopt(AT_SYNC)
        assert state.pairs()[0].epoch == 1
        clock[0] = 1
        renewed = state.set_pair("async", "primary", "async", "Suspend", "asked")
        assert (renewed.epoch, renewed.since) == (2, 1)


def test_a_new_volume_forgets_the_old_one(tmp_path: Path) -> None:
    with SiteState(tmp_path) as state:
        state.create(IDENTITY, BACK)
        state.set_pair("sync", "primary", "sync", "Duplex", "level")
        state.create(IDENTITY, NORMAL)
        assert state.roles == NORMAL
        assert state.pairs() == []
        assert [roles.epoch for roles in state.history()] == [1]


def _overwrite(directory: Path, key: bytes, value: bytes) -> None:
    with lmdb.open(str(directory)) as environment, environment.begin(write=True) as transaction:
        transaction.put(key, value)


def test_a_newer_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with SiteState(tmp_path) as state:
        state.create(IDENTITY, NORMAL)
    for version, word in ((b"3", "newer"), (b"1", "older")):
        _overwrite(tmp_path, b"format", version)
        with pytest.raises(StateError, match=rf"format version {version.decode()}.*use the {word} trisite"):
            SiteState(tmp_path)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\xff\xfe", b'{"epoch":"x"}'])
def test_damage_is_one_sentence(tmp_path: Path, value: bytes) -> None:
    with SiteState(tmp_path) as state:
        state.create(IDENTITY, NORMAL)
    with SiteState(tmp_path) as state:
        for key in (b"roles", b"pair/x"):
            with state._environment.begin(write=True) as transaction:
                transaction.put(key, sealed(key, value))
        for read in (lambda: state.roles, state.pairs):
            with pytest.raises(StateError, match="damaged at"):
                read()


def _records(directory: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(directory)) as environment, environment.begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


def test_every_flipped_bit_is_found_before_it_is_believed(tmp_path: Path) -> None:
    """Also in a key: a record that is not found would read as one that never was."""
    with SiteState(tmp_path) as state:
        state.create(IDENTITY, NORMAL)
        state.set_held_epoch(1)
    whole = _records(tmp_path)
    for key, value in whole.items():
        for place in (*range(len(key)), *range(len(key), len(key + value), 3)):
            both = bytearray(key + value)
            both[place] ^= 1
            with lmdb.open(str(tmp_path), sync=False) as made, made.begin(write=True) as transaction:
                transaction.delete(key)
                transaction.put(bytes(both[: len(key)]), bytes(both[len(key) :]))
            with pytest.raises(StateError, match=r"damaged|format version"):
                SiteState(tmp_path)
            with lmdb.open(str(tmp_path), sync=False) as made, made.begin(write=True) as transaction:
                transaction.delete(bytes(both[: len(key)]))
                transaction.put(key, value)
    with SiteState(tmp_path) as state:
        assert (state.roles, state.held_epoch) == (NORMAL, 1)
