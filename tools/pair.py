"""`trisite pair`: the copy relations between the sites, which look after themselves.

A pair is created with the volume and at a take-over, suspends when its other end is away, and copies what was
missed when that is back. An operator may suspend one for maintenance and resync it, or delete one whose site
is gone for good and create it again later.
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
from tools.render import Output
from tools.running import run_trio

Action = Literal["suspend", "resync", "create", "delete"]
OUTCOMES: Final[dict[Action, str]] = {
    "suspend": "the copy from {source} to {target} is suspended, what is written meanwhile is noted",
    "resync": "the copy from {source} to {target} goes on, what {target} missed is copied",
    "create": "the pair from {source} to {target} is created, what {target} lacks is copied",
    "delete": "the pair from {source} to {target} is deleted, site {target} protects nothing any more",
}


def pair(
    action: Action,
    sites: Annotated[str, Parameter(help="The pair, as FROM,TO.")] = "",
    /,
    *,
    config: ConfigOption = None,
    force: Annotated[
        bool, Parameter(negative="", help="Suspend or delete also where the sync site cannot be told.")
    ] = False,
) -> int:
    """Suspend a pair for maintenance of its secondary and resync it, or delete one and create it again.

    The application goes on, and what was missed is copied by resync and create. A deleted pair protects
    nothing any more until it is created again.

    Parameters
    ----------
    action
        suspend and resync, or delete and create.
    """
    loaded = configuration.load(config_path(config))
    names = [name.strip() for name in sites.split(",") if name.strip()]
    for name in names:
        loaded.site(name)
    if len(names) != 2:
        raise Failure(f"name the pair as FROM,TO: trisite pair {action} primary,sync", ExitCode.USAGE)
    run_trio(_change, loaded, action, names[0], names[1], force)
    Output().say(f"{OUTCOMES[action].format(source=names[0], target=names[1])}; `trisite status` shows it")
    return ExitCode.OK


async def _change(config: Config, action: Action, source: str, target: str, force: bool) -> None:
    """At the writer, whose pairs they are."""
    writer = known_roles(await take_survey(config)).writer
    if source != writer:
        others = " and ".join(f"{writer},{site}" for site in config.sites if site != writer)
        raise Failure(
            f"there is no pair {source},{target}: site {writer} writes, so the pairs can be {others}",
            ExitCode.REFUSED,
        )
    await ask_site(config, writer, SetPair(target=target, action=action, force=force))
