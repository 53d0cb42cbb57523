"""The command line as an operator and a script meet it: exit codes, one sentence, never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jfs.errors import OtherFormatError
from jfs.mountpoint import FuseUnusable
from replication.config import load
from replication.site import SiteError, SiteUnusable
from tools import cli
from tools.errors import ExitCode, Failure, explain
from tools.init import PORTS, volume_name


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRISITE")}
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
    )


def assert_one_sentence(ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.stdout == ""
    assert ended.stderr.startswith("trisite: ")
    assert ended.stderr.count("\n") == 1
    assert "Traceback" not in ended.stderr


def test_init_writes_what_the_other_commands_read(tmp_path: Path) -> None:
    ended = run("init", str(tmp_path / "home"), "--size", "1GiB", "--json")
    assert ended.returncode == 0
    told = json.loads(ended.stdout)
    config = load(Path(told["config"]))
    assert told == {"config": str(config.path), "volume": "home", "size_bytes": 1 << 30}
    assert config.volume.size_bytes == 1 << 30
    assert len({site.port for site in config.sites.values()} & set(PORTS)) == 3
    for name, site in config.sites.items():
        assert site.directory.is_dir()
        key = config.keys / f"{name}.key"
        assert key.stat().st_mode & 0o077 == 0


def test_init_never_writes_over_a_volume(tmp_path: Path) -> None:
    assert run("init", str(tmp_path)).returncode == 0
    before = (tmp_path / "trisite.toml").read_bytes()
    again = run("init", str(tmp_path))
    assert again.returncode == ExitCode.REFUSED
    assert_one_sentence(again)
    assert (tmp_path / "trisite.toml").read_bytes() == before


@pytest.mark.parametrize("size", ["1000", "a lot", "0", '8GiB"\n[options]'])
def test_init_refuses_a_bad_size_and_leaves_nothing(tmp_path: Path, size: str) -> None:
    ended = run("init", str(tmp_path / "new"), "--size", size)
    assert ended.returncode == ExitCode.USAGE
    assert_one_sentence(ended)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("directory", "name"),
    [("/x/home", "home"), ("/x/my data", "my-data"), ("/x/.hidden", "hidden"), ("/", "volume")],
)
def test_the_volume_is_named_after_its_directory(directory: str, name: str) -> None:
    assert volume_name(Path(directory)) == name


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("stauts",), ExitCode.USAGE, "stauts"),
        (("status", "--loud"), ExitCode.USAGE, "--loud"),
        (("status", "--jsn"), ExitCode.USAGE, "Did you mean --json? `trisite status --help`"),
        (("status",), ExitCode.USAGE, "TRISITE_CONFIG"),
        (("status", "-c", "/nonexistent.toml"), ExitCode.USAGE, "/nonexistent.toml"),
        (("fsck", "--at", "sync", "--loud"), 16, "--loud"),
        (("failover", "--to", "primary", "-c", "x"), ExitCode.USAGE, "primary"),
        (("-c", "/nonexistent.toml", "status"), ExitCode.USAGE, "/nonexistent.toml"),
        (("-c", "/nonexistent.toml", "fsck", "--at", "sync"), 16, "/nonexistent.toml"),
        (("-c", "/nonexistent.toml"), ExitCode.USAGE, "no command"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_code(arguments: tuple[str, ...], code: int, word: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == code
    assert_one_sentence(ended)
    assert word in ended.stderr


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], []),
        (["status", "-c", "f"], ["status", "-c", "f"]),
        (["-c", "f", "status", "--json"], ["status", "-c", "f", "--json"]),
        (["--config", "f", "mount", "/mnt"], ["mount", "--config", "f", "/mnt"]),
        (["--config=f", "pair", "suspend", "a,b"], ["pair", "--config=f", "suspend", "a,b"]),
        (["--help"], ["--help"]),
    ],
)
def test_a_configuration_before_the_command_belongs_to_it(given: list[str], meant: list[str]) -> None:
    assert cli.command_first(given) == meant


def test_the_configuration_may_come_from_the_environment() -> None:
    ended = run("status", TRISITE_CONFIG="/nonexistent/elsewhere.toml")
    assert "/nonexistent/elsewhere.toml" in ended.stderr


def test_every_command_of_the_contract_is_there_and_has_help() -> None:
    overview = run("--help")
    assert overview.returncode == 0
    for command in cli.COMMANDS:
        assert f" {command} " in overview.stdout
        help_text = run(command, "--help")
        assert help_text.returncode == 0
        assert help_text.stderr == ""
        assert f"Usage: trisite {command}" in help_text.stdout


def test_python_without_its_checks_is_refused() -> None:
    ended = run("--version", PYTHONOPTIMIZE="1")
    assert ended.returncode == ExitCode.USAGE
    assert_one_sentence(ended)


def test_a_fault_of_our_own_is_a_sentence_unless_asked_for_more(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(words: list[str]) -> int:
        raise KeyError("surprise")

    monkeypatch.setattr(cli, "run", broken)
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    assert cli.main(["status"]) == ExitCode.INTERNAL
    quiet = capfd.readouterr().err
    assert "surprise" in quiet
    assert "--debug" in quiet
    assert "Traceback" not in quiet
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    assert cli.main(["status"]) == ExitCode.INTERNAL
    assert "Traceback" in capfd.readouterr().err


def test_the_first_real_error_of_a_group_is_told() -> None:
    nested = BaseExceptionGroup("", [BaseExceptionGroup("", [Failure("the reason", 4)]), ValueError("other")])
    assert explain(nested) == ("the reason", 4)
    assert explain(FileNotFoundError(2, "No such file", "/a/b"))[0] == "/a/b: No such file"


def test_what_the_system_refuses_and_what_is_only_of_another_format_have_their_codes() -> None:
    assert explain(FuseUnusable("no fuse")) == ("no fuse", ExitCode.OPERATIONAL)
    assert explain(SiteUnusable("not yours")) == ("not yours", ExitCode.OPERATIONAL)
    assert explain(SiteError("runs already")) == ("runs already", ExitCode.REFUSED)
    assert explain(OtherFormatError("version 2", newer=False)) == ("version 2", ExitCode.REFUSED)


@pytest.mark.parametrize("command", [("events",), ("events", "--json"), ("failback", "--yes")])
def test_where_no_site_answers_a_command_is_told_so_once(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert run("init", str(tmp_path)).returncode == 0
    ended = run(*command, "-c", str(tmp_path / "trisite.toml"))
    assert ended.returncode == ExitCode.UNREACHABLE
    assert_one_sentence(ended)
    assert "no site answers" in ended.stderr


def test_a_command_that_there_is_not_is_answered_with_those_there_are() -> None:
    ended = run("nonsense")
    assert ended.returncode == ExitCode.USAGE
    assert_one_sentence(ended)
    for name in cli.COMMANDS:
        assert f" {name}" in ended.stderr
    assert ", ;" not in ended.stderr


def stops() -> int:
    """A command during which Ctrl-C is pressed."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "told"), [("failback", "run the command again to finish"), ("status", "")]
)
def test_ctrl_c_says_what_it_means_except_where_it_is_the_normal_end(
    command: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, command, "tests.tools.test_cli:stops")
    assert cli.main([command]) == ExitCode.INTERRUPTED
    said = capsys.readouterr().err
    assert told in said
    assert bool(said) is bool(told)
