"""`trisite demo`: three sites, a mount, real work, a dead site, the take-over, the way back, and worse.

Each step says in one line what happens and why. Everything that is claimed is checked: the demo ends with an
error if anything that was acknowledged is missing where it must not be.
"""

import os
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from jfs.mountpoint import check_fuse
from tools.demo.check import Checker, Marks, Tally, marks
from tools.demo.stage import SITES, Stage
from tools.errors import ExitCode, Failure
from tools.render import Output, duration
from tools.render import size as size_text

FEWEST_FILES: Final = 2000
MOST_FILES: Final = 4000
LARGEST_FILE: Final = 1 << 20
TREE: Final = ("tree0", "tree1")
# How much of everything is done while the far site follows, and while it is held back.
FOLLOWED: Final = {"tree0": 250, "log": 20, "database": 5, "git": 2, "history": 20}
HELD: Final = {"log": 100, "database": 30, "git": 3, "history": 100}
LATER: Final = {"log": 30, "database": 10, "git": 2, "history": 30}
WORK_SECONDS: Final = 300.0
POLL_SECONDS: Final = 0.1


def demo(
    *,
    directory: Annotated[
        Path | None, Parameter(name="--dir", help="Where to put it: a new or empty directory.")
    ] = None,
    keep: Annotated[bool, Parameter(negative="", help="Leave the sites and the logs behind.")] = False,
    size: Annotated[
        str, Parameter(help="The size of the volume; what has to be copied does not depend on it.")
    ] = "8GiB",
) -> int:
    """Show and check the whole story on this machine; it takes a minute or two and needs /dev/fuse."""
    check_fuse()
    if shutil.which("git") is None:
        raise Failure("the demo commits to a git repository, but git is not installed; install git")
    place = chosen_directory(directory)
    output = Output()
    try:
        with Stage(place) as stage:
            Story(stage, output, size).tell()
    except Failure as failure:
        sentence = f"the demo failed: {failure.sentence}; everything is kept in {place}"
        raise Failure(sentence, failure.code) from failure
    if keep:
        output.say(f"everything is kept in {place}")
    else:
        stage.remove()
    return ExitCode.OK


def chosen_directory(given: Path | None) -> Path:
    """The directory of the demo; never one that holds anything."""
    if given is None:
        return Path(tempfile.mkdtemp(prefix="trisite-demo-"))
    if given.exists() and any(given.iterdir()):
        raise Failure(f"{given} is not empty; name a new or an empty directory with --dir", ExitCode.REFUSED)
    given.mkdir(parents=True, exist_ok=True)
    return given.absolute()


def source_files() -> list[tuple[Path, str]]:
    """A real source tree: Python's standard library, with the installed packages where it is small."""
    found: list[tuple[Path, str]] = []
    for name in ("stdlib", "purelib"):
        root = Path(sysconfig.get_path(name))
        for directory, below, files in os.walk(root):
            below[:] = sorted(set(below) - {"__pycache__", "site-packages", "dist-packages"})
            for file in sorted(files):
                path = Path(directory) / file
                if path.is_file() and path.stat().st_size <= LARGEST_FILE and len(found) < MOST_FILES:
                    found.append((path, f"{name}/{path.relative_to(root)}"))
    if len(found) <= FEWEST_FILES:
        raise Failure(
            f"the demo copies more than {FEWEST_FILES} source files, and Python's library has {len(found)} "
            "here; install the whole standard library"
        )
    return found


class Story:
    """The acts of the demo, in order."""

    def __init__(self, stage: Stage, output: Output, size: str) -> None:
        self.stage = stage
        self.output = output
        self.size = size
        self.began = time.monotonic()
        self.number = 0
        self.sources = stage.directory / "sources.txt"
        self.numbers: list[tuple[str, str]] = []
        self.looks: dict[str, list[Tally]] = {}

    def tell(self) -> None:
        """The whole story."""
        self.build()
        self.lose_the_primary()
        self.take_over_at_sync()
        self.return_to_primary()
        self.lose_two_sites()
        self.sum_up()

    def step(self, text: str) -> None:
        """One line for whoever watches."""
        self.number += 1
        self.output.say(f"{self.number:2}. [{time.monotonic() - self.began:5.1f} s] {text}")

    # -- act one: a volume at three sites, and work on it

    def build(self) -> None:
        """Three sites, a file system, a mount, an application."""
        stage = self.stage
        self.step(f"three sites on this machine, a volume of {self.size}: trisite init")
        stage.trisite("init", str(stage.directory), "--size", self.size, config=False)
        files = source_files()
        self.sources.write_text("".join(f"{path}\t{name}\n" for path, name in files), encoding="utf-8")
        for site in SITES:
            self.step(f"the daemon of site {site} starts: trisite site {site}")
            stage.start_site(site)
        self.step("an empty file system, at all three sites: trisite mkfs")
        stage.trisite("mkfs")
        self.step("the volume is mounted at the primary site: trisite mount")
        stage.mount("primary")
        self.step(
            f"an application works on it: {len(files):,} source files are copied, a git repository takes "
            "commits, SQLite takes transactions, a log takes records, each with fsync"
        )
        stage.start_application(self.sources)
        self.work(FOLLOWED)

    def work(self, more: Marks, *, files: int = 0) -> None:
        """Wait until the application has done that much more, and has copied `files` files in all."""
        before = marks(self.stage.ledgers)
        deadline = time.monotonic() + WORK_SECONDS
        while not self.done(before, more, files):
            if self.stage.running["application"].poll() is not None:
                reason = (self.stage.ledgers / "ended.txt").read_text(encoding="utf-8").strip()
                raise Failure(f"the application ended by itself ({reason or 'see its log'})")
            if time.monotonic() > deadline:
                raise Failure(
                    f"the application did not get far enough in {WORK_SECONDS:.0f} seconds: "
                    f"it was at {before}, is at {marks(self.stage.ledgers)} and was to do {more} more"
                )
            time.sleep(POLL_SECONDS)

    def done(self, before: Marks, more: Marks, files: int) -> bool:
        """Whether the application got there."""
        now = marks(self.stage.ledgers)
        there = all(now[name] >= before[name] + count for name, count in more.items())
        return there and sum(now[name] for name in TREE) >= files

    def hold_far_site(self, more: Marks, *, files: int = 0) -> None:
        """Stall the far site, and work on until entries wait for it."""
        self.stage.hold("async")
        self.work(more, files=files)
        queue = self.stage.answer("status")["queue"]
        if not queue or not queue["entries"]:
            raise Failure("nothing waits for the far site although it is held back: nothing would be shown")
        self.step(
            f"the far site is held back: {queue['entries']:,} entries, {size_text(queue['bytes'])}, wait for "
            "it, and the application does not notice"
        )

    # -- act two: the primary site dies

    def lose_the_primary(self) -> None:
        """Everything at the primary site ends at once, in the middle of the work."""
        self.hold_far_site(HELD, files=FEWEST_FILES)
        self.step("the primary site is lost: SIGKILL to its daemon and its mount, in the middle of the work")
        self.kill_in_the_middle("mount", "primary")

    def kill_in_the_middle(self, *names: str) -> None:
        """Kill processes under the working application, and take away what is left of the mount."""
        self.lost_at = time.monotonic()
        self.stage.kill(*names)
        self.stage.application_ended()
        self.stage.clear_mountpoint()
        self.stage.release("async")

    def take_over_at_sync(self) -> None:
        """The sync site becomes the writer; nothing acknowledged may be missing there."""
        self.step("the sync site takes over: trisite failover --to sync")
        result = self.stage.answer("failover", "--to", "sync", "--yes")
        if result["lost"] != 0:
            raise Failure(f"the take-over could not prove that nothing was lost: lost is {result['lost']}")
        self.mount_again("sync")
        self.numbers += [
            ("seconds without service, sync site took over", f"{time.monotonic() - self.lost_at:.1f}"),
            ("files the metadata log named", f"{result['files_listed']:,}"),
            ("bytes looked at, with the log area", size_text(result["bytes_listed"])),
            ("bytes copied to the far site", size_text(result["bytes_copied"])),
        ]
        self.step("every acknowledged byte is looked for at the sync site")
        self.look("at sync")
        self.step("the application goes on there, and the far site follows")
        self.stage.start_application(self.sources)
        self.work(LATER)
        self.compare("sync,async")
        self.work({"log": 1})  # it was not stopped by the comparison
        self.stop_application()

    def mount_again(self, site: str) -> None:
        """Mount at a site and use it once: then the service is back."""
        self.step(f"mounted at the {site} site: trisite mount --at {site}")
        self.stage.mount(site)
        probe = self.stage.mountpoint / "service-is-back"
        with probe.open("w") as file:
            file.write(f"mounted at {site}\n")
            file.flush()
            os.fsync(file.fileno())

    def look(self, where: str, behind: Marks | None = None) -> None:
        """Check everything that is mounted against the ledgers; the first fault ends the demo."""
        tallies = Checker(self.stage.mountpoint, self.stage.ledgers, behind).run()
        self.looks[where] = tallies
        faults = [fault for tally in tallies for fault in tally.faults]
        for fault in faults:
            self.output.say(f"    WRONG {where}: {fault}", style="bold red")
        if faults:
            raise Failure(f"{len(faults)} things are wrong {where}, first: {faults[0]}", ExitCode.DAMAGED)
        if behind is None:
            found = sum(tally.acknowledged for tally in tallies)
            self.output.say(f"    {found:,} acknowledged steps, all there, byte by byte")

    def compare(self, sites: str) -> None:
        """Two sites must hold the same blocks; compared at one point of the stream, at work."""
        self.step(f"two sites are compared block by block, at work: trisite verify --between {sites}")
        self.stage.trisite("verify", "--between", sites)

    def check_file_system(self, site: str) -> None:
        """The file system as it is stored at a site must be sound."""
        self.step(f"its structure is checked as it is stored at the {site} site: trisite fsck --at {site} -n")
        self.stage.trisite("fsck", "--at", site, "-n")

    def stop_application(self) -> None:
        """Let the application finish what it is at, and end it."""
        if self.stage.end("application") != 0:
            raise Failure("the application met an error although its file system was well")

    # -- act three: the way back

    def return_to_primary(self) -> None:
        """The primary site comes back, is brought level and becomes the writer again."""
        self.step("the primary site is back: its daemon starts")
        self.stage.start_site("primary")
        self.step("it is brought level and writes again: trisite failback")
        began = time.monotonic()
        result = self.stage.answer("failback", "--yes")
        self.stage.mount_ended()
        self.mount_again("primary")
        self.numbers += [
            ("bytes copied to return to the primary site", size_text(result["bytes_copied"])),
            ("seconds the return took, with the mount", f"{time.monotonic() - began:.1f}"),
        ]
        self.look("back at primary")
        self.compare("primary,sync")
        self.compare("primary,async")

    # -- act four: two sites die at once

    def lose_two_sites(self) -> None:
        """Primary and sync die together; the far site is an exact earlier state."""
        self.step("the application goes on at the primary site")
        self.stage.start_application(self.sources)
        self.work(LATER)
        arrived = self.what_has_arrived()
        self.hold_far_site(LATER)
        self.step("primary and sync site are lost at once: SIGKILL to all they run")
        self.kill_in_the_middle("mount", "primary", "sync")
        self.step("the far site takes over with what it has: trisite failover --to async --accept-loss")
        result = self.stage.answer("failover", "--to", "async", "--accept-loss", "--yes")
        lost = "not known to any site that is left" if result["lost"] is None else f"{result['lost']:,}"
        self.numbers.append(("operations lost with two sites, as the take-over says", lost))
        self.mount_again("async")
        self.numbers.append(
            ("seconds without service, far site took over", f"{time.monotonic() - self.lost_at:.1f}")
        )
        self.step("it must be exactly what was there at an earlier moment, no older than what had arrived")
        self.look("at async", behind=arrived)
        self.stage.unmount()
        self.check_file_system("async")

    def what_has_arrived(self) -> dict[str, int]:
        """Work that is certainly at the far site: what was acknowledged before a point it has passed."""
        so_far = marks(self.stage.ledgers)
        newest = self.newest_sequence(self.stage.answer("status"))

        def passed() -> bool:
            return bool((self.stage.answer("status")["sites"]["async"]["durable_seq"] or 0) >= newest)

        self.stage.wait_for(passed, "the far site to have what was written so far")
        return so_far

    @staticmethod
    def newest_sequence(status: Mapping[str, Any]) -> int:
        """The newest write the primary site has queued, or, if nothing waits, what the far site has."""
        return int(status["queue"]["newest_seq"] or status["sites"]["async"]["durable_seq"] or 0)

    # -- the end

    def sum_up(self) -> None:
        """What was written, listed, copied, and how long nothing could be used."""
        self.step("everything held; in numbers:")
        rows: list[Sequence[str]] = []
        first = self.looks["at sync"]
        for place, tally in enumerate(first):
            last, far = self.looks["back at primary"][place], self.looks["at async"][place]
            rows.append(
                (
                    f"{tally.what}, {tally.unit}",
                    f"{tally.acknowledged:,}",
                    f"{tally.missing:,}",
                    f"{last.acknowledged:,}",
                    f"{last.missing:,}",
                    f"{far.acknowledged:,}",
                    f"{far.found:,}",
                )
            )
        columns = (
            "work", ">acknowledged before primary died", ">missing at sync", ">before the return",
            ">missing at primary", ">before two sites died", ">exact state at async",
        )  # fmt: skip
        self.output.table("", columns, rows)
        written = sum(tally.size for tally in first)
        numbers = [
            ("size of the volume", self.size),
            ("bytes of files when the primary site died", size_text(written)),
            *self.numbers,
        ]
        self.output.table("", ("what", ">measured"), numbers)
        self.output.say(f"the demo took {duration(time.monotonic() - self.began)}")
