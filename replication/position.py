"""Where a far site stands in the stream, and what must be done to continue it: pure decisions.

A position is `(epoch, sequence)`: "every write up to sequence is here". It belongs to one history: the
writes of epoch e that count end where the next epoch began. A far site whose position lies on our history
holds a *prefix* of our stream and can be continued, from the queue or by a difference copy. One that lies
off it holds writes that we never had, or lacks writes it once promised; no log says which blocks those are,
so every allocated block is compared by hash.

The rule is sound because of P1: whoever takes over holds a prefix of the newest stream.

| far position                                  | standing   | copy        |
|-----------------------------------------------|------------|-------------|
| of an epoch newer than ours                   | SUPERSEDED | none: stop  |
| NOWHERE (new disk, broken-off initial copy)   | BLANK      | allocated   |
| beyond the end of its epoch in our history    | AHEAD      | allocated   |
| of an epoch that our history does not know    | AHEAD      | allocated   |
| a prefix, but before what it promised us      | REGRESSED  | allocated   |
| a prefix, but our host crashed since (P4)     | DOUBTFUL   | allocated   |
| a prefix, the next entry is in the queue      | CONTIGUOUS | queue       |
| a prefix, nothing was written since           | CONTIGUOUS | queue       |
| a prefix, the next entry is not in the queue  | GAP        | listed      |
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple


class Position(NamedTuple):
    """Everything up to `sequence` of the stream, as written in `epoch` and before, is here."""

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"epoch {self.epoch}, sequence {self.sequence}" if self.epoch else "no position"


NOWHERE: Final = Position(0, 0)
"""The content is no state of the stream: a new disk, an initial copy under way, an area that diverged."""


class EpochStart(NamedTuple):
    """An epoch of our history: its first write has number `last_before` + 1."""

    epoch: int
    last_before: int


class Standing(StrEnum):
    """How a far site stands to our stream; see the table of the module."""

    CONTIGUOUS = "contiguous"
    GAP = "gap"
    BLANK = "blank"
    AHEAD = "ahead"
    DOUBTFUL = "doubtful"
    REGRESSED = "regressed"
    SUPERSEDED = "superseded"


class Remedy(StrEnum):
    """What continues the far site."""

    QUEUE = "queue"  # ship entries
    LISTED = "listed"  # difference copy of what the metadata log lists
    ALLOCATED = "allocated"  # difference copy of every allocated block
    STOP = "stop"  # we are no longer the writer


REMEDIES: Final = {
    Standing.CONTIGUOUS: Remedy.QUEUE,
    Standing.GAP: Remedy.LISTED,
    Standing.BLANK: Remedy.ALLOCATED,
    Standing.AHEAD: Remedy.ALLOCATED,
    Standing.DOUBTFUL: Remedy.ALLOCATED,
    Standing.REGRESSED: Remedy.ALLOCATED,
    Standing.SUPERSEDED: Remedy.STOP,
}


class Stream(NamedTuple):
    """What the writer knows of its own stream.

    `history` holds the current epoch and every earlier one. `oldest` is the first entry in the queue (None:
    it is empty), `next_sequence` the number the next write will get, `promised` the furthest position that
    the far site ever reported durable to this writer (None: it never did). `doubted`: a crash of this host
    lost entries, and perhaps writes that the far site has and the records of the log that name them.
    """

    history: tuple[EpochStart, ...]
    oldest: int | None
    next_sequence: int
    promised: Position | None = None
    doubted: bool = False

    @property
    def epoch(self) -> int:
        """The epoch we write in."""
        return max(start.epoch for start in self.history)


class Judgement(NamedTuple):
    """The standing of a far site, what to do, and a sentence for the operator."""

    standing: Standing
    remedy: Remedy
    sentence: str


def history_of(starts: Iterable[tuple[int, int]]) -> tuple[EpochStart, ...]:
    """The history from `(epoch, start_sequence)` of every roles record, in ascending epochs."""
    return tuple(sorted(EpochStart(epoch, last_before) for epoch, last_before in starts))


def end_of_epoch(history: Sequence[EpochStart], epoch: int, next_sequence: int) -> int | None:
    """The last sequence of `epoch` that counts in `history`; None if the history does not know the epoch.

    A later epoch may have begun before the end of the one preceding it (a forced take-over at the async
    site), so the smallest start of all later epochs decides.
    """
    if all(start.epoch != epoch for start in history):
        return None
    later = [start.last_before for start in history if start.epoch > epoch]
    return min(later, default=next_sequence - 1)


def is_prefix(position: Position, history: Sequence[EpochStart], next_sequence: int) -> bool:
    """Whether a site at `position` holds a prefix of the stream with this history."""
    end = end_of_epoch(history, position.epoch, next_sequence)
    return end is not None and position.sequence <= end


def judge(far: Position, ours: Stream) -> Judgement:
    """How a far site at `far` stands to our stream, and what continues it (the table of the module)."""
    standing, sentence = _standing(far, ours)
    return Judgement(standing, REMEDIES[standing], sentence)


def _standing(far: Position, ours: Stream) -> tuple[Standing, str]:
    if far.epoch > ours.epoch:
        return Standing.SUPERSEDED, f"the far site is in epoch {far.epoch}, this site only in {ours.epoch}"
    if far.epoch == NOWHERE.epoch:
        return Standing.BLANK, "the far site holds no state of this volume yet"
    if not is_prefix(far, ours.history, ours.next_sequence):
        end = end_of_epoch(ours.history, far.epoch, ours.next_sequence)
        known = "is not known here" if end is None else f"ended at sequence {end} here"
        return Standing.AHEAD, f"the far site is at {far}, but epoch {far.epoch} {known}"
    if _broke_promise(far, ours):
        return Standing.REGRESSED, f"the far site is at {far}, but had reported {ours.promised} durable"
    if ours.doubted:
        return Standing.DOUBTFUL, "a crash of this host lost writes that the far site may have"
    if far.sequence == ours.next_sequence - 1:
        return Standing.CONTIGUOUS, "the far site had every write and follows"
    if ours.oldest is not None and ours.oldest <= far.sequence + 1:
        return Standing.CONTIGUOUS, f"the queue continues the far site from sequence {far.sequence + 1}"
    oldest = "it is empty" if ours.oldest is None else f"it begins at {ours.oldest}"
    return Standing.GAP, f"the far site needs sequence {far.sequence + 1}, which left the queue ({oldest})"


def _broke_promise(far: Position, ours: Stream) -> bool:
    """The log retired what was promised durable, so a far site that is back before it cannot be listed."""
    promised = ours.promised
    return (
        promised is not None
        and is_prefix(promised, ours.history, ours.next_sequence)
        and far.sequence < promised.sequence
    )
