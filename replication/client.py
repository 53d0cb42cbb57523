"""A conversation of control requests with the daemon of one site, for the command line, a mount or another
daemon.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from replication.channel import Channel
from replication.config import Config, ConfigurationError
from replication.connections import connect
from replication.control import ControlRequest, ReplyT, ask
from replication.errors import PeerUnreachable
from replication.frames import PROTOCOL_VERSION
from replication.handshake import greet
from replication.keys import OPERATOR, Identity, KeysError, load_identity
from replication.messages import Hello
from replication.nursery import serving_nursery
from replication.parts import Place
from replication.roles import Purpose, Roles

CONNECT_SECONDS: Final = 2.0


def identity_of(config: Config, name: str) -> Identity | None:
    """The identity of a site or of the operator; None with `plain = true`. ConfigurationError if it is not
    there.
    """
    if config.options.plain:
        return None
    try:
        return load_identity(config.keys, name)
    except KeysError as error:
        raise ConfigurationError(str(error)) from error


class Client:
    """An open conversation; one request at a time."""

    def __init__(self, channel: Channel, roles: Roles | None) -> None:
        self._channel = channel
        self.roles = roles
        """The roles the site said it holds when the conversation began."""

    async def ask(self, request: ControlRequest[ReplyT], seconds: float = 10.0) -> ReplyT:
        """The reply; ControlError when the site says no, PeerUnreachable when it does not answer in
        `seconds`.
        """
        return await ask(self._channel, request, seconds)


async def dial_channel(place: Place, target: str) -> Channel:
    """A channel to the daemon of `target`; nothing was said yet. PeerUnreachable, PeerRefused."""
    config = place.config
    there = config.site(target)
    identity = identity_of(config, place.site)
    return await connect(
        there.host,
        there.port,
        identity=identity,
        expect=None if identity is None else target,
        plain=config.options.plain,
        silence_seconds=config.options.silence_seconds,
    )


async def dial_site(
    place: Place, target: str, purpose: Purpose, roles: Roles, *, newest_sequence: int
) -> Channel:
    """A channel to `target` for data, welcomed but not running; PeerUnreachable, PeerRefused otherwise."""
    volume = place.volume
    channel = await dial_channel(place, target)
    hello = Hello(
        version=PROTOCOL_VERSION,
        site=place.site,
        purpose=purpose,
        volume=str(volume.uuid),
        size_bytes=volume.size_bytes,
        roles=roles,
        newest_sequence=newest_sequence,
    )
    try:
        await greet(channel, hello, volume=volume.uuid.bytes)
    except BaseException:
        channel.close()
        raise
    return channel


@asynccontextmanager
async def open_client(
    config: Config,
    site: str,
    *,
    caller: str = OPERATOR,
    roles: Roles | None = None,
    volume: str | None = None,
    connect_seconds: float = CONNECT_SECONDS,
) -> AsyncIterator[Client]:
    """Connect to the daemon of `site` as `caller`; PeerUnreachable, PeerRefused in one sentence if that
    fails.
    """
    place = config.site(site)
    identity = identity_of(config, caller)
    with trio.move_on_after(connect_seconds) as scope:
        channel = await connect(
            place.host,
            place.port,
            identity=identity,
            expect=None if identity is None else site,
            plain=config.options.plain,
            timeout_seconds=connect_seconds,
            silence_seconds=config.options.silence_seconds,
        )
    if scope.cancelled_caught:
        raise PeerUnreachable(f"site {site} at {place.host}:{place.port} does not answer")
    async with serving_nursery() as nursery:
        nursery.start_soon(channel.run)
        try:
            hello = Hello(
                version=PROTOCOL_VERSION, site=caller, purpose=Purpose.CONTROL, roles=roles, volume=volume
            )
            welcome = await greet(channel, hello, timeout_seconds=connect_seconds)
            yield Client(channel, welcome.roles)
        finally:
            channel.close()


async def ask_site(
    config: Config,
    site: str,
    request: ControlRequest[ReplyT],
    seconds: float = 10.0,
    *,
    caller: str = OPERATOR,
    roles: Roles | None = None,
    volume: str | None = None,
    connect_seconds: float = CONNECT_SECONDS,
) -> ReplyT:
    """One request in a conversation of its own."""
    async with open_client(
        config, site, caller=caller, roles=roles, volume=volume, connect_seconds=connect_seconds
    ) as client:
        return await client.ask(request, seconds)
