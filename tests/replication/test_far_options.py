"""The options of the far link between running sites: kept, reported, and in nobody's way."""

import time
from pathlib import Path

import trio

from replication.config import SITE_NAMES
from replication.creating import create_volume
from replication.status import Status, collect
from replication.verify import verify
from tests.replication.cluster import Cluster, running, wait_until

LIMIT = 1 << 20

PROGRAM = """
import os
from jfs.filesystem import FileSystem
from stat import S_IFREG
fs = FileSystem(store)
async def work():
    noise, words = fs.make(1, b"noise", S_IFREG | 0o644).ino, fs.make(1, b"words", S_IFREG | 0o644).ino
    for part in range(4):
        fs.write(noise, part << 20, os.urandom(1 << 20))
    for part in range(16):
        fs.write(words, part << 20, b"%015d " % part * 65536)
    await fs.sync()
    print("synced", 1, flush=True)
    await trio.sleep_forever()
"""


def asked(cluster: Cluster) -> Status:
    return trio.run(collect, cluster.config)


def arrived(cluster: Cluster) -> bool:
    queue = asked(cluster).queue
    return queue is not None and not queue.entries


def test_a_narrow_compressed_link(tmp_path: Path) -> None:
    """4 MiB that do not compress and 16 MiB that do: over 1 MiB/s they take the time of the former."""
    options = f'far_limit_bytes_per_second = {LIMIT}\nfar_compression = "zstd"'
    with running(tmp_path / "cluster", *SITE_NAMES, options=options) as cluster:
        trio.run(create_volume, cluster.config)
        writer = cluster.writer("primary", PROGRAM)
        began = time.monotonic()
        writer.expect("synced 1")
        answered = asked(cluster)  # sync has everything; the far site is seconds behind and nobody waits
        assert answered.queue is not None
        assert answered.queue.entries > 0
        assert all(site.reachable for site in answered.sites.values())
        wait_until(lambda: arrived(cluster), 120)
        took = time.monotonic() - began
        link = asked(cluster).far_link
        assert link is not None
        assert (link.limit_bytes_per_second, link.compression) == (LIMIT, "zstd")
        assert link.raw_bytes > 20 << 20
        assert 4 << 20 < link.wire_bytes < 8 << 20
        assert took > (link.wire_bytes - (1 << 20)) / LIMIT
        report = trio.run(verify, cluster.config)
        assert report.same, report
