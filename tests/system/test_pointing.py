"""A long absence of the far site, with much data: the queue gives its copies up, and nothing is lost by it
when the mount is killed, what was pointed to is written over, and the far site comes back.
"""

import os
import random
from pathlib import Path
from typing import Any, Final

import pytest

from tests.system.kills import Ground, prepared

pytestmark = [pytest.mark.fuse]

MIB: Final = 1 << 20
DATA_MIB: Final = 200


def queue_disk_bytes(ground: Ground) -> int:
    """What the payloads of the queue take of the disk."""
    return sum(
        path.stat().st_blocks * 512 for path in (ground.directory / "primary/queue/segments").iterdir()
    )


def write_over(file: Path, chance: random.Random, times: int) -> None:
    """Blocks here and there, then an fsync."""
    with file.open("r+b", buffering=0) as opened:
        for _ in range(times):
            os.pwrite(opened.fileno(), chance.randbytes(4096), chance.randrange(DATA_MIB * 256) * 4096)
        os.fsync(opened.fileno())


def far_pair(ground: Ground) -> dict[str, Any]:
    """The asynchronous pair, as status shows it."""
    return next(pair for pair in ground.status()["pairs"] if pair["to"] == "async")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_queue_of_much_data_points_into_the_area(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with prepared(tmp_path / "volume", size="512MiB") as ground:
        file = ground.mountpoint / "file"
        ground.kill("async")
        with file.open("wb") as opened:
            for _ in range(DATA_MIB):
                opened.write(chance.randbytes(MIB))
            os.fsync(opened.fileno())
        assert queue_disk_bytes(ground) >= DATA_MIB * MIB
        ground.wait_for(lambda: queue_disk_bytes(ground) < 80 * MIB, "the copies to be given up")
        assert ground.status()["queue"]["bytes"] >= DATA_MIB * MIB, "all of it still waits"
        write_over(file, chance, 20)
        ground.kill("mount")
        ground.clear_mountpoint()
        ground.mount("primary")
        write_over(file, chance, 20)
        ground.start_sites(["async"])
        ground.follow("primary", "async")
        assert "the queue continues the far site" in far_pair(ground)["reason"], (
            "no comparing copy was needed"
        )
        ground.verify("primary,sync", "primary,async")
        ground.unmount()
        ground.check_sites()
