"""What a take-over copies depends on what had not been shipped, not on the size of the volume."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.system.kills import Ground

FILES = 120
FILE_BYTES = 60_000
SIZES = ("1GiB", "16GiB", "1TiB")

pytestmark = pytest.mark.fuse


def put(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lose_primary(directory: Path, size: str) -> tuple[dict[str, Any], int]:
    """The same work on a volume of this size, the far site away for half of it; the take-over's report.

    Also the bytes that waited in the queue when the primary site was killed.
    """
    rng = random.Random(7)
    with Ground(directory, size=size) as ground:
        ground.prepare()
        for number in range(FILES):
            put(ground.mountpoint / f"shipped-{number}", rng.randbytes(FILE_BYTES))
        ground.wait_for(lambda: ground.answer("status")["queue"]["entries"] == 0, "an empty queue")
        ground.kill("async")
        for number in range(FILES):
            put(ground.mountpoint / f"waiting-{number}", rng.randbytes(FILE_BYTES))
            put(ground.mountpoint / f"shipped-{number % 10}", rng.randbytes(FILE_BYTES))
        waiting_bytes = int(ground.answer("status")["queue"]["bytes"])
        ground.kill("mount", "primary")
        ground.start_sites(["async"])
        report = ground.answer("failover", "--to", "sync", "--yes")
        ground.verify("sync,async")
    return report, waiting_bytes


def test_bytes_copied_do_not_grow_with_the_volume(tmp_path: Path) -> None:
    reports = {}
    for size in SIZES:
        report, waiting_bytes = lose_primary(tmp_path / size, size)
        assert report["lost"] == 0
        assert report["recovery"] == "done"
        # The files that waited are new blocks: nearly all of what waited must travel, overwrites only once.
        assert FILES * FILE_BYTES <= report["bytes_copied"] <= waiting_bytes
        reports[size] = report
        print(
            size,
            {key: report[key] for key in ("files_listed", "bytes_listed", "bytes_copied")},
            waiting_bytes,
        )
    copied = [reports[size]["bytes_copied"] for size in SIZES]
    assert max(copied) <= min(copied) * 1.1
