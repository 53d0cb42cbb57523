"""What must hold before a mount is tried, said in one clear sentence when it does not. Imports nothing of
libfuse.
"""

import errno
import os
import shutil
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FUSE_DEVICE = Path("/dev/fuse")
FUSERMOUNT = "fusermount3"
MOUNT_TABLE = Path("/proc/self/mountinfo")
MOUNT_TYPE = "fuse.trisite"
ANSWER_SECONDS = 3.0
READ_AHEAD_KIB = 1024


class MountRefused(Exception):
    """The mount cannot be made; the message is one sentence for the operator: what, why, and what to do."""


class FuseUnusable(MountRefused):
    """This machine or this user cannot make FUSE mounts at all."""


class UnknownOption(MountRefused):
    """What -o says is not known: a mistake in the command, not in the state of anything."""


# What -o may say and the kernel understands; the rest is ours or refused.
KERNEL_OPTIONS = frozenset(
    {
        "allow_other",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "dirsync",
    }
)


@dataclass(frozen=True)
class MountOptions:
    """How to mount: `fsname` is what the mount table shows as the source, `kernel` goes to the kernel as it
    is.
    """

    fsname: str = "trisite"
    kernel: frozenset[str] = frozenset()
    max_tasks: int = 200

    @property
    def read_only(self) -> bool:
        """True if nothing may be changed through the mount."""
        return "ro" in self.kernel

    @property
    def relatime(self) -> bool:
        """False if reading shall leave access times alone."""
        return "noatime" not in self.kernel and not self.read_only

    def words(self) -> set[str]:
        """The options for libfuse. Root gets working devices and setuid programs unless it says otherwise."""
        chosen = set(self.kernel) - {"rw", "atime"}
        if os.geteuid() == 0:
            chosen |= {yes for yes in ("suid", "dev") if f"no{yes}" not in chosen}
        # A comma or a backslash in a name would end it.
        fsname = self.fsname.replace("\\", "\\\\").replace(",", "\\,")
        return chosen | {"default_permissions", "subtype=trisite", f"fsname={fsname}"}


def parse_options(text: str, fsname: str = "trisite") -> MountOptions:
    """The options of ``-o a,b,c``; of two opposites the later holds. UnknownOption names an unknown one."""
    chosen: set[str] = set()
    for word in filter(None, text.split(",")):
        if word not in KERNEL_OPTIONS:
            known = ", ".join(sorted(KERNEL_OPTIONS))
            raise UnknownOption(f"the mount option {word!r} is not known; known are {known}")
        chosen.discard(opposite(word))
        chosen.add(word)
    return MountOptions(fsname=fsname, kernel=frozenset(chosen))


def opposite(word: str) -> str:
    """What a mount option takes back: of two that contradict one another the last holds, as with mount(8)."""
    if word in {"ro", "rw"}:
        return "rw" if word == "ro" else "ro"
    return word[2:] if word.startswith("no") else f"no{word}"


def check_mountpoint(path: str) -> str:
    """The absolute, resolved mount point if it is an empty directory on which nothing is mounted.

    What a trisite mount process that died has left there is taken away: mounting again is the way to recover.
    MountRefused if it is missing, no directory, in use as a mount point, not empty, or cannot be read.
    """
    resolved = os.path.realpath(path)
    if is_dead_mount(resolved):
        subprocess.run([FUSERMOUNT, "-u", "-z", resolved], check=False, capture_output=True)
    # The mount table comes first: a dead FUSE mount answers stat() with ENOTCONN.
    if mounted_file_system(resolved) is not None:
        raise MountRefused(f"{path} is a mount point already; unmount it first: trisite umount {path}")
    try:
        mode = os.stat(resolved).st_mode
        if not stat.S_ISDIR(mode):
            raise MountRefused(f"{path} is not a directory; name an empty directory to mount on")
        with os.scandir(resolved) as listing:
            if next(listing, None) is not None:
                raise MountRefused(
                    f"{path} is not empty; mounting would hide what it holds, name an empty directory"
                )
    except FileNotFoundError:
        raise MountRefused(f"{path} does not exist; make the directory first: mkdir -p {path}") from None
    except OSError as error:
        raise MountRefused(f"{path} cannot be used as a mount point: {error.strerror}") from None
    return resolved


def is_dead_mount(resolved: str) -> bool:
    """Is a trisite file system mounted here whose mount process has died?"""
    if mounted_file_system(resolved) != MOUNT_TYPE:
        return False
    try:
        # In another process: one that lives but does not answer would hold this one up for ever.
        answer = subprocess.run(
            ["stat", resolved], env={**os.environ, "LC_ALL": "C"}, capture_output=True, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return os.strerror(errno.ENOTCONN).encode() in answer.stderr


def check_fuse() -> None:
    """FuseUnusable if this machine or this user cannot make FUSE mounts."""
    if not FUSE_DEVICE.exists():
        raise FuseUnusable(
            f"{FUSE_DEVICE} does not exist, so nothing can be mounted here; load the module (modprobe fuse) "
            f"or, in a container, pass the device in; everything but mount works without it"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise FuseUnusable(
            f"{FUSE_DEVICE} may not be opened by this user; mount as root or allow access to it"
        )
    if shutil.which(FUSERMOUNT) is None:
        raise FuseUnusable(f"{FUSERMOUNT} is not installed; install the package fuse3")


def mounted_file_system(path: str, table: Path | None = None) -> str | None:
    """The type of the newest mount whose mount point is exactly this resolved path, or None. Reads only the
    table.
    """
    found = _newest_mount(path, table)
    return None if found is None else found[1]


def device_number(path: str, table: Path | None = None) -> str | None:
    """``major:minor`` of the newest mount at this resolved path, or None; asks nothing of the file system
    itself.
    """
    found = _newest_mount(path, table)
    return None if found is None else found[0]


def wait_for_answer(path: str) -> None:
    """Ask a fresh mount once (the kernel answers when it is set up), then let the kernel read further ahead
    than 128 KiB, which is a matter for root and worth a try only. Waits: not for an event loop.
    """
    os.statvfs(path)
    number = device_number(path)
    with suppress(OSError):
        Path(f"/sys/class/bdi/{number}/read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n", encoding="ascii")


def _newest_mount(path: str, table: Path | None) -> tuple[str, str] | None:
    """(``major:minor``, file system type) of the last line of the mount table for this path."""
    newest = None
    for line in (table or MOUNT_TABLE).read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        if _unescape(parts[4]) == path:
            newest = (parts[2], rest.split(" ")[0])
    return newest


def _unescape(field: str) -> str:
    """A path of the mount table, where space, tab, newline and backslash are written in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
