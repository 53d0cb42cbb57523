"""The daemon of a site: one listener, the part that the roles give it, and the link to the mount process.

When the roles change, the part is closed and the new one opened; connections of the old part end with it. A
request that changes roles is answered only when the new part stands.
"""

import errno
import fcntl
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from jfs.errors import CorruptionError, DeviceError
from replication.channel import Channel
from replication.client import identity_of
from replication.config import Config, SiteName
from replication.connections import Listener, listen
from replication.control import ControlError, Range
from replication.pair_end import PairEnd
from replication.parts import KnownPositions, Place, SitePaths, prepare
from replication.procedures.survey import take_survey
from replication.roles import Roles, others, should_adopt, superseded_sentence
from replication.set_journal import JournalError
from replication.site_control import Control
from replication.site_link import MountLink
from replication.site_parts import AwayPart, Part, SyncPart, open_part
from replication.site_serve import serve_channel
from replication.state import SiteState, StateError, VolumeIdentity

log = logging.getLogger(__name__)

ASK_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 5.0
"""A part that the host refuses (full disk, damaged file) is opened again this often."""


class SiteError(Exception):
    """The daemon cannot start or go on; one sentence that says why and what to do."""


class SiteUnusable(SiteError):
    """The system refuses the daemon something it needs."""


class Site:
    """A running daemon; see the module. All in one trio thread."""

    def __init__(self, config: Config, name: SiteName, state: SiteState) -> None:
        self.config = config
        self.name = name
        self.state = state
        self.place = Place(config, name, SitePaths(config.site(name).directory), state)
        self.part: Part = AwayPart("the daemon is starting")
        self.link = MountLink(self)
        self.control = Control(self)
        self.pair_end = PairEnd(self)
        self._scope: trio.CancelScope | None = None
        self._wired = trio.Event()
        self.promoting = trio.Lock()
        self._changing = trio.Lock()
        self._adopting = trio.Lock()
        self._conversations: dict[Channel, trio.Event] = {}
        self.connected_since: int | None = None
        self.silent_since: int | None = None
        """Unix ns; since when a writer is connected to this secondary, or was last heard of."""
        self._nursery: trio.Nursery | None = None
        self._paused = False
        self._resumed = trio.Event()
        self._over = False
        """The daemon ends: no part will be opened any more."""

    @property
    def roles(self) -> Roles:
        """The roles; ControlError when there is no volume yet."""
        roles = self.state.roles
        if roles is None:
            raise ControlError(
                f"site {self.name} has no volume yet; make one with `trisite mkfs`", "no-volume"
            )
        return roles

    # --- the part that the roles give -------------------------------------------------------------------

    async def run_part(self) -> None:
        """Keep the part of the newest roles open; a part that cannot be opened is tried again."""
        try:
            await self._keep_part()
        finally:
            self._over = True
            self._wired.set()

    async def _keep_part(self) -> None:
        while True:
            with trio.CancelScope() as self._scope:
                try:
                    async with open_part(self) as part:
                        await self._play(part)
                except (DeviceError, CorruptionError, JournalError, StateError, OSError) as error:
                    log.error("site %s cannot play its part: %s", self.name, error)
                    self.part = AwayPart(str(error), faulty=True)
                    self._wired.set()
                    await trio.sleep(RETRY_SECONDS)
                finally:
                    self.part = AwayPart("the roles are changing")
            if self._paused:
                self._wired.set()
                await self._resumed.wait()

    async def _play(self, part: Part) -> None:
        """Until cancelled; nobody is served any more when the part is closed, also where the daemon ends."""
        self.part = part
        self._wired.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self._end_conversations()

    @asynccontextmanager
    async def without_part(self) -> AsyncIterator[None]:
        """Close the part, do what needs its files alone, open the part of the roles that hold then."""
        async with self._changing:
            self._paused, self._resumed, self._wired = True, trio.Event(), trio.Event()
            await self._end_conversations()
            if self._scope is not None:
                self._scope.cancel()
            await self._wired.wait()
            try:
                yield
            finally:
                self._wired = trio.Event()
                self._paused = False
                self._resumed.set()
                if not self._over:
                    with trio.CancelScope(shield=True):
                        await self._wired.wait()

    @property
    def part_sentence(self) -> str:
        """Why this site has no part, or which it has."""
        return self.part.sentence if isinstance(self.part, AwayPart) else type(self.part).__name__

    async def wired(self) -> None:
        """Return when the part of the newest roles stands (or was found impossible)."""
        await self._wired.wait()

    async def settle_log(self) -> None:
        """The file system mounted here has committed its log; at once where none is mounted."""
        await self.link.settle()

    async def written_after(self, sequence: int) -> KnownPositions | None:
        """The blocks written at this site after `sequence`; None where that is not known."""
        ranges = await self._written_ranges(sequence)
        return None if ranges is None else KnownPositions(sequence, ranges)

    async def _written_ranges(self, sequence: int) -> list[Range] | None:
        await self.link.arrival()
        if self.link.connected:
            return await self.link.written_after(sequence)
        return await trio.to_thread.run_sync(self._written_after, sequence)

    def _written_after(self, sequence: int) -> list[Range] | None:
        positions = self.place.open_positions()
        try:
            if not positions.trusted or positions.covered_from > sequence:
                return None
            return positions.ranges_after(sequence)
        finally:
            positions.close()

    @contextmanager
    def conversation(self, channel: Channel) -> Iterator[None]:
        """Around a data connection that a part serves: it is ended before the part is closed."""
        if not self._conversations:
            self.connected_since, self.silent_since = time.time_ns(), None
        self._conversations[channel] = ended = trio.Event()
        self.pair_end.look()
        try:
            yield
        finally:
            del self._conversations[channel]
            ended.set()
            if not self._conversations:
                self.connected_since, self.silent_since = None, time.time_ns()
                self.pair_end.look()

    async def _end_conversations(self) -> None:
        """A connection must not outlive the part that serves it: nobody would ever answer it again."""
        self.part = AwayPart("the roles are changing")
        while self._conversations:
            channel, ended = next(iter(self._conversations.items()))
            channel.close("the part of this site is changing")
            await ended.wait()

    async def adopt(self, roles: Roles) -> bool:
        """Take newer roles over: the old part is fenced at once, the new one stands on return."""
        own = self.state.roles
        if not should_adopt(own, roles):
            await self.wired()
            return False
        if isinstance(self.part, SyncPart):
            self.part.receiver.fence(superseded_sentence(str(own.writer if own else "primary"), roles), roles)
        async with self._adopting:
            if not should_adopt(self.state.roles, roles):
                return False  # learned from somebody else meanwhile
            async with self.without_part():
                changed = await trio.to_thread.run_sync(self.state.adopt, roles)
        if changed:
            log.info("site %s: epoch %d, %s writes", self.name, roles.epoch, roles.writer)
            self.link.tell_roles(roles)
        return changed

    def learn_soon(self, roles: Roles) -> None:
        """A peer said it holds these roles: a task that outlives the present part adopts newer ones."""
        if self._nursery is not None and should_adopt(self.state.roles, roles):
            self._nursery.start_soon(self._learn, roles)

    async def _learn(self, roles: Roles) -> None:
        try:
            await self.adopt(roles)
        except StateError as error:
            # Whoever said so refuses this site, and the others are asked again in a moment.
            log.error("site %s cannot take over the roles of epoch %d: %s", self.name, roles.epoch, error)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Play the part of the roles, and hear from the other sites whether these are the newest."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self.link.run)
            self._nursery.start_soon(self.run_part)
            await self.wired()
            self._nursery.start_soon(self._ask_others)
            self._nursery.start_soon(self.pair_end.run)
            task_status.started()

    async def _ask_others(self) -> None:
        """A site that was away when the writer changed must not long believe that it is the writer."""
        while True:
            identity = self.state.identity
            if identity is not None:
                survey = await take_survey(
                    self.config,
                    others(self.name),
                    caller=self.name,
                    roles=self.state.roles,
                    volume=str(identity.uuid),
                )
                for report in survey.reports.values():
                    same = report.volume is not None and report.volume.uuid == str(identity.uuid)
                    if same and report.roles is not None:
                        self.learn_soon(report.roles)
            await trio.sleep(ASK_SECONDS)

    async def create(self, identity: VolumeIdentity, roles: Roles, *, blank: bool) -> None:
        """A new volume here, nothing of an older one stays; `blank`: the area is no state of the stream."""

        def make() -> None:
            self.state.create(identity, roles, blank=blank)
            remove_parts(self.place.paths)
            self.place.make_area()
            prepare(self.place)

        async with self.without_part():
            await trio.to_thread.run_sync(make)
        log.info("site %s: volume %s (%s)", self.name, identity.name, identity.uuid)


def remove_parts(paths: SitePaths) -> None:
    """Remove what an older volume left, except its quarantine."""
    for directory in (paths.queue, paths.journal, paths.written):
        _remove_tree(directory)
    paths.received.unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    if not path.exists():
        return
    for below in path.iterdir():
        if below.is_dir():
            _remove_tree(below)
        else:
            below.unlink()
    path.rmdir()


async def run_site(
    config: Config, site_name: str, ready: Callable[[], None] | None = None, *, signals: bool = True
) -> None:
    """Be the daemon of `site_name` until SIGTERM or SIGINT; `ready` is called when it answers.

    SiteError or ConfigurationError, in one sentence, when it cannot start.
    """
    place = config.site(site_name)
    name: SiteName = next(site for site in config.sites if site == site_name)
    if not place.directory.is_dir():
        raise SiteError(
            f"the directory {place.directory} of site {name} does not exist; `trisite init` makes it"
        )
    lock = _lock(SitePaths(place.directory).daemon_lock, name)
    try:
        listener = await _listen(config, name)
        try:
            with _state(place.directory) as state:
                identity = state.identity
                if identity is not None and (sentence := config.contradicts(identity.size_bytes)):
                    log.warning("%s", sentence)
                await _run(Site(config, name, state), listener, ready, signals=signals)
        finally:
            listener.close()
    finally:
        os.close(lock)


def _state(directory: Path) -> SiteState:
    try:
        return SiteState(SitePaths(directory).state)
    except StateError as error:
        raise SiteError(str(error)) from error


def _lock(path: Path, name: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SiteUnusable(
            f"the daemon of site {name} cannot use {path.parent}: {error.strerror}; "
            "start it as the user who owns the directory, or mend that"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise SiteError(f"the daemon of site {name} runs already; stop it first, or use that one") from error
    return descriptor


async def _listen(config: Config, name: SiteName) -> Listener:
    there = config.site(name)
    try:
        return await listen(
            there.host,
            there.port,
            identity=identity_of(config, name),
            plain=config.options.plain,
            silence_seconds=config.options.silence_seconds,
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = (
                "another program listens there; stop it, or give the site another port in the configuration"
            )
        else:
            reason = f"{error.strerror or error}; check host and port in the configuration"
        raise SiteError(f"site {name} cannot listen at {there.host}:{there.port}: {reason}") from error


async def _run(site: Site, listener: Listener, ready: Callable[[], None] | None, *, signals: bool) -> None:
    async with trio.open_nursery() as nursery:
        if signals:
            await nursery.start(_stop_at_signal, nursery.cancel_scope)
        await nursery.start(site.run)

        async def serve(channel: Channel) -> None:
            await serve_channel(site, channel)

        nursery.start_soon(listener.serve, serve, _refused)
        if ready is not None:
            ready()


def _refused(sentence: str) -> None:
    log.debug("%s", sentence)


async def _stop_at_signal(
    scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for _ in received:
            scope.cancel()
            return
