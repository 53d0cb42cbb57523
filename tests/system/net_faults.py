"""Faults of sites in network namespaces, each under load, each healed, each followed by the whole check."""

import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.system.kills import PATIENCE_SECONDS, Campaign, Found, TakeOvers, Toll
from tests.system.namespaces import Disk, NetGround
from tools.demo.stage import SITES
from tools.errors import Failure

LONGEST_SECONDS: Final = 6.0  # of a fault: some times what a site may be silent
SLOW_RATE: Final = "4mbit"
FULL_DISK: Final = re.compile(r"No space left|no room|\(full\)|cannot be written")
DAMAGED_BLOCKS: Final = 200
BLOCK: Final = 4096


def damage(area: Path, chance: random.Random) -> None:
    """Overwrite blocks of an area, among those that hold something."""
    with area.open("r+b") as file:
        places: list[int] = []
        at, size = 0, area.stat().st_size
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break  # nothing but a hole is left
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            places += range(begin, at, BLOCK)
        for place in chance.sample(places, min(DAMAGED_BLOCKS, len(places))):
            file.seek(place)
            file.write(chance.randbytes(BLOCK))
        os.fsync(file.fileno())


class NetCampaign(TakeOvers):
    """Strikes of one kind against sites chosen by chance."""

    def __init__(self, ground: NetGround, kind: str, seed: int, disk: Disk | None = None) -> None:
        super().__init__(ground, (kind,), seed, failing=kind in {"full", "killed", "lost_primary"})
        self.net = ground
        self.kind = kind
        self.disk = disk
        self.strikes: dict[str, Callable[[], Found]] = {
            "killed": self.killed,
            "stopped": self.stopped,
            "unplugged": self.unplugged,
            "swallowed": self.swallowed,
            "slow": self.slow,
            "full": self.full,
            "damaged": self.damaged,
            "lost_primary": self.lost_primary,
        }

    def strike(self) -> Found:
        """One fault of the kind."""
        return self.strikes[self.kind]()

    def run(self, kills: int) -> Toll:
        """So many faults."""
        return super().run(kills)._replace(victims=self.kind)

    # -- processes

    def killed(self) -> Found:
        """SIGKILL to any of the processes, to several, to all."""
        count = self.chance.choice((1, 2, 4))
        self.victims = tuple(self.chance.sample(("mount", *SITES), count))
        return Campaign.strike(self)

    def stopped(self) -> Found:
        """SIGSTOP to one daemon or to all, then SIGCONT."""
        held = self.some_sites()
        self.ground.start_load()
        for site in held:
            self.ground.hold(site)
        self.suffer()
        for site in held:
            self.ground.release(site)
        return self.healed()

    # -- the network

    def unplugged(self) -> Found:
        """No carrier at one site or at all."""
        sites = self.some_sites()
        self.ground.start_load()
        for site in sites:
            self.net.network.unplug(site)
        self.suffer()
        for site in sites:
            self.net.network.plug(site)
        return self.healed()

    def swallowed(self) -> Found:
        """Everything to and from a site, or all of them, vanishes."""
        sites = self.some_sites()
        self.ground.start_load()
        for site in sites:
            self.net.network.swallow(site)
        self.suffer()
        for site in sites:
            self.net.network.swallow(site, silent=False)
        return self.healed()

    def slow(self) -> Found:
        """A link that is much too slow for the load."""
        sites = self.some_sites()
        self.ground.start_load()
        for site in sites:
            self.net.network.narrow(site, SLOW_RATE)
        self.suffer()
        for site in sites:
            self.net.network.narrow(site, None)
        return self.healed()

    # -- disks

    def full(self) -> Found:
        """The disk of a site has no room left, for a while, and until somebody says so."""
        assert self.disk is not None
        errors = self.ground.errors()
        self.ground.start_load()
        until = time.monotonic() + self.chance.uniform(1.0, LONGEST_SECONDS)
        latest = time.monotonic() + PATIENCE_SECONDS
        felt = False
        while time.monotonic() < until or not felt:
            if time.monotonic() > latest:
                raise Failure("the disk is full, and nobody says so")
            self.disk.fill()
            time.sleep(0.1)
            felt = felt or self.told_of_full_disk() or self.ground.errors() > errors
        self.disk.free()
        return self.healed()

    def told_of_full_disk(self) -> bool:
        """Whether `status` says of a pair that a full disk holds it up."""
        pairs = self.ground.status()["pairs"]
        return any(pair["state"] != "Duplex" and FULL_DISK.search(pair["reason"]) for pair in pairs)

    def damaged(self) -> Found:
        """Blocks of a secondary change while its daemon is down: verify tells; an empty disk is filled."""
        ground, site = self.ground, self.chance.choice(("sync", "async"))
        self.work_for_a_moment()
        ground.kill(site)
        damage(ground.directory / site / "area", self.chance)
        ground.start_sites([site])
        ground.follow("primary", "sync", "async")
        ground.trisite("verify", "--between", f"primary,{site}", codes=(1,))
        ground.kill(site)
        self.replace_disk(site)
        ground.start_sites([site])
        # Without its sync site a protected volume takes no writes until that has everything again.
        ground.follow("primary", "sync", "async")
        ground.start_load()
        return self.healed()

    def lost_primary(self) -> Found:
        """The writing site and its disk are lost: the sync site takes over, the primary returns empty."""
        self.victims = ("mount", "primary")
        return super().strike()

    def take_over(self) -> None:
        """As usual, from a site whose disk is lost."""
        self.replace_disk("primary")
        super().take_over()

    def replace_disk(self, site: str) -> None:
        """A site's directory as it is before the first start of its daemon."""
        directory = self.ground.directory / site
        shutil.rmtree(directory)
        directory.mkdir(mode=0o700)

    # -- around each

    def some_sites(self) -> list[str]:
        """One site, or all three."""
        return self.chance.choice((*([site] for site in SITES), list(SITES)))

    def suffer(self) -> None:
        """While the fault lasts."""
        time.sleep(self.chance.uniform(0.5, LONGEST_SECONDS))

    def work_for_a_moment(self) -> None:
        """The load, ended in peace, and everything in step."""
        self.ground.start_load()
        time.sleep(self.chance.uniform(0.2, 1.0))
        self.ground.stop_load()
        self.ground.follow("primary", "sync", "async")

    def healed(self) -> Found:
        """The load ends in peace; then everything is in step by itself, equal, sound and there."""
        ground = self.ground
        time.sleep(self.chance.uniform(0.0, 0.8))
        ground.stop_load()
        ground.follow("primary", "sync", "async")
        ground.verify("primary,sync", "sync,async")
        ground.unmount()
        ground.check_sites()
        ground.mount("primary")
        return self.nothing_lost()
