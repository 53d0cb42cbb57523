"""The first frames of a conversation: HELLO, then WELCOME or REFUSED."""

import trio

from replication.channel import Channel
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.frames import NO_VOLUME, Frame, FrameType
from replication.messages import Hello, RefusalCode, Refused, Welcome, decode_json, encode_json
from replication.roles import Purpose, Roles, fork_sentence, is_fork

GREETING_SECONDS = 10.0


async def greet(
    channel: Channel, hello: Hello, *, volume: bytes = NO_VOLUME, timeout_seconds: float = GREETING_SECONDS
) -> Welcome:
    """Say HELLO, return the WELCOME. Raises PeerRefused with the peer's roles, or the channel's failure."""
    epoch = hello.roles.epoch if hello.roles is not None else 0
    channel.send_nowait(encode_json(hello, volume, epoch))
    frame = await _first_frame(channel, timeout_seconds)
    raise_if_refused(frame)
    welcome = decode_json(frame, Welcome)
    ours, theirs = hello.roles, welcome.roles
    if hello.purpose != Purpose.CONTROL and ours is not None and theirs is not None and is_fork(ours, theirs):
        # It should have refused; no data goes to a site that believes in another writer of this epoch.
        raise PeerRefused(fork_sentence((ours, theirs)), theirs, RefusalCode.FENCED)
    return welcome


async def await_hello(channel: Channel, *, timeout_seconds: float = GREETING_SECONDS) -> Hello:
    """The HELLO of a peer that connected; it must come from the site that the peer's certificate names."""
    hello = decode_json(await _first_frame(channel, timeout_seconds), Hello)
    if channel.peer_site is not None and hello.site != channel.peer_site:
        sentence = f"{channel.peer} says it is site {hello.site[:64]!r}, which its certificate does not"
        await refuse(channel, sentence, RefusalCode.WRONG_SITE)
        raise RemoteProtocolError(sentence)
    return hello


async def refuse(channel: Channel, sentence: str, code: str, roles: Roles | None = None) -> None:
    """Tell the peer why, with the roles this site holds, and close the channel. Raises nothing."""
    with trio.move_on_after(1.0):
        try:
            epoch = roles.epoch if roles is not None else 0
            channel.send_nowait(encode_json(Refused(sentence=sentence, code=code, roles=roles), epoch=epoch))
            await channel.drain()
        except (PeerUnreachable, PeerRefused, RemoteProtocolError):
            pass
    channel.close(sentence)


def raise_if_refused(frame: Frame) -> None:
    """Raise PeerRefused if the frame is REFUSED, which may come at any moment of a conversation."""
    if frame.type is FrameType.REFUSED:
        refused = decode_json(frame, Refused)
        # The roles of another volume are nobody's here, whatever their epoch.
        roles = refused.roles if refused.code != RefusalCode.WRONG_VOLUME else None
        raise PeerRefused(refused.sentence, roles, refused.code)


async def _first_frame(channel: Channel, timeout_seconds: float) -> Frame:
    with trio.move_on_after(timeout_seconds):
        return await channel.receive_one()
    failure = PeerUnreachable(f"{channel.peer} did not begin the conversation within {timeout_seconds:g} s")
    channel.close(failure.sentence)
    raise failure
