"""The two file systems that are compared: trisite mounted on a plain file, and ext4 on a loop device.

Where no loop device can be had the oracle is a tmpfs.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.plain_mount import Mount

OURS_SIZE = "256M"
EXT4_BYTES = 128 << 20


@dataclass(frozen=True)
class Pair:
    """Where checks run: ours and the oracle, and what the oracle is."""

    ours: Path
    oracle: Path
    oracle_type: str


@contextmanager
def both_mounted() -> Iterator[Pair]:
    """Mount both; unmount both at the end, whatever happened."""
    # Not below pytest's own directory, which nobody but root may enter.
    with tempfile.TemporaryDirectory(prefix="trisite-posix-") as name:
        place = Path(name)
        place.chmod(0o755)
        mount = Mount(place)
        try:
            mount.start(size=OURS_SIZE)
            with _oracle(place) as (oracle, oracle_type):
                yield Pair(mount.path, oracle, oracle_type)
            mount.unmount()
        finally:
            mount.clear_away()


@contextmanager
def _oracle(place: Path) -> Iterator[tuple[Path, str]]:
    path = place / "oracle"
    path.mkdir()
    oracle_type = "ext4" if _mount_ext4(place / "ext4", path) else "tmpfs"
    if oracle_type == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], check=True)
    try:
        path.chmod(0o755)
        yield path, oracle_type
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def _mount_ext4(image: Path, path: Path) -> bool:
    if shutil.which("mkfs.ext4") is None:
        return False
    with image.open("wb") as file:
        file.truncate(EXT4_BYTES)
    made = subprocess.run(
        ["mkfs.ext4", "-q", "-b", "4096", "-I", "256", str(image)], capture_output=True, check=False
    )
    command = ["mount", "-o", "loop,acl,user_xattr,relatime", str(image), str(path)]
    return made.returncode == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
