"""`trisite quarantine`: what a returning site alone had, which `failback` set aside; list, show, restore.

It reads the directory of the site on this machine, like `fsck`: no daemon is needed and nothing is changed.
"""

import datetime
import os
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cyclopts import Parameter

from replication import config as configuration
from replication.config import Config
from replication.parts import SitePaths
from replication.restoring import Kept, RestoreResult, kept_at, restore
from tools.errors import ExitCode, Failure
from tools.mount_table import FILE_SYSTEM_TYPE, type_at
from tools.options import ConfigOption, JsonOption, SiteName, config_path
from tools.render import Output, size

Action = Literal["list", "show", "restore"]
PARTIAL: Final = "the rest is holes: it was no different elsewhere, and was not kept"
NOT_EXACT: Final = (
    "which writes this site alone had was not known exactly; what its metadata log named was kept instead"
)


class KeptReport(msgspec.Struct, frozen=True, kw_only=True):
    """A quarantine as `quarantine --json` lists it; `complete` as in its listing."""

    id: str
    path: str
    made: str
    epoch: int
    after_sequence: int
    writes: int
    bytes: int
    files: int
    complete: bool


def quarantine(
    action: Action = "list",
    name: Annotated[str, Parameter(help="Which, by its id from the list.")] = "",
    /,
    *,
    at: Annotated[SiteName, Parameter(help="The site that returned; its directory is on this machine.")],
    to: Annotated[
        Path | None, Parameter(help="Where to restore to: a new or empty directory, not in the volume.")
    ] = None,
    blocks: Annotated[
        bool,
        Parameter(
            negative="", help="Also write every kept block, at its place in the volume, to DIR/blocks."
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """List, show or restore what a site alone had when it came back: writes that reached no other site.

    Parameters
    ----------
    action
        list (if nothing is said), show ID, or restore ID --to DIR.
    """
    loaded = configuration.load(config_path(config))
    output = Output(as_json=as_json)
    found = kept_at(directory_of(loaded, at))
    if action == "list":
        output.result({"site": at, "quarantines": [report_of(kept) for kept in found]})
        tell_list(output, at, found)
        return ExitCode.OK
    chosen = named(found, name, at)
    if action == "show":
        output.result({"id": chosen.name, "path": str(chosen.path), **msgspec.to_builtins(chosen.listing)})
        tell_files(output, chosen)
        return ExitCode.OK
    if to is None:
        raise Failure("name a directory to restore to: --to DIR, new or empty", ExitCode.USAGE)
    result = restore(chosen, made_ready(to), blocks=blocks)
    output.result(result)
    tell_restored(output, chosen, result)
    return ExitCode.OK


def directory_of(config: Config, site: SiteName) -> Path:
    """The `quarantine/` of a site; Failure where the site is not on this machine."""
    paths = SitePaths(config.site(site).directory)
    if not paths.directory.is_dir():
        raise Failure(
            f"the directory {paths.directory} of site {site} is not on this machine; run the command on the "
            f"machine of site {site} ({config.site(site).host})"
        )
    return paths.quarantine


def named(found: list[Kept], name: str, site: SiteName) -> Kept:
    """The quarantine that was named; without a name the only one there is."""
    if not name and len(found) == 1:
        return found[0]
    for kept in found:
        if kept.name == name:
            return kept
    if not found:
        raise Failure(f"site {site} has nothing in quarantine", ExitCode.REFUSED)
    ids = ", ".join(kept.name for kept in found)
    if not name:
        raise Failure(f"say which: site {site} has {ids}", ExitCode.USAGE)
    raise Failure(f"site {site} has no quarantine {name!r}; it has {ids}", ExitCode.USAGE)


def made_ready(to: Path) -> Path:
    """The directory to restore to, made if it is not there; Failure if it is in use or in the live volume."""
    place = Path(os.path.realpath(to))
    if type_at(str(place)) == FILE_SYSTEM_TYPE:
        raise Failure(
            f"{to} is in a mounted volume; restore outside of it and copy back what you want",
            ExitCode.REFUSED,
        )
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    if next(place.iterdir(), None) is not None:
        raise Failure(f"{to} is not empty; name a new directory", ExitCode.REFUSED)
    return place


def report_of(kept: Kept) -> KeptReport:
    """A line of the list."""
    listing = kept.listing
    made = datetime.datetime.fromtimestamp(kept.made, tz=datetime.UTC)
    return KeptReport(
        id=kept.name,
        path=str(kept.path),
        made=made.isoformat(timespec="seconds"),
        epoch=listing.epoch,
        after_sequence=listing.after_sequence,
        writes=listing.entries,
        bytes=listing.bytes,
        files=len(listing.files),
        complete=listing.complete,
    )


def tell_list(output: Output, site: SiteName, found: list[Kept]) -> None:
    """The quarantines of a site for a person."""
    if not found:
        output.say(f"site {site} has nothing in quarantine")
        return
    rows = [
        (
            one.id,
            one.made,
            f"{one.writes:,}",
            size(one.bytes),
            f"{one.files:,}",
            "what it wrote" if one.complete else "what its log named",
        )
        for one in map(report_of, found)
    ]
    columns = ("quarantine", "set aside", ">writes", ">size", ">files", "holds")
    output.table("", columns, rows)
    output.say(f"next: trisite quarantine show ID --at {site}, or restore ID --to DIR --at {site}")


def tell_files(output: Output, kept: Kept) -> None:
    """The files of a quarantine for a person."""
    listing = kept.listing
    rows = [
        (
            file.path or f"(inode {file.inode})",
            size(file.size_bytes),
            size(file.kept_bytes),
            "whole" if file.whole else "in part" if file.pieces else "not known",
        )
        for file in listing.files
    ]
    if rows:
        output.table("", ("file", ">size", ">kept", "restorable"), rows)
    output.say(
        f"{kept.name} of site {listing.site}: {listing.entries:,} writes after sequence "
        f"{listing.after_sequence:,}, {size(listing.bytes)}, {len(listing.files):,} files; in {kept.path}"
    )
    if not listing.complete:
        output.say(NOT_EXACT, style="bold red")


def tell_restored(output: Output, kept: Kept, result: RestoreResult) -> None:
    """What was restored, for a person."""
    whole = sum(file.whole for file in result.files)
    partial = len(result.files) - whole
    output.say(
        f"{len(result.files):,} files with {size(result.file_bytes)} are restored in {result.to}: "
        f"{whole:,} whole, {partial:,} in part{f' ({PARTIAL})' if partial else ''}"
    )
    if result.other_bytes:
        where = f"they are in {result.blocks}" if result.blocks else "--blocks restores them too"
        output.say(
            f"{size(result.other_bytes)} belong to no known file (metadata for the most part); {where}"
        )
    if not kept.listing.complete:
        output.say(NOT_EXACT, style="bold red")
