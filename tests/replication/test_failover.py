"""The procedures end to end: three daemons over TLS, writers that are killed, take-over and return."""

import contextlib
import datetime
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from jfs.mountpoint import MountRefused
from replication import procedures
from replication.config import SITE_NAMES, SiteName
from replication.creating import create_volume
from replication.mounting import open_writer, why_not_unmounted
from replication.procedures import ProcedureRefused, StepEvent
from replication.procedures.survey import take_survey
from replication.quarantine import read_entries, read_listing_file
from replication.restoring import kept_at, restore
from replication.shipper import LEVELLED
from replication.status import PairStatus, collect
from replication.verify import VerifyResult, verify
from tests.replication.cluster import Cluster, Process, running, wait_until

WRITE = """
from jfs.filesystem import FileSystem
from stat import S_IFREG
fs = FileSystem(store)
async def work():
    number = 0
    while not stop.is_set():
        number += 1
        name = b"f%d" % (number % 20)
        node = fs.lookup(1, name) or fs.make(1, name, S_IFREG | 0o644)
        fs.write(node.ino, (number % 30) * 4096, b"%08d" % number * 1024)
        if number % 4 == 0:
            await fs.sync()
            print("synced", number, flush=True)
        await trio.sleep(0.001)
"""
READ = """
from jfs.filesystem import FileSystem
fs = FileSystem(store)
async def work():
    newest = 0
    for number in range(20):
        node = fs.lookup(1, b"f%d" % number)
        if node is not None:
            data = bytes(fs.read(node.ino, 0, 1 << 20))
            heads = [data[at : at + 8].strip(b"\\0") for at in range(0, len(data), 4096)]
            found = [int(head) for head in heads if head]
            newest = max([newest, *found])
    print("newest", newest, flush=True)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path / "cluster", *SITE_NAMES) as found:
        trio.run(create_volume, found.config)
        yield found


def write_some(cluster: Cluster, site: SiteName, rounds: int = 15) -> Process:
    """A writer at work, `rounds` syncs later; its output is read on."""
    writer = cluster.writer(site, WRITE)
    for _ in range(rounds):
        writer.expect("synced")
    return writer


def drain_output(writer: Process) -> list[str]:
    """Read on in a thread, so that the writer never waits for us."""
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(iter(writer.line, "")), daemon=True).start()
    return lines


def crash(cluster: Cluster, writer: Process, *sites: SiteName) -> int:
    """SIGKILL the writer and daemons; the last number that was synced."""
    writer.popen.kill()
    last = writer.newest
    while line := writer.line():
        last = int(line.split()[1])
    writer.close()
    cluster.kill(*sites)
    return last


def newest_read(cluster: Cluster, site: SiteName) -> int:
    reader = cluster.writer(site, READ)
    newest = int(reader.expect("newest").split()[1])
    reader.expect("closed")
    reader.close()
    return newest


def checked(cluster: Cluster) -> VerifyResult:
    result = trio.run(verify, cluster.config)
    assert result.same, result
    return result


def failover(cluster: Cluster, to: str = "sync", **options: object) -> procedures.FailoverResult:
    return trio.run(partial(procedures.failover, cluster.config, to, **options))  # type: ignore[arg-type]


def failback(cluster: Cluster, **options: object) -> procedures.FailbackResult:
    return trio.run(partial(procedures.failback, cluster.config, **options))  # type: ignore[arg-type]


def test_the_primary_dies_sync_takes_over_and_the_primary_returns(cluster: Cluster) -> None:
    """Figures 10, 22 and 11: nothing that was synced is lost, and all sites agree at every station."""
    writer = write_some(cluster, "primary")
    synced = crash(cluster, writer, "primary")
    assert synced > 0
    result = failover(cluster)
    assert (result.writer, result.epoch, result.lost, result.recovery) == ("sync", 2, 0, "done")
    assert newest_read(cluster, "sync") >= synced
    assert {one.between for one in checked(cluster).compared} == {("sync", "async")}

    cluster.start("primary")
    with pytest.raises(MountRefused, match=r"superseded by site sync in epoch 2 at .*, sequence \d+;"):
        trio.run(open_and_close, cluster, "primary")
    writer = write_some(cluster, "sync")
    lines = drain_output(writer)
    back = failback(cluster)
    writer.close()
    assert (back.writer, back.epoch) == ("primary", 3)
    assert 0 < back.bytes_copied < 8 << 20
    last = max(int(line.split()[1]) for line in lines if line.startswith("synced"))
    assert newest_read(cluster, "primary") >= last
    assert len(checked(cluster).compared) == 2
    assert trio.run(collect, cluster.config).armed


async def open_and_close(cluster: Cluster, site: str) -> None:
    async with open_writer(cluster.config, site):
        pass


def test_a_dead_far_site_is_brought_level_later(cluster: Cluster) -> None:
    writer = write_some(cluster, "primary", 5)
    cluster.kill("async")
    for _ in range(5):
        writer.expect("synced")
    crash(cluster, writer, "primary")
    result = failover(cluster)
    assert (result.lost, result.recovery) == (0, "pending")
    cluster.start("async")
    again = failover(cluster)
    assert (again.epoch, again.recovery, again.lost) == (2, "done", 0)
    assert again.bytes_copied > 0
    checked(cluster)


def test_only_what_sync_lacks_goes_to_quarantine(cluster: Cluster) -> None:
    """Writes of the old primary that reached no other site are kept, and are not in the volume."""
    writer = write_some(cluster, "primary", 25)  # by then every file has its blocks and is written in place
    drain_output(writer)
    cluster.kill("sync")
    trio.run(trio.sleep, 0.3)
    writer.popen.kill()
    cluster.kill("primary")
    cluster.start("sync")
    assert failover(cluster).lost == 0
    cluster.start("primary")
    back = failback(cluster)
    assert back.quarantine is not None
    entries = list(read_entries(Path(back.quarantine)))
    assert entries
    assert sum(entry.length for entry in entries) == back.quarantined_bytes
    listing = read_listing_file(Path(back.quarantine))
    assert listing.complete
    assert [file.path for file in listing.files if file.path is not None]
    assert [(kept.site, kept.path) for kept in back.quarantines] == [("primary", back.quarantine)]
    assert_restorable(Path(back.quarantine))
    checked(cluster)


def assert_restorable(path: Path) -> None:
    """Each kept block of a file comes back at its place in the file, with what the writer put there."""
    (kept,) = kept_at(path.parent)
    (to := path.parent.parent / "restored").mkdir()
    result = restore(kept, to, blocks=False)
    assert result.files
    for file in kept.listing.files:
        (restored,) = [one for one in result.files if one.path == file.path]
        data = Path(restored.to).read_bytes()
        assert len(data) == file.size_bytes
        for in_file, _, length in file.pieces:
            for at in range(in_file, min(in_file + length, len(data)), 4096):
                number = int(data[at : at + 8])
                assert data[at : at + 4096] == b"%08d" % number * 512
                assert file.path == f"/f{number % 20}"
                assert at // 4096 - number % 30 in {0, 1}


def test_stalled_sites_cost_a_short_wait(cluster: Cluster) -> None:
    writer = write_some(cluster, "primary", 3)
    writer.signal(19)
    cluster.daemons["primary"].signal(19)
    result = failover(cluster)
    assert result.lost == 0
    assert result.seconds < 6


def test_a_living_writer_is_not_taken_over_by_accident(cluster: Cluster) -> None:
    writer = write_some(cluster, "primary", 2)
    drain_output(writer)
    with pytest.raises(ProcedureRefused, match="alive and the volume is mounted"):
        failover(cluster)
    assert writer.popen.poll() is None


def test_taking_over_at_async_names_the_loss(cluster: Cluster) -> None:
    """Figure 13, and back by way of levelling both near sites (figure 15)."""
    began = datetime.datetime.now(tz=datetime.UTC)
    writer = write_some(cluster, "primary", 5)
    crash(cluster, writer, "primary", "sync")
    ended = datetime.datetime.now(tz=datetime.UTC)
    cluster.kill("async")
    cluster.start("async")
    with pytest.raises(ProcedureRefused, match=r"its state is of .*--accept-loss") as caught:
        failover(cluster, "async")
    assert caught.value.code == 5
    result = failover(cluster, "async", accept_loss=True)
    assert (result.writer, result.epoch) == ("async", 2)
    assert result.lost is None or result.lost > 0
    assert result.as_of is not None
    assert result.behind_seconds is not None
    assert began <= datetime.datetime.fromisoformat(result.as_of) <= ended
    again = failover(cluster, "async", accept_loss=True)
    assert (again.as_of, again.behind_seconds) == (result.as_of, result.behind_seconds)
    newest_read(cluster, "async")
    cluster.start("primary", "sync")
    back = failback(cluster)
    assert (back.writer, back.epoch) == ("primary", 3)
    (kept,) = far_times(cluster)
    assert kept > ended.timestamp(), "level with the others when the roles changed"
    newest_read(cluster, "primary")
    assert len(checked(cluster).compared) == 2


def far_times(cluster: Cluster) -> list[float]:
    """Of when the state of the asynchronous site is, in Unix seconds."""
    position = trio.run(take_survey, cluster.config).reports["async"].position
    return [] if position is None else [position.timestamp_ns / 1e9]


def test_async_takes_over_with_everything_that_sync_has(cluster: Cluster) -> None:
    """Figure 14."""
    writer = write_some(cluster, "primary", 5)
    synced = crash(cluster, writer, "primary")
    result = failover(cluster, "async")
    assert (result.writer, result.epoch, result.lost) == ("async", 3, 0)
    assert newest_read(cluster, "async") >= synced
    checked(cluster)
    cluster.start("primary")
    assert failback(cluster).epoch == 4
    assert newest_read(cluster, "primary") >= synced
    assert len(checked(cluster).compared) == 2


class Killed(BaseException):
    """What stands for SIGKILL of the command line."""


def killed_at(number: int) -> "partial[None]":
    seen: list[StepEvent] = []

    def report(event: StepEvent) -> None:
        if event.status != "progress":
            seen.append(event)
        if len(seen) > number:
            raise Killed

    return partial(report)


@pytest.mark.slow
def test_procedures_killed_at_any_step_are_run_again_and_finish(cluster: Cluster) -> None:
    epoch = 1
    for number in range(12):
        writer = write_some(cluster, "primary", 2)
        synced = crash(cluster, writer, "primary")
        with contextlib.suppress(Killed, BaseExceptionGroup):
            failover(cluster, report=killed_at(number))
        result = failover(cluster)
        epoch += 1
        assert (result.epoch, result.lost, result.recovery) == (epoch, 0, "done")
        assert newest_read(cluster, "sync") >= synced
        cluster.start("primary")
        with contextlib.suppress(Killed, BaseExceptionGroup):
            failback(cluster, report=killed_at(number))
        back = failback(cluster)
        epoch += 1
        assert (back.writer, back.epoch) == ("primary", epoch)
        checked(cluster)


def test_a_far_site_that_was_away_at_mkfs_gets_its_copy_later(tmp_path: Path) -> None:
    with running(tmp_path / "cluster", "primary", "sync") as cluster:
        assert not trio.run(create_volume, cluster.config).async_reached
        crash(cluster, write_some(cluster, "primary", 3))
        newest_read(cluster, "primary")
        cluster.start("async")
        wait_until(lambda: async_pair(cluster).state == "Duplex")
        assert async_pair(cluster).reason == LEVELLED
        assert len(checked(cluster).compared) == 2


def async_pair(cluster: Cluster) -> PairStatus:
    return next(pair for pair in trio.run(collect, cluster.config).pairs if pair.kind == "async")


def test_a_daemon_that_cannot_start_says_why_in_one_sentence(cluster: Cluster) -> None:
    second = Process(
        "-c",
        "import sys, trio\nfrom pathlib import Path\nfrom replication.config import load\n"
        "from replication.site import SiteError, run_site\n"
        "try:\n    trio.run(run_site, load(Path(sys.argv[1])), 'sync')\n"
        "except SiteError as error:\n    print(error, flush=True)\n",
        str(cluster.config.path),
        log=cluster.base / "second.log",
    )
    assert "runs already" in second.line()
    second.close()
    assert (
        subprocess.run(["test", "-S", str(cluster.base / "sync" / "daemon.sock")], check=False).returncode
        == 0
    )


def test_a_daemon_stops_cleanly_at_sigterm(cluster: Cluster) -> None:
    assert cluster.daemons.pop("async").stop() == 0
    assert not (cluster.base / "async" / "daemon.sock").exists()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("umount: /m: target is busy.\n", "something works in /m (fuser -vm /m shows it)"),
        ("umount: /m: not mounted.\n", "/m cannot be unmounted, not mounted"),
        ("", "/m cannot be unmounted, umount does not say why"),
    ],
)
def test_why_a_mount_could_not_be_ended_is_part_of_a_sentence(said: str, told: str) -> None:
    assert why_not_unmounted("/m", said) == told
