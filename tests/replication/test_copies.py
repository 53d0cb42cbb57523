"""What the copies between running sites look at, and which of them give a site a position."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from jfs.device import BLOCK_BYTES
from replication.client import ask_site
from replication.config import SITE_NAMES
from replication.control import ControlError, GetLevel, Level, ReportRanges
from replication.creating import create_volume
from replication.set_journal import SetJournal
from replication.site_listing import local_files, opened_listing
from replication.state import SiteState
from replication.status import collect
from tests.replication.cluster import Cluster, running, wait_until
from tests.replication.host_crash import applied, crash_host, level, overwritten
from tests.replication.test_failover import (
    checked,
    drain_output,
    failback,
    failover,
    newest_read,
    write_some,
)
from vsap.positions import WritePositions
from vsap.queue import EntryQueue

BIG = """
import sys
from jfs.filesystem import FileSystem
from stat import S_IFREG
fs = FileSystem(store)
async def work():
    ino = fs.make(1, b"f0", S_IFREG | 0o644).ino
    for part in range(8):
        fs.write(ino, part << 20, b"%08d" % 1 * (131072))
    await fs.sync()
    print("synced", 1, flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    for part in range(8):
        fs.write(ino, part << 20, b"%08d" % 2 * 512)
    await fs.sync()
    print("synced", 2, flush=True)
    await trio.sleep_forever()
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path / "cluster", *SITE_NAMES) as found:
        trio.run(create_volume, found.config)
        yield found


def test_what_travels_at_a_take_over_is_what_had_not_been_shipped(cluster: Cluster) -> None:
    """The log names a file of 8 MiB; eight blocks of it and the log's own are looked at and copied."""
    writer = cluster.writer("primary", BIG)
    writer.expect("synced 1")
    wait_until(lambda: applied(cluster) > 8)
    cluster.kill("async")
    writer.say("go on")
    writer.expect("synced 2")
    writer.kill()
    cluster.kill("primary")
    cluster.start("async")
    result = failover(cluster)
    assert (result.lost, result.recovery) == (0, "done")
    assert 8 * BLOCK_BYTES <= result.bytes_copied < 1 << 20
    checked(cluster)


def test_a_written_block_that_the_log_does_not_name_is_a_loud_fault(cluster: Cluster) -> None:
    writer, _ = overwritten(cluster, "primary", "async")
    writer.kill()
    cluster.kill("primary", "sync")
    area = cluster.base / "sync" / "area"
    with opened_listing(area) as listing:
        named = {block for start, count in listing.block_runs for block in range(start, start + count)}
        used = {block for start, count in listing.allocated_runs() for block in range(start, start + count)}
    with area.open("r+b") as file:
        content = {block: os.pread(file.fileno(), 8, block * BLOCK_BYTES) for block in used - named}
        unnamed = min(block for block, head in content.items() if head == b"00000001")
        os.pwrite(file.fileno(), b"unnamed!", unnamed * BLOCK_BYTES)
    with SiteState(cluster.base / "sync" / "state") as state:
        identity = state.identity
    assert identity is not None
    positions = WritePositions.open(
        cluster.base / "sync" / "written", identity.uuid, size_bytes=identity.size_bytes
    )
    positions.append(positions.complete_through + 1, unnamed * BLOCK_BYTES, BLOCK_BYTES)
    positions.close()
    cluster.start("sync", "async")
    assert failover(cluster).recovery == "done"
    warnings = trio.run(collect, cluster.config).warnings
    assert any("the metadata log does not name them" in warning for warning in warnings), warnings
    checked(cluster)  # the union was copied, so that D has even that block


def test_only_a_copy_at_rest_gives_a_returning_site_a_position(cluster: Cluster) -> None:
    write_some(cluster, "primary", 3).kill()
    cluster.kill("primary")
    failover(cluster)
    cluster.start("primary")
    writer = write_some(cluster, "sync", 3)
    drain_output(writer)
    trio.run(level_fuzzily, cluster)
    writer.kill()
    cluster.kill("primary")
    with SiteState(cluster.base / "primary" / "state") as state:
        identity = state.identity
    assert identity is not None
    directory = cluster.base / "primary" / "journal"
    with SetJournal(directory, identity.uuid.bytes, identity.size_bytes) as journal:
        assert journal.tail.epoch == 0
    cluster.start("primary")
    assert failback(cluster).writer == "primary"
    newest_read(cluster, "primary")
    assert len(checked(cluster).compared) == 2


async def level_fuzzily(cluster: Cluster) -> None:
    """The first pass of a failback, while the volume is mounted at the sync site."""
    ask = partial(ask_site, cluster.config)
    with SiteState(cluster.base / "sync" / "state") as state:
        roles = state.roles
    assert roles is not None
    found = await ask("primary", ReportRanges(epoch=roles.epoch, after_sequence=roles.start_sequence))
    request = Level(
        target="primary",
        after_sequence=roles.start_sequence,
        ranges=found.ranges,
        everything=found.everything,
    )
    await ask("sync", request)
    with trio.fail_after(20):
        while (status := await ask("sync", GetLevel())).running:  # noqa: ASYNC110
            await trio.sleep(0.02)
    assert status.error is None
    assert status.bytes_copied > 0


def test_a_site_where_a_superseded_mount_is_stopped_is_not_levelled(cluster: Cluster) -> None:
    """It is connected to nobody, and would go on in the middle of a write."""
    writer = write_some(cluster, "primary", 3)
    writer.signal(signal.SIGSTOP)
    cluster.kill("primary")
    failover(cluster)
    cluster.start("primary")
    drain_output(write_some(cluster, "sync", 3))
    with pytest.raises(ControlError, match="a mount process still runs at site primary"):
        trio.run(level_fuzzily, cluster)
    writer.kill()
    trio.run(level_fuzzily, cluster)


def test_a_killed_mount_leaves_everything_in_the_queue(cluster: Cluster) -> None:
    """C and D were away: what A alone has is sent when they are back and the volume is mounted again."""
    writer, _ = overwritten(cluster, "primary", "sync", "async")
    writer.kill()
    cluster.start("sync", "async")
    assert newest_read(cluster, "primary") == 4
    wait_until(lambda: level(cluster))
    assert len(checked(cluster).compared) == 2


def test_entries_after_the_last_common_flush_are_written_again(cluster: Cluster) -> None:
    """The kill fell between the queue and the area (P2): what the area lacks is repeated from the queue."""
    writer, kept = overwritten(cluster, "primary")
    writer.kill()
    cluster.kill("primary")
    crash_host(cluster, "primary", kept, reboot=False)
    cluster.start("primary")
    assert newest_read(cluster, "primary") == 4
    wait_until(lambda: level(cluster))
    assert len(checked(cluster).compared) == 2


def test_the_queue_is_trimmed_while_nobody_asks_for_a_flush(cluster: Cluster) -> None:
    """The file system commits by itself, so the common flush moves and the daemon can let entries go (P3)."""
    writer, _ = overwritten(cluster, "primary")
    with SiteState(cluster.base / "primary" / "state") as state:
        identity = state.identity
    assert identity is not None
    queue = EntryQueue.open(cluster.base / "primary" / "queue", identity.uuid)
    try:
        wait_until(lambda: queue.state().oldest_sequence == queue.state().next_sequence, 20.0)
    finally:
        queue.close()
    assert writer.popen.poll() is None
    assert local_files(cluster.base / "primary" / "area", [(0, cluster.config.volume.size_bytes)])
