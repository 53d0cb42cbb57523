"""Who writes, who follows, and who may talk to whom: the pure rules of fencing (figures 10, 11, 13, 14).

Invariant: the epoch rises at every change of the writer; a site adopts roles only if their epoch is higher
than its own; a peer of a lower epoch is refused as soon as the difference is seen. So a writer that was
superseded while it was away can never again write to a site that knows of it.
"""

import datetime
from enum import StrEnum
from typing import Final

import msgspec

from replication.config import SITE_NAMES, SiteName

FIRST_EPOCH: Final = 1


class Purpose(StrEnum):
    """What a conversation is for, named in the hello."""

    SYNC = "sync"
    ASYNC = "async"
    LEVEL = "level"
    CONTROL = "control"


class Roles(msgspec.Struct, frozen=True, kw_only=True):
    """The roles of the sites in one epoch.

    `start_sequence` is the last write of the earlier epochs that counts: the first write of this epoch has
    the next number. `since` is when the epoch began, in nanoseconds of the Unix clock.
    """

    epoch: int
    writer: SiteName
    sync_to: SiteName | None = None
    async_to: SiteName | None = None
    start_sequence: int = 0
    since: int = 0


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
    return Roles(epoch=FIRST_EPOCH, writer="primary", sync_to="sync", async_to="async", since=now_ns)


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
    if (peer_roles.writer, peer_roles.start_sequence) != (own.writer, own.start_sequence):
        return _refuse(
            f"sites {here} and {peer} disagree about epoch {own.epoch} (writer {own.writer} here, "
            f"{peer_roles.writer} there); run `trisite failover` again to settle it",
            "fenced",
        )
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
    return Roles(
        epoch=old.epoch + 1,
        writer="primary",
        sync_to="sync",
        async_to="async",
        start_sequence=position,
        since=now_ns,
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
