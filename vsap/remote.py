"""The port through which the virtual area hands its entries to the synchronous copy; replication provides
it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from jfs.errors import DeviceError
from vsap.entry import Entry


class RemoteCopy(Protocol):
    """The synchronous copy at another site. All calls come from the one trio thread of the mount process."""

    on_received: Callable[[], None] | None
    """Set by the virtual area. The copy calls it, from the trio thread, whenever `received_sequence` or
    `unprotected` has changed: the entries that became eligible are announced from there. It never waits and
    never raises."""

    @property
    def received_sequence(self) -> int:
        """The remote site has acknowledged every entry up to here (cumulative; in its memory at least)."""
        ...

    @property
    def durable_sequence(self) -> int:
        """The remote site has every entry up to here on stable storage."""
        ...

    @property
    def unprotected(self) -> bool:
        """Writes are complete without the remote site (suspended, or `protect = false` and unreachable).

        While it is true `wait_received` and `wait_durable` return at once, entries are eligible as soon as
        they are in the area, and a flush of the area alone moves `common_flush_sequence`: the copy is then
        answerable for everything after its `durable_sequence`, which it brings level from the written
        positions, not from the queue.
        """
        ...

    def send(self, entries: Sequence[Entry], *, flush: bool = False) -> None:
        """Takes entries, in order of sequence; never waits, never raises. Kept for resending until they are
        received. `flush` is `request_flush` of the last of them, in the same message.

        An entry the remote site may already have (after `VirtualArea.recover`) is handed over again and is
        applied again or left out, as the copy knows better.
        """
        ...

    def request_flush(self, sequence: int) -> None:
        """Asks the remote site to make every entry up to `sequence` durable; never waits. All are sent
        before.
        """
        ...

    async def wait_received(self, sequence: int) -> None:
        """Returns when `received_sequence >= sequence`. DeviceError, naming the cause, when protection gives
        up.
        """
        ...

    async def wait_durable(self, sequence: int) -> None:
        """Returns when `durable_sequence >= sequence` (after `request_flush`). DeviceError as in
        `wait_received`.
        """
        ...

    def refusal(self) -> DeviceError | None:
        """Why a new write must be refused before it changes anything, or None. Called for every write:
        cheap.
        """
        ...
