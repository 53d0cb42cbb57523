"""The plans are pure: what the sites said decides the steps, the cost and the refusals."""

import msgspec
import pytest

from replication.config import SiteName
from replication.control import ListingReply, PositionReport, SiteReport, VolumeReport
from replication.procedures.plan import Survey, plan_failback, plan_failover
from replication.procedures.results import ProcedureRefused
from replication.roles import (
    Roles,
    after_failback,
    first_roles,
    following,
)
from replication.state import PairRecord
from tests.replication.roles_made import after_take_over_at_async, after_take_over_at_sync

NORMAL = first_roles(1)
AT_SYNC = after_take_over_at_sync(NORMAL, 100, 2)
AT_ASYNC = after_take_over_at_async(AT_SYNC, 200, 3, follow="sync")
ALONE = after_take_over_at_async(NORMAL, 90, 3, follow=None)


def report(site: SiteName, roles: Roles | None, **changes: object) -> SiteReport:
    found = SiteReport(
        site=site,
        volume=VolumeReport(uuid="u", name="home", size_bytes=1 << 30),
        roles=roles,
        history=[],
        pairs=[],
        mounted=False,
        mount=None,
        received_sequence=None,
        position=None,
        queue=None,
        next_sequence=None,
        copy=None,
        proven=True,
        proven_reason="nothing",
        newest_known=0,
        take_over=None,
        level=None,
        faults=[],
    )
    return msgspec.structs.replace(found, **changes)


def survey(roles: Roles, *sites: SiteName, **changes: object) -> Survey:
    """These sites answer in `roles`, the others do not."""
    names: tuple[SiteName, ...] = ("primary", "sync", "async")
    return Survey(
        reports={site: report(site, roles, **changes) for site in sites},
        silent={site: f"site {site} is dead" for site in names if site not in sites},
    )


def names(plan: object) -> list[str]:
    return [step.name for step in plan.steps]  # type: ignore[attr-defined]


def test_no_step_asks_anything_of_the_dead_primary() -> None:
    plan = plan_failover(survey(NORMAL, "sync", "async"), "sync", accept_loss=False)
    assert names(plan) == ["promote", "follow", "recovery copy"]
    assert all("primary" not in step.sites for step in plan.steps)


def test_a_dead_far_site_is_in_no_step_either() -> None:
    plan = plan_failover(survey(NORMAL, "sync"), "sync", accept_loss=False)
    assert names(plan) == ["promote", "recovery copy"]
    assert {site for step in plan.steps for site in step.sites} == {"sync"}


def test_the_plan_of_a_rerun_is_the_same() -> None:
    first = plan_failover(survey(NORMAL, "sync", "async"), "sync", accept_loss=False)
    again = plan_failover(survey(AT_SYNC, "sync", "async", proven=False), "sync", accept_loss=False)
    assert first.steps == again.steps


def test_the_cost_is_what_the_log_names() -> None:
    listing = ListingReply(files=[], files_listed=7, bytes=9 << 20, file_bytes=4096, log_bytes=8 << 20)
    plan = plan_failover(survey(NORMAL, "sync", "async"), "sync", accept_loss=False, listing=listing)
    assert "7 files with 4 KiB, and the log area of 8 MiB" in plan.steps[-1].cost


@pytest.mark.parametrize(
    ("to", "found", "code", "says"),
    [
        ("sync", survey(NORMAL, "async"), 4, "trisite site sync"),
        ("sync", survey(NORMAL), 4, "no site answers"),
        ("sync", survey(NORMAL, "sync", proven=False), 5, "--accept-loss"),
        ("sync", survey(NORMAL, "sync", "primary", mounted=True), 1, "unmount it there first"),
        ("sync", survey(NORMAL, "sync", volume=None), 1, "no part of the volume"),
        ("sync", survey(AT_ASYNC, "sync", "async"), 1, "failback"),
        ("async", survey(NORMAL, "async"), 5, "--accept-loss"),
        ("async", survey(NORMAL, "sync"), 4, "trisite site async"),
    ],
)
def test_refusals_have_a_reason_and_a_way_out(to: SiteName, found: Survey, code: int, says: str) -> None:
    with pytest.raises(ProcedureRefused, match=says) as caught:
        plan_failover(found, to, accept_loss=False)
    assert caught.value.code == code


def test_what_async_knows_to_be_missing_is_named() -> None:
    position = PositionReport(epoch=1, durable_sequence=90, applied_sequence=90)
    found = survey(NORMAL, "async", position=position, newest_known=97)
    with pytest.raises(ProcedureRefused, match="7 writes are known missing"):
        plan_failover(found, "async", accept_loss=False)
    assert names(plan_failover(found, "async", accept_loss=True)) == ["promote async"]


def test_async_takes_over_by_way_of_sync_where_it_is_there() -> None:
    plan = plan_failover(survey(NORMAL, "sync", "async"), "async", accept_loss=False)
    assert plan.via_sync
    assert names(plan) == ["promote", "follow", "recovery copy", "turn"]


def behind_async(*, proven: bool = False, epoch: int = 1) -> Survey:
    """Site sync has the stream up to 80, site async up to 90."""
    found = survey(NORMAL, "sync", "async", proven=proven, received_sequence=80)
    position = PositionReport(epoch=epoch, durable_sequence=90, applied_sequence=90)
    found.reports["async"] = report("async", NORMAL, position=position)
    return found


def test_a_sync_site_that_is_behind_does_not_set_async_back() -> None:
    with pytest.raises(ProcedureRefused, match="sync is 10 writes behind site async") as caught:
        plan_failover(behind_async(), "async", accept_loss=False)
    assert caught.value.code == 5
    plan = plan_failover(behind_async(), "async", accept_loss=True)
    assert not plan.via_sync
    assert names(plan) == ["promote async"]
    assert not plan_failover(behind_async(proven=True), "async", accept_loss=True).via_sync
    assert plan_failover(behind_async(epoch=0), "async", accept_loss=True).via_sync


def test_what_async_has_beyond_a_sync_site_that_takes_itself_to_be_in_step_contradicts_it() -> None:
    """Its pair was suspended or deleted with --force while it was away, and it was told by nobody (P1)."""
    with pytest.raises(
        ProcedureRefused, match="site primary went on without it; site async has 10 writes more"
    ) as caught:
        plan_failover(behind_async(proven=True), "sync", accept_loss=False)
    assert caught.value.code == 5
    plan = plan_failover(behind_async(proven=True), "sync", accept_loss=True)
    assert plan.doubt == "site async has 10 writes that site sync has not, so site primary went on without it"
    assert plan_failover(survey(NORMAL, "sync", "async"), "sync", accept_loss=False).doubt is None


def test_a_take_over_at_sync_says_what_only_async_has() -> None:
    with pytest.raises(ProcedureRefused, match="site async has 10 writes more: take over there"):
        plan_failover(behind_async(), "sync", accept_loss=False)
    plan = plan_failover(behind_async(), "sync", accept_loss=True)
    assert plan.steps[0].cost == "site async is set back by 10 writes that only it has"


@pytest.mark.parametrize(("state", "done"), [("Suspend", "suspended"), ("Simplex", "deleted")])
def test_a_writer_that_goes_on_alone_takes_the_proof_away(state: str, done: str) -> None:
    """The pair was taken out with --force, so site sync takes itself to be in step."""
    pair = PairRecord(
        kind="sync", source="primary", target="sync", state=state, since=1, reason="asked", epoch=NORMAL.epoch
    )
    everyone = survey(NORMAL, "primary", "sync", pairs=[pair])
    with pytest.raises(ProcedureRefused, match=f"goes on alone, its pair to site sync was {done}"):
        plan_failover(everyone, "sync", accept_loss=False)
    assert plan_failover(everyone, "sync", accept_loss=True).steps
    level = survey(NORMAL, "primary", "sync", "async", pairs=[pair])
    by_way_of_sync = plan_failover(level, "async", accept_loss=True)
    assert by_way_of_sync.via_sync
    assert by_way_of_sync.doubt is not None
    former = survey(NORMAL, "primary", "sync", pairs=[msgspec.structs.replace(pair, epoch=NORMAL.epoch - 1)])
    assert plan_failover(former, "sync", accept_loss=False).steps


def test_loss_may_be_accepted() -> None:
    assert plan_failover(survey(NORMAL, "sync", proven=False), "sync", accept_loss=True).steps


def test_the_way_back_levels_who_was_away() -> None:
    everyone: tuple[SiteName, ...] = ("primary", "sync", "async")
    assert plan_failback(survey(AT_SYNC, *everyone)).targets == ("primary",)
    assert plan_failback(survey(AT_ASYNC, *everyone)).targets == ("primary",)
    assert plan_failback(survey(ALONE, *everyone)).targets == ("primary", "sync")
    steps = names(plan_failback(survey(AT_SYNC, *everyone)))
    assert steps == ["keep", "level", "finish", "last difference", "drain", "switch"]


def test_the_way_back_does_not_wait_for_a_dead_far_site() -> None:
    plan = plan_failback(survey(AT_SYNC, "primary", "sync"))
    assert all("async" not in step.sites for step in plan.steps if step.name != "switch")


@pytest.mark.parametrize("missing", ["primary", "sync"])
def test_the_way_back_needs_writer_and_primary(missing: SiteName) -> None:
    there = [site for site in ("primary", "sync", "async") if site != missing]
    with pytest.raises(ProcedureRefused, match=f"trisite site {missing}"):
        plan_failback(survey(AT_SYNC, *there))  # type: ignore[arg-type]


def test_a_return_that_was_cut_short_is_finished_by_telling_who_is_behind() -> None:
    back = after_failback(AT_SYNC, 300, 4)
    found = Survey(
        reports={"sync": report("sync", back), "primary": report("primary", AT_SYNC)},
        silent={"async": "dead"},
    )
    plan = plan_failback(found)
    assert names(plan) == ["switch"]
    assert plan.steps[0].sites == ("primary",)
    assert plan_failback(survey(back, "primary", "sync", "async")).kind == "nothing"


def test_sites_of_different_volumes_are_not_mixed() -> None:
    """A directory of another cluster, taken for the own one: its site must not become anybody's writer."""
    foreign = VolumeReport(uuid="another", name="home", size_bytes=1 << 30)
    mixed = Survey(
        reports={
            "primary": report("primary", NORMAL),
            "sync": report("sync", NORMAL, volume=foreign),
            "async": report("async", NORMAL),
        },
        silent={},
    )
    with pytest.raises(ProcedureRefused, match="site primary and async: u; site sync: another"):
        plan_failover(mixed, "sync", accept_loss=True)
    with pytest.raises(ProcedureRefused, match="different volumes"):
        plan_failback(mixed)


C2 = following(NORMAL, writer="sync", async_to="async", start_sequence=100, now_ns=5)
D2 = following(NORMAL, writer="async", start_sequence=90, now_ns=6)


def forked(**changes: object) -> Survey:
    """Sync and async were both promoted to epoch 2, and wrote up to 120 and 95."""
    at_sync = report("sync", C2, history=[NORMAL, C2], next_sequence=121, **changes)
    at_async = report("async", D2, history=[NORMAL, D2], next_sequence=96)
    return Survey(reports={"sync": at_sync, "async": at_async}, silent={"primary": "it is dead"})


def test_a_fork_is_settled_one_above_the_highest_number_and_says_what_the_other_has() -> None:
    found = forked()
    assert found.forks() == [C2, D2]
    plan = plan_failover(found, "async", accept_loss=True)
    assert (names(plan), plan.fork_epoch, plan.roles) == (["promote async"], 3, D2)
    assert plan.steps[0].cost.startswith("site sync has 30 writes of its own")
    plan = plan_failover(found, "sync", accept_loss=True)
    assert (names(plan), plan.fork_epoch) == (["promote", "follow", "recovery copy"], 3)
    assert plan.steps[0].cost.startswith("site async has 5 writes of its own")


def test_a_fork_is_not_settled_without_the_operators_word_nor_while_it_is_mounted() -> None:
    for to in ("sync", "async"):
        with pytest.raises(ProcedureRefused, match=r"30 writes of its own.*5 writes of its own") as caught:
            plan_failover(forked(), to, accept_loss=False)
        assert caught.value.code == 5
        with pytest.raises(ProcedureRefused, match="mounted at site sync; unmount it"):
            plan_failover(forked(mounted=True), to, accept_loss=True)
    with pytest.raises(ProcedureRefused, match="two writers"):
        plan_failback(forked())
    with pytest.raises(ProcedureRefused, match="two writers"):
        plan_failover(forked(), "primary", accept_loss=True)


def test_sites_that_agree_are_no_fork() -> None:
    assert survey(C2, "sync", "async").forks() == []
    behind = Survey(reports={"sync": report("sync", C2), "async": report("async", NORMAL)}, silent={})
    assert behind.forks() == []
