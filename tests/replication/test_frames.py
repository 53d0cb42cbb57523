"""Frames and bodies: what is encoded is decoded, and whatever else arrives is a RemoteProtocolError."""

import random
import struct
from collections.abc import Callable

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import bodies
from replication.errors import LocalProtocolError, RemoteProtocolError
from replication.frames import (
    HEADER_BYTES,
    HEADER_FIELDS,
    LONG_BODY,
    MAX_BODY_BYTES,
    Decoder,
    Frame,
    FrameType,
    encode,
    total_bytes,
)
from replication.messages import Hello, Refused, Reply, Request, Welcome, decode_json, encode_json
from replication.packing import Packer, unpack
from replication.roles import Roles

VOLUME = bytes(range(16))
SEED = 20261122


def joined(buffers: list[bytes | bytearray | memoryview]) -> bytes:
    return b"".join(buffers)


def decode_all(data: bytes) -> list[Frame]:
    decoder = Decoder()
    decoder.receive_data(data)
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    return frames


def decode_in_place(data: bytes, portions: list[int]) -> tuple[list[Frame], int]:
    """The frames of `data`, which arrives in portions and goes where the decoder wants it; and how often that
    was into the memory of a long body.
    """
    decoder, frames, at, placed = Decoder(), list[Frame](), 0, 0
    while at < len(data):
        portion = portions[at % len(portions)]
        room = decoder.room()
        if room is None:
            decoder.receive_data(data[at : at + portion])
            at += portion
        else:
            some = data[at : at + min(portion, len(room))]
            room[: len(some)] = some
            decoder.filled(len(some))
            at += len(some)
            placed += 1
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
        if at < len(data):
            assert decoder.buffered_bytes <= at
    assert decoder.buffered_bytes == 0
    return frames, placed


@settings(max_examples=50)
@given(
    st.lists(
        st.sampled_from([0, 16, 5000, LONG_BODY - 1, LONG_BODY, 3 * LONG_BODY + 7]), min_size=1, max_size=6
    ),
    st.lists(st.integers(1, 2 * LONG_BODY), min_size=1, max_size=5),
)
def test_a_long_body_is_put_together_in_its_own_memory(sizes: list[int], portions: list[int]) -> None:
    bodies_ = [random.Random(size).randbytes(size) for size in sizes]
    sent = [encode(FrameType.WRITE, VOLUME, 3, number, body) for number, body in enumerate(bodies_)]
    data = b"".join(joined(buffers) for buffers in sent)
    frames, _ = decode_in_place(data, portions)
    assert [(frame.sequence, bytes(frame.body)) for frame in frames] == list(enumerate(bodies_))
    assert decode_all(data) == frames


def test_what_follows_a_long_body_is_not_taken_for_it() -> None:
    long, short = random.Random(1).randbytes(3 * LONG_BODY), b"short"
    data = joined(encode(FrameType.WRITE, VOLUME, 3, 1, long)) + joined(
        encode(FrameType.WRITE, VOLUME, 3, 2, short)
    )
    frames, placed = decode_in_place(data, [1000])
    assert [bytes(frame.body) for frame in frames] == [long, short]
    assert placed > 100
    decoder = Decoder()  # all at once, when the body has begun already
    decoder.receive_data(data[:100])
    assert decoder.room() is not None
    decoder.receive_data(data[100:])
    assert decoder.room() is None
    assert [bytes(frame.body) for frame in (decoder.next_frame(), decoder.next_frame()) if frame] == [
        long,
        short,
    ]


def test_a_long_body_that_is_damaged_is_refused() -> None:
    data = bytearray(joined(encode(FrameType.WRITE, VOLUME, 3, 1, bytes(3 * LONG_BODY))))
    data[2 * LONG_BODY] ^= 1
    with pytest.raises(RemoteProtocolError, match="checksum"):
        decode_in_place(bytes(data), [1000])


def packed_set() -> list[bytes | bytearray | memoryview]:
    """A SET_PACKED frame."""
    return list(
        Packer().pack(
            VOLUME,
            3,
            [
                *bodies.encode_set_begin(VOLUME, 3, 9, bodies.SetBegin(3, 8, 5, bodies.SetKind.ENTRIES)),
                *bodies.encode_write(VOLUME, 3, 9, 4096, 5, b"w" * 4096, FrameType.SET_DATA),
                *bodies.encode_set_commit(VOLUME, 3, 9, bodies.SetCommit(1, 4096)),
            ],
        )
    )


def examples() -> list[bytes]:
    """A frame of every type."""
    ranges = ((0, 4096), (8192, 65536))
    digests = (b"d" * 16, b"e" * 16)
    roles = Roles(epoch=3, writer="primary", sync_to="sync", async_to="async", start_sequence=7)
    return [
        joined(frame)
        for frame in (
            encode_json(Hello(version=1, site="primary", purpose="sync", roles=roles), VOLUME, 3),
            encode_json(Welcome(version=1, site="sync", roles=roles), VOLUME, 3),
            encode_json(Refused(sentence="no", code="busy", roles=roles)),
            encode_json(Request(id=1, method="status")),
            encode_json(Reply(id=1, result={"a": [1, None]})),
            encode(FrameType.CONFIRM, sequence=1),
            encode(FrameType.PING, sequence=1),
            encode(FrameType.PONG, sequence=1),
            bodies.encode_write(VOLUME, 3, 9, 4096, 5, b"w" * 8192),
            bodies.encode_discard(VOLUME, 3, 9, 4096, 5, 8192),
            bodies.encode_marker(VOLUME, 3, 9, bodies.Marker(5, 65536, ranges)),
            encode(FrameType.FLUSH, VOLUME, 3, 9, flags=1),
            bodies.encode_copy(VOLUME, 3, 9, 4096, b"c" * 4096),
            bodies.encode_copy(VOLUME, 3, 9, 4096, 8192),
            bodies.encode_copy(VOLUME, 3, 9, 0, 0, flags=bodies.COPY_LAST),
            bodies.encode_far_position(VOLUME, 3, bodies.FarPosition(2, 8)),
            encode(FrameType.BARRIER, VOLUME, 3, 9),
            bodies.encode_received(VOLUME, 3, 9, 4, in_step=True),
            encode(FrameType.FLUSHED, VOLUME, 3, 9),
            bodies.encode_marker_digests(VOLUME, 3, 9, bodies.MarkerDigests(65536, 0, 2, digests)),
            bodies.encode_set_begin(VOLUME, 3, 9, bodies.SetBegin(2, 4, 5, bodies.SetKind.RECOVERY)),
            bodies.encode_write(VOLUME, 3, 9, 4096, 5, b"w" * 4096, FrameType.SET_DATA),
            bodies.encode_discard(VOLUME, 3, 9, 4096, 5, 8192, FrameType.SET_DISCARD),
            bodies.encode_marker(VOLUME, 3, 9, bodies.Marker(5, 65536, ranges), FrameType.SET_MARKER),
            bodies.encode_set_commit(VOLUME, 3, 9, bodies.SetCommit(3, 12288)),
            bodies.encode_position(VOLUME, 3, bodies.Position(3, 9, 8)),
            packed_set(),
            bodies.encode_hashes(VOLUME, 3, 1, bodies.Hashes(0, 8192, 4096, digests)),
            bodies.encode_differ(VOLUME, 3, 1, bodies.Differ(ranges)),
        )
    ]


DECODERS: dict[FrameType, Callable[[Frame], object]] = {
    FrameType.WRITE: bodies.decode_data,
    FrameType.SET_DATA: bodies.decode_data,
    FrameType.DISCARD: bodies.decode_discard,
    FrameType.SET_DISCARD: bodies.decode_discard,
    FrameType.MARKER: bodies.decode_marker,
    FrameType.SET_MARKER: bodies.decode_marker,
    FrameType.COPY: bodies.decode_copy,
    FrameType.FAR_POSITION: bodies.decode_far_position,
    FrameType.RECEIVED: bodies.decode_received,
    FrameType.MARKER_DIGESTS: bodies.decode_marker_digests,
    FrameType.SET_BEGIN: bodies.decode_set_begin,
    FrameType.SET_COMMIT: bodies.decode_set_commit,
    FrameType.POSITION: bodies.decode_position,
    FrameType.HASHES: bodies.decode_hashes,
    FrameType.SET_PACKED: unpack,
    FrameType.DIFFER: bodies.decode_differ,
    FrameType.HELLO: lambda frame: decode_json(frame, Hello),
    FrameType.WELCOME: lambda frame: decode_json(frame, Welcome),
    FrameType.REFUSED: lambda frame: decode_json(frame, Refused),
    FrameType.REQUEST: lambda frame: decode_json(frame, Request),
    FrameType.REPLY: lambda frame: decode_json(frame, Reply),
}


def reseal(frame: bytearray) -> bytes:
    """The frame with right checksums, so that a mutation reaches what lies behind them."""
    frame[48:56] = struct.pack(">Q", xxhash.xxh3_64_intdigest(bytes(frame[HEADER_BYTES:])))
    frame[56:64] = struct.pack(">Q", xxhash.xxh3_64_intdigest(bytes(frame[:56])))
    return bytes(frame)


def test_there_is_an_example_of_every_type() -> None:
    assert {decode_all(example)[0].type for example in examples()} == set(FrameType)
    assert HEADER_BYTES == 64
    assert [name for name, _, _ in HEADER_FIELDS[-2:]] == ["body_checksum", "header_checksum"]


@given(
    offset=st.integers(0, 1 << 40).map(lambda n: n * 4096),
    stamp=st.integers(0, 2**64 - 1),
    data=st.binary(min_size=1, max_size=40).map(lambda seed: seed.ljust(4096, b"-") * 2),
    sequence=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**64 - 1),
    cut=st.lists(st.integers(1, 5000), max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_a_write_survives_any_portions(
    offset: int, stamp: int, data: bytes, sequence: int, epoch: int, cut: list[int]
) -> None:
    """However the bytes are cut, the same frames come out."""
    one = joined(bodies.encode_write(VOLUME, epoch, sequence, offset, stamp, data))
    stream = one + joined(encode(FrameType.FLUSH, VOLUME, epoch, sequence)) + one
    decoder, frames, rest = Decoder(), [], stream
    for size in [*cut, len(stream)]:
        decoder.receive_data(rest[:size])
        rest = rest[size:]
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
    assert [frame.type for frame in frames] == [FrameType.WRITE, FrameType.FLUSH, FrameType.WRITE]
    assert frames[0] == frames[2]
    assert (frames[0].volume, frames[0].epoch, frames[0].sequence) == (VOLUME, epoch, sequence)
    assert tuple(bodies.decode_data(frames[0])) == (offset, stamp, data)
    assert decoder.buffered_bytes == 0


def test_every_body_is_decoded_to_what_was_encoded() -> None:
    roles = Roles(epoch=3, writer="primary", sync_to="sync", async_to="async", start_sequence=7)
    found: dict[FrameType, object] = {}
    for example in examples():
        frame = decode_all(example)[0]
        if frame.type in DECODERS:
            found.setdefault(frame.type, DECODERS[frame.type](frame))
    assert found[FrameType.HELLO] == Hello(version=1, site="primary", purpose="sync", roles=roles)
    assert found[FrameType.DISCARD] == (4096, 5, 8192)
    assert found[FrameType.MARKER] == (5, 65536, ((0, 4096), (8192, 65536)))
    assert found[FrameType.COPY] == (4096, 4096, b"c" * 4096, 0)
    assert found[FrameType.FAR_POSITION] == (2, 8)
    assert found[FrameType.RECEIVED] == 4
    assert found[FrameType.MARKER_DIGESTS] == (65536, 0, 2, (b"d" * 16, b"e" * 16))
    assert found[FrameType.SET_BEGIN] == (2, 4, 5, bodies.SetKind.RECOVERY)
    assert found[FrameType.SET_COMMIT] == (3, 12288)
    assert found[FrameType.POSITION] == (3, 9, 8)
    assert found[FrameType.HASHES] == (0, 8192, 4096, (b"d" * 16, b"e" * 16))
    assert found[FrameType.DIFFER] == (((0, 4096), (8192, 65536)),)


def test_the_length_is_not_believed() -> None:
    """A wild length is refused at the header, before a byte of the body was waited for."""
    frame = bytearray(joined(encode(FrameType.FLUSH)))
    frame[8:12] = struct.pack(">I", MAX_BODY_BYTES + 1)
    decoder = Decoder()
    decoder.receive_data(reseal(frame))
    with pytest.raises(RemoteProtocolError, match="over the limit"):
        decoder.next_frame()
    with pytest.raises(RemoteProtocolError, match="over the limit"):
        decoder.next_frame()
    # And a length that was changed on the way is not even looked at.
    frame[8:12] = struct.pack(">I", 5)
    with pytest.raises(RemoteProtocolError, match=r"header .* checksum"):
        decode_all(bytes(frame))


def test_another_protocol_is_noticed_at_the_first_byte() -> None:
    decoder = Decoder()
    decoder.receive_data(b"G")
    with pytest.raises(RemoteProtocolError, match="does not speak"):
        decoder.next_frame()


def test_another_version_is_named() -> None:
    frame = bytearray(joined(encode(FrameType.FLUSH)))
    frame[4] = 2
    with pytest.raises(RemoteProtocolError, match="version 2 and this side 1"):
        decode_all(bytes(frame))


def test_limits_of_the_sender() -> None:
    body = bytes(MAX_BODY_BYTES)
    buffers = encode(FrameType.REPLY, body=body)
    assert total_bytes(buffers) == HEADER_BYTES + MAX_BODY_BYTES
    assert buffers[1] is body  # not copied
    with pytest.raises(LocalProtocolError):
        encode(FrameType.REPLY, body=bytes(MAX_BODY_BYTES + 1))
    with pytest.raises(LocalProtocolError):
        encode(FrameType.REPLY, sequence=-1)
    with pytest.raises(LocalProtocolError):
        encode(FrameType.REPLY, epoch=2**64)
    with pytest.raises(LocalProtocolError):
        encode(FrameType.REPLY, volume=b"short")
    with pytest.raises(LocalProtocolError):
        encode_json(Reply(id=1, result="x" * (1 << 20)))


def swallow(data: bytes) -> int:
    """Feed bytes to the decoder and every frame to its body decoder; the number of frames that were good."""
    decoder, good = Decoder(), 0
    try:
        decoder.receive_data(data)
        while (frame := decoder.next_frame()) is not None:
            if frame.type in DECODERS:
                DECODERS[frame.type](frame)
            good += 1
    except RemoteProtocolError:
        pass
    return good


def test_mutated_frames_raise_nothing_else() -> None:
    """200,000 broken frames: half as they are, half sealed again so that the bodies are reached."""
    source = random.Random(SEED)
    small = [example for example in examples() if len(example) < 1000]
    good = 0
    for round_ in range(200_000):
        frame = bytearray(small[round_ % len(small)])
        for _ in range(source.randrange(1, 4)):
            frame[source.randrange(len(frame))] = source.randrange(256)
        if round_ % 8 == 1:
            del frame[source.randrange(HEADER_BYTES, len(frame) + 1) :]
        if round_ % 2:
            if round_ % 4 == 1:
                frame[8:12] = struct.pack(">I", len(frame) - HEADER_BYTES)
            frame = bytearray(reseal(frame))
        good += swallow(bytes(frame))
    assert 0 < good < 150_000


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_raises_nothing_else(noise: bytes) -> None:
    swallow(noise)
    swallow(b"TRIS\x01" + noise)


@given(kind=st.sampled_from(sorted(DECODERS)), body=st.binary(max_size=120), flags=st.integers(0, 0xFFFF))
@settings(max_examples=500, deadline=None)
def test_any_body_is_decoded_or_refused(kind: FrameType, body: bytes, flags: int) -> None:
    with_checksums = joined(encode(kind, VOLUME, 1, 1, body, flags=flags))
    assert swallow(with_checksums) in (0, 1)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (bodies.encode_write(VOLUME, 1, 1, 4096, 0, b"x" * 4095), "4095 bytes of data"),
        (bodies.encode_write(VOLUME, 1, 1, 100, 0, b"x" * 4096), "block boundary"),
        (bodies.encode_write(VOLUME, 1, 1, 0, 0, b""), "0 bytes of data"),
        (bodies.encode_discard(VOLUME, 1, 1, 0, 0, 0), "block boundaries"),
        (bodies.encode_marker(VOLUME, 1, 1, bodies.Marker(0, 0, ())), "leaves of 0"),
        (bodies.encode_hashes(VOLUME, 1, 1, bodies.Hashes(0, 8192, 4096, (b"d" * 16,))), "1 digests"),
        (
            bodies.encode_marker_digests(VOLUME, 1, 1, bodies.MarkerDigests(4096, 1, 1, (b"d" * 16,))),
            "1\\+1 of 1",
        ),
        (encode(FrameType.SET_BEGIN, body=bytes(24) + b"\x63"), "unknown kind"),
        (encode(FrameType.FAR_POSITION, body=bytes(17)), "too many"),
        (encode(FrameType.FAR_POSITION, body=bytes(3)), "only 3"),
        (encode(FrameType.COPY, body=bytes(16), flags=0), "block boundaries"),
        (encode(FrameType.COPY, body=bytes(17), flags=bodies.COPY_LAST), "has data"),
        (encode(FrameType.HELLO, body=b'{"version":1,"site":"a","purpose":"tea"}'), "purpose"),
        (
            encode(FrameType.HELLO, body=b'{"version":1,"site":"a","purpose":"async","volume":"x"}'),
            "matching regex",
        ),
        (encode(FrameType.REFUSED, body=b'{"sentence":"","roles":{"epoch":-1,"writer":"sync"}}'), ">= 0"),
        (
            encode(
                FrameType.REFUSED,
                body=b'{"sentence":"","roles":{"epoch":1,"writer":"sync","since":18446744073709551616}}',
            ),
            "cannot be read",
        ),
        (encode(FrameType.HELLO, body=b"[" * 100_000), "cannot be read"),
        (encode(FrameType.HELLO, body=b"\xff"), "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(frame: list[bytes], why: str) -> None:
    decoded = decode_all(joined(list(frame)))[0]
    with pytest.raises(RemoteProtocolError, match=why):
        DECODERS[decoded.type](decoded)
