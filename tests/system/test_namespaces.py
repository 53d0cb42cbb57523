"""Three sites as real processes in network namespaces, under load: what fails is healed, and nothing is lost.

Each kind of fault strikes a few times in the campaigns (`make soak`, `TRISITE_ROUNDS` sets how often), one
kind of them once in the short test. After each: Duplex by itself, verify and fsck find nothing at any site,
and everything acknowledged is there.
"""

import os
from pathlib import Path

import pytest

from tests.system.kills import Toll, prepare
from tests.system.namespaces import Disk, NetGround, Network
from tests.system.net_faults import NetCampaign
from tools.demo.stage import SITES

pytestmark = [pytest.mark.fuse]

ROUNDS = int(os.environ.get("TRISITE_ROUNDS", "5"))
LONG_SECONDS = 3600
DISK_BYTES = 512 << 20
KINDS = ("killed", "stopped", "unplugged", "swallowed", "slow", "damaged", "lost_primary")


@pytest.mark.slow
def test_a_site_behind_a_black_hole(tmp_path: Path, seed: int, network: Network) -> None:
    with prepare(NetGround(tmp_path / "volume", network)) as ground:
        toll = NetCampaign(ground, "swallowed", seed).run(1)
    assert toll.acknowledged > 1


@pytest.mark.soak
@pytest.mark.timeout(LONG_SECONDS)
@pytest.mark.parametrize("kind", KINDS)
def test_campaign_of_faults(
    tmp_path: Path, seed: int, network: Network, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with prepare(NetGround(tmp_path / "volume", network)) as ground:
        toll = NetCampaign(ground, kind, seed).run(ROUNDS)
    tell(toll, seed, capsys)


@pytest.mark.soak
@pytest.mark.timeout(LONG_SECONDS)
@pytest.mark.parametrize("site", SITES)
def test_campaign_of_full_disks(
    tmp_path: Path, seed: int, network: Network, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ground = NetGround(tmp_path / "volume", network)
    place = ground.directory / site
    place.mkdir(parents=True)
    with Disk(place, DISK_BYTES) as disk, prepare(ground):
        toll = NetCampaign(ground, "full", seed, disk).run(ROUNDS)
    tell(toll._replace(victims=f"full disk at {site}"), seed, capsys)


def tell(toll: Toll, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of the table of a campaign, for whoever runs it."""
    with capsys.disabled():
        print(
            f"\nseed {seed}: {toll.victims}, {toll.kills} times, {toll.acknowledged} operations "
            f"acknowledged, none lost, {toll.errors} calls failed, {toll.seconds:.0f} s"
        )
    assert toll.acknowledged > toll.kills
