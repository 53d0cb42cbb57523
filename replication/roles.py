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

    def role_of(self, site: SiteName) -> str:
        """The part of `site`: writer, sync, async, or away (no part of this epoch until it is back)."""
        if site == self.writer:
            return "writer"
        if site == self.sync_to:
            return "sync"
        return "async" if site == self.async_to else "away"


class Verdict(StrEnum):
    """What to do with a peer's hello."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    ADOPT = "adopt"  # the peer knows a newer epoch: adopt its roles first, then decide again


class Decision(msgspec.Struct, frozen=True):
    """A verdict and, for a refusal, the sentence that the peer's operator reads."""

    verdict: Verdict
    sentence: str = ""


def first_roles(now_ns: int) -> Roles:
    """The roles of a new volume: the normal operation of every figure."""
    return Roles(epoch=FIRST_EPOCH, writer="primary", sync_to="sync", async_to="async", since=now_ns)


def should_adopt(own: Roles | None, offered: Roles) -> bool:
    """The one rule of adoption: only a higher epoch replaces what a site knows."""
    return own is None or offered.epoch > own.epoch


def may_connect(
    purpose: Purpose,
    here: SiteName,
    peer: SiteName,
    own: Roles,
    peer_roles: Roles | None,
    *,
    level: bool = False,
) -> Decision:
    """Whether `here` lets `peer` begin a conversation; `level` while the writer brings here level.

    Control is always let in: it is how a stale site learns the newer roles. Data comes from the writer of the
    same epoch only, to the site that the roles name for that purpose.
    """
    if peer_roles is not None and should_adopt(own, peer_roles):
        return Decision(Verdict.ADOPT)
    if purpose is Purpose.CONTROL:
        return Decision(Verdict.ACCEPT)
    if peer_roles is None:
        return Decision(
            Verdict.REFUSE, f"site {peer} has no roles yet; create the volume with `trisite mkfs`"
        )
    if peer_roles.epoch < own.epoch:
        return Decision(Verdict.REFUSE, superseded_sentence(peer, own))
    if peer_roles != own:
        return Decision(
            Verdict.REFUSE,
            f"sites {here} and {peer} disagree about epoch {own.epoch} (writer {own.writer} here, "
            f"{peer_roles.writer} there); run `trisite failover` again to settle it",
        )
    if peer != own.writer:
        return Decision(
            Verdict.REFUSE, f"site {peer} is not the writer in epoch {own.epoch}, {own.writer} is"
        )
    wanted = own.sync_to if purpose is Purpose.SYNC else own.async_to
    levelling = level and purpose is Purpose.ASYNC and own.role_of(here) != "writer"
    if here != wanted and not levelling:
        return Decision(
            Verdict.REFUSE,
            f"site {here} takes no {purpose} copy in epoch {own.epoch}, its part is {own.role_of(here)}",
        )
    return Decision(Verdict.ACCEPT)


def after_take_over_at_sync(old: Roles, received_sequence: int, now_ns: int) -> Roles:
    """Figure 10: the sync site writes, the async site follows it; the primary is away."""
    return Roles(
        epoch=old.epoch + 1, writer="sync", async_to="async", start_sequence=received_sequence, since=now_ns
    )


def after_take_over_at_async(old: Roles, position: int, now_ns: int, *, follow: SiteName | None) -> Roles:
    """Figure 13 (`follow` None: alone) and figure 14 (`follow` "sync"): the async site writes."""
    return Roles(epoch=old.epoch + 1, writer="async", async_to=follow, start_sequence=position, since=now_ns)


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
    """A moment as an operator reads it, in UTC to the second."""
    moment = datetime.datetime.fromtimestamp(since_ns / 1e9, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def superseded_sentence(site: SiteName, current: Roles) -> str:
    """Why `site` may not write: who took over, when, from which write on, and the way out."""
    return (
        f"site {site} was superseded by site {current.writer} in epoch {current.epoch} at "
        f"{time_text(current.since)}, sequence {current.start_sequence}; "
        + (
            f"mount with --at {current.writer}, or bring {site} back with `trisite failback`"
            if site == "primary"
            else f"mount with --at {current.writer}"
        )
    )


def others(site: SiteName) -> tuple[SiteName, ...]:
    """The sites other than `site`."""
    return tuple(name for name in SITE_NAMES if name != site)
