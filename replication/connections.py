"""Connecting to a site and listening for its peers, with mutual TLS."""

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from replication.channel import DEFAULT_SILENCE_SECONDS, DEFAULT_TIMEOUT_SECONDS, Channel
from replication.errors import LocalProtocolError, PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.keys import Identity

__all__ = ["Listener", "connect", "listen"]

_GREETING_CONNECTIONS: Final = 64
"""Connections that may be in the TLS handshake at once; one more ends the oldest, which takes its time."""


async def connect(
    host: str,
    port: int,
    *,
    identity: Identity | None,
    expect: str | None = None,
    plain: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    silence_seconds: float = DEFAULT_SILENCE_SECONDS,
) -> Channel:
    """Connect to a site and do the TLS handshake. `expect` names the site the certificate must be of.

    `identity` None with `plain` connects without TLS, to loopback only. Raises PeerUnreachable, PeerRefused.
    """
    peer = f"{'site ' + expect if expect else 'the site'} at {host}:{port}"
    if identity is None and not plain:
        raise LocalProtocolError(
            f"no certificate to talk to {peer}, and plain connections were not asked for"
        )
    channel: Channel | None = None
    with trio.move_on_after(timeout_seconds) as scope:
        try:
            sock = await _open_socket(host, port, loopback_only=identity is None)
            channel = Channel(sock, peer=peer, identity=identity, silence_seconds=silence_seconds)
            await channel.handshake(expect)
        except OSError as error:
            raise PeerUnreachable(f"{peer} cannot be reached: {_reason(error)}") from error
        except BaseException:
            if channel is not None:
                channel.close()
            raise
    if scope.cancelled_caught or channel is None:
        raise PeerUnreachable(f"{peer} does not answer ({timeout_seconds:g} s)")
    return channel


def _reason(error: OSError) -> str:
    """What the system said, in its words: trio puts the address in front of them, which is named already."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


async def _open_socket(host: str, port: int, *, loopback_only: bool) -> socket.socket:
    """A connected socket; the addresses of the name are tried in turn. Raises OSError, LocalProtocolError."""
    failure: OSError = OSError(f"the name {host} has no address")
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, address in found:
        if loopback_only:
            _check_loopback(str(address[0]))
        trying = trio.socket.socket(family, kind, protocol)
        try:
            await trying.connect(address)
        except OSError as error:
            trying.close()
            failure = error
        except BaseException:
            trying.close()
            raise
        else:
            return _tuned(trying)
    raise failure


def _tuned(connected: trio.socket.SocketType) -> socket.socket:
    # Taken from trio's wrapper: the plain socket can be sent to without a checkpoint.
    sock = socket.socket(fileno=connected.detach())
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _check_loopback(address: str) -> None:
    if not ipaddress.ip_address(address).is_loopback:
        raise LocalProtocolError(f"a connection without TLS is only allowed on loopback, not with {address}")


class Listener:
    """A listening socket of a site. `serve` accepts until it is cancelled or the listener is closed."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        identity: Identity | None,
        timeout_seconds: float,
        silence_seconds: float,
    ) -> None:
        self.port: int = sock.getsockname()[1]
        """The port, also where 0 was asked for."""
        self._sock = sock
        self._identity = identity
        self._timeout_seconds = timeout_seconds
        self._silence_seconds = silence_seconds
        self._greeting: dict[trio.CancelScope, None] = {}  # in the order of their arrival

    def close(self) -> None:
        """Stop listening; connections that were accepted stay."""
        self._sock.close()

    async def serve(
        self,
        handler: Callable[[Channel], Awaitable[None]],
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        """Accept connections and run `handler(channel)` for each in a task of its own, its channel running.

        What the handler raises of PeerUnreachable, PeerRefused and RemoteProtocolError ends that connection
        only, as does a failed handshake; `on_refused` is told the sentence. Other exceptions come out.
        """
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    accepted, address = await self._sock.accept()
                except trio.ClosedResourceError:
                    return
                except OSError as error:
                    # Out of descriptors or a connection that died in the backlog: the others go on.
                    if on_refused is not None:
                        on_refused(f"a connection could not be accepted: {error.strerror or error}")
                    await trio.sleep(0.1)
                    continue
                sock = _tuned(accepted)
                nursery.start_soon(self._serve_one, sock, address, handler, on_refused)

    @contextmanager
    def _among_greeting(self, scope: trio.CancelScope) -> Iterator[None]:
        """Around a handshake: strangers who only connect must not keep out a site, which does not dawdle."""
        if len(self._greeting) >= _GREETING_CONNECTIONS:
            oldest = next(iter(self._greeting))
            oldest.cancel()
            del self._greeting[oldest]
        self._greeting[scope] = None
        try:
            yield
        finally:
            self._greeting.pop(scope, None)

    async def _serve_one(
        self,
        sock: socket.socket,
        address: tuple[str, int],
        handler: Callable[[Channel], Awaitable[None]],
        on_refused: Callable[[str], None] | None,
    ) -> None:
        peer = f"the peer at {address[0]}:{address[1]}"
        channel = Channel(
            sock,
            peer=peer,
            identity=self._identity,
            server_side=True,
            silence_seconds=self._silence_seconds,
        )
        try:
            with trio.move_on_after(self._timeout_seconds) as scope, self._among_greeting(scope):
                await channel.handshake()
            if scope.cancelled_caught:
                raise PeerUnreachable(f"{peer} did not finish the TLS handshake")
            if channel.peer_site is not None:
                channel.peer = f"site {channel.peer_site} at {address[0]}:{address[1]}"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.run)
                await _guarded(handler, channel, on_refused)
                channel.close()
        except (PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
            if on_refused is not None:
                on_refused(str(error))
        finally:
            channel.close()


async def _guarded(
    handler: Callable[[Channel], Awaitable[None]],
    channel: Channel,
    on_refused: Callable[[str], None] | None,
) -> None:
    try:
        await handler(channel)
    except (PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
        if on_refused is not None:
            on_refused(str(error))


async def listen(
    host: str,
    port: int,
    *,
    identity: Identity | None,
    plain: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    silence_seconds: float = DEFAULT_SILENCE_SECONDS,
) -> Listener:
    """Listen at an address (port 0: any free one). Raises OSError when the address cannot be had."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    if identity is None:
        if not plain:
            raise LocalProtocolError(
                "no certificate to listen with, and plain connections were not asked for"
            )
        _check_loopback(str(address[0]))
    sock = trio.socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind(address)
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return Listener(sock, identity, timeout_seconds, silence_seconds)
