"""The binary bodies of the frames that carry the stream, the sets and their answers.

`encode_x` returns the buffers of a frame, `decode_x` takes a Frame and raises RemoteProtocolError for what it
does not understand. Offsets and lengths are bytes of the volume, multiples of BLOCK_BYTES.
"""

import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from replication.errors import LocalProtocolError, RemoteProtocolError
from replication.frames import MAX_BODY_BYTES, Buffer, Frame, FrameType, encode

BLOCK_BYTES: Final = 4096

BODY_FIELDS: Final[dict[FrameType, tuple[tuple[str, str], ...]]] = {
    FrameType.WRITE: (("offset", "Q"), ("timestamp_ns", "Q")),
    FrameType.DISCARD: (("offset", "Q"), ("timestamp_ns", "Q"), ("length", "Q")),
    FrameType.MARKER: (("timestamp_ns", "Q"), ("leaf_bytes", "I"), ("count", "I")),
    FrameType.FLUSH: (),
    FrameType.COPY: (("offset", "Q"), ("length", "Q")),
    FrameType.FAR_POSITION: (("epoch", "Q"), ("sequence", "Q")),
    FrameType.RECEIVED: (("copied", "Q"),),
    FrameType.FLUSHED: (),
    FrameType.MARKER_DIGESTS: (("leaf_bytes", "I"), ("first", "I"), ("total", "I"), ("count", "I")),
    FrameType.SET_BEGIN: (
        ("from_epoch", "Q"),
        ("from_sequence", "Q"),
        ("timestamp_ns", "Q"),
        ("kind", "B"),
    ),
    FrameType.SET_DATA: (("offset", "Q"), ("timestamp_ns", "Q")),
    FrameType.SET_DISCARD: (("offset", "Q"), ("timestamp_ns", "Q"), ("length", "Q")),
    FrameType.SET_MARKER: (("timestamp_ns", "Q"), ("leaf_bytes", "I"), ("count", "I")),
    FrameType.SET_COMMIT: (("frames", "Q"), ("bytes", "Q")),
    FrameType.POSITION: (("epoch", "Q"), ("durable", "Q"), ("applied", "Q")),
    FrameType.SET_PACKED: (("unpacked_bytes", "I"),),
    FrameType.HASHES: (("offset", "Q"), ("length", "Q"), ("leaf_bytes", "I"), ("count", "I")),
    FrameType.DIFFER: (("count", "I"),),
    FrameType.PING: (),
    FrameType.PONG: (),
}
"""Fixed beginning of every binary body: (name, struct code), big-endian, no padding."""

_PREFIX: Final = {
    kind: struct.Struct(">" + "".join(code for _, code in fields)) for kind, fields in BODY_FIELDS.items()
}
_RANGE: Final = struct.Struct(">QQ")
DIGEST_BYTES: Final = 16
"""One leaf digest: XXH3-128, seed 0, of the leaf's bytes, big-endian as xxhash's digest() gives it."""
_LARGEST_PREFIX: Final = max(prefix.size for prefix in _PREFIX.values())
MAX_DATA_BYTES: Final = MAX_BODY_BYTES - BLOCK_BYTES
"""Most data in one WRITE, COPY or SET_DATA frame."""
MAX_RANGES: Final = (MAX_BODY_BYTES - _LARGEST_PREFIX) // _RANGE.size

WRITE_MORE: Final = 1
WRITE_FLUSH: Final = 2
"""Flag of WRITE: another frame of the same sequence follows, an entry longer than one frame may be."""
COPY_ZEROS: Final = 1
"""Flag of COPY: the range is zeros, no data follows."""
COPY_LAST: Final = 2
"""Flag of COPY, length 0: the receiver has everything; it flushes, notes that it is in step, says so."""
COPY_BEGIN: Final = 4
"""Flag of COPY, length 0: a copy begins. Until COPY_LAST the area is no state of the stream."""
RECEIVED_IN_STEP: Final = 1
"""Flag of RECEIVED: the answer to COPY_LAST; everything up to the sequence is durable, noted as in step."""
FLUSH_CLEAN: Final = 1
"""Flag of FLUSH and of its FLUSHED: a good-bye, nothing follows."""
FLUSH_SUSPEND: Final = 2
"""Flag of FLUSH and of its FLUSHED: from here on the writer goes on without this site."""
POSITION_UNPACKS: Final = 1
"""Flag of POSITION: its sender takes SET_PACKED frames."""


class SetKind(StrEnum):
    """What a set was made from; its number on the wire is its place here, from 0."""

    ENTRIES = "entries"
    COALESCED = "coalesced"
    DIFFERENCE = "difference"
    RECOVERY = "recovery"
    PART = "part"
    """Part of an initial copy to a site that holds no state yet, and holds none after it."""


_SET_KINDS: Final = tuple(SetKind)


class Data(NamedTuple):
    """Body of WRITE and SET_DATA. The data is a view into the frame, no copy."""

    offset: int
    timestamp_ns: int
    data: memoryview


class Discard(NamedTuple):
    """Body of DISCARD and SET_DISCARD: the range reads as zeros afterwards."""

    offset: int
    timestamp_ns: int
    length: int


class Copy(NamedTuple):
    """Body of COPY: part of the area as the writer has it at this place in the stream; data None = zeros."""

    offset: int
    length: int
    data: memoryview | None
    flags: int


class Marker(NamedTuple):
    """Body of MARKER and SET_MARKER: digest these ranges at this place in the stream, a digest a leaf."""

    timestamp_ns: int
    leaf_bytes: int
    ranges: tuple[tuple[int, int], ...]


class MarkerDigests(NamedTuple):
    """Body of MARKER_DIGESTS: part of the answer to a marker, whose sequence the frame has."""

    leaf_bytes: int
    first: int
    """Place of the first of these digests among all of the marker's."""
    total: int
    """Digests of the marker."""
    digests: tuple[bytes, ...]


class FarPosition(NamedTuple):
    """Body of FAR_POSITION: the async site has made everything up to (epoch, sequence) durable."""

    epoch: int
    sequence: int


class SetBegin(NamedTuple):
    """Body of SET_BEGIN. The frame's epoch and sequence are the position once the set is applied; for a
    difference or recovery copy that is known only at its end, and the SET_COMMIT frame names it.
    """

    from_epoch: int
    """The position that the set was made for; the receiver is exactly there. (0, 0): no state."""
    from_sequence: int
    timestamp_ns: int
    """Timestamp of the newest entry in the set."""
    kind: SetKind


class SetCommit(NamedTuple):
    """Body of SET_COMMIT: the number of SET_DATA, SET_DISCARD and SET_MARKER frames, and of bytes of data."""

    frames: int
    bytes: int


class Position(NamedTuple):
    """Body of POSITION: what the receiver has of the epoch's stream."""

    epoch: int
    durable: int
    applied: int


class Hashes(NamedTuple):
    """Body of HASHES: digests of the sender's leaves of a range; the frame's sequence names the question."""

    offset: int
    length: int
    leaf_bytes: int
    digests: tuple[bytes, ...]


class Differ(NamedTuple):
    """Body of DIFFER: the ranges of the question whose digests are not the receiver's."""

    ranges: tuple[tuple[int, int], ...]


_OFFSET_TIME: Final = _PREFIX[FrameType.WRITE]


def encode_write(
    volume: bytes,
    epoch: int,
    sequence: int,
    offset: int,
    timestamp_ns: int,
    data: Buffer,
    kind: FrameType = FrameType.WRITE,
    flags: int = 0,
) -> list[Buffer]:
    """WRITE, or SET_DATA when `kind` says so. The data is not copied."""
    prefix = _OFFSET_TIME.pack(offset, timestamp_ns)
    return encode(kind, volume, epoch, sequence, data, prefix=prefix, flags=flags)


def encode_discard(
    volume: bytes,
    epoch: int,
    sequence: int,
    offset: int,
    timestamp_ns: int,
    length: int,
    kind: FrameType = FrameType.DISCARD,
) -> list[Buffer]:
    """DISCARD, or SET_DISCARD when `kind` says so."""
    return encode(
        kind, volume, epoch, sequence, prefix=_PREFIX[FrameType.DISCARD].pack(offset, timestamp_ns, length)
    )


def encode_marker(
    volume: bytes, epoch: int, sequence: int, marker: Marker, kind: FrameType = FrameType.MARKER
) -> list[Buffer]:
    """MARKER, or SET_MARKER when `kind` says so."""
    prefix = _PREFIX[FrameType.MARKER].pack(marker.timestamp_ns, marker.leaf_bytes, len(marker.ranges))
    return encode(kind, volume, epoch, sequence, _pack_ranges(marker.ranges), prefix=prefix)


def encode_copy(
    volume: bytes, epoch: int, sequence: int, offset: int, data: Buffer | int, *, flags: int = 0
) -> list[Buffer]:
    """COPY of data at an offset, or of that many zero bytes; `sequence` is the newest one sent before it."""
    prefix = _PREFIX[FrameType.COPY]
    if isinstance(data, int):
        start = prefix.pack(offset, data)
        return encode(FrameType.COPY, volume, epoch, sequence, prefix=start, flags=flags | COPY_ZEROS)
    start = prefix.pack(offset, len(data))
    return encode(FrameType.COPY, volume, epoch, sequence, data, prefix=start, flags=flags)


def encode_received(
    volume: bytes, epoch: int, sequence: int, copied: int, *, in_step: bool = False
) -> list[Buffer]:
    """RECEIVED: the stream up to `sequence` and `copied` COPY frames of this connection are in the area."""
    flags = RECEIVED_IN_STEP if in_step else 0
    prefix = _PREFIX[FrameType.RECEIVED].pack(copied)
    return encode(FrameType.RECEIVED, volume, epoch, sequence, prefix=prefix, flags=flags)


def encode_far_position(volume: bytes, epoch: int, far: FarPosition) -> list[Buffer]:
    """FAR_POSITION."""
    return encode(FrameType.FAR_POSITION, volume, epoch, prefix=_PREFIX[FrameType.FAR_POSITION].pack(*far))


def encode_marker_digests(volume: bytes, epoch: int, sequence: int, answer: MarkerDigests) -> list[Buffer]:
    """MARKER_DIGESTS."""
    prefix = _PREFIX[FrameType.MARKER_DIGESTS].pack(
        answer.leaf_bytes, answer.first, answer.total, len(answer.digests)
    )
    return encode(FrameType.MARKER_DIGESTS, volume, epoch, sequence, b"".join(answer.digests), prefix=prefix)


def encode_set_begin(volume: bytes, epoch: int, sequence: int, begin: SetBegin) -> list[Buffer]:
    """SET_BEGIN."""
    prefix = _PREFIX[FrameType.SET_BEGIN].pack(
        begin.from_epoch, begin.from_sequence, begin.timestamp_ns, _SET_KINDS.index(begin.kind)
    )
    return encode(FrameType.SET_BEGIN, volume, epoch, sequence, prefix=prefix)


def encode_set_commit(volume: bytes, epoch: int, sequence: int, commit: SetCommit) -> list[Buffer]:
    """SET_COMMIT."""
    return encode(
        FrameType.SET_COMMIT, volume, epoch, sequence, prefix=_PREFIX[FrameType.SET_COMMIT].pack(*commit)
    )


def encode_position(volume: bytes, epoch: int, position: Position) -> list[Buffer]:
    """POSITION; the header repeats the durable sequence."""
    prefix = _PREFIX[FrameType.POSITION].pack(*position)
    return encode(FrameType.POSITION, volume, epoch, position.durable, prefix=prefix, flags=POSITION_UNPACKS)


def encode_packed(volume: bytes, epoch: int, unpacked_bytes: int, packed: Buffer) -> list[Buffer]:
    """SET_PACKED: `unpacked_bytes` of frames, compressed."""
    prefix = _PREFIX[FrameType.SET_PACKED].pack(unpacked_bytes)
    return encode(FrameType.SET_PACKED, volume, epoch, body=packed, prefix=prefix)


def encode_hashes(volume: bytes, epoch: int, question: int, hashes: Hashes) -> list[Buffer]:
    """HASHES."""
    prefix = _PREFIX[FrameType.HASHES].pack(
        hashes.offset, hashes.length, hashes.leaf_bytes, len(hashes.digests)
    )
    return encode(FrameType.HASHES, volume, epoch, question, b"".join(hashes.digests), prefix=prefix)


def encode_differ(volume: bytes, epoch: int, question: int, differ: Differ) -> list[Buffer]:
    """DIFFER."""
    prefix = _PREFIX[FrameType.DIFFER].pack(len(differ.ranges))
    return encode(FrameType.DIFFER, volume, epoch, question, _pack_ranges(differ.ranges), prefix=prefix)


def decode_data(frame: Frame) -> Data:
    """Body of WRITE or SET_DATA; the data is not empty and lies on block boundaries."""
    body = frame.body
    size = len(body) - 16
    if size <= 0 or size % BLOCK_BYTES:
        raise RemoteProtocolError(f"a {frame.type.name} frame with {size} bytes of data")
    offset, timestamp_ns = _OFFSET_TIME.unpack_from(body)
    if offset % BLOCK_BYTES:
        raise RemoteProtocolError(f"a {frame.type.name} frame for offset {offset}, not on a block boundary")
    return Data(offset, timestamp_ns, memoryview(body)[16:])


def decode_discard(frame: Frame) -> Discard:
    """Body of DISCARD or SET_DISCARD."""
    offset, timestamp_ns, length = _fixed(frame, FrameType.DISCARD)
    _check_range(frame, offset, length)
    return Discard(offset, timestamp_ns, length)


def decode_marker(frame: Frame) -> Marker:
    """Body of MARKER or SET_MARKER."""
    (timestamp_ns, leaf_bytes, count), rest = _split(frame, FrameType.MARKER)
    _check_leaf(frame, leaf_bytes)
    return Marker(timestamp_ns, leaf_bytes, _unpack_ranges(frame, rest, count))


def decode_copy(frame: Frame) -> Copy:
    """Body of COPY; the length is 0 with COPY_BEGIN or COPY_LAST and only then."""
    (offset, length), rest = _split(frame, FrameType.COPY)
    if frame.flags & (COPY_BEGIN | COPY_LAST):
        if length or offset or len(rest):
            raise RemoteProtocolError("a COPY frame that begins or ends a copy and has data")
        return Copy(0, 0, None, frame.flags)
    _check_range(frame, offset, length)
    if frame.flags & COPY_ZEROS:
        if len(rest):
            raise RemoteProtocolError("a COPY frame of zeros with data")
        return Copy(offset, length, None, frame.flags)
    if len(rest) != length:
        raise RemoteProtocolError(f"a COPY frame of {length} bytes with {len(rest)} bytes of data")
    return Copy(offset, length, rest, frame.flags)


def decode_received(frame: Frame) -> int:
    """Body of RECEIVED: the number of COPY frames of this connection that are in the area."""
    return _fixed(frame, FrameType.RECEIVED)[0]


def decode_far_position(frame: Frame) -> FarPosition:
    """Body of FAR_POSITION."""
    return FarPosition(*_fixed(frame, FrameType.FAR_POSITION))


def decode_marker_digests(frame: Frame) -> MarkerDigests:
    """Body of MARKER_DIGESTS."""
    (leaf_bytes, first, total, count), rest = _split(frame, FrameType.MARKER_DIGESTS)
    _check_leaf(frame, leaf_bytes)
    if first + count > total:
        raise RemoteProtocolError(f"a MARKER_DIGESTS frame with digests {first}+{count} of {total}")
    return MarkerDigests(leaf_bytes, first, total, _unpack_digests(frame, rest, count))


def decode_set_begin(frame: Frame) -> SetBegin:
    """Body of SET_BEGIN."""
    from_epoch, from_sequence, timestamp_ns, kind = _fixed(frame, FrameType.SET_BEGIN)
    if kind >= len(_SET_KINDS):
        raise RemoteProtocolError(f"a SET_BEGIN frame with the unknown kind {kind}")
    return SetBegin(from_epoch, from_sequence, timestamp_ns, _SET_KINDS[kind])


def decode_set_commit(frame: Frame) -> SetCommit:
    """Body of SET_COMMIT."""
    return SetCommit(*_fixed(frame, FrameType.SET_COMMIT))


def decode_position(frame: Frame) -> Position:
    """Body of POSITION."""
    return Position(*_fixed(frame, FrameType.POSITION))


def decode_packed(frame: Frame) -> tuple[int, memoryview]:
    """Body of SET_PACKED: the bytes of the frames in it, and the compressed data, which is not looked at."""
    (unpacked_bytes,), rest = _split(frame, FrameType.SET_PACKED)
    return unpacked_bytes, rest


def decode_hashes(frame: Frame) -> Hashes:
    """Body of HASHES; there is a digest for every leaf of the range, the last leaf may be short."""
    (offset, length, leaf_bytes, count), rest = _split(frame, FrameType.HASHES)
    _check_range(frame, offset, length)
    _check_leaf(frame, leaf_bytes)
    if count != -(-length // leaf_bytes):
        raise RemoteProtocolError(f"a HASHES frame with {count} digests for {length} bytes")
    return Hashes(offset, length, leaf_bytes, _unpack_digests(frame, rest, count))


def decode_differ(frame: Frame) -> Differ:
    """Body of DIFFER."""
    (count,), rest = _split(frame, FrameType.DIFFER)
    return Differ(_unpack_ranges(frame, rest, count))


def _split(frame: Frame, like: FrameType) -> tuple[tuple[int, ...], memoryview]:
    prefix = _PREFIX[like]
    if len(frame.body) < prefix.size:
        raise RemoteProtocolError(f"a {frame.type.name} frame with a body of only {len(frame.body)} bytes")
    return prefix.unpack_from(frame.body), memoryview(frame.body)[prefix.size :]


def _fixed(frame: Frame, like: FrameType) -> tuple[int, ...]:
    numbers, rest = _split(frame, like)
    if len(rest):
        raise RemoteProtocolError(f"a {frame.type.name} frame with {len(rest)} bytes too many")
    return numbers


def _check_range(frame: Frame, offset: int, length: int) -> None:
    if offset % BLOCK_BYTES or length % BLOCK_BYTES or not length:
        raise RemoteProtocolError(
            f"a {frame.type.name} frame for {length} bytes at {offset}, not on block boundaries"
        )


def _check_leaf(frame: Frame, leaf_bytes: int) -> None:
    if not leaf_bytes or leaf_bytes % BLOCK_BYTES:
        raise RemoteProtocolError(f"a {frame.type.name} frame with leaves of {leaf_bytes} bytes")


def _pack_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    try:
        return b"".join([_RANGE.pack(offset, length) for offset, length in ranges])
    except struct.error as error:
        raise LocalProtocolError(f"a range that cannot be sent: {error}") from error


def _unpack_ranges(frame: Frame, rest: memoryview, count: int) -> tuple[tuple[int, int], ...]:
    if len(rest) != count * _RANGE.size:
        raise RemoteProtocolError(f"a {frame.type.name} frame with {len(rest)} bytes for {count} ranges")
    ranges = tuple((offset, length) for offset, length in _RANGE.iter_unpack(rest))
    for offset, length in ranges:
        _check_range(frame, offset, length)
    return ranges


def _unpack_digests(frame: Frame, rest: memoryview, count: int) -> tuple[bytes, ...]:
    if len(rest) != count * DIGEST_BYTES:
        raise RemoteProtocolError(f"a {frame.type.name} frame with {len(rest)} bytes for {count} digests")
    whole = bytes(rest)
    return tuple(whole[at : at + DIGEST_BYTES] for at in range(0, len(whole), DIGEST_BYTES))
