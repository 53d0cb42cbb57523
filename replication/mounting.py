"""What the mount process needs of its site: may it write, the virtual area, the copy, the local link.

Order of opening: roles (also of the other sites, so that a stale site learns that it was superseded), the
writer's lock, queue and positions, the copy to the sync site, recovery of what came after the last common
flush.
"""

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Final

import msgspec
import trio

from jfs.errors import CorruptionError, DeviceError, FileSystemError
from jfs.mountpoint import MountRefused
from jfs.store import Store
from replication.client import ask_site, dial_channel
from replication.config import Config, ConfigurationError, SiteName
from replication.control import Adopt, ControlError, MarkerReply, MountReport
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.fenced_copy import Alone, FencedCopy
from replication.local_link import LocalClient
from replication.nursery import serving_nursery
from replication.pair import ASKED, Kind, Pair, State
from replication.pair_keeper import PairKeeper
from replication.parts import Place, SitePaths, prepare
from replication.procedures.survey import take_survey
from replication.ranges import normalise
from replication.roles import Roles, fork_sentence, is_fork, others, should_adopt, superseded_sentence
from replication.site_listing import allocated_of
from replication.state import SiteState, StateError, VolumeIdentity
from vsap.area import FileArea
from vsap.positions import WritePositions
from vsap.queue import EntryQueue
from vsap.virtual import VirtualArea

log = logging.getLogger(__name__)

ROLES_SECONDS: Final = 1.5
MARKER_SECONDS: Final = 20.0
PRUNE_SECONDS: Final = 5.0
POSITIONS_TRIES: Final = 50
POSITIONS_WAIT_SECONDS: Final = 0.1


class Writer:
    """The writing site as the mount process sees it: a block device, and what the daemon may ask."""

    def __init__(self, place: Place, roles: Roles, finish: Callable[[], object] | None) -> None:
        self.place = place
        self.roles = roles
        self.volume: VolumeIdentity = place.volume
        self.device: VirtualArea
        self.copy: FencedCopy | Alone
        self.pair_keeper: PairKeeper | None = None
        self.queue: EntryQueue
        self.positions: WritePositions
        self.log_status: Callable[[], Any] | None = None
        """Set by the mount command: the file system's `Store.log_status`, for `trisite status`."""
        self.store: Store | None = None
        """Set by the mount command: its log is committed before a difference copy lists it."""
        self.mountpoint: str | None = None
        """Set by the mount command: what `failback` unmounts; it is refused while somebody uses it."""
        self._finish = finish

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
        """What the daemon of this site may ask."""
        return {
            "status": self._status,
            "settle": self._settle,
            "written": self._written,
            "marker": self._marker,
            "roles": self._roles,
            "pair": self._pair,
            "finish": self._finish_mount,
        }

    async def _status(self, _: dict[str, Any]) -> object:
        log = self.log_status() if self.log_status is not None else None
        pair = self.copy.pair
        return msgspec.to_builtins(
            MountReport(
                issued_sequence=self.device.issued_sequence,
                log_files=log.files if log is not None else 0,
                log_bytes=log.bytes if log is not None else 0,
                log_capacity_bytes=log.capacity_bytes if log is not None else 0,
                sync_state=str(pair.state) if pair is not None else "",
                sync_reason=pair.reason if pair is not None else "",
                unprotected=self.copy.unprotected,
            )
        )

    async def _settle(self, _: dict[str, Any]) -> None:
        if self.store is not None:
            await self.store.commit()

    async def _written(self, params: dict[str, Any]) -> object:
        sequence = int(params["sequence"])
        if not self.positions.trusted or self.positions.covered_from > sequence:
            return None
        return self.positions.ranges_after(sequence)

    async def _marker(self, params: dict[str, Any]) -> object:
        ranges = [(int(offset), int(length)) for offset, length in params["ranges"]]
        sequence, digests = await self.device.marker(ranges, int(params["leaf_bytes"]))
        found: list[str] | None = None
        reason = "site sync does not follow in this epoch"
        if isinstance(self.copy, FencedCopy):
            reason = f"site {self.copy.peer} did not answer within {MARKER_SECONDS:g} s"
            try:
                with trio.move_on_after(MARKER_SECONDS):
                    theirs = await self.copy.marker_digests(sequence)
                    found, reason = [digest.hex() for digest in theirs], ""
            except PeerUnreachable as error:
                reason = error.sentence
        return msgspec.to_builtins(
            MarkerReply(
                sequence=sequence,
                digests=[digest.hex() for digest in digests],
                sync_digests=found,
                sync_reason=reason,
            )
        )

    async def _roles(self, params: dict[str, Any]) -> None:
        self.learn(msgspec.convert(params, Roles))

    def learn(self, roles: Roles) -> None:
        """Newer roles with another writer: every further write is refused, in the sentence that says why."""
        if should_adopt(self.roles, roles):
            # Fenced first: that must not depend on a disk that has room.
            self.copy.fence(DeviceError(errno.EROFS, superseded_sentence(self.place.site, roles)))
            try:
                self.place.state.adopt(roles)
            except StateError as error:
                log.error("the roles of epoch %d are not on record here: %s", roles.epoch, error)

    async def _pair(self, params: dict[str, Any]) -> str | None:
        if not isinstance(self.copy, FencedCopy):
            return "there is no synchronous pair in this epoch"
        try:
            if params["action"] in {"suspend", "resync"} and self.copy.pair.state is State.SIMPLEX:
                names = f"{self.place.site},{self.copy.peer}"
                return f"the pair was deleted; create it with `trisite pair create {names}`"
            if params["action"] in {"suspend", "delete"}:
                delete = params["action"] == "delete"
                await self.copy.suspend(ASKED, force=bool(params["force"]), delete=delete)
            elif params["action"] == "create" and self.copy.pair.state is not State.SIMPLEX:
                return f"the pair to site {self.copy.peer} exists, it is {self.copy.pair.state}"
            else:
                self.copy.resume(ASKED)
        except PeerUnreachable as error:
            return error.sentence
        return None

    async def _finish_mount(self, _: dict[str, Any]) -> str | None:
        if self.mountpoint is not None:
            command = ["umount", self.mountpoint]
            done = await trio.run_process(command, check=False, capture_stderr=True)
            if done.returncode != 0:
                return why_not_unmounted(self.mountpoint, done.stderr.decode(errors="replace"))
        if self._finish is not None:
            self._finish()
        return None


@asynccontextmanager
async def open_writer(
    config: Config, site_name: str, *, finish: Callable[[], object] | None = None
) -> AsyncIterator[Writer]:
    """The block device of the writing site. `finish` is called when the daemon asks the mount to end.

    MountRefused in one sentence if this site may not write, is mounted already or has no volume. On leaving,
    everything is flushed, and the sync site is told that it was a clean end.
    """
    config.site(site_name)
    name: SiteName = next(site for site in config.sites if site == site_name)
    paths = SitePaths(config.sites[name].directory)
    with ExitStack() as stack:
        place = Place(config, name, paths, _open_state(paths, stack))
        roles = await check_roles(place)
        area = _open_area(place, stack)
        if place.state.prepared_epoch != roles.epoch:
            await trio.to_thread.run_sync(prepare, place)
        writer = Writer(place, roles, finish)
        writer.queue = queue = place.open_writer_queue()
        stack.callback(queue.close)
        writer.positions = await _open_positions(place)
        stack.callback(writer.positions.close)
        if not writer.positions.trusted:
            writer.positions.reset(queue.next_sequence - 1)
        writer.copy = _make_copy(writer, area) if roles.sync_to is not None else Alone()
        async with _running(writer, area):
            yield writer


@asynccontextmanager
async def _running(writer: Writer, area: FileArea) -> AsyncIterator[None]:
    """The tasks of the writer around the body; a clean end flushes and says good-bye."""
    link = LocalClient(
        writer.place.paths.socket,
        on_far=lambda epoch, durable, _applied: _note_far(writer, epoch, durable),
        handlers=writer.handlers(),
    )
    async with serving_nursery() as nursery:
        async with VirtualArea(
            area,
            writer.queue,
            writer.copy,
            writer.positions,
            complete=writer.place.config.options.complete,
            on_eligible=link.eligible,
        ) as writer.device:
            if writer.pair_keeper is not None:
                nursery.start_soon(writer.pair_keeper.run)
            await nursery.start(writer.copy.run)
            nursery.start_soon(link.run)
            await writer.device.recover()
            async with serving_nursery() as serving:
                serving.start_soon(_prune_forever, writer)
                yield
            await writer.device.flush()
        with trio.CancelScope(shield=True):
            await writer.copy.finish()


def _note_far(writer: Writer, epoch: int, durable_sequence: int) -> None:
    writer.device.note_far_durable(epoch, durable_sequence)
    writer.copy.far_position(epoch, durable_sequence)


async def _prune_forever(writer: Writer) -> None:
    """Forget the positions of what both other sites have; they are of use for a site that is behind.

    What is forgotten is in the log by then: a comparison of everything in use must find it there.
    """
    while isinstance(writer.copy, FencedCopy):
        await trio.sleep(PRUNE_SECONDS)
        reach = min(writer.copy.durable_sequence, writer.device.far_durable_sequence)
        if writer.copy.unprotected or reach <= writer.positions.covered_from:
            continue
        with contextlib.suppress(DeviceError, FileSystemError):
            if writer.store is not None:
                await writer.store.commit()
            writer.positions.prune(reach)


def _open_state(paths: SitePaths, stack: ExitStack) -> SiteState:
    if not paths.directory.is_dir():
        raise MountRefused(
            f"the directory {paths.directory} does not exist here; a site is used on its own machine"
        )
    try:
        return stack.enter_context(SiteState(paths.state))
    except StateError as error:
        raise MountRefused(str(error)) from error


def _open_area(place: Place, stack: ExitStack) -> FileArea:
    area = FileArea(place.paths.area)
    stack.callback(area.close)
    try:
        area.lock_writer(place.paths.writer_lock)
    except DeviceError as error:
        raise MountRefused(
            f"the volume is mounted at site {place.site} already ({error}); unmount it there first"
        ) from error
    return area


async def _open_positions(place: Place) -> WritePositions:
    """The daemon may be reading them for a moment."""
    for _ in range(POSITIONS_TRIES):
        try:
            return place.open_positions()
        except DeviceError as error:
            if error.errno != errno.EBUSY:
                raise
        await trio.sleep(POSITIONS_WAIT_SECONDS)
    return place.open_positions()


async def check_roles(place: Place) -> Roles:
    """The roles under which this site may write now; MountRefused otherwise.

    The other sites are asked first: one that knows a newer epoch teaches this one.
    """
    state, site = place.state, place.site
    roles = state.roles
    if roles is None or state.identity is None:
        raise MountRefused(
            f"site {site} has no volume in {place.paths.directory} on this machine; make one with "
            f"`trisite mkfs`, or, if there is one, use the machine of site {site} "
            f"({place.config.site(site).host})"
        )
    survey = await take_survey(
        place.config,
        others(site),
        caller=site,
        roles=roles,
        volume=str(state.identity.uuid),
        seconds=ROLES_SECONDS,
    )
    newest = survey.newest()
    same = all(
        report.volume is None or report.volume.uuid == str(state.identity.uuid)
        for report in survey.reports.values()
    )
    if same and newest is not None and newest.epoch == roles.epoch:
        theirs = [report.roles for report in survey.reports.values() if report.roles is not None]
        if forked := [one for one in theirs if is_fork(roles, one)]:
            raise MountRefused(fork_sentence((roles, forked[0])))
    if newest is not None and same and should_adopt(roles, newest):
        await _adopt_here(place, newest)
        roles = newest
    if roles.writer != site:
        raise MountRefused(_not_the_writer(state, site, roles))
    if state.held_epoch == roles.epoch:
        raise MountRefused(
            f"site {site} is being handed back; finish that with `trisite failback`, or stay here with "
            f"`trisite failover --to {site}`"
        )
    return roles


async def _adopt_here(place: Place, roles: Roles) -> None:
    """Through the daemon of this site if it runs, so that it plays its new part at once."""
    try:
        request = Adopt(volume=str(place.volume.uuid), roles=roles)
        await ask_site(place.config, place.site, request, caller=place.site)
    except (PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError, ConfigurationError):
        place.state.adopt(roles)


def _not_the_writer(state: SiteState, site: SiteName, roles: Roles) -> str:
    if any(past.writer == site for past in state.history()):
        return superseded_sentence(site, roles)
    way_out = f"mount with --at {roles.writer}"
    if site in {"sync", "async"}:
        way_out += f", or take over with `trisite failover --to {site}`"
    return f"site {site} may not write, site {roles.writer} does in epoch {roles.epoch}; {way_out}"


def _make_copy(writer: Writer, area: FileArea) -> FencedCopy:
    place, roles, queue = writer.place, writer.roles, writer.queue
    peer = roles.sync_to
    if peer is None:
        raise CorruptionError("the roles name no synchronous site")
    options = place.config.options

    def differing(sequence: int) -> list[tuple[int, int]] | None:
        known = writer.positions.trusted and writer.positions.covered_from <= sequence
        return writer.positions.ranges_after(sequence) if known else None

    def allocated() -> list[tuple[int, int]]:
        # What changes use that are not in the log yet was written lately, so the positions name it.
        recent = writer.positions.ranges_after(writer.positions.covered_from)
        try:
            return normalise([*allocated_of(place), *recent])
        except CorruptionError:
            if queue.next_sequence == 1:
                return []  # Nothing was written yet, not even a file system.
            return [(0, area.size_bytes)]

    def keep_pair(pair: Pair) -> None:
        place.state.set_pair("sync", place.site, peer, str(pair.state), pair.reason, pair.event or "")
        if pair.state is State.DUPLEX:
            place.state.settle(peer)

    def keep_told(told: bool) -> None:
        try:
            place.state.set_told(roles.epoch, told)
        except StateError as error:
            raise DeviceError(errno.EIO, str(error)) from error

    writer.pair_keeper = PairKeeper(keep_pair)
    return FencedCopy(
        lambda: dial_channel(place, peer),
        volume=place.volume.uuid,
        site=place.site,
        peer=peer,
        roles=roles,
        queue=queue,
        area=area,
        differing=differing,
        allocated=allocated,
        common_flush=lambda: queue.state().common_flush_sequence,
        protect=options.protect,
        protect_timeout_seconds=options.protect_timeout_seconds,
        doubted=place.state.doubted(peer),
        told=place.state.told,
        on_told=keep_told,
        pair=_pair_on_record(place, peer, roles.epoch),
        on_pair=writer.pair_keeper,
        on_superseded=writer.learn,
    )


def _pair_on_record(place: Place, peer: str, epoch: int) -> Pair | None:
    """The state of the pair as an earlier mount left it; what an operator asked for lasts for the epoch."""
    for record in place.state.pairs():
        if (record.kind, record.source, record.target) == ("sync", place.site, peer):
            if record.state in {State.SUSPEND, State.SIMPLEX} and record.epoch != epoch:
                return None  # it was asked for in an earlier epoch; the sites were brought level since
            return Pair(Kind.SYNC, State(record.state), record.since, record.reason)
    return None


def why_not_unmounted(mountpoint: str, said: str) -> str:
    """Why the mount point stays, from what umount(8) printed; no full stop, other words follow."""
    if "busy" in said:
        return f"something works in {mountpoint} (fuser -vm {mountpoint} shows it)"
    reason = said.strip().removeprefix(f"umount: {mountpoint}: ").rstrip(".")
    return f"{mountpoint} cannot be unmounted, {reason or 'umount does not say why'}"
