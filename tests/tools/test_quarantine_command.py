"""`trisite quarantine` on a site directory of this machine: list, show, restore, and where it will not."""

import json
from pathlib import Path

import pytest

from replication.config import Config
from replication.quarantine import KeptFile, QuarantineWriter
from tests.replication.cluster import make_config
from tools import cli, mount_table
from tools import quarantine as command
from tools.errors import ExitCode, Failure
from vsap.entry import write_entry


@pytest.fixture
def volume(tmp_path: Path) -> Config:
    return make_config(tmp_path / "volume")


def keep(config: Config, epoch: int, text: bytes) -> None:
    """A quarantine at primary that holds one small file."""
    writer = QuarantineWriter(config.site("primary").directory / "quarantine", epoch, 10)
    writer.add([write_entry(11, 5, 8192, text.ljust(4096, b"\0"))])
    file = KeptFile(
        inode=16,
        path="/letter",
        ranges=[(0, 4096)],
        bytes=4096,
        why="why",
        size_bytes=len(text),
        allocated_bytes=4096,
        pieces=[(0, 8192, 4096)],
    )
    assert writer.finish("primary", [file], complete=True) is not None


def run(config: Config, *words: str) -> int:
    return cli.main(["quarantine", *words, "--at", "primary", "-c", str(config.path)])


def test_list_show_and_restore(volume: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(volume) == ExitCode.OK
    assert "nothing in quarantine" in capfd.readouterr().out
    keep(volume, 2, b"dear all")
    assert run(volume, "list", "--json") == ExitCode.OK
    (listed,) = json.loads(capfd.readouterr().out)["quarantines"]
    assert (listed["id"], listed["writes"], listed["files"]) == ("epoch-2-after-10", 1, 1)
    assert run(volume, "show", listed["id"]) == ExitCode.OK
    shown = capfd.readouterr().out
    assert "/letter" in shown
    assert "whole" in shown
    to = tmp_path / "to"
    assert run(volume, "restore", "--to", str(to), "--json") == ExitCode.OK
    assert json.loads(capfd.readouterr().out)["files"][0]["to"] == str(to / "files" / "letter")
    assert (to / "files" / "letter").read_bytes() == b"dear all"
    assert run(volume, "restore", "--to", str(to)) == ExitCode.REFUSED
    assert "not empty" in capfd.readouterr().err


def test_what_cannot_be_done_is_said(volume: Config, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(volume, "show") == ExitCode.REFUSED
    keep(volume, 2, b"one")
    keep(volume, 4, b"two")
    for words, code, says in (
        (("show",), ExitCode.USAGE, "epoch-2-after-10, epoch-4-after-10"),
        (("show", "epoch-9"), ExitCode.USAGE, "no quarantine 'epoch-9'"),
        (("restore", "epoch-2-after-10"), ExitCode.USAGE, "--to DIR"),
    ):
        capfd.readouterr()
        assert run(volume, *words) == code
        assert says in capfd.readouterr().err
    (volume.site("primary").directory / "quarantine").rename(volume.path.parent / "elsewhere")
    volume.site("primary").directory.rmdir()
    capfd.readouterr()
    assert run(volume) == ExitCode.OPERATIONAL
    assert "on the machine of site primary (127.0.0.1)" in capfd.readouterr().err


def test_nothing_is_restored_into_a_mounted_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 0:20 / / rw - ext4 /dev/vda rw\n"
        f"40 22 0:45 / {tmp_path}/live rw - fuse.trisite /srv/a.toml rw\n"
        f"41 40 0:46 / {tmp_path}/live/other rw - tmpfs tmpfs rw\n"
    )
    assert mount_table.type_at(f"{tmp_path}/live/below/it", table) == "fuse.trisite"
    assert mount_table.type_at(f"{tmp_path}/live/other/x", table) == "tmpfs"
    assert mount_table.type_at(f"{tmp_path}/livelong", table) == "ext4"
    monkeypatch.setattr(command, "type_at", lambda path: mount_table.type_at(path, table))
    with pytest.raises(Failure, match="in a mounted volume"):
        command.made_ready(tmp_path / "live" / "new")
    assert not (tmp_path / "live").exists()
    assert command.made_ready(tmp_path / "new").is_dir()
