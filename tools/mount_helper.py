"""`mount.fuse.trisite`: what mount(8) calls for `mount -t fuse.trisite CONFIG MOUNTPOINT` and for fstab."""

import getopt
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final

from replication import config as configuration
from tools import render
from tools.cli import main as trisite
from tools.cli import own_version
from tools.errors import ExitCode

HELP: Final = """\
Usage: mount.fuse.trisite CONFIG MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]

Mounts a trisite volume. mount(8) calls it for `mount -t fuse.trisite CONFIG MOUNTPOINT` and for a line in
fstab; for people there is `trisite mount`.

-o OPTIONS  mount options, separated by commas; at=SITE chooses the site to mount at (else primary)
-f          do everything but mount
-s, -n, -v, -t TYPE
            accepted, and mean what this does anyway
-h, --help  show this
-V, --version

Exit codes: 0 mounted, 1 usage, 32 not mounted (as mount(8))."""


class MountCode(IntEnum):
    """Exit codes of mount(8)."""

    OK = 0
    USAGE = 1
    FAILED = 32


def split_options(text: str) -> tuple[str, list[str]]:
    """The site that `at=` names, and the other options."""
    words = [word for word in text.split(",") if word]
    sites = [word.removeprefix("at=") for word in words if word.startswith("at=")]
    return sites[-1] if sites else "primary", [word for word in words if not word.startswith("at=")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `mount.fuse.trisite`."""
    try:
        options, words = getopt.gnu_getopt(
            list(sys.argv[1:] if arguments is None else arguments), "sfnvhVo:t:N:", ["help", "version"]
        )
    except getopt.GetoptError as error:
        render.error(
            f"mount.fuse.trisite: {error}; it is called by mount(8) as CONFIG MOUNTPOINT [-o OPTIONS]"
        )
        return MountCode.USAGE
    given = dict(options)
    if {"-h", "--help"} & given.keys():
        render.Output().say(HELP)
        return MountCode.OK
    if {"-V", "--version"} & given.keys():
        render.Output().say(own_version())
        return MountCode.OK
    if len(words) != 2:
        render.error(
            "mount.fuse.trisite needs a configuration and a mount point: CONFIG MOUNTPOINT [-o OPTIONS]"
        )
        return MountCode.USAGE
    source, mountpoint = words
    if "-N" in given:
        render.error("mount.fuse.trisite cannot mount in another name space; run mount inside it (nsenter)")
        return MountCode.USAGE
    site, rest = split_options(",".join(value for name, value in options if name == "-o"))
    if "-f" in given:
        return try_only(source, site)
    command = ["mount", mountpoint, "-c", source, "--at", site]
    if rest:
        command += ["-o", ",".join(rest)]
    code = trisite(command)
    return {ExitCode.OK: MountCode.OK, ExitCode.USAGE: MountCode.USAGE}.get(ExitCode(code), MountCode.FAILED)


def try_only(source: str, site: str) -> int:
    """`mount -f`: everything but the mount."""
    try:
        configuration.load(Path(source)).site(site)
    except configuration.ConfigurationError as error:
        render.error(str(error))
        return MountCode.USAGE
    return MountCode.OK


if __name__ == "__main__":
    sys.exit(main())
