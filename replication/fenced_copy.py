"""The copies a virtual area can stand on: to the sync site, or none; both refuse writes once superseded."""

from collections.abc import Callable, Sequence
from typing import Final

import trio

from jfs.errors import DeviceError
from replication.pair import Pair
from replication.sync_copy import SyncCopy
from vsap.entry import Entry

NEVER: Final = (1 << 63) - 1


class FencedCopy(SyncCopy):
    """The synchronous copy of a writer that may learn, from its own daemon, that it was superseded."""

    def fence(self, refusal: DeviceError) -> None:
        """Refuse every write from now on, also those that wait."""
        self._permanent = refusal
        self._changed()


class Alone:
    """A writer without a sync site: nothing is waited for (provides vsap.remote.RemoteCopy)."""

    def __init__(self) -> None:
        self.on_received: Callable[[], None] | None = None
        self._refusal: DeviceError | None = None

    @property
    def pair(self) -> Pair | None:
        """There is no pair."""
        return None

    @property
    def received_sequence(self) -> int:
        """Nothing is missing at a site there is none of."""
        return NEVER

    @property
    def durable_sequence(self) -> int:
        """As above."""
        return NEVER

    @property
    def unprotected(self) -> bool:
        """Writes complete without another site."""
        return True

    def send(self, entries: Sequence[Entry], *, flush: bool = False) -> None:
        """Nowhere to send them to."""

    def request_flush(self, sequence: int) -> None:
        """Nobody to ask."""

    def far_position(self, epoch: int, sequence: int) -> None:
        """Nobody to tell."""

    async def wait_received(self, sequence: int) -> None:
        """At once, unless superseded."""
        await self._checkpoint()

    async def wait_durable(self, sequence: int) -> None:
        """At once, unless superseded."""
        await self._checkpoint()

    async def _checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._refusal is not None:
            raise self._refusal

    def refusal(self) -> DeviceError | None:
        """Why a write must be refused: this site was superseded."""
        return self._refusal

    def fence(self, refusal: DeviceError) -> None:
        """Refuse every write from now on."""
        self._refusal = refusal

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Nothing to keep connected."""
        task_status.started()

    async def finish(self) -> bool:
        """Nobody to say good-bye to."""
        return True
