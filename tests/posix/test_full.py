"""A full volume, mounted: ENOSPC is told to whoever wrote, and freeing room makes everything work again."""

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.device import FileDevice
from jfs.fsck import check
from tests.posix.world import said
from tests.system.plain_mount import Mount, refused

pytestmark = pytest.mark.fuse
MIB = 1 << 20


@pytest.fixture
def mount() -> Iterator[Mount]:
    with tempfile.TemporaryDirectory(prefix="trisite-full-") as name:
        found = Mount(Path(name))
        try:
            found.start(size="24M")
            yield found
        finally:
            found.clear_away()


def free(mount: Mount) -> int:
    return os.statvfs(mount.path).f_bfree


def fill(path: Path, *, sync: bool = True) -> None:
    """Write more than fits; OSError from fsync or, without `sync`, from close."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        for _ in range(30):
            os.write(descriptor, b"x" * MIB)
        if sync:
            os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)


@pytest.mark.parametrize("sync", [True, False])
def test_data_that_finds_no_room_is_reported_each_time(mount: Mount, sync: bool) -> None:
    (mount.path / "kept").write_bytes(b"k" * MIB)
    fresh = free(mount)
    for _ in range(4):
        with pytest.raises(OSError, match="No space left") as caught:
            fill(mount.path / "hog", sync=sync)
        assert caught.value.errno == errno.ENOSPC
        assert free(mount) < fresh // 8
        os.unlink(mount.path / "hog")
        os.sync()
        assert free(mount) > fresh * 0.9
    assert (mount.path / "kept").read_bytes() == b"k" * MIB
    mount.unmount()
    device = FileDevice(mount.image)
    assert list(check(device, lambda *_: None)) == []
    device.close()


def test_a_map_of_a_hole_that_finds_no_room_is_reported_by_msync(mount: Mount) -> None:
    refused(errno.ENOSPC, fill, mount.path / "hog")
    with open(mount.path / "hole", "w+b", 0) as file:
        file.truncate(16 * MIB)
        with mmap.mmap(file.fileno(), 16 * MIB) as view:
            for offset in range(0, 16 * MIB, 4096):
                view[offset] = 1
            refused(errno.ENOSPC, view.flush)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, os.O_DIRECT])
def test_a_write_that_waits_for_the_disk_is_refused_itself(mount: Mount, flag: int) -> None:
    refused(errno.ENOSPC, fill, mount.path / "hog")
    descriptor = os.open(mount.path / "f", os.O_CREAT | os.O_WRONLY | flag)
    with mmap.mmap(-1, MIB) as buffer:
        answers = [said(os.writev, descriptor, [buffer]) for _ in range(4)]
    os.close(descriptor)
    assert answers[-1] == "ENOSPC"


def test_a_volume_full_of_names_and_data_still_works_and_recovers(mount: Mount) -> None:
    path = mount.path
    fresh = free(mount)
    refused(errno.ENOSPC, fill, path / "hog")
    count = 0
    while (answer := said(os.mkdir, path / f"d{count}")) == "ok":
        count += 1
    assert answer == "ENOSPC"
    for turn in range(3):
        with open(path / "hog", "r+b", 0) as file:
            file.write(b"in place" * 5000)
            os.fsync(file.fileno())
        os.chmod(path / "hog", 0o600 + turn)
        os.rename(path / "d0", path / "d0 with a longer name")
        os.rename(path / "d0 with a longer name", path / "d0")
    mount.kill()
    mount.start()
    os.truncate(path / "hog", 5 * MIB + 1)
    os.unlink(path / "hog")
    for name in os.listdir(path):
        os.rmdir(path / name)
    assert os.listdir(path) == []
    os.sync()
    assert free(mount) > fresh * 0.9, "the log may have grown"
    refused(errno.ENOSPC, fill, path / "again")
    assert (path / "again").stat().st_blocks * 512 > 20 * MIB
