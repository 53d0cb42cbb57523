"""The table of pair states, over the full product of kinds, states and events; and the back-off."""

from itertools import product

import pytest

from replication.backoff import Backoff
from replication.pair import TRANSITIONS, Event, Kind, Pair, PairError, State, next_state
from replication.pair_end import events_for
from tools.pair_table import PAGE, diagram, page, states_of, table

STABLE = {State.SIMPLEX, State.DUPLEX, State.SUSPEND, State.FAILURE_SUSPEND}
COPYING = {State.INITIAL_COPYING, State.DUPLEX_PENDING}


@pytest.mark.parametrize(("kind", "state", "event"), list(product(Kind, State, Event)))
def test_every_combination(kind: Kind, state: State, event: Event) -> None:
    """What the design says holds for whatever is in the table; what is not in it is refused."""
    if (state, event) not in TRANSITIONS[kind]:
        with pytest.raises(PairError, match=f"{state} does not take the event {event}"):
            next_state(kind, state, event)
        return
    after = next_state(kind, state, event)
    if after is State.DUPLEX:
        assert event is Event.IN_STEP
        assert state in COPYING | {State.DUPLEX}
    if event is Event.DELETE:
        assert after is State.SIMPLEX
    if event in (Event.UNREACHABLE, Event.REFUSED):
        assert after in (State.SUSPEND, State.FAILURE_SUSPEND)
    if event is Event.PEER_EMPTY:
        assert after is (State.SUSPEND if state is State.SUSPENDING else State.INITIAL_COPYING)
    if after is State.SUSPENDING or state is State.SUSPENDING:
        assert kind is Kind.ASYNC
    if state is State.SUSPEND:
        # Only an operator ends a suspension.
        assert after is State.SUSPEND or event in (Event.RESYNC, Event.DELETE)


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tools.pair_table`"


@pytest.mark.parametrize("kind", Kind)
def test_the_page_has_every_cell_and_every_arrow(kind: Kind) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(kind).splitlines()]
    cells = {
        (State(state), Event(row[0])): cell
        for row in rows[2:]
        for state, cell in zip(rows[0][1:], row[1:], strict=True)
    }
    assert len(cells) == len(states_of(kind)) * len(Event)
    assert {key: State(cell) for key, cell in cells.items() if cell != "-"} == TRANSITIONS[kind]
    arrows = diagram(kind).count(" --> ") - 1
    assert arrows == len(
        {(before, after) for (before, _), after in TRANSITIONS[kind].items() if before is not after}
    )


@pytest.mark.parametrize("state", [state for state in State if state is not State.SUSPENDING])
@pytest.mark.parametrize("kind", Kind)
def test_a_secondary_follows_what_it_sees_by_the_table(kind: Kind, state: State) -> None:
    """From wherever its record stands, what it sees leads to where it is, and then nothing more happens."""
    for connected, in_step, blank in product((False, True), repeat=3):
        if in_step and blank:
            continue
        now = state
        for event in events_for(now, connected=connected, in_step=in_step, blank=blank):
            now = next_state(kind, now, event)
        if not connected:
            assert now in {State.SIMPLEX, State.SUSPEND, State.FAILURE_SUSPEND}
        elif in_step:
            assert now is State.DUPLEX
        else:
            assert now is (State.INITIAL_COPYING if blank else State.DUPLEX_PENDING)
        assert events_for(now, connected=connected, in_step=in_step, blank=blank) == ()


@pytest.mark.parametrize("kind", Kind)
def test_every_state_can_be_reached_and_left(kind: Kind) -> None:
    table = TRANSITIONS[kind]
    reached = {State.SIMPLEX}
    while more := {after for (state, _), after in table.items() if state in reached} - reached:
        reached |= more
    expected = set(State) if kind is Kind.ASYNC else set(State) - {State.SUSPENDING}
    assert reached == expected
    for state in expected:
        assert {after for (before, _), after in table.items() if before is state} - {state}
        # From everywhere a way leads to Duplex, without deleting the pair.
        seen = {state}
        while (
            more := {a for (b, event), a in table.items() if b in seen and event is not Event.DELETE} - seen
        ):
            seen |= more
        assert State.DUPLEX in seen


def test_a_pair_remembers_since_when_and_why() -> None:
    pair = Pair(Kind.SYNC, State.DUPLEX, 100, "all is well")
    lost = pair.after(Event.UNREACHABLE, "no answer", 200)
    assert lost == Pair(Kind.SYNC, State.FAILURE_SUSPEND, 200, "no answer", Event.UNREACHABLE)
    again = lost.after(Event.UNREACHABLE, "connection refused", 300)
    assert again == Pair(Kind.SYNC, State.FAILURE_SUSPEND, 200, "connection refused", Event.UNREACHABLE)


def test_backoff_doubles_up_to_its_bound_and_depends_on_the_seed_alone() -> None:
    waits = [Backoff(5).failed() for _ in range(2)]
    assert waits[0] == waits[1]
    backoff = Backoff(7, first_seconds=1.0, longest_seconds=60.0)
    for attempt in range(2000):
        whole = min(60.0, 2.0 ** min(attempt, 10))
        assert whole / 2 <= backoff.failed() <= whole
    assert backoff.attempts == 2000
    backoff.succeeded()
    assert backoff.failed() <= 1.0
    assert Backoff(1).failed() != Backoff(2).failed()
    with pytest.raises(ValueError, match="make no sense"):
        Backoff(1, first_seconds=0.0)
