"""Pure decisions on how a synchronous secondary is brought level after WELCOME; and its marker answers."""

from enum import StrEnum

from replication.bodies import MarkerDigests
from replication.messages import Welcome
from replication.resync import Resync
from replication.roles import Roles

__all__ = ["MarkerAnswers", "Remedy", "on_our_history", "remedy", "timeouts_of_patience"]

_MARKERS_KEPT = 16


class Remedy(StrEnum):
    """What brings the secondary level."""

    SEND = "send"
    """The entries it lacks, from the queue."""
    GO_ON = "go-on"
    """The copy that was interrupted goes on."""
    COPY = "copy"
    """A new copy."""


def on_our_history(welcome: Welcome, roles: Roles) -> bool:
    """Whether the secondary holds a state of this writer's stream: of its epoch, or of where that began.

    One that holds nothing does so only where the stream itself begins with nothing.
    """
    if not welcome.has_volume:
        return welcome.received_sequence == roles.start_sequence == 0
    return welcome.position_epoch == roles.epoch or (
        welcome.position_epoch < roles.epoch and welcome.position_sequence == roles.start_sequence
    )


def remedy(
    welcome: Welcome,
    roles: Roles,
    *,
    newest: int,
    queue_whole: bool,
    resync: Resync | None,
    force_copy: bool = False,
) -> Remedy:
    """What to do. `queue_whole`: no entries were lost in a crash of this host, or that was repaired since.

    `resync` is the copy that this process had under way; `force_copy`: the secondary reported a gap.
    """
    if force_copy:
        return Remedy.COPY
    if welcome.copy_sequence:
        same = resync is not None and resync.incarnation == welcome.incarnation
        return Remedy.GO_ON if same and welcome.copy_sequence <= newest else Remedy.COPY
    sound = on_our_history(welcome, roles) and queue_whole and welcome.received_sequence <= newest
    return Remedy.SEND if sound else Remedy.COPY


def timeouts_of_patience(*, unanswered: bool, unflushed: bool, unsent: bool) -> int:
    """After how many protect_timeouts without progress a connection is given up; 0: nothing is waited for.

    An answer comes soon; a flush of much data on a slow disk, or a copy between, may take longer.
    """
    if unanswered:
        return 1
    return 3 if unflushed or unsent else 0


class MarkerAnswers:
    """Collects the parts of the answers to markers; keeps the newest few that nobody fetched."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[int, tuple[bytes, ...]]] = {}
        self._totals: dict[int, int] = {}

    def add(self, sequence: int, part: MarkerDigests) -> None:
        """A part of the answer to the marker of that sequence."""
        self._totals[sequence] = part.total
        self._parts.setdefault(sequence, {})[part.first] = part.digests
        while len(self._parts) > _MARKERS_KEPT:
            self._forget(min(self._parts))

    def take(self, sequence: int) -> list[bytes] | None:
        """The whole answer, or None while parts are missing."""
        parts = self._parts.get(sequence)
        if parts is None or sum(map(len, parts.values())) != self._totals[sequence]:
            return None
        self._forget(sequence)
        return [digest for first in sorted(parts) for digest in parts[first]]

    def _forget(self, sequence: int) -> None:
        del self._parts[sequence], self._totals[sequence]
