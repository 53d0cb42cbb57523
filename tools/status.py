"""`trisite status`: where the volume stands, as every reachable site tells it."""

from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter

from replication import config as configuration
from replication.status import Status, collect
from tools.errors import ExitCode
from tools.options import ConfigOption, JsonOption, config_path
from tools.render import Output, clear_screen, duration, size
from tools.running import run_trio

WATCH_SECONDS = 1.0
UNKNOWN = "-"


def status(
    *,
    config: ConfigOption = None,
    as_json: JsonOption = False,
    watch: Annotated[
        bool, Parameter(name="--watch", negative="", help="Show it again every second.")
    ] = False,
) -> int:
    """Show the writer, the pairs and their states, what waits for the far site, and every site."""
    path = config_path(config)
    loaded = configuration.load(path)
    run_trio(show, loaded, as_json, watch)
    return ExitCode.OK


async def show(config: configuration.Config, as_json: bool, watch: bool) -> None:
    """Once, or again and again until the operator has seen enough (one JSON object a line)."""
    output = Output(as_json=as_json)
    while True:
        snapshot = await collect(config)
        output.result(snapshot)
        if not as_json:
            if watch:
                clear_screen()
            tell(output, snapshot, config.path)
        if not watch:
            return
        await trio.sleep(WATCH_SECONDS)


def tell(output: Output, snapshot: Status, path: Path) -> None:
    """The snapshot for a person: what is wrong first, then who writes, then the details."""
    for warning in snapshot.warnings:
        output.say(f"warning: {warning}", style="bold red")
    writer = snapshot.writer or "unknown"
    output.say(f"volume {snapshot.volume}  writer {writer}  epoch {known(snapshot.epoch)}  ({path})")
    output.say(waiting(snapshot))
    if sentence := far_link(snapshot):
        output.say(sentence)
    state = "yes" if snapshot.armed else "no"
    output.say(f"armed for a take-over at the sync site: {state}, {snapshot.armed_reason}")
    if snapshot.pairs:
        output.table(
            "",
            ("pair", "from", "to", "state", "since", "reason"),
            [(p.kind, p.source, p.target, p.state, p.since, p.reason) for p in snapshot.pairs],
        )
    rows = [
        (
            name,
            site.role or UNKNOWN,
            "yes" if site.reachable else "no",
            known(site.epoch),
            known(site.durable_seq),
            known(site.applied_seq),
            "yes" if site.mounted else "no" if site.mounted is False else UNKNOWN,
            site.reason or "",
        )
        for name, site in snapshot.sites.items()
    ]
    columns = ("site", "role", "reachable", ">epoch", ">durable", ">applied", "mounted", "remark")
    output.table("", columns, rows)


def waiting(snapshot: Status) -> str:
    """One line: what waits for the far site and how much the metadata log names."""
    if snapshot.writer is None:
        text = "waiting for the async site: not known"
    elif snapshot.queue is None:
        text = "waiting for the async site: not known, the writer does not answer"
    else:
        lag = UNKNOWN if snapshot.lag_seconds is None else duration(snapshot.lag_seconds)
        text = (
            f"waiting for the async site: {snapshot.queue.entries:,} entries, "
            f"{size(snapshot.queue.bytes)}, lag {lag}"
        )
        # Not of a pair in step: its site answered a moment before the writer, whose queue has moved on since.
        behind = [one.target for one in snapshot.pairs if one.kind == "async" and one.state != "Duplex"]
        far = [snapshot.sites[target].durable_seq for target in behind]
        oldest = snapshot.queue.oldest_seq
        if oldest is not None and any(held is not None and held + 1 < oldest for held in far):
            text += " (and what left the queue before: the far site is older until that is copied)"
    if snapshot.log is not None:
        text += (
            f"; metadata log: {snapshot.log.files:,} files, "
            f"{size(snapshot.log.bytes)} of {size(snapshot.log.capacity_bytes)}"
        )
    return text


def far_link(snapshot: Status) -> str:
    """One line where the link to the far site is limited or compressed; nothing otherwise."""
    link = snapshot.far_link
    if link is None or (link.limit_bytes_per_second is None and link.compression == "none"):
        return ""
    limit = link.limit_bytes_per_second
    text = f"far link: {size(link.wire_bytes)} sent"
    if link.compression != "none":
        text += f" for {size(link.raw_bytes)} ({link.compression})"
    return text + (f", at most {size(limit)} a second" if limit is not None else "")


def known(value: int | None) -> str:
    """A number, or the sign for not known."""
    return UNKNOWN if value is None else f"{value:,}"
