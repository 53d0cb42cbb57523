"""jfs mounted on a plain file, and short words for what tests ask of a mounted file system."""

import ctypes
import errno
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "jfs"
NOBODY = 65534
START_SECONDS = 100
END_SECONDS = 100


class Mount:
    """A volume in a file and the process that mounts it. Ends only that process and that mount."""

    def __init__(self, place: Path) -> None:
        self.image = place / "image"
        self.path = place / "mnt"
        self.path.mkdir()
        self.log = place / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, size: str | None = None, options: str = "allow_other") -> None:
        command = [sys.executable, "-m", "jfs.run_plain", str(self.image), str(self.path), "-o", options]
        command += ["--mkfs", size] if size else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while "mounted" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def ended(self) -> int:
        """Wait for the process to end; its exit status."""
        assert self.process is not None
        status = self.process.wait(END_SECONDS)
        self.process = None
        return status

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)
        assert self.ended() == 0, self.log.read_text()

    def kill(self) -> None:
        """What a crash of the mount process leaves: nothing is written back, the mount is dead but there."""
        assert self.process is not None
        self.process.kill()
        self.ended()
        refused(errno.ENOTCONN, os.listdir, self.path)

    def remount(self) -> None:
        self.unmount()
        self.start()

    def clear_away(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(END_SECONDS)
        if f" {self.path} " in Path("/proc/self/mountinfo").read_text():
            subprocess.run(["umount", "-l", str(self.path)], check=False)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def as_nobody(work: Callable[[], None]) -> None:
    """Do something in a child process without privileges; its assertions count."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refused(code: int, call: Callable[..., object], *args: object) -> None:
    got = 0
    try:
        call(*args)
    except OSError as error:
        got = error.errno or 0
    assert errno.errorcode.get(got) == errno.errorcode[code]


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, bytes(old), -100, bytes(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
