"""The synchronous secondary (site C): applies the writer's stream to its area, in order, and acknowledges.

One writer connection at a time (`sync_session`); a newer one replaces the older.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final
from uuid import UUID

import trio

from jfs.errors import DeviceError
from replication.channel import Channel
from replication.frames import PROTOCOL_VERSION
from replication.handshake import refuse
from replication.messages import Hello, RefusalCode, Welcome
from replication.received_record import Facts, ReceivedRecord
from replication.roles import Roles
from replication.sync_session import ReceivingArea, ReceivingPositions, SyncSession

__all__ = ["SyncReceiver"]

_PRUNE_EVERY: Final = 4096
"""Sequences between two prunings of the write positions: pruning only saves room."""


class SyncReceiver:
    """Receives for one area. The area, the record and the positions belong to whoever opened them."""

    def __init__(
        self,
        area: ReceivingArea,
        record: ReceivedRecord,
        *,
        volume: UUID,
        site: str,
        positions: ReceivingPositions | None = None,
        on_facts: Callable[[Facts], None] | None = None,
        on_far_position: Callable[[int, int], None] | None = None,
    ) -> None:
        """`on_facts` is called in a worker thread, when facts are durable and before the writer hears of it.

        `on_far_position(epoch, sequence)` is called in the trio thread.
        """
        self.area = area
        self.record = record
        self.volume = volume
        self.site = site
        self.positions = positions
        self.on_facts = on_facts
        self.on_far_position = on_far_position
        self._fence: tuple[str, Roles] | None = None
        self._session: SyncSession | None = None
        self._pruned = 0

    @property
    def received_sequence(self) -> int:
        """The stream up to here is in the area."""
        return self.record.received_sequence

    @property
    def durable_sequence(self) -> int:
        """The stream up to here is on stable storage."""
        return self.record.facts.durable_sequence

    @property
    def far_position(self) -> tuple[int, int]:
        """(epoch, sequence) that the async site has durable, as the writer last said; (0, 0): unknown."""
        return self.record.facts.far_epoch, self.record.far_sequence

    @property
    def connected(self) -> bool:
        """Whether a writer is connected."""
        return self._session is not None

    def fence(self, sentence: str, roles: Roles) -> None:
        """Refuse every writer from now on, also the connected one, in these words: this site has new roles.

        From the call on nothing is applied and no position changes; `settled` waits for its end.
        """
        self._fence = (sentence, roles)
        if self._session is not None:
            self._session.stop(sentence, RefusalCode.SUPERSEDED, roles)

    async def settled(self) -> None:
        """Return when no conversation is under way any more, not even the flush it began."""
        while self._session is not None:
            await self._session.finished.wait()

    @property
    def consistent(self) -> bool:
        """Whether the area is a state of the stream: it holds a volume, and no copy to it is incomplete."""
        return self.record.facts.has_volume and not self.record.facts.copying

    async def serve(self, channel: Channel, hello: Hello, roles: Roles) -> None:
        """Carry on the conversation that `hello` began, until it ends; `roles` are this site's.

        Who may write was decided by the caller (roles.may_connect). Refuses another volume, size or a fenced
        writer. Raises PeerUnreachable, PeerRefused or RemoteProtocolError when the conversation ends.
        """
        while (old := self._session) is not None:
            old.channel.close("a newer connection of the writer replaced this one")
            await old.finished.wait()
        refusal = self._objection(hello, roles)
        if refusal is not None:
            await refuse(channel, *refusal)
            return
        session = self._session = SyncSession(self, channel, hello, roles)
        try:
            await session.run()
        finally:
            if self.area.may_have_lost:
                await self.go_back()
            self._session = None
            session.finished.set()

    async def go_back(self) -> None:
        """A flush failed: what came since the last one counts as not received, and is sent again.

        Where not even that can be put on record, no flush succeeds until this daemon starts anew.
        """
        with trio.CancelScope(shield=True), suppress(DeviceError):
            await trio.to_thread.run_sync(self.record.distrust)
            self.area.accept_loss()

    def _objection(self, hello: Hello, roles: Roles) -> tuple[str, RefusalCode, Roles | None] | None:
        if self._fence is not None:
            return self._fence[0], RefusalCode.SUPERSEDED, self._fence[1]
        if hello.volume != str(self.volume):
            sentence = f"site {self.site} holds volume {self.volume}, not {hello.volume}"
            return sentence, RefusalCode.WRONG_VOLUME, None
        if hello.size_bytes != self.area.size_bytes:
            sentence = (
                f"the area of site {self.site} has {self.area.size_bytes} bytes and that of "
                f"site {hello.site} {hello.size_bytes}; both must have the size of the volume"
            )
            return sentence, RefusalCode.WRONG_SIZE, roles
        if hello.roles is None or hello.roles.epoch != roles.epoch:
            theirs = "no epoch" if hello.roles is None else f"epoch {hello.roles.epoch}"
            sentence = f"site {self.site} is in epoch {roles.epoch} and site {hello.site} in {theirs}"
            return sentence, RefusalCode.SUPERSEDED, roles
        return None

    def welcome(self, roles: Roles) -> Welcome:
        """What this site holds, for its WELCOME."""
        facts = self.record.facts
        received = self.record.received_sequence
        return Welcome(
            version=PROTOCOL_VERSION,
            site=self.site,
            roles=roles,
            incarnation=str(self.record.incarnation),
            received_sequence=facts.durable_sequence if facts.copying else received,
            durable_sequence=facts.durable_sequence,
            position_epoch=facts.epoch,
            position_sequence=facts.durable_sequence if facts.copying else received,
            copy_sequence=self.record.copy_sequence if facts.copying else 0,
            has_volume=facts.has_volume,
        )

    def prune(self, sequence: int) -> None:
        """Forget positions that the async site has; now and then is enough."""
        if self.positions is not None and sequence - self._pruned >= _PRUNE_EVERY:
            self._pruned = sequence
            self.positions.prune(sequence)
