"""What is said before a mount is tried."""

from pathlib import Path

import pytest

from jfs import mountpoint
from jfs.mountpoint import (
    FuseUnusable,
    MountOptions,
    MountRefused,
    check_fuse,
    check_mountpoint,
    parse_options,
)

TABLE = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:35 / /mnt/with\\040space rw - tmpfs tmpfs rw
41 22 0:36 / /mnt/twice rw - tmpfs tmpfs rw
42 41 0:37 / /mnt/twice rw,nosuid shared:1 - fuse.trisite /image rw
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(TABLE)
    return path


def test_the_mount_table_is_understood(table: Path) -> None:
    assert mountpoint.mounted_file_system("/mnt/with space", table) == "tmpfs"
    assert mountpoint.mounted_file_system("/mnt/twice", table) == "fuse.trisite"
    assert mountpoint.mounted_file_system("/mnt/with", table) is None
    assert mountpoint.device_number("/mnt/twice", table) == "0:37"
    assert mountpoint.device_number("/mnt", table) is None


def test_an_empty_directory_will_do_and_comes_back_resolved(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    assert check_mountpoint(str(tmp_path / "link")) == str(real.resolve())


def test_what_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place, words in (("missing", "does not exist"), ("file", "is not a directory"), ("", "is not empty")):
        with pytest.raises(MountRefused, match=words):
            check_mountpoint(str(tmp_path / place))
    busy = tmp_path / "busy"
    busy.mkdir()
    table = tmp_path / "table"
    table.write_text(f"40 22 0:35 / {busy.resolve()} rw - tmpfs tmpfs rw\n")
    monkeypatch.setattr(mountpoint, "MOUNT_TABLE", table)
    with pytest.raises(MountRefused, match="is a mount point already"):
        check_mountpoint(str(busy))


def test_a_machine_without_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(FuseUnusable, match="does not exist, so nothing can be mounted here"):
        check_fuse()
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(mountpoint, "FUSERMOUNT", "no-such-program")
    with pytest.raises(FuseUnusable, match="install the package fuse3"):
        check_fuse()


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    words = parse_options("allow_other,nodev,,rw", fsname="a,b").words()
    assert words == {"allow_other", "nodev", "suid", "default_permissions", "subtype=trisite", "fsname=a\\,b"}
    assert MountOptions().relatime
    assert not parse_options("noatime").relatime
    assert not parse_options("ro").relatime
    assert parse_options("ro").read_only
    with pytest.raises(MountRefused, match="'bogus' is not known"):
        parse_options("allow_other,bogus")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "suid" not in parse_options("").words()


def test_of_two_options_that_contradict_one_another_the_last_holds() -> None:
    assert parse_options("ro,rw").kernel == {"rw"}
    assert not parse_options("ro,rw").read_only
    assert parse_options("rw,suid,atime,ro,nosuid,noatime").kernel == {"ro", "nosuid", "noatime"}
