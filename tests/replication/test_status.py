"""What `status` says where not every site can be asked: what the reachable ends know, and nothing stale."""

import datetime
import time
from pathlib import Path

import msgspec
import trio

from replication.config import SITE_NAMES, load, parse_size, size_text
from replication.control import HeardReport, MountReport, PositionReport
from replication.creating import create_volume
from replication.procedures.plan import Survey
from replication.roles import first_roles
from replication.state import PairRecord
from replication.status import PairStatus, Status, collect, snapshot
from tests.replication.cluster import Cluster, make_config, running, wait_until
from tests.replication.test_plan import survey

SINCE = 1_000_000_000_000_000_000
ROLES = first_roles(SINCE)
EVERY = survey(ROLES, *SITE_NAMES)
AN_HOUR_LATER = SINCE + 3600 * 10**9
DUPLEX = PairRecord(
    kind="sync",
    source="primary",
    target="sync",
    state="Duplex",
    since=AN_HOUR_LATER,
    reason="in step",
    epoch=1,
)


def pair(status: Status, kind: str) -> PairStatus:
    (found,) = [one for one in status.pairs if one.kind == kind]
    return found


def told(directory: Path, heard: HeardReport | None) -> Status:
    """The status while the writing site is silent and its secondaries say what they heard of it."""
    return snapshot("home", survey(ROLES, "sync", "async", heard=heard), make_config(directory))


def test_a_site_sync_that_others_contradict_is_not_armed(tmp_path: Path) -> None:
    """Its pair was suspended or deleted with --force while it was away: it takes itself to be in step."""
    config = make_config(tmp_path)
    position = PositionReport(epoch=1, durable_sequence=80, applied_sequence=80)
    level = survey(ROLES, *SITE_NAMES, received_sequence=80, position=position)
    assert snapshot("home", level, config).armed
    ahead = survey(ROLES, *SITE_NAMES, received_sequence=80, position=position)
    further = msgspec.structs.replace(position, durable_sequence=90)
    ahead.reports["async"] = msgspec.structs.replace(ahead.reports["async"], position=further)
    found = snapshot("home", ahead, config)
    assert not found.armed
    assert (
        found.armed_reason
        == "site async has 10 writes that site sync has not, so site primary went on without it"
    )
    assert any("not protected" in warning for warning in found.warnings)
    alone = survey(
        ROLES, *SITE_NAMES, pairs=[msgspec.structs.replace(DUPLEX, state="Suspend")], position=position
    )
    assert "site primary goes on alone" in snapshot("home", alone, config).armed_reason


def test_of_a_silent_writer_the_other_end_says_since_when(tmp_path: Path) -> None:
    lost = told(tmp_path, HeardReport(connected=False, since=AN_HOUR_LATER, in_step=True))
    for kind in ("sync", "async"):
        assert pair(lost, kind).state == "Failure-Suspend"
        assert pair(lost, kind).since == "2001-09-09T02:46:40.000+00:00"
        assert "lost the connection then; the writing site does not answer" in pair(lost, kind).reason


def test_a_writer_whose_daemon_alone_is_silent_still_copies(tmp_path: Path) -> None:
    copying = told(tmp_path, HeardReport(connected=True, since=AN_HOUR_LATER, in_step=True))
    assert pair(copying, "sync").state == "Duplex"
    assert "as site sync knows it, which is connected" in pair(copying, "sync").reason


def test_what_an_end_heard_in_another_epoch_says_nothing_of_this_one(tmp_path: Path) -> None:
    for heard in (None, HeardReport(connected=False, since=SINCE - 1, in_step=True)):
        unknown = told(tmp_path / str(heard is None), heard)
        assert pair(unknown, "sync").state == "Failure-Suspend"
        assert "when that began is not known" in pair(unknown, "sync").reason


def test_a_writer_whose_clock_is_behind_is_believed(tmp_path: Path) -> None:
    """Its clock was put back by an hour, then an operator suspended the pair: that is of this epoch."""
    before = SINCE - 3600 * 10**9
    suspended = msgspec.structs.replace(DUPLEX, kind="async", target="async", state="Suspend", since=before)
    status = snapshot("home", survey(ROLES, "primary", "sync", pairs=[suspended]), make_config(tmp_path))
    assert pair(status, "async").state == "Suspend"
    other = msgspec.structs.replace(suspended, since=AN_HOUR_LATER, epoch=7)
    status = snapshot(
        "home", survey(ROLES, "primary", "sync", pairs=[other]), make_config(tmp_path / "other")
    )
    assert pair(status, "async").state == "Duplex-Pending"


def test_without_a_mount_the_pair_is_what_the_last_one_left(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    there = snapshot("home", survey(ROLES, "primary", "sync", pairs=[DUPLEX]), config)
    assert pair(there, "sync").reason == "in step; the volume is not mounted"
    alone = pair(snapshot("home", survey(ROLES, "primary", pairs=[DUPLEX]), config), "sync")
    assert alone.state == "Duplex"
    assert alone.reason.startswith(
        "as it was at the last mount (in step); the volume is not mounted, site sync"
    )
    failed = msgspec.structs.replace(DUPLEX, state="Failure-Suspend", reason="no answer")
    old = pair(snapshot("home", survey(ROLES, "primary", "sync", pairs=[failed]), config), "sync")
    assert old.reason == "as it was at the last mount (no answer); the volume is not mounted"
    mounted = survey(ROLES, "primary", "sync", pairs=[DUPLEX], mounted=True)
    assert pair(snapshot("home", mounted, config), "sync").reason == "in step"


def test_a_silent_site_is_named_once(tmp_path: Path) -> None:
    why = "site async at 127.0.0.1:7 cannot be reached: Connection refused"
    silent = Survey(reports=survey(ROLES, "primary", "sync").reports, silent={"async": why})
    status = snapshot("home", silent, make_config(tmp_path))
    assert status.sites["async"].reason == "127.0.0.1:7 cannot be reached: Connection refused"
    told = [sentence for sentence in (*status.warnings, status.armed_reason) if "async" in sentence]
    assert len(told) == 2
    assert [sentence.count("site async") for sentence in told] == [1, 1]


def test_that_writes_fail_without_the_sync_site_is_told_with_the_ways_out(tmp_path: Path) -> None:
    config = make_config(tmp_path)

    def warned(state: str, *, unprotected: bool = False) -> list[str]:
        mount = MountReport(
            issued_sequence=1,
            log_files=0,
            log_bytes=0,
            log_capacity_bytes=1 << 20,
            sync_state=state,
            sync_reason="no answer",
            unprotected=unprotected,
        )
        found = survey(ROLES, "primary", "async", mounted=True, mount=mount)
        return [one for one in snapshot("home", found, config).warnings if "(EIO)" in one]

    (sentence,) = warned("Failure-Suspend")
    assert "`trisite site sync`" in sentence
    assert "`trisite pair delete primary,sync --force`" in sentence
    assert warned("Duplex") == []
    assert warned("Failure-Suspend", unprotected=True) == []


def test_that_there_is_no_volume_is_only_said_where_every_site_says_so(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert "no site that answers holds a volume" in snapshot("home", survey(ROLES), config).armed_reason
    blank = {site: msgspec.structs.replace(one, roles=None) for site, one in EVERY.reports.items()}
    empty = snapshot("home", Survey(reports=blank, silent={}), config)
    assert empty.armed_reason == "there is no volume yet; make one with `trisite mkfs`"


def test_a_size_is_told_as_it_can_be_written() -> None:
    for count in (4096, 1 << 20, 3 << 30, 5 << 40, (1 << 30) + 4096):
        assert parse_size(size_text(count).strip('"')) == count


WRITE = """
async def work():
    print("open", flush=True)
    await stop.wait()
"""


def test_killed_one_after_the_other(tmp_path: Path) -> None:
    """The daemon of the writer, then its mount process; then the daemon again, with another size."""
    with running(tmp_path / "cluster", *SITE_NAMES) as cluster:
        trio.run(create_volume, cluster.config)
        writer = cluster.writer("primary", WRITE)
        writer.expect("open")
        wait_until(lambda: sync_pair(cluster).state == "Duplex")
        cluster.kill("primary")
        assert sync_pair(cluster).state == "Duplex"
        assert "which is connected" in sync_pair(cluster).reason
        before = time.time()
        writer.popen.kill()
        wait_until(lambda: sync_pair(cluster).state == "Failure-Suspend")
        assert "lost the connection then" in sync_pair(cluster).reason
        report = collected(cluster)
        assert trio.run(collect, cluster.config).pairs[0].since == report.pairs[0].since
        assert abs(datetime.datetime.fromisoformat(report.pairs[0].since).timestamp() - before) < 30
        text = cluster.config.path.read_text(encoding="utf-8")
        cluster.config.path.write_text(text.replace('"64MiB"', '"128MiB"'), encoding="utf-8")
        cluster.start("primary")
        (warning,) = [one for one in collected(cluster).warnings if "keeps that size" in one]
        assert 'put "64MiB" back' in warning
        assert warning in (cluster.base / "primary.log").read_text(encoding="utf-8")


def collected(cluster: Cluster) -> Status:
    return trio.run(collect, load(cluster.config.path))


def sync_pair(cluster: Cluster) -> PairStatus:
    return pair(collected(cluster), "sync")
