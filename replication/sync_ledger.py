"""What a synchronous copy knows of its secondary, and who waits for it: the side the virtual area sees."""

import time
from collections.abc import Callable

import trio

from jfs.errors import DeviceError
from replication.pair import Event, Kind, Pair, PairError, State
from replication.roles import time_text

__all__ = ["SyncLedger"]


class SyncLedger:
    """Sequences, the state of the pair, and the waiting for them. No I/O, no connection."""

    def __init__(
        self,
        peer: str,
        *,
        protect: bool,
        told: bool,
        on_told: Callable[[bool], None] | None,
        pair: Pair | None,
        on_pair: Callable[[Pair], None] | None,
    ) -> None:
        """The meaning of the arguments is that of SyncCopy."""
        self.on_received: Callable[[], None] | None = None
        self.peer = peer
        self._protect = protect
        self._told = told
        self._on_told = on_told
        self._on_pair = on_pair
        if pair is None or pair.state is State.DUPLEX:
            # What an earlier mount put on record may not hold any more: the secondary will say.
            pair = Pair(Kind.SYNC, State.DUPLEX_PENDING, time.time_ns(), "not connected yet")
        self._pair = pair
        self._suspended = pair.state in (State.SUSPEND, State.SIMPLEX)
        self._received = 0
        self._durable = 0
        self._in_step = False
        self._initial = False
        self._refusal: DeviceError | None = None
        self._lost_because: str | None = None
        """Why the last conversation ended: the pair's own reason may already be that of the next attempt."""
        self._permanent: DeviceError | None = None
        self._progress = trio.lowlevel.ParkingLot()

    @property
    def received_sequence(self) -> int:
        """The secondary has acknowledged every entry up to here."""
        return self._received

    @property
    def durable_sequence(self) -> int:
        """The secondary has every entry up to here on stable storage."""
        return self._durable

    @property
    def unprotected(self) -> bool:
        """Writes are complete without the secondary: suspended, first copy, or behind and not protected."""
        if self._suspended:
            return True
        return not self._in_step and (self._initial or (not self._protect and self._told))

    def _tell(self, told: bool) -> None:
        # A secondary that was promised everything must hear that the promise is over before it is: it could
        # otherwise take over and prove, wrongly, that nothing is lost.
        if told is not self._told:
            if self._on_told is not None:
                self._on_told(told)
            self._told = told

    @property
    def in_step(self) -> bool:
        """The secondary confirmed that it has everything, and the connection stands."""
        return self._in_step

    @property
    def pair(self) -> Pair:
        """State of the pair, since when, and why; for status."""
        return self._pair

    async def wait_received(self, sequence: int) -> None:
        """Return when the secondary has everything up to `sequence`. DeviceError when protection gives up."""
        while self._received < sequence and not self.unprotected:
            self._raise_refusal()
            if not self._look():
                await self._progress.park()
        if self._permanent is not None and self._received < sequence:
            raise self._permanent

    async def wait_durable(self, sequence: int) -> None:
        """Return when the secondary has all up to `sequence` durable; DeviceError as in wait_received."""
        while self._durable < sequence and not self.unprotected:
            self._raise_refusal()
            if not self._look():
                await self._progress.park()
        if self._permanent is not None and self._durable < sequence:
            raise self._permanent

    def _look(self) -> bool:
        """Whether something was heard from the secondary, in place; else the caller waits for `_progress`."""
        return False

    def refusal(self) -> DeviceError | None:
        """Why a new write must be refused now; None if it need not."""
        return self._permanent or self._refusal

    def _raise_refusal(self) -> None:
        refusal = self.refusal()
        if refusal is not None:
            raise DeviceError(refusal.errno, refusal.sentence)

    def _event(self, event: Event, reason: str) -> None:
        before = self._pair
        if before.state is State.SUSPEND and event is Event.UNREACHABLE:
            return  # the suspension ended the conversation: its own reason stays on record
        try:
            self._pair = before.after(event, reason, time.time_ns())
        except PairError:
            return  # a conversation that ends just when the pair is suspended or deleted changes nothing
        if self._on_pair is not None and self._pair != before:
            self._on_pair(self._pair)

    def _changed(self) -> None:
        """Whoever waits looks again: `unprotected`, the refusal or a sequence may have changed."""
        if self.unprotected:
            self._refusal = None
        if self.on_received is not None:
            self.on_received()
        self._progress.unpark_all()

    def _refusal_sentence(self) -> str:
        return (
            f"writes are refused because site {self.peer} does not receive them: "
            f"{self._lost_because or self._pair.reason} "
            f"({self._pair.state} since {time_text(self._pair.since_ns)}); they go on by themselves when it "
            "is back: start its daemon or repair the network, or take the pair out "
            f"(`trisite pair delete WRITER,{self.peer} --force`)"
        )
