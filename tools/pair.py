"""`trisite pair`: the copy relations between the sites, which look after themselves.

A pair is created with the volume and at a take-over, suspends when its other end is away, and copies what was
missed when that is back. By hand nothing can be done to it yet, and the command says so.
"""

from typing import Annotated, Final, Literal

from cyclopts import Parameter

from replication import config as configuration
from tools.errors import ExitCode, Failure
from tools.options import ConfigOption, config_path

Action = Literal["suspend", "resync", "create", "delete"]

WHY_NOT: Final[dict[Action, str]] = {
    "suspend": "a pair cannot be suspended by hand yet; stop the daemon of the site that is to rest, "
    "the writes it misses are kept and follow when it is started again",
    "resync": "there is nothing to do by hand: a pair copies what was missed by itself as soon as both its "
    "sites answer; `trisite status` shows how far it is",
    "create": "pairs are created by `trisite mkfs` and at a take-over; more cannot be added yet",
    "delete": "a pair cannot be deleted yet; a site that is gone for good may stay away, the others go on",
}


def pair(
    action: Action,
    sites: Annotated[str, Parameter(help="The pair, as FROM,TO.")] = "",
    /,
    *,
    config: ConfigOption = None,
) -> int:
    """Pairs look after themselves; this says what to do instead of doing it by hand.

    Parameters
    ----------
    action
        What was wanted: suspend, resync, create or delete.
    """
    loaded = configuration.load(config_path(config))
    for name in filter(None, sites.split(",")):
        loaded.site(name)
    raise Failure(WHY_NOT[action], ExitCode.REFUSED)
