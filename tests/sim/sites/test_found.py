"""What the simulation found, each as the few events that it takes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

from replication import shipper
from replication.client import ask_site
from replication.config import Config, SiteName
from replication.control import Promote, SetPair, ask
from replication.frames import Frame, encode
from replication.position import Judgement, Position, Standing, Stream, judge
from replication.procedures.commands import failback, failover
from replication.procedures.failback import Return
from replication.procedures.plan import Survey, plan_failover
from replication.procedures.results import FailbackResult, FailoverResult, ProcedureRefused
from replication.procedures.running import Progress
from replication.procedures.survey import take_survey
from replication.procedures.take_over_sync import take_over_at_sync, wait_level
from replication.roles import Roles
from replication.state import SiteState
from replication.sync_session import SyncSession
from tests.sim.sites.checkers import UNKNOWN, Checkers, watching
from tests.sim.sites.cluster import Cluster, copy_sites
from tests.sim.sites.faults import Faults
from tests.sim.sites.host import PROCESS
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


async def take_over(
    cluster: Cluster,
    checkers: Checkers,
    to: Literal["sync", "async"],
    at: SiteName,
    *,
    accept_loss: bool = False,
) -> object:
    """`trisite failover --to TO` on the machine of a site: what it says."""
    config = cluster.world.config
    with checkers.command(to, accept_loss=accept_loss) as outcome:
        said = await cluster.operate(at, "failover", lambda: failover(config, to, accept_loss=accept_loss))
        outcome.append(said)
    return said


async def take_over_at_async(cluster: Cluster, checkers: Checkers) -> object:
    """With what async has: the sync site is away."""
    cluster.world.hosts["sync"].kill("daemon")
    return await take_over(cluster, checkers, "async", "primary", accept_loss=True)


def test_a_take_over_refused_by_a_full_disk_leaves_a_follower(base: Path) -> None:
    """The sync site had fenced its writer by then, and no write could complete until its daemon was started
    again.
    """

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        disk = cluster.world.hosts["sync"].disk
        disk.full = True
        refused = await take_over(cluster, checkers, "sync", "sync", accept_loss=True)
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


@pytest.mark.parametrize("to", ["sync", "async"])
def test_a_take_over_that_was_refused_is_not_carried_out_later(
    base: Path, monkeypatch: pytest.MonkeyPatch, to: Literal["sync", "async"]
) -> None:
    """Its request was in the socket of a stopped daemon, which read it when the command had ended (seed
    8002871). The site goes on following, though it was fenced for a moment.
    """

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        daemon = cluster.world.hosts[to].processes["daemon"]

        async def stop_first(channel: Any, request: Any, seconds: float) -> Any:  # noqa: ANN401
            if isinstance(request, Promote):
                cluster.world.loop.stop(daemon)
            return await ask(channel, request, seconds)

        monkeypatch.setattr("replication.client.ask", stop_first)
        if to == "async":
            cluster.world.hosts["sync"].kill("daemon")
        refused = await take_over(cluster, checkers, to, "primary", accept_loss=True)
        assert isinstance(refused, ProcedureRefused)
        assert refused.code == 4
        cluster.world.loop.go_on(daemon)
        cluster.start_daemon("sync")
        await trio.sleep(20)
        assert checkers.epoch[to] == 1
        assert checkers.pairs[to, "primary", to] == "Duplex"

    tell(base, story)


def test_a_site_that_was_stopped_when_it_was_told_to_go_on_lets_it_be(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command cannot know; what it says can be looked after at once, and not come true an hour later."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        daemon = cluster.world.hosts["async"].processes["daemon"]

        def stop_first(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            cluster.world.loop.stop(daemon)
            return encode(*arguments, **named)

        monkeypatch.setattr("replication.control.encode", stop_first)
        told = await take_over_at_async(cluster, checkers)
        assert isinstance(told, ProcedureRefused)
        assert told.code == UNKNOWN
        assert "whether it did is not known" in told.sentence
        cluster.world.loop.go_on(daemon)
        await trio.sleep(5)
        assert checkers.epoch["async"] == 1

    tell(base, story)


def test_a_take_over_whose_answer_is_lost_is_not_told_as_refused(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was carried out; the same command again says how it was."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        link = cluster.world.network.link("primary", "async")
        adopted = checkers.adopted

        def cut_then(roles: Roles) -> None:
            if checkers.here() == "async":
                link.change(up=False)
            adopted(roles)

        monkeypatch.setattr(checkers, "adopted", cut_then)
        told = await take_over_at_async(cluster, checkers)
        assert isinstance(told, ProcedureRefused)
        assert told.code == UNKNOWN
        assert checkers.epoch["async"] == 2
        link.change(up=True)
        again = await take_over_at_async(cluster, checkers)
        assert isinstance(again, FailoverResult)
        assert again.epoch == 2

    tell(base, story)


class LosesAll(random.Random):
    """The fate of what was not synced when the power is cut."""

    def choice(self, sequence: Any) -> Any:  # noqa: ANN401
        return "all" if "all" in sequence else super().choice(sequence)


def test_a_power_cut_after_the_return_takes_nothing_that_came_by_levelling(base: Path) -> None:
    """It was in the page cache when the primary site became the writer, which has no journal (seed 325)."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        config, primary = cluster.world.config, cluster.world.hosts["primary"]
        primary.kill("mount")
        assert isinstance(await take_over(cluster, checkers, "sync", "sync"), FailoverResult)
        cluster.start_mount("sync")
        cluster.always_sync = True
        cluster.work_hard(0.3)
        await trio.sleep(1)
        with checkers.command("primary") as outcome:
            outcome.append(await cluster.operate("primary", "failback", lambda: failback(config)))
        assert isinstance(outcome[0], FailbackResult)
        primary.rng = LosesAll(1)
        primary.cut_power()
        cluster.start_daemon("primary")
        await trio.sleep(1)
        acks = cluster.counts["acknowledged"]
        cluster.start_mount("primary")
        await trio.sleep(5)
        assert cluster.counts["acknowledged"] > acks

    tell(base, story)


def test_a_power_cut_at_the_async_site_while_it_writes_has_the_sync_site_compared(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync site, which follows it, may have writes that the async site lost (seed 9105535)."""
    standings: list[Standing] = []

    def judge_and_note(far: Position, ours: Stream) -> Judgement:
        judgement = judge(far, ours)
        standings.append(judgement.standing)
        return judgement

    monkeypatch.setattr(shipper, "judge", judge_and_note)

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        cluster.world.hosts["primary"].kill("mount")
        assert isinstance(await take_over(cluster, checkers, "async", "async"), FailoverResult)
        cluster.start_mount("async")
        await trio.sleep(2)
        assert checkers.pairs["async", "async", "sync"] == "Duplex"
        standings.clear()
        cluster.world.hosts["async"].cut_power()
        cluster.start_daemon("async")
        await trio.sleep(1)
        assert standings[0] is Standing.DOUBTFUL
        cluster.start_mount("async")
        await trio.sleep(5)
        assert checkers.pairs["async", "async", "sync"] == "Duplex"

    tell(base, story)


def test_a_take_over_beside_a_writer_that_goes_on_alone_claims_no_proof(base: Path) -> None:
    """The pair was suspended with --force just after the command had looked (seed 9125982)."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        config, network = cluster.world.config, cluster.world.network
        network.link("primary", "sync").change(up=False)
        network.reset_all("primary", "sync")
        await trio.sleep(1)
        survey = await cluster.operate("async", "look", lambda: take_survey(config))
        assert isinstance(survey, Survey)
        plan = plan_failover(survey, "sync", accept_loss=True)
        progress = Progress(plan.steps, lambda event: None)
        request = SetPair(target="sync", action="suspend", force=True)
        await cluster.operate("primary", "suspend", lambda: ask_site(config, "primary", request))
        acks = cluster.counts["acknowledged"]
        cluster.work_hard(1)
        await trio.sleep(2)
        assert cluster.counts["acknowledged"] > acks
        with checkers.command("sync", accept_loss=True) as outcome:
            result = await cluster.operate(
                "async", "failover", lambda: take_over_at_sync(config, plan, survey, progress)
            )
            outcome.append(result)
        assert isinstance(result, FailoverResult)
        assert result.lost is None
        assert "site primary goes on alone" in result.lost_sentence

    tell(base, story)


def test_a_return_given_up_when_all_was_level_can_be_begun_again(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The primary site stood at a state of the stream, and no copy of a mounted volume was taken there any
    more (seed 9127789).
    """

    async def give_up(self: Return) -> None:
        raise ProcedureRefused("given up", 4)

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        async def go_back() -> object:
            with checkers.command("primary") as outcome:
                outcome.append(
                    await cluster.operate("primary", "failback", lambda: failback(cluster.world.config))
                )
            return outcome[0]

        cluster.world.hosts["primary"].kill("mount")
        assert isinstance(await take_over(cluster, checkers, "sync", "sync"), FailoverResult)
        cluster.start_mount("sync")
        await trio.sleep(1)
        with monkeypatch.context() as patched:
            patched.setattr(Return, "_drain", give_up)
            refused = await go_back()
        assert isinstance(refused, ProcedureRefused)
        assert refused.sentence == "given up"
        assert isinstance(await take_over(cluster, checkers, "sync", "sync"), FailoverResult)
        acks = cluster.counts["acknowledged"]
        cluster.start_mount("sync")
        cluster.work_hard(1)
        await trio.sleep(2)
        assert cluster.counts["acknowledged"] > acks
        assert isinstance(await go_back(), FailbackResult)

    tell(base, story)


def test_a_site_that_was_exchanged_after_a_command_looked_is_not_promoted(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a command asks for is asked of the volume that it has seen."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        faults = Faults(cluster, checkers, random.Random(1))
        cluster.world.hosts["primary"].kill("mount")

        looked, exchanged = trio.Event(), trio.Event()

        async def look(config: Config) -> Survey:
            survey = await take_survey(config)
            looked.set()
            await exchanged.wait()
            return survey

        async def exchange() -> None:
            await looked.wait()
            faults.bring_stranger(cluster.world.hosts["sync"])
            cluster.start_daemon("sync")
            await trio.sleep(1)
            exchanged.set()

        monkeypatch.setattr("replication.procedures.commands.take_survey", look)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange)
            with trio.fail_after(60):
                refused = await take_over(cluster, checkers, "sync", "primary")
        assert isinstance(refused, ProcedureRefused)
        assert "site sync holds volume" in refused.sentence
        faults.send_stranger_away(cluster.world.hosts["sync"])

    tell(base, story)


def test_no_command_waits_for_a_pair_that_somebody_suspended(base: Path) -> None:
    """It waited for ever for the far site to have everything, with the volume unmounted (seed 9000273)."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        config = cluster.world.config
        cluster.world.hosts["primary"].kill("mount")
        assert isinstance(await take_over(cluster, checkers, "sync", "sync"), FailoverResult)
        cluster.start_mount("sync")
        await trio.sleep(2)
        suspend = SetPair(target="async", action="suspend")
        await cluster.operate("sync", "suspend", lambda: ask_site(config, "sync", suspend))
        cluster.work_hard(0.3)
        await trio.sleep(3)
        with trio.fail_after(60):
            refused = await take_over(cluster, checkers, "async", "sync", accept_loss=True)
            assert isinstance(refused, ProcedureRefused)
            assert "trisite pair resync sync,async" in refused.sentence
            again = await take_over(cluster, checkers, "sync", "sync")
            assert isinstance(again, FailoverResult)
            assert again.recovery == "pending"
            with checkers.command("primary") as outcome:
                outcome.append(await cluster.operate("primary", "failback", lambda: failback(config)))
        assert isinstance(outcome[0], FailbackResult)
        await trio.sleep(10)
        assert checkers.pairs["async", "primary", "async"] == "Duplex"

    tell(base, story)


def test_a_site_that_answers_for_another_volume_learns_no_roles(base: Path) -> None:
    """Its refused connections told it the roles of this volume, and it took them over."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        faults = Faults(cluster, checkers, random.Random(1))
        host = cluster.world.hosts["primary"]
        host.kill("mount")
        done = await take_over(cluster, checkers, "sync", "sync")
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
            done = await take_over(cluster, checkers, to, "sync")
            assert isinstance(done, FailoverResult)

        async def wait() -> None:
            survey = await take_survey(config)
            await wait_level(config, checkers.roles[2], survey, Progress([], lambda event: None))

        with trio.fail_after(60):
            refused = await cluster.operate("sync", "wait", wait)
        assert isinstance(refused, ProcedureRefused)
        assert "another command has changed the writer" in refused.sentence

    tell(base, story)


def test_a_daemon_that_is_told_to_end_while_it_adopts_roles_ends(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adopts waits for the part of the new roles, which nobody opens any more."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        daemon = cluster.world.hosts["async"].processes["daemon"]
        adopt = SiteState.adopt

        def meanwhile(state: SiteState, roles: Roles) -> bool:
            if PROCESS.get() is daemon:
                daemon.terminate()
            return adopt(state, roles)

        monkeypatch.setattr(SiteState, "adopt", meanwhile)
        cluster.world.hosts["primary"].kill("mount")
        await take_over(cluster, checkers, "sync", "sync")
        with trio.fail_after(60):
            await daemon.ended.wait()

    tell(base, story)


def test_a_daemon_that_is_told_to_end_serves_nobody_from_files_it_has_closed(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation that had a thread at work when the daemon was told went on with the frames it held."""

    async def story(cluster: Cluster, checkers: Checkers) -> None:
        daemon = cluster.world.hosts["sync"].processes["daemon"]
        burst = SyncSession._burst

        async def with_a_thread(session: SyncSession, frames: Sequence[Frame]) -> None:
            if PROCESS.get() is daemon:
                daemon.terminate()
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.1)
            await burst(session, frames)

        monkeypatch.setattr(SyncSession, "_burst", with_a_thread)
        cluster.work_hard(0.3)
        with trio.fail_after(60):
            await daemon.ended.wait()

    tell(base, story)
