"""The property of test_async_copy is not vacuous: each rule of the asynchronous copy, broken, is caught."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import replication.shipper
from replication import difference, set_receiver
from replication.far_site import FarSite
from replication.gathered import Gathered
from replication.ranges import Covered
from replication.set_apply import apply_frame
from replication.set_builder import Piece, SetPlan, coalesce, plan_sets
from replication.set_receiver import SetReceiver
from tests.replication.far_pair import MemoryArea, MemoryFiles, MemoryQueue
from tests.replication.test_async_copy import one_life
from vsap.entry import MARKER, Entry
from vsap.queue import QueueState

LIVES = 400
Break = Callable[[pytest.MonkeyPatch], None]


def apply_before_the_commit_record(patch: pytest.MonkeyPatch) -> None:
    take = SetReceiver._take

    async def eager(self: SetReceiver, channel: Any, frame: Any) -> None:  # noqa: ANN401
        await take(self, channel, frame)
        apply_frame(self._area, frame)

    patch.setattr(SetReceiver, "_take", eager)


def skip_the_sync_of_the_journal(patch: pytest.MonkeyPatch) -> None:
    sync = MemoryFiles.sync

    def lazy(self: MemoryFiles, name: str) -> None:
        if not name.endswith(".sets"):
            sync(self, name)

    patch.setattr(MemoryFiles, "sync", lazy)


def release_before_the_area_is_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryArea, "flush", lambda self: None)


def ship_beyond_eligible(patch: pytest.MonkeyPatch) -> None:
    state = MemoryQueue.state

    def everything(self: MemoryQueue) -> QueueState:
        return state(self)._replace(eligible_sequence=self.next - 1)

    patch.setattr(MemoryQueue, "state", everything)


def coalesce_across_the_border_of_sets(patch: pytest.MonkeyPatch) -> None:
    def across(entries: Sequence[Entry]) -> list[SetPlan]:
        kept = coalesce([entry for entry in entries if entry.kind != MARKER])
        plans: list[SetPlan] = []
        for entry in entries:
            plan = plan_sets([entry])[0]
            plans.append(plan._replace(pieces=[one for one in kept if one.sequence == entry.sequence]))
        return plans

    patch.setattr(replication.shipper, "plan_sets", across)


def send_the_first_version_of_a_long_queue(patch: pytest.MonkeyPatch) -> None:
    def first(queue: Any, found: Gathered) -> Iterator[Piece]:  # noqa: ANN401
        covered = Covered()
        for entry in queue.read_these(range(found.first, found.last + 1)):
            for piece in coalesce([entry]):
                for offset, length in covered.add(piece.offset, piece.length):
                    start = offset - piece.offset
                    data = piece.data and memoryview(piece.data)[start : start + length]
                    yield piece._replace(offset=offset, length=length, data=data)

    patch.setattr(replication.shipper, "left_of", first)


def leave_out_the_entries_of_a_difference_copy(patch: pytest.MonkeyPatch) -> None:
    async def nothing(far: FarSite, piece: Any) -> None:  # noqa: ANN401
        """P6 broken: what was written during the copy is not in its set."""

    patch.setattr(difference, "send_piece", nothing)


def end_a_difference_copy_before_its_reads_are_eligible(patch: pytest.MonkeyPatch) -> None:
    async def hasty(self: Any) -> int:  # noqa: ANN401
        return int(self._source.state().eligible_sequence)

    patch.setattr(difference._Copy, "entries", hasty)


def answer_hashes_before_the_journal_is_applied(patch: pytest.MonkeyPatch) -> None:
    def stale(area: Any, question: Any) -> tuple[tuple[int, int], ...]:  # noqa: ANN401
        """What a receiver that forgot part of its area would say: everything is the same."""
        return ()

    patch.setattr(set_receiver, "differing_ranges", stale)


@pytest.mark.parametrize(
    "break_rule",
    [
        apply_before_the_commit_record,
        skip_the_sync_of_the_journal,
        release_before_the_area_is_flushed,
        ship_beyond_eligible,
        coalesce_across_the_border_of_sets,
        send_the_first_version_of_a_long_queue,
        leave_out_the_entries_of_a_difference_copy,
        end_a_difference_copy_before_its_reads_are_eligible,
        answer_hashes_before_the_journal_is_applied,
    ],
)
async def test_a_broken_rule_is_caught(break_rule: Break, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    break_rule(monkeypatch)
    for number in range(LIVES):
        try:
            await one_life(seed * 10_000 + number)
        except AssertionError:
            return
    pytest.fail(f"{LIVES} lives went well although a rule was broken")
