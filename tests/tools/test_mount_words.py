"""The words around a mount: options of fstab, the mount table, the record of its process, the helper."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jfs.mountpoint import MountOptions
from jfs.store import StoreOptions
from tests.replication.cluster import make_config
from tools import background, mount_helper
from tools.background import MountRecord
from tools.errors import ExitCode, Failure
from tools.mount import chosen, here, known_options
from tools.mount_table import mount_source

TABLE = """\
22 1 0:20 / / rw - ext4 /dev/vda rw
40 22 0:45 / /mnt/my\\040home rw,nosuid - fuse.trisite /srv/a\\134b.toml rw,user_id=0
41 22 0:46 / /mnt/covered rw - fuse.trisite /srv/home.toml rw
42 22 0:47 / /mnt/covered rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["nofail,_netdev,x-systemd.automount,defaults,rw"], ["rw"]),
        (["ro", "allow_other,comment=hello"], ["ro", "allow_other"]),
        (["relatime,,user"], []),
        (["sideways"], ["sideways"]),
    ],
)
def test_what_is_meant_for_mount_itself_is_dropped(given: list[str], kept: list[str]) -> None:
    assert known_options(given) == kept


@pytest.mark.parametrize(
    ("place", "source"),
    [("/mnt/my home", "/srv/a\\b.toml"), ("/mnt/covered", None), ("/", None), ("/mnt", None)],
)
def test_the_mount_table_names_the_configuration(tmp_path: Path, place: str, source: str | None) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    assert mount_source(place, table) == source


def test_a_record_belongs_to_one_process_and_keeps_its_failure(tmp_path: Path) -> None:
    background.note_failure(tmp_path, "nothing is mounted", keep=True)
    assert background.read_record(tmp_path) is None
    background.write_record(tmp_path, "/mnt/x", "sync")
    record = background.read_record(tmp_path)
    assert record is not None
    assert (record.pid, record.mountpoint, record.site, record.failure) == (
        os.getpid(),
        "/mnt/x",
        "sync",
        None,
    )
    assert background.lives(record)
    background.note_failure(tmp_path, "the disk is full", keep=True)
    failed = background.read_record(tmp_path)
    assert failed is not None
    assert failed.failure == "the disk is full"
    background.remove_record(tmp_path)
    assert background.read_record(tmp_path) is None
    background.write_record(tmp_path, "/mnt/x", "sync")
    background.note_failure(tmp_path, "it could not be mounted", keep=False)
    assert background.read_record(tmp_path) is None


def test_waiting_for_the_end_of_a_mount_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    record = MountRecord(pid=process.pid, born=background.birth(process.pid) or 0, mountpoint="", site="")
    with pytest.raises(Failure, match="has not finished"):
        background.wait_for_end(record, 0.01)
    began = time.monotonic()
    background.wait_for_end(record, 10)
    assert 0.05 < time.monotonic() - began < 5
    process.wait()
    assert not background.lives(record)
    background.wait_for_end(record, 0)


def test_a_mount_process_that_is_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STOPPED_SECONDS", 0.3)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = MountRecord(pid=process.pid, born=background.birth(process.pid) or 0, mountpoint="", site="")
    try:
        assert not background.is_stopped(record)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(Failure, match=f"kill -CONT {process.pid}"):
            background.wait_for_end(record, 60)
        with pytest.raises(Failure, match="is stopped") as refused:
            background.wait_or_stopped(waiting, record, 60)
        assert refused.value.code == ExitCode.TIMEOUT
    finally:
        for one in (process, waiting):
            one.returncode = None
            one.kill()
            one.wait()
    assert not background.is_stopped(record)


def test_a_number_that_went_to_another_process_is_not_waited_for() -> None:
    record = MountRecord(pid=os.getpid(), born=1, mountpoint="", site="")
    background.wait_for_end(record, 0)
    assert not background.lives(record)


def test_the_helper_takes_the_site_from_the_options() -> None:
    assert mount_helper.split_options("rw,at=sync,allow_other") == ("sync", ["rw", "allow_other"])
    assert mount_helper.split_options("") == ("primary", [])


@pytest.mark.parametrize(
    "arguments",
    [[], ["only-one"], ["a", "b", "-Z"], ["/nonexistent.toml", "/mnt", "-f"], ["a", "b", "-N", "x"]],
)
def test_the_helper_has_the_codes_of_mount(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert mount_helper.main(arguments) == mount_helper.MountCode.USAGE
    assert capfd.readouterr().err.startswith("trisite: ")


@pytest.mark.parametrize(("option", "says"), [("--help", "at=SITE"), ("-h", "at=SITE"), ("-V", ".")])
def test_the_helper_says_what_it_is(option: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert mount_helper.main([option]) == mount_helper.MountCode.OK
    told = capfd.readouterr()
    assert says in told.out
    assert told.err == ""


def test_a_site_that_is_elsewhere_is_mounted_there(tmp_path: Path) -> None:
    made = make_config(tmp_path / "volume")
    assert here(made, "sync") == made.site("sync").directory
    made.site("sync").directory.rmdir()
    with pytest.raises(Failure, match=r"site sync is not on this machine: .* its own machine \(127.0.0.1\)"):
        here(made, "sync")


@pytest.mark.parametrize("word", ["wait", "coarsen"])
def test_the_store_does_what_the_configuration_says_when_the_log_is_full(tmp_path: Path, word: str) -> None:
    made = make_config(tmp_path / "volume", options=f'on_log_full = "{word}"')
    store_options, file_system_options = chosen(made, MountOptions(), 7)
    assert store_options.on_log_full == word
    assert store_options.epoch == 7
    assert store_options.cache_bytes == StoreOptions.cache_bytes
    assert file_system_options.relatime
