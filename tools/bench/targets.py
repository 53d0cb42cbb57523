"""What is measured: mounts that are set up, used and taken down. Each ends only what it started itself."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final

from jfs.mountpoint import mounted_file_system
from tools.demo.stage import SITES, Stage

VOLUME_SIZE: Final = "4GiB"
IMAGE_BYTES: Final = 4 << 30
_END_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.05
_GLUSTER_TRIES: Final = 20


def peak_memory_bytes(pid: int) -> int:
    """The most memory that a process had resident so far."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def is_mounted(mountpoint: Path) -> bool:
    """Whether anything is mounted here."""
    return mounted_file_system(os.path.realpath(mountpoint)) is not None


@contextmanager
def plain(place: Path) -> Iterator[Path]:
    """A directory of the disk itself: one copy, no FUSE."""
    directory = place / "plain"
    directory.mkdir()
    yield directory


@contextmanager
def _served(place: Path, name: str, command: Sequence[str], mountpoint: Path) -> Iterator[Path]:
    """A FUSE mount that a process in the foreground serves."""
    mountpoint.mkdir(exist_ok=True)
    stage = Stage(place)
    stage.logs.mkdir(exist_ok=True)
    process = stage.start(name, command)
    try:
        stage.wait_for(lambda: is_mounted(mountpoint), f"the mount of {name}", process, name)
        yield mountpoint
    finally:
        if is_mounted(mountpoint):
            subprocess.run(["fusermount3", "-u", str(mountpoint)], check=False)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
        stage.end(name)


@contextmanager
def passthrough(place: Path) -> Iterator[Path]:
    """A mount that only passes through: what the road through the kernel and Python costs anybody."""
    source, mountpoint = place / "source", place / "passthrough"
    source.mkdir()
    command = [sys.executable, "-P", "-m", "tools.bench.passthrough", str(source), str(mountpoint)]
    with _served(place, "passthrough", command, mountpoint) as mounted:
        yield mounted


@contextmanager
def bindfs(place: Path) -> Iterator[Path]:
    """bindfs, which passes through as well and is written in C."""
    source, mountpoint = place / "bindfs-source", place / "bindfs"
    source.mkdir()
    with _served(place, "bindfs", ["bindfs", "-f", str(source), str(mountpoint)], mountpoint) as mounted:
        yield mounted


@contextmanager
def fuse2fs(place: Path) -> Iterator[Path]:
    """fuse2fs: ext4 in a process of its own, on an image file."""
    image, mountpoint = place / "fuse2fs.img", place / "fuse2fs"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, stdin=subprocess.DEVNULL)
    with _served(place, "fuse2fs", ["fuse2fs", "-f", str(image), str(mountpoint)], mountpoint) as mounted:
        yield mounted


@contextmanager
def trisite_sites(place: Path, change: Callable[[Path], None] | None = None) -> Iterator[Stage]:
    """A trisite volume with its three sites on this machine, as `trisite init` leaves it, not mounted.

    `change` may change the configuration before it is used.
    """
    with Stage(place / "trisite") as stage:
        stage.trisite("init", str(stage.directory), "--size", VOLUME_SIZE, config=False)
        if change is not None:
            change(stage.config)
        for site in SITES:
            stage.start_site(site)
        stage.trisite("mkfs")
        yield stage


@contextmanager
def trisite(place: Path, change: Callable[[Path], None] | None = None) -> Iterator[Stage]:
    """The same, mounted."""
    with trisite_sites(place, change) as stage:
        stage.mount("primary")
        yield stage
        stage.unmount()


_GLUSTERD_VOLUME: Final = """volume management
    type mgmt/glusterd
    option working-directory {place}/work
    option run-directory {place}/run
    option glusterd-sockfile {place}/glusterd.sock
    option transport-type socket
    option transport.socket.read-fail-log off
    option transport.socket.listen-port 24007
    option ping-timeout 0
end-volume
"""


class _Gluster:
    """GlusterFS with two bricks, replica 2, in a network namespace of its own, in which only it listens."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.mountpoint = place / "mnt"
        for name in ("work", "run", "log", "brick-1", "brick-2", "mnt"):
            (place / name).mkdir(parents=True)
        self._glusterd: subprocess.Popen[bytes] | None = None

    def _command(self, *words: str) -> list[str]:
        assert self._glusterd is not None
        return ["nsenter", f"--net=/proc/{self._glusterd.pid}/ns/net", *words]

    def _gluster(self, *words: str) -> bool:
        """One command of gluster's; whether it went well."""
        command = ["gluster", f"--glusterd-sock={self.place}/glusterd.sock", "--mode=script"]
        command.append(f"--log-file={self.place}/log/cli.log")
        run = subprocess.run(
            self._command(*command, *words), check=False, capture_output=True, stdin=subprocess.DEVNULL
        )
        return run.returncode == 0

    def start(self) -> None:
        """Start the daemon, make and start the volume, mount it. CalledProcessError: it cannot be."""
        volume = self.place / "glusterd.vol"
        volume.write_text(_GLUSTERD_VOLUME.format(place=self.place))
        daemon = f"glusterd -N -f {volume} -l {self.place}/log/glusterd.log -p {self.place}/glusterd.pid"
        self._glusterd = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", f"ip link set lo up; exec {daemon}"],
            stdin=subprocess.DEVNULL,
        )
        host = socket.gethostname()  # gluster takes no "localhost" for a brick
        bricks = [f"{host}:{self.place}/brick-{number}" for number in (1, 2)]
        for _ in range(_GLUSTER_TRIES):  # until the daemon listens
            time.sleep(0.5)
            if self._gluster("volume", "create", "bench", "replica", "2", *bricks, "force"):
                break
        if not self._gluster("volume", "start", "bench"):
            raise subprocess.CalledProcessError(1, "gluster volume start")
        client = ["glusterfs", f"--volfile-server={host}", "--volfile-id=bench"]
        client += [f"--log-file={self.place}/log/mount.log", str(self.mountpoint)]
        subprocess.run(self._command(*client), check=True, stdin=subprocess.DEVNULL)
        for _ in range(_GLUSTER_TRIES):
            if is_mounted(self.mountpoint):
                return
            time.sleep(0.5)
        raise subprocess.CalledProcessError(1, client)

    def end(self) -> None:
        """Unmount, stop the volume, end the daemon and whatever still lives in its namespace."""
        if is_mounted(self.mountpoint):
            subprocess.run(["umount", str(self.mountpoint)], check=False)
        if self._glusterd is None:
            return
        self._gluster("volume", "stop", "bench", "force")
        namespace = os.readlink(f"/proc/{self._glusterd.pid}/ns/net")
        for pid in _processes_in(namespace):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self._glusterd.wait(_END_SECONDS)


def _processes_in(namespace: str) -> list[int]:
    """The processes in a network namespace, which is another one than this process's own."""
    found = []
    if namespace == os.readlink("/proc/self/ns/net"):
        return []
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and os.readlink(f"/proc/{name}/ns/net") == namespace:
                found.append(int(name))
    return found


@contextmanager
def gluster(place: Path) -> Iterator[Path]:
    """GlusterFS: two synchronous replicas, which is what somebody would take instead."""
    peer = _Gluster(place / "gluster")
    try:
        peer.start()
        yield peer.mountpoint
    finally:
        peer.end()


# The other file systems, and the programs without which there are none.
PEERS: Final[dict[str, tuple[Callable[[Path], AbstractContextManager[Path]], tuple[str, ...]]]] = {
    "bindfs": (bindfs, ("bindfs",)),
    "fuse2fs": (fuse2fs, ("fuse2fs", "mkfs.ext4")),
    "gluster-r2": (gluster, ("glusterd", "gluster", "glusterfs", "unshare", "nsenter", "ip")),
}


def installed_peers() -> dict[str, Callable[[Path], AbstractContextManager[Path]]]:
    """Those of PEERS that this machine can run: their programs are there, and this process is root."""
    if os.geteuid() != 0:
        return {}
    return {name: make for name, (make, programs) in PEERS.items() if all(map(shutil.which, programs))}
