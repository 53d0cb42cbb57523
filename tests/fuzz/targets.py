"""Everything that reads bytes of a peer, of a disk or of another process, as it is fed by the fuzzer.

A target breaks whole inputs and reads them: what it raises must be among its errors, and nothing else. The
CorruptionError, JournalError and ValueError of what lies on a disk are that disk's fault, as
RemoteProtocolError is the peer's.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import xxhash
from backports import zstd

from jfs.errors import CorruptionError
from replication import bodies, roles
from replication.control import REQUESTS, ControlError, decode_reply, decode_request
from replication.errors import PeerRefused, RemoteProtocolError
from replication.frames import HEADER_BYTES, Decoder, Frame, FrameType
from replication.handshake import raise_if_refused
from replication.local_link import (
    EligibleLine,
    FarLine,
    HelloLine,
    ReplyLine,
    RequestLine,
    decode_line,
)
from replication.messages import Hello, Refused, Reply, Request, Welcome, decode_json
from replication.packing import UNPACKED_BYTES_MAX, unpack
from replication.position import EpochStart, Position, Stream, judge
from replication.received_record import ReceivedRecord
from replication.set_format import (
    Place,
    SetReader,
    Slot,
    is_segment_header,
    newest_slot,
    pack_segment_header,
    pack_slot,
)
from replication.set_journal import JournalError, SetJournal
from tests.fuzz.mutate import bytes_from, json_from
from tests.replication.far_pair import Host, MemoryFile, MemoryFiles
from tests.replication.test_frames import DECODERS, examples, reseal
from vsap.condition import Record as ConditionRecord
from vsap.condition import pack_slot as pack_condition
from vsap.condition import unpack_slot as unpack_condition
from vsap.entry import Entry, decode_marker, encode_marker, write_entry
from vsap.index import KEY, Record, State, StateDamaged, pack_record
from vsap.positions import WritePositions

VOLUME: Final = bytes(range(16))
SIZE: Final = 1 << 20
BLOCK: Final = 4096


class Target(NamedTuple):
    """A reader of bytes."""

    name: str
    errors: tuple[type[Exception], ...]
    feed: Callable[[random.Random], object]
    """Breaks an input and reads it. Raises one of `errors`, or nothing."""
    share: int
    """How many of a thousand inputs are its."""


FRAMES: Final = examples()
SMALL: Final = [frame for frame in FRAMES if len(frame) < 1000]


def _joined(buffers: Sequence[Any]) -> bytes:
    return b"".join(bytes(part) for part in buffers)


def _whole(data: bytes) -> list[Frame]:
    decoder = Decoder()
    decoder.receive_data(data)
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    return frames


def _sets() -> list[bytes]:
    """Streams of whole sets that build on (1, 5)."""

    def data(sequence: int, block: int) -> bytes:
        return _joined(
            bodies.encode_write(VOLUME, 1, sequence, block * BLOCK, 1, b"d" * BLOCK, FrameType.SET_DATA)
        )

    def begin(before: int, sequence: int, kind: bodies.SetKind) -> bytes:
        return _joined(bodies.encode_set_begin(VOLUME, 1, sequence, bodies.SetBegin(1, before, 1, kind)))

    def commit(sequence: int, frames: int, size: int) -> bytes:
        return _joined(bodies.encode_set_commit(VOLUME, 1, sequence, bodies.SetCommit(frames, size)))

    marker = bodies.encode_marker(VOLUME, 1, 7, bodies.Marker(1, BLOCK, ((0, BLOCK),)), FrameType.SET_MARKER)
    discard = bodies.encode_discard(VOLUME, 1, 6, 0, 1, 2 * BLOCK, FrameType.SET_DISCARD)
    kinds = bodies.SetKind
    one = begin(5, 7, kinds.ENTRIES) + data(6, 1) + _joined(discard) + _joined(marker) + commit(7, 3, BLOCK)
    two = begin(7, 9, kinds.COALESCED) + data(8, 3) + data(9, 2) + commit(9, 2, 2 * BLOCK)
    copy = begin(5, 0, kinds.DIFFERENCE) + data(0, 1) + data(0, 9) + commit(8, 2, 2 * BLOCK)
    return [one, one + two, copy, two]


# --- the wire ---------------------------------------------------------------------------------------------


def broken_stream(rng: random.Random) -> None:
    """Frames one behind the other, broken anywhere: mostly the checksums refuse them."""
    data = bytes_from(rng, SMALL if rng.random() < 0.95 else FRAMES)
    if rng.random() < 0.3:
        data += bytes_from(rng, SMALL)
    decoder = Decoder()
    cut = int(rng.random() * len(data))
    for part in (data[:cut], data[cut:]):
        decoder.receive_data(part)
        while (frame := decoder.next_frame()) is not None:
            if frame.type in DECODERS:
                DECODERS[frame.type](frame)
    assert decoder.buffered_bytes <= len(data)


def sealed_frame(rng: random.Random) -> None:
    """A broken frame with right checksums, as a peer would send it that means it."""
    data = bytearray(bytes_from(rng, SMALL))
    if len(data) < HEADER_BYTES:
        data.extend(bytes(HEADER_BYTES - len(data)))
    if rng.random() < 0.9:
        data[:5] = b"TRIS\x01"
        data[8:16] = (len(data) - HEADER_BYTES).to_bytes(4, "big") + bytes(4)
    for frame in _whole(reseal(data)):
        if frame.type in DECODERS:
            DECODERS[frame.type](frame)


BODIES: Final = [(frame.type, frame.body) for one in SMALL for frame in _whole(one) if frame.type in DECODERS]


def broken_body(rng: random.Random) -> None:
    """A body that is wrong behind checksums that are right."""
    kind, body = BODIES[int(rng.random() * len(BODIES))]
    frame = Frame(kind, int(rng.random() * 8), VOLUME, 1, 1, bytes_from(rng, [body]))
    DECODERS[kind](frame)


PACKED: Final = [zstd.compress(one) for one in _sets()]


def packed_frame(rng: random.Random) -> None:
    """Broken compressed data; broken frames, compressed; wrong sizes of both."""
    if rng.random() < 0.5:
        raw = bytes_from(rng, _SETS) if rng.random() < 0.8 else rng.choice(_SETS)
        data, size = zstd.compress(raw, 1), len(raw)
    else:
        number = int(rng.random() * len(PACKED))
        data, size = bytes_from(rng, PACKED[number : number + 1]), len(_SETS[number])
    if rng.random() < 0.2:
        size = rng.choice((0, 1, size - 1, size + 1, 1 << 19, (1 << 19) + 1, (1 << 32) - 1)) % (1 << 32)
    body = size.to_bytes(4, "big") + data
    frames = unpack(Frame(FrameType.SET_PACKED, 0, VOLUME, 1, 0, body))
    assert sum(HEADER_BYTES + len(frame.body) for frame in frames) == size <= UNPACKED_BYTES_MAX


_SETS: Final = _sets()
_SET_FRAMES: Final = [_whole(one) for one in _SETS]


def set_frames(rng: random.Random) -> None:
    """Frames of sets, whole each, in a wrong order or with wrong numbers in them."""
    frames = list(_SET_FRAMES[int(rng.random() * len(_SET_FRAMES))])
    for _ in range(int(rng.random() * 3) + 1):
        at = int(rng.random() * len(frames))
        how = int(rng.random() * 5)
        if how == 0:
            del frames[at]
        elif how == 1:
            frames.insert(int(rng.random() * len(frames)), frames[at])
        elif how == 2:
            frames[at] = frames[at]._replace(sequence=int(rng.random() * 12), epoch=int(rng.random() * 3))
        elif how == 3:
            frames[at] = frames[at]._replace(body=bytes_from(rng, [frames[at].body]))
        else:
            frames[at] = frames[at]._replace(type=rng.choice(list(FrameType)))
        if not frames:
            return
    reader = SetReader(Position(1, 5), SIZE)
    for frame in frames:
        reader.feed(frame)


# --- JSON -------------------------------------------------------------------------------------------------

ROLES: Final = roles.first_roles(10**18)
LATER: Final = roles.following(ROLES, writer="sync", async_to="async", start_sequence=7, now_ns=10**18)
HELLOS: Final = [
    msgspec.json.encode(
        Hello(version=1, site="primary", purpose=purpose, roles=known, volume=volume, size_bytes=SIZE)
    )
    for purpose, known, volume in (
        ("sync", ROLES, "7f6a1c86-0d2f-4c38-9f7e-3a6f5d3c2b1a"),
        ("async", LATER, "7f6a1c86-0d2f-4c38-9f7e-3a6f5d3c2b1a"),
        ("control", None, None),
    )
]
OTHERS: Final = {
    FrameType.WELCOME: msgspec.json.encode(Welcome(version=1, site="sync", roles=LATER)),
    FrameType.REFUSED: msgspec.json.encode(Refused(sentence="no", code="busy", roles=LATER)),
}


def greeting(rng: random.Random) -> None:
    """A hello, and what the rules make of the roles in it."""
    hello = decode_json(Frame(FrameType.HELLO, 0, VOLUME, 1, 0, json_from(rng, HELLOS)), Hello)
    theirs = hello.roles
    for own in (ROLES, LATER):
        roles.may_connect(hello.purpose, "async", hello.site, own, theirs, level=rng.random() < 0.5)
        if theirs is not None:
            roles.should_adopt(own, theirs)
            roles.parting((own,), theirs)
            roles.parting((theirs,), own)
            roles.following(theirs, writer="async", start_sequence=1, now_ns=1)
            roles.iso_text(theirs.since)
            roles.superseded_sentence("primary", theirs)
            msgspec.json.encode(theirs)
            bodies.encode_far_position(
                VOLUME, theirs.epoch, bodies.FarPosition(theirs.epoch, theirs.start_sequence)
            )


def answer(rng: random.Random) -> None:
    """A welcome or a refusal."""
    kind = FrameType.WELCOME if rng.random() < 0.5 else FrameType.REFUSED
    frame = Frame(kind, 0, VOLUME, 1, 0, json_from(rng, [OTHERS[kind]]))
    raise_if_refused(frame)
    welcome = decode_json(frame, Welcome)
    position = Position(welcome.position_epoch, welcome.position_sequence)
    judge(position, Stream((EpochStart(1, 0), EpochStart(2, 7)), 5, 9, Position(1, 6), False))
    if welcome.roles is not None:
        roles.is_fork(ROLES, welcome.roles)


PARAMS: Final = {
    "sequence": 5, "ranges": [[0, BLOCK], [BLOCK, 2 * BLOCK]], "leaf_bytes": BLOCK, "epoch": 2,
    "roles": msgspec.to_builtins(ROLES), "uuid": "7f6a1c86-0d2f-4c38-9f7e-3a6f5d3c2b1a", "name": "home",
    "size_bytes": SIZE, "target": "async", "site": "sync", "async_to": "async", "at_rest": True,
    "kind": "async", "action": "suspend", "state": "Suspend", "since": 1, "reason": "because",
    "volume": "7f6a1c86-0d2f-4c38-9f7e-3a6f5d3c2b1a",
}  # fmt: skip
CALLS: Final = [
    msgspec.json.encode(
        Request(
            id=1,
            method=method,
            params={name: PARAMS[name] for name in kind.__struct_fields__ if name in PARAMS},
        )
    )
    for method, kind in REQUESTS.items()
]
RESULTS: Final = [
    msgspec.json.encode(Reply(id=1, result=result))
    for result in (
        {},
        {"roles": msgspec.to_builtins(ROLES), "lost": None, "sentence": "", "as_of_ns": 1},
        {
            "running": True,
            "error": None,
            "sentence": "",
            "bytes_compared": 1,
            "bytes_copied": 1,
            "position": 1,
        },
        {"drained": True, "durable_sequence": 1, "sentence": ""},
        {"finished": True, "sequence": 1, "sentence": ""},
        {"ranges": [[0, BLOCK]], "digests": ["00"], "sequence": 1},
    )
]


def request(rng: random.Random) -> None:
    """A control request, as the daemon reads it."""
    message = decode_json(Frame(FrameType.REQUEST, 0, VOLUME, 1, 0, json_from(rng, CALLS)), Request)
    decode_request(message)


_REQUESTS: Final = [
    msgspec.convert({}, kind, strict=False) for kind in REQUESTS.values() if not kind.__struct_fields__
]


def reply(rng: random.Random) -> None:
    """A reply, as the command line reads it."""
    frame = Frame(FrameType.REPLY, 0, VOLUME, 1, 0, json_from(rng, RESULTS))
    message = decode_json(frame, Reply)
    decode_reply(_REQUESTS[int(rng.random() * len(_REQUESTS))], message)


LINES: Final = [
    msgspec.json.encode(line)
    for line in (
        HelloLine(pid=5),
        EligibleLine(sequence=7),
        FarLine(epoch=1, durable_sequence=5, applied_sequence=4),
        RequestLine(id=1, method="marker", params={"ranges": [[0, BLOCK]], "leaf_bytes": BLOCK}),
        ReplyLine(id=1, result={"a": 1}),
    )
]


def line(rng: random.Random) -> None:
    """A line of daemon.sock."""
    decode_line(json_from(rng, LINES))


# --- on disk ----------------------------------------------------------------------------------------------

SLOTS: Final = [
    pack_slot(VOLUME, Slot(1, Position(1, 5), Place(1, 64), 3)).ljust(512, b"\0")
    + pack_slot(VOLUME, Slot(2, Position(1, 7), Place(1, 900), 4))
]


def journal_slot(rng: random.Random) -> None:
    """The `position` file of the set journal, and the header of a segment."""
    data = bytearray(bytes_from(rng, SLOTS))
    if rng.random() < 0.5 and len(data) >= 80:
        data[72:80] = xxhash.xxh3_64_intdigest(bytes(data[:72])).to_bytes(8, "big")
    newest_slot(bytes(data), VOLUME)
    is_segment_header(bytes_from(rng, [pack_segment_header(VOLUME, 1)]), VOLUME, 1)


SLOT: Final = pack_slot(VOLUME, Slot(1, Position(1, 5), Place(1, 64)))


def journal(rng: random.Random) -> None:
    """A set journal with a broken segment: opened, what is whole read back."""
    files = MemoryFiles(Host(rng))
    for name, content in (
        ("position", SLOT if rng.random() < 0.8 else bytes_from(rng, [SLOT])),
        (f"{1:016x}.sets", pack_segment_header(VOLUME, 1) + bytes_from(rng, _SETS)),
    ):
        files.files[name] = MemoryFile()
        files.files[name].content = bytearray(content)
    opened = SetJournal(Path("journal"), VOLUME, SIZE, files=files)
    for one in opened.waiting:
        list(opened.frames_of(one))


RECORD: Final = pack_record(KEY.pack(7), 1, BLOCK, BLOCK, 1, 64, 1, 12345, 0)
STATE: Final = State(next_sequence=9, oldest_sequence=3, tail_place=64).pack()
HEADER: Final = write_entry(7, 1, BLOCK, b"x" * BLOCK).pack_header()
MARKER: Final = encode_marker([(0, BLOCK), (BLOCK, BLOCK)], BLOCK)


def queue_record(rng: random.Random) -> None:
    """A record of the index, the state, a header of an entry, a marker's payload."""
    which = int(rng.random() * 4)
    if which == 0:
        Record.verified(KEY.pack(7), bytes_from(rng, [RECORD]))
    elif which == 1:
        State.unpack(bytes_from(rng, [STATE])).public()
    elif which == 2:
        Entry.unpack(bytes_from(rng, [HEADER])).intact()
    else:
        decode_marker(bytes_from(rng, [MARKER]))


CONDITION: Final = pack_condition(
    ConditionRecord(True, volume=UUID(bytes=VOLUME), boot=UUID(int=5), ceiling=9, generation=3)
)


def condition(rng: random.Random) -> None:
    """A slot of the condition file, sealed again half of the time."""
    data = bytearray(bytes_from(rng, [CONDITION]))
    if rng.random() < 0.5 and len(data) >= len(CONDITION):
        end = len(CONDITION) - 8
        data[end : end + 8] = xxhash.xxh3_64_intdigest(bytes(data[:end])).to_bytes(8, "little")
    unpack_condition(bytes(data))


def _written() -> tuple[bytes, bytes]:
    """The condition and the positions file of a record of some writes."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        record = WritePositions.open(directory, UUID(bytes=VOLUME), size_bytes=SIZE, memory_entries=64)
        for sequence in range(1, 200):
            record.append(sequence, sequence * 7 % 256 * BLOCK, BLOCK)
            if sequence % 40 == 0:
                record.flush(sequence)
        record.close()
        return (directory / "condition").read_bytes(), (directory / "positions").read_bytes()


WRITTEN: Final = _written()


def written_positions(rng: random.Random) -> None:
    """The files of a record of write positions, opened and asked."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        whole = rng.random() < 0.8
        (directory / "condition").write_bytes(WRITTEN[0] if whole else bytes_from(rng, WRITTEN[:1]))
        (directory / "positions").write_bytes(bytes_from(rng, WRITTEN[1:]))
        record = WritePositions.open(directory, UUID(bytes=VOLUME), size_bytes=SIZE, memory_entries=64)
        try:
            record.ranges_after(50)
        finally:
            record.close()


def _received() -> bytes:
    """The record of what a sync site holds."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "received"
        with ReceivedRecord(path, UUID(bytes=VOLUME), boot=BOOT) as record:
            record.save(record.facts._replace(epoch=3, durable_sequence=9, in_step=True))
            record.received_sequence = 12
        return path.read_bytes()


BOOT: Final = "0" * 36
RECEIVED: Final = _received()
SLOT_AT: Final = len(RECEIVED) // 2
"""The slots are in the second of two pages."""


def received_record(rng: random.Random) -> None:
    """The same, broken in its slots, or anywhere."""
    slots = bytes_from(rng, [RECEIVED[SLOT_AT : SLOT_AT + 1024]])
    data = RECEIVED[:SLOT_AT] + slots if rng.random() < 0.8 else bytes_from(rng, [RECEIVED])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "received"
        path.write_bytes(data.ljust(len(RECEIVED), b"\0"))
        with ReceivedRecord(path, UUID(bytes=VOLUME), boot=BOOT) as record:
            assert record.facts.durable_sequence <= record.received_sequence


_PEER = (RemoteProtocolError,)
TARGETS: Final = (
    Target("stream", _PEER, broken_stream, 150),
    Target("sealed", _PEER, sealed_frame, 200),
    Target("body", _PEER, broken_body, 200),
    Target("packed", _PEER, packed_frame, 80),
    Target("sets", _PEER, set_frames, 100),
    Target("greeting", _PEER, greeting, 50),
    Target("answer", (*_PEER, PeerRefused), answer, 30),
    Target("request", (*_PEER, ControlError), request, 50),
    Target("reply", (*_PEER, ControlError), reply, 30),
    Target("line", _PEER, line, 30),
    Target("slot", (ValueError,), journal_slot, 20),
    Target("journal", (JournalError,), journal, 10),
    Target("queue", (CorruptionError, StateDamaged, ValueError), queue_record, 40),
    Target("condition", (CorruptionError,), condition, 8),
    Target("received", (CorruptionError,), received_record, 1),
    Target("positions", (CorruptionError,), written_positions, 1),
)
assert sum(target.share for target in TARGETS) == 1000
