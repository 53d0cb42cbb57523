"""A new volume at the sites, and the file system on it (figure 3): what `trisite mkfs` does."""

import time
from uuid import uuid4

import msgspec
import trio

from jfs.mkfs import make_file_system
from replication.client import ask_site
from replication.config import SITE_NAMES, Config, SiteName
from replication.control import ControlError, CreateVolume
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.mounting import open_writer
from replication.procedures.plan import Survey
from replication.procedures.results import ProcedureRefused
from replication.procedures.survey import take_survey
from replication.roles import first_roles

CREATE_SECONDS = 60.0
START_SECONDS = 5.0  # daemons that were started with the same breath may take this long to listen
POLL_SECONDS = 0.2
NEEDED: tuple[SiteName, ...] = ("primary", "sync")


class CreateResult(msgspec.Struct, frozen=True, kw_only=True):
    """The new volume; `async_reached` False: the async site gets its copy when it answers."""

    uuid: str
    size_bytes: int
    async_reached: bool


async def create_volume(config: Config, *, force: bool = False) -> CreateResult:
    """Make the volume at all sites that answer and an empty file system on it.

    Primary and sync must answer. ProcedureRefused in one sentence if they do not, or if a site holds a volume
    and not `force`.
    """
    survey = await _survey_of_needed(config)
    for site in NEEDED:
        if site not in survey.reports:
            raise ProcedureRefused(
                f"a new volume needs site {site}, which does not answer ({survey.why_silent(site)}); "
                f"start its daemon with `trisite site {site}`",
                4,
            )
    reports = [survey.reports[site] for site in SITE_NAMES if site in survey.reports]
    holding = [report.site for report in reports if report.volume is not None]
    if holding and not force:
        holders = f"site {holding[0]} holds" if len(holding) == 1 else f"sites {', '.join(holding)} hold"
        raise ProcedureRefused(f"{holders} a volume already; --force makes a new one and loses what is on it")
    # Before any site forgets its volume: the other sites must not be emptied under a mounted file system.
    if mounted := [report.site for report in reports if report.mounted]:
        raise ProcedureRefused(
            f"the volume is mounted at site {mounted[0]}; unmount it (trisite umount) before making a new one"
        )
    uuid = uuid4()
    roles = first_roles(time.time_ns())
    request = CreateVolume(
        uuid=str(uuid), name=config.volume.name, size_bytes=config.volume.size_bytes, roles=roles, force=force
    )
    # The writer last: it begins to ship as soon as it has the volume.
    for site in reversed(SITE_NAMES):
        if site in survey.reports:
            await _create_at(config, site, request)
    async with open_writer(config, "primary") as writer:
        await make_file_system(writer.device, volume_uuid=uuid, epoch=roles.epoch, label=config.volume.name)
        await writer.device.flush()
    return CreateResult(
        uuid=str(uuid), size_bytes=config.volume.size_bytes, async_reached="async" in survey.reports
    )


async def _survey_of_needed(config: Config) -> Survey:
    """What the sites say, once those that are needed answer or have had the time to start."""
    deadline = trio.current_time() + START_SECONDS
    while True:
        survey = await take_survey(config)
        if all(site in survey.reports for site in NEEDED) or trio.current_time() > deadline:
            return survey
        await trio.sleep(POLL_SECONDS)


async def _create_at(config: Config, site: SiteName, request: CreateVolume) -> None:
    try:
        await ask_site(config, site, request, CREATE_SECONDS)
    except (PeerRefused, RemoteProtocolError, ControlError) as error:
        raise ProcedureRefused(f"site {site} cannot make the volume: {error}") from error
    except PeerUnreachable as error:
        raise ProcedureRefused(
            f"site {site} stopped answering while it made the volume ({error}); run mkfs again, with --force "
            "where a site holds the unfinished volume",
            4,
        ) from error
