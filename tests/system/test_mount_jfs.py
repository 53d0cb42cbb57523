"""jfs on a plain file, mounted for real: what programs do to it, and what is left when its process dies."""

import errno
import mmap
import os
import random
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.plain_mount import NOBODY, ROOT, SOURCES, Mount, as_nobody, refused, renameat2, run

pytestmark = pytest.mark.fuse


@pytest.fixture
def mount() -> Iterator[Mount]:
    # Not below pytest's own directory, which nobody but root may enter.
    with tempfile.TemporaryDirectory(prefix="trisite-") as name:
        Path(name).chmod(0o755)
        found = Mount(Path(name))
        try:
            found.start(size="512M")
            yield found
        finally:
            found.clear_away()


def test_a_tree_of_files_survives_copy_archive_and_remount(mount: Mount) -> None:
    copy, unpacked = mount.path / "copy", mount.path / "unpacked"
    run("cp", "-a", SOURCES, copy)
    run("diff", "-r", SOURCES, copy)
    run("tar", "-C", mount.path, "-cf", mount.path / "x.tar", "copy")
    unpacked.mkdir()
    run("tar", "-C", unpacked, "-xf", mount.path / "x.tar")
    before = run("find", ".", "-printf", "%p %y %s %m %n %T@ %U\n", cwd=unpacked)
    mount.remount()
    run("diff", "-r", copy, unpacked / "copy")
    assert run("find", ".", "-printf", "%p %y %s %m %n %T@ %U\n", cwd=unpacked) == before
    for name in ("copy", "unpacked"):
        run("rm", "-rf", mount.path / name)
    assert os.listdir(mount.path) == ["x.tar"]
    assert os.stat(mount.path).st_nlink == 2


def test_git_and_the_compiler(mount: Mount) -> None:
    if shutil.which("git") is None or shutil.which("gcc") is None:
        pytest.skip("git or gcc is not installed")
    work = mount.path / "work"
    run("git", "init", "-q", work)
    (work / "a.c").write_text('#include <stdio.h>\nint main(void) { puts("it runs"); return 0; }\n')
    run("gcc", "-O1", "-o", "a", "a.c", cwd=work)
    assert run(work / "a") == "it runs\n"
    run("git", "add", "-A", cwd=work)
    run("git", "-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "first", cwd=work)
    run("git", "clone", "-q", work, mount.path / "clone")
    mount.remount()
    run("git", "fsck", "--strict", cwd=mount.path / "clone")
    assert run("git", "status", "--porcelain", cwd=work) == ""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_keeps_what_it_has_committed(mount: Mount, mode: str) -> None:
    path = mount.path / "db"
    db = sqlite3.connect(path)
    db.execute(f"pragma journal_mode={mode}")
    db.execute("pragma synchronous=extra")  # also syncs the directory when the journal goes
    db.execute("create table t (n integer primary key, text)")
    for number in range(30):
        with db:
            db.execute("insert into t values (?, ?)", (number, "x" * 1000))
    mount.kill()
    db.close()
    mount.start()
    db = sqlite3.connect(path)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert db.execute("select count(*), sum(n) from t").fetchone() == (30, sum(range(30)))
    db.close()


def test_a_killed_mount_keeps_what_was_synced_and_drops_orphans(mount: Mount) -> None:
    kept = mount.path / "d" / "kept"
    kept.parent.mkdir()
    descriptor = os.open(kept, os.O_CREAT | os.O_RDWR, 0o640)
    os.write(descriptor, b"k" * 300_000)
    os.fsync(descriptor)
    before = os.statvfs(mount.path).f_bfree
    orphan = os.open(mount.path / "orphan", os.O_CREAT | os.O_RDWR)
    os.write(orphan, b"o" * 1_000_000)
    os.unlink(mount.path / "orphan")
    os.fsync(orphan)
    mount.kill()
    for number in (orphan, descriptor):
        refused(errno.ENOTCONN, os.close, number)
    mount.start()
    assert kept.read_bytes() == b"k" * 300_000
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640
    assert os.listdir(mount.path) == ["d"]
    os.sync()
    assert os.statvfs(mount.path).f_bfree >= before - 16


def test_an_open_file_without_a_name(mount: Mount) -> None:
    with open(mount.path / "f", "w+b") as file:
        os.unlink(mount.path / "f")
        file.write(b"x" * 200_000)
        file.flush()
        file.seek(0)
        assert file.read() == b"x" * 200_000
        assert os.fstat(file.fileno()).st_nlink == 0
        (mount.path / "f").write_text("another")
    assert (mount.path / "f").read_text() == "another"


def test_special_files_and_links(mount: Mount) -> None:
    path = mount.path
    os.mkfifo(path / "fifo")
    os.mknod(path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "sock"))
    (path / "a").write_text("a")
    os.link(path / "a", path / "b")
    os.symlink("t" * 4000, path / "long")
    mount.remount()
    assert stat.S_ISFIFO(os.lstat(path / "fifo").st_mode)
    assert stat.S_ISSOCK(os.lstat(path / "sock").st_mode)
    assert os.lstat(path / "null").st_rdev == os.makedev(1, 3)
    assert (path / "null").read_bytes() == b""
    assert os.stat(path / "a").st_ino == os.stat(path / "b").st_ino
    assert os.stat(path / "a").st_nlink == 2
    assert os.readlink(path / "long") == "t" * 4000
    refused(errno.ENAMETOOLONG, (path / ("n" * 256)).touch)
    (path / ("n" * 255)).touch()


def test_renames(mount: Mount) -> None:
    path = mount.path
    for name in ("a", "b"):
        (path / name).write_text(name)
    refused(errno.EEXIST, renameat2, path / "a", path / "b", 1)
    renameat2(path / "a", path / "b", 2)
    assert ((path / "a").read_text(), (path / "b").read_text()) == ("b", "a")
    os.makedirs(path / "d" / "e" / "f")
    refused(errno.EINVAL, os.rename, path / "d", path / "d" / "e" / "x")
    refused(errno.ENOTEMPTY, os.rename, path / "d" / "e" / "f", path / "d")
    os.mkdir(path / "empty")
    os.rename(path / "d" / "e", path / "empty")
    assert os.listdir(path / "empty") == ["f"]
    refused(errno.ENOTDIR, os.rename, path / "d", path / "a")
    refused(errno.EISDIR, os.rename, path / "a", path / "d")


def test_a_name_that_is_replaced_all_the_time_is_always_there(mount: Mount) -> None:
    target = mount.path / "current"
    target.write_text("0" * 10_000)
    over = threading.Event()

    def replace(number: int) -> None:
        for turn in range(60):
            new = mount.path / f"new{number}"
            new.write_text(str(turn % 10) * 10_000)
            os.replace(new, target)

    def look() -> int:
        seen = 0
        while not over.is_set():
            text = target.read_text()
            assert len(text) == 10_000
            assert len(set(text)) == 1
            seen += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        writing = [pool.submit(replace, number) for number in range(2)]
        for writer in writing:
            writer.result()
        over.set()
        assert all(looker.result() > 0 for looker in looking)
    assert os.listdir(mount.path) == ["current"]


def test_random_reads_writes_maps_and_cuts_match_a_plain_file(
    mount: Mount, tmp_path: Path, seed: int
) -> None:
    """The same steps on our file and on one beside the mount; now and then everything is remounted."""
    chance = random.Random(seed)
    ours, plain = mount.path / "f", tmp_path / "f"
    for round_ in range(4):
        with (
            open(ours, "r+b" if round_ else "w+b", 0) as one,
            open(plain, "r+b" if round_ else "w+b", 0) as two,
        ):
            for _ in range(150):
                offset, length = chance.randrange(300_000), chance.randrange(1, 70_000)
                data = chance.randbytes(length)
                match chance.randrange(6):
                    case 0 | 1:
                        assert os.pwrite(one.fileno(), data, offset) == os.pwrite(two.fileno(), data, offset)
                    case 2:
                        assert os.pread(one.fileno(), length, offset) == os.pread(
                            two.fileno(), length, offset
                        )
                    case 3:
                        for file in (one, two):
                            file.truncate(offset)
                    case 4:
                        os.fsync(one.fileno())
                    case 5 if (size := os.fstat(two.fileno()).st_size) > 0:
                        place = chance.randrange(size)
                        for file in (one, two):
                            with mmap.mmap(file.fileno(), size) as view:
                                view[place : place + 5] = data[:5].ljust(5, b"m")[: size - place]
        assert ours.read_bytes() == plain.read_bytes()
        mount.remount()
        assert ours.read_bytes() == plain.read_bytes()


def test_sparse_files_and_direct_writes(mount: Mount) -> None:
    path = mount.path / "sparse"
    with open(path, "w+b") as file:
        file.truncate(1 << 40)
        os.pwrite(file.fileno(), b"far", 1 << 39)
    assert path.stat().st_blocks * 512 <= 8192
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as buffer:
        buffer[:] = b"d" * 8192
        assert os.pwrite(descriptor, buffer, 4096) == 8192
        assert os.preadv(descriptor, [buffer], (1 << 39) - 4096) == 8192
        assert buffer[4096:4099] == b"far"
    os.close(descriptor)
    mount.remount()
    with open(path, "rb") as file:
        assert os.pread(file.fileno(), 4098, 4095) == b"\0" + b"d" * 4097
        assert os.pread(file.fileno(), 3, 1 << 39) == b"far"
    os.truncate(path, 2**62)
    assert path.stat().st_size == 2**62


def test_times_and_attributes(mount: Mount) -> None:
    path = mount.path / "f"
    path.write_text("x")
    times = (-(10**18) - 7, 253_402_300_800 * 10**9 + 5)
    os.utime(path, ns=times)
    for name in ("user.a", "trusted.b", "security.c"):
        os.setxattr(path, name, name.encode() * 100)
    refused(errno.EEXIST, os.setxattr, path, "user.a", b"", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, path, "user.z", b"", os.XATTR_REPLACE)
    refused(errno.ENODATA, os.getxattr, path, "user.z")
    refused(errno.E2BIG, os.setxattr, path, "user.big", b"x" * 5000)
    mount.remount()
    found = path.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == times
    assert set(os.listxattr(path)) == {"user.a", "trusted.b", "security.c"}
    assert os.getxattr(path, "user.a") == b"user.a" * 100
    os.removexattr(path, "user.a")
    assert "user.a" not in os.listxattr(path)


def test_the_kernel_holds_users_to_their_rights(mount: Mount) -> None:
    os.chmod(mount.path, 0o1777)
    private, public = mount.path / "private", mount.path / "public"
    private.write_text("secret")
    private.chmod(0o600)
    public.write_text("open")
    public.chmod(0o6777)
    (mount.path / "team").mkdir()
    os.chown(mount.path / "team", 0, 4242)
    (mount.path / "team").chmod(0o2777)

    def work() -> None:
        refused(errno.EACCES, private.read_text)
        refused(errno.EPERM, os.unlink, private)  # the sticky bit
        refused(errno.EPERM, os.chmod, public, 0o777)
        with public.open("r+") as file:
            file.write("by nobody")
            file.flush()
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o777, "a write clears setuid and setgid"
        (mount.path / "team" / "mine").write_text("x")
        assert (mount.path / "team" / "mine").stat().st_gid == 4242

    as_nobody(work)
    assert public.read_text() == "by nobody"
    mount.remount()
    assert stat.S_IMODE(public.stat().st_mode) == 0o777
    public.chmod(0o4755)
    with public.open("r+") as file:
        file.write("by root, who may")
    assert stat.S_IMODE(public.stat().st_mode) == 0o4755
    os.chown(public, 5, 5)
    assert stat.S_IMODE(public.stat().st_mode) == 0o755


def test_access_control_lists(mount: Mount) -> None:
    os.chmod(mount.path, 0o777)
    place = mount.path / "d"
    place.mkdir()
    place.chmod(0o755)

    def value(permissions: int) -> bytes:
        nobody = 0xFFFFFFFF
        entries = (
            (1, 7, nobody),
            (2, permissions, NOBODY),
            (4, 5, nobody),
            (0x10, 7, nobody),
            (0x20, 0, nobody),
        )
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

    os.setxattr(place, "system.posix_acl_access", value(7))
    os.setxattr(place, "system.posix_acl_default", value(6))
    assert stat.S_IMODE(place.stat().st_mode) == 0o770
    # The kernel takes the umask away before it asks us, although a default ACL should stand in its place.
    old = os.umask(0)
    (place / "shared").write_text("x")
    os.umask(old)

    def work() -> None:
        (place / "mine").write_text("made with the help of an ACL")
        (place / "shared").write_text("inherited right to write")

    as_nobody(work)
    assert os.getxattr(place / "shared", "system.posix_acl_access") != b""
    mount.remount()
    assert (place / "shared").read_text() == "inherited right to write"
    place.chmod(0o700)
    with pytest.raises(AssertionError):
        as_nobody(lambda: (place / "no").touch())


def test_a_full_volume_is_reported_and_usable_again(mount: Mount) -> None:
    mount.unmount()
    mount.image.unlink()
    mount.start(size="24M")
    hog = mount.path / "hog"

    def fill() -> None:
        with open(hog, "wb") as file:
            file.writelines([b"h" * (1 << 20)] * 40)
            file.flush()
            os.fsync(file.fileno())

    refused(errno.ENOSPC, fill)
    (mount.path / "still").mkdir()
    hog.unlink()
    (mount.path / "again").write_bytes(b"a" * (8 << 20))
    mount.remount()
    assert (mount.path / "again").read_bytes() == b"a" * (8 << 20)


def test_listing_a_large_directory_while_it_shrinks(mount: Mount) -> None:
    for number in range(2000):
        (mount.path / f"{number:04}").touch()
    seen = []
    with os.scandir(mount.path) as listing:
        for entry in listing:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == [f"{number:04}" for number in range(2000)]
    assert os.listdir(mount.path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_keeps_what_was_written(mount: Mount, number: signal.Signals) -> None:
    (mount.path / "f").write_bytes(b"not synced" * 100_000)
    assert mount.process is not None
    mount.process.send_signal(number)
    assert mount.ended() == 0, mount.log.read_text()
    assert os.listdir(mount.path) == []
    mount.start()
    assert (mount.path / "f").read_bytes() == b"not synced" * 100_000


def test_a_signal_ends_a_mount_in_use_without_losing_what_was_written(mount: Mount) -> None:
    descriptor = os.open(mount.path / "f", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, b"x" * 100_000)
    assert mount.process is not None
    mount.process.send_signal(signal.SIGTERM)
    assert mount.ended() == 0, mount.log.read_text()
    refused(errno.ENOTCONN, os.close, descriptor)
    mount.start()
    assert (mount.path / "f").read_bytes() == b"x" * 100_000


def test_what_cannot_be_mounted_is_refused_in_one_sentence(mount: Mount, tmp_path: Path) -> None:
    other = tmp_path / "other"
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    cases = {
        mount.path: "is a mount point already",
        tmp_path / "missing": "does not exist",
        full: "is not empty",
        full / "file": "is not a directory",
    }
    for place, sentence in cases.items():
        done = subprocess.run(
            [sys.executable, "-m", "jfs.run_plain", other, place, "--mkfs", "16M"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = subprocess.run(
        [sys.executable, "-m", "jfs.run_plain", mount.image, full],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "in use by another process" in done.stderr


def test_a_read_only_mount_changes_nothing(mount: Mount) -> None:
    (mount.path / "f").write_text("x")
    mount.unmount()
    before = mount.image.read_bytes()
    mount.start(options="ro")
    assert (mount.path / "f").read_text() == "x"
    refused(errno.EROFS, (mount.path / "g").touch)
    mount.unmount()
    assert mount.image.read_bytes() == before


def test_the_mount_table_says_what_it_is(mount: Mount) -> None:
    lines = [line for line in Path("/proc/mounts").read_text().splitlines() if str(mount.path) in line]
    source, path, kind, options = lines[0].split(" ")[:4]
    assert (source, path, kind) == (str(mount.image), str(mount.path), "fuse.trisite")
    assert {"default_permissions", "allow_other", "rw"} <= set(options.split(","))
    assert not {"nosuid", "nodev"} & set(options.split(","))
