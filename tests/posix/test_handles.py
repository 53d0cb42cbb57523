"""File handles, as an NFS server keeps them: good over a remount, stale once the file is gone."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.calls import handle_of, open_handle
from tests.posix.world import fill
from tests.system.plain_mount import Mount, refused

pytestmark = pytest.mark.fuse


@pytest.fixture
def mount() -> Iterator[Mount]:
    with tempfile.TemporaryDirectory(prefix="trisite-handles-") as name:
        found = Mount(Path(name))
        try:
            found.start(size="64M")
            yield found
        finally:
            found.clear_away()


def content(mount: Mount, handle: bytes) -> bytes:
    with os.fdopen(open_handle(mount.path, handle), "rb") as file:
        return file.read()


def test_a_handle_opens_its_file_after_a_remount(mount: Mount) -> None:
    os.makedirs(mount.path / "a" / "b")
    file = handle_of(fill(mount.path / "a" / "b" / "f"))
    directory = handle_of(mount.path / "a" / "b")
    os.rename(mount.path / "a" / "b", mount.path / "c")
    mount.remount()
    assert content(mount, file) == b"content"
    descriptor = open_handle(mount.path, directory)
    assert os.listdir(descriptor) == ["f"]
    assert os.stat("..", dir_fd=descriptor).st_ino == os.stat(mount.path).st_ino
    os.close(descriptor)


def test_a_handle_is_stale_once_its_file_is_gone(mount: Mount) -> None:
    handle = handle_of(fill(mount.path / "f"))
    os.unlink(mount.path / "f")
    mount.remount()
    refused(errno.ESTALE, open_handle, mount.path, handle)


def test_a_file_that_a_crash_took_does_not_lend_its_handle_to_the_next(mount: Mount) -> None:
    """The number of an inode that was never made durable is given again, with another generation."""
    fill(mount.path / "kept")
    descriptor = os.open(mount.path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    lost = fill(mount.path / "lost", b"lost")
    number, handle = os.stat(lost).st_ino, handle_of(lost)
    mount.kill()
    mount.start()
    if os.path.lexists(lost):  # a commit was quicker than the crash
        assert content(mount, handle) == lost.read_bytes()
        return
    for turn in range(3):
        made = fill(mount.path / f"new{turn}", b"new")
        if os.stat(made).st_ino == number:
            refused(errno.ESTALE, open_handle, mount.path, handle)
            mount.remount()
            refused(errno.ESTALE, open_handle, mount.path, handle)
            return
    pytest.fail("no new file got the number of the lost one")
