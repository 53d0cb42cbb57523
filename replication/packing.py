"""SET_PACKED: frames of a set, compressed together with zstd. Pure.

What arrives is believed in nothing: the sizes it declares are bounded before a byte is made of it, and it
must come out exactly as long as declared.
"""

from collections.abc import Sequence
from typing import Final

from backports import zstd

from replication.bodies import decode_packed, encode_packed
from replication.errors import RemoteProtocolError
from replication.frames import HEADER_BYTES, Buffer, Decoder, Frame, FrameType, total_bytes

__all__ = ["PACKED_DATA_BYTES", "UNPACKED_BYTES_MAX", "Packer", "unpack"]

PACKED_DATA_BYTES: Final = 256 << 10
"""Most data in one frame that is to be packed: what one takes, at either end, is compressed in a moment."""
UNPACKED_BYTES_MAX: Final = 512 << 10
"""Most bytes of frames in one SET_PACKED frame."""
LEVEL: Final = 3
WORTH_PERCENT: Final = 95
"""What does not become smaller than this share of itself travels as it is."""
_WINDOW_LOG: Final = UNPACKED_BYTES_MAX.bit_length() - 1
"""Largest window, as a power of two, that a decompressor allocates."""


class Packer:
    """Compresses the frames of one connection; keeps its working memory between them."""

    def __init__(self) -> None:
        self._compressor = zstd.ZstdCompressor(level=LEVEL)

    def pack(self, volume: bytes, epoch: int, frames: Sequence[Buffer]) -> Sequence[Buffer]:
        """The buffers of one SET_PACKED frame for whole frames of a set, or `frames` where that saves
        nothing.
        """
        size = total_bytes(frames)
        if size > UNPACKED_BYTES_MAX:
            return frames
        raw = b"".join(frames)
        self._compressor.set_pledged_input_size(size)
        packed = self._compressor.compress(raw, zstd.ZstdCompressor.FLUSH_FRAME)
        frame = encode_packed(volume, epoch, size, packed)
        return frames if total_bytes(frame) * 100 > size * WORTH_PERCENT else frame


def unpack(packed: Frame) -> list[Frame]:
    """The frames in a SET_PACKED frame. RemoteProtocolError: they are not what it declares."""
    declared, data = decode_packed(packed)
    if not 0 < declared <= UNPACKED_BYTES_MAX:
        raise RemoteProtocolError(
            f"a SET_PACKED frame of {declared} bytes, over the limit of {UNPACKED_BYTES_MAX}"
        )
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        raw = decompressor.decompress(data, max_length=declared)
        # Of a length that was declared too small the rest is still in there.
        ended = decompressor.eof and not decompressor.unused_data
    except zstd.ZstdError as error:
        raise RemoteProtocolError(f"a SET_PACKED frame that is no zstd: {error}") from error
    if len(raw) != declared or not ended:
        raise RemoteProtocolError(f"a SET_PACKED frame that does not hold the {declared} bytes it declares")
    decoder = Decoder(UNPACKED_BYTES_MAX)
    decoder.receive_data(raw)
    frames: list[Frame] = []
    while (frame := decoder.next_frame()) is not None:
        if frame.type is FrameType.SET_PACKED:
            raise RemoteProtocolError("a SET_PACKED frame inside of another")
        if (frame.volume, frame.epoch) != (packed.volume, packed.epoch):
            raise RemoteProtocolError("a SET_PACKED frame with frames of another volume or epoch")
        frames.append(frame)
    if sum(HEADER_BYTES + len(frame.body) for frame in frames) != declared:
        raise RemoteProtocolError("a SET_PACKED frame that ends inside of a frame")
    return frames
