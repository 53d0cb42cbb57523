"""`trisite fsck`: check the file system as it is stored at one site, and repair it where it is written.

Exit codes are those of fsck(8). A check reads the area of the site directly: it needs no daemon, no other
site. A repair goes through the virtual area like any other write, so the other sites get it too.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from jfs import fsck as checker
from jfs.device import FileDevice
from jfs.fsck import Finding, Progress
from replication import config as configuration
from replication.config import Config
from replication.mounting import open_writer
from replication.parts import SitePaths
from replication.procedures.survey import take_survey
from tools.errors import Failure, explain, innermost
from tools.options import ConfigOption, JsonOption, SiteName, config_path
from tools.render import Advance, Output, confirm, duration
from tools.running import run_trio

ATTEMPTS: Final = 5  # at a site that is receiving writes while it is read
PAUSE_SECONDS: Final = 0.5
SHOWN: Final = 50  # findings for a person; --json has them all


class FsckCode(IntEnum):
    """Exit codes of fsck(8)."""

    CLEAN = 0
    CORRECTED = 1
    UNCORRECTED = 4
    OPERATIONAL = 8
    USAGE = 16


class FsckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `fsck --json` says."""

    site: str
    clean: bool
    findings: list[Finding]
    repaired: int
    seconds: float


def fsck(
    *,
    at: Annotated[SiteName, Parameter(help="The site whose copy is checked.")],
    config: ConfigOption = None,
    no: Annotated[bool, Parameter(name="-n", negative="", help="Only check, change nothing.")] = False,
    yes: Annotated[
        bool, Parameter(name="-y", negative="", help="Repair what can be repaired, without asking.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Check the file system at a site, and repair it at the writing site; exit codes as fsck(8)."""
    if no and yes:
        raise Failure("-n (change nothing) and -y (repair) exclude one another; choose one", FsckCode.USAGE)
    try:
        loaded = configuration.load(config_path(config))
    except (Failure, configuration.ConfigurationError) as error:
        raise Failure(explain(error)[0], FsckCode.USAGE) from error
    output = Output(as_json=as_json)
    try:
        return examine(loaded, at, output, no=no, yes=yes)
    except (KeyboardInterrupt, Failure):
        raise
    except Exception as error:
        if isinstance(innermost(error), AssertionError | TypeError | KeyError | AttributeError):
            raise  # a fault of our own is told as one
        raise Failure(explain(error)[0], FsckCode.OPERATIONAL) from error


def examine(config: Config, site: SiteName, output: Output, *, no: bool, yes: bool) -> int:
    """Check, and repair if that is wanted; the exit code."""
    began = time.monotonic()
    findings = checked(config, site, output)
    repairable = any(finding.repairable for finding in findings)
    if repairable and not no and (yes or confirm(f"repair {len(findings)} faults at site {site}?")):
        findings = run_trio(repaired, config, site, output)
    result = FsckResult(
        site=site,
        clean=not findings,
        findings=findings,
        repaired=sum(finding.repaired for finding in findings),
        seconds=round(time.monotonic() - began, 3),
    )
    output.result(result)
    tell(output, result)
    if result.clean:
        return FsckCode.CLEAN
    return FsckCode.CORRECTED if result.repaired == len(findings) else FsckCode.UNCORRECTED


def checked(config: Config, site: SiteName, output: Output) -> list[Finding]:
    """What is wrong with the copy of a site; a copy that changes while it is read is read again."""
    paths = SitePaths(config.site(site).directory)
    if not paths.area.exists():
        raise Failure(
            f"site {site} has no storage area at {paths.area}; run fsck on its machine, after mkfs",
            FsckCode.OPERATIONAL,
        )
    with not_writing(paths, site):
        for attempt in range(ATTEMPTS):
            with output.progress(f"checking site {site}") as advance:
                findings = check_area(paths, percent(advance))
            if not findings:
                return []
            mounted_at = run_trio(where_mounted, config)
            if mounted_at is None:
                return findings
            if attempt < ATTEMPTS - 1:
                time.sleep(PAUSE_SECONDS)
        raise Failure(
            f"site {site} receives writes from site {mounted_at} and is not at rest while it is checked; "
            "unmount the volume and run fsck again",
            FsckCode.OPERATIONAL,
        )


def check_area(paths: SitePaths, progress: Progress) -> list[Finding]:
    """One look at an area, without writing."""
    device = FileDevice(paths.area, read_only=True)
    try:
        return checker.check(device, progress)
    finally:
        device.close()


def percent(advance: Advance) -> Progress:
    """The fraction that fsck tells, as the progress bar takes it."""

    def hear(fraction: float, _phase: str) -> None:
        advance(round(fraction * 100), 100)

    return hear


@contextmanager
def not_writing(paths: SitePaths, site: str) -> Iterator[None]:
    """Keep the site from being mounted meanwhile; Failure if it is."""
    lock = os.open(paths.writer_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Failure(
            f"the volume is mounted at site {site}; unmount it (trisite umount) and run fsck again",
            FsckCode.OPERATIONAL,
        ) from error
    finally:
        os.close(lock)


async def where_mounted(config: Config) -> str | None:
    """The site where the volume is mounted, as far as sites answer."""
    survey = await take_survey(config)
    return next((site for site, report in survey.reports.items() if report.mounted), None)


async def repaired(config: Config, site: SiteName, output: Output) -> list[Finding]:
    """Repair through the virtual area of the writing site, so that every site is repaired."""
    with output.progress(f"repairing at site {site}") as advance:
        async with open_writer(config, site) as writer:
            return await checker.repair(writer.device, percent(advance))


def tell(output: Output, result: FsckResult) -> None:
    """The findings for a person."""
    took = duration(result.seconds)
    if result.clean:
        output.say(f"site {result.site} is clean ({took})")
        return
    rows = [
        (finding.code, finding.place, finding.sentence, fate(finding)) for finding in result.findings[:SHOWN]
    ]
    output.table("", ("fault", "place", "what is wrong", "state"), rows)
    if len(result.findings) > SHOWN:
        output.say(f"and {len(result.findings) - SHOWN} more; --json lists them all")
    output.say(
        f"site {result.site}: faults: {len(result.findings)}, repaired: {result.repaired} ({took})",
        style="bold red",
    )


def fate(finding: Finding) -> str:
    """What became of a finding, or can."""
    if finding.repaired:
        return "repaired"
    return "can be repaired (-y)" if finding.repairable else "cannot be repaired"
