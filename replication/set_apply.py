"""What the frames of a set do to a storage area, and what of an area differs from digests."""

from typing import Protocol

from replication.bodies import Hashes, decode_data, decode_discard
from replication.frames import Frame, FrameType
from replication.ranges import normalise
from vsap.digest import Readable, digest_ranges


class Area(Protocol):
    """The storage area that sets are applied to; DeviceError for what the host refuses."""

    size_bytes: int

    def read(self, offset: int, length: int, /) -> bytes: ...
    def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None: ...
    def discard(self, offset: int, length: int, /) -> None: ...
    def flush(self) -> None: ...


def apply_frame(area: Area, frame: Frame) -> None:
    """Do to the area what a set frame says. DeviceError: the host refuses."""
    if frame.type is FrameType.SET_DATA:
        data = decode_data(frame)
        area.write(data.offset, data.data)
    elif frame.type is FrameType.SET_DISCARD:
        discard = decode_discard(frame)
        area.discard(discard.offset, discard.length)


def differing_ranges(area: Readable, question: Hashes) -> tuple[tuple[int, int], ...]:
    """The leaves of the question's range whose digests in `area` are others, merged."""
    own = digest_ranges(area, [(question.offset, question.length)], question.leaf_bytes)
    end = question.offset + question.length
    leaves = zip(range(question.offset, end, question.leaf_bytes), own, question.digests, strict=True)
    return tuple(
        normalise(
            (start, min(question.leaf_bytes, end - start)) for start, mine, theirs in leaves if mine != theirs
        )
    )
