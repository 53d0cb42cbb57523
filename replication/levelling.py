"""The writer brings a returning site level by hash comparison, while its application goes on (figures 11 and
15).

While the volume is mounted here the copy is only a first approach: what is written meanwhile is found again
by the next one, and the target has no position. Once the mount has ended the area is at rest, the copy is
exact and its position is the truth. Nothing trusts a returning site before that.
"""

from collections.abc import Callable
from typing import Final

import msgspec
import trio

from replication.client import ask_site, dial_site
from replication.control import ControlError, LevelStatus, LosePosition, Range
from replication.difference import AtRest, CopyAborted, CopyProgress, copy_difference, copy_nearer
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.far_link import FarLink
from replication.far_site import open_far_site
from replication.parts import Place
from replication.roles import Purpose, Roles
from replication.words import size
from vsap.area import FileArea

LOSE_SECONDS: Final = 30.0
IDLE: Final = LevelStatus(
    running=False,
    error=None,
    sentence="no site is being levelled",
    bytes_compared=0,
    bytes_copied=0,
    position=0,
)


class Levelling:
    """One levelling at a time; `run` does it, `status` can be asked meanwhile."""

    def __init__(self, place: Place, area: FileArea, link_to: Callable[[str], FarLink]) -> None:
        """`link_to(site)` is the link over which a site is levelled."""
        self._place = place
        self._link_to = link_to
        self._area = area
        self._progress = CopyProgress()
        self._target = ""
        self._status = IDLE

    @property
    def running(self) -> bool:
        """Whether a levelling is under way."""
        return self._status.running

    def status(self) -> LevelStatus:
        """How it goes, or how it ended."""
        if not self._status.running:
            return self._status
        done = self._progress
        return msgspec.structs.replace(
            self._status,
            sentence=f"{size(done.hashed_bytes)} of {size(done.ranges_bytes)} compared with "
            f"site {self._target}",
            bytes_compared=done.hashed_bytes,
            bytes_copied=done.copied_bytes,
        )

    def begin(self, target: str) -> None:
        """From now on it is under way: whoever asks waits for `run` to end."""
        self._target = target
        self._progress = CopyProgress()
        self._status = msgspec.structs.replace(IDLE, running=True, sentence="the ranges are being listed")

    async def run(
        self,
        target: str,
        roles: Roles,
        sequence: int,
        list_ranges: Callable[[], list[Range]],
        *,
        at_rest: bool,
    ) -> None:
        """Copy to `target` what differs; `sequence` is where the area stands (or stood before the listing).

        Only a copy of an area `at_rest` gives the target that position. `list_ranges` is called in a worker
        thread. Errors are kept for `status`, not raised.
        """
        error: str | None = None
        try:
            ranges = await trio.to_thread.run_sync(list_ranges)
            await self._copy(target, roles, sequence, ranges, at_rest=at_rest)
        except (PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError, CopyAborted) as failure:
            error = str(failure)
        finally:
            done = self._progress
            self._status = LevelStatus(
                running=False,
                error=error,
                sentence=error or f"site {target} is level at sequence {sequence}",
                bytes_compared=done.hashed_bytes,
                bytes_copied=done.copied_bytes,
                position=sequence,
            )

    async def _copy(
        self, target: str, roles: Roles, sequence: int, ranges: list[Range], *, at_rest: bool
    ) -> None:
        volume = self._place.volume
        if not at_rest:
            # It may have been level before: then a return was not finished, and the application went on here.
            lose = LosePosition(epoch=roles.epoch)
            await ask_site(self._place.config, target, lose, LOSE_SECONDS, caller=self._place.site)
        channel = await dial_site(self._place, target, Purpose.LEVEL, roles, newest_sequence=sequence)
        async with open_far_site(
            channel, volume=volume.uuid.bytes, epoch=roles.epoch, link=self._link_to(target)
        ) as far:
            await far.first_report()
            if not at_rest:
                await copy_nearer(far, self._area, ranges, progress=self._progress)
                return
            await copy_difference(
                far, self._area, ranges, AtRest(sequence), since=sequence, progress=self._progress
            )
