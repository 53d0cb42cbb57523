"""Three sites as processes, a mounted file system under load, and processes killed in the middle of it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import trio

from replication.config import load
from replication.status import collect
from tests.system.load import ENDED, MOUNT_GONE
from tests.system.load_ledger import Ledger
from tests.system.load_workers import WORKERS
from tools.demo.stage import SITES, Stage, trisite_command
from tools.errors import ExitCode, Failure

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS: Final = 120.0
OPTIONS: Final = "silence_seconds = 1.0\nprotect_timeout_seconds = 20.0\n"
IMPATIENT: Final = (
    "silence_seconds = 1.0\nprotect_timeout_seconds = 0.5\n"  # writes fail without the sync site
)
SHORT_QUEUE: Final = f'{OPTIONS}queue_limit_bytes = "2MiB"\n'  # outgrown while the far site is away
ATTEMPTS: Final = 5
UNREACHABLE: Final = f"ended with {ExitCode.UNREACHABLE}:"
STEPS_FIRST: Final = 20  # acknowledged steps that make a load a load


GroundT = TypeVar("GroundT", bound="Ground")


class Found(NamedTuple):
    """What a check of the mounted file system came to."""

    acknowledged: int
    errors: list[str]
    faults: list[str]


class Ground(Stage):
    """A stage with an empty volume that is mounted, and the load of these tests."""

    def __init__(self, directory: Path, *, size: str = "512MiB", options: str = OPTIONS) -> None:
        super().__init__(directory)
        self.size = size
        self.options = options
        self.seed = ""
        self.reasons: set[str] = set()  # why a pair did not follow, whenever that was looked at

    def prepare(self) -> None:
        """Three running sites with an empty file system, mounted at primary."""
        self.make_sites()
        self.start_sites(SITES)
        self.trisite("mkfs")
        self.mount("primary")

    def make_sites(self) -> None:
        """The directories, the keys and the configuration."""
        self.trisite("init", str(self.directory), "--size", self.size, config=False)
        text = self.config.read_text(encoding="utf-8").partition("[options]")[0]
        self.config.write_text(f"{text}[options]\n{self.options}", encoding="utf-8")

    def start_sites(self, sites: Sequence[str]) -> None:
        """Start daemons at once and wait until all answer."""
        for site in sites:
            self.start(site, [*trisite_command(), "site", site, "-c", str(self.config)])
        if sites:
            self.wait_for(
                lambda: all(self.status()["sites"][site]["reachable"] for site in sites),
                f"the daemons of {', '.join(sites)} to answer",
            )

    def wait_for(
        self,
        condition: Callable[[], bool],
        what: str,
        process: subprocess.Popen[bytes] | None = None,
        name: str = "",
        seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """As of a stage, with more patience: these tests run beside others."""
        super().wait_for(condition, what, process, name, seconds)

    def status(self) -> dict[str, Any]:
        """What `trisite status --json` says, without the cost of a process: it is asked all the time."""
        snapshot = trio.run(collect, load(self.config))
        status = msgspec.json.decode(msgspec.json.encode(snapshot), type=dict[str, Any])
        self.reasons |= {pair["reason"] for pair in status["pairs"] if pair["state"] != "Duplex"}
        return status

    # -- the load

    def start_load(self) -> None:
        """Start the load and wait until it is one: every worker had something acknowledged."""
        before = self.acknowledged()
        command = [sys.executable, "-m", "tests.system.load", "work", str(self.mountpoint), str(self.ledgers)]
        process = self.start("application", [*command, self.seed], cwd=ROOT)
        self.wait_for(
            lambda: sum(self.acknowledged()) >= sum(before) + STEPS_FIRST,
            "the load to get going",
            process,
            "application",
        )

    def acknowledged(self) -> list[int]:
        """The steps each worker had acknowledged up to now."""
        return [
            path.read_bytes().count(b"\ndone ") if path.exists() else 0
            for path in (self.ledgers / f"{kind.__name__.lower()}.txt" for kind in WORKERS)
        ]

    def load_ended(self, wanted: int) -> None:
        """Wait until the load has ended by itself; Failure if it hangs or found a fault."""
        code = self.running.pop("application").wait(PATIENCE_SECONDS)
        if code != wanted:
            raise Failure(f"the load ended with {code} instead of {wanted}: {self.last_words('application')}")

    def stop_load(self) -> None:
        """End a load whose mount lives."""
        os.kill(self.running["application"].pid, signal.SIGTERM)
        self.load_ended(ENDED)

    def errors(self) -> int:
        """How many calls of the load have failed up to now."""
        return sum(path.read_text().count("\nerror ") for path in self.ledgers.glob("*.txt"))

    # -- the checks

    def look(self) -> Found:
        """Compare what is mounted with the ledgers, in a process that can be given up."""
        command = [
            sys.executable,
            "-m",
            "tests.system.load",
            "check",
            str(self.mountpoint),
            str(self.ledgers),
        ]
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS, cwd=ROOT
        )
        if not run.stdout:
            raise Failure(f"the check ended with {run.returncode}: {run.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(run.stdout)
        return Found(sum(found["acknowledged"].values()), found["errors"], found["faults"])

    def follow(self, source: str, *targets: str) -> None:
        """Wait until these sites follow: the pairs are Duplex."""

        def duplex() -> bool:
            pairs = self.status()["pairs"]
            following = {pair["to"] for pair in pairs if (pair["from"], pair["state"]) == (source, "Duplex")}
            return following >= set(targets)

        self.wait_for(duplex, f"{' and '.join(targets)} to follow site {source}")

    def verify(self, *pairs: str) -> None:
        """`trisite verify` between sites says the same."""
        for pair in pairs:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self.trisite("verify", "--between", pair)
                    break
                except Failure as error:
                    # Beside other loads a daemon may be late with its answer; a difference is never late.
                    if UNREACHABLE not in str(error) or attempt == ATTEMPTS:
                        raise
                    self.wait_for(self.all_answer, "all sites to answer")

    def all_answer(self) -> bool:
        """Whether every daemon answers."""
        return all(site["reachable"] for site in self.status()["sites"].values())

    def queue_is_empty(self) -> bool:
        """Whether the far site has everything, as far as the writer answers."""
        queue = self.status()["queue"]
        return queue is not None and queue["entries"] == 0

    def check_sites(self) -> None:
        """`trisite fsck -n` at every site says clean; the three run at once."""
        runs = [
            subprocess.Popen(
                [*self.trisite_words(), "fsck", "-n", "--at", site, "-c", str(self.config)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for site in SITES
        ]
        said = [run.communicate(timeout=PATIENCE_SECONDS)[0] for run in runs]
        wrong = [
            f"fsck at {site} ended with {run.returncode}: {text}"
            for site, run, text in zip(SITES, runs, said, strict=True)
            if run.returncode != 0
        ]
        if wrong:
            raise Failure("; ".join(wrong))


class Toll(NamedTuple):
    """What a campaign of kills came to."""

    victims: str
    kills: int
    acknowledged: int
    errors: int
    seconds: float


class Campaign:
    """Kills of the same victims at random moments, each followed by a restart and the whole check.

    Sites stay away up to `away_seconds`. `failing`: that is longer than writes wait for them, so calls fail.
    """

    def __init__(
        self,
        ground: Ground,
        victims: Sequence[str],
        seed: int,
        *,
        away_seconds: float = 1.5,
        failing: bool = False,
    ) -> None:
        self.ground = ground
        self.victims = tuple(victims)
        self.away_seconds = away_seconds
        self.failing = failing or "mount" in victims
        self.chance = random.Random(f"{seed} {self.victims}")
        ground.seed = str(seed)

    def run(self, kills: int) -> Toll:
        """Kill so many times; Failure at the first thing that is not as it was acknowledged."""
        began = time.monotonic()
        found = Found(0, [], [])
        for number in range(1, kills + 1):
            try:
                found = self.strike()
            except (Failure, subprocess.TimeoutExpired) as error:
                raise Failure(f"kill {number} of {', '.join(self.victims)}: {error}") from error
        seconds = round(time.monotonic() - began, 1)
        return Toll("+".join(self.victims), kills, found.acknowledged, len(found.errors), seconds)

    def strike(self) -> Found:
        """One kill under load, the restart, and all checks."""
        ground, chance = self.ground, self.chance
        ground.start_load()
        time.sleep(chance.uniform(0.0, 1.2))
        self.kill()
        daemons = [name for name in self.victims if name != "mount"]
        if "mount" in self.victims:
            ground.load_ended(MOUNT_GONE)
            ground.clear_mountpoint()
            chance.shuffle(daemons)
            ground.start_sites(daemons)
            ground.mount("primary")
            self.nothing_lost()  # before anything else could hide what the restart found
        else:
            time.sleep(chance.uniform(0.0, self.away_seconds))
            ground.start_sites(daemons)
            time.sleep(chance.uniform(0.0, 0.8))
            ground.stop_load()
        ground.follow("primary", "sync", "async")
        ground.verify("primary,sync", "sync,async")
        ground.unmount()
        ground.check_sites()
        ground.mount("primary")  # afresh: what is read now comes from the area, not from the page cache
        return self.nothing_lost()

    def kill(self) -> None:
        """All victims: at once, as a power cut takes them, or in any order with moments between."""
        apart = self.chance.choice((0.0, 0.3))
        for name in self.chance.sample(self.victims, len(self.victims)):
            os.kill(self.ground.running[name].pid, signal.SIGKILL)
            time.sleep(self.chance.uniform(0.0, apart))
        self.ground.kill(*self.victims)

    def nothing_lost(self) -> Found:
        """Everything acknowledged is there."""
        found = self.ground.look()
        if found.faults:
            raise Failure(f"{len(found.faults)} faults: {'; '.join(found.faults[:5])}")
        if found.errors and not self.failing:
            # Every site is back before `protect_timeout_seconds`: the application waits and hears nothing.
            raise Failure(f"{len(found.errors)} calls failed under a mount that lived: {found.errors[0]}")
        return found


class TakeOvers(Campaign):
    """The writing site is lost under load, the other near site takes over, works, and gives it back."""

    def strike(self) -> Found:
        """One loss, a take-over, work there, and the return."""
        ground, chance = self.ground, self.chance
        ground.start_load()
        time.sleep(chance.uniform(0.0, 1.2))
        self.kill()
        ground.load_ended(MOUNT_GONE)
        ground.clear_mountpoint()
        self.take_over()
        ground.mount("sync")
        self.nothing_lost()
        ground.start_load()
        time.sleep(chance.uniform(0.0, 0.8))
        ground.stop_load()
        ground.follow("sync", "async")
        ground.verify("sync,async")
        ground.start_sites([name for name in self.victims if name != "mount"])
        self.go_back()
        ground.mount_ended()
        ground.check_sites()
        ground.mount("primary")
        found = self.nothing_lost()
        ground.follow("primary", "sync", "async")
        ground.verify("primary,sync", "sync,async")
        return found

    def take_over(self) -> None:
        """`trisite failover` says that nothing is lost."""
        result = self.ground.answer("failover", "--to", "sync", "--yes")
        if (result["writer"], result["lost"]) != ("sync", 0):
            raise Failure(f"the take-over answered {result}")

    def go_back(self) -> None:
        """`trisite failback` says that the primary site writes again."""
        result = self.ground.answer("failback", "--yes")
        if result["writer"] != "primary":
            raise Failure(f"the return answered {result}")


class BrokenOff(TakeOvers):
    """Take-overs and returns that are broken off again and again before they are let through to their end."""

    LONGEST_SECONDS = 1.8  # a little more than an undisturbed command takes
    TIMES = 2

    def take_over(self) -> None:
        for _ in range(self.TIMES):
            self.break_off("failover", "--to", "sync", daemons=("sync", "async"))
        super().take_over()

    def go_back(self) -> None:
        for _ in range(self.TIMES):
            self.break_off("failback", daemons=SITES)
        super().go_back()

    def break_off(self, *command: str, daemons: Sequence[str]) -> None:
        """SIGKILL to the command or to a daemon that carries it out; the daemon is started again.

        A command that lives ends by itself: done, or with a sentence.
        """
        ground = self.ground
        words = [*ground.trisite_words(), *command, "--yes", "-c", str(ground.config)]
        run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(self.chance.uniform(0.2, self.LONGEST_SECONDS))
        victim = self.chance.choice(("command", *daemons))
        if victim == "command":
            run.kill()
        else:
            ground.kill(victim)
        said = run.communicate(timeout=PATIENCE_SECONDS)[1]
        if "Traceback" in said or "fault in trisite" in said:
            raise Failure(f"{' '.join(command)} without {victim}: {said}")
        if victim != "command":
            ground.start_sites([victim])


@contextmanager
def prepared(directory: Path, **settings: str) -> Iterator[Ground]:
    """A ground with a mounted volume."""
    with prepare(Ground(directory, **settings)) as ground:
        yield ground


@contextmanager
def prepare(made: GroundT) -> Iterator[GroundT]:
    """That ground with a mounted volume; what the processes said is printed when something fails."""
    with made as ground:
        try:
            ground.prepare()
            yield ground
        except BaseException:
            for path in sorted(ground.logs.glob("*.log")):
                print(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}")
            for path in sorted(ground.ledgers.glob("*.txt")):
                print(f"== {path.name}: {Ledger(path).errors[-3:]}")
            raise
