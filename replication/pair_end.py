"""The secondary's end of a pair: it keeps state, time and reason of its own, from what it sees and is told.

It sees its writer connected or not, and knows by itself whether it holds everything. What an operator did at
the writer it cannot see, and is told.
"""

import logging
import time
from typing import TYPE_CHECKING, Final

import trio

from replication.control import ControlError, NotePair
from replication.pair import Event, Kind, Pair, PairError, State
from replication.position import NOWHERE
from replication.site_parts import FollowPart, SyncPart
from replication.state import StateError

if TYPE_CHECKING:
    from replication.site import Site

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.2
"""How soon a secondary that came into step has that on record."""


def events_for(state: State, *, connected: bool, in_step: bool, blank: bool) -> tuple[Event, ...]:
    """What leads from the state on record to what the secondary sees now; pure, and () once it is there."""
    if not connected:
        return () if state in {State.SIMPLEX, State.SUSPEND, State.FAILURE_SUSPEND} else (Event.UNREACHABLE,)
    copying = Event.PEER_EMPTY if blank else Event.PEER_BEHIND
    if in_step:
        wanted, last = State.DUPLEX, Event.IN_STEP
    else:
        wanted, last = State.INITIAL_COPYING if blank else State.DUPLEX_PENDING, copying
    if state is wanted:
        return ()
    if state is State.SIMPLEX:
        return Event.CREATE, last
    if state is State.SUSPEND:
        return Event.RESYNC, last
    return (copying, last) if in_step and state is State.FAILURE_SUSPEND else (last,)


class PairEnd:
    """The pair whose secondary this site is, if it is one."""

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._stopped: int | None = None
        """Since when the conversation stands that an operator ended; it does not resume the pair."""
        self._trouble = ""

    async def run(self) -> None:
        """Look now and then, until cancelled: coming into step is nobody's message."""
        while True:
            self.look()
            await trio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Put on record what there is to see; where the host refuses that, the next look tries again."""
        try:
            self._look()
        except StateError as error:
            if str(error) != self._trouble:
                log.warning("site %s: %s", self._site.name, error)
            self._trouble = str(error)
        else:
            self._trouble = ""

    def _look(self) -> None:
        site, part, roles = self._site, self._site.part, self._site.state.roles
        if roles is None or not isinstance(part, SyncPart | FollowPart):
            return
        if isinstance(part, FollowPart) and part.level:
            return
        kind = Kind.SYNC if isinstance(part, SyncPart) else Kind.ASYNC
        if isinstance(part, SyncPart):
            facts = part.record.facts
            in_step, blank = facts.in_step and facts.epoch == roles.epoch, not facts.has_volume
        else:
            in_step, blank = part.receiver.follows, part.receiver.durable == NOWHERE
        connected = site.connected_since is not None
        if connected and site.connected_since == self._stopped:
            return
        pair = self._on_record(kind, roles.since)
        reason = f"site {roles.writer} is connected" if connected else f"site {roles.writer} is not connected"
        self._record(pair, events_for(pair.state, connected=connected, in_step=in_step, blank=blank), reason)

    def told(self, note: NotePair) -> None:
        """The writer says what an operator did; ControlError where it speaks of another epoch."""
        roles = self._site.roles
        if note.epoch != roles.epoch:
            raise ControlError(f"site {self._site.name} is in epoch {roles.epoch}, not {note.epoch}")
        self._stopped = self._site.connected_since
        pair = self._on_record(Kind(note.pair.kind), roles.since)
        event = Event.DELETE if note.pair.state == State.SIMPLEX else Event.SUSPEND
        events = (event, Event.DRAINED) if pair.kind is Kind.ASYNC and event is Event.SUSPEND else (event,)
        self._record(pair, events, note.pair.reason)

    def _on_record(self, kind: Kind, since: int) -> Pair:
        roles = self._site.roles
        for known in self._site.state.pairs():
            if (known.kind, known.source, known.target) == (kind, roles.writer, self._site.name):
                return Pair(kind, State(known.state), known.since, known.reason)
        return Pair(kind, State.SIMPLEX, since, "the pair is new")

    def _record(self, pair: Pair, events: tuple[Event, ...], reason: str) -> None:
        site = self._site
        for event in events:
            try:
                pair = pair.after(event, reason, time.time_ns())
                site.state.set_pair(
                    pair.kind.value, site.roles.writer, site.name, str(pair.state), reason, event
                )
            except PairError:
                continue  # what is there already, or what an operator stopped
