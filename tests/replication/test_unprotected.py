"""`protect = false`: the application goes on without the sync site, loudly, and what that means for C."""

from pathlib import Path

import pytest
import trio

from replication.config import SITE_NAMES
from replication.creating import create_volume
from replication.procedures import ProcedureRefused
from replication.status import Status, collect
from tests.replication.cluster import Cluster, running, wait_until
from tests.replication.test_failover import checked, drain_output, failover, newest_read, write_some


def status_of(cluster: Cluster) -> Status:
    return trio.run(collect, cluster.config)


def sync_state(cluster: Cluster) -> str:
    return next(pair.state for pair in status_of(cluster).pairs if pair.kind == "sync")


@pytest.mark.parametrize("unmounted", [True, False])
def test_the_sync_site_is_down_before_the_mount(tmp_path: Path, unmounted: bool) -> None:
    """Also after a clean end: C, which is down, knows since an earlier mount that A may go on alone."""
    with running(tmp_path / "cluster", *SITE_NAMES, options="protect = false") as cluster:
        trio.run(create_volume, cluster.config)
        if unmounted:
            newest_read(cluster, "primary")
        else:
            write_some(cluster, "primary", 1).kill()
        cluster.kill("sync")
        writer = write_some(cluster, "primary", 3)
        status = status_of(cluster)
        assert any("WITHOUT the sync site, which is behind" in one for one in status.warnings), status
        assert not status.armed
        drain_output(writer)

        cluster.start("sync")
        wait_until(lambda: sync_state(cluster) == "Duplex")
        wait_until(lambda: len(checked(cluster).compared) == 2)
        assert not any("WITHOUT" in one for one in status_of(cluster).warnings)
        writer.kill()


def test_a_sync_site_that_is_behind_takes_over_only_when_loss_is_accepted(tmp_path: Path) -> None:
    with running(tmp_path / "cluster", *SITE_NAMES, options="protect = false") as cluster:
        trio.run(create_volume, cluster.config)
        writer = write_some(cluster, "primary", 1)
        wait_until(lambda: sync_state(cluster) == "Duplex")
        writer.kill()
        cluster.kill("sync")
        write_some(cluster, "primary", 3).kill()
        cluster.kill("primary")
        cluster.start("sync")
        with pytest.raises(ProcedureRefused, match="--accept-loss") as caught:
            failover(cluster)
        assert "without protection" in str(caught.value)
        result = failover(cluster, accept_loss=True)
        assert (result.writer, result.lost, result.recovery) == ("sync", None, "done")
        assert "without protection" in result.lost_sentence
        newest_read(cluster, "sync")
        assert {one.between for one in checked(cluster).compared} == {("sync", "async")}
