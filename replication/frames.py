"""Frames: a header of 64 bytes and a body, encoded and decoded without any I/O.

The header is declared once, in HEADER_FIELDS; docs/protocol.md is checked against it. Numbers are big-endian.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, cast

import xxhash

from replication.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "HEADER_BYTES",
    "HEADER_FIELDS",
    "LONG_BODY",
    "MAGIC",
    "MAX_BODY_BYTES",
    "NO_VOLUME",
    "PROTOCOL_VERSION",
    "Buffer",
    "Decoder",
    "Frame",
    "FrameType",
    "encode",
]

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"TRIS"
PROTOCOL_VERSION: Final = 1
MAX_BODY_BYTES: Final = 2 * 1024 * 1024
NO_VOLUME: Final = bytes(16)
"""The volume of a frame that belongs to none (control, keep-alive)."""

HEADER_FIELDS: Final = (
    ("magic", "4s", "the bytes `TRIS`"),
    ("version", "B", "protocol version, 1"),
    ("type", "B", "frame type, see below"),
    ("flags", "H", "meaning depends on the type; 0 where none is named"),
    ("body_length", "I", "bytes of body that follow the header, at most 2 MiB"),
    ("reserved", "I", "0"),
    ("volume", "16s", "uuid of the volume; zeros for none"),
    ("epoch", "Q", "epoch of the sender's roles"),
    ("sequence", "Q", "sequence of the entry, or what the type says"),
    ("body_checksum", "Q", "XXH3-64, seed 0, of the body; of nothing for an empty body"),
    ("header_checksum", "Q", "XXH3-64, seed 0, of the 56 bytes before it"),
)
"""(name, struct code, meaning) of every header field, in order, big-endian, no padding."""

_CHECKED: Final = struct.Struct(">" + "".join(code for _, code, _ in HEADER_FIELDS[:-1]))
_HEADER: Final = struct.Struct(">" + "".join(code for _, code, _ in HEADER_FIELDS))
_CHECKSUM: Final = struct.Struct(">Q")
HEADER_BYTES: Final = _HEADER.size
_EMPTY_CHECKSUM: Final = xxhash.xxh3_64_intdigest(b"")
LONG_BODY: Final = 1 << 16
"""A body from this size on is put together in memory of its own and not copied out of the buffer."""
_COMPACT_AFTER: Final = 1 << 20
"""Consumed bytes after which the decoder moves what is left to the front of its buffer."""


class FrameType(IntEnum):
    """Every frame type and its number on the wire. Numbers are never reused."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    PING = 4
    PONG = 5
    REQUEST = 6
    REPLY = 7
    CONFIRM = 8
    WRITE = 16
    DISCARD = 17
    MARKER = 18
    FLUSH = 19
    COPY = 20
    FAR_POSITION = 21
    BARRIER = 22
    RECEIVED = 32
    FLUSHED = 33
    MARKER_DIGESTS = 34
    SET_BEGIN = 48
    SET_DATA = 49
    SET_DISCARD = 50
    SET_MARKER = 51
    SET_COMMIT = 52
    POSITION = 53
    SET_PACKED = 54
    HASHES = 64
    DIFFER = 65


_TYPES: Final = {int(kind): kind for kind in FrameType}


class Frame(NamedTuple):
    """One received frame, its checksums already verified."""

    type: FrameType
    flags: int
    volume: bytes
    """16 bytes; NO_VOLUME for none."""
    epoch: int
    sequence: int
    body: bytes
    """A long one may be a bytearray, which nobody changes any more."""


def encode(
    kind: FrameType,
    volume: bytes = NO_VOLUME,
    epoch: int = 0,
    sequence: int = 0,
    body: Buffer = b"",
    *,
    prefix: bytes = b"",
    flags: int = 0,
) -> list[Buffer]:
    """Return the buffers of one frame, to be sent in order. `body` is referred to, not copied.

    `prefix` is the small fixed beginning of the body (an offset, say); it is joined to the header.
    Raises LocalProtocolError if the body is over the limit or a number does not fit its field.
    """
    size = len(body) if isinstance(body, bytes) else memoryview(body).nbytes
    length = len(prefix) + size
    if length > MAX_BODY_BYTES:
        raise LocalProtocolError(f"a frame body of {length} bytes is over the limit of {MAX_BODY_BYTES}")
    if not prefix:
        checksum = xxhash.xxh3_64_intdigest(body) if size else _EMPTY_CHECKSUM
    elif not size:
        checksum = xxhash.xxh3_64_intdigest(prefix)
    else:
        hasher = xxhash.xxh3_64(prefix)
        hasher.update(body)
        checksum = hasher.intdigest()
    try:
        header = _CHECKED.pack(
            MAGIC, PROTOCOL_VERSION, kind, flags, length, 0, volume, epoch, sequence, checksum
        )
    except struct.error as error:
        raise LocalProtocolError(f"a {kind.name} frame with a field out of range: {error}") from error
    if len(volume) != 16:
        raise LocalProtocolError(f"a volume uuid of {len(volume)} bytes instead of 16")
    head = header + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)) + prefix
    return [head, body] if size else [head]


class Decoder:
    """Turns received bytes into frames: feed it with receive_data, call next_frame until it returns None.

    After a RemoteProtocolError the decoder stays failed: the bytes that follow cannot be told apart any more.
    """

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._buffer = bytearray()
        self._start = 0
        self._max_body_bytes = max_body_bytes
        self._failure: str | None = None
        self._header: tuple[FrameType, int, int, bytes, int, int, int] | None = None
        self._body: bytearray | None = None
        self._filled = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes received that no returned frame has used yet."""
        return len(self._buffer) - self._start + (self._filled if self._body is not None else 0)

    def room(self) -> memoryview | None:
        """Where the bytes that come next belong, if they are the rest of a long body: put them there and call
        `filled`. None: they go through `receive_data`.
        """
        if self._body is None and not self._begin_body():
            return None
        assert self._body is not None
        return memoryview(self._body)[self._filled :] if self._filled < len(self._body) else None

    def filled(self, count: int) -> None:
        """So many bytes were put into `room`."""
        self._filled += count

    def _begin_body(self) -> bool:
        """Whether a long body has begun: then what there is of it is in memory of its own."""
        if self._header is None:
            if self._failure is not None or self.buffered_bytes < HEADER_BYTES:
                return False
            try:
                self._header = self._read_header()
            except RemoteProtocolError:
                return False  # `next_frame` says so
        length, here = self._header[2], len(self._buffer) - self._start
        if length < LONG_BODY or here >= length:
            return False
        self._body = bytearray(length)
        self._body[:here] = self._buffer[self._start :]
        self._filled = here
        self._buffer.clear()
        self._start = 0
        return True

    def receive_data(self, data: Buffer) -> None:
        """Add bytes as they arrived, in any portions."""
        if self._body is not None and self._filled < len(self._body):
            some = memoryview(data)[: len(self._body) - self._filled]
            self._body[self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            data = memoryview(data)[len(some) :]
            if not data:
                return
        if self._start > _COMPACT_AFTER or self._start == len(self._buffer):
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None if more bytes are needed.

        Raises RemoteProtocolError for anything that is not a well-formed frame with right checksums.
        """
        if self._failure is not None:
            raise RemoteProtocolError(self._failure)
        if self._header is None:
            if len(self._buffer) - self._start < HEADER_BYTES:
                self._check_magic()
                return None
            self._header = self._read_header()
        kind, flags, length, volume, epoch, sequence, checksum = self._header
        if self._body is not None:
            if self._filled < length:
                return None
            body, self._body = cast(bytes, self._body), None
        else:
            end = self._start + length
            if end > len(self._buffer):
                return None
            with memoryview(self._buffer) as view:
                body = bytes(view[self._start : end])
            self._start = end
        if xxhash.xxh3_64_intdigest(body) != checksum:
            raise self._fail(f"a {kind.name} frame arrived with a body that does not match its checksum")
        self._header = None
        return Frame(kind, flags, volume, epoch, sequence, body)

    def _fail(self, sentence: str) -> RemoteProtocolError:
        self._failure = sentence
        self._buffer.clear()
        self._start = 0
        return RemoteProtocolError(sentence)

    def _check_magic(self) -> None:
        # Less than a header is here. Bytes of another protocol are noticed at once, not when 64 have come.
        part = self._buffer[self._start : self._start + len(MAGIC)]
        if not MAGIC.startswith(part):
            raise self._fail(f"the peer does not speak the trisite protocol (it sent {bytes(part)!r})")

    def _read_header(self) -> tuple[FrameType, int, int, bytes, int, int, int]:
        """Unpack and verify the header; its body length is believed only after its checksum."""
        start = self._start
        magic, version, kind, flags, length, reserved, volume, epoch, sequence, body_sum, header_sum = (
            _HEADER.unpack_from(self._buffer, start)
        )
        if magic != MAGIC:
            raise self._fail(f"the peer does not speak the trisite protocol (it sent {magic!r})")
        if version != PROTOCOL_VERSION:
            raise self._fail(
                f"the peer speaks protocol version {version} and this side {PROTOCOL_VERSION}; "
                "run the same trisite release at every site"
            )
        if xxhash.xxh3_64_intdigest(self._buffer[start : start + _CHECKED.size]) != header_sum:
            raise self._fail("a frame header arrived that does not match its checksum")
        known = _TYPES.get(kind)
        if known is None:
            raise self._fail(f"a frame of unknown type {kind} arrived")
        if reserved:
            raise self._fail(f"a {known.name} frame arrived with {reserved} in a reserved field")
        if length > self._max_body_bytes:
            raise self._fail(
                f"a {known.name} frame announces a body of {length} bytes, "
                f"over the limit of {self._max_body_bytes}"
            )
        self._start = start + HEADER_BYTES
        return known, flags, length, volume, epoch, sequence, body_sum


def total_bytes(buffers: Sequence[Buffer]) -> int:
    """The number of bytes in a frame's buffers."""
    return sum(len(part) if isinstance(part, bytes) else memoryview(part).nbytes for part in buffers)
