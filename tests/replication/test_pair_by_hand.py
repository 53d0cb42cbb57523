"""`trisite pair suspend` and `resync`, and what `status` says meanwhile."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from replication.config import SITE_NAMES
from replication.creating import create_volume
from replication.status import Status, collect
from tests.replication.cluster import Cluster, running, wait_until
from tests.replication.test_failover import checked, drain_output, write_some
from tools.demo.stage import trisite_command


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path / "cluster", *SITE_NAMES) as found:
        trio.run(create_volume, found.config)
        yield found


def status_of(cluster: Cluster) -> Status:
    return trio.run(collect, cluster.config)


def state_of(cluster: Cluster, kind: str) -> str:
    return next(pair.state for pair in status_of(cluster).pairs if pair.kind == kind)


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
    assert by_hand(cluster, "create", "primary,sync")[0] != 0
    code, sentence = by_hand(cluster, "suspend", "sync,async")
    assert code != 0
    assert "site primary writes" in sentence


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
