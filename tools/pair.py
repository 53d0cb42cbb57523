"""`trisite pair`: the copy relations between the sites, which look after themselves.

A pair is created with the volume and at a take-over, suspends when its other end is away, and copies what was
missed when that is back. An operator may suspend one for maintenance, and resync it.
"""

from typing import Annotated, Final, Literal

from cyclopts import Parameter

from replication import config as configuration
from replication.client import ask_site
from replication.config import Config
from replication.control import SetPair
from replication.procedures.plan import known_roles
from replication.procedures.survey import take_survey
from tools.errors import ExitCode, Failure
from tools.options import ConfigOption, config_path
from tools.running import run_trio

Action = Literal["suspend", "resync", "create", "delete"]

WHY_NOT: Final = {
    "create": "pairs are created by `trisite mkfs` and at a take-over; more cannot be added yet",
    "delete": "a pair cannot be deleted yet; a site that is gone for good may stay away, the others go on",
}


def pair(
    action: Action,
    sites: Annotated[str, Parameter(help="The pair, as FROM,TO.")] = "",
    /,
    *,
    config: ConfigOption = None,
    force: Annotated[
        bool, Parameter(negative="", help="Suspend also where the sync site cannot be told.")
    ] = False,
) -> int:
    """Suspend a pair for maintenance of its secondary, or resync it: what was missed is copied.

    Parameters
    ----------
    action
        suspend or resync; create and delete are refused with the reason.
    """
    loaded = configuration.load(config_path(config))
    names = [name.strip() for name in sites.split(",") if name.strip()]
    for name in names:
        loaded.site(name)
    if action == "create" or action == "delete":
        raise Failure(WHY_NOT[action], ExitCode.REFUSED)
    if len(names) != 2:
        raise Failure(f"name the pair as FROM,TO: trisite pair {action} primary,sync", ExitCode.USAGE)
    run_trio(_change, loaded, action, names[0], names[1], force)
    return ExitCode.OK


async def _change(
    config: Config, action: Literal["suspend", "resync"], source: str, target: str, force: bool
) -> None:
    """At the writer, whose pairs they are."""
    writer = known_roles(await take_survey(config)).writer
    if source != writer:
        raise Failure(f"site {writer} writes, its pairs are {writer},...; not {source},...", ExitCode.REFUSED)
    await ask_site(config, writer, SetPair(target=target, action=action, force=force))
