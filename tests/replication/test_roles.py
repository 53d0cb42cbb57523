"""Fencing as pure rules: who may talk to whom, and what a superseded site is told."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from replication.config import SITE_NAMES, SiteName
from replication.roles import (
    Purpose,
    Roles,
    Verdict,
    after_failback,
    first_roles,
    may_connect,
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
