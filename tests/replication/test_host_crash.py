"""A crash of a whole host (P4): the queue is gone, the other sites may have what this one lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from replication.config import SITE_NAMES
from replication.creating import create_volume
from replication.procedures import ProcedureRefused
from tests.replication.cluster import Cluster, running, wait_until
from tests.replication.host_crash import crash_host, doubts, level, overwritten
from tests.replication.test_failover import checked, failover, newest_read, write_some


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path / "cluster", *SITE_NAMES) as found:
        trio.run(create_volume, found.config)
        yield found


@pytest.mark.parametrize("mounted_first", [False, True])
def test_what_the_host_of_the_primary_lost_is_found_at_the_other_sites(
    cluster: Cluster, mounted_first: bool
) -> None:
    """C and D are ahead of A in files that A's log does not name: only comparing everything finds that."""
    writer, kept = overwritten(cluster, "primary")
    writer.kill()
    cluster.kill("primary")
    crash_host(cluster, "primary", kept)
    if mounted_first:
        cluster.kill("async")  # C is compared before D can be
        cluster.start("primary")
        assert newest_read(cluster, "primary") >= 1
        assert doubts(cluster, "primary") == {"async"}
        cluster.start("async")
    else:
        cluster.start("primary")
        wait_until(lambda: level(cluster))
        assert newest_read(cluster, "primary") >= 1
    wait_until(lambda: level(cluster))
    assert doubts(cluster, "primary") == set()
    assert len(checked(cluster).compared) == 2
    write_some(cluster, "primary", 2).kill()
    newest_read(cluster, "primary")
    assert len(checked(cluster).compared) == 2


def test_the_host_of_the_sync_site_crashes_while_it_writes(cluster: Cluster) -> None:
    write_some(cluster, "primary", 3).kill()
    cluster.kill("primary")
    assert failover(cluster).lost == 0
    writer, kept = overwritten(cluster, "sync")
    writer.kill()
    cluster.kill("sync")
    crash_host(cluster, "sync", kept)
    cluster.start("sync")
    assert newest_read(cluster, "sync") >= 1
    wait_until(lambda: level(cluster))
    assert doubts(cluster, "sync") == set()
    assert {one.between for one in checked(cluster).compared} == {("sync", "async")}


@pytest.mark.parametrize("site", ["sync", "async"])
def test_the_host_of_a_secondary_crashes(cluster: Cluster, site: str) -> None:
    """What the secondary had not on its disk is sent again, from after the last common flush."""
    writer, kept = overwritten(cluster, "primary")
    cluster.kill(site)  # type: ignore[arg-type]
    crash_host(cluster, site, kept if site == "sync" else None)
    cluster.start(site)  # type: ignore[arg-type]
    writer.kill()
    assert newest_read(cluster, "primary") == 4
    wait_until(lambda: level(cluster))
    assert len(checked(cluster).compared) == 2


def test_a_sync_site_that_lost_records_of_its_log_takes_over(cluster: Cluster) -> None:
    """Its disk has blocks of files that its log does not name: the records were lost with the host."""
    writer, kept = overwritten(cluster, "primary", "async")
    writer.kill()
    cluster.kill("primary", "sync")
    crash_host(cluster, "sync", kept, lambda block: block.startswith(b"0000000"))
    cluster.start("sync", "async")
    with pytest.raises(ProcedureRefused, match="--accept-loss"):
        failover(cluster)
    result = failover(cluster, accept_loss=True)
    assert (result.lost, result.recovery) == (None, "done")
    assert newest_read(cluster, "sync") == 4
    assert {one.between for one in checked(cluster).compared} == {("sync", "async")}
