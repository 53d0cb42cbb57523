"""The commands as an acceptance run gives them, on real sites with a real mount."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jfs.mountpoint import mounted_file_system
from tools.demo.stage import SITES, Stage, trisite_command
from tools.errors import ExitCode, Failure

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Three running sites with an empty file system, nothing mounted."""
    with Stage(tmp_path / "volume") as stage:
        stage.trisite("init", str(stage.directory), "--size", "256MiB", config=False)
        for site in SITES:
            stage.start_site(site)
        stage.trisite("mkfs")
        yield stage


def run(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*trisite_command(), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TRISITE_CONFIG": str(stage.config)},
    )


def write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def require(document: dict[str, Any], *fields: str) -> None:
    assert set(fields) <= set(document), f"missing: {set(fields) - set(document)}"


def test_mount_in_the_background_and_umount_that_waits(stage: Stage) -> None:
    mounted = run(stage, "mount", str(stage.mountpoint))
    assert (mounted.returncode, mounted.stderr) == (0, "")
    place = os.path.realpath(stage.mountpoint)
    assert mounted_file_system(place) == "fuse.trisite"
    data = os.urandom(3_000_000)
    (stage.mountpoint / "file").write_bytes(data)
    twice = run(stage, "mount", str(stage.mountpoint))
    assert twice.returncode == ExitCode.REFUSED
    assert "unmount it first" in twice.stderr
    with (stage.mountpoint / "file").open("rb"):
        busy = run(stage, "umount", str(stage.mountpoint))
    assert busy.returncode == ExitCode.REFUSED
    assert "in use" in busy.stderr
    ended = run(stage, "umount", str(stage.mountpoint))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert mounted_file_system(place) is None
    assert not (stage.directory / "primary" / "mount.json").exists()
    stage.mount("primary")
    assert (stage.mountpoint / "file").read_bytes() == data
    again = run(stage, "umount", str(stage.mountpoint))
    assert again.returncode == 0
    stage.mount_ended()
    assert run(stage, "umount", str(stage.mountpoint)).returncode == ExitCode.REFUSED
    assert_a_changed_size_is_told(stage)


def assert_a_changed_size_is_told(stage: Stage) -> None:
    """The volume keeps its size, whatever the file says; whoever mounts it is told, and can work."""
    text = stage.config.read_text(encoding="utf-8")
    stage.config.write_text(text.replace('"256MiB"', '"1GiB"'), encoding="utf-8")
    mounted = run(stage, "mount", str(stage.mountpoint))
    assert mounted.returncode == 0
    assert mounted.stderr.startswith("warning: the volume has 256 MiB since mkfs and keeps that size")
    assert mounted.stderr.count("\n") == 1
    assert stage.answer("status")["warnings"] == [mounted.stderr.removeprefix("warning: ").rstrip()]
    assert run(stage, "umount", str(stage.mountpoint)).returncode == 0


def test_a_mount_that_cannot_be_made_says_why_at_once(stage: Stage) -> None:
    at_secondary = run(stage, "mount", "--at", "sync", str(stage.mountpoint))
    assert at_secondary.returncode == ExitCode.REFUSED
    assert at_secondary.stderr.count("\n") == 1
    assert "primary" in at_secondary.stderr
    unknown = run(stage, "mount", "-o", "sideways", str(stage.mountpoint))
    assert unknown.returncode == ExitCode.USAGE
    assert "sideways" in unknown.stderr
    assert not stage.is_mounted()


def test_status_has_the_published_fields(stage: Stage) -> None:
    stage.mount("primary")
    write_durably(stage.mountpoint / "file", b"x" * 100_000)
    status = stage.answer("status")
    fields = ("volume", "epoch", "writer", "pairs", "queue", "lag_seconds", "log", "sites")
    require(status, *fields)
    assert (status["writer"], status["epoch"]) == ("primary", 1)
    for pair in status["pairs"]:
        require(pair, "kind", "from", "to", "state", "since", "reason")
    kinds = {(pair["kind"], pair["from"], pair["to"]) for pair in status["pairs"]}
    assert {("sync", "primary", "sync"), ("async", "primary", "async")} <= kinds
    require(status["queue"], "entries", "bytes", "oldest_seq", "newest_seq")
    require(status["log"], "files", "bytes", "capacity_bytes")
    assert set(status["sites"]) == set(SITES)
    for site in status["sites"].values():
        require(site, "reachable", "epoch", "applied_seq")
        assert site["reachable"]
    person = run(stage, "status")
    assert person.returncode == 0
    assert "writer primary" in person.stdout


def test_take_over_and_return(stage: Stage) -> None:
    stage.mount("primary")
    # More than a held process takes in through the kernel's socket buffers.
    first, second = os.urandom(24_000_000), os.urandom(50_000)
    stage.hold("async")
    write_durably(stage.mountpoint / "first", first)
    stage.kill("mount", "primary")
    stage.clear_mountpoint()
    stage.release("async")
    plan = stage.answer("failover", "--to", "sync", "--plan")
    assert plan["steps"]
    assert stage.answer("status")["writer"] == "primary", "a plan changes nothing"
    asked = run(stage, "failover", "--to", "sync")
    assert asked.returncode == ExitCode.REFUSED
    assert "--yes" in asked.stderr.splitlines()[-1]
    result = stage.answer("failover", "--to", "sync", "--yes")
    names = ("writer", "epoch", "files_listed", "bytes_listed", "bytes_copied", "lost", "seconds")
    require(result, *names)
    assert (result["writer"], result["epoch"], result["lost"]) == ("sync", 2, 0)
    assert 0 < result["bytes_copied"] <= len(first) + 4_000_000
    assert result["bytes_listed"] > 0
    again = stage.answer("failover", "--to", "sync", "--yes")
    assert (again["writer"], again["epoch"]) == ("sync", 2)
    stage.mount("sync")
    assert (stage.mountpoint / "first").read_bytes() == first
    write_durably(stage.mountpoint / "second", second)
    listed = stage.answer("recover", "--list")
    require(listed, "files", "files_listed", "bytes_listed")
    stage.start_site("primary")
    stale = run(stage, "mount", "--at", "primary", str(stage.directory / "logs"))
    assert stale.returncode != 0
    back = stage.answer("failback", "--yes")
    require(back, "writer", "epoch", "bytes_copied", "seconds")
    assert (back["writer"], back["epoch"]) == ("primary", 3)
    stage.mount_ended()
    stage.mount("primary")
    assert (stage.mountpoint / "first").read_bytes() == first
    assert (stage.mountpoint / "second").read_bytes() == second


def test_verify_says_same_and_different(stage: Stage) -> None:
    stage.mount("primary")
    data = os.urandom(100_000)
    write_durably(stage.mountpoint / "file", data)
    assert stage.answer("verify")["same"] is True
    area = stage.directory / "async" / "area"
    with area.open("r+b") as file:
        content = file.read()
        place = content.index(data[4096:8192])
        file.seek(place)
        file.write(b"a disk that lies")
    told = stage.answer("verify", "--between", "primary,async", codes=(1,))
    assert told["same"] is False
    assert stage.answer("verify", "--between", "primary,sync")["same"] is True


def test_two_sites_lost_needs_the_word_for_it(stage: Stage) -> None:
    stage.mount("primary")
    write_durably(stage.mountpoint / "file", b"here")
    stage.kill("mount", "primary", "sync")
    stage.clear_mountpoint()
    with pytest.raises(Failure, match="ended with 5"):
        stage.answer("failover", "--to", "async", "--yes")
    result = stage.answer("failover", "--to", "async", "--accept-loss", "--yes")
    assert result["writer"] == "async"
    stage.mount("async")
    assert os.listdir(stage.mountpoint) in ([], ["file"])


def test_fsck_codes(stage: Stage) -> None:
    stage.mount("primary")
    write_durably(stage.mountpoint / "file", b"x" * 10_000)
    stage.unmount()
    for site in SITES:
        clean = run(stage, "fsck", "--at", site, "-n", "--json")
        assert clean.returncode == 0, clean.stderr
        assert msgspec.json.decode(clean.stdout)["clean"] is True
