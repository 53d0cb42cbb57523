"""The daemon's view of the mount process of its site: is it there, what does it say, ask it to end."""

from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from replication.control import ControlError, MarkerReply, MountReport, Range
from replication.errors import PeerUnreachable
from replication.local_link import LocalServer, RequestFailed
from replication.pair import ASKED, Event, Kind, Pair, PairError, State
from replication.position import Position
from replication.roles import Roles
from replication.site_parts import WriterPart
from vsap.area import is_being_written

if TYPE_CHECKING:
    from replication.site import Site

REPORT_SECONDS: Final = 1.0
SETTLE_SECONDS: Final = 30.0
ARRIVAL_SECONDS: Final = 5.0
"""How long a mount process that lives may take to find a daemon that was started again."""
TELL_SECONDS: Final = 2.0
PAIR_SECONDS: Final = 9.0


class MountLink:
    """The requests a daemon makes of the mount process; a mount that is stalled costs a short wait."""

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._gone = trio.Event()
        self._came = trio.Event()
        self._told: Roles | None = None
        self._nursery: trio.Nursery | None = None
        self._told_far: Position | None = None
        self._server = LocalServer(
            site.place.paths.socket, on_eligible=self._on_eligible, on_mount=self._on_mount
        )

    @property
    def connected(self) -> bool:
        """Whether a mount process is connected."""
        return self._is_connected()

    def _is_connected(self) -> bool:
        return self._server.mount_pid is not None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen for the mount process until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self._server.run)
            task_status.started()

    def _on_eligible(self, sequence: int) -> None:
        del sequence  # the queue says the same; this only ends the wait for the next look at it
        part = self._site.part
        if isinstance(part, WriterPart) and part.shipper is not None:
            part.shipper.notify()

    def _on_mount(self, pid: int | None) -> None:
        if pid is None:
            self._gone.set()
            self._gone, self._came = trio.Event(), trio.Event()
            return
        self._came.set()
        if self._site.state.roles is not None:
            self.tell_roles(self._site.state.roles)

    def tell_far(self, durable: Position, applied_sequence: int) -> None:
        """What the async site has made durable and applied. The mount needs only the first."""
        if durable != self._told_far:
            self._told_far = durable
            self._server.far(durable.epoch, durable.sequence, applied_sequence)

    def tell_roles(self, roles: Roles) -> None:
        """The mount learns the roles of this site: superseded, it refuses every further write."""
        if self.connected and self._nursery is not None:
            self._nursery.start_soon(self._tell_roles, roles)

    async def _tell_roles(self, roles: Roles) -> None:
        try:
            await self._server.request("roles", msgspec.to_builtins(roles), timeout_seconds=TELL_SECONDS)
        except (PeerUnreachable, RequestFailed):
            return  # gone or stalled: its writes are refused by the other sites all the same

    async def _ask(self, method: str, params: dict[str, Any], seconds: float) -> Any:  # noqa: ANN401  # JSON
        try:
            return await self._server.request(method, params, timeout_seconds=seconds)
        except (PeerUnreachable, RequestFailed) as error:
            raise ControlError(f"the mount at site {self._site.name}: {error}", "mount") from error

    async def report(self) -> MountReport | None:
        """What the mount says about itself; None where there is none or it is stalled."""
        if not self.connected:
            return None
        try:
            found = await self._server.request("status", timeout_seconds=REPORT_SECONDS)
        except (PeerUnreachable, RequestFailed):
            return None
        return msgspec.convert(found, MountReport)

    async def arrival(self) -> None:
        """Return when the mount process is connected, or none is there.

        ControlError where one lives that is not: what it has not committed is in no log that could be read.
        """
        if self.connected or not self._mount_lives():
            return
        with trio.move_on_after(ARRIVAL_SECONDS):
            await self._came.wait()
            return
        raise ControlError(
            f"the mount process at site {self._site.name} has not found the restarted daemon yet",
            "mount",
        )

    async def settle(self) -> None:
        """The mounted file system has committed its metadata log; ControlError when it does not answer."""
        await self.arrival()
        if self.connected:
            await self._ask("settle", {}, SETTLE_SECONDS)

    async def written_after(self, sequence: int) -> list[Range] | None:
        """The blocks written at this site after `sequence`, None where the mount cannot know."""
        found = await self._ask("written", {"sequence": sequence}, SETTLE_SECONDS)
        return None if found is None else [(int(offset), int(length)) for offset, length in found]

    async def set_pair(self, action: str, *, force: bool) -> None:
        """Suspend or resync the synchronous pair, which is the mount's; ControlError why that cannot be.

        Without a mount it can only be taken out, with `force`: none comes about while its secondary is away.
        The next mount finds it so, and tells the secondary when it is back.
        """
        takes_out = action in {"suspend", "delete"}
        if not self.connected and takes_out and force and not self._mount_lives():
            self._take_out(Event.SUSPEND if action == "suspend" else Event.DELETE)
            return
        if not self.connected:
            way_out = (
                " (where it cannot be mounted because site sync is away: add --force)" if takes_out else ""
            )
            raise ControlError(
                f"the volume is not mounted at site {self._site.name}, and nothing is copied to site sync; "
                f"mount it first{way_out}",
                "not-mounted",
            )
        sentence = await self._ask("pair", {"action": action, "force": force}, PAIR_SECONDS)
        if sentence is not None:
            raise ControlError(str(sentence))

    def _mount_lives(self) -> bool:
        return is_being_written(self._site.place.paths.writer_lock)

    def _take_out(self, event: Event) -> None:
        """Put on record that the synchronous pair is suspended or deleted."""
        site, state = self._site, self._site.state
        target = site.roles.sync_to
        assert target is not None
        kept = [
            one
            for one in state.pairs()
            if (one.kind, one.source, one.target) == (Kind.SYNC, site.name, target)
        ]
        before = State(kept[0].state) if kept and kept[0].epoch == site.roles.epoch else State.DUPLEX_PENDING
        try:
            after = Pair(Kind.SYNC, before, 0, "").after(event, ASKED, 0)
        except PairError as error:
            raise ControlError(str(error)) from error
        state.set_pair("sync", site.name, target, str(after.state), ASKED, event)

    async def marker(self, ranges: list[Range], leaf_bytes: int, seconds: float) -> MarkerReply:
        """Digests at one place in the stream."""
        params = {"ranges": ranges, "leaf_bytes": leaf_bytes}
        return msgspec.convert(await self._ask("marker", params, seconds), MarkerReply)

    async def finish(self, seconds: float) -> str | None:
        """Ask the mount to flush, unmount and end, and wait until it has; the sentence why not, or None."""
        if not self.connected:
            return None
        gone = self._gone
        try:
            sentence = await self._server.request("finish", timeout_seconds=seconds)
        except RequestFailed as error:
            return str(error)
        except PeerUnreachable as error:
            return str(error) if self._is_connected() else None
        if sentence is not None:
            return str(sentence)
        with trio.move_on_after(seconds):
            if self._is_connected():
                await gone.wait()
        return "the mount process flushed but did not end" if self._is_connected() else None
