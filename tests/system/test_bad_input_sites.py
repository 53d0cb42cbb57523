"""Sites in a bad state: full disks, foreign or damaged files, a take-over that was not needed."""

import json
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest
import trio
import xxhash

from replication import config as configuration
from replication.status import collect
from tests.system.bad_input import (
    assert_quiet,
    assert_refused,
    run,
    run_all,
    sites,
    start_daemons,
    write_durably,
)
from tools.demo.stage import Stage, trisite_command
from tools.errors import ExitCode

pytestmark = [pytest.mark.fuse, pytest.mark.slow]
PATIENCE_SECONDS = 40.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with one file, at rest, without processes; to be copied."""
    directory = tmp_path_factory.mktemp("made") / "volume"
    with sites(directory) as stage:
        stage.mount("primary")
        write_durably(stage.mountpoint / "file", b"f" * 70_000)
        stage.unmount()
    return directory


def copy(made: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", f"{made}/.", target], check=True)


@pytest.fixture
def cold(made: Path, tmp_path: Path) -> Stage:
    """A copy of that volume, to be spoilt; whoever uses it enters it."""
    copy(made, tmp_path / "volume")
    return Stage(tmp_path / "volume")


@pytest.fixture
def stage(cold: Stage) -> Iterator[Stage]:
    """A copy of that volume whose three sites run."""
    with cold:
        start_daemons(cold)
        yield cold


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def writes(path: Path, data: bytes) -> bool:
    try:
        write_durably(path, data)
    except OSError:
        return False
    return True


# -- a take-over that nothing called for


def test_a_take_over_beside_a_living_mount_and_the_way_back(stage: Stage) -> None:
    """Refused; with --accept-loss the old mount is fenced cleanly, nothing acknowledged is missing, and the
    old primary, which lived through it all, can be brought back."""
    stage.mount("primary")
    write_durably(stage.mountpoint / "acknowledged", b"x" * 100_000)
    told = run(stage.config, "failover", "--to", "sync", "--yes", "--json")
    assert_refused(told, ExitCode.REFUSED, "is alive and the volume is mounted there", "--accept-loss")
    write_durably(stage.mountpoint / "still", b"works")
    result = stage.answer("failover", "--to", "sync", "--yes", "--accept-loss")
    assert (result["writer"], result["lost"]) == ("sync", 0)
    assert not writes(stage.mountpoint / "late", b"must not be acknowledged")
    assert (stage.mountpoint / "still").read_bytes() == b"works"
    ended = run(stage.config, "umount", str(stage.mountpoint))
    assert_refused(ended, ExitCode.OPERATIONAL, "superseded by site sync in epoch 2")
    assert stage.running.pop("mount").wait(PATIENCE_SECONDS) == ExitCode.OPERATIONAL
    assert_refused(
        run(stage.config, "mount", str(stage.mountpoint)), ExitCode.REFUSED, "superseded", "failback"
    )
    stage.mount("sync")
    assert (stage.mountpoint / "acknowledged").read_bytes() == b"x" * 100_000
    write_durably(stage.mountpoint / "at-sync", b"y" * 50_000)
    for seconds in (0.3, 0.6, 0.9):  # killed at whatever step it is in, it is run again and finishes
        command = [*trisite_command(), "failback", "--yes", "-c", str(stage.config)]
        half = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        half.kill()
        half.wait()
    back = stage.answer("failback", "--yes")
    assert (back["writer"], back["epoch"]) == ("primary", 3)
    stage.mount_ended()
    stage.mount("primary")
    assert (stage.mountpoint / "at-sync").read_bytes() == b"y" * 50_000
    assert (stage.mountpoint / "acknowledged").read_bytes() == b"x" * 100_000
    assert stage.answer("verify")["same"] is True
    stage.unmount()
    again = stage.answer("failback", "--yes")
    assert (again["epoch"], again["bytes_copied"]) == (3, 0)


def test_a_superseded_primary_stays_so_when_nobody_else_answers(stage: Stage) -> None:
    stage.kill("primary")
    stage.answer("failover", "--to", "sync", "--yes")
    start_daemons(stage, "primary")
    assert_refused(
        run(stage.config, "mount", str(stage.mountpoint)), ExitCode.REFUSED, "superseded", "--at sync"
    )
    stage.kill("primary", "sync", "async")
    assert_refused(
        run(stage.config, "mount", str(stage.mountpoint)), ExitCode.REFUSED, "superseded", "--at sync"
    )


def test_a_site_that_stands_still_holds_no_command_up(stage: Stage) -> None:
    for held, command in (
        ("primary", ["failover", "--to", "sync", "--plan"]),
        ("sync", ["recover", "--list"]),
        ("async", ["verify"]),
    ):
        stage.hold(held)
        status, told = run_all(stage.config, ["status", "--json"], command)
        reports = json.loads(status.stdout)["sites"]
        assert [name for name, report in reports.items() if not report["reachable"]] == [held]
        if told.returncode:
            assert_refused(told, ExitCode.UNREACHABLE, held)
        stage.release(held)
    until(lambda: all(one["reachable"] for one in stage.answer("status")["sites"].values()), "all sites")
    assert_quiet(stage)


# -- full disks


def all_same(stage: Stage) -> bool:
    """All three sites were compared, and none differs."""
    found = stage.answer("verify", codes=(0, 1, 4, 8))
    return found.get("same") is True and not found["not_compared"]


@contextmanager
def small_disk(place: Path) -> Iterator[Callable[[], None]]:
    """A disk of its own for a site directory; what is yielded fills it up."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", place], check=True)
    filler = place / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("full", ["primary", "sync", "async"])
def test_a_full_disk_loses_nothing_and_ends_no_process(cold: Stage, made: Path, full: str) -> None:
    """The near sites refuse writes meanwhile, the far site waits; with room again it goes on by itself."""
    directory = cold.directory
    with small_disk(directory / full) as fill, cold as stage:
        copy(made / full, directory / full)
        start_daemons(stage)
        stage.mount("primary")
        write_durably(stage.mountpoint / "before", b"b" * 50_000)
        fill()
        data = {f"file-{number}": os.urandom(300_000) for number in range(8)}
        acknowledged = [name for name, content in data.items() if writes(stage.mountpoint / name, content)]
        assert (len(acknowledged) == len(data)) == (full == "async")
        assert (stage.mountpoint / "before").read_bytes() == b"b" * 50_000
        stage.answer("status")
        if full == "async":  # a new conversation has something to note at once
            stage.end(full)
            start_daemons(stage, full)
            write_durably(stage.mountpoint / "more", b"m" * 300_000)
        assert_quiet(stage)
        (directory / full / "filler").unlink()
        until(lambda: writes(stage.mountpoint / "after", b"a" * 5000), "writes to be accepted again")
        until(lambda: all_same(stage), "equal sites")
        for name in acknowledged:
            assert (stage.mountpoint / name).read_bytes() == data[name]
        stage.unmount()
        assert_quiet(stage)


# -- files that are another volume's, of another format, or damaged


def test_the_directory_of_another_cluster(cold: Stage, made: Path, tmp_path: Path) -> None:
    """Exchanged by mistake: neither volume is written to, and the sentence names both."""
    own = cold
    with own:
        start_daemons(own)
        own.trisite("mkfs", "--force")
        own.end("sync")
        shutil.rmtree(own.directory / "sync")
        copy(made / "sync", own.directory / "sync")
        before = (own.directory / "sync" / "area").read_bytes()
        start_daemons(own, "sync")
        told = run(own.config, "mount", str(own.mountpoint))
        assert_refused(told, told.returncode, "holds volume")
        assert told.returncode in {ExitCode.REFUSED, ExitCode.OPERATIONAL}
        for command in (["failover", "--to", "sync", "--yes", "--accept-loss"], ["failback", "--yes"]):
            refused = run(own.config, *command)
            assert_refused(refused, ExitCode.REFUSED, "different volumes", "stop its daemon")
        assert any("different volumes" in warning for warning in own.answer("status")["warnings"])
        assert_quiet(own)
    assert (own.directory / "sync" / "area").read_bytes() == before


def test_a_newer_format_is_left_alone(cold: Stage) -> None:
    stage = cold
    area = stage.directory / "primary" / "area"
    with area.open("r+b") as file:
        for slot in (0, 1):
            file.seek(slot * 4096)
            block = bytearray(file.read(4096))
            struct.pack_into("<I", block, 16, 99)
            block[:8] = xxhash.xxh3_64_intdigest(bytes(block[8:])).to_bytes(8, "little")
            file.seek(slot * 4096)
            file.write(block)
    before = area.read_bytes()
    with stage:
        start_daemons(stage)
        told = run(stage.config, "mount", str(stage.mountpoint))
        assert_refused(told, ExitCode.REFUSED, "format version 99", "newer trisite")
        checked = run(stage.config, "fsck", "--at", "primary", "-y")
        assert checked.returncode == 4
        assert "superblock-newer" in checked.stdout
        assert_quiet(stage)
    assert area.read_bytes() == before
    with (
        lmdb.open(str(stage.directory / "primary" / "state"), map_size=64 << 20) as state,
        state.begin(write=True) as transaction,
    ):
        transaction.put(b"format", b"99")
    refused = run(stage.config, "site", "primary")
    assert_refused(refused, refused.returncode, "format version 99", "newer trisite")


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place % len(data)] ^= 16
    path.write_bytes(data)


def cut(path: Path, place: int) -> None:
    path.write_bytes(path.read_bytes()[: place % path.stat().st_size])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("primary/state/data.mdb", lambda path: path.write_bytes(os.urandom(20_000))),
        ("async/journal/position", lambda path: flip(path, 40)),
        ("sync/written/positions", lambda path: flip(path, 20)),
        ("primary/area", lambda path: cut(path, 10 << 20)),
        ("primary/area", lambda path: flip(path, 100, 4196)),
    ],
    ids=["state", "journal", "written", "area-cut", "superblocks"],
)
def test_damaged_files(cold: Stage, name: str, damage: Callable[[Path], object]) -> None:
    """Every process says what is wrong in one sentence, or goes on with what it can prove."""
    stage = cold
    damage(stage.directory / name)
    with stage:
        for site in ("primary", "sync", "async"):
            stage.start(site, [*trisite_command(), "site", site, "-c", str(stage.config)])
        others = [site for site in ("primary", "sync", "async") if not name.startswith(site)]

        def answer() -> bool:
            found = trio.run(collect, configuration.load(stage.config)).sites
            return all(site.reachable for name, site in found.items() if name in others)

        until(answer, "the sites whose files are whole")
        mounted = run(stage.config, "mount", str(stage.mountpoint))
        if mounted.returncode:
            assert_refused(mounted, mounted.returncode)
        else:
            assert (stage.mountpoint / "file").read_bytes() == b"f" * 70_000
            assert writes(stage.mountpoint / "new", b"n" * 5000)
            assert run(stage.config, "umount", str(stage.mountpoint)).returncode == 0
        assert run(stage.config, "fsck", "--at", "primary", "-n").returncode in {0, 4, 8}
        for site in ("primary", "sync", "async"):
            log = (stage.logs / f"{site}.log").read_text(encoding="utf-8", errors="replace")
            assert "Traceback" not in log
            assert "fault in trisite" not in log


def test_every_process_ends_well_when_asked(stage: Stage) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        stage.mount("primary")
        write_durably(stage.mountpoint / f"by-{number}", b"s" * 5000)
        mount = stage.running.pop("mount")
        os.kill(mount.pid, number)
        assert mount.wait(PATIENCE_SECONDS) == 0
        assert not stage.is_mounted()
        for site in ("primary", "sync", "async"):
            daemon = stage.running.pop(site)
            os.kill(daemon.pid, number)
            assert daemon.wait(PATIENCE_SECONDS) == 0
        start_daemons(stage)
    stage.mount("primary")
    assert set(os.listdir(stage.mountpoint)) == {"file", f"by-{signal.SIGINT}", f"by-{signal.SIGTERM}"}
    stage.unmount()
