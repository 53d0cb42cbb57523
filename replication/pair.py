"""The states of a pair and what moves it from one to another: a pure table (design section 6).

Both ends hold a PairState; every transition keeps when and why.
"""

from enum import StrEnum
from typing import Final, NamedTuple

__all__ = ["ASKED", "TRANSITIONS", "Event", "Kind", "Pair", "PairError", "State", "next_state"]


class Kind(StrEnum):
    """What kind of copy the pair is."""

    SYNC = "sync"
    ASYNC = "async"


class State(StrEnum):
    """The states of design section 6."""

    SIMPLEX = "Simplex"
    """No copy: the pair was not created, or was deleted."""
    INITIAL_COPYING = "Initial-Copying"
    """The secondary receives everything that is in use; it cannot take over yet."""
    DUPLEX = "Duplex"
    """In step: a sync secondary has every acknowledged write, an async one follows from the queue."""
    SUSPENDING = "Suspending"
    """Async only: what can still be drained is drained, then Suspend."""
    SUSPEND = "Suspend"
    """Stopped on purpose; positions are recorded."""
    FAILURE_SUSPEND = "Failure-Suspend"
    """Stopped by a failure; positions are recorded."""
    DUPLEX_PENDING = "Duplex-Pending"
    """On the way back to Duplex: what was missed is copied."""


class Event(StrEnum):
    """What happens to a pair."""

    CREATE = "create"
    """The pair is created and the secondary holds nothing: an initial copy begins."""
    PEER_EMPTY = "peer-empty"
    """The secondary answered that it holds nothing (any more)."""
    PEER_BEHIND = "peer-behind"
    """The secondary answered; it lacks writes, which are sent again or copied. An async one also when the
    queue outgrew its limit: what is on its way is taken, what left the queue is copied, nobody is asked.
    """
    IN_STEP = "in-step"
    """The secondary confirmed that it has everything: the copy is complete."""
    UNREACHABLE = "unreachable"
    """The secondary cannot be reached, was lost or failed."""
    REFUSED = "refused"
    """The secondary refuses this side; only an operator, or new roles, change that."""
    SUSPEND = "suspend"
    """An operator suspends the pair."""
    DRAINED = "drained"
    """A suspending pair has sent what could be sent."""
    RESYNC = "resync"
    """An operator resumes the pair, or it resumes by itself."""
    DELETE = "delete"
    """The pair is dissolved."""


ASKED: Final = "the operator asked for it"
"""The reason of a transition that `trisite pair` made."""

_S: Final = State
_E: Final = Event
_COMMON: Final[dict[tuple[State, Event], State]] = {
    (_S.SIMPLEX, _E.CREATE): _S.INITIAL_COPYING,
    (_S.INITIAL_COPYING, _E.PEER_EMPTY): _S.INITIAL_COPYING,
    (_S.INITIAL_COPYING, _E.PEER_BEHIND): _S.DUPLEX_PENDING,
    (_S.INITIAL_COPYING, _E.IN_STEP): _S.DUPLEX,
    (_S.INITIAL_COPYING, _E.UNREACHABLE): _S.FAILURE_SUSPEND,
    (_S.INITIAL_COPYING, _E.REFUSED): _S.FAILURE_SUSPEND,
    (_S.INITIAL_COPYING, _E.SUSPEND): _S.SUSPEND,
    (_S.DUPLEX, _E.PEER_EMPTY): _S.INITIAL_COPYING,
    (_S.DUPLEX, _E.PEER_BEHIND): _S.DUPLEX_PENDING,
    (_S.DUPLEX, _E.IN_STEP): _S.DUPLEX,
    (_S.DUPLEX, _E.UNREACHABLE): _S.FAILURE_SUSPEND,
    (_S.DUPLEX, _E.REFUSED): _S.FAILURE_SUSPEND,
    (_S.DUPLEX, _E.SUSPEND): _S.SUSPEND,
    (_S.SUSPEND, _E.SUSPEND): _S.SUSPEND,
    (_S.SUSPEND, _E.UNREACHABLE): _S.SUSPEND,
    (_S.SUSPEND, _E.REFUSED): _S.SUSPEND,
    (_S.SUSPEND, _E.RESYNC): _S.DUPLEX_PENDING,
    (_S.FAILURE_SUSPEND, _E.PEER_EMPTY): _S.INITIAL_COPYING,
    (_S.FAILURE_SUSPEND, _E.PEER_BEHIND): _S.DUPLEX_PENDING,
    (_S.FAILURE_SUSPEND, _E.UNREACHABLE): _S.FAILURE_SUSPEND,
    (_S.FAILURE_SUSPEND, _E.REFUSED): _S.FAILURE_SUSPEND,
    (_S.FAILURE_SUSPEND, _E.SUSPEND): _S.SUSPEND,
    (_S.FAILURE_SUSPEND, _E.RESYNC): _S.DUPLEX_PENDING,
    (_S.DUPLEX_PENDING, _E.PEER_EMPTY): _S.INITIAL_COPYING,
    (_S.DUPLEX_PENDING, _E.PEER_BEHIND): _S.DUPLEX_PENDING,
    (_S.DUPLEX_PENDING, _E.IN_STEP): _S.DUPLEX,
    (_S.DUPLEX_PENDING, _E.UNREACHABLE): _S.FAILURE_SUSPEND,
    (_S.DUPLEX_PENDING, _E.REFUSED): _S.FAILURE_SUSPEND,
    (_S.DUPLEX_PENDING, _E.SUSPEND): _S.SUSPEND,
    (_S.DUPLEX_PENDING, _E.RESYNC): _S.DUPLEX_PENDING,
    **{(state, _E.DELETE): _S.SIMPLEX for state in State if state is not _S.SUSPENDING},
}
_ASYNC: Final[dict[tuple[State, Event], State]] = {
    **_COMMON,
    # An async pair drains first: what it can still send need not be copied later.
    (_S.DUPLEX, _E.SUSPEND): _S.SUSPENDING,
    (_S.DUPLEX_PENDING, _E.SUSPEND): _S.SUSPENDING,
    (_S.SUSPENDING, _E.DRAINED): _S.SUSPEND,
    (_S.SUSPENDING, _E.SUSPEND): _S.SUSPENDING,
    (_S.SUSPENDING, _E.UNREACHABLE): _S.SUSPEND,
    (_S.SUSPENDING, _E.REFUSED): _S.SUSPEND,
    (_S.SUSPENDING, _E.PEER_EMPTY): _S.SUSPEND,
    (_S.SUSPENDING, _E.PEER_BEHIND): _S.SUSPENDING,
    (_S.SUSPENDING, _E.RESYNC): _S.DUPLEX_PENDING,
    (_S.SUSPENDING, _E.DELETE): _S.SIMPLEX,
}
TRANSITIONS: Final[dict[Kind, dict[tuple[State, Event], State]]] = {Kind.SYNC: _COMMON, Kind.ASYNC: _ASYNC}
"""Every transition there is. What is not in the table is refused with a PairError."""


class PairError(Exception):
    """The event makes no sense in this state; one sentence for the operator."""


class Pair(NamedTuple):
    """The state of one pair, since when (Unix nanoseconds), why, and by which event (None: not known)."""

    kind: Kind
    state: State
    since_ns: int
    reason: str
    event: Event | None = None

    def after(self, event: Event, reason: str, now_ns: int) -> "Pair":
        """The pair after an event. An event that changes no state keeps `since` and renews the reason."""
        state = next_state(self.kind, self.state, event)
        return Pair(self.kind, state, self.since_ns if state is self.state else now_ns, reason, event)


def next_state(kind: Kind, state: State, event: Event) -> State:
    """The state that follows; PairError when there is no such transition."""
    following = TRANSITIONS[kind].get((state, event))
    if following is None:
        raise PairError(f"a {kind} pair in state {state} does not take the event {event}")
    return following
