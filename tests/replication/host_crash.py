"""A crash of a site's host, played with its files: what was not synced is taken back, the boot is another."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import trio

from jfs.device import BLOCK_BYTES
from replication.config import SITE_NAMES, SiteName
from replication.control import SiteReport
from replication.procedures.survey import take_survey
from replication.received_record import ReceivedRecord
from replication.state import SiteState
from replication.status import collect
from tests.replication.cluster import Cluster, Process, wait_until
from vsap.condition import SLOT, SLOT_SPACING, pack_slot, unpack_slot

OVERWRITE = """
import sys
from jfs.filesystem import FileSystem
from stat import S_IFREG
fs = FileSystem(store)
async def work():
    names = [b"f%d" % number for number in range(7)]
    first = [(fs.lookup(1, name) or fs.make(1, name, S_IFREG | 0o644)).ino for name in names]
    for ino in first:
        fs.write(ino, 0, b"%08d" % 1 * 4096)
    await fs.sync()
    await store.checkpoint()
    while store.log_status().files:
        await trio.sleep(0.05)
    await fs.sync()
    print("synced", 1, flush=True)
    background.cancel()  # from here on nothing is flushed
    await trio.to_thread.run_sync(sys.stdin.readline)
    for number in range(2, 5):
        for ino in first[1:]:
            fs.write(ino, 4096 * number, b"%08d" % number * 512)
    await writer.device.complete(writer.device.issued_sequence)
    print("written", writer.device.issued_sequence, flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
"""


PUSH = "writer.device.waiting(0, 4096)"
"""To search the queue, what was issued is pushed into it."""


def keep_area(cluster: Cluster, site: str) -> Path:
    """A copy of the area as it is now: what a crash of the host may leave of it."""
    area = cluster.base / site / "area"
    kept = cluster.base / f"{site}.area"
    shutil.copyfile(area, kept)
    return kept


def crash_host(
    cluster: Cluster,
    site: str,
    kept: Path | None = None,
    written: Callable[[bytes], bool] = lambda block: False,
    *,
    reboot: bool = True,
) -> None:
    """The processes of the site are dead; `kept` is what the disk has of the area (None: everything).

    Blocks of which `written` is true had reached the disk since. Not `reboot`: only the area is like that.
    """
    directory = cluster.base / site
    if kept is not None:
        with kept.open("rb") as source, (directory / "area").open("r+b") as area:
            for place in range(0, kept.stat().st_size, BLOCK_BYTES):
                old, new = source.read(BLOCK_BYTES), os.pread(area.fileno(), BLOCK_BYTES, place)
                if old != new and not written(new):
                    os.pwrite(area.fileno(), old, place)
    if not reboot:
        return
    for name in ("queue", "written"):
        _another_boot(directory / name / "condition")
    received = directory / "received"
    if received.exists():
        with SiteState(directory / "state") as state:
            identity = state.identity
        assert identity is not None
        with ReceivedRecord(received, identity.uuid, boot=str(uuid4())):
            pass


def _another_boot(condition: Path) -> None:
    """As if the directory had been in use during an earlier boot of the host."""
    if not condition.exists():
        return
    with condition.open("r+b") as file:
        for place in (0, SLOT_SPACING):
            file.seek(place)
            record = unpack_slot(file.read(SLOT.size))
            if record is not None:
                file.seek(place)
                file.write(pack_slot(record._replace(boot=uuid4(), clean=False)))


def report(cluster: Cluster, site: str) -> SiteReport | None:
    return trio.run(take_survey, cluster.config).reports.get(site)  # type: ignore[call-overload, no-any-return]


def applied(cluster: Cluster) -> int:
    found = report(cluster, "async")
    return found.position.applied_sequence if found is not None and found.position is not None else 0


def level(cluster: Cluster) -> bool:
    status = trio.run(collect, cluster.config)
    return bool(status.pairs) and all(pair.state == "Duplex" for pair in status.pairs if pair.kind == "async")


def doubts(cluster: Cluster, site: str) -> set[str]:
    with SiteState(cluster.base / site / "state") as state:
        return {name for name in SITE_NAMES if state.doubted(name)}


def overwritten(cluster: Cluster, site: SiteName, *dead: SiteName) -> tuple[Process, Path]:
    """Files that no log names any more are written in place; C and D have it, the disk of `site` has not.

    `dead` sites are killed before.
    """
    program = OVERWRITE
    if "sync" in dead:
        program = program.replace("await writer.device.complete(writer.device.issued_sequence)", PUSH)
    writer = cluster.writer(site, program)
    writer.expect("synced")
    kept = keep_area(cluster, site)
    cluster.kill(*dead)
    writer.say("go on")
    newest = int(writer.expect("written").split()[1])
    if not dead:
        wait_until(lambda: applied(cluster) >= newest)
    return writer, kept
