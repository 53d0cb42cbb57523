"""What the simulation found, each as the few events that it takes."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from replication.procedures.commands import failover
from replication.procedures.results import ProcedureRefused
from tests.sim.sites.checkers import Checkers, watching
from tests.sim.sites.cluster import Cluster, copy_sites
from tests.sim.sites.play import prepared
from tests.sim.sites.world import World, run

Story = Callable[[Cluster, Checkers], Awaitable[None]]


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    with prepared() as directory:
        yield directory


def tell(base: Path, story: Story) -> Checkers:
    """Run a story on three sites with the application at primary; nothing may be violated."""
    directory = base / "story"
    copy_sites(base / "template", directory)
    world = World("story", directory)
    cluster = Cluster(world, random.Random(1))
    checkers = Checkers(cluster)
    checkers.begin()

    async def main() -> None:
        for site in world.hosts:
            cluster.start_daemon(site)
        await trio.sleep(0.3)
        cluster.start_mount("primary")
        await trio.sleep(2)
        await story(cluster, checkers)

    with watching(checkers):
        run(world, "story", main)
    assert not cluster.violations
    return checkers


def test_a_take_over_refused_by_a_full_disk_leaves_a_follower(base: Path) -> None:
    """The sync site had fenced its writer by then, and no write could complete until its daemon was started
    again.
    """

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        config, disk = cluster.world.config, cluster.world.hosts["sync"].disk
        disk.full = True
        refused = await cluster.operate(
            "sync", "failover", lambda: failover(config, "sync", accept_loss=True)
        )
        assert isinstance(refused, ProcedureRefused)
        disk.full = False
        await trio.sleep(20)
        assert checkers.pairs["sync", "primary", "sync"] == "Duplex"

    checkers = tell(base, story)
    assert checkers.cluster.counts["acknowledged"] > 20
