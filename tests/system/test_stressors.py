"""Programs made to break file systems, on the volume at three sites: fio, stress-ng, dbench, bonnie++.

Debian packages that trisite itself does not need; a test whose program is missing says so and is skipped.
After each: the program found nothing wrong, the sites agree, and fsck finds nothing at any of them.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_seed
from tests.system.kills import Ground, prepared

pytestmark = [pytest.mark.fuse, pytest.mark.soak, pytest.mark.timeout(900)]

LIMIT_SECONDS = 400  # of one program: it hangs
FIO_BASE = (
    "--name=job --fallocate=none --verify_fatal=1 --do_verify=1 --verify_state_save=0 --unlink=0 "
    "--verify=crc32c --end_fsync=1 --group_reporting --minimal"
)
FIO = {
    "sequential": "--ioengine=psync --rw=write --bs=1m --size=96m",
    "sequential-unaligned": "--ioengine=psync --rw=write --bsrange=1k-37k --bs_unaligned=1 --size=24m",
    "random": "--ioengine=psync --rw=randrw --bsrange=4k-64k --size=48m --fdatasync=32",
    "random-synchronous": "--ioengine=psync --rw=randwrite --bs=4k --size=2m --sync=1",
    "several-jobs": "--ioengine=psync --rw=randrw --bs=8k --size=12m --numjobs=4 --fsync=64",
    "many-files": "--ioengine=psync --rw=randwrite --bs=4k --size=16m --nrfiles=200 --openfiles=40",
    "direct-sequential": "--ioengine=libaio --iodepth=8 --direct=1 --rw=write --bs=128k --size=64m",
    "direct-random": "--ioengine=libaio --iodepth=8 --direct=1 --rw=randrw --bs=4k --size=12m",
    "posixaio": "--ioengine=posixaio --iodepth=8 --rw=randwrite --bs=16k --size=24m",
    "mmap-sequential": "--ioengine=mmap --rw=write --bs=64k --size=48m",
    "mmap-random": "--ioengine=mmap --rw=randrw --bs=4k --size=24m",
    "overwritten": "--ioengine=psync --rw=randwrite --bs=4k --size=8m --loops=3",
}

# Left out of stress-ng's class "filesystem", because they do nothing to the file system they run on:
# binderfs, bind-mount, procfs (other file systems), dup, eventfd, ioprio (no file system at all).
# Left out because pyfuse3 has no such call: chattr, file-ioctl, inode-flags, verity (ioctl); fallocate,
# fpunch, fsize (fallocate; stress-ng writes instead, and then finds that it could); fiemap.
# docs/posix.md says what a program sees instead; tests/posix looks at that.
STRESSORS = {
    "names": ("dentry", "dir", "dirdeep", "dirmany", "filename", "getdent", "link", "rename", "symlink"),
    "attributes": ("access", "chdir", "chmod", "chown", "fstat", "handle", "mknod", "open", "utime", "xattr"),
    "data": ("aio", "copy-file", "hdd", "io", "iomix", "readahead", "revio", "seek", "sendfile", "sync-file"),
    "maps": ("mmap", "msync", "fault"),
    "locks": ("fcntl", "flock", "locka", "lockf", "lockofd", "lease"),
    "watchers": ("dnotify", "fanotify", "inotify", "touch"),
}
STRESS_SECONDS = 4
STRESS_OPTIONS = {
    "mmap": "--mmap-file --mmap-bytes 16m",
    "hdd": "--hdd-bytes 32m",
    "iomix": "--iomix-bytes 4m --timeout 12s",
    "sync-file": "--sync-file-bytes 16m",
    # ext4 refuses after a few attributes; here one round sets, reads and removes some thousands.
    "xattr": "--xattr-ops 1 --timeout 90s",
}
NOT_THERE = 4  # how stress-ng says that the kernel or the file system has no such thing


def needed(program: str) -> str:
    """The path of a program; without it the test is skipped."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: apt-get install {program}), so it is not run here")
    return found


def run(place: Path, *command: str, codes: tuple[int, ...] = (0,)) -> str:
    """What a program says; it must end with one of `codes`."""
    done = subprocess.run(
        command,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode in codes, (
        f"{' '.join(command)} in {place} ended with {done.returncode}: {done.stdout}"
    )
    return done.stdout


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Three sites and a mount; afterwards the sites agree and each of them is sound."""
    print(f"seed {run_seed()}")
    with prepared(tmp_path / "volume", size="2GiB") as ground:
        yield ground
        assert ground.is_mounted()
        ground.follow("primary", "sync", "async")
        ground.verify("primary,sync", "sync,async")
        ground.unmount()
        ground.check_sites()


@pytest.fixture
def place(ground: Ground) -> Path:
    """A directory on the mounted file system."""
    place = ground.mountpoint / "stress"
    place.mkdir()
    return place


@pytest.mark.parametrize("job", FIO)
def test_fio_reads_what_it_wrote(job: str, place: Path) -> None:
    fio = needed("fio")
    words = [*FIO_BASE.split(), *FIO[job].split(), f"--directory={place}", f"--randseed={run_seed()}"]
    said = run(place, fio, *words)
    assert "verify:" not in said
    values = said.strip().splitlines()[-1].split(";")
    assert values[4] == "0", f"fio counts errors: {said}"
    print(f"fio {job}: read {int(values[6])} KiB/s, written {int(values[47])} KiB/s")


@pytest.mark.parametrize("family", STRESSORS)
def test_stress_ng_finds_nothing_wrong(family: str, place: Path) -> None:
    program = needed("stress-ng")
    common = ["--timeout", f"{STRESS_SECONDS}s", "--verify", "--metrics", "--temp-path", str(place)]
    common += ["--seed", str(run_seed())]
    wrong = []
    for stressor in STRESSORS[family]:
        options = STRESS_OPTIONS.get(stressor, "").split()  # the later of two time limits holds
        words = [f"--{stressor}", "2", *common, *options]
        said = run(place, program, *words, codes=(0, 1, 2, 3, NOT_THERE))
        operations = re.search(rf"\b{stressor} +(\d+) +\d", said)
        count = int(operations.group(1)) if operations else 0
        print(f"stress-ng {stressor}: {count} operations")
        if "fail:" in said or "unsuccessful" in said or not count:
            wrong.append(f"{stressor}: {said}")
        assert not list(place.iterdir()), f"{stressor} could not remove what it made"
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("options", ["-t 25 -x", "-t 20 -F -S"], ids=["attributes", "synchronous"])
def test_dbench(options: str, place: Path) -> None:
    program = needed("dbench")
    said = run(place, program, *options.split(), "-D", str(place), "4")
    said = said.replace("failed to create barrier semaphore", "")  # it then waits in another way
    assert "Throughput" in said
    assert not re.search(r"(?i)\b(failed|error)\b", said), said
    print(said.strip().splitlines()[-1])


def test_bonnie(place: Path) -> None:
    program = needed("bonnie++")
    sizes = ["-s", "128", "-r", "64", "-n", "2:8192:0:4"]
    said = run(
        place, program, "-d", str(place), "-u", "root", *sizes, "-z", str(run_seed() & 0x7FFF_FFFF), "-q"
    )
    assert not re.search(r"(?i)\b(can't|error|failed|drastic)", said), said
    assert not list(place.iterdir())
    print(said.strip().splitlines()[-1])
