"""Small things an operator meets: what is stopped, suspended or just returned is said at once, and truly."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.mountpoint import mounted_file_system
from tests.system.bad_input import OPTIONS, run, sites, write_durably
from tools.demo.stage import Stage
from tools.errors import ExitCode

pytestmark = [pytest.mark.fuse, pytest.mark.slow]
SOON_SECONDS = 45.0  # less than what a site may take to arrive, more than a busy machine needs


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Three running sites with an empty file system, mounted at primary."""
    with sites(tmp_path / "volume", options=OPTIONS) as stage:
        stage.mount("primary")
        yield stage


def test_umount_of_a_stopped_mount_process_ends_with_a_sentence(stage: Stage) -> None:
    write_durably(stage.mountpoint / "file", b"x" * 8192)
    stage.hold("mount")
    ended = run(stage.config, "umount", str(stage.mountpoint))
    assert ended.returncode == ExitCode.TIMEOUT
    assert "kill -CONT" in ended.stderr
    assert ended.stderr.count("\n") == 1
    stage.release("mount")
    stage.wait_for(
        lambda: not stage.is_mounted() or run(stage.config, "umount", str(stage.mountpoint)).returncode == 0,
        "the mount to end",
    )
    stage.mount_ended()
    stage.mount("primary")
    assert (stage.mountpoint / "file").read_bytes() == b"x" * 8192


def test_umount_in_the_moment_of_mounting_waits_for_the_process(stage: Stage) -> None:
    stage.unmount()
    for _ in range(3):
        stage.start(
            "mount",
            [*stage.trisite_words(), "mount", "--foreground", "-c", str(stage.config), str(stage.mountpoint)],
        )
        while mounted_file_system(os.path.realpath(stage.mountpoint)) is None:
            assert stage.running["mount"].poll() is None, stage.last_words("mount")
        ended = run(stage.config, "umount", str(stage.mountpoint))
        assert ended.returncode == 0, ended.stderr
        assert not os.path.exists(f"/proc/{stage.running['mount'].pid}/fd/0")  # gone, or waits for us only
        stage.mount_ended()


def test_verify_says_at_once_that_a_pair_is_suspended(stage: Stage) -> None:
    suspended = run(stage.config, "pair", "suspend", "primary,async")
    assert suspended.returncode == 0
    assert "from primary to async is suspended" in suspended.stdout
    write_durably(stage.mountpoint / "file", os.urandom(100_000))
    for mounted in (True, False):
        if not mounted:
            stage.unmount()
        began = time.monotonic()
        ended = run(stage.config, "verify")
        assert time.monotonic() - began < SOON_SECONDS
        assert ended.returncode == 0, ended.stderr  # primary and sync were compared
        assert "trisite pair resync primary,async" in ended.stdout
        named = run(stage.config, "verify", "--between", "primary,async")
        assert named.returncode == ExitCode.UNREACHABLE
        assert "its pair is Suspend" in named.stderr


def test_verify_without_the_sync_site_has_the_code_of_a_site_that_is_away(stage: Stage) -> None:
    """Protection takes no write, so it takes no marker: not even the far site can be compared."""
    stage.kill("sync")
    stage.wait_for(
        lambda: run(stage.config, "verify").returncode == ExitCode.UNREACHABLE, "verify to be refused"
    )
    ended = run(stage.config, "verify")
    assert ended.returncode == ExitCode.UNREACHABLE
    assert "nothing can be compared" in ended.stderr
    os.kill(stage.running["async"].pid, signal.SIGKILL)


def test_status_after_a_return_says_what_is_so(stage: Stage) -> None:
    write_durably(stage.mountpoint / "file", os.urandom(100_000))
    stage.kill("mount", "primary")
    stage.clear_mountpoint()
    stage.trisite("failover", "--to", "sync", "--yes")
    stage.start_site("primary")
    stage.trisite("failback", "--yes")
    (pair,) = [one for one in stage.answer("status")["pairs"] if one["kind"] == "sync"]
    assert (pair["from"], pair["to"], pair["state"]) == ("primary", "sync", "Duplex")
    assert "not mounted yet" in pair["reason"]
    stage.trisite("verify", "--between", "primary,sync")
