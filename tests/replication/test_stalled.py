"""A stalled sync site: what is written meanwhile waits on the disk, not in the memory of the mount."""

from pathlib import Path

import trio

from replication.config import SITE_NAMES
from replication.creating import create_volume
from tests.replication.cluster import running
from tests.replication.test_failover import checked

FLOOD = """
import sys
from pathlib import Path
from jfs.filesystem import FileSystem
from stat import S_IFREG
fs = FileSystem(store)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
async def work():
    ino = fs.make(1, b"f0", S_IFREG | 0o644).ino
    for part in range(32):
        fs.write(ino, part << 20, bytes(1 << 20))
        await writer.device.complete(writer.device.issued_sequence)
    await fs.sync()
    background.cancel()  # nobody waits for the sync site from here on
    print("synced", 1, flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    before = resident()
    for number in range(1, 6):
        for part in range(32):
            fs.write(ino, part << 20, b"%08d" % number * 131072)
            await trio.lowlevel.checkpoint()
    print("grown", resident() - before, flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    await fs.sync()
    print("synced", 5, flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
"""


def test_writes_that_wait_for_nobody_do_not_fill_the_memory(tmp_path: Path) -> None:
    with running(tmp_path / "cluster", *SITE_NAMES) as cluster:
        trio.run(create_volume, cluster.config)
        path = cluster.config.path
        path.write_text(
            path.read_text().replace("protect_timeout_seconds = 3.0", "protect_timeout_seconds = 90.0")
        )
        writer = cluster.writer("primary", FLOOD)
        writer.expect("synced 1")
        cluster.daemons["sync"].signal(19)
        writer.say("write")
        grown = int(writer.expect("grown").split()[1])
        assert grown < 48 << 20  # of 160 MiB
        cluster.daemons["sync"].signal(18)
        writer.say("sync")
        writer.expect("synced 5")
        checked(cluster)
        writer.kill()
