"""The secondary's end of a pair, with a host that refuses to keep anything for a while."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import pytest

from replication.control import ControlError, NotePair
from replication.pair import State
from replication.pair_end import PairEnd
from replication.position import NOWHERE, Position
from replication.roles import first_roles
from replication.site import Site
from replication.site_parts import FollowPart
from replication.state import PairRecord, SiteState, StateError, VolumeIdentity

IDENTITY = VolumeIdentity(uuid=UUID(int=7), name="home", size_bytes=1 << 30)
ROLES = first_roles(1)


def site_of(state: SiteState) -> SimpleNamespace:
    """What the end of the pair looks at, of an asynchronous secondary that is not connected."""
    receiver = SimpleNamespace(durable=NOWHERE, follows=False)
    part = FollowPart(None, receiver, level=False)  # type: ignore[arg-type]
    return SimpleNamespace(name="async", state=state, roles=ROLES, part=part, connected_since=None)


def note(state: State, epoch: int = 1) -> NotePair:
    pair = PairRecord(
        kind="async",
        source="primary",
        target="async",
        state=str(state),
        since=1,
        reason="the operator said so",
    )
    return NotePair(epoch=epoch, pair=pair)


def test_an_operators_word_lasts_until_a_new_conversation(tmp_path: Path) -> None:
    with SiteState(tmp_path) as state:
        state.create(IDENTITY, ROLES)
        site = site_of(state)
        end = PairEnd(cast(Site, site))
        site.connected_since = 10
        end.look()
        assert state.pairs()[0].state == "Initial-Copying"
        site.part.receiver.durable = Position(1, 5)
        end.look()  # what is here was copied once, and it is not known yet whether anything is missing
        assert state.pairs()[0].state == "Duplex-Pending"
        site.part.receiver.follows = True
        end.look()
        assert state.pairs()[0].state == "Duplex"
        for word in (State.SUSPEND, State.SIMPLEX):
            end.told(note(word))
            end.look()  # the old conversation still stands
            assert (state.pairs()[0].state, state.pairs()[0].reason) == (word, "the operator said so")
            site.connected_since = None
            end.look()
            assert state.pairs()[0].state == word
            site.connected_since = 20 + state.newest_event
            end.look()
            assert state.pairs()[0].state == "Duplex"
        with pytest.raises(ControlError, match="in epoch 1, not 2"):
            end.told(note(State.SUSPEND, epoch=2))


def test_what_the_host_refuses_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise StateError("no space left")

    with SiteState(tmp_path) as state:
        state.create(IDENTITY, ROLES)
        site = site_of(state)
        end = PairEnd(cast(Site, site))
        site.connected_since = 10
        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
            patched.setattr(state, "set_pair", refuse)
            for _ in range(3):
                end.look()
        assert [record.getMessage() for record in caplog.records] == ["site async: no space left"]
        end.look()
        assert state.pairs()[0].state == "Initial-Copying"
