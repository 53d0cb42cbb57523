"""`trisite pair suspend` and `resync`, and what `status` says meanwhile."""

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
import trio

from replication.client import ask_site
from replication.config import SITE_NAMES, SiteName
from replication.control import GetEvents
from replication.creating import create_volume
from replication.pair import ASKED, Event, Kind, State, next_state
from replication.procedures import ProcedureRefused
from replication.state import PairEvent
from replication.status import Status, collect
from tests.replication.cluster import Cluster, Process, running, wait_until
from tests.replication.test_failover import checked, crash, drain_output, failover, newest_read, write_some
from tools.demo.stage import trisite_command

NEAR: Final[tuple[SiteName, ...]] = ("primary", "sync")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path / "cluster", *SITE_NAMES) as found:
        trio.run(create_volume, found.config)
        yield found


def status_of(cluster: Cluster) -> Status:
    return trio.run(collect, cluster.config)


def state_of(cluster: Cluster, kind: str) -> str:
    return next(pair.state for pair in status_of(cluster).pairs if pair.kind == kind)


def in_duplex(cluster: Cluster, kind: str) -> bool:
    return state_of(cluster, kind) == "Duplex"


def by_hand(cluster: Cluster, *words: str) -> tuple[int, str]:
    run = subprocess.run(
        [*trisite_command(), "pair", *words, "-c", str(cluster.config.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return run.returncode, run.stderr


def test_the_synchronous_pair(cluster: Cluster) -> None:
    writer = write_some(cluster, "primary", 3)
    assert by_hand(cluster, "suspend", "primary,sync") == (0, "")
    assert state_of(cluster, "sync") == "Suspend"
    status = status_of(cluster)
    assert not status.armed
    assert "not in step" in status.armed_reason
    assert any("WITHOUT the sync site" in one for one in status.warnings)
    cluster.kill("sync")
    for _ in range(3):
        writer.expect("synced")
    drain_output(writer)
    cluster.start("sync")
    assert by_hand(cluster, "resync", "primary,sync") == (0, "")
    wait_until(lambda: state_of(cluster, "sync") == "Duplex")
    assert len(checked(cluster).compared) == 2
    assert status_of(cluster).armed


def test_the_asynchronous_pair_rests_also_when_the_daemon_is_started_again(cluster: Cluster) -> None:
    writer = write_some(cluster, "primary", 3)
    assert by_hand(cluster, "suspend", "primary,async") == (0, "")
    wait_until(lambda: state_of(cluster, "async") == "Suspend")
    cluster.kill("primary")
    cluster.start("primary")
    for _ in range(3):
        writer.expect("synced")
    drain_output(writer)
    assert state_of(cluster, "async") == "Suspend"
    wait_until(lambda: (status_of(cluster).lag_seconds or 0) > 0)
    assert by_hand(cluster, "resync", "primary,async") == (0, "")
    wait_until(lambda: state_of(cluster, "async") == "Duplex")
    assert len(checked(cluster).compared) == 2


def test_what_cannot_be_done_is_refused_in_one_sentence(cluster: Cluster) -> None:
    code, sentence = by_hand(cluster, "suspend", "primary,sync")
    assert code != 0
    assert "not mounted" in sentence
    code, sentence = by_hand(cluster, "create", "primary,async")
    assert code != 0
    assert "the pair exists" in sentence
    code, sentence = by_hand(cluster, "suspend", "sync,async")
    assert code != 0
    assert "site primary writes" in sentence


def test_a_deleted_pair_protects_nothing_until_it_is_created_again(cluster: Cluster) -> None:
    writer = write_some(cluster, "primary", 3)
    for site in ("sync", "async"):
        assert by_hand(cluster, "delete", f"primary,{site}") == (0, "")
    assert (state_of(cluster, "sync"), state_of(cluster, "async")) == ("Simplex", "Simplex")
    status = status_of(cluster)
    assert not status.armed
    assert sum("was deleted" in one for one in status.warnings) == 2
    for site in ("sync", "async"):
        assert by_hand(cluster, "delete", f"primary,{site}") == (0, "")  # so already
        code, sentence = by_hand(cluster, "suspend", f"primary,{site}")
        assert (code, sentence.count("\n")) == (1, 1)
        assert f"create it with `trisite pair create primary,{site}`" in sentence
    code, sentence = by_hand(cluster, "resync", "primary,sync")
    assert code != 0
    assert "was deleted" in sentence
    for _ in range(3):
        writer.expect("synced")  # it goes on alone, and what it writes is noted
    crash(cluster, writer, "primary", "sync")
    cluster.start("primary", "sync")
    writer = write_some(cluster, "primary", 2)
    assert (state_of(cluster, "sync"), state_of(cluster, "async")) == ("Simplex", "Simplex")
    crash(cluster, writer, "primary")
    with pytest.raises(ProcedureRefused, match="could lose acknowledged data"):
        failover(cluster)
    cluster.start("primary")
    drain_output(write_some(cluster, "primary", 1))
    for site, kind in (("sync", "sync"), ("async", "async")):
        assert by_hand(cluster, "create", f"primary,{site}") == (0, "")
        wait_until(partial(in_duplex, cluster, kind))
    assert len(checked(cluster).compared) == 2
    assert status_of(cluster).armed


@pytest.mark.parametrize("action", ["suspend", "delete"])
def test_without_a_mount_the_pair_is_taken_out_by_force(cluster: Cluster, action: str) -> None:
    """Else a writer that is started again while the sync site is away could not be mounted at all. The sync
    site is told when it is back, and proves nothing from then on.
    """
    crash(cluster, write_some(cluster, "primary", 3), "sync")
    code, sentence = by_hand(cluster, action, "primary,sync")
    assert code == 1
    assert "mount it first (where it cannot be mounted because site sync is away: add --force)" in sentence
    assert by_hand(cluster, action, "primary,sync", "--force") == (0, "")
    assert state_of(cluster, "sync") == ("Suspend" if action == "suspend" else "Simplex")
    writer = write_some(cluster, "primary", 3)
    cluster.start("sync")
    wait_until(lambda: "without protection" in status_of(cluster).armed_reason)
    crash(cluster, writer, "primary")
    with pytest.raises(ProcedureRefused, match="could lose acknowledged data"):
        failover(cluster)
    cluster.start("primary")
    drain_output(write_some(cluster, "primary", 1))
    back = "resync" if action == "suspend" else "create"
    assert by_hand(cluster, back, "primary,sync") == (0, "")
    wait_until(partial(in_duplex, cluster, "sync"))
    assert len(checked(cluster).compared) == 2
    assert status_of(cluster).armed


def test_async_that_is_ahead_of_a_suspended_sync_site_goes_on_with_what_it_has(cluster: Cluster) -> None:
    writer = write_some(cluster, "primary", 3)
    assert by_hand(cluster, "suspend", "primary,sync") == (0, "")
    for _ in range(5):
        writer.expect("synced")
    synced = writer.newest
    drain_output(writer)
    wait_until(lambda: (lag := status_of(cluster).lag_seconds) is not None and lag < 0.5)
    before = status_of(cluster).sites["async"].applied_seq
    wait_until(lambda: (status_of(cluster).sites["async"].applied_seq or 0) > (before or 0) + 10)
    crash(cluster, writer, "primary")
    with pytest.raises(ProcedureRefused, match="behind site async"):
        failover(cluster, "async")
    result = failover(cluster, "async", accept_loss=True)
    assert (result.writer, result.recovery) == ("async", "not needed")
    assert newest_read(cluster, "async") >= synced


def history_at(cluster: Cluster, site: SiteName, kind: str) -> list[PairEvent]:
    reply = trio.run(ask_site, cluster.config, site, GetEvents())
    assert reply.newest == reply.events[-1].number
    return [event for event in reply.events if event.kind == kind]


def test_both_ends_keep_every_transition_with_its_cause(cluster: Cluster) -> None:
    follow = Process(
        *("-m", "tools.cli"),
        *("events", "--json", "--follow", "-c", str(cluster.config.path)),
        log=cluster.base / "events.log",
    )
    cluster.writers.append(follow)
    writer = write_some(cluster, "primary", 3)
    drain_output(writer)
    assert by_hand(cluster, "suspend", "primary,sync") == (0, "")
    for site in NEAR:
        last = history_at(cluster, site, "sync")[-1]
        assert (last.state, last.event, last.reason) == ("Suspend", "suspend", ASKED), site
    assert by_hand(cluster, "resync", "primary,sync") == (0, "")
    wait_until(lambda: history_at(cluster, "sync", "sync")[-1].state == "Duplex")
    cluster.kill("async")
    wait_until(lambda: history_at(cluster, "primary", "async")[-1].state == "Failure-Suspend")
    cluster.start("async")
    wait_until(lambda: history_at(cluster, "async", "async")[-1].state == "Duplex")
    cluster.daemons["primary"].signal(19)
    wait_until(lambda: history_at(cluster, "async", "async")[-1].state == "Failure-Suspend", 20)
    cluster.daemons["primary"].signal(18)
    for site in NEAR:
        told = history_at(cluster, site, "sync")
        assert [(b.before, b.number > a.number) for a, b in pairwise(told)] == [
            (a.state, True) for a in told[:-1]
        ]
        for event in told[1:]:  # the first has no state before it
            if event.event:
                assert next_state(Kind.SYNC, State(event.before), Event(event.event)) == event.state
    wanted = {
        ("primary", "sync", "Suspend"),
        ("sync", "sync", "Suspend"),
        ("async", "async", "Failure-Suspend"),
    }
    while wanted:
        line = json.loads(follow.line())
        assert line["cause"]
        assert line["reason"]
        wanted -= {(line["at_site"], line["to"], line["state"])}


def test_the_lag_grows_while_the_far_site_is_away_and_is_gone_when_it_is_back(cluster: Cluster) -> None:
    writer = write_some(cluster, "primary", 2)
    cluster.daemons["async"].signal(19)
    for _ in range(2):
        writer.expect("synced")
    writer.kill()
    wait_until(lambda: (status_of(cluster).lag_seconds or 0) > 0)
    first = status_of(cluster).lag_seconds
    wait_until(lambda: (status_of(cluster).lag_seconds or 0) > (first or 0) + 0.5)
    cluster.daemons["async"].signal(18)
    wait_until(lambda: status_of(cluster).lag_seconds == 0)


def test_armed_has_a_reason_when_it_is_not(cluster: Cluster) -> None:
    write_some(cluster, "primary", 2).kill()
    assert status_of(cluster).armed
    cluster.kill("async")
    status = status_of(cluster)
    assert not status.armed
    assert "but site async does not answer" in status.armed_reason
    assert not any("not protected" in one for one in status.warnings)
    cluster.kill("sync")
    status = status_of(cluster)
    assert not status.armed
    assert "site sync does not answer" in status.armed_reason
