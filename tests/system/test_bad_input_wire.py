"""Bytes that are no protocol, foreign certificates and strangers at a daemon's port: it goes on serving."""

import os
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from replication import config as configuration
from replication.client import ask_site
from replication.control import ControlError, ControlRequest, CreateVolume, GetDigests, TakeMarker
from replication.frames import FrameType, encode
from replication.keys import make_keys
from replication.roles import first_roles
from replication.status import collect
from replication.verify import verify
from tests.system.bad_input import assert_quiet, run, sites, write_durably
from tools.demo.stage import Stage

pytestmark = [pytest.mark.fuse, pytest.mark.slow]
SECONDS = 20.0


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Three sites and a mount that all the tests here share: whatever one does, the next finds it alive."""
    with sites(tmp_path_factory.mktemp("sites") / "volume") as stage:
        stage.mount("primary")
        yield stage
        stage.unmount()


@pytest.fixture(autouse=True)
def still_serving(stage: Stage) -> Iterator[None]:
    yield
    write_durably(stage.mountpoint / "after", os.urandom(10_000))
    assert_all_answer(stage)
    assert_quiet(stage)


def assert_all_answer(stage: Stage) -> None:
    found = trio.run(collect, configuration.load(stage.config))
    assert [name for name, site in found.sites.items() if site.reachable] == ["primary", "sync", "async"]


def address(stage: Stage, site: str) -> tuple[str, int]:
    place = configuration.load(stage.config).site(site)
    return place.host, place.port


def tls(keys: Path, ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ca / "ca.pem")
    context.load_cert_chain(keys / "operator.pem", keys / "operator.key")
    return context


def answer_to(data: bytes, place: tuple[str, int], context: ssl.SSLContext | None = None) -> bytes:
    """What the daemon says to these bytes until it closes the connection; TimeoutError if it does not."""
    found = b""
    with ExitStack() as stack:
        stream = stack.enter_context(socket.create_connection(place, SECONDS))
        if context is not None:
            stream = stack.enter_context(context.wrap_socket(stream))
        try:
            stream.sendall(data)
            while received := stream.recv(4096):
                found += received
        except (ConnectionError, ssl.SSLError):
            pass
    return found


@pytest.mark.parametrize("site", ["primary", "sync", "async"])
def test_garbage_instead_of_tls(stage: Stage, site: str) -> None:
    for data in (
        b"GET / HTTP/1.0\r\n\r\n",
        bytes(70_000),
        os.urandom(100_000),
        b"\x16\x03\x01\xff\xff" + bytes(9),
    ):
        if data.startswith(b"\x16"):  # a record that is never finished
            socket.create_connection(address(stage, site)).close()
            continue
        assert b"TRIS" not in answer_to(data, address(stage, site))


@pytest.mark.parametrize("site", ["primary", "sync", "async"])
def test_frames_that_cannot_be(stage: Stage, site: str) -> None:
    """Behind a good certificate: a wild length, a wrong checksum, another version, no frame at all."""
    keys = stage.directory / "keys"
    ping = b"".join(bytes(part) for part in encode(FrameType.PING, sequence=1))
    wild = bytearray(ping)
    for place in range(4, 64, 4):
        struct.pack_into("<I", wild, place, 0xFFFFFFFF)
    hello = b"".join(bytes(part) for part in encode(FrameType.HELLO, body=b"[" * 100_000))
    write = b"".join(bytes(part) for part in encode(FrameType.WRITE, bytes(16), 1, 1, body=bytes(5000)))
    for data in (bytes(64), os.urandom(5000), bytes(wild), ping[:20] + b"\xff" + ping[21:], hello, write):
        assert b"WELCOME" not in answer_to(data, address(stage, site), tls(keys, keys))


def test_a_certificate_of_another_cluster(stage: Stage, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["primary", "sync", "async"])
    foreign = tls(tmp_path / "keys", stage.directory / "keys")
    for site in ("primary", "sync", "async"):
        assert answer_to(b"x" * 100, address(stage, site), foreign) == b""
    config = stage.directory / "foreign.toml"
    text = stage.config.read_text(encoding="utf-8")
    config.write_text(text.replace('keys = "keys"', f'keys = "{tmp_path / "keys"}"'), encoding="utf-8")
    told = run(config, "failover", "--to", "sync", "--yes", "--accept-loss")
    assert told.returncode != 0
    assert "certificate" in told.stderr


def test_strangers_that_say_nothing_do_not_keep_anybody_out(stage: Stage) -> None:
    with ExitStack() as strangers:
        for site in ("primary", "sync", "async"):
            for _ in range(100):
                strangers.enter_context(socket.create_connection(address(stage, site)))
        assert_all_answer(stage)
        write_durably(stage.mountpoint / "amid", b"x" * 5000)


@pytest.mark.parametrize(
    ("site", "request_"),
    [
        ("primary", TakeMarker(ranges=[(0, 4096)], leaf_bytes=0)),
        ("primary", TakeMarker(ranges=[(0, 0)], leaf_bytes=4096)),
        ("primary", TakeMarker(ranges=[(-4096, 1 << 70)], leaf_bytes=4096)),
        ("async", GetDigests(sequence=1, at_rest=True, ranges=[(0, 4096)], leaf_bytes=0)),
        (
            "sync",
            CreateVolume(uuid="no uuid", name="x", size_bytes=64 << 20, roles=first_roles(1), force=True),
        ),
        (
            "sync",
            CreateVolume(uuid="no uuid", name="x", size_bytes=-1, roles=first_roles(1), force=True),
        ),
    ],
)
def test_requests_that_cannot_be(stage: Stage, site: str, request_: ControlRequest[object]) -> None:
    """Refused in a sentence; a marker that no site can carry out would stop the stream for good."""
    config = configuration.load(stage.config)
    with pytest.raises(ControlError):
        trio.run(ask_site, config, site, request_)
    write_durably(stage.mountpoint / "next", b"y" * 5000)
    for log in stage.logs.glob("*.log"):  # the daemon has told of it once; it is no fault of the next test
        log.write_text("", encoding="utf-8")
    assert trio.run(verify, config).same
