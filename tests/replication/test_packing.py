"""Packed frames: the same comes out, and nothing that a peer declares makes this side allocate or compute."""

import random
import tracemalloc

import pytest
from backports import zstd

from replication import bodies
from replication.errors import RemoteProtocolError
from replication.frames import Buffer, Decoder, Frame, FrameType, encode, total_bytes
from replication.packing import UNPACKED_BYTES_MAX, Packer, unpack

VOLUME = bytes(range(16))


def data(sequence: int, content: bytes) -> list[Buffer]:
    return bodies.encode_write(VOLUME, 3, sequence, 4096, 5, content, FrameType.SET_DATA)


def decoded(buffers: list[Buffer]) -> list[Frame]:
    decoder = Decoder()
    decoder.receive_data(b"".join(buffers))
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    return frames


def packed(unpacked_bytes: int, content: bytes) -> Frame:
    return decoded(bodies.encode_packed(VOLUME, 3, unpacked_bytes, content))[0]


def text(size: int, seed: int) -> bytes:
    """Something that compresses, and not to nothing."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randrange(2, 12)) for _ in range(200)]
    return b"".join(chance.choices(words, k=size))[:size]


def test_what_is_packed_comes_out_again(seed: int) -> None:
    packer = Packer()
    for count in (1, 2, 15, 3):
        frames = [part for number in range(count) for part in data(number, text(8192, seed + number))]
        one = decoded(list(packer.pack(VOLUME, 3, frames)))
        assert [frame.type for frame in one] == [FrameType.SET_PACKED]
        assert len(one[0].body) < total_bytes(frames) * 0.7
        assert unpack(one[0]) == decoded(frames)


def test_what_does_not_become_smaller_travels_as_it_is(seed: int) -> None:
    frames = data(1, random.Random(seed).randbytes(64 << 10))
    assert Packer().pack(VOLUME, 3, frames) is frames
    larger = data(1, bytes(UNPACKED_BYTES_MAX))
    assert Packer().pack(VOLUME, 3, larger) is larger


BOMB = zstd.compress(bytes(512 << 20))
SMALL_BOMB = zstd.compress(bytes(UNPACKED_BYTES_MAX))
WIDE = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
FRAMES = b"".join(data(1, bytes(4096)))
INNER = bodies.encode_packed(VOLUME, 3, len(FRAMES), zstd.compress(FRAMES))
OTHER = b"".join(encode(FrameType.SET_DATA, VOLUME, 2, 1, bytes(4112)))


@pytest.mark.parametrize(
    ("unpacked_bytes", "content", "why"),
    [
        (4096, BOMB, "no zstd"),
        (4096, SMALL_BOMB, "does not hold the 4096 bytes"),
        (512 << 20, BOMB, "over the limit"),
        (0, b"", "over the limit"),
        (UNPACKED_BYTES_MAX + 1, BOMB, "over the limit"),
        (UNPACKED_BYTES_MAX, BOMB, "no zstd|does not hold"),
        (len(FRAMES), WIDE.compress(FRAMES) + WIDE.flush(), "no zstd"),
        (len(FRAMES) + 1, zstd.compress(FRAMES), "does not hold"),
        (len(FRAMES) - 1, zstd.compress(FRAMES), "does not hold"),
        (len(FRAMES), zstd.compress(FRAMES) + b"x", "does not hold"),
        (len(FRAMES), zstd.compress(FRAMES)[:-1], "does not hold"),
        (len(FRAMES), zstd.compress(FRAMES) + zstd.compress(b""), "does not hold"),
        (4096, b"no zstd at all", "no zstd"),
        (4096, b"", "does not hold"),
        (64, zstd.compress(FRAMES[:64]), "ends inside of a frame"),
        (100, zstd.compress(bytes(100)), "does not speak the trisite protocol"),
        (len(OTHER), zstd.compress(OTHER), "another volume or epoch"),
        (sum(map(len, INNER)), zstd.compress(b"".join(INNER)), "inside of another"),
    ],
)
def test_what_a_peer_declares_is_not_believed(unpacked_bytes: int, content: bytes, why: str) -> None:
    frame = packed(unpacked_bytes, content)
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError, match=why):
        unpack(frame)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * UNPACKED_BYTES_MAX
