"""The channel over loopback sockets: TLS both ways, foreign certificates, silence, slow and hostile peers."""

import errno
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from replication.bodies import decode_data, encode_write
from replication.channel import Channel
from replication.connections import Listener, connect, listen
from replication.errors import LocalProtocolError, PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.frames import Frame, FrameType, encode
from replication.handshake import await_hello, greet, refuse
from replication.keys import Identity, KeysError, load_identity, make_keys
from replication.messages import Hello, RefusalCode, Welcome, encode_json
from replication.roles import Roles
from tests.replication.sync_pair import identity, until

VOLUME = bytes(range(16))
Handler = Callable[[Channel], Awaitable[None]]


@asynccontextmanager
async def serving(
    handler: Handler, who: Identity | None, refused: list[str] | None = None
) -> AsyncIterator[Listener]:
    listener = await listen("127.0.0.1", 0, identity=who, plain=who is None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, handler, None if refused is None else refused.append)
        yield listener
        listener.close()
        nursery.cancel_scope.cancel()


async def echo(channel: Channel) -> None:
    """Sends every frame back."""
    while True:
        for frame in await channel.receive():
            await channel.send(encode(frame.type, frame.volume, frame.epoch, frame.sequence, frame.body))


@pytest.mark.parametrize("tls", [True, False])
async def test_frames_travel_both_ways(tls: bool) -> None:
    """Small and large frames, more than the kernel takes at once, in order."""
    client, server = (identity("primary"), identity("sync")) if tls else (None, None)
    sizes = [4096] * 50 + [1 << 20] * 12 + [4096] * 50
    async with serving(echo, server) as listener, trio.open_nursery() as nursery:
        channel = await connect(
            "127.0.0.1", listener.port, identity=client, plain=not tls, expect="sync" if tls else None
        )
        assert channel.peer_site == ("sync" if tls else None)
        nursery.start_soon(channel.run)
        for number, size in enumerate(sizes):
            data = bytes([number]) * size
            channel.send_nowait(encode_write(VOLUME, 1, number, 4096 * number, number, data))
        back: list[Frame] = []
        while len(back) < len(sizes):
            back += await channel.receive()
        await channel.drain()
        for number, (frame, size) in enumerate(zip(back, sizes, strict=True)):
            assert frame.sequence == number
            assert tuple(decode_data(frame)) == (4096 * number, number, bytes([number]) * size)
        channel.close()
        with pytest.raises(PeerUnreachable):
            channel.send_nowait(encode(FrameType.FLUSH))
        nursery.cancel_scope.cancel()


async def test_a_certificate_of_another_ca_is_refused(tmp_path: Path) -> None:
    """Whichever side holds it: each hears one sentence about certificates."""
    make_keys(tmp_path, ["primary", "sync"])
    stranger = load_identity(tmp_path, "primary")
    refused: list[str] = []
    async with serving(echo, identity("sync"), refused) as listener:
        with pytest.raises(PeerRefused, match="did not sign") as info:
            await connect("127.0.0.1", listener.port, identity=stranger, expect="sync")
        assert info.value.code == "certificate"
        assert "\n" not in info.value.sentence
        await until(lambda: len(refused) == 1)
        assert "certificate" in refused[0]


async def test_a_client_with_a_foreign_certificate_is_refused(tmp_path: Path) -> None:
    """A client that trusts the right CA and shows a certificate of another one."""
    make_keys(tmp_path, ["primary"])
    (tmp_path / "ca.pem").write_bytes((_shared_keys() / "ca.pem").read_bytes())
    forged = load_identity(tmp_path, "primary")
    forged = Identity(forged.name, identity("sync").cluster, forged.client_context, forged.server_context)
    refused: list[str] = []
    async with serving(echo, identity("sync"), refused) as listener:
        channel = await connect("127.0.0.1", listener.port, identity=forged, expect="sync")
        # In TLS 1.3 the client's handshake is over before the server has looked at the certificate.
        with trio.fail_after(10), pytest.raises(PeerRefused, match="does not accept"):
            await channel.receive()
        await until(lambda: len(refused) == 1)
        assert "did not sign" in refused[0]


def _shared_keys() -> Path:
    from tests.replication import sync_pair

    return sync_pair._keys()


async def test_the_wrong_site_and_the_wrong_cluster_are_refused(tmp_path: Path) -> None:
    async with serving(echo, identity("async")) as listener:
        with pytest.raises(PeerRefused, match="site async, not of site sync"):
            await connect("127.0.0.1", listener.port, identity=identity("primary"), expect="sync")
    peer = {"subjectAltName": (("URI", "trisite-site:sync"), ("URI", "trisite-cluster:other"))}
    with pytest.raises(ValueError, match="cluster other"):
        identity("primary").check_peer(peer)
    with pytest.raises(ValueError, match="names no trisite site"):
        identity("primary").check_peer({"subjectAltName": (("DNS", "sync"),)})


async def test_plain_connections_are_for_loopback_and_on_request() -> None:
    with pytest.raises(LocalProtocolError, match="not asked for"):
        await connect("127.0.0.1", 1, identity=None)
    with pytest.raises(LocalProtocolError, match="only allowed on loopback"):
        await connect("192.0.2.1", 1, identity=None, plain=True)
    with pytest.raises(LocalProtocolError, match="only allowed on loopback"):
        await listen("0.0.0.0", 0, identity=None, plain=True)
    with pytest.raises(LocalProtocolError, match="not asked for"):
        await listen("127.0.0.1", 0, identity=None)


async def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(PeerUnreachable, match=r"site sync at .* cannot be reached"):
            await connect("127.0.0.1", taken.getsockname()[1], identity=identity("primary"), expect="sync")


async def test_a_listener_that_says_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The handshake has a deadline; the clock is a mock one."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(1)
        with pytest.raises(PeerUnreachable, match=r"does not answer \(10 s\)"):
            await connect("127.0.0.1", mute.getsockname()[1], identity=identity("primary"), expect="sync")
    assert trio.current_time() >= 10


def pair_of_channels(silence_seconds: float = 5.0) -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return Channel(ours, peer="site sync", silence_seconds=silence_seconds), theirs


async def test_a_silent_peer_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    """Pings go out, none comes back: after silence_seconds the channel fails with a sentence."""
    channel, peer = pair_of_channels()
    with peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.run)
            with pytest.raises(PeerUnreachable, match="site sync has been silent for 5 s"):
                await channel.receive()
        assert 5 <= trio.current_time() <= 10
        assert peer.recv(5)[:4] == b"TRIS"


async def test_a_slow_loris_counts_as_silent(autojump_clock: trio.testing.MockClock) -> None:
    """A byte of a header now and then is no sign of life."""
    channel, peer = pair_of_channels()
    header = b"".join(encode(FrameType.FLUSH))
    sent = 0

    async def drip() -> None:
        nonlocal sent
        for byte in header[:-1]:
            await trio.sleep(0.5)
            try:
                peer.send(bytes([byte]))
            except OSError:
                return
            sent += 1

    with peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.run)
            nursery.start_soon(drip)
            with pytest.raises(PeerUnreachable, match="silent"):
                await channel.receive()
            nursery.cancel_scope.cancel()
    assert 8 <= sent < 25


async def test_peers_that_live_are_not_silent(autojump_clock: trio.testing.MockClock) -> None:
    """Two idle channels keep each other alive and measure the way there and back."""
    ours, theirs = socket.socketpair()
    left, right = Channel(ours, peer="right"), Channel(theirs, peer="left")
    async with trio.open_nursery() as nursery:
        for channel in (left, right):
            nursery.start_soon(channel.run)
            nursery.start_soon(_expect_nothing, channel)
        await trio.sleep(120)
        assert left.failure is None
        assert right.failure is None
        assert left.round_trip_seconds is not None
        left.close()
        right.close()
        nursery.cancel_scope.cancel()


async def _expect_nothing(channel: Channel) -> None:
    with pytest.raises(PeerUnreachable):
        await channel.receive()


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak"),
        (struct.pack(">4sBBHI", b"TRIS", 1, 10, 0, 1 << 31) + bytes(52), "checksum"),
        (b"\x00", "does not speak"),
    ],
)
async def test_bytes_that_are_no_frames(sent: bytes, why: str) -> None:
    channel, peer = pair_of_channels()
    with peer:
        peer.send(sent)
        with pytest.raises(RemoteProtocolError, match=why):
            await channel.receive()
        with pytest.raises(RemoteProtocolError, match=why):
            channel.send_nowait(encode(FrameType.FLUSH))
        assert peer.recv(10) == b""


async def test_garbage_instead_of_tls() -> None:
    refused: list[str] = []
    async with serving(echo, identity("sync"), refused) as listener:
        stream = await trio.open_tcp_stream("127.0.0.1", listener.port)
        await stream.send_all(b"hello, is this a web server?\r\n" * 10)
        await until(lambda: len(refused) == 1)
        assert "TLS" in refused[0]
        await stream.aclose()
        # The listener is still there for others.
        channel = await connect("127.0.0.1", listener.port, identity=identity("primary"), expect="sync")
        channel.close()


async def test_strangers_that_only_connect_do_not_keep_a_site_out() -> None:
    refused: list[str] = []
    async with serving(echo, identity("sync"), refused) as listener:
        strangers = [await trio.open_tcp_stream("127.0.0.1", listener.port) for _ in range(100)]
        channel = await connect(
            "127.0.0.1", listener.port, identity=identity("primary"), expect="sync", timeout_seconds=5
        )
        channel.close()
        assert any("did not finish the TLS handshake" in sentence for sentence in refused)
        for stranger in strangers:
            await stranger.aclose()


async def test_a_peer_that_does_not_read_is_bounded() -> None:
    """The out-buffer ends; nothing is lost before that, and the rest goes out when the peer reads again."""
    ours, peer = socket.socketpair()
    channel = Channel(ours, peer="site sync", max_out_bytes=1 << 20)
    frame = encode(FrameType.REPLY, body=bytes(100_000))
    sent = 0
    while channel.room > 0:
        channel.send_nowait(frame)
        sent += 1
    with pytest.raises(LocalProtocolError, match="wait already"):
        channel.send_nowait(frame)
    assert channel.room <= 0
    total = sent * 100_064
    got = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.drain)
        while got < total:
            await trio.lowlevel.wait_readable(peer)
            got += len(peer.recv(1 << 20))
    assert channel.room == 1 << 20
    channel.close()
    peer.close()


async def test_the_first_frames_of_a_conversation() -> None:
    """HELLO and WELCOME; a refusal carries the roles; a site cannot say that it is another."""
    roles = Roles(epoch=4, writer="sync", async_to="async")
    heard: list[Hello] = []

    async def handler(channel: Channel) -> None:
        hello = await await_hello(channel)
        heard.append(hello)
        if hello.newest_sequence == 1:
            channel.send_nowait(encode_json(Welcome(version=1, site="sync", received_sequence=12)))
            await channel.drain()
            await channel.receive()
        await refuse(channel, "site primary was superseded", RefusalCode.SUPERSEDED, roles)

    async with serving(handler, identity("sync")) as listener:

        async def say(hello: Hello) -> Welcome:
            channel = await connect("127.0.0.1", listener.port, identity=identity("primary"), expect="sync")
            try:
                return await greet(channel, hello)
            finally:
                channel.close()

        hello = Hello(version=1, site="primary", purpose="sync", newest_sequence=1)
        assert (await say(hello)).received_sequence == 12
        with pytest.raises(PeerRefused, match="superseded") as info:
            await say(Hello(version=1, site="primary", purpose="sync"))
        assert info.value.roles == roles
        assert info.value.code == "superseded"
        with pytest.raises(PeerRefused, match="certificate"):
            await say(Hello(version=1, site="async", purpose="sync"))
    assert len(heard) == 2


def test_keys_are_private_and_bound_to_their_name(tmp_path: Path) -> None:
    cluster = make_keys(tmp_path / "keys", ["primary", "sync"])
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()}
    assert all(mode == (0o600 if name.endswith(".key") else 0o644) for name, mode in files.items())
    assert {"ca.pem", "ca.key", "operator.pem", "operator.key"} < set(files)
    loaded = load_identity(tmp_path / "keys", "operator")
    assert (loaded.name, loaded.cluster) == ("operator", cluster)
    with pytest.raises(KeysError, match="holds a CA already"):
        make_keys(tmp_path / "keys", ["primary"])
    with pytest.raises(KeysError, match="trisite init"):
        load_identity(tmp_path / "keys", "async")
    (tmp_path / "keys" / "sync.pem").write_bytes((tmp_path / "keys" / "primary.pem").read_bytes())
    with pytest.raises(KeysError, match="not the certificate of sync"):
        load_identity(tmp_path / "keys", "sync")
    (tmp_path / "keys" / "primary.pem").write_text("nothing")
    with pytest.raises(KeysError, match="not a certificate"):
        load_identity(tmp_path / "keys", "primary")


def test_keys_of_another_user_are_not_to_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(KeysError, match="as the user who owns them"):
        load_identity(tmp_path / "keys", "operator")
