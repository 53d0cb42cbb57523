"""Messages that are spoken once a connection or once a request: JSON bodies.

The binary bodies are in replication/bodies.py.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import msgspec

from replication.errors import LocalProtocolError, RemoteProtocolError
from replication.frames import NO_VOLUME, Buffer, Frame, FrameType, encode
from replication.roles import Number, Roles

MAX_JSON_BYTES: Final = 1024 * 1024
"""Largest JSON body, of HELLO, WELCOME, REFUSED, REQUEST and REPLY."""

UUID_PATTERN: Final = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
PURPOSES: Final = frozenset({"sync", "async", "level", "control"})
"""Why a connection is made: the synchronous stream, sets from the writer's queue, sets that bring a returning
site level, requests."""


class RefusalCode(StrEnum):
    """Stable words of REFUSED, for programs; the sentence is for people."""

    SUPERSEDED = "superseded"
    NOT_THE_WRITER = "not-the-writer"
    WRONG_VOLUME = "wrong-volume"
    WRONG_SIZE = "wrong-size"
    WRONG_SITE = "wrong-site"
    WRONG_ROLE = "wrong-role"
    GAP = "gap"
    BUSY = "busy"
    FENCED = "fenced"
    FAULT = "fault"


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """First frame of the side that connected."""

    version: int
    site: str
    purpose: str
    """One of PURPOSES."""
    volume: Annotated[str, msgspec.Meta(pattern=UUID_PATTERN)] | None = None
    """uuid in canonical form; None for control connections that concern no volume."""
    size_bytes: Number = 0
    roles: Roles | None = None
    incarnation: str = ""
    """Changes whenever the sender may have lost what it had not flushed."""
    newest_sequence: Number = 0
    """Newest sequence the writer has issued."""
    common_flush_sequence: Number = 0
    """The writer knows that everything up to here is on stable storage at both ends."""
    protect: bool = True


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """First frame of the side that accepted."""

    version: int
    site: str
    roles: Roles | None = None
    incarnation: str = ""
    received_sequence: Number = 0
    """Everything up to here is in the area (sync) or was received (async)."""
    durable_sequence: Number = 0
    """Everything up to here is on stable storage."""
    position_epoch: Number = 0
    position_sequence: Number = 0
    """Position of the site's copy, (epoch, sequence)."""
    copy_sequence: Number = 0
    """Not 0: a copy is not complete; the stream that came with it is here up to this sequence."""
    has_volume: bool = True
    """False: the area is new and empty, it needs an initial copy."""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Instead of WELCOME, or at any later moment before the refuser closes."""

    sentence: str
    code: str = "refused"
    roles: Roles | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A control request; several may be under way, replies carry the request's id."""

    id: Number
    method: str
    params: dict[str, Any] = {}


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request: a result, or an error sentence with a stable code."""

    id: int
    result: Any = None
    error: str | None = None
    code: str | None = None


_Json = TypeVar("_Json", Hello, Welcome, Refused, Request, Reply)
_JSON_TYPES: Final[dict[FrameType, type[msgspec.Struct]]] = {
    FrameType.HELLO: Hello,
    FrameType.WELCOME: Welcome,
    FrameType.REFUSED: Refused,
    FrameType.REQUEST: Request,
    FrameType.REPLY: Reply,
}
_JSON_KINDS: Final = {struct_type: kind for kind, struct_type in _JSON_TYPES.items()}


def encode_json(
    message: Hello | Welcome | Refused | Request | Reply, volume: bytes = NO_VOLUME, epoch: int = 0
) -> list[Buffer]:
    """The frame of a JSON message; the type of the struct decides the type of the frame."""
    body = msgspec.json.encode(message)
    if len(body) > MAX_JSON_BYTES:
        raise LocalProtocolError(
            f"a {type(message).__name__} message of {len(body)} bytes is over the limit of {MAX_JSON_BYTES}"
        )
    return encode(_JSON_KINDS[type(message)], volume, epoch, 0, body)


def decode_json(frame: Frame, expected: type[_Json]) -> _Json:
    """The message of a frame that must be of the expected kind."""
    if _JSON_TYPES.get(frame.type) is not expected:
        raise RemoteProtocolError(f"a {frame.type.name} frame arrived where {expected.__name__} was expected")
    if len(frame.body) > MAX_JSON_BYTES:
        raise RemoteProtocolError(f"a {frame.type.name} frame of {len(frame.body)} bytes is over the limit")
    try:
        message = msgspec.json.decode(frame.body, type=expected)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a {frame.type.name} frame that cannot be read: {error}") from error
    if isinstance(message, Hello) and message.purpose not in PURPOSES:
        raise RemoteProtocolError(f"a HELLO frame with the unknown purpose {message.purpose[:40]!r}")
    return message
