"""What a synchronous secondary remembers over the death of process and host; how it is brought level."""

from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from jfs.errors import CorruptionError
from replication.bodies import Differ, MarkerDigests
from replication.errors import RemoteProtocolError
from replication.messages import Welcome
from replication.received_record import Facts, ReceivedRecord
from replication.resync import COPY_CHUNK_BYTES, HASH_CHUNK_BYTES, WINDOW_BYTES, Resync
from replication.roles import Roles
from replication.sync_resume import MarkerAnswers, Remedy, remedy

VOLUME = UUID(int=7)
WHOLE = Facts(epoch=3, durable_sequence=10, far_epoch=3, has_volume=True, in_step=True, protect=True)


def test_the_process_dies_and_nothing_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "received"
    with ReceivedRecord(path, VOLUME, boot="one") as record:
        record.save(WHOLE)
        record.received_sequence = 15
        record.far_sequence = 9
        incarnation = record.incarnation
    with ReceivedRecord(path, VOLUME, boot="one") as record:
        assert record.facts == WHOLE
        assert (record.received_sequence, record.far_sequence) == (15, 9)
        assert record.incarnation == incarnation


@pytest.mark.parametrize("clean", [True, False])
def test_the_host_dies_and_only_the_durable_counts(tmp_path: Path, clean: bool) -> None:
    """A new incarnation, back at the durable sequence; in step only if the writer had said good-bye."""
    path = tmp_path / "received"
    with ReceivedRecord(path, VOLUME, boot="one") as record:
        record.save(WHOLE._replace(clean=clean))
        record.received_sequence = 15
        incarnation = record.incarnation
    with ReceivedRecord(path, VOLUME, boot="two") as record:
        assert record.received_sequence == 10
        assert record.far_sequence == 0
        assert record.incarnation != incarnation
        assert record.facts.in_step is clean
        second = record.incarnation
    with ReceivedRecord(path, VOLUME, boot="two") as record:
        assert record.incarnation == second


def test_an_unknown_boot_is_never_the_same(tmp_path: Path) -> None:
    path = tmp_path / "received"
    with ReceivedRecord(path, VOLUME, boot="unknown") as record:
        record.save(WHOLE)
        record.received_sequence = 15
    with ReceivedRecord(path, VOLUME, boot="unknown") as record:
        assert record.received_sequence == 10


def test_a_copy_that_ended_on_disk_counts_from_there(tmp_path: Path) -> None:
    """Killed between the synced end of a copy and the mapped number: the durable one is the truth."""
    path = tmp_path / "received"
    with ReceivedRecord(path, VOLUME, boot="one") as record:
        record.save(WHOLE._replace(copying=True))
        record.received_sequence = 10
        record.copy_sequence = 40
        record.store(WHOLE._replace(durable_sequence=40))
    with ReceivedRecord(path, VOLUME, boot="one") as record:
        assert record.received_sequence == 40


def test_a_torn_slot_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "received"
    with ReceivedRecord(path, VOLUME, boot="one") as record:
        record.save(WHOLE)
        record.save(WHOLE._replace(durable_sequence=12))
        newest = record._generation % 2
    raw = bytearray(path.read_bytes())
    raw[4096 + newest * 512 + 20] ^= 1
    path.write_bytes(raw)
    with ReceivedRecord(path, VOLUME, boot="one") as record:
        assert record.facts.durable_sequence == 10
    raw[4096:] = b"\x55" * 4096
    path.write_bytes(raw)
    with pytest.raises(CorruptionError, match="damaged"):
        ReceivedRecord(path, VOLUME, boot="one")


def test_the_record_of_another_volume_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "received"
    ReceivedRecord(path, VOLUME).close()
    with pytest.raises(CorruptionError, match="not of this volume"):
        ReceivedRecord(path, uuid4())


def test_reset_puts_the_area_at_a_position(tmp_path: Path) -> None:
    with ReceivedRecord(tmp_path / "received", VOLUME) as record:
        record.save(WHOLE)
        record.reset(5, 99)
        assert record.received_sequence == record.facts.durable_sequence == 99
        assert (record.facts.epoch, record.facts.in_step, record.facts.has_volume) == (5, False, True)


ROLES = Roles(epoch=3, writer="primary", sync_to="sync", start_sequence=50)
GOOD = Welcome(
    version=1, site="sync", incarnation="i", received_sequence=60, position_epoch=3, position_sequence=60
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, Remedy.SEND),
        ({"position_epoch": 2, "position_sequence": 50, "received_sequence": 50}, Remedy.SEND),
        ({"position_epoch": 2, "position_sequence": 49, "received_sequence": 49}, Remedy.COPY),
        ({"position_epoch": 2, "position_sequence": 51, "received_sequence": 51}, Remedy.COPY),
        ({"position_epoch": 4, "position_sequence": 50, "received_sequence": 50}, Remedy.COPY),
        ({"received_sequence": 101}, Remedy.COPY),
        ({"has_volume": False, "received_sequence": 0, "position_epoch": 0}, Remedy.COPY),
        ({"copy_sequence": 70}, Remedy.GO_ON),
        ({"copy_sequence": 70, "incarnation": "j"}, Remedy.COPY),
        ({"copy_sequence": 101}, Remedy.COPY),
    ],
)
def test_how_a_secondary_is_brought_level(change: dict[str, object], expected: Remedy) -> None:
    welcome = msgspec.structs.replace(GOOD, **change)
    under_way = Resync("i")
    assert remedy(welcome, ROLES, newest=100, queue_whole=True, resync=under_way) is expected
    forced = remedy(welcome, ROLES, newest=100, queue_whole=True, resync=under_way, force_copy=True)
    assert forced is Remedy.COPY
    if expected is Remedy.SEND:
        assert remedy(welcome, ROLES, newest=100, queue_whole=False, resync=None) is Remedy.COPY
    if expected is Remedy.GO_ON:
        assert remedy(welcome, ROLES, newest=100, queue_whole=True, resync=None) is Remedy.COPY


def test_nothing_is_where_only_the_first_stream_begins() -> None:
    """A site that holds nothing is sent the entries where the stream itself began with nothing."""
    welcome = Welcome(version=1, site="sync", incarnation="i", has_volume=False)
    for start, expected in ((0, Remedy.SEND), (50, Remedy.COPY)):
        roles = Roles(epoch=1, writer="primary", sync_to="sync", start_sequence=start)
        assert remedy(welcome, roles, newest=100, queue_whole=True, resync=None) is expected


def test_a_copy_keeps_what_is_not_acknowledged() -> None:
    """Whatever is lost with a connection is sent again; a window bounds what is under way."""
    total = 3 * WINDOW_BYTES
    resync = Resync("i", copy=[(0, total)])
    sent = []
    while (part := resync.next_copy()) is not None:
        resync.sent(part)
        sent.append(part)
    assert sum(length for _, length in sent) == WINDOW_BYTES
    assert all(length == COPY_CHUNK_BYTES for _, length in sent)
    resync.acknowledged(3)
    assert resync.copied_bytes == 3 * COPY_CHUNK_BYTES
    assert resync.remaining_bytes == total - 3 * COPY_CHUNK_BYTES
    resync.reconnected()
    assert resync.next_copy() == sent[3]
    with pytest.raises(RemoteProtocolError, match="acknowledged"):
        resync.acknowledged(1)
    assert not resync.done


def test_questions_become_copies_and_are_asked_again() -> None:
    resync = Resync("i", compare=[(0, HASH_CHUNK_BYTES + 4096)])
    first, second = resync.next_question(), resync.next_question()
    assert first == (1, (0, HASH_CHUNK_BYTES))
    assert second == (2, (HASH_CHUNK_BYTES, 4096))
    resync.answered(2, Differ(()))
    resync.reconnected()
    assert resync.next_question() == (3, (0, HASH_CHUNK_BYTES))
    with pytest.raises(RemoteProtocolError, match="not asked"):
        resync.answered(1, Differ(()))
    with pytest.raises(RemoteProtocolError, match="not asked about"):
        resync.answered(3, Differ(((HASH_CHUNK_BYTES, 4096),)))


def test_marker_answers_come_in_parts() -> None:
    answers = MarkerAnswers()
    assert answers.take(5) is None
    answers.add(5, MarkerDigests(4096, 1, 2, (b"b" * 16,)))
    assert answers.take(5) is None
    answers.add(5, MarkerDigests(4096, 0, 2, (b"a" * 16,)))
    assert answers.take(5) == [b"a" * 16, b"b" * 16]
    for sequence in range(100):
        answers.add(sequence, MarkerDigests(4096, 0, 0, ()))
    assert answers.take(10) is None
    assert answers.take(99) == []
