"""Fencing as pure rules: who may talk to whom, and what a superseded site is told."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.config import SITE_NAMES, SiteName
from replication.roles import (
    MOST_ANCESTORS,
    NO_TERM,
    Purpose,
    Roles,
    Verdict,
    after_failback,
    first_roles,
    following,
    fork_sentence,
    is_fork,
    may_connect,
    parting,
    role_of,
    should_adopt,
    superseded_sentence,
)
from tests.replication.roles_made import after_take_over_at_async, after_take_over_at_sync

NORMAL = first_roles(1_700_000_000_000_000_000)
AT_SYNC = after_take_over_at_sync(NORMAL, 12345, 1_700_000_100_000_000_000)
AT_ASYNC = after_take_over_at_async(AT_SYNC, 20000, 1_700_000_200_000_000_000, follow="sync")
BACK = after_failback(AT_ASYNC, 30000, 1_700_000_300_000_000_000)
EPOCHS = (NORMAL, AT_SYNC, AT_ASYNC, BACK)


def test_data_flows_only_from_the_writer_of_the_same_epoch_to_the_site_it_names() -> None:
    for own, theirs, here, peer, purpose in itertools.product(
        EPOCHS, EPOCHS, SITE_NAMES, SITE_NAMES, (Purpose.SYNC, Purpose.ASYNC)
    ):
        if here == peer:
            continue
        decision = may_connect(purpose, here, peer, own, theirs)
        wanted = own.sync_to if purpose is Purpose.SYNC else own.async_to
        if theirs.epoch > own.epoch:
            assert decision.verdict is Verdict.ADOPT
        elif theirs == own and peer == own.writer and here == wanted:
            assert decision.verdict is Verdict.ACCEPT
        else:
            assert decision.verdict is Verdict.REFUSE
            assert decision.sentence
            assert decision.code


def test_a_superseded_writer_reads_who_when_and_where() -> None:
    decision = may_connect(Purpose.SYNC, "sync", "primary", AT_SYNC, NORMAL)
    assert decision.verdict is Verdict.REFUSE
    assert decision.code == "superseded"
    assert decision.sentence == (
        "site primary was superseded by site sync in epoch 2 at 2023-11-14 22:15:00 UTC, sequence 12345; "
        "mount with --at sync, or bring primary back with `trisite failback`"
    )


def test_two_writers_of_one_epoch_never_accept_each_other() -> None:
    twin = after_take_over_at_async(NORMAL, 12345, AT_SYNC.since, follow=None)
    assert twin.epoch == AT_SYNC.epoch
    decision = may_connect(Purpose.ASYNC, "async", "sync", twin, AT_SYNC)
    assert decision.verdict is Verdict.REFUSE
    assert decision.code == "fenced"


def test_the_same_number_with_another_term_is_a_fork() -> None:
    """Never adopted, refused by both sides, and both named with since and start."""
    twin = msgspec.structs.replace(AT_SYNC, term="f" * 32)
    for own, theirs in ((AT_SYNC, twin), (twin, AT_SYNC)):
        assert is_fork(own, theirs)
        assert not should_adopt(own, theirs)
        decision = may_connect(Purpose.ASYNC, "async", "sync", own, theirs)
        assert (decision.verdict, decision.code) == (Verdict.REFUSE, "fenced")
    at_async = after_take_over_at_async(NORMAL, 12000, AT_SYNC.since + 10**9, follow=None)
    sentence = fork_sentence((AT_SYNC, at_async))
    assert "site sync since 2023-11-14 22:15:00 UTC from sequence 12345 on" in sentence
    assert "site async since 2023-11-14 22:15:01 UTC from sequence 12000 on" in sentence
    assert "--to async --accept-loss" in sentence
    assert not is_fork(AT_SYNC, AT_SYNC)
    assert not is_fork(AT_SYNC, BACK)


def epoch_after(old: Roles, writer: SiteName, start: int, number: int | None = None) -> Roles:
    return following(old, writer=writer, start_sequence=start, now_ns=0, epoch=number)


FIRST = first_roles(0)
C2 = epoch_after(FIRST, "sync", 100)
D2 = epoch_after(FIRST, "async", 60)
C3, D3 = epoch_after(C2, "sync", 130), epoch_after(D2, "async", 90)
D5 = epoch_after(D3, "async", 95, 5)
OLD = Roles(epoch=7, writer="sync", start_sequence=9)
AFTER_OLD = epoch_after(OLD, "primary", 30)
PARTINGS: list[tuple[str, list[Roles], Roles, int | None]] = [
    ("it is in the history", [FIRST, C2], C3, None),
    ("it was away since the first", [FIRST], D5, None),
    ("it is the same epoch", [FIRST, C2], C2, None),
    ("it holds nothing", [], C3, None),
    ("sync lost: what async lacked counts as its own", [FIRST, C2], D3, 60),
    ("async lost", [FIRST, D2], C3, 60),
    ("the other side went on for long", [FIRST, C2], D5, 60),
    ("its own side went on for long", [FIRST, D2, D3, D5], epoch_after(C3, "sync", 140, 6), 60),
    ("an epoch number the others skipped", [FIRST, D2, D3, epoch_after(D3, "sync", 92)], D5, 92),
    ("nothing is shared", [C2], epoch_after(D2, "async", 80), 0),
    ("older than the history tells", [Roles(epoch=5, writer="async", start_sequence=2)], AFTER_OLD, None),
    ("of a release without terms", [OLD], AFTER_OLD, None),
    ("without terms, but another writer", [Roles(epoch=7, writer="async", start_sequence=5)], AFTER_OLD, 5),
]


@pytest.mark.parametrize(("why", "own", "current", "wanted"), PARTINGS, ids=[one[0] for one in PARTINGS])
def test_where_a_site_parted_from_the_others(
    why: str, own: list[Roles], current: Roles, wanted: int | None
) -> None:
    del why
    assert parting(own, current) == wanted


def test_terms_are_drawn_anew_and_name_their_parent() -> None:
    assert C3.parent == C2.term
    assert C2.parent == FIRST.term
    assert (FIRST.parent, OLD.term) == (NO_TERM, NO_TERM)
    assert len({one.term for one in (FIRST, C2, D2, C3, D3, D5)}) == 6
    many = FIRST
    for start in range(100):
        many = epoch_after(many, "sync", start)
    assert len(many.ancestors) <= MOST_ANCESTORS + 1
    assert many.ancestors[-1].epoch == 100
    read = msgspec.json.decode(b'{"epoch":3,"writer":"sync"}', type=Roles)
    assert (read.term, read.parent) == (NO_TERM, NO_TERM)


def test_control_is_always_let_in_and_newer_roles_are_adopted_first() -> None:
    assert may_connect(Purpose.CONTROL, "sync", "operator", AT_SYNC, None).verdict is Verdict.ACCEPT
    assert may_connect(Purpose.CONTROL, "primary", "sync", NORMAL, AT_SYNC).verdict is Verdict.ADOPT


def test_a_site_is_levelled_only_while_it_is_prepared() -> None:
    closed = may_connect(Purpose.LEVEL, "primary", "sync", AT_SYNC, AT_SYNC)
    assert closed.verdict is Verdict.REFUSE
    assert (
        may_connect(Purpose.LEVEL, "primary", "sync", AT_SYNC, AT_SYNC, level=True).verdict is Verdict.ACCEPT
    )
    assert (
        may_connect(Purpose.LEVEL, "primary", "async", AT_SYNC, AT_SYNC, level=True).verdict is Verdict.REFUSE
    )


def test_parts_of_the_sites() -> None:
    assert [role_of(NORMAL, site) for site in SITE_NAMES] == ["writer", "sync", "async"]
    assert [role_of(AT_SYNC, site) for site in SITE_NAMES] == ["away", "writer", "async"]
    assert [role_of(AT_ASYNC, site) for site in SITE_NAMES] == ["away", "async", "writer"]
    assert BACK.start_sequence == 30000


@given(st.lists(st.integers(min_value=1, max_value=9), min_size=1), st.sampled_from(SITE_NAMES))
def test_adoption_never_goes_back(epochs: list[int], writer: SiteName) -> None:
    own: Roles | None = None
    for epoch in epochs:
        offered = Roles(epoch=epoch, writer=writer)
        before = own
        if should_adopt(own, offered):
            own = offered
        assert own is not None
        assert before is None or own.epoch >= before.epoch
    assert own is not None
    assert own.epoch == max(epochs)


def test_the_sentence_for_another_site_has_no_failback_in_it() -> None:
    assert "failback" not in superseded_sentence("sync", AT_ASYNC)
