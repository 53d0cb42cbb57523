"""A connection to the daemon: its hello is judged by the roles, then the part it wants carries it on."""

import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
import trio

from jfs.errors import CorruptionError, DeviceError
from replication.channel import Channel
from replication.control import ControlError, decode_request, may_ask
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.frames import PROTOCOL_VERSION, FrameType, encode
from replication.handshake import await_hello, refuse
from replication.messages import Hello, RefusalCode, Reply, Request, Welcome, decode_json, encode_json
from replication.position import Position
from replication.roles import Purpose, Roles, Verdict, may_connect, should_adopt
from replication.set_journal import JournalError
from replication.site_parts import AwayPart, FollowPart, SyncPart
from replication.state import StateError, VolumeIdentity
from replication.words import size

if TYPE_CHECKING:
    from replication.site import Site

log = logging.getLogger(__name__)


async def serve_channel(site: "Site", channel: Channel) -> None:
    """Carry on one conversation to its end."""
    hello = await await_hello(channel)
    if hello.roles is not None and channel.peer_site is not None:
        await _learn(site, hello)
    if hello.purpose == Purpose.CONTROL:
        await _serve_control(site, channel)
    else:
        await _serve_data(site, channel, hello)


async def _learn(site: "Site", hello: Hello) -> None:
    """A peer with newer roles teaches this site, if it speaks of the same volume."""
    identity = site.state.identity
    same = identity is not None and hello.volume == str(identity.uuid)
    if same and hello.roles is not None and should_adopt(site.state.roles, hello.roles):
        await site.adopt(hello.roles)


async def _take_volume(site: "Site", channel: Channel, hello: Hello) -> str | None:
    """A site that was away when the volume was made learns of it from the writer, and is copied afresh.

    The sentence that says why it cannot take this one, None otherwise.
    """
    roles = hello.roles
    if roles is None or hello.volume is None or roles.writer != hello.site:
        return None
    followers = {Purpose.SYNC: roles.sync_to, Purpose.ASYNC: roles.async_to}
    known = channel.peer_site == hello.site or site.config.options.plain
    if not known or followers.get(Purpose(hello.purpose)) != site.name:
        return None
    own_bytes = site.config.volume.size_bytes
    if hello.size_bytes != own_bytes:
        return (
            f"site {site.name} takes no volume of {size(hello.size_bytes or 0)}, its configuration says "
            f"{size(own_bytes)}; give every site the same configuration and start its daemon again"
        )
    identity = VolumeIdentity(
        uuid=UUID(hello.volume), name=site.config.volume.name, size_bytes=hello.size_bytes
    )
    await site.create(identity, roles, blank=True)
    return None


async def _serve_data(site: "Site", channel: Channel, hello: Hello) -> None:
    refusal = await _take_volume(site, channel, hello) if site.state.identity is None else None
    roles, identity = site.state.roles, site.state.identity
    if roles is None or identity is None:
        sentence = refusal or f"site {site.name} has no volume yet; make one with `trisite mkfs`"
        await refuse(channel, sentence, RefusalCode.WRONG_VOLUME)
        return
    if hello.volume != str(identity.uuid):
        sentence = f"site {site.name} holds volume {identity.uuid}, not {hello.volume}"
        await refuse(channel, sentence, RefusalCode.WRONG_VOLUME)
        return
    level = isinstance(site.part, FollowPart) and site.part.level
    decision = may_connect(hello.purpose, site.name, hello.site, roles, hello.roles, level=level)
    if decision.verdict is not Verdict.ACCEPT:
        sentence = decision.sentence or f"site {site.name} could not learn the newer roles"
        await refuse(channel, sentence, decision.code or RefusalCode.FENCED, roles)
        return
    try:
        site.state.note_newest(hello.newest_sequence)
    except StateError as error:  # a full disk ends this conversation, which comes again, and not the daemon
        await refuse(channel, f"site {site.name}: {error}", RefusalCode.BUSY, roles)
        return
    part = site.part
    if hello.purpose == Purpose.SYNC and isinstance(part, SyncPart):
        with site.conversation(channel):
            await part.receiver.serve(channel, hello, roles)
    elif hello.purpose != Purpose.SYNC and isinstance(part, FollowPart):
        channel.send_nowait(encode_json(_welcome(site, part, roles), identity.uuid.bytes, roles.epoch))
        with site.conversation(channel):
            await part.receiver.serve(channel, Position(roles.epoch, hello.newest_sequence))
    else:
        sentence = f"site {site.name} is being set up for epoch {roles.epoch}; try again in a moment"
        if isinstance(part, AwayPart) and part.faulty:
            sentence = f"site {site.name} cannot play its part: {part.sentence}"
        await refuse(channel, sentence, RefusalCode.BUSY, roles)


def _welcome(site: "Site", part: FollowPart, roles: Roles) -> Welcome:
    position = part.receiver.durable
    return Welcome(
        version=PROTOCOL_VERSION,
        site=site.name,
        roles=roles,
        received_sequence=position.sequence,
        durable_sequence=position.sequence,
        position_epoch=position.epoch,
        position_sequence=position.sequence,
        has_volume=position.epoch > 0,
    )


async def _serve_control(site: "Site", channel: Channel) -> None:
    welcome = Welcome(version=PROTOCOL_VERSION, site=site.name, roles=site.state.roles)
    channel.send_nowait(encode_json(welcome))
    while True:
        frame = await channel.receive_one()
        if frame.type is FrameType.CONFIRM:
            continue  # too late: that request has lapsed, and was answered so
        if frame.type is not FrameType.REQUEST:
            raise RemoteProtocolError(f"{channel.peer} sent a {frame.type.name} frame where requests are")
        message = decode_json(frame, Request)
        await channel.send(encode_json(await _answer(site, channel, message)))


async def _confirm(site: "Site", channel: Channel, number: int) -> None:
    """Ask whoever made a request whether it still waits; ControlError unless it says so at once.

    That the connection stands does not say so: the request and the end of the connection may be on their way.
    """
    asked = trio.current_time()
    answered = False
    with suppress(PeerUnreachable, PeerRefused, RemoteProtocolError):
        await channel.send(encode(FrameType.CONFIRM, sequence=number))
        with trio.move_on_after(channel.silence_seconds):
            while not answered:
                frame = await channel.receive_one()
                if frame.type is not FrameType.CONFIRM:
                    channel.fail(RemoteProtocolError(f"{channel.peer} sent {frame.type.name}, not a CONFIRM"))
                answered = frame.sequence == number
    # If this process was stopped meanwhile, the asker has given up after it said so.
    if not answered or trio.current_time() - asked > channel.silence_seconds:
        log.warning("site %s: what %s asked for is not done, it waits no longer", site.name, channel.peer)
        raise ControlError(f"site {site.name} was asked too long ago; run the command again", "lapsed")


async def _answer(site: "Site", channel: Channel, message: Request) -> Reply:
    """The reply to one request; what the site cannot do is a sentence in it."""
    try:
        request = decode_request(message)
        if not may_ask(request, channel.peer_site, plain=site.config.options.plain):
            raise ControlError(
                f"{channel.peer} may not ask for {message.method!r}; that needs the operator's certificate",
                "forbidden",
            )
        result = await site.control.handle(request, partial(_confirm, site, channel, message.id))
    except ControlError as error:
        return Reply(id=message.id, error=error.sentence, code=error.code)
    except (DeviceError, CorruptionError, StateError, JournalError, OSError) as error:
        return Reply(id=message.id, error=f"site {site.name}: {error}", code="fault")
    except Exception as error:
        # One request that nobody thought of must not end the daemon, which serves the copies as well.
        what = f"{type(error).__name__}: {error}"
        story = log.isEnabledFor(logging.DEBUG)
        log.error("site %s: the request %r failed (%s)", site.name, message.method[:64], what, exc_info=story)
        return Reply(
            id=message.id, error=f"site {site.name}: a fault in trisite itself ({what})", code="fault"
        )
    return Reply(id=message.id, result=msgspec.to_builtins(result))
