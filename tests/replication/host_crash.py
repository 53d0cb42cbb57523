"""A crash of a site's host, played with its files: what was not synced is taken back, the boot is another."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from jfs.device import BLOCK_BYTES
from replication.received_record import ReceivedRecord
from replication.state import SiteState
from tests.replication.cluster import Cluster
from vsap.condition import SLOT, SLOT_SPACING, pack_slot, unpack_slot


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
) -> None:
    """The processes of the site are dead; `kept` is what the disk has of the area (None: everything).

    Blocks of which `written` is true had reached the disk since.
    """
    directory = cluster.base / site
    if kept is not None:
        with kept.open("rb") as source, (directory / "area").open("r+b") as area:
            for place in range(0, kept.stat().st_size, BLOCK_BYTES):
                old, new = source.read(BLOCK_BYTES), os.pread(area.fileno(), BLOCK_BYTES, place)
                if old != new and not written(new):
                    os.pwrite(area.fileno(), old, place)
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
