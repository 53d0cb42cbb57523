"""The network of the simulation: connections in memory over links that can be cut, slowed and narrowed.

A link is between two machines. What is under way when it is cut arrives when it is whole again, as with TCP,
so a conversation that one side gave up long ago still reaches the other: old and new sessions overlap. A
machine without power says nothing; a killed process is followed by an end of stream.
"""

from __future__ import annotations

import errno
import math
import os
import random
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

import trio

from tests.sim.sites.host import PROCESS, Dead, Process
from tests.sim.sites.loop import Loop, Parked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

USUAL = (0.0002, 1e9)
"""Latency in seconds and bytes a second of a healthy link."""
WINDOW_BYTES = 256 * 1024
"""What a connection holds on its way before the sender has to wait."""


class Link:
    """Between two machines (or inside one)."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.up = True
        self.latency, self.bytes_per_second = USUAL
        self.changed = trio.Event()
        self.ends: dict[End, None] = {}

    def change(self, *, up: bool) -> None:
        """Cut the link or make it whole."""
        self.up = up
        self.changed.set()
        self.changed = trio.Event()
        for end in list(self.ends):
            end.wake()

    def hurry(self) -> None:
        """Be fast again, also for what is under way."""
        self.latency, self.bytes_per_second = USUAL
        soon = self.loop.now + self.latency
        for end in list(self.ends):
            end.inbox = deque((min(at, soon), data) for at, data in end.inbox)
            end.free_at = self.loop.now
            end.wake()

    def heal(self) -> None:
        """As at the beginning."""
        self.hurry()
        self.change(up=True)


class End:
    """One end of a connection: what replication/channel.py takes for a socket."""

    family = socket.AF_UNIX

    def __init__(self, process: Process | None, link: Link, address: str) -> None:
        self.process = process
        self.link = link
        self.address = address
        self.peer: End
        self.inbox: deque[tuple[float, bytes]] = deque()
        self.inbox_bytes = 0
        self.closed = self.reset = False
        self.eof_at: float | None = None
        self.free_at = 0.0
        self.detour = 1.0
        """Its latency in those of the link: a younger connection may be the faster one."""
        self._reader, self._writer = Parked(link.loop), Parked(link.loop)
        link.ends[self] = None
        if process is not None:
            process.ends[self] = None

    def wake(self) -> None:
        """Something changed: whoever waits at this end looks again."""
        self._reader.wake()
        self._writer.wake()

    def setblocking(self, flag: bool) -> None:
        """Never blocks."""

    def fileno(self) -> int:
        """There is none."""
        return -1

    def _check(self) -> None:
        if self.process is not None and self.process.dead:
            raise Dead
        if self.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.reset:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    @property
    def room(self) -> int:
        """Bytes that may still be sent."""
        return WINDOW_BYTES - self.peer.inbox_bytes

    def send(self, data: bytes | memoryview) -> int:
        """As socket.send of a non-blocking socket."""
        self._check()
        if self.peer.closed and self.link.up:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        count = min(self.room, len(data))
        if count <= 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        link, peer = self.link, self.peer
        self.free_at = max(link.loop.now, self.free_at) + count / link.bytes_per_second
        peer.inbox.append((self.free_at + link.latency * self.detour, bytes(data[:count])))
        peer.inbox_bytes += count
        if link.up:
            peer._reader.wake_at(peer.inbox[0][0])
        return count

    def _arrives_at(self) -> float:
        """When the next bytes, or the end of the stream, can be read."""
        if not self.link.up:
            return math.inf
        if self.inbox:
            return self.inbox[0][0]
        return math.inf if self.eof_at is None else self.eof_at

    def recv(self, count: int) -> bytes:
        """As socket.recv of a non-blocking socket."""
        self._check()
        if self._arrives_at() > self.link.loop.now:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not self.inbox:
            return b""
        at, data = self.inbox.popleft()
        if len(data) > count:
            self.inbox.appendleft((at, data[count:]))
            data = data[:count]
        self.inbox_bytes -= len(data)
        self.peer._writer.wake()
        return data

    def recv_into(self, buffer: bytearray) -> int:
        """As socket.recv_into of a non-blocking socket."""
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def wait_readable(self) -> None:
        """Until recv would not block; trio.ClosedResourceError where this end is closed meanwhile."""
        await self._wait(self._reader, lambda: self.reset or self._arrives_at() <= self.link.loop.now)

    async def wait_writable(self) -> None:
        """Until send would not block."""
        await self._wait(
            self._writer, lambda: self.reset or (self.peer.closed and self.link.up) or self.room > 0
        )

    async def _wait(self, place: Parked, ready: Callable[[], bool]) -> None:
        if ready():
            await trio.lowlevel.checkpoint()
        while not self.closed and not ready():
            await place.wait(self._arrives_at() if place is self._reader else math.inf)
        if self.closed:
            raise trio.ClosedResourceError

    def close(self) -> None:
        """Close this end; the peer is told, over the link."""
        if self.closed:
            return
        self.closed = True
        self.wake()
        if self.process is None or self.process.host.powered:
            last = self.peer.inbox[-1][0] if self.peer.inbox else 0.0
            self.peer.eof_at = max(last, self.link.loop.now + self.link.latency * self.detour)
        self.peer.wake()
        self._forget()

    def break_off(self) -> None:
        """The connection is reset at this end."""
        self.reset = True
        self.inbox.clear()
        self.wake()
        self._forget()

    def _forget(self) -> None:
        self.link.ends.pop(self, None)
        if self.process is not None:
            self.process.ends.pop(self, None)


class Network:
    """Links by pairs of machines, and who listens where."""

    def __init__(self, loop: Loop, rng: random.Random) -> None:
        self._loop = loop
        self._rng = rng
        self._links: dict[frozenset[str], Link] = {}
        self.listeners: dict[Any, SimSocket] = {}

    def link(self, one: str, other: str) -> Link:
        """The link between two machines."""
        return self._links.setdefault(frozenset((one, other)), Link(self._loop))

    def detour(self) -> float:
        """How much longer than usual a connection takes."""
        return self._rng.choice((1.0, 1.0, 1.0, 5.0, 30.0))

    def reset_all(self, one: str, other: str) -> int:
        """Break every connection of a link off, at both ends; how many ends."""
        ends = list(self.link(one, other).ends)
        for end in ends:
            end.break_off()
        return len(ends)


class SimSocket(trio.socket.SocketType):
    """What `trio.socket.socket` makes during a run: listens, connects, and then is an End."""

    type = socket.SOCK_STREAM
    proto = 0
    did_shutdown_SHUT_WR = False

    def __init__(self, network: Network, family: int) -> None:
        self.network = network
        self._family = family
        self._end: End | None = None
        self._waiting: deque[End] = deque()
        self._arrived = trio.Event()
        self._address: Any = None
        self.process = PROCESS.get()
        self.closed = False

    @property
    def family(self) -> Any:  # noqa: ANN401
        """As asked for."""
        return self._family

    def _place(self, address: Any) -> Any:  # noqa: ANN401
        if self._family == socket.AF_UNIX:
            parent, name = str(address).rsplit("/", 1)
            return os.path.join(os.path.realpath(parent), name)
        return (address[0], address[1])

    def setsockopt(self, *arguments: Any) -> None:  # noqa: ANN401
        """Takes every option."""

    def getsockopt(self, *arguments: Any) -> Any:  # noqa: ANN401
        """SO_PEERCRED is the one that is asked for."""
        return struct.pack("3i", os.getpid(), os.getuid(), os.getgid())

    def getsockname(self) -> Any:  # noqa: ANN401
        """The address it is bound to."""
        return self._address

    async def bind(self, address: Any) -> None:  # noqa: ANN401
        """Take an address."""
        self._address = self._place(address)
        if self._family == socket.AF_UNIX:
            os.close(os.open(self._address, os.O_CREAT | os.O_RDWR, 0o600))
        await trio.lowlevel.checkpoint()

    def listen(self, backlog: int = 0) -> None:
        """Be found by those who connect."""
        self.network.listeners[self._address] = self
        if self.process is not None:
            self.process.listeners[self] = None

    async def accept(self) -> tuple[SimSocket, Any]:
        """The next connection."""
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self.closed:
                raise trio.ClosedResourceError
            await self._arrived.wait()
        accepted = SimSocket(self.network, self._family)
        accepted._end = self._waiting.popleft()
        return accepted, (accepted._end.peer.address, 0)

    def offer(self, end: End) -> None:
        """Somebody connects."""
        self._waiting.append(end)
        self._arrived.set()
        self._arrived = trio.Event()

    async def connect(self, address: Any) -> None:  # noqa: ANN401
        """To whoever listens there; waits while the link is cut or the machine has no power."""
        place = self._place(address)
        process = self.process
        assert process is not None
        here = process.host.name
        there = here if self._family == socket.AF_UNIX else MACHINES[place[1]]
        link = self.network.link(here, there)
        await trio.sleep(2 * link.latency)
        while not (link.up and HOSTS[there].powered):
            await link.changed.wait()
        listener = self.network.listeners.get(place)
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        mine, theirs = End(process, link, here), End(listener.process, link, there)
        mine.peer, theirs.peer = theirs, mine
        mine.detour, theirs.detour = self.network.detour(), self.network.detour()
        self._end = mine
        listener.offer(theirs)

    def end(self) -> End:
        """The connected end."""
        assert self._end is not None
        return self._end

    async def send(self, data: Any, flags: int = 0) -> int:  # noqa: ANN401
        """As trio's."""
        sent: int = await self._retry(lambda: self.end().send(data), self.end().wait_writable)
        return sent

    async def recv(self, count: int, flags: int = 0) -> bytes:
        """As trio's."""
        data: bytes = await self._retry(lambda: self.end().recv(count), self.end().wait_readable)
        return data

    async def _retry(self, call: Callable[[], Any], wait: Callable[[], Awaitable[None]]) -> Any:  # noqa: ANN401
        waited = False
        while True:
            try:
                result = call()
            except BlockingIOError:
                waited = True
                await wait()
                continue
            if not waited:
                await trio.lowlevel.checkpoint()
            return result

    def close(self) -> None:
        """Stop listening, or close the connection."""
        self.closed = True
        if self._end is not None:
            self._end.close()
        if self.network.listeners.get(self._address) is self:
            del self.network.listeners[self._address]
        if self.process is not None:
            self.process.listeners.pop(self, None)
        for end in self._waiting:
            end.close()
        self._waiting.clear()
        self._arrived.set()


HOSTS: dict[str, Any] = {}
MACHINES: dict[int, str] = {}
"""Which machine a port belongs to; set for each run."""


class Factory(trio.abc.SocketFactory):
    """Makes the sockets of a run."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def socket(self, family: Any = socket.AF_INET, type: Any = 0, proto: int = 0) -> Any:  # noqa: ANN401
        """A socket of the simulation."""
        return SimSocket(self._network, family)
