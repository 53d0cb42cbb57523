"""`trisite mkfs`: a new volume at all three sites, with an empty file system on it."""

from functools import partial
from typing import Annotated, Final

from cyclopts import Parameter

from replication import config as configuration
from replication.creating import create_volume
from tools.errors import ExitCode
from tools.options import ConfigOption, JsonOption, config_path
from tools.render import Output, size
from tools.running import run_trio

ASYNC_AWAY: Final = (
    "site async did not answer: start its daemon there (trisite site async), its first copy begins by "
    "itself then; until trisite status shows that pair as Duplex, only the two near sites hold the volume"
)


def mkfs(
    *,
    config: ConfigOption = None,
    force: Annotated[
        bool, Parameter(negative="", help="Make it even where there is a volume already; that one is gone.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Make an empty file system, at all three sites; their daemons must be running."""
    loaded = configuration.load(config_path(config))
    output = Output(as_json=as_json)
    result = run_trio(partial(create_volume, loaded, force=force))
    output.result(result)
    output.say(f"volume {loaded.volume.name}, {size(result.size_bytes)}, is made: {result.uuid}")
    if not result.async_reached:
        output.say(ASYNC_AWAY)
    return ExitCode.OK
