"""Bad input on the command line and in the configuration: one sentence, a proper code, nothing changed."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.bad_input import assert_quiet, assert_refused, run, run_all, sites, write_durably
from tools.demo.stage import Stage, trisite_command
from tools.errors import ExitCode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a volume that was only just initialised: no daemon runs."""
    directory = tmp_path_factory.mktemp("idle") / "volume"
    command = [*trisite_command(), "init", str(directory), "--size", "64MiB"]
    subprocess.run(command, check=True, capture_output=True)
    return directory / "trisite.toml"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with sites(tmp_path_factory.mktemp("sites") / "volume") as stage:
        yield stage


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("protect = true", "protekt = true", "no key 'protekt' in [options]"),
        ('"64MiB"', '"64MB"', "not a size"),
        ('"64MiB"', "9" * 5000, "not TOML"),
        ('host = "127.0.0.1"', 'host = "a..b"', "neither a host name"),
        ('directory = "sync"', 'directory = "x/../primary"', "share the directory"),
        ("protect = true", "protect = true\nsilence_seconds = nan", "silence_seconds must be"),
    ],
)
def test_configurations_that_cannot_be(idle: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    text = idle.read_text(encoding="utf-8")
    assert old in text
    config = tmp_path / "trisite.toml"
    config.write_text(text.replace(old, new, 1), encoding="utf-8")
    for told in run_all(config, ["status"], ["site", "primary"]):
        assert_refused(told, ExitCode.USAGE, says)


def test_a_configuration_that_is_no_file(idle: Path) -> None:
    assert_refused(run(idle.parent / "missing.toml", "status"), ExitCode.USAGE, "trisite init")
    assert_refused(run(idle.parent, "status"), ExitCode.USAGE, "Is a directory")
    assert_refused(run(Path("/dev/zero"), "status"), ExitCode.USAGE, "larger than 1 MiB")
    assert_refused(run(idle, "fsck", "--at", "primary", "-c", "/dev/zero"), 16, "larger than 1 MiB")


def test_without_daemons_every_command_says_what_is_missing(idle: Path) -> None:
    procedures = (["failover", "--to", "sync", "--yes"], ["failback", "--yes"], ["recover"])
    commands = (["mkfs"], *procedures, ["verify"])
    for result in run_all(
        idle, *([*command, *(["--json"] if number % 2 else [])] for number, command in enumerate(commands))
    ):
        assert_refused(result, ExitCode.UNREACHABLE, "cannot be reached")


def test_a_port_in_use(idle: Path) -> None:
    port = int(re.findall(r"port = (\d+)", idle.read_text(encoding="utf-8"))[0])
    with socket.create_server(("127.0.0.1", port)):
        told = run(idle, "site", "primary")
    assert_refused(told, ExitCode.REFUSED, "another program listens there", "another port")


def test_a_site_directory_that_is_missing_or_a_file(idle: Path, tmp_path: Path) -> None:
    config = tmp_path / "trisite.toml"
    text = idle.read_text(encoding="utf-8").replace('keys = "keys"', f'keys = "{idle.parent / "keys"}"')
    config.write_text(text, encoding="utf-8")
    assert_refused(run(config, "site", "primary"), ExitCode.REFUSED, "does not exist", "trisite init")
    (tmp_path / "primary").write_text("no directory")
    assert_refused(run(config, "site", "primary"), ExitCode.REFUSED, "does not exist")


@pytest.mark.fuse
def test_mount_points_that_will_not_do(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    for place, says in (
        (tmp_path / "missing", "mkdir -p"),
        (tmp_path / "file", "not a directory"),
        (tmp_path / "full", "not empty"),
        (Path("/proc"), "already"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        for told in run_all(stage.config, ["mount", str(place)], ["mount", "--foreground", str(place)]):
            assert_refused(told, ExitCode.REFUSED, says)
    options = ("sideways", "ro=1", "allow_other,uid=0", "fsname=x")
    for told in run_all(stage.config, *(["mount", "-o", one, str(stage.mountpoint)] for one in options)):
        assert_refused(told, ExitCode.USAGE, "not known")
    assert_refused(run(stage.config, "umount", str(stage.mountpoint)), ExitCode.REFUSED, "nothing is mounted")


@pytest.mark.fuse
def test_a_machine_without_fuse(stage: Stage, tmp_path: Path) -> None:
    """Hidden in a mount name space of its own; nothing else of the machine sees it.

    What unshare(1) does by itself to keep it so needs a mounted "/", which a chroot has not; /dev is then
    a mount of its own, because it holds /dev/fuse.
    """
    private = "mount --make-rprivate / 2>/dev/null || mount --make-rprivate /dev"
    hide = f'{private} && mount --bind {tmp_path} /dev && exec "$@"'
    (tmp_path / "null").touch()
    prefix = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", hide, "sh")
    told = run(stage.config, "mount", str(stage.mountpoint), prefix=prefix)
    assert_refused(told, ExitCode.OPERATIONAL, "/dev/fuse does not exist", "modprobe fuse")
    empty = tmp_path / "empty"
    empty.mkdir()
    told = run(stage.config, "mount", str(stage.mountpoint), prefix=("env", f"PATH={empty}"))
    assert_refused(told, ExitCode.OPERATIONAL, "fusermount3 is not installed", "fuse3")


AS_NOBODY = """
import os, sys
from cyclopts import App
from tools import background, cli, mount, site, status
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.fuse
@pytest.mark.parametrize(
    ("command", "code"),
    [(["status"], ExitCode.USAGE), (["site", "sync"], ExitCode.USAGE), (["mount", "/mnt"], ExitCode.USAGE)],
)
def test_another_user_is_told_so(stage: Stage, command: list[str], code: int) -> None:
    os.chmod(stage.config, 0o600)
    done = subprocess.run(
        [sys.executable, "-P", "-c", AS_NOBODY, *command, "-c", str(stage.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert_refused(done, code, "Permission denied")


@pytest.mark.fuse
def test_a_volume_in_use_is_neither_made_anew_nor_used_twice(stage: Stage, tmp_path: Path) -> None:
    assert_refused(run(stage.config, "site", "primary"), ExitCode.REFUSED, "runs already")
    assert_refused(run(stage.config, "mkfs", "--json"), ExitCode.REFUSED, "--force")
    stage.mount("primary")
    write_durably(stage.mountpoint / "kept", b"precious")
    assert_refused(run(stage.config, "mkfs", "--force"), ExitCode.REFUSED, "mounted at site primary")
    (tmp_path / "second").mkdir()
    for more in ([], ["--foreground"]):
        twice = run(stage.config, "mount", *more, str(tmp_path / "second"))
        assert_refused(twice, ExitCode.REFUSED, "mounted at site primary already")
    # The sync and the async site must not have been emptied before the primary said no.
    write_durably(stage.mountpoint / "more", b"still protected")
    assert stage.answer("verify")["same"] is True
    stage.unmount()
    stage.mount("primary")
    assert (stage.mountpoint / "kept").read_bytes() == b"precious"
    stage.unmount()
    assert_quiet(stage)
