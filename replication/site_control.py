"""The answers of a daemon to control requests."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import trio

from jfs.errors import DeviceError
from replication.client import ask_site
from replication.control import (
    MOST_RANGES,
    Adopt,
    AdoptReply,
    Confirm,
    ControlError,
    ControlRequest,
    CreateVolume,
    DigestsReply,
    Done,
    Drain,
    DrainReply,
    EventsReply,
    FinishMount,
    FinishReply,
    GetDigests,
    GetEvents,
    GetLevel,
    GetListing,
    GetRanges,
    GetStatus,
    Level,
    LevelStatus,
    ListingReply,
    LosePosition,
    MarkerReply,
    NotePair,
    Promote,
    Range,
    RangesReply,
    ReportRanges,
    ReturnReport,
    SetPair,
    SiteReport,
    TakeMarker,
)
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.levelling import IDLE
from replication.pair import ASKED, Kind, State
from replication.position import NOWHERE
from replication.ranges import intersect, normalise
from replication.returning import keep_own_writes
from replication.shipper import STOPPED_STATES, Shipper
from replication.site_listing import allocated_of, listing_of
from replication.site_parts import FollowPart, SyncPart, WriterPart
from replication.site_report import report_of
from replication.site_take_over import promote
from replication.state import VolumeIdentity, why_alone
from replication.words import size
from vsap.area import is_being_written

if TYPE_CHECKING:
    from replication.site import Site

FINISH_SECONDS: Final = 100.0
MARKER_SECONDS: Final = 30.0
LOCK_SECONDS: Final = 10.0
TELL_SECONDS: Final = 2.0
MOST_EVENTS_TOLD: Final = 500


class Control:
    """The requests of the command line and of other sites, for one daemon."""

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._levelling_scope = trio.CancelScope()
        self._handlers: dict[str, Callable[[Any], Awaitable[Any]]] = {
            GetStatus.method: self._status,
            CreateVolume.method: self._create_volume,
            Adopt.method: self._adopt,
            GetListing.method: self._listing,
            ReportRanges.method: self._report_ranges,
            Level.method: self._level,
            GetLevel.method: self._get_level,
            FinishMount.method: self._finish_mount,
            Drain.method: self._drain,
            SetPair.method: self._pair,
            LosePosition.method: self._lose_position,
            NotePair.method: self._note_pair,
            GetEvents.method: self._events,
            GetRanges.method: self._ranges,
            TakeMarker.method: self._marker,
            GetDigests.method: self._digests,
        }

    async def handle(self, request: ControlRequest[Any], confirm: Confirm) -> Any:  # noqa: ANN401 - it depends on the request
        """The reply to a request; ControlError in one sentence when the site will not or cannot."""
        if isinstance(request, Promote):  # which has much to do before it changes anything
            self._expect_volume(request.volume)
            return await promote(self._site, request, confirm)
        if request.changes:
            await confirm()
        return await self._handlers[request.method](request)

    async def _status(self, request: GetStatus) -> SiteReport:
        del request
        return await report_of(self._site)

    async def _create_volume(self, request: CreateVolume) -> Done:
        site = self._site
        identity = VolumeIdentity(uuid=UUID(request.uuid), name=request.name, size_bytes=request.size_bytes)
        own_bytes = site.config.volume.size_bytes
        if request.size_bytes != own_bytes:
            raise ControlError(
                f"the configuration of site {site.name} says the volume has {size(own_bytes)}, not "
                f"{size(request.size_bytes)}; give every site the same configuration and start its daemon "
                "again",
                "invalid",
            )
        have = site.state.identity
        if have == identity:
            return Done()
        if have is not None and not request.force:
            raise ControlError(
                f"site {site.name} holds volume {have.name} ({have.uuid}) already; --force replaces it",
                "exists",
            )
        if site.link.connected or is_being_written(site.place.paths.writer_lock):
            raise ControlError(f"the volume is mounted at site {site.name}; unmount it first", "mounted")
        await site.create(identity, request.roles, blank=request.blank)
        return Done()

    def _expect_volume(self, uuid: str) -> None:
        """Another directory may have been put in place of the one that a command has looked at."""
        site, identity = self._site, self._site.state.identity
        if identity is None:
            raise ControlError(f"site {site.name} has no volume yet", "no-volume")
        if uuid != str(identity.uuid):
            raise ControlError(
                f"site {site.name} holds volume {identity.uuid}, not {uuid[:36]}", "wrong-volume"
            )

    async def _adopt(self, request: Adopt) -> AdoptReply:
        self._expect_volume(request.volume)
        await self._site.adopt(request.roles)
        site = self._site
        alone = why_alone(site.state.pairs(), site.name, request.roles.epoch - 1)
        return AdoptReply(roles=site.roles, alone=alone)

    async def _listing(self, request: GetListing) -> ListingReply:
        await self._site.settle_log()
        return await trio.to_thread.run_sync(listing_of, self._site.place, request.limit, request.from_inode)

    # --- a site that comes back -------------------------------------------------------------------------

    async def _report_ranges(self, request: ReportRanges) -> ReturnReport:
        site = self._site
        roles = site.roles
        if roles.epoch != request.epoch or roles.writer == site.name:
            raise ControlError(
                f"site {site.name} is in epoch {roles.epoch} with writer {roles.writer}, "
                f"it cannot be prepared for epoch {request.epoch}"
            )
        # One that is stopped holds the lock, and nothing else: it would go on in the middle of a write.
        if site.link.connected or is_being_written(site.place.paths.writer_lock):
            raise ControlError(
                f"a mount process still runs at site {site.name}, it was superseded; end it and run again",
                "mounted",
            )
        if site.state.level is None or site.state.level.epoch != request.epoch:
            async with site.without_part():
                record = await trio.to_thread.run_sync(keep_own_writes, site.place, request.after_sequence)
                site.state.set_level(record)
        kept = site.state.level
        if kept is None:
            raise ControlError(f"site {site.name} could not prepare to be levelled")
        return ReturnReport(
            ranges=kept.ranges,
            everything=kept.everything,
            quarantine=kept.quarantine,
            quarantined_bytes=kept.quarantined_bytes,
            reason=kept.reason,
        )

    async def _lose_position(self, request: LosePosition) -> Done:
        site = self._site
        if not (isinstance(site.part, FollowPart) and site.part.level and site.roles.epoch == request.epoch):
            raise ControlError(f"site {site.name} is not prepared to be levelled in epoch {request.epoch}")
        if site.part.receiver.durable != NOWHERE:
            await site.part.receiver.reset(NOWHERE)
        return Done()

    def _writer(self) -> WriterPart:
        part = self._site.part
        if not isinstance(part, WriterPart):
            raise ControlError(f"site {self._site.name} is not the writer in epoch {self._site.roles.epoch}")
        return part

    async def _level(self, request: Level) -> Done:
        site, part = self._site, self._writer()
        if part.levelling.running:
            return Done()
        written = await site.written_after(request.after_sequence)
        at_rest = not site.link.connected and site.state.held_epoch == site.roles.epoch
        sequence = part.queue.state().next_sequence - 1

        def ranges() -> list[tuple[int, int]]:
            if request.everything or written is None:
                return allocated_of(site.place)
            return normalise([*request.ranges, *written.ranges])

        if not at_rest:
            await site.settle_log()
        part.start_levelling(request.target, site.roles, sequence, ranges, at_rest=at_rest)
        return Done()

    async def _get_level(self, request: GetLevel) -> LevelStatus:
        del request
        part = self._site.part
        return part.levelling.status() if isinstance(part, WriterPart) else IDLE

    async def _finish_mount(self, request: FinishMount) -> FinishReply:
        del request
        site, part = self._site, self._writer()
        site.state.set_held_epoch(site.roles.epoch)
        sentence = await site.link.finish(FINISH_SECONDS)
        if sentence is None:
            sentence = await self._bring_to_rest(part)
        if sentence is not None:
            site.state.set_held_epoch(0)
            return FinishReply(finished=False, sentence=sentence, sequence=0)
        return FinishReply(
            finished=True, sentence="the area is at rest", sequence=part.queue.state().next_sequence - 1
        )

    async def _bring_to_rest(self, part: WriterPart) -> str | None:
        """The area at rest once the mount process has given its lock back; the sentence why it is not."""
        deadline = trio.current_time() + LOCK_SECONDS
        while True:
            try:
                await trio.to_thread.run_sync(part.bring_to_rest, self._site.place)
            except DeviceError as error:
                if trio.current_time() > deadline:
                    return error.sentence
            else:
                return None
            await trio.sleep(0.05)

    async def _drain(self, request: Drain) -> DrainReply:
        part = self._writer()
        far = part.shipper.durable if part.shipper is not None else None
        durable = far.sequence if far is not None else 0
        applied = part.shipper.applied_sequence if part.shipper is not None else 0
        return DrainReply(
            drained=durable >= request.sequence and applied >= request.sequence,
            durable_sequence=durable,
            sentence=f"durable up to {durable} and applied up to {applied} of {request.sequence}",
            stopped=part.shipper is not None and part.shipper.pair.state in STOPPED_STATES,
        )

    async def _pair(self, request: SetPair) -> Done:
        site, part = self._site, self._writer()
        if request.target == site.roles.async_to and part.shipper is not None:
            _change_shipping(part.shipper, request.action, f"{site.name},{request.target}")
        elif request.target == site.roles.sync_to:
            await site.link.set_pair(request.action, force=request.force)
            if request.action in {"suspend", "delete"}:
                await self.tell_pair(Kind.SYNC)
        else:
            raise ControlError(f"there is no pair from site {site.name} to site {request.target}", "no-pair")
        return Done()

    async def tell_pair(self, kind: Kind) -> None:
        """The other end of a pair records it too when it was suspended or deleted; if it answers."""
        site, roles = self._site, self._site.roles
        target = roles.sync_to if kind is Kind.SYNC else roles.async_to
        for pair in site.state.pairs():
            stopped = pair.state in {State.SUSPEND, State.SIMPLEX}
            if stopped and (pair.kind, pair.source, pair.target) == (kind, site.name, target):
                note = NotePair(epoch=roles.epoch, pair=pair)
                with suppress(PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError):
                    await ask_site(site.config, pair.target, note, TELL_SECONDS, caller=site.name)

    async def _note_pair(self, request: NotePair) -> Done:
        self._site.pair_end.told(request)
        return Done()

    async def _events(self, request: GetEvents) -> EventsReply:
        state = self._site.state
        return EventsReply(events=state.events(request.after, MOST_EVENTS_TOLD), newest=state.newest_event)

    # --- comparing --------------------------------------------------------------------------------------

    async def _ranges(self, request: GetRanges) -> RangesReply:
        site, part = self._site, self._writer()
        await site.settle_log()
        ranges = await trio.to_thread.run_sync(allocated_of, site.place)
        sequence = None if site.link.connected else part.queue.state().next_sequence - 1
        return page_of(ranges, sequence, request.from_offset)

    async def _marker(self, request: TakeMarker) -> MarkerReply:
        if not self._site.link.connected:
            raise ControlError(f"the volume is not mounted at site {self._site.name}", "not-mounted")
        return await self._site.link.marker(request.ranges, request.leaf_bytes, MARKER_SECONDS)

    async def _digests(self, request: GetDigests) -> DigestsReply:
        part = self._site.part
        if isinstance(part, FollowPart):
            return await self._follower_digests(part, request)
        if isinstance(part, SyncPart):
            sequence = part.receiver.received_sequence
            epoch = part.record.facts.epoch
        elif isinstance(part, WriterPart):
            sequence, epoch = part.queue.state().next_sequence - 1, self._site.roles.epoch
        else:
            raise ControlError(f"site {self._site.name} has no part to compare: {part.sentence}")
        if not request.at_rest or sequence != request.sequence:
            return DigestsReply(digests=None, epoch=epoch, sequence=sequence)
        found = await trio.to_thread.run_sync(part.digests, request.ranges, request.leaf_bytes)
        return DigestsReply(digests=[digest.hex() for digest in found], epoch=epoch, sequence=sequence)

    async def _follower_digests(self, part: FollowPart, request: GetDigests) -> DigestsReply:
        position = part.receiver.applied
        if not request.at_rest:
            kept = part.receiver.digests(request.sequence)
            digests = None if kept is None else [digest.hex() for digest in kept]
            return DigestsReply(digests=digests, epoch=position.epoch, sequence=position.sequence)
        position, found = await part.receiver.digests_at_rest(request.ranges, request.leaf_bytes)
        same = position.sequence == request.sequence
        return DigestsReply(
            digests=[digest.hex() for digest in found] if same else None,
            epoch=position.epoch,
            sequence=position.sequence,
        )


def _change_shipping(shipper: Shipper, action: str, names: str) -> None:
    """What an operator wants of the asynchronous pair `names`; ControlError where it makes no sense."""
    deleted = shipper.pair.state is State.SIMPLEX
    if action == "create" and not deleted:
        raise ControlError(f"the pair exists, it is {shipper.pair.state}", "pair-exists")
    if action not in {"create", "delete"} and deleted:
        raise ControlError(f"the pair was deleted; create it with `trisite pair create {names}`", "no-pair")
    if action in {"create", "resync"}:
        shipper.resume(ASKED)
    elif action == "delete":
        shipper.delete(ASKED)
    else:
        shipper.suspend(ASKED)


def page_of(ranges: Sequence[Range], sequence: int | None, from_offset: int) -> RangesReply:
    """The normalised ranges from an offset on, as many as one reply may hold."""
    end = sum(ranges[-1]) if ranges else 0
    following = intersect(ranges, [(from_offset, max(0, end - from_offset))])
    after = following[MOST_RANGES][0] if len(following) > MOST_RANGES else None
    return RangesReply(ranges=following[:MOST_RANGES], sequence=sequence, next_offset=after)
