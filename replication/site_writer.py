"""The daemon's part at the writing site: ship the queue to the asynchronous site, level returning sites.

The mount process appends to the queue and writes the area; the daemon reads both, so shipping survives
the mount.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from jfs.errors import CorruptionError, DeviceError
from replication.channel import Channel
from replication.client import dial_site
from replication.control import CopyReport, Range
from replication.errors import PeerRefused
from replication.far_link import FarLink
from replication.leftovers import mark_leftovers
from replication.levelling import Levelling
from replication.listing import list_allocated, list_copy
from replication.pair import Kind, Pair, State
from replication.pair_keeper import PairKeeper
from replication.parts import KnownPositions, Place
from replication.position import Position, Remedy, history_of
from replication.ranges import total_bytes
from replication.roles import Purpose, Roles
from replication.shipper import Shipper
from replication.site_listing import opened_area
from vsap.area import FileArea
from vsap.digest import digest_ranges
from vsap.virtual import apply_entries

if TYPE_CHECKING:
    from replication.site import Site

log = logging.getLogger(__name__)

FAR_SITE: Final = "async"
LASTING: Final = frozenset({State.SUSPEND, State.SUSPENDING, State.SIMPLEX})
"""States that an operator asked for: they last when the daemon is started again."""


class WriterPart:
    """The writer's daemon in one epoch. Opened with the part, closed with it."""

    def __init__(self, site: "Site", area: FileArea, stack: ExitStack, nursery: trio.Nursery) -> None:
        self._site = site
        self._nursery = nursery
        self.area = area
        self.queue = site.place.open_writer_queue()
        stack.callback(self.queue.close)
        options = site.place.config.options
        self.far_link = FarLink(options.far_limit_bytes_per_second, options.far_compression)
        self.levelling = Levelling(site.place, area, self._link_to)
        self.files_listed = 0
        self.bytes_listed = 0
        self.fault: str | None = None
        """The log and the write positions contradicted each other in the last listing; a sentence."""
        roles = site.roles
        self.target: str = roles.async_to or ""
        self._pair_keeper = PairKeeper(self._keep_pair)
        self.shipper = self._make_shipper(roles) if roles.async_to is not None else None
        if self.shipper is not None:
            nursery.start_soon(self.shipper.run)
            nursery.start_soon(self._pair_keeper.run)
            if roles.sync_to is not None:
                nursery.start_soon(mark_leftovers, site, self.queue, roles, self.shipper.notify)

    def _make_shipper(self, roles: Roles) -> Shipper:
        site, place = self._site, self._site.place
        reason = f"site {self.target} has not answered in epoch {roles.epoch} yet"
        pair = Pair(Kind.ASYNC, State.DUPLEX_PENDING, roles.since, reason)
        for known in place.state.pairs():
            suspended = known.state in LASTING and known.epoch == roles.epoch
            if suspended and (known.kind, known.source, known.target) == ("async", place.site, self.target):
                pair = Pair(Kind.ASYNC, State(known.state), known.since, known.reason)
        return Shipper(
            self.queue,
            self.area,
            self._dial,
            volume=place.volume.uuid.bytes,
            history=history_of(site.state.epoch_starts()),
            ranges_for=self._ranges_for,
            pair=pair,
            doubted=self._is_target_doubted,
            settle_log=site.settle_log,
            on_far=self._on_far,
            on_pair=self._pair_keeper,
            link=self._link_to(self.target),
        )

    def _is_target_doubted(self) -> bool:
        """Whether a crash of this host lost writes that the far site of this writer may have (P4)."""
        state, target = self._site.state, self._site.roles.async_to
        return target is not None and state.doubted(target)

    def _link_to(self, target: str) -> FarLink:
        """The link to a site: the far one where it or this site is the far site, else one without a limit."""
        return self.far_link if FAR_SITE in (target, self._site.name) else FarLink()

    async def _dial(self) -> Channel:
        place = self._site.place
        newest = self.queue.state().next_sequence - 1
        try:
            return await dial_site(
                place, self.target, Purpose.ASYNC, self._site.roles, newest_sequence=newest
            )
        except PeerRefused as error:
            if error.roles is not None:
                self._site.learn_soon(error.roles)
            raise

    async def _ranges_for(self, remedy: Remedy, far: Position) -> list[Range]:
        """What a difference copy must look at. DeviceError if the area is unreadable."""
        written = None
        if remedy is not Remedy.ALLOCATED:
            written = await self._site.written_after(far.sequence)
        return await trio.to_thread.run_sync(self._list_ranges, remedy, far, written)

    def _list_ranges(self, remedy: Remedy, far: Position, written: KnownPositions | None) -> list[Range]:
        try:
            with opened_area(self._site.place.paths.area) as device:
                listing = list_copy(device, far.sequence, written)
                ranges = list_allocated(device) if remedy is Remedy.ALLOCATED else listing.ranges
        except CorruptionError as error:
            if self.queue.state().next_sequence == 1:
                return []  # No file system was made yet: both areas are as empty as they were made.
            raise DeviceError(errno.EIO, f"the metadata log cannot be read: {error}") from error
        if self.shipper is None or not self.shipper.progress.rounds:
            self.files_listed, self.bytes_listed = len(listing.files), total_bytes(ranges)
        self.fault = listing.fault
        if listing.fault is not None:
            log.error("site %s: %s", self._site.place.site, listing.fault)
        return ranges

    def _on_far(self, durable: Position, applied_sequence: int) -> None:
        self._site.link.tell_far(durable, applied_sequence)

    def _keep_pair(self, pair: Pair) -> None:
        state, roles = self._site.state, self._site.roles
        if roles.async_to is None:
            return
        state.set_pair("async", roles.writer, roles.async_to, str(pair.state), pair.reason, pair.event or "")
        if pair.state is State.DUPLEX:
            self._keep_take_over()
            state.settle(roles.async_to)
        if pair.state in {State.SUSPEND, State.SIMPLEX}:
            self._nursery.start_soon(self._site.control.tell_pair, Kind.ASYNC)

    def _keep_take_over(self) -> None:
        """Put the figures of the finished recovery copy on record, for a failover that is run again."""
        state, report = self._site.state, self.report()
        kept = state.take_over
        if report is None or kept is None or kept.epoch != self._site.roles.epoch:
            return
        if kept.copied_bytes is None:
            state.set_take_over(
                msgspec.structs.replace(
                    kept,
                    copied_bytes=report.bytes_copied,
                    listed_files=report.files_listed,
                    listed_bytes=report.bytes_listed,
                )
            )

    def report(self) -> CopyReport | None:
        """How the shipping goes; None where the roles name no asynchronous site."""
        shipper = self.shipper
        if shipper is None:
            return None
        last, now = shipper.last_copy, shipper.progress
        durable = shipper.durable
        return CopyReport(
            target=self.target,
            phase=str(shipper.pair.state),
            sentence=shipper.pair.reason,
            level=shipper.pair.state is State.DUPLEX,
            files_listed=self.files_listed,
            bytes_listed=self.bytes_listed,
            bytes_compared=now.hashed_bytes,
            bytes_copied=last.copied_bytes + last.entries_bytes if last is not None else now.copied_bytes,
            far_epoch=durable.epoch if durable is not None else 0,
            durable_sequence=durable.sequence if durable is not None else 0,
            applied_sequence=shipper.applied_sequence,
        )

    def digests(self, ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> list[bytes]:
        """Digests of the area as it is; blocks."""
        return digest_ranges(self.area, ranges, leaf_bytes)

    def start_levelling(
        self,
        target: str,
        roles: Roles,
        sequence: int,
        list_ranges: Callable[[], list[Range]],
        *,
        at_rest: bool,
    ) -> None:
        """Level a returning site; the status is asked for with GetLevel."""
        self.levelling.begin(target)
        run = partial(self.levelling.run, target, roles, sequence, list_ranges, at_rest=at_rest)
        self._nursery.start_soon(run)

    def bring_to_rest(self, place: Place) -> None:
        """After the mount has ended: what a killed one left in the queue is in the area, and flushed (P3).

        DeviceError while another process still writes the area. Blocks.
        """
        area = FileArea(place.paths.area)
        try:
            area.lock_writer(place.paths.writer_lock)
            state = self.queue.state()
            following = state.common_flush_sequence + 1
            while following < state.next_sequence:
                entries = self.queue.read(following)
                if not entries:
                    break
                apply_entries(area, entries)
                following = entries[-1].sequence + 1
            area.flush()
            self.queue.set_eligible(state.next_sequence - 1)
            self.queue.set_common_flush(state.next_sequence - 1)
        finally:
            area.close()
