"""A site that comes back: where may it differ from the stream, what does it alone have (figures 11, 15).

It was the writer, or the synchronous secondary of a writer that is gone, when others went on without it from
`after_sequence`. What it has beyond that is not part of the volume any more; it is kept, listed and
overwritten.
"""

import errno
import logging
from typing import Final

from jfs.errors import CorruptionError, DeviceError
from replication.control import MOST_RANGES, Range
from replication.parts import Place, parted_at, previous_part
from replication.position import NOWHERE
from replication.quarantine import KeptFile, QuarantineWriter
from replication.ranges import coarsened, normalise, pieces
from replication.roles import role_of
from replication.set_journal import JournalError
from replication.site_listing import allocated_of, local_files, local_ranges
from replication.state import LevelRecord
from vsap.area import FileArea, is_being_written
from vsap.entry import write_entry
from vsap.queue import EntryQueue
from vsap.virtual import apply_entries

log = logging.getLogger(__name__)

READ_BYTES: Final = 1 << 20


def keep_own_writes(place: Place, after_sequence: int) -> LevelRecord:
    """Keep in quarantine what only this site has, and say where it may differ. Blocks on files.

    The area, its queue and records must not be open elsewhere in this process.
    """
    roles = place.state.roles
    epoch = 0 if roles is None else roles.epoch
    parted = parted_at(place)
    if parted is not None:
        after_sequence = parted
    writer = QuarantineWriter(place.paths.quarantine, epoch, after_sequence)
    try:
        area = FileArea(place.paths.area)
        try:
            if parted is not None:
                ranges, complete, reason = _of_fork(place, area, writer, parted)
            else:
                ranges, complete, reason = _collect(place, area, writer, after_sequence)
            # What is equal is not copied, so none of what is looked at may still be lost.
            area.flush()
            files = _files_in(place, writer.ranges, every=parted is not None)
            path = writer.finish(place.site, files, complete=complete)
        finally:
            area.close()
    except BaseException:
        writer.abandon()
        raise
    with place.open_journal() as journal:
        journal.reset(NOWHERE)
    return LevelRecord(
        epoch=epoch,
        ranges=coarsened(ranges, MOST_RANGES),  # what it names beyond is compared for nothing, no more
        everything=not complete,
        quarantine=None if path is None else str(path),
        quarantined_bytes=writer.bytes if path is not None else 0,
        reason=reason,
    )


def keep_before_following(place: Place) -> None:
    """What a site has that wrote in another epoch of the same number is kept before it follows the other.

    Nothing to do where it is in the history, or away: then it is prepared by `keep_own_writes`. Blocks.
    DeviceError while a mount process still runs here, OSError where the host refuses: nothing was lost.
    """
    roles = place.state.roles
    if roles is None or place.state.prepared_epoch == roles.epoch:
        return
    if role_of(roles, place.site) not in {"sync", "async"} or parted_at(place) is None:
        return
    if is_being_written(place.paths.writer_lock):
        raise DeviceError(
            errno.EBUSY,
            f"site {place.site} was not chosen to go on and a mount process still runs there; unmount it: "
            "then what it alone has is kept, and it follows",
        )
    record = keep_own_writes(place, roles.start_sequence)
    log.warning("site %s: %s; it is kept in %s", place.site, record.reason, record.quarantine)


def _of_fork(
    place: Place, area: FileArea, writer: QuarantineWriter, parted: int
) -> tuple[list[Range], bool, str]:
    """It wrote while others did, in an epoch that is none of theirs: everything after `parted` is kept.

    A writer without followers keeps no entries, and no names in its log; its positions name what it wrote.
    Where they do not reach back far enough, everything in use is kept.
    """
    queue = place.open_queue()
    try:
        _complete_area(area, queue)
    finally:
        queue.close()
    written = _written_after(place, parted)
    ranges = written or []
    if written is None:
        try:
            ranges = allocated_of(place)
        except CorruptionError:
            ranges = [(0, area.size_bytes)]  # what is in use cannot be read either
    _keep_blocks(area, writer, ranges)
    what = (
        "what it wrote since"
        if written is not None
        else "everything in use, because its write positions are lost,"
    )
    return [], False, f"it parted from the others at sequence {parted}; {what} is kept"


def _complete_area(area: FileArea, queue: EntryQueue) -> None:
    """What a killed mount left in the queue is in the area (P3)."""
    following = queue.state().common_flush_sequence + 1
    while entries := queue.read(following):
        apply_entries(area, entries)
        following = entries[-1].sequence + 1
    area.flush()


def _collect(
    place: Place, area: FileArea, writer: QuarantineWriter, after_sequence: int
) -> tuple[list[Range], bool, str]:
    """Fill the quarantine; the ranges, whether they are all there can be, and a sentence."""
    before, epoch = last_real_part(place)
    roles = place.state.roles
    if roles is not None and roles.epoch - epoch > 1 and before in {"writer", "sync"}:
        # What was written in the epochs between is in nobody's list of what differs from this site.
        _keep_listed(place, area, writer)
        return [], False, "others wrote in an epoch that it missed; everything in use is compared"
    if before == "writer":
        return _of_writer(place, area, writer, after_sequence)
    if before == "sync":
        return _of_sync(place, area, writer, epoch, after_sequence)
    return [], False, f"site {place.site} did not write; everything in use is compared"


def last_real_part(place: Place) -> tuple[str, int]:
    """The part this site played before it was away, and the last epoch in which it played it (0: none)."""
    for roles in reversed(place.state.history()):
        if place.site == roles.writer:
            return "writer", roles.epoch
        if place.site == roles.sync_to:
            return "sync", roles.epoch
        if place.site == roles.async_to:
            return "async", roles.epoch
    return previous_part(place.state, place.site), 0


def _of_writer(
    place: Place, area: FileArea, writer: QuarantineWriter, after_sequence: int
) -> tuple[list[Range], bool, str]:
    queue = place.open_queue()
    try:
        state = queue.state()
        lost = state.drop_reason in {"crash", "damaged"} and state.dropped_through > after_sequence
        if lost or not state.trusted:
            _keep_listed(place, area, writer)
            return [], False, "its host crashed and its queue is lost; everything in use is compared"
        if state.dropped_through > after_sequence:
            _keep_listed(place, area, writer)
            return [], False, "its queue had overflowed; everything in use is compared"
        first = min(after_sequence, state.common_flush_sequence) + 1
        if state.oldest_sequence > first and state.next_sequence > first:
            _keep_written(place, area, writer, after_sequence)
            return [], False, "its queue does not reach back far enough; everything in use is compared"
        try:
            ranges = _read_queue(queue, writer, first, after_sequence)
        except CorruptionError:
            # What entries pointed to was written over: this site was nearly brought level once before, and
            # what it alone had was kept then.
            _keep_listed(place, area, writer)
            return [], False, "its queue cannot be read to the end; everything in use is compared"
    finally:
        queue.close()
    return ranges, True, f"its queue names {writer.entries} writes that reached no other site"


def _read_queue(queue: EntryQueue, writer: QuarantineWriter, first: int, after_sequence: int) -> list[Range]:
    """Keep the writes after `after_sequence`; the ranges of all from `first`, which A may have or not."""
    ranges: list[Range] = []
    following = first
    while entries := queue.read(following):
        ranges += [(entry.offset, entry.end - entry.offset) for entry in entries]
        writer.add(entry for entry in entries if entry.sequence > after_sequence)
        following = entries[-1].sequence + 1
    return normalise(ranges)


def _of_sync(
    place: Place, area: FileArea, writer: QuarantineWriter, epoch: int, after_sequence: int
) -> tuple[list[Range], bool, str]:
    """A synchronous secondary keeps no entries: what it received later is kept as blocks of its area.

    Where it was behind (suspended, passed over, set back), what it lacks is in no list of what it wrote.
    """
    positions = place.open_positions()
    try:
        known = positions.trusted and positions.covered_from <= after_sequence
        ranges = positions.ranges_after(after_sequence)
    finally:
        positions.close()
    _keep_blocks(area, writer, ranges)
    if not known:
        return [], False, "its write positions are lost; everything in use is compared"
    with place.open_record() as record:
        facts, received = record.facts, record.received_sequence
    if facts.epoch != epoch or not facts.has_volume or facts.copying or received < after_sequence:
        return [], False, "it had not received everything by then; everything in use is compared"
    return ranges, True, f"its write positions name {len(ranges)} ranges"


def _keep_written(place: Place, area: FileArea, writer: QuarantineWriter, after_sequence: int) -> None:
    """Where entries have left the queue, the far site has them, and the log names them no more: keep what the
    write positions name, which a writer whose sync pair is suspended or deleted goes on recording.
    """
    ranges = _written_after(place, after_sequence)
    if ranges is None:
        _keep_listed(place, area, writer)
    else:
        _keep_blocks(area, writer, ranges)


def _written_after(place: Place, sequence: int) -> list[Range] | None:
    """What the write positions name of the writes after `sequence`; None: they do not reach back there."""
    positions = place.open_positions()
    try:
        known = positions.trusted and positions.covered_from <= sequence
        return positions.ranges_after(sequence) if known else None
    finally:
        positions.close()


def _keep_listed(place: Place, area: FileArea, writer: QuarantineWriter) -> None:
    """Where the writes themselves are lost, keep what the own metadata log names."""
    try:
        _keep_blocks(area, writer, local_ranges(place.paths.area))
    except (CorruptionError, DeviceError, JournalError):
        return  # An area without a readable file system has no files to keep.


def _keep_blocks(area: FileArea, writer: QuarantineWriter, ranges: list[Range]) -> None:
    for offset, length in pieces(ranges, READ_BYTES):
        writer.add([write_entry(0, 0, offset, area.read(offset, length))])


def _files_in(place: Place, ranges: list[Range], *, every: bool) -> list[KeptFile]:
    """The files of this site's own log that the kept blocks belong to; none when the log cannot be read.

    `every`: of the whole volume, also those that the log does not name.
    """
    if not ranges:
        return []
    try:
        return local_files(place.paths.area, ranges, every=every)
    except (CorruptionError, DeviceError):
        return []
