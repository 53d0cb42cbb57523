"""Ask every site at once how it stands; a dead or stalled one costs a short wait, the same for all
together.
"""

from typing import Final

import trio

from replication.client import ask_site
from replication.config import SITE_NAMES, Config, SiteName
from replication.control import ControlError, GetStatus, SiteReport
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.keys import OPERATOR
from replication.procedures.plan import Survey, writes_ahead_of_sync
from replication.roles import Roles

SURVEY_SECONDS: Final = 2.5
"""All a survey may take: a living site answers in milliseconds, a stalled one never."""


async def take_survey(
    config: Config,
    sites: tuple[SiteName, ...] = SITE_NAMES,
    *,
    caller: str = OPERATOR,
    roles: Roles | None = None,
    volume: str | None = None,
    seconds: float = SURVEY_SECONDS,
) -> Survey:
    """What each of `sites` says; those that do not answer within `seconds` are silent, with the reason.

    A site that asks says which `roles` it holds of which `volume`, so that one that is behind learns them.
    """
    reports: dict[SiteName, SiteReport] = {}
    silent: dict[SiteName, str] = {}

    async def ask_one(site: SiteName) -> None:
        silent[site] = f"no answer within {seconds:g} s"
        with trio.move_on_after(seconds):
            try:
                reports[site] = await ask_site(
                    config,
                    site,
                    GetStatus(),
                    seconds,
                    caller=caller,
                    roles=roles,
                    volume=volume,
                    connect_seconds=seconds,
                )
                del silent[site]
            except (PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError) as error:
                silent[site] = str(error)

    async with trio.open_nursery() as nursery:
        for site in sites:
            nursery.start_soon(ask_one, site)
    survey = Survey(reports=reports, silent=silent)
    newest = survey.newest()
    if newest is not None and writes_ahead_of_sync(survey, newest):
        # Perhaps it only answered earlier than site async: in step, it has by now what that one had then.
        del reports["sync"]
        await ask_one("sync")
    return survey
