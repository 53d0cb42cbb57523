"""Who writes, who follows, and who may talk to whom: the pure rules of fencing (figures 10, 11, 13, 14).

Invariant: the epoch rises at every change of the writer; a site adopts roles only if their epoch is higher
than its own; a peer of a lower epoch is refused as soon as the difference is seen. So a writer that was
superseded while it was away can never again write to a site that knows of it.

Two sites that do not see each other may both be promoted to the same number. So an epoch is (number, writer,
term), the term drawn at random at the promotion, and roles name the epochs they came from. The same number
with another term is a *fork*: neither adopts the other, no data flows between them, and an operator decides.
Whoever adopts roles finds by their ancestors where its own writes left that history (`parting`).
"""

import datetime
import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from replication.config import SITE_NAMES, SiteName

FIRST_EPOCH: Final = 1
NO_TERM: Final = "0" * 32
"""The term of an epoch that a release without terms began."""
MOST_ANCESTORS: Final = 32
"""Epochs that roles name; whoever was away for longer has everything compared."""


class Purpose(StrEnum):
    """What a conversation is for, named in the hello."""

    SYNC = "sync"
    ASYNC = "async"
    LEVEL = "level"
    CONTROL = "control"


Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A sequence, an epoch, bytes, or nanoseconds of the Unix clock (to the year 2262), as a peer may say it."""
Term = Annotated[str, msgspec.Meta(max_length=64)]


class Ancestor(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier epoch of the same history, as it began."""

    epoch: Number
    writer: SiteName
    term: Term
    start_sequence: Number


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """The roles of the sites in one epoch.

    `start_sequence` is the last write of the earlier epochs that counts: the first write of this epoch has
    the next number. `since` is when the epoch began, in nanoseconds of the Unix clock. `term` is the random
    identity of the promotion in hexadecimal, `ancestors` are the epochs before it, oldest first.
    """

    epoch: Number
    writer: SiteName
    sync_to: SiteName | None = None
    async_to: SiteName | None = None
    start_sequence: Number = 0
    since: Number = 0
    term: Term = NO_TERM
    ancestors: Annotated[tuple[Ancestor, ...], msgspec.Meta(max_length=2 * MOST_ANCESTORS)] = ()

    @property
    def parent(self) -> str:
        """The term of the epoch before this one."""
        return self.ancestors[-1].term if self.ancestors else NO_TERM

    @property
    def identity(self) -> tuple[int, SiteName, str, int]:
        """What makes the epoch this one and no other of the same number."""
        return self.epoch, self.writer, self.term, self.start_sequence

    def line(self) -> tuple[Ancestor, ...]:
        """The known epochs of this history, this one last."""
        own = Ancestor(
            epoch=self.epoch, writer=self.writer, term=self.term, start_sequence=self.start_sequence
        )
        return (*self.ancestors[-MOST_ANCESTORS:], own)


def role_of(roles: Roles, site: str) -> str:
    """The part of `site`: writer, sync, async, or away (no part of this epoch until it is back)."""
    if site == roles.writer:
        return "writer"
    if site == roles.sync_to:
        return "sync"
    return "async" if site == roles.async_to else "away"


class Verdict(StrEnum):
    """What to do with a peer's hello."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    ADOPT = "adopt"  # the peer knows a newer epoch: adopt its roles first, then decide again


class Decision(msgspec.Struct, frozen=True):
    """A verdict and, for a refusal, the sentence that the peer's operator reads."""

    verdict: Verdict
    sentence: str = ""
    code: str = ""


def first_roles(now_ns: int) -> Roles:
    """The roles of a new volume, from `now_ns` of the Unix clock: the normal operation of every figure."""
    term = new_term()
    return Roles(
        epoch=FIRST_EPOCH, writer="primary", sync_to="sync", async_to="async", since=now_ns, term=term
    )


def new_term() -> str:
    """The identity of a promotion that no other promotion has."""
    return secrets.token_hex(16)


def is_fork(one: Roles, other: Roles) -> bool:
    """Whether these are two epochs of one number: two sites were promoted that did not see each other."""
    return one.epoch == other.epoch and one.identity != other.identity


def fork_sentence(forks: Sequence[Roles]) -> str:
    """Who was promoted to the same epoch, when and from which write on, and the way out."""
    told = "; ".join(
        f"site {roles.writer} since {time_text(roles.since)} from sequence {roles.start_sequence} on"
        for roles in forks
    )
    ways = " or ".join(f"`trisite failover --to {roles.writer} --accept-loss`" for roles in forks)
    return (
        f"epoch {forks[0].epoch} has two writers that did not see each other ({told}); choose which goes on: "
        f"{ways}. What the other one wrote alone is kept in its quarantine"
    )


def parting(own: Sequence[Roles], current: Roles) -> int | None:
    """The last sequence that what a site holds has in common with the history of `current`.

    `own` are the epochs the site has seen, oldest first; its area is of the last of them. None: that one
    belongs to the history, or is older than the history tells.
    """
    line = {one.epoch: one for one in current.line()}
    if not own or own[-1].epoch < min(line) or _belongs(own[-1], line):
        return None
    shared = max((roles.epoch for roles in own if _belongs(roles, line)), default=0)
    starts = [roles.start_sequence for roles in own if roles.epoch > shared]
    starts += [one.start_sequence for one in line.values() if one.epoch > shared]
    return min(starts)


def _belongs(roles: Roles, line: Mapping[int, Ancestor]) -> bool:
    one = line.get(roles.epoch)
    return one is not None and (one.writer, one.term, one.start_sequence) == roles.identity[1:]


def should_adopt(own: Roles | None, offered: Roles) -> bool:
    """The one rule of adoption: only a higher epoch replaces what a site knows."""
    return own is None or offered.epoch > own.epoch


def may_connect(
    purpose: str, here: str, peer: str, own: Roles, peer_roles: Roles | None, *, level: bool = False
) -> Decision:
    """Whether `here` lets `peer` begin a conversation; `level` while here is prepared to be levelled.

    Control is always let in: it is how a stale site learns the newer roles. Data comes from the writer of the
    same epoch only, to the site that the roles name for that purpose.
    """
    if peer_roles is not None and should_adopt(own, peer_roles):
        return Decision(Verdict.ADOPT)
    if purpose == Purpose.CONTROL:
        return Decision(Verdict.ACCEPT)
    if peer_roles is None:
        return _refuse(f"site {peer} has no roles yet; create the volume with `trisite mkfs`", "wrong-role")
    if peer_roles.epoch < own.epoch:
        return _refuse(superseded_sentence(peer, own), "superseded")
    if is_fork(own, peer_roles):
        return _refuse(fork_sentence((own, peer_roles)), "fenced")
    if peer != own.writer:
        sentence = f"site {peer} is not the writer in epoch {own.epoch}, {own.writer} is"
        return _refuse(sentence, "not-the-writer")
    return _may_receive(purpose, here, own, level=level)


def _may_receive(purpose: str, here: str, own: Roles, *, level: bool) -> Decision:
    if purpose == Purpose.LEVEL:
        if level and here != own.writer:
            return Decision(Verdict.ACCEPT)
        return _refuse(f"site {here} is not prepared to be levelled; run `trisite failback`", "wrong-role")
    if here == (own.sync_to if purpose == Purpose.SYNC else own.async_to):
        return Decision(Verdict.ACCEPT)
    return _refuse(
        f"site {here} takes no {purpose} copy in epoch {own.epoch}, its part is {role_of(own, here)}",
        "wrong-role",
    )


def _refuse(sentence: str, code: str) -> Decision:
    return Decision(Verdict.REFUSE, sentence, code)


def after_failback(old: Roles, position: int, now_ns: int) -> Roles:
    """Figures 11 and 15: the normal operation again, every site level at `position`."""
    return following(
        old, writer="primary", sync_to="sync", async_to="async", start_sequence=position, now_ns=now_ns
    )


def following(
    old: Roles,
    *,
    writer: SiteName,
    sync_to: SiteName | None = None,
    async_to: SiteName | None = None,
    start_sequence: int,
    now_ns: int,
    epoch: int | None = None,
) -> Roles:
    """The roles of a new epoch after `old`: the next number, or `epoch`, with a term of its own."""
    return Roles(
        epoch=old.epoch + 1 if epoch is None else epoch,
        writer=writer,
        sync_to=sync_to,
        async_to=async_to,
        start_sequence=start_sequence,
        since=now_ns,
        term=new_term(),
        ancestors=old.line(),
    )


def time_text(since_ns: int) -> str:
    """A moment of the Unix clock in ns as an operator reads it, in UTC to the second."""
    moment = datetime.datetime.fromtimestamp(since_ns / 1e9, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def iso_text(since_ns: int) -> str:
    """The same moment as programs read it: ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.fromtimestamp(since_ns / 1e9, tz=datetime.UTC).isoformat(timespec="milliseconds")


def superseded_sentence(site: str, current: Roles) -> str:
    """Why `site` may not write: who took over, when, up to which write, and the way out."""
    way_out = f"mount with --at {current.writer}"
    if site == "primary":
        way_out += f", or bring {site} back with `trisite failback`"
    return (
        f"site {site} was superseded by site {current.writer} in epoch {current.epoch} at "
        f"{time_text(current.since)}, sequence {current.start_sequence}; {way_out}"
    )


def others(site: str) -> tuple[SiteName, ...]:
    """The sites other than `site`."""
    return tuple(name for name in SITE_NAMES if name != site)
