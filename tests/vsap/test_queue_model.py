"""The queue against a plain list that knows the rules and nothing of files."""

import shutil
import tempfile
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vsap import pointing
from vsap.area import FileArea
from vsap.entry import Entry, discard_entry, write_entry
from vsap.index import RECORD_BYTES
from vsap.queue import EntryQueue
from vsap.virtual import apply_entries

VOLUME = UUID(int=77)
LIMIT = 40_000
BLOCKS = 12
WRITES = st.lists(
    st.tuples(st.sampled_from([0, 8, 512, 4096, 4096, 8192]), st.integers(0, BLOCKS - 2)),
    min_size=1,
    max_size=6,
)


class QueueModel(RuleBasedStateMachine):
    """Rules are what the two processes do; after each the queue says what the list says."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        for name, value in (
            ("POINT_SECONDS", 0),
            ("LOOK_SECONDS", 0),
            ("LEAST_BYTES", 4096),
            ("KEPT_SHARE", 1),
        ):
            self.patch.setattr(pointing, name, value)
        self.area = FileArea.create(self.directory / "area", BLOCKS * 4096)
        self.queue = self._open()
        self.held: list[Entry] = []
        self.next = 1
        self.far = (0, 0)
        self.common = self.eligible = self.dropped = 0

    def _open(self) -> EntryQueue:
        return EntryQueue.open(
            self.directory / "queue", VOLUME, limit_bytes=LIMIT, segment_bytes=9000, area=self.area.path
        )

    def teardown(self) -> None:
        self.queue.close()
        self.area.close()
        self.patch.undo()
        shutil.rmtree(self.directory)

    def _forget(self, through: int) -> None:
        self.held = [entry for entry in self.held if entry.sequence > through]

    def _drop(self, through: int) -> None:
        through = min(through, self.next - 1)
        if self.held and self.held[0].sequence <= through and through > self.far[1]:
            self.dropped = max(self.dropped, through)
        self._forget(through)

    @rule(writes=WRITES, eligible=st.integers(0, 3))
    def append(self, writes: list[tuple[int, int]], eligible: int) -> None:
        batch: list[Entry] = []
        for size, block in writes:
            sequence = self.next + len(batch)
            if size:
                batch.append(write_entry(sequence, sequence, block * 4096, bytes([sequence % 251]) * size))
            else:
                batch.append(discard_entry(sequence, sequence, block * 4096, 4096))
        self.next += len(batch)
        eligible = max(0, self.next - 1 - eligible)
        self.queue.append_batch(batch, eligible_sequence=eligible)
        apply_entries(self.area, [entry for entry in batch if entry.length % 4096 == 0])
        self.eligible = max(self.eligible, eligible)
        self.held += batch
        weight = sum(len(entry.payload) + RECORD_BYTES for entry in self.held)
        if weight > LIMIT:
            self._drop(self.common)

    @rule(back=st.integers(0, 8))
    def common_flush(self, back: int) -> None:
        self.common = max(self.common, self.next - 1 - back)
        self.queue.set_common_flush(self.next - 1 - back if self.next > back else 0)

    @rule(epoch=st.integers(0, 2), back=st.integers(-2, 12))
    def far_durable(self, epoch: int, back: int) -> None:
        sequence = max(0, self.next - 1 - back)
        self.far = max(self.far, (epoch, min(sequence, self.next - 1)))
        self.queue.set_far_durable(epoch, sequence)

    @rule(most=st.sampled_from([1, 3, 100]))
    def trim(self, most: int) -> None:
        through = min(self.far[1], self.common)
        expected = sum(entry.sequence <= through for entry in self.held)
        assert self.queue.trim(limit_entries=most) == min(most, expected)
        if self.held:
            self._forget(min(through, self.held[0].sequence + most - 1))

    @rule(steps=st.integers(1, 8))
    def point(self, steps: int) -> None:
        while steps and self.queue.point():
            steps -= 1

    @rule(back=st.integers(0, 12))
    def drop(self, back: int) -> None:
        through = max(0, self.next - 1 - back)
        self.queue.drop(through)
        self._drop(min(through, self.common))

    @rule()
    def reopen(self) -> None:
        self.queue.close()
        self.queue = self._open()

    @rule(back=st.integers(0, 3))
    def reset(self, back: int) -> None:
        sequence = max(1, self.next - back)
        self.queue.reset(sequence)
        self.next, self.held = sequence, []
        self.eligible = self.common = self.dropped = sequence - 1
        self.far = (self.far[0], min(self.far[1], sequence - 1))

    @precondition(lambda self: self.next > 1)
    @rule(back=st.integers(0, 20), limit=st.sampled_from([1, 5000, 1 << 20]))
    def read(self, back: int, limit: int) -> None:
        first = max(1, self.next - back)
        expected: list[Entry] = []
        left = limit
        for entry in self.held:
            if entry.sequence >= first:
                left -= len(entry.payload)
                if left < 0 and expected:
                    break
                expected.append(entry)
        assert self.queue.read(first, limit_bytes=limit) == expected

    @rule(step=st.integers(1, 5))
    def read_some(self, step: int) -> None:
        wanted = range(max(1, self.next - 40), self.next + 2, step)
        assert self.queue.read_these(wanted) == [entry for entry in self.held if entry.sequence in wanted]

    @rule(start=st.integers(0, BLOCKS), length=st.integers(1, 5))
    def search(self, start: int, length: int) -> None:
        low, high = start * 4096, (start + length) * 4096
        expected = any(
            entry.offset < high and entry.end > low for entry in self.held if entry.sequence > self.far[1]
        )
        assert self.queue.waiting(low, high - low) == expected

    @invariant()
    def says_what_the_list_says(self) -> None:
        assert self.queue.read(0, limit_bytes=1 << 30) == self.held
        waiting = [entry for entry in self.held if entry.sequence > self.far[1]]
        counts = self.queue.counts()
        assert counts.entries == len(waiting)
        assert counts.bytes == sum(len(entry.payload) for entry in waiting)
        if waiting:
            assert (counts.oldest_sequence, counts.newest_sequence, counts.oldest_timestamp_ns) == (
                waiting[0].sequence,
                waiting[-1].sequence,
                waiting[0].timestamp_ns,
            )
        state = self.queue.state()
        assert state.next_sequence == self.queue.next_sequence == self.next
        assert (state.common_flush_sequence, state.eligible_sequence) == (self.common, self.eligible)
        assert (state.far_epoch, state.far_durable_sequence) == self.far
        assert state.dropped_through == self.dropped
        if not self.held:
            assert self.queue._segments.numbers() == []


QueueModel.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestQueueModel = QueueModel.TestCase
