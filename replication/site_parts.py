"""The parts a daemon plays: follower of the synchronous stream, follower by sets, writer.

Each is opened when the roles say so and closed when they change.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from replication.nursery import serving_nursery
from replication.parts import Place, prepare
from replication.received_record import ReceivedRecord
from replication.returning import keep_before_following
from replication.roles import role_of
from replication.set_receiver import SetReceiver
from replication.site_writer import WriterPart
from replication.sync_receiver import SyncReceiver
from vsap.area import FileArea
from vsap.digest import digest_ranges
from vsap.positions import WritePositions

if TYPE_CHECKING:
    from replication.site import Site

__all__ = ["AwayPart", "FollowPart", "Part", "SyncPart", "WriterPart", "open_part"]


@dataclass
class SyncPart:
    """The synchronous secondary."""

    area: FileArea
    record: ReceivedRecord
    positions: WritePositions
    receiver: SyncReceiver

    def digests(self, ranges: Sequence[tuple[int, int]], leaf_bytes: int) -> list[bytes]:
        """Digests of the area as it is; blocks."""
        return digest_ranges(self.area, ranges, leaf_bytes)


@dataclass
class FollowPart:
    """A site that follows by sets: the asynchronous secondary, or (`level`) a returning site."""

    area: FileArea
    receiver: SetReceiver
    level: bool


@dataclass
class AwayPart:
    """A site without a part in this epoch, and the sentence why; `faulty` where it should have one."""

    sentence: str
    faulty: bool = False


Part = SyncPart | FollowPart | WriterPart | AwayPart


@asynccontextmanager
async def open_part(site: "Site") -> AsyncIterator[Part]:
    """Set the site up for its newest roles and open what they need.

    DeviceError, CorruptionError, JournalError where the host or the files refuse.
    """
    place = site.place
    roles = place.state.roles
    if roles is None or place.state.identity is None:
        yield AwayPart("the site has no volume yet; make one with `trisite mkfs`")
        return
    await trio.to_thread.run_sync(keep_before_following, place)
    await trio.to_thread.run_sync(prepare, place)
    part = role_of(roles, place.site)
    if part == "away" and place.state.level is None:
        yield AwayPart(f"site {place.site} has no part in epoch {roles.epoch}, site {roles.writer} writes")
        return
    with ExitStack() as stack:
        area = FileArea(place.paths.area)
        stack.callback(area.close)
        if part == "sync":
            yield _open_sync(place, area, stack)
            return
        async with serving_nursery() as nursery:
            if part == "writer":
                yield WriterPart(site, area, stack, nursery)
            else:
                follower = _open_follower(place, area, stack, level=part == "away")
                nursery.start_soon(follower.receiver.run)
                yield follower


def _open_sync(place: Place, area: FileArea, stack: ExitStack) -> SyncPart:
    record = stack.enter_context(place.open_record())
    _doubt_after_reboot(place, record)
    positions = place.open_positions()
    stack.callback(positions.close)
    if not positions.trusted:
        try:
            # After a crash of the host the writer resends what was not durable, and that is noted again.
            positions.acknowledge_resend(record.received_sequence)
        except ValueError:
            positions.reset(record.received_sequence)
    receiver = SyncReceiver(area, record, volume=place.volume.uuid, site=place.site, positions=positions)
    return SyncPart(area, record, positions, receiver)


def _doubt_after_reboot(place: Place, record: ReceivedRecord) -> None:
    """Another boot of the host may have lost what was received and not flushed: then nothing is proven."""
    incarnation = str(record.incarnation)
    if place.state.seen_incarnation not in {None, incarnation} and not record.facts.clean:
        record.save(record.facts._replace(in_step=False))
    place.state.set_seen_incarnation(incarnation)


def _open_follower(place: Place, area: FileArea, stack: ExitStack, *, level: bool) -> FollowPart:
    journal = place.open_journal()
    stack.callback(journal.close)

    def epoch() -> int:
        roles = place.state.roles
        return 0 if roles is None else roles.epoch

    receiver = SetReceiver(area, journal, volume=place.volume.uuid.bytes, epoch=epoch)
    return FollowPart(area, receiver, level)
