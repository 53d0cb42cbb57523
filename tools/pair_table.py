"""docs/pairs.md, generated from the table of pair states: `python -m tools.pair_table` writes the page.

A test compares the page with what this makes, so neither changes without the other.
"""

import ast
from itertools import product
from pathlib import Path
from typing import Final

from replication import pair
from replication.pair import TRANSITIONS, Event, Kind, State

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "pairs.md"
TITLES: Final = {Kind.SYNC: "Synchronous pairs", Kind.ASYNC: "Asynchronous pairs"}
HEAD: Final = """# Pair states

Generated from `replication/pair.py` by `python -m tools.pair_table`; do not edit.

A pair is a copy relation from the site that writes to one that follows. Both ends keep their own state of it
in `state/`, with since when and why, and every transition with its cause; `trisite status` shows the writer's
end, `trisite events` the transitions at both ends. An event that has no place in the table (-) is refused by
name and changes nothing.

In `Simplex` after `trisite pair delete` the writer counts on nothing from that site any more: `status` warns,
a take-over there is refused without `--accept-loss`, and what is written meanwhile is noted, so that
`trisite pair create` copies the difference while the application goes on.
"""


def states_of(kind: Kind) -> list[State]:
    """The states that a pair of this kind can be in."""
    return [state for state in State if any(state is before for before, _ in TRANSITIONS[kind])]


def table(kind: Kind) -> str:
    """The full product of states and events; - where the event is refused."""
    states = states_of(kind)
    rows = [["event", *states], ["---"] * (len(states) + 1)]
    rows += [[event, *(TRANSITIONS[kind].get((state, event), "-") for state in states)] for event in Event]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def diagram(kind: Kind) -> str:
    """The transitions that change the state, as a Mermaid diagram; one arrow from state to state."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for before, event in product(states_of(kind), Event):
        after = TRANSITIONS[kind].get((before, event))
        if after is not None and after is not before:
            arrows.setdefault((before, after), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{state}" as {_name(state)}' for state in states_of(kind)]
    lines += [f"    [*] --> {_name(State.SIMPLEX)}"]
    lines += [f"    {_name(a)} --> {_name(b)} : {', '.join(events)}" for (a, b), events in arrows.items()]
    return "\n".join([*lines, "```"])


def _name(state: State) -> str:
    return state.replace("-", "_")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    parts += [f"## {TITLES[kind]}\n\n{diagram(kind)}\n\n{table(kind)}\n" for kind in Kind]
    meanings = [
        *(f"| `{state}` | {_meaning(State, state)} |" for state in State),
        *(f"| {event} | {_meaning(Event, event)} |" for event in Event),
    ]
    parts.append(
        "## What they mean\n\n| state or event | meaning |\n|---|---|\n" + "\n".join(meanings) + "\n"
    )
    return "\n".join(parts)


def _meaning(kind: type[State] | type[Event], member: State | Event) -> str:
    return MEANINGS[kind.__name__, member.name]


def _read_meanings() -> dict[tuple[str, str], str]:
    """The sentences under the members, from the source: they exist once."""
    tree = ast.parse(Path(pair.__file__).read_text(encoding="utf-8"))
    found: dict[tuple[str, str], str] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for member, sentence in zip(node.body, node.body[1:], strict=False):
                match member, sentence:
                    case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(
                        value=ast.Constant(value=str(text))
                    ):
                        found[node.name, name] = " ".join(text.split())
    return found


MEANINGS: Final = _read_meanings()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
