"""Compare sites by hash at one place of the stream, without stopping (design section 7: never cries wolf).

While the volume is mounted, markers travel in the stream: the writer, the sync site and the async site hash
the same ranges when their areas are exactly at the marker. Without a mount the areas stand still: they are
compared once they are at the same sequence. 1 MiB leaves first, then 4 KiB leaves within those that differ,
then these once more if the file system still uses them.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import trio

from replication.client import Client, open_client
from replication.config import Config, SiteName
from replication.control import ControlError, GetDigests, GetRanges, Range, TakeMarker
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.pair import State
from replication.procedures.plan import Survey, known_roles
from replication.procedures.results import ProcedureRefused
from replication.procedures.survey import take_survey
from replication.ranges import intersect, normalise, pieces, total_bytes
from replication.roles import Roles
from replication.words import size

LEAF_BYTES: Final = 1 << 20
FINE_LEAF_BYTES: Final = 4096
BATCH_BYTES: Final = 8 << 20
BATCH_RANGES: Final = 1024
ARRIVAL_SECONDS: Final = 60.0
"""How long a site may take to reach the place in the stream before it is said that it cannot be compared."""
POLL_SECONDS: Final = 0.02
MARKER_TRIES: Final = 3
"""Markers for one batch: where a difference copy takes a site past one, it can be compared at the next."""
FAILURES: Final = (PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one pair of sites; `differing` are the ranges of the volume that are not the same."""

    between: tuple[SiteName, SiteName]
    same: bool
    bytes: int
    differing: list[Range]
    differing_bytes: int


class NotCompared(msgspec.Struct, frozen=True, kw_only=True):
    """A site that could not be compared, and the sentence why."""

    site: SiteName
    sentence: str


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """`same`: everything that was compared is the same. `sequence`: the last place of the comparison."""

    same: bool
    compared: list[Comparison]
    not_compared: list[NotCompared]
    sequence: int
    bytes: int
    seconds: float


class _Passed(Exception):
    """A site went past a marker without being at it, as a difference copy takes it. A sentence."""


class _Run:
    """One verification: the writer's conversation, the others', and what was found."""

    def __init__(self, roles: Roles, clients: dict[SiteName, Client], wanted: set[SiteName]) -> None:
        self.roles = roles
        self.clients = clients
        self.digests: dict[SiteName, list[str]] = {}
        self.differing: dict[tuple[SiteName, SiteName], list[Range]] = {}
        self.why_not: dict[SiteName, str] = {}
        self.stopped: dict[SiteName, str] = {}
        """Sites that nobody copies to at present, and why: where they stand they stay."""
        self.wanted = wanted
        self.sequence = 0
        self.at_rest: int | None = None

    @property
    def present(self) -> list[SiteName]:
        """The sites still in the comparison."""
        order = (self.roles.writer, self.roles.sync_to, self.roles.async_to)
        return [
            site for site in order if site is not None and site in self.wanted and site not in self.why_not
        ]

    def refusal(self, sentence: str) -> ProcedureRefused:
        """What to raise when the writer cannot take part. Without its sync site a protected one never can."""
        return ProcedureRefused(sentence, 4 if self.roles.sync_to in self.why_not else 1)

    async def compare(
        self, ranges: list[Range], leaf_bytes: int
    ) -> dict[tuple[SiteName, SiteName], list[Range]]:
        """The leaves that differ, for each pair of sites, at one place in the stream."""
        found = await (
            self._by_marker(ranges, leaf_bytes) if self.at_rest is None else self._at_rest(ranges, leaf_bytes)
        )
        leaves = [
            (start, min(leaf_bytes, offset + length - start))
            for offset, length in ranges
            for start in range(offset, offset + length, leaf_bytes)
        ]
        present = [site for site in self.present if site in found]
        differing: dict[tuple[SiteName, SiteName], list[Range]] = {}
        for number, one in enumerate(present):
            for other in present[number + 1 :]:
                pairs = zip(leaves, found[one], found[other], strict=True)
                differing[one, other] = [leaf for leaf, mine, theirs in pairs if mine != theirs]
        return differing

    async def _by_marker(self, ranges: list[Range], leaf_bytes: int) -> dict[SiteName, list[str]]:
        far = self.roles.async_to
        if far is None or far not in self.present:
            return await self._take_marker(ranges, leaf_bytes)
        for _ in range(MARKER_TRIES):
            found = await self._take_marker(ranges, leaf_bytes)
            request = GetDigests(sequence=self.sequence, at_rest=False, ranges=[], leaf_bytes=leaf_bytes)
            try:
                digests = await self._wait(far, request)
            except _Passed as passed:
                self.why_not[far] = str(passed)
                continue
            if digests is not None:
                self.why_not.pop(far, None)
                found[far] = digests
            break
        return found

    async def _take_marker(self, ranges: list[Range], leaf_bytes: int) -> dict[SiteName, list[str]]:
        """A marker in the stream, and what writer and sync site computed there."""
        writer = self.clients[self.roles.writer]
        try:
            marker = await writer.ask(TakeMarker(ranges=ranges, leaf_bytes=leaf_bytes), ARRIVAL_SECONDS)
        except ControlError as error:
            raise self.refusal(f"nothing can be compared now: {error.sentence}") from error
        self.sequence = marker.sequence
        found = {self.roles.writer: marker.digests}
        if self.roles.sync_to in self.present:
            site = self.roles.sync_to
            if site is not None and marker.sync_digests is not None:
                found[site] = marker.sync_digests
            elif site is not None:
                self.why_not[site] = marker.sync_reason
        return found

    async def _at_rest(self, ranges: list[Range], leaf_bytes: int) -> dict[SiteName, list[str]]:
        sequence = self.at_rest or 0
        self.sequence = sequence
        found: dict[SiteName, list[str]] = {}
        for site in self.present:
            request = GetDigests(sequence=sequence, at_rest=True, ranges=ranges, leaf_bytes=leaf_bytes)
            digests = await self._wait(site, request)
            if digests is not None:
                found[site] = digests
        return found

    async def _wait(self, site: SiteName, request: GetDigests) -> list[str] | None:
        """The digests once the site is there; None, with the reason noted, when it does not get there.

        _Passed: it is behind the marker and will never have digests of it.
        """
        deadline = trio.current_time() + ARRIVAL_SECONDS
        seen = -1
        while True:
            try:
                answer = await self.clients[site].ask(request, ARRIVAL_SECONDS)
            except FAILURES as error:
                self.why_not[site] = str(error)
                return None
            if answer.digests is not None:
                return answer.digests
            if site in self.stopped:
                self.why_not[site] = f"{self.stopped[site]}; it is at sequence {answer.sequence}"
                return None
            if answer.sequence != seen:
                seen, deadline = answer.sequence, trio.current_time() + ARRIVAL_SECONDS
            arrived = answer.epoch == self.roles.epoch and answer.sequence >= request.sequence
            if arrived and not request.at_rest:
                raise _Passed(
                    f"a copy of what it missed took it past sequence {request.sequence}, where it was to be "
                    f"compared, to {answer.sequence}; run `trisite verify` again when its pair is Duplex"
                )
            if trio.current_time() > deadline or (request.at_rest and seen > request.sequence):
                self.why_not[site] = f"it is at sequence {answer.sequence} and not at {request.sequence}"
                return None
            await trio.sleep(POLL_SECONDS)


async def verify(
    config: Config,
    *,
    between: tuple[str, str] | None = None,
    report: Callable[[str], None] = lambda sentence: None,
) -> VerifyResult:
    """Compare the sites that follow with the writer, or two sites with each other.

    ProcedureRefused when the writer does not answer or the volume has no file system yet.
    """
    began = time.monotonic()
    survey = await take_survey(config)
    roles = known_roles(survey)
    wanted = {config_site(config, name) for name in between or config.sites}
    if roles.writer not in survey.reports:
        raise ProcedureRefused(
            f"nothing can be compared while the writing site {roles.writer} does not answer "
            f"({survey.why_silent(roles.writer)})",
            4,
        )
    run = _Run(roles, {}, wanted | {roles.writer})
    for site in sorted(run.wanted):
        reason = _why_not(survey, roles, site)
        if reason is not None:
            run.why_not[site] = reason
    run.stopped = _stopped(survey, roles)
    total = await _with_clients(config, run, report)
    pairs = [pair for pair in run.differing if between is None or set(pair) == wanted]
    if between is None:
        pairs = [pair for pair in pairs if roles.writer in pair]
    compared = [
        Comparison(
            between=pair,
            same=not run.differing[pair],
            bytes=total,
            differing=run.differing[pair],
            differing_bytes=total_bytes(run.differing[pair]),
        )
        for pair in pairs
        if not set(pair) & set(run.why_not)
    ]
    return VerifyResult(
        same=bool(compared) and all(one.same for one in compared),
        compared=compared,
        not_compared=[NotCompared(site=site, sentence=reason) for site, reason in run.why_not.items()],
        sequence=run.sequence,
        bytes=total,
        seconds=round(time.monotonic() - began, 3),
    )


def config_site(config: Config, name: str) -> SiteName:
    """The site of that name; ConfigurationError if there is none."""
    config.site(name)
    return next(site for site in config.sites if site == name)


def _why_not(survey: Survey, roles: Roles, site: SiteName) -> str | None:
    if site not in survey.reports:
        return f"it does not answer ({survey.why_silent(site)})"
    if site not in {roles.writer, roles.sync_to, roles.async_to}:
        return f"it has no part in epoch {roles.epoch}; `trisite failback` brings it level"
    theirs = survey.reports[site].roles
    if theirs is None or theirs.epoch != roles.epoch:
        return f"it is not in epoch {roles.epoch} yet"
    return None


def _stopped(survey: Survey, roles: Roles) -> dict[SiteName, str]:
    """The sites that the writer does not copy to, by its own record, with a sentence for each."""
    return {
        pair.target: f"its pair is {pair.state}; `trisite pair {way} {pair.source},{pair.target}` copies "
        "what it missed"
        for pair in survey.reports[roles.writer].pairs
        if pair.source == roles.writer and pair.epoch == roles.epoch
        for state, way in ((State.SUSPEND, "resync"), (State.SIMPLEX, "create"))
        if pair.state == state
    }


async def _with_clients(config: Config, run: _Run, report: Callable[[str], None]) -> int:
    """Compare everything with a conversation open to each site; the bytes compared."""
    async with open_client(config, run.roles.writer) as writer:
        run.clients[run.roles.writer] = writer
        return await _with_followers(config, run, run.present[1:], report)


async def _with_followers(
    config: Config, run: _Run, sites: list[SiteName], report: Callable[[str], None]
) -> int:
    """Open the conversations one inside the other, then compare."""
    if not sites:
        return await _compare_all(run, report)
    async with open_client(config, sites[0]) as client:
        run.clients[sites[0]] = client
        return await _with_followers(config, run, sites[1:], report)


async def _compare_all(run: _Run, report: Callable[[str], None]) -> int:
    writer = run.clients[run.roles.writer]
    try:
        used, run.at_rest = await _used(writer)
    except ControlError as error:
        raise run.refusal(f"nothing can be compared now: {error.sentence}") from error
    total, done = total_bytes(used), 0
    for batch in batches(used):
        if len(run.present) < 2:
            return done
        coarse = await run.compare(batch, LEAF_BYTES)
        fine = await _refine(run, writer, coarse)
        for pair in coarse:
            run.differing.setdefault(pair, []).extend(fine.get(pair, []))
        done += total_bytes(batch)
        report(f"{size(done)} of {size(total)} compared at sequence {run.sequence}")
    return done


async def _used(writer: Client) -> tuple[list[Range], int | None]:
    """The ranges in use at the writer, page by page, and the sequence where it rests (None: it does not)."""
    found: list[Range] = []
    following: int | None = 0
    while following is not None:
        page = await writer.ask(GetRanges(from_offset=following), ARRIVAL_SECONDS)
        found += page.ranges
        following = page.next_offset
    return normalise(found), page.sequence


async def _refine(
    run: _Run, writer: Client, coarse: dict[tuple[SiteName, SiteName], list[Range]]
) -> dict[tuple[SiteName, SiteName], list[Range]]:
    """The 4 KiB leaves that differ, of blocks that are in use also after they were found to differ."""
    suspects = normalise([leaf for leaves in coarse.values() for leaf in leaves])
    if not suspects:
        return {}
    first = await _fine(run, suspects)
    used, _ = await _used(writer)
    again = intersect(normalise([leaf for leaves in first.values() for leaf in leaves]), used)
    return await _fine(run, again) if again else {}


async def _fine(run: _Run, ranges: list[Range]) -> dict[tuple[SiteName, SiteName], list[Range]]:
    found: dict[tuple[SiteName, SiteName], list[Range]] = {}
    for batch in batches(ranges):
        for pair, leaves in (await run.compare(batch, FINE_LEAF_BYTES)).items():
            found[pair] = normalise([*found.get(pair, []), *leaves])
    return found


def batches(ranges: list[Range]) -> Iterator[list[Range]]:
    """The ranges cut into leaves' multiples and grouped, a group for one marker."""
    group: list[Range] = []
    size = 0
    for piece in pieces(ranges, LEAF_BYTES):
        if group and (size + piece[1] > BATCH_BYTES or len(group) >= BATCH_RANGES):
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece[1]
    if group:
        yield group
