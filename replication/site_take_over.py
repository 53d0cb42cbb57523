"""Becoming the writer: the one moment in which a secondary fences the old writer (figures 10, 13, 14)."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import DeviceError
from replication.config import SITE_NAMES, SiteName
from replication.control import Confirm, ControlError, Promote, PromoteReply
from replication.received_record import Facts
from replication.roles import Roles, following, role_of, superseded_sentence
from replication.set_journal import JournalError
from replication.set_receiver import NotConsistent
from replication.site_parts import FollowPart, Part, SyncPart, WriterPart
from replication.state import StateError, TakeOverRecord

if TYPE_CHECKING:
    from replication.site import Site

log = logging.getLogger(__name__)

NOTHING_LOST: Final = "nothing, proven by sequence numbers"


def proof_of(facts: Facts, roles: Roles) -> tuple[bool, str]:
    """Whether a synchronous secondary has every acknowledged write, and the sentence that says why (not)."""
    if facts.copying:
        return False, "the copy to site sync was under way and is not complete"
    if facts.epoch != roles.epoch or not facts.has_volume:
        return False, f"site sync holds nothing of epoch {roles.epoch} yet"
    if not facts.in_step:
        return False, f"site sync was not in step with site {roles.writer} when it last heard of it"
    if facts.clean:
        return True, f"{NOTHING_LOST}: site {roles.writer} said good-bye after its last flush"
    if facts.protect:
        return True, f"{NOTHING_LOST}: site {roles.writer} acknowledged nothing without site sync"
    return False, f"site {roles.writer} ran without protection and may have gone on alone"


async def promote(site: "Site", request: Promote, confirm: Confirm) -> PromoteReply:
    """Become the writer of the epoch asked for; asked again, say how it was.

    `confirm` is awaited when everything is ready and nothing has changed yet. One at a time: the fence of one
    that is not confirmed is taken back, and no other may rely on it.
    """
    async with site.promoting:
        return await _promote(site, request, confirm)


async def _promote(site: "Site", request: Promote, confirm: Confirm) -> PromoteReply:
    roles = site.roles
    kept = site.state.take_over
    if roles.writer == site.name and roles.epoch == request.epoch:
        await confirm()
        site.state.set_held_epoch(0)
        if kept is not None and kept.epoch == roles.epoch:
            return PromoteReply(roles=roles, lost=kept.lost, sentence=kept.sentence, as_of_ns=kept.as_of_ns)
        return PromoteReply(
            roles=roles, lost=None, sentence="how this site became the writer is not on record"
        )
    if request.over_fork and request.epoch > roles.epoch and isinstance(site.part, WriterPart):
        return await _from_fork(site, site.part, roles, request, confirm)
    if request.epoch != roles.epoch + 1:
        raise ControlError(
            f"site {site.name} is in epoch {roles.epoch} and cannot become the writer of "
            f"epoch {request.epoch}; run the command again"
        )
    if isinstance(site.part, SyncPart):
        async with _following_if_refused(site):
            return await _from_sync(site, site.part, roles, request, confirm)
    if isinstance(site.part, FollowPart) and not site.part.level:
        async with _following_if_refused(site):
            return await _from_async(site, site.part, roles, request, confirm)
    if isinstance(site.part, WriterPart):
        raise ControlError(f"site {site.name} is the writer of epoch {roles.epoch} already")
    raise ControlError(f"site {site.name} cannot become the writer: {site.part_sentence}")


@asynccontextmanager
async def _following_if_refused(site: "Site") -> AsyncIterator[None]:
    """A take-over that comes to nothing (a full disk) leaves a follower: its part, fenced by now, is opened
    again.
    """
    part = site.part
    try:
        yield
    except (ControlError, DeviceError, JournalError, StateError, OSError):
        if site.part is part:
            async with site.without_part():
                log.warning("site %s could not take over and goes on following", site.name)
        raise


def _site_name(name: str | None) -> SiteName | None:
    if name is None or name in SITE_NAMES:
        return name
    raise ControlError(f"there is no site {name[:40]!r}")


async def _from_sync(
    site: "Site", part: SyncPart, roles: Roles, request: Promote, confirm: Confirm
) -> PromoteReply:
    async_to = _site_name(request.async_to)
    facts = part.record.facts
    if facts.copying or not facts.has_volume:
        raise ControlError(
            "the copy to site sync is not complete, so its area is no state of the volume; "
            "bring the primary site back to finish it"
        )
    proven, sentence = proof_of(facts, roles)
    if proven and request.doubt is not None:
        proven, sentence = False, f"not known: {request.doubt}"
    new = following(
        roles,
        epoch=request.epoch,
        writer=site.name,
        async_to=async_to,
        start_sequence=part.receiver.received_sequence,
        now_ns=time.time_ns(),
    )
    # From here on nothing of the old writer is applied, so that sequence is final. The new roles are told to
    # nobody before they are on record: a kill in between must not leave a site that believes in them.
    part.receiver.fence(superseded_sentence(roles.writer, new), roles)
    try:
        await trio.to_thread.run_sync(part.area.flush)
    except DeviceError:
        await part.receiver.go_back()
        raise
    await trio.to_thread.run_sync(part.positions.flush)
    await confirm()
    if async_to is not None and not facts.in_step:
        # After a crash of this host it may lack what the async site has, and the records that name it.
        site.state.doubt(async_to, request.epoch)
    return await _become_writer(site, part, new, 0 if proven else None, sentence)


async def _from_async(
    site: "Site", part: FollowPart, roles: Roles, request: Promote, confirm: Confirm
) -> PromoteReply:
    async_to = _site_name(request.async_to)
    try:
        position = await part.receiver.promote()
    except NotConsistent as error:
        raise ControlError(f"site {site.name} cannot take over: {error}") from error
    missing = max(0, site.state.newest_known - position.sequence)
    if request.drained_sequence is not None and position.sequence >= request.drained_sequence:
        lost, sentence = 0, f"{NOTHING_LOST}: site {roles.writer} stopped and is drained"
    elif missing:
        lost, sentence = missing, f"at least the writes {position.sequence + 1} to {site.state.newest_known}"
    else:
        lost, sentence = None, "not known: no surviving site knows what was acknowledged last"
    new = following(
        roles,
        epoch=request.epoch,
        writer=site.name,
        async_to=async_to,
        start_sequence=position.sequence,
        now_ns=time.time_ns(),
    )
    await confirm()
    return await _become_writer(site, part, new, lost, sentence, as_of_ns=part.receiver.newest_ns)


async def _from_fork(
    site: "Site", part: WriterPart, roles: Roles, request: Promote, confirm: Confirm
) -> PromoteReply:
    """Another site was promoted to the same epoch, and the operator chose this one: a higher number ends it.

    Nothing may be written while the number changes, so the volume must not be mounted here.
    """
    if site.link.connected:
        raise ControlError(
            f"the volume is mounted at site {site.name}; unmount it for the moment in which the fork is "
            "settled, and run again",
            "mounted",
        )
    await trio.to_thread.run_sync(part.bring_to_rest, site.place)
    async_to = _site_name(request.async_to)
    new = following(
        roles,
        epoch=request.epoch,
        writer=site.name,
        async_to=async_to,
        start_sequence=part.queue.state().next_sequence - 1,
        now_ns=time.time_ns(),
    )
    sentence = "not known: what only the other writer of the epoch has goes to its quarantine"
    await confirm()
    return await _become_writer(site, part, new, None, sentence)


async def _become_writer(
    site: "Site", part: Part, roles: Roles, lost: int | None, sentence: str, *, as_of_ns: int = 0
) -> PromoteReply:
    """The record first: a kill after it changes nothing, a kill after the roles finds it.

    `part` is what the site was when `roles` were made: they say from which write on it goes on.
    """
    if site.part is not part:
        raise ControlError(f"site {site.name} changed while it was to take over; run the command again")
    site.state.set_take_over(
        TakeOverRecord(
            epoch=roles.epoch,
            start_sequence=roles.start_sequence,
            lost=lost,
            sentence=sentence,
            as_of_ns=as_of_ns,
        )
    )
    site.state.set_held_epoch(0)
    await site.adopt(roles)
    if role_of(site.roles, site.name) != "writer" or not isinstance(site.part, WriterPart):
        raise ControlError(f"site {site.name} could not be set up as the writer: {site.part_sentence}")
    return PromoteReply(roles=site.roles, lost=lost, sentence=sentence, as_of_ns=as_of_ns)
