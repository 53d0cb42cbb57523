"""The options that several commands share, declared once so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tools.errors import ExitCode, Failure

CONFIG_VARIABLE = "TRISITE_CONFIG"

ConfigOption = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"],
        env_var=CONFIG_VARIABLE,
        help="The configuration file of the volume; `trisite init` writes one.",
    ),
]
JsonOption = Annotated[
    bool,
    Parameter(name="--json", negative="", help="One JSON object on standard output."),
]
YesOption = Annotated[bool, Parameter(name="--yes", negative="", help="Do not ask, do it.")]
PlanOption = Annotated[
    bool, Parameter(name="--plan", negative="", help="Show the steps and what they cost; change nothing.")
]
SiteName = Literal["primary", "sync", "async"]


def config_path(given: Path | None) -> Path:
    """The configuration file a command was given, or the sentence that asks for one."""
    if given is None:
        raise Failure(
            f"which volume? No configuration file was named; give -c FILE or set {CONFIG_VARIABLE}",
            ExitCode.USAGE,
        )
    return given
