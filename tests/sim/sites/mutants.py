"""The protocol with one rule broken: each must be noticed by the checkers, which know nothing of it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

import replication.set_receiver
import replication.shipper
import replication.site_control
import replication.site_parts
import replication.site_report
import replication.site_take_over
import replication.site_writer
from replication.frames import Frame, FrameType
from replication.gathered import Gathered
from replication.ranges import Covered
from replication.received_record import Facts, ReceivedRecord
from replication.roles import Roles
from replication.sync_ledger import SyncLedger
from replication.sync_receiver import SyncReceiver
from replication.sync_session import SyncSession
from tests.sim.sites.host import PROCESS
from vsap.area import FileArea
from vsap.entry import barrier_entry
from vsap.pointing import PointingQueue
from vsap.positions import WritePositions
from vsap.queue import EntryQueue
from vsap.virtual import VirtualArea

Change = tuple[Any, str, Any]


def _flush_answered_before_the_disk() -> list[Change]:
    return [(FileArea, "flush", lambda self: None)]


def _flush_without_the_sync_site() -> list[Change]:
    async def at_once(self: SyncLedger, sequence: int) -> None:
        await trio.lowlevel.checkpoint()

    return [(SyncLedger, "wait_durable", at_once)]


def _flush_without_the_own_disk() -> list[Change]:
    real = FileArea.flush

    def flush(self: FileArea) -> None:
        process = PROCESS.get()
        if process is None or process.name != "mount":
            real(self)

    return [(FileArea, "flush", flush)]


def _failed_flush_forgotten_by_the_writer() -> list[Change]:
    return [(VirtualArea, "_write_again", lambda self: self._area.accept_loss())]


def _failed_flush_forgotten_by_the_sync_site() -> list[Change]:
    async def go_back(self: SyncReceiver) -> None:
        await trio.lowlevel.checkpoint()
        self.area.accept_loss()

    return [(SyncReceiver, "go_back", go_back)]


def _set_applied_in_part() -> list[Change]:
    real = replication.set_receiver.apply_frame  # type: ignore[attr-defined]
    count = [0]

    def apply(area: Any, frame: Any) -> None:  # noqa: ANN401
        count[0] += 1
        if count[0] % 40:
            real(area, frame)

    return [(replication.set_receiver, "apply_frame", apply)]


def _power_cut_at_the_sync_site_unnoticed() -> list[Change]:
    real = ReceivedRecord._load

    def load(self: ReceivedRecord, path: Any) -> bool:  # noqa: ANN401
        real(self, path)
        return self._generation > 0

    return [(ReceivedRecord, "_load", load)]


def _positions_forgotten() -> list[Change]:
    return [(WritePositions, "ranges_after", lambda self, sequence: [])]


def _in_step_after_power_loss() -> list[Change]:
    real = ReceivedRecord.save

    def save(self: ReceivedRecord, facts: Facts) -> None:
        real(self, facts._replace(in_step=self.facts.in_step or facts.in_step))

    return [
        (ReceivedRecord, "save", save),
        (replication.site_parts, "_doubt_after_reboot", lambda place, record: None),
    ]


def _copy_forgets_what_came_meanwhile() -> list[Change]:
    real = replication.shipper.copy_difference  # type: ignore[attr-defined]

    async def copy(far: Any, area: Any, ranges: Any, queue: Any, *, since: int, **named: Any) -> Any:  # noqa: ANN401
        return await real(far, area, ranges, _Blind(queue, since), since=since, **named)

    return [(replication.shipper, "copy_difference", copy)]


def _first_version_of_a_long_queue() -> list[Change]:
    def settle(self: Gathered) -> None:
        """The first writer of a byte wins."""
        covered = Covered()
        rows = [
            (self.first + index, offset, length)
            for index, whole in enumerate(zip(self._offsets, self._lengths, strict=True))
            if whole[1]
            for offset, length in covered.add(*whole)
        ]
        sequences, offsets, lengths = zip(*rows, strict=True) if rows else ((), (), ())
        self._parts = array("Q", sequences), array("Q", offsets), array("I", lengths)

    return [(Gathered, "settle", settle)]


class _Blind:
    """A queue whose entries after a position change nothing."""

    def __init__(self, queue: EntryQueue, since: int) -> None:
        self._queue = queue
        self._since = since

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._queue, name)

    def read_index(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        return [
            barrier_entry(entry.sequence, entry.timestamp_ns) if entry.sequence > self._since else entry
            for entry in self._queue.read_index(*arguments, **named)
        ]


def _recovery_copy_without_the_log() -> list[Change]:
    return [
        (replication.site_writer.WriterPart, "_list_ranges", lambda *arguments: []),
    ]


def _levelled_without_comparing() -> list[Change]:
    def no_ranges(ranges: Any) -> list[tuple[int, int]]:  # noqa: ANN401
        return []

    return [(replication.site_control, "normalise", no_ranges)]


def _shipped_before_eligible() -> list[Change]:
    real = VirtualArea._on_progress

    def on_progress(self: VirtualArea) -> None:
        real(self)
        self._eligible = self._pushed
        self._wake.set()

    def push(self: VirtualArea, **named: Any) -> None:  # noqa: ANN401
        real_push(self, **named)
        on_progress(self)

    real_push = VirtualArea._push
    return [(VirtualArea, "_on_progress", on_progress), (VirtualArea, "_push", push)]


def _take_over_without_proof() -> list[Change]:
    def proven(facts: Facts, roles: Roles) -> tuple[bool, str]:
        return True, "nothing, it is hoped"

    return [(module, "proof_of", proven) for module in (replication.site_take_over, replication.site_report)]


def _discards_not_done_at_the_sync_site() -> list[Change]:
    def discard(self: SyncSession, frame: Frame) -> None:
        self._expect(frame.sequence)
        self._advance(frame.sequence)

    real = SyncSession._write

    def write(self: SyncSession, frame: Frame) -> None:
        self._handlers[FrameType.DISCARD] = lambda frame: discard(self, frame)
        real(self, frame)

    return [(SyncSession, "_write", write)]


def _written_over_without_saving() -> list[Change]:
    return [(PointingQueue, "_overwritten", lambda self, entries: [])]


MUTANTS: dict[str, Callable[[], list[Change]]] = {
    function.__name__.removeprefix("_"): function
    for function in (
        _flush_answered_before_the_disk,
        _flush_without_the_sync_site,
        _flush_without_the_own_disk,
        _failed_flush_forgotten_by_the_writer,
        _failed_flush_forgotten_by_the_sync_site,
        _set_applied_in_part,
        _power_cut_at_the_sync_site_unnoticed,
        _positions_forgotten,
        _in_step_after_power_loss,
        _copy_forgets_what_came_meanwhile,
        _first_version_of_a_long_queue,
        _recovery_copy_without_the_log,
        _levelled_without_comparing,
        _shipped_before_eligible,
        _take_over_without_proof,
        _discards_not_done_at_the_sync_site,
        _written_over_without_saving,
    )
}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """The product with one rule broken."""
    changes = MUTANTS[name]()
    before = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in changes]
    for owner, attribute, value in changes:
        setattr(owner, attribute, value)
    try:
        yield
    finally:
        for owner, attribute, value in reversed(before):
            setattr(owner, attribute, value)
