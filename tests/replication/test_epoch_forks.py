"""Two sites that did not see each other were promoted to the same epoch; an operator chooses either one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import trio

from jfs.mountpoint import MountRefused
from replication.config import SITE_NAMES, SiteName
from replication.creating import create_volume
from replication.procedures import ProcedureRefused
from replication.restoring import kept_at, restore
from replication.status import collect
from tests.replication.cluster import Cluster, running, wait_until
from tests.replication.test_failover import (
    checked,
    crash,
    failback,
    failover,
    open_and_close,
    write_some,
)
from tools.demo.stage import trisite_command

OWN = """
from jfs.filesystem import FileSystem
from stat import S_IFREG
fs = FileSystem(store)
async def work():
    for name in (b"of-SITE", b"of-everybody"):
        node = fs.lookup(1, name) or fs.make(1, name, S_IFREG | 0o644)
        fs.write(node.ino, 0, b"SITE!".ljust(8) * 4096)
    await fs.sync()
    print("synced 1", flush=True)
    await trio.sleep_forever()
"""
READ = """
from jfs.filesystem import FileSystem
fs = FileSystem(store)
async def work():
    for name in (b"of-sync", b"of-async", b"of-everybody"):
        node = fs.lookup(1, name)
        data = b"" if node is None else bytes(fs.read(node.ino, 0, 1 << 20))
        whole = len(data) == 32768 and data == data[:8] * 4096
        print("found", name.decode(), data[:8].decode().strip() if whole else "nothing", flush=True)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path / "cluster", *SITE_NAMES) as found:
        trio.run(create_volume, found.config)
        yield found


def write_own(cluster: Cluster, site: SiteName, *dies: SiteName) -> None:
    """What only this site ever has; then the mount is killed, and the daemons of `dies`."""
    writer = cluster.writer(site, OWN.replace("SITE", site))
    writer.expect("synced")
    crash(cluster, writer, *dies)


def fork(cluster: Cluster) -> None:
    """Sync took over from a dead primary and wrote unseen by async, then async with what it had."""
    writer = write_some(cluster, "primary", 5)
    cluster.kill("async")
    for _ in range(5):
        writer.expect("synced")
    crash(cluster, writer, "primary")
    assert failover(cluster).epoch == 2
    write_own(cluster, "sync", "sync")
    cluster.start("async")
    assert failover(cluster, "async", accept_loss=True).epoch == 2
    # It goes far beyond the numbers that sync used: by these nothing of sync would look like its own.
    crash(cluster, write_some(cluster, "async", 20))
    write_own(cluster, "async")
    cluster.start("primary", "sync")


def found_at(cluster: Cluster, site: SiteName) -> dict[str, str]:
    reader = cluster.writer(site, READ)
    found = dict([reader.expect("found").split()[1:] for _ in range(3)])
    reader.expect("closed")
    reader.close()
    return found


def assert_kept(cluster: Cluster, loser: SiteName) -> None:
    """The quarantine of the site that was not chosen has its files, whole."""
    (kept,) = kept_at(cluster.base / loser / "quarantine")
    (to := cluster.base / "restored").mkdir()
    restored = {one.path: Path(one.to).read_bytes() for one in restore(kept, to, blocks=False).files}
    for path in (f"/of-{loser}", "/of-everybody"):
        assert restored[path] == f"{loser}!".ljust(8).encode() * 4096


def fsck(cluster: Cluster, site: SiteName) -> int:
    command = [*trisite_command(), "fsck", "--at", site, "-n", "-c", str(cluster.config.path)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.parametrize("winner", ["sync", "async"])
def test_the_operator_chooses_and_nothing_of_the_other_is_lost(
    cluster: Cluster, winner: Literal["sync", "async"]
) -> None:
    loser: SiteName = "async" if winner == "sync" else "sync"
    fork(cluster)
    status = trio.run(collect, cluster.config)
    assert {one.writer for one in status.forks} == {"sync", "async"}
    assert len({one.term for one in status.forks}) == 2
    (warning,) = [one for one in status.warnings if "two writers" in one]
    for one in status.forks:
        assert f"site {one.writer} since" in warning
        assert f"from sequence {one.start_sequence} on" in warning
        with pytest.raises(MountRefused, match="two writers that did not see each other"):
            trio.run(open_and_close, cluster, one.writer)
    with pytest.raises(ProcedureRefused, match="two writers"):
        failback(cluster)
    with pytest.raises(ProcedureRefused, match="writes of its own") as caught:
        failover(cluster, winner)
    assert caught.value.code == 5
    planned = failover(cluster, winner, accept_loss=True, plan_only=True)
    assert f"site {loser} has " in planned.steps[0].cost
    assert "writes of its own" in planned.steps[0].cost

    result = failover(cluster, winner, accept_loss=True)
    assert (result.writer, result.epoch) == (winner, 3)
    assert failover(cluster, winner, accept_loss=True).epoch == 3
    wait_until(lambda: not trio.run(collect, cluster.config).forks)
    assert found_at(cluster, winner) == {
        f"of-{winner}": f"{winner}!",
        f"of-{loser}": "nothing",
        "of-everybody": f"{winner}!",
    }
    back = failback(cluster)
    assert (back.writer, back.epoch) == ("primary", 4)
    assert_kept(cluster, loser)
    assert found_at(cluster, "primary")["of-everybody"] == f"{winner}!"
    assert len(checked(cluster).compared) == 2
    assert [fsck(cluster, site) for site in SITE_NAMES] == [0, 0, 0]


def test_a_fork_stays_one_until_the_operator_chose(cluster: Cluster) -> None:
    """Neither side adopts the other or sends it anything, also when everything is started again."""
    fork(cluster)
    before = {one.writer: one for one in trio.run(collect, cluster.config).forks}
    cluster.kill(*SITE_NAMES)
    cluster.start(*SITE_NAMES)
    assert {one.writer: one for one in trio.run(collect, cluster.config).forks} == before
    assert set(before) == {"sync", "async"}
    assert not list(cluster.base.glob("*/quarantine/*"))
