"""The decision table of positions, row by row, and its soundness against a model of whole histories."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.position import (
    NOWHERE,
    EpochStart,
    Position,
    Remedy,
    Standing,
    Stream,
    end_of_epoch,
    history_of,
    is_prefix,
    judge,
)

FIRST = (EpochStart(1, 0),)
TAKEN_OVER = (EpochStart(1, 0), EpochStart(2, 90))
FORCED = (EpochStart(1, 0), EpochStart(2, 90), EpochStart(3, 80))


@pytest.mark.parametrize(
    ("far", "ours", "standing"),
    [
        (Position(1, 0), Stream(FIRST, None, 1), Standing.CONTIGUOUS),
        (Position(1, 0), Stream(FIRST, 1, 5), Standing.CONTIGUOUS),
        (Position(1, 3), Stream(FIRST, 4, 5), Standing.CONTIGUOUS),
        (Position(1, 3), Stream(FIRST, 2, 5), Standing.CONTIGUOUS),
        (Position(1, 4), Stream(FIRST, None, 5), Standing.CONTIGUOUS),
        (Position(1, 2), Stream(FIRST, 4, 5), Standing.GAP),
        (Position(1, 2), Stream(FIRST, None, 5), Standing.GAP),
        (Position(1, 5), Stream(FIRST, 2, 5), Standing.AHEAD),
        (NOWHERE, Stream(FIRST, 1, 5), Standing.BLANK),
        (Position(2, 0), Stream(FIRST, 1, 5), Standing.SUPERSEDED),
        (Position(1, 90), Stream(TAKEN_OVER, 91, 95), Standing.CONTIGUOUS),
        (Position(1, 90), Stream(TAKEN_OVER, None, 91), Standing.CONTIGUOUS),
        (Position(1, 70), Stream(TAKEN_OVER, 91, 95), Standing.GAP),
        (Position(1, 91), Stream(TAKEN_OVER, 91, 95), Standing.AHEAD),
        (Position(2, 94), Stream(TAKEN_OVER, 91, 95), Standing.CONTIGUOUS),
        (Position(2, 95), Stream(TAKEN_OVER, 91, 95), Standing.AHEAD),
        (Position(1, 85), Stream(FORCED, 81, 99), Standing.AHEAD),
        (Position(2, 95), Stream(FORCED, 81, 99), Standing.AHEAD),
        (Position(1, 80), Stream(FORCED, 81, 99), Standing.CONTIGUOUS),
        (Position(1, 3), Stream((EpochStart(2, 0),), 1, 5), Standing.AHEAD),
        (Position(1, 3), Stream(FIRST, 1, 9, Position(1, 4)), Standing.REGRESSED),
        (Position(1, 4), Stream(FIRST, None, 5, doubted=True), Standing.DOUBTFUL),
        (Position(1, 3), Stream(FIRST, 1, 5, doubted=True), Standing.DOUBTFUL),
        (NOWHERE, Stream(FIRST, 1, 5, doubted=True), Standing.BLANK),
        (Position(1, 4), Stream(FIRST, 1, 9, Position(1, 4)), Standing.CONTIGUOUS),
        # What was promised off our history (the writer that heard it is superseded) binds nobody.
        (Position(1, 80), Stream(TAKEN_OVER, 81, 95, Position(1, 94)), Standing.CONTIGUOUS),
    ],
)
def test_each_row_of_the_table(far: Position, ours: Stream, standing: Standing) -> None:
    assert judge(far, ours).standing is standing


def test_only_a_prefix_is_ever_continued_without_comparing_everything() -> None:
    assert judge(NOWHERE, Stream(FIRST, None, 1)).remedy is Remedy.ALLOCATED
    assert judge(Position(1, 3), Stream(FIRST, 9, 12)).remedy is Remedy.LISTED
    assert judge(Position(1, 12), Stream(FIRST, 9, 12)).remedy is Remedy.ALLOCATED
    assert judge(Position(9, 12), Stream(FIRST, 9, 12)).remedy is Remedy.STOP


def test_the_sentences_name_the_numbers() -> None:
    assert "sequence 3" in judge(Position(1, 2), Stream(FIRST, 4, 5)).sentence
    assert "begins at 4" in judge(Position(1, 2), Stream(FIRST, 4, 5)).sentence
    assert "ended at sequence 90" in judge(Position(1, 91), Stream(TAKEN_OVER, 91, 95)).sentence
    assert str(NOWHERE) == "no position"


def test_history_is_sorted_and_unknown_epochs_have_no_end() -> None:
    history = history_of([(3, 80), (1, 0), (2, 90)])
    assert history == FORCED
    assert end_of_epoch(history, 4, 100) is None
    assert end_of_epoch(history, 3, 100) == 99
    assert end_of_epoch(history, 2, 100) == 80


class World:
    """Histories as they truly went: for each epoch, who wrote each sequence, and what."""

    def __init__(self, chance: random.Random) -> None:
        self.streams: dict[int, list[tuple[int, int]]] = {1: []}
        self.history = [(1, 0)]
        self.chance = chance
        self.write(1)

    def write(self, epoch: int) -> None:
        stream = self.streams[epoch]
        stream.extend((epoch, self.chance.getrandbits(60)) for _ in range(self.chance.randrange(6)))

    def take_over(self) -> None:
        """A site that holds a prefix of the newest stream (P1) becomes the writer of the next epoch."""
        new = len(self.streams) + 1
        base = self.streams[new - 1]
        kept = base[: self.chance.randrange(len(base) + 1)]
        self.streams[new] = list(kept)
        self.history.append((new, len(kept)))
        self.write(new)


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_a_position_called_prefix_is_one(seed: int) -> None:
    """Soundness: for every position of every epoch that ever was, `is_prefix` implies equal content."""
    chance = random.Random(seed)
    world = World(chance)
    for _ in range(chance.randrange(5)):
        world.take_over()
    ours = world.streams[max(world.streams)]
    history = history_of(world.history)
    for epoch, stream in world.streams.items():
        for sequence in range(len(stream) + 1):
            if is_prefix(Position(epoch, sequence), history, len(ours) + 1):
                assert stream[:sequence] == ours[:sequence], (world.history, epoch, sequence)


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_every_true_prefix_of_the_line_is_recognised(seed: int) -> None:
    """Completeness where it matters: along a line of take-overs nobody is compared whole for nothing."""
    chance = random.Random(seed)
    ours: list[int] = []
    starts: list[tuple[int, int]] = []
    positions: list[Position] = []
    for epoch in range(1, 1 + chance.randrange(1, 5)):
        if ours and chance.random() < 0.5:
            del ours[chance.randrange(len(ours)) :]
        starts.append((epoch, len(ours)))
        ours.extend([epoch] * chance.randrange(5))
        positions.extend(Position(epoch, sequence) for sequence in range(starts[-1][1], len(ours) + 1))
    history = history_of(starts)
    lowest = {
        epoch: min([last for later, last in starts if later > epoch], default=len(ours))
        for epoch, _ in starts
    }
    for position in positions:
        expected = position.sequence <= lowest[position.epoch]
        assert is_prefix(position, history, len(ours) + 1) is expected
