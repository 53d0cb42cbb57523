"""What a site owns on disk, and how it is set up for a part in a new epoch.

Invariant: `prepare` runs once for an epoch, before the site plays its part in it. It starts from the part the
site played last, which says what its area holds: the stream up to what it received (sync), up to its
journal's position (async), or up to where it was levelled (away).
"""

from pathlib import Path
from typing import Final

import msgspec

from jfs.errors import CorruptionError
from replication.config import Config, SiteName
from replication.position import NOWHERE, Position
from replication.received_record import ReceivedRecord
from replication.roles import Roles, parting, role_of
from replication.set_apply import apply_frame
from replication.set_journal import SetJournal
from replication.state import SiteState, VolumeIdentity
from vsap.area import FileArea
from vsap.positions import WritePositions
from vsap.queue import EntryQueue

FAR_NOT_LEVEL: Final = "it was not brought level; run `trisite failback` again"


class SitePaths(msgspec.Struct, frozen=True):
    """Where everything of a site is, under its directory (architecture, section 1)."""

    directory: Path

    @property
    def area(self) -> Path:
        """The storage area, a sparse file."""
        return self.directory / "area"

    @property
    def state(self) -> Path:
        """The durable state."""
        return self.directory / "state"

    @property
    def queue(self) -> Path:
        """The entry queue, used while this site writes."""
        return self.directory / "queue"

    @property
    def journal(self) -> Path:
        """The set journal, used while this site follows by sets."""
        return self.directory / "journal"

    @property
    def written(self) -> Path:
        """The write positions."""
        return self.directory / "written"

    @property
    def received(self) -> Path:
        """The record of the synchronous stream."""
        return self.directory / "received"

    @property
    def quarantine(self) -> Path:
        """What only this site had when it came back."""
        return self.directory / "quarantine"

    @property
    def writer_lock(self) -> Path:
        """Held by the process that writes the area."""
        return self.directory / "writer.lock"

    @property
    def daemon_lock(self) -> Path:
        """Held by the daemon."""
        return self.directory / "daemon.lock"

    @property
    def socket(self) -> Path:
        """Where the daemon and the mount process of this site talk."""
        return self.directory / "daemon.sock"


class KnownPositions(msgspec.Struct, frozen=True):
    """Write positions as they were read at one moment: what was written after `covered_from`."""

    covered_from: int
    ranges: list[tuple[int, int]]
    trusted: bool = True

    def ranges_after(self, sequence: int) -> list[tuple[int, int]]:
        """The ranges; asked for an earlier sequence they would not be complete."""
        if sequence < self.covered_from:
            raise ValueError(f"positions after {sequence} asked of a record from {self.covered_from} on")
        return self.ranges


class Place(msgspec.Struct, frozen=True):
    """A site as this process opens it: who it is, where, and what it remembers."""

    config: Config
    site: SiteName
    paths: SitePaths
    state: SiteState

    @property
    def volume(self) -> VolumeIdentity:
        """The volume; CorruptionError when there is none (the caller should have looked)."""
        identity = self.state.identity
        if identity is None:
            raise CorruptionError(f"site {self.site} has no volume")
        return identity

    def open_queue(self) -> EntryQueue:
        """The entry queue of this site."""
        return EntryQueue.open(
            self.paths.queue,
            self.volume.uuid,
            limit_bytes=self.config.options.queue_limit_bytes,
            area=self.paths.area,
        )

    def open_writer_queue(self) -> EntryQueue:
        """The queue of the writing site, trusted.

        Where a crash of the host emptied it (P4), that both other sites must be compared is on record first.
        """
        queue = self.open_queue()
        roles = self.state.roles
        if roles is not None and not queue.trusted:
            for site in (roles.sync_to, roles.async_to):
                if site is not None:
                    self.state.doubt(site, roles.epoch)
            queue.acknowledge_loss()
        return queue

    def open_positions(self) -> WritePositions:
        """The write positions of this site; DeviceError while another process has them open."""
        return WritePositions.open(self.paths.written, self.volume.uuid, size_bytes=self.volume.size_bytes)

    def open_journal(self) -> SetJournal:
        """The set journal of this site."""
        return SetJournal(self.paths.journal, self.volume.uuid.bytes, self.volume.size_bytes)

    def open_record(self) -> ReceivedRecord:
        """The record of what this site received synchronously."""
        return ReceivedRecord(self.paths.received, self.volume.uuid)

    def make_area(self) -> None:
        """An area file of the volume's size, empty; an older one is removed."""
        self.paths.area.unlink(missing_ok=True)
        FileArea.create(self.paths.area, self.volume.size_bytes).close()


def previous_part(state: SiteState, site: str) -> str:
    """The part this site played in the epoch before the newest one it knows; "new" if there was none.

    A site that was made in the middle of an epoch, with an empty area, was away: it holds no state.
    """
    history = state.history()
    if len(history) > 1:
        return role_of(history[-2], site)
    return "away" if state.began_blank else "new"


def missed_an_epoch(state: SiteState) -> bool:
    """Whether others wrote in an epoch between the two newest that this site knows."""
    history = state.history()
    return len(history) > 1 and history[-1].epoch - history[-2].epoch > 1


def parted_at(place: Place) -> int | None:
    """Where what the area of this site holds left the history of the newest roles; None: it did not.

    A site that was brought level since holds nothing of its own any more.
    """
    roles = place.state.roles
    if roles is None:
        return None
    seen = [one for one in place.state.history() if one.epoch < roles.epoch]
    while seen and role_of(seen[-1], place.site) == "away":
        seen.pop()
    found = parting(seen, roles)
    return None if found is None or _levelled_at(place, roles) else found


def prepare(place: Place) -> None:
    """Set the site's parts up for the newest roles; does nothing when that was done before.

    Blocks on files. CorruptionError in one sentence when the area is not where the roles say it is.
    """
    roles = place.state.roles
    if roles is None or place.state.prepared_epoch == roles.epoch:
        return
    before = previous_part(place.state, place.site)
    part = role_of(roles, place.site)
    if part not in {"away", before}:
        _complete_area(place, before)
    parted = parted_at(place) is not None
    if part != "writer" and (parted or (before in {"writer", "sync"} and missed_an_epoch(place.state))):
        before = "away"  # where it stood says nothing of what was written without it
    if part == "writer":
        _prepare_writer(place, roles, before)
    elif part == "sync":
        _prepare_sync(place, roles, before)
    elif part == "async":
        _prepare_async(place, roles, before)
    if part != "away":
        place.state.set_level(None)
    place.state.set_prepared_epoch(roles.epoch)


def _levelled_at(place: Place, roles: Roles) -> bool:
    """Whether the writer of an earlier epoch brought this site level with where this epoch starts."""
    with place.open_journal() as journal:
        position = journal.tail
    return position != NOWHERE and position.sequence == roles.start_sequence


def _complete_area(place: Place, before: str) -> None:
    """What this site holds is in its area, on stable storage, before it plays another part.

    That one applies no set of the journal, and nobody sends again what a crash of the host takes.
    """
    area = FileArea(place.paths.area)
    try:
        if before in {"async", "away"}:
            with place.open_journal() as journal:
                if journal.waiting:
                    for frame in journal.frames_of(journal.waiting[0], journal.waiting[-1]):
                        apply_frame(area, frame)
                    area.flush()
                    journal.release(journal.waiting[-1])
        area.flush()
    finally:
        area.close()


def _prepare_writer(place: Place, roles: Roles, before: str) -> None:
    if before == "away" and not _levelled_at(place, roles):
        raise CorruptionError(f"site {place.site} cannot write in epoch {roles.epoch}: {FAR_NOT_LEVEL}")
    queue = place.open_queue()
    try:
        queue.reset(roles.start_sequence + 1)
        queue.acknowledge_loss()
        queue.set_far_site(roles.async_to is not None)
    finally:
        queue.close()
    if before != "sync":
        _reset_positions(place, roles.start_sequence)


def _prepare_sync(place: Place, roles: Roles, before: str) -> None:
    if before == "sync":
        return
    level = before in {"writer", "new"} or _levelled_at(place, roles)
    with place.open_record() as record:
        if level:
            record.reset(roles.epoch, roles.start_sequence)
        else:
            record.reset(0, 0, has_volume=False)  # no state of any stream: everything is to be copied
        if level and place.config.options.protect:
            # No writer of this epoch was here yet, and under protection none acknowledges anything without
            # us.
            record.save(record.facts._replace(in_step=True, protect=True, clean=True))
    if before != "writer":
        _reset_positions(place, roles.start_sequence)


def _prepare_async(place: Place, roles: Roles, before: str) -> None:
    if before == "async":
        return
    level = before in {"writer", "new"} or _levelled_at(place, roles)
    with place.open_journal() as journal:
        if level:
            journal.reset(
                Position(roles.epoch, roles.start_sequence), roles.since
            )  # at rest since before that
        else:
            journal.reset(NOWHERE)


def _reset_positions(place: Place, covered_from: int) -> None:
    positions = place.open_positions()
    try:
        positions.reset(covered_from)
    finally:
        positions.close()
