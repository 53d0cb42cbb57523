"""What the simulation found, each as the few events that it takes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import trio

from replication.client import ask_site
from replication.control import SetPair
from replication.procedures.commands import failover
from replication.procedures.results import FailoverResult, ProcedureRefused
from replication.procedures.running import Progress
from replication.procedures.survey import take_survey
from replication.procedures.take_over_sync import wait_level
from tests.sim.sites.checkers import Checkers, watching
from tests.sim.sites.cluster import Cluster, copy_sites
from tests.sim.sites.faults import Faults
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
    shutil.rmtree(directory, ignore_errors=True)
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
        await trio.sleep(1)
        await story(cluster, checkers)

    with watching(checkers):
        run(world, main)
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
    assert checkers.cluster.counts["acknowledged"] > 5


def test_a_pair_suspended_while_its_writer_connects_is_duplex_again_after_the_resync(base: Path) -> None:
    """The connection came into step unseen, and nobody said so when the pair was resumed (seed 8003073)."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        link = cluster.world.network.link("primary", "sync")

        async def change(action: Literal["suspend", "resync"]) -> None:
            request = SetPair(target="sync", action=action, force=True)
            await cluster.operate(
                "primary", action, lambda: ask_site(cluster.world.config, "primary", request)
            )

        link.change(up=False)
        cluster.world.network.reset_all("primary", "sync")
        await trio.sleep(2)
        await change("suspend")
        assert checkers.pairs["sync", "primary", "sync"] == "Suspend"
        link.change(up=True)
        await trio.sleep(1)
        await change("resync")
        await trio.sleep(5)
        assert checkers.pairs["sync", "primary", "sync"] == "Duplex"

    tell(base, story)


def test_a_site_that_answers_for_another_volume_learns_no_roles(base: Path) -> None:
    """Its refused connections told it the roles of this volume, and it took them over."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        config, faults = cluster.world.config, Faults(cluster, checkers, random.Random(1))
        host = cluster.world.hosts["primary"]
        host.kill("mount")
        done = await cluster.operate("sync", "failover", lambda: failover(config, "sync"))
        assert isinstance(done, FailoverResult)
        faults.bring_stranger(host)
        cluster.start_daemon("primary")
        await trio.sleep(40)  # it asks the others, and they ask it, every 30 s
        faults.send_stranger_away(host)

    tell(base, story)


def test_a_command_ends_when_another_one_changes_the_writer_meanwhile(base: Path) -> None:
    """It waited for ever for a recovery copy that the site it had promoted was no longer to make."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        config = cluster.world.config
        cluster.world.hosts["primary"].kill("mount")
        targets: tuple[Literal["sync", "async"], ...] = ("sync", "async")
        for to in targets:
            done = await cluster.operate("sync", to, lambda to=to: failover(config, to))  # type: ignore[misc]
            assert isinstance(done, FailoverResult)

        async def wait() -> None:
            survey = await take_survey(config)
            await wait_level(config, checkers.roles[2], survey, Progress([], lambda event: None))

        with trio.fail_after(60):
            refused = await cluster.operate("sync", "wait", wait)
        assert isinstance(refused, ProcedureRefused)
        assert "another command has changed the writer" in refused.sentence

    tell(base, story)
