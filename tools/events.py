"""`trisite events`: every transition of the pairs, as each end has it on record, with its cause."""

import sys
from typing import Annotated, Final

import msgspec
import trio
from cyclopts import Parameter

from replication import config as configuration
from replication.client import ask_site
from replication.config import SITE_NAMES, Config, SiteName
from replication.control import ControlError, EventsReply, GetEvents
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.roles import iso_text
from replication.state import PairEvent
from tools.errors import ExitCode, Failure
from tools.options import ConfigOption, config_path
from tools.render import Output
from tools.running import run_trio

LOOK_SECONDS: Final = 0.5
ASK_SECONDS: Final = 2.5


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `events --json`: site `at_site` moved its end of the pair at `time`, because of `cause`.

    `cause` is the event of the table in docs/pairs.md, `reason` the sentence.
    """

    time: str
    at_site: SiteName
    number: int
    kind: str
    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    before: str
    state: str
    cause: str
    reason: str


def events(
    *,
    config: ConfigOption = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="One JSON object a line on standard output.")
    ] = False,
    follow: Annotated[
        bool, Parameter(name="--follow", negative="", help="Go on with what happens from now on.")
    ] = False,
) -> int:
    """Show every transition of the pairs that a site has on record, with its cause.

    Both ends of a pair keep their own; a site that does not answer is named on standard error.
    """
    loaded = configuration.load(config_path(config))
    return run_trio(show, loaded, as_json, follow)


async def show(config: Config, as_json: bool, follow: bool) -> int:
    """What there is, oldest first, and (`follow`) what comes, until the reader has seen enough."""
    output = Output(as_json=as_json)
    seen: dict[SiteName, int] = {}
    silent: dict[SiteName, str] = {}
    while True:
        missing: dict[SiteName, str] = {}
        for at, event in await collect(config, seen, missing):
            tell(output, msgspec.convert(line_of(at, event), Event))
        if not follow and len(missing) == len(SITE_NAMES):
            reasons = "; ".join(missing[site] for site in SITE_NAMES)
            sentence = f"no site answers ({reasons}); start their daemons with `trisite site NAME`"
            raise Failure(sentence, ExitCode.UNREACHABLE)
        for site in SITE_NAMES:
            if site in missing and site not in silent:
                output.note(f"the transitions at site {site} are not shown: {missing[site]}")
        silent = missing
        if not follow:
            return ExitCode.OK
        await trio.sleep(LOOK_SECONDS)


async def collect(
    config: Config, seen: dict[SiteName, int], missing: dict[SiteName, str]
) -> list[tuple[SiteName, PairEvent]]:
    """What the sites have after the numbers `seen`, which move on, in the order of time."""
    found: list[tuple[SiteName, PairEvent]] = []

    async def ask_one(site: SiteName) -> None:
        try:
            while (reply := await newer(config, site, seen.get(site, 0))).events:
                found.extend((site, event) for event in reply.events)
                seen[site] = reply.events[-1].number
            seen[site] = min(seen.get(site, 0), reply.newest)  # a new volume counts from 1 again
        except (PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError) as error:
            missing[site] = str(error)

    async with trio.open_nursery() as nursery:
        for site in SITE_NAMES:
            nursery.start_soon(ask_one, site)
    return sorted(found, key=lambda one: one[1].at)


async def newer(config: Config, site: SiteName, after: int) -> EventsReply:
    """The next transitions of one site."""
    return await ask_site(config, site, GetEvents(after=after), ASK_SECONDS)


def line_of(at: SiteName, event: PairEvent) -> dict[str, object]:
    """The fields of a line."""
    return {
        "time": iso_text(event.at),
        "at_site": at,
        "number": event.number,
        "kind": event.kind,
        "from": event.source,
        "to": event.target,
        "before": event.before or "new",
        "state": event.state,
        "cause": event.event or "unknown",
        "reason": event.reason,
    }


def tell(output: Output, event: Event) -> None:
    """One line for a person or for a program."""
    output.result(event)
    output.say(
        f"{event.time}  at {event.at_site}: {event.source} -> {event.target} ({event.kind})  "
        f"{event.before} -> {event.state}  [{event.cause}] {event.reason}"
    )
    sys.stdout.flush()
