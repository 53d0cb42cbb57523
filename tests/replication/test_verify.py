"""`verify` finds a planted difference, wherever it is, and names it; replies hold as much as they may."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from jfs.device import BLOCK_BYTES
from replication.config import SITE_NAMES, SiteName
from replication.control import (
    MOST_RANGES,
    DigestsReply,
    GetDigests,
    GetRanges,
    MarkerReply,
    Range,
    RangesReply,
    TakeMarker,
)
from replication.creating import create_volume
from replication.messages import MAX_JSON_BYTES, Reply, encode_json
from replication.roles import Roles
from replication.site_control import page_of
from replication.site_listing import opened_listing
from replication.verify import MARKER_TRIES, _Run, _used
from tests.replication.cluster import Cluster, running, wait_until
from tests.replication.host_crash import level, overwritten
from tests.replication.test_failover import checked
from tools.demo.stage import trisite_command


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running(tmp_path / "cluster", *SITE_NAMES) as found:
        trio.run(create_volume, found.config)
        yield found


def flip(cluster: Cluster, site: SiteName) -> Range:
    """Change one bit of a block of a file in the area of a site; the block."""
    area = cluster.base / site / "area"
    with opened_listing(area) as listing, area.open("r+b") as file:
        for start, count in listing.allocated_runs():
            for block in range(start, start + count):
                data = bytearray(os.pread(file.fileno(), BLOCK_BYTES, block * BLOCK_BYTES))
                if data.startswith(b"00000001"):
                    data[100] ^= 1
                    os.pwrite(file.fileno(), data, block * BLOCK_BYTES)
                    return block * BLOCK_BYTES, BLOCK_BYTES
    raise AssertionError("no block of a file was found")


def run_verify(cluster: Cluster) -> tuple[int, dict[str, dict[str, object]]]:
    run = subprocess.run(
        [*trisite_command(), "verify", "-c", str(cluster.config.path), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = {one["between"][1]: one for one in msgspec.json.decode(run.stdout)["compared"]}
    return run.returncode, found


@pytest.mark.parametrize("mounted", [False, True])
@pytest.mark.parametrize("site", ["sync", "async"])
def test_a_planted_difference_is_found_and_named(cluster: Cluster, site: SiteName, mounted: bool) -> None:
    writer, _ = overwritten(cluster, "primary")
    if not mounted:
        writer.say("and end")
        writer.expect("closed")
    wait_until(lambda: level(cluster))
    checked(cluster)
    planted = flip(cluster, site)
    code, found = run_verify(cluster)
    assert code == 1
    for name in ("sync", "async"):
        assert found[name]["same"] is (name != site)
        assert found[name]["differing"] == ([list(planted)] if name == site else [])


class Pages:
    """A writer with very many ranges in use."""

    def __init__(self, ranges: list[Range]) -> None:
        self.ranges = ranges
        self.asked = 0

    async def ask(self, request: GetRanges, seconds: float) -> RangesReply:
        self.asked += 1
        page = page_of(self.ranges, 7, request.from_offset)
        reply = Reply(id=1, result=msgspec.to_builtins(page))
        assert sum(len(part) for part in encode_json(reply)) < MAX_JSON_BYTES  # or it would be refused
        return page


@pytest.mark.parametrize("count", [0, 1, MOST_RANGES, MOST_RANGES + 1, 3 * MOST_RANGES + 5])
async def test_a_fragmented_volume_is_listed_page_by_page(count: int) -> None:
    ranges = [((1 << 42) + number * 3 * BLOCK_BYTES, 2 * BLOCK_BYTES) for number in range(count)]
    pages = Pages(ranges)
    assert await _used(pages) == (ranges, 7)  # type: ignore[arg-type]
    assert pages.asked == max(1, -(-count // MOST_RANGES))


class Writer:
    """A mounted writer that puts marker after marker into the stream."""

    def __init__(self) -> None:
        self.sequence = 100

    async def ask(self, request: TakeMarker, seconds: float) -> MarkerReply:
        self.sequence += 10
        return MarkerReply(sequence=self.sequence, digests=["aa"], sync_digests=None, sync_reason="away")


class Copied:
    """A far site that a copy takes past a marker some times, before it follows entry by entry."""

    def __init__(self, copies: int, epoch: int = 1) -> None:
        self.copies = copies
        self.epoch = epoch
        self.asked = 0

    async def ask(self, request: GetDigests, seconds: float) -> DigestsReply:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.asked % 2:
            return DigestsReply(digests=None, epoch=self.epoch, sequence=50)  # not there yet
        if self.copies:
            self.copies -= 1
            return DigestsReply(digests=None, epoch=self.epoch, sequence=request.sequence + 3)
        return DigestsReply(digests=["aa"], epoch=self.epoch, sequence=request.sequence)


@pytest.mark.parametrize("copies", [0, 1, MARKER_TRIES - 1, MARKER_TRIES])
async def test_a_site_that_went_past_a_marker_is_asked_for_another_or_named(copies: int) -> None:
    """By what it says, without waiting: a bounded queue and a narrow link make this an ordinary case."""
    roles = Roles(epoch=1, writer="primary", sync_to=None, async_to="async", start_sequence=0)
    far = Copied(copies)
    clients: dict[SiteName, Any] = {"primary": Writer(), "async": far}
    run = _Run(roles, clients, {"primary", "async"})
    found = await run.compare([(0, BLOCK_BYTES)], BLOCK_BYTES)
    if copies < MARKER_TRIES:
        assert found == {("primary", "async"): []}
        assert not run.why_not
    else:
        assert not found
        assert "past sequence 130" in run.why_not["async"]
    assert far.asked == 2 * min(copies + 1, MARKER_TRIES)


async def test_a_site_of_an_older_epoch_is_not_past_a_marker() -> None:
    """Its sequences are of another stream: it is waited for until it is level."""
    roles = Roles(epoch=2, writer="primary", sync_to=None, async_to="async", start_sequence=0)
    clients: dict[SiteName, Any] = {"primary": Writer(), "async": Copied(5, epoch=1)}
    run = _Run(roles, clients, {"primary", "async"})
    found = await run.compare([(0, BLOCK_BYTES)], BLOCK_BYTES)
    assert found == {("primary", "async"): []}
