"""What travels when a site comes back to a volume that was written to at random, against what had changed.

`make soak`: one hour's worth at 100 a second (360,000 writes of 4 KiB, issued as fast as they are taken; see
`TRISITE_WRITES`) to a file of 2 GiB in a volume of 10 GiB, while the sync pair is suspended and the far site
is away for longer than the queue lasts. The bytes are those that the network carried, headers and all. The
short test does the same with a small file.
"""

import json
import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.system.kills import OPTIONS, prepare
from tests.system.namespaces import NetGround, Network

pytestmark = [pytest.mark.fuse]

BLOCK_BYTES: Final = 4096
PIECE_BYTES: Final = 1 << 20
FSYNC_WRITES: Final = 1500
GOAL: Final = 1.1
SMALL_GOAL: Final = 1.3  # what a session and the metadata log cost weighs more in a small volume
PATIENT: Final = OPTIONS.replace("silence_seconds = 1.0", "silence_seconds = 20.0")
"""A difference copy that is broken off begins anew, and a busy machine is silent for longer than a second."""
QUEUE: Final = f'{PATIENT}queue_limit_bytes = "16MiB"\n'
RESYNC_SECONDS: Final = 3600.0


class Size(NamedTuple):
    """Of a run: the volume, the file in it, the writes."""

    volume: str
    file_bytes: int
    writes: int


SHORT = Size("256MiB", 64 << 20, 6000)
LONG = Size("10GiB", 2 << 30, int(os.environ.get("TRISITE_WRITES", "360000")))


def fill(path: Path, size: int, chance: random.Random) -> None:
    """A file without two blocks alike."""
    with path.open("wb", buffering=0) as file:
        for _ in range(size // PIECE_BYTES):
            file.write(chance.randbytes(PIECE_BYTES))
        os.fsync(file.fileno())


def overwrite(path: Path, size: Size, chance: random.Random) -> int:
    """Random blocks overwritten with random bytes; how many distinct ones."""
    changed = set[int]()
    with path.open("r+b", buffering=0) as file:
        for number in range(1, size.writes + 1):
            block = chance.randrange(size.file_bytes // BLOCK_BYTES)
            changed.add(block)
            os.pwrite(file.fileno(), chance.randbytes(BLOCK_BYTES), block * BLOCK_BYTES)
            if number % FSYNC_WRITES == 0:
                os.fsync(file.fileno())  # a queue is dropped only up to a common flush
        os.fsync(file.fileno())
    return len(changed)


def measure(ground: NetGround, seed: int, size: Size) -> dict[str, float]:
    """What each site was sent when it came back, as a share of the distinct bytes changed; prints figures."""
    chance = random.Random(seed)
    file = ground.mountpoint / "file"
    fill(file, size.file_bytes, chance)
    ground.follow("primary", "sync", "async")
    ground.wait_for(ground.queue_is_empty, "an empty queue", seconds=RESYNC_SECONDS)
    ground.trisite("pair", "suspend", "primary,sync")
    ground.kill("async")
    began = time.monotonic()
    distinct = overwrite(file, size, chance) * BLOCK_BYTES
    # Else this would measure the queue, and not what is copied when it was outgrown.
    assert ground.status()["queue"]["bytes"] < distinct
    print(
        f"{size.writes:,} random writes in {time.monotonic() - began:.0f} s to a file of "
        f"{size.file_bytes >> 20} MiB in a volume of {size.volume}; {distinct:,} distinct bytes changed"
    )
    shares: dict[str, float] = {}
    for site in ("sync", "async"):
        before, began, lost = ground.network.carried(site), time.monotonic(), broken_off(ground, site)
        if site == "sync":
            ground.trisite("pair", "resync", "primary,sync")
        else:
            ground.start_sites(["async"])
        ground.wait_for(partial(in_step, ground, site), f"site {site} to be level", seconds=RESYNC_SECONDS)
        took = time.monotonic() - began
        carried = ground.network.carried(site) - before
        shares[site] = carried / distinct
        print(
            f"site {site}: {carried:,} bytes carried, {shares[site]:.3f} of them, {took:.0f} s, "
            f"broken off {broken_off(ground, site) - lost} times"
        )
    return shares


def broken_off(ground: NetGround, site: str) -> int:
    """How often the writer has lost its connection to a site: each time a copy begins anew."""
    lines = ground.trisite("events", "--json").splitlines()
    found = [json.loads(line) for line in lines]
    return sum((one["at_site"], one["to"], one["cause"]) == ("primary", site, "unreachable") for one in found)


def in_step(ground: NetGround, site: str) -> bool:
    """Whether the pair to a site is Duplex and nothing waits for the far site."""
    status = ground.status()
    pairs = {pair["to"]: pair["state"] for pair in status["pairs"]}
    return pairs.get(site) == "Duplex" and (site == "sync" or ground.queue_is_empty())


def run(directory: Path, network: Network, seed: int, size: Size) -> dict[str, float]:
    """The measurement, and the sites compared after it."""
    with prepare(NetGround(directory, network, size=size.volume, options=QUEUE)) as ground:
        shares = measure(ground, seed, size)
        ground.verify("primary,sync", "sync,async")
    return shares


@pytest.mark.slow
def test_a_resync_carries_little_more_than_what_changed(tmp_path: Path, seed: int, network: Network) -> None:
    shares = run(tmp_path / "volume", network, seed, SHORT)
    assert all(1.0 <= share <= SMALL_GOAL for share in shares.values()), shares


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_resync_after_an_hour_of_random_writes(
    tmp_path: Path, seed: int, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nseed {seed}")
        shares = run(tmp_path / "volume", network, seed, LONG)
    assert all(1.0 <= share <= GOAL for share in shares.values()), shares
