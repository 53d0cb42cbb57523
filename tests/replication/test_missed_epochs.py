"""Sites that were away while others wrote, for more than one epoch: what they hold says nothing any more."""

from replication.config import SiteName
from tests.replication.cluster import Cluster
from tests.replication.test_failover import (
    checked,
    cluster,
    crash,
    drain_output,
    failback,
    failover,
    newest_read,
    write_some,
)

__all__ = ["cluster"]


def work_and_end(cluster: Cluster, site: SiteName, rounds: int) -> int:
    """Write at a site and end well; the last number that was synced."""
    writer = write_some(cluster, site, rounds)
    lines = drain_output(writer)
    writer.close()
    synced = [line.split() for line in lines if line.startswith("synced ")]
    return max([writer.newest, *(int(words[1]) for words in synced if len(words) == 2)])


def test_a_primary_that_missed_the_epoch_of_sync_gets_what_sync_wrote(cluster: Cluster) -> None:
    """Primary lost, sync took over and wrote, async took over from sync; then the return (figures 14, 15)."""
    crash(cluster, write_some(cluster, "primary"), "primary")
    failover(cluster)
    at_sync = work_and_end(cluster, "sync", 40)
    assert failover(cluster, "async").writer == "async"
    cluster.start("primary")
    back = failback(cluster)
    assert (back.writer, back.epoch) == ("primary", 4)
    assert newest_read(cluster, "primary") >= at_sync
    checked(cluster)


def test_sync_wrote_and_was_lost_too(cluster: Cluster) -> None:
    """Primary and later sync lost, async goes on with what it has, both come back."""
    crash(cluster, write_some(cluster, "primary"), "primary")
    failover(cluster)
    crash(cluster, write_some(cluster, "sync", 30), "sync")
    assert failover(cluster, "async", accept_loss=True).writer == "async"
    at_async = work_and_end(cluster, "async", 60)
    cluster.start("primary", "sync")
    assert failback(cluster).writer == "primary"
    assert newest_read(cluster, "primary") >= at_async
    checked(cluster)
