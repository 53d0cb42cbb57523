"""Control requests: what the command line and the sites ask a site's daemon, typed at both ends.

A request is a struct that names its method and the type of its reply; `ask` sends it over a channel and
returns the reply. A daemon answers every request or says in one sentence why not.

A daemon that was stopped, or a link that was cut, may bring a request long after whoever made it has given up
and told an operator so. So what changes anything is done only once the asker, asked again, still waits.
"""

import itertools
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

import msgspec
import trio

from replication.config import SITE_NAMES, SiteName
from replication.errors import AnswerLost, PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.far_link import FarLinkStatus
from replication.frames import Buffer, Frame, FrameType, encode
from replication.messages import Reply, Request, decode_json, encode_json
from replication.roles import Roles
from replication.state import PairEvent, PairRecord, TakeOverRecord

ReplyT = TypeVar("ReplyT")
Range = tuple[int, int]
"""(offset, length) in bytes of the volume."""
Confirm = Callable[[], Awaitable[None]]
"""Returns when whoever made a request says that it still waits; ControlError where it does not."""
MOST_RANGES: Final = 20_000
"""In one message: some 30 bytes each, and a message may have a MiB."""


class ControlError(Exception):
    """The site answered and would not, or could not; the sentence is for the operator, the code for
    programs.
    """

    def __init__(self, sentence: str, code: str = "refused") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code


class ControlRequest(msgspec.Struct, Generic[ReplyT], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request; `changes` says that only the operator and the sites of the cluster may make it, and that it
    is confirmed before it is carried out.
    """

    method: ClassVar[str] = ""
    changes: ClassVar[bool] = False
    reply: ClassVar[Any] = None


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """It is done; there is nothing to tell."""


class VolumeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The volume at a site."""

    uuid: str
    name: str
    size_bytes: int


class QueueReport(msgspec.Struct, frozen=True, kw_only=True):
    """The queue at the writer: what the far site has not made durable; lag in seconds, all 0 when empty."""

    entries: int
    bytes: int
    oldest_sequence: int
    newest_sequence: int
    lag_seconds: float


class CopyReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the shipping to a far site goes. `phase` is a word, `sentence` what an operator reads.

    `level` means: nothing but entries of the queue is between here and the far site. The numbers are those
    of the newest difference or recovery copy; `durable_sequence` is what the far site acknowledged in
    `far_epoch`.
    """

    target: str
    phase: str
    sentence: str
    level: bool
    files_listed: int
    bytes_listed: int
    bytes_compared: int
    bytes_copied: int
    far_epoch: int
    durable_sequence: int
    applied_sequence: int


class MountReport(msgspec.Struct, frozen=True, kw_only=True):
    """The mount process of a writing site."""

    issued_sequence: int
    log_files: int
    log_bytes: int
    log_capacity_bytes: int
    sync_state: str
    sync_reason: str
    unprotected: bool


class PositionReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where the area of a secondary stands: durable in its journal, applied to its area.

    `timestamp_ns`: of when the state of an asynchronous secondary is, 0 where that is not known.
    """

    epoch: int
    durable_sequence: int
    applied_sequence: int
    timestamp_ns: int = 0


class HeardReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a secondary knows of its writer from their connection: open or closed, since when (Unix ns).

    `in_step`: as far as this end knows, it has what it should have.
    """

    connected: bool
    since: int
    in_step: bool


class LevelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A levelling copy to a returning site: it runs, or it ended at `position` or with `error`."""

    running: bool
    error: str | None
    sentence: str
    bytes_compared: int
    bytes_copied: int
    position: int


class SiteReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a site says about itself; None where it does not apply to its role."""

    site: str
    volume: VolumeReport | None
    roles: Roles | None
    history: list[Roles]
    pairs: list[PairRecord]
    mounted: bool
    mount: MountReport | None
    received_sequence: int | None
    position: PositionReport | None
    queue: QueueReport | None
    next_sequence: int | None
    copy: CopyReport | None
    proven: bool
    proven_reason: str
    newest_known: int
    take_over: TakeOverRecord | None
    level: LevelStatus | None
    faults: list[str]
    heard: HeardReport | None = None
    far_link: FarLinkStatus | None = None


class GetStatus(ControlRequest[SiteReport], frozen=True, kw_only=True):
    """What a site says about itself."""

    method = "status"
    reply = SiteReport


class CreateVolume(ControlRequest[Done], frozen=True, kw_only=True):
    """Make the volume at this site: an empty area, the given roles. Refused over another volume without
    force. `blank`: others have it already, and this area holds no state of it.
    """

    method = "create_volume"
    changes = True
    reply = Done
    uuid: str
    name: str
    size_bytes: int
    roles: Roles
    force: bool = False
    blank: bool = False


class PromoteReply(msgspec.Struct, frozen=True, kw_only=True):
    """The roles under which the site writes now, and what it knows of the loss (0: proven that there is
    none). `as_of_ns`: of when the state of the past is that it goes on with, 0 if it is none.
    """

    roles: Roles
    lost: int | None
    sentence: str
    as_of_ns: int = 0


class Promote(ControlRequest[PromoteReply], frozen=True, kw_only=True):
    """Become the writer of `epoch` of the volume; the site itself says from which sequence on. Asking again
    changes nothing. `over_fork`: it writes already, and another site does in an epoch of the same number.
    `doubt`: what other sites say that contradicts its own proof of having everything.
    """

    method = "promote"
    changes = True
    reply = PromoteReply
    volume: str
    epoch: int
    async_to: SiteName | None
    drained_sequence: int | None = None
    over_fork: bool = False
    doubt: str | None = None


class AdoptReply(msgspec.Struct, frozen=True, kw_only=True):
    """The roles the site holds after the request; why it acknowledged writes without site sync in the epoch
    before, if it did.
    """

    roles: Roles
    alone: str | None = None


class Adopt(ControlRequest[AdoptReply], frozen=True, kw_only=True):
    """Take over these roles of the volume if their epoch is newer; the site is re-wired before the reply."""

    method = "adopt"
    changes = True
    reply = AdoptReply
    volume: str
    roles: Roles


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """One file the metadata log names."""

    inode: int
    path: str | None
    ranges: list[Range]
    bytes: int
    why: str


class ListingReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the metadata log of the site's area names, the files by inode; `bytes` of all ranges to be looked
    at.

    Of these `file_bytes` are in ranges of the files and `log_bytes` the log area with the superblocks; what
    is left are whole regions that an imprecise log names. `next_inode`: more files are named from it on.
    """

    files: list[FileReport]
    files_listed: int
    bytes: int
    file_bytes: int = 0
    log_bytes: int = 0
    next_inode: int | None = None


class GetListing(ControlRequest[ListingReply], frozen=True, kw_only=True, omit_defaults=True):
    """Read the site's metadata log: at most `limit` files are told one by one, from an inode on."""

    method = "listing"
    reply = ListingReply
    limit: int = 2000
    from_inode: int = 0


class ReturnReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where a returning site may differ from the stream: ranges, or everything when it cannot know.

    `quarantine` is where its own writes that reached no other site are kept, None when there were none.
    """

    ranges: list[Range]
    everything: bool
    quarantine: str | None
    quarantined_bytes: int
    reason: str


class ReportRanges(ControlRequest[ReturnReport], frozen=True, kw_only=True):
    """Prepare to be levelled: keep the own writes after `after_sequence`, tell where they are."""

    method = "report_ranges"
    changes = True
    reply = ReturnReport
    epoch: int
    after_sequence: int


class Level(ControlRequest[Done], frozen=True, kw_only=True):
    """Copy to the returning `target` what differs in `ranges` and in what was written here after the
    sequence.
    """

    method = "level"
    changes = True
    reply = Done
    target: SiteName
    after_sequence: int
    ranges: list[Range]
    everything: bool


class GetLevel(ControlRequest[LevelStatus], frozen=True, kw_only=True):
    """How the levelling goes."""

    method = "level_progress"
    reply = LevelStatus


class FinishReply(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the mount at this site has ended; the sentence says why not. `sequence`: the newest write."""

    finished: bool
    sentence: str
    sequence: int


class FinishMount(ControlRequest[FinishReply], frozen=True, kw_only=True):
    """Ask the mount process to flush and unmount, and hold the site: not mounted again in this epoch."""

    method = "finish_mount"
    changes = True
    reply = FinishReply


class DrainReply(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the far site has everything up to the sequence asked for, durable and applied.

    `stopped`: it will not have it by waiting, somebody suspended or deleted the pair.
    """

    drained: bool
    durable_sequence: int
    sentence: str
    stopped: bool = False


class Drain(ControlRequest[DrainReply], frozen=True, kw_only=True):
    """Is everything up to `sequence` durable and applied at the far site?"""

    method = "drain"
    reply = DrainReply
    sequence: int


class SetPair(ControlRequest[Done], frozen=True, kw_only=True):
    """Suspend, resync, delete or create the pair from this writer to `target`.

    `force`: suspend or delete the synchronous pair also where its secondary cannot be told.
    """

    method = "pair"
    changes = True
    reply = Done
    target: str
    action: Literal["suspend", "resync", "create", "delete"]
    force: bool = False


class LosePosition(ControlRequest[Done], frozen=True, kw_only=True):
    """The writer is about to bring a returning site nearer by sets that lead to no state of the stream: it
    stands nowhere until it is level.
    """

    method = "lose_position"
    changes = True
    reply = Done
    epoch: int


class NotePair(ControlRequest[Done], frozen=True, kw_only=True):
    """The writer tells its secondary what an operator did with the pair: this end records it too."""

    method = "note_pair"
    changes = True
    reply = Done
    epoch: int
    pair: PairRecord


class EventsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Transitions on record at this site, oldest first; `newest` is the number of the last there is."""

    events: list[PairEvent]
    newest: int


class GetEvents(ControlRequest[EventsReply], frozen=True, kw_only=True):
    """The transitions of the pairs this site has an end of, after a number."""

    method = "events"
    reply = EventsReply
    after: int = 0


class RangesReply(msgspec.Struct, frozen=True, kw_only=True):
    """Allocated ranges of the site's area and the sequence it is at, None where the mount goes on writing.

    There are more from `next_offset` on, if it is not None.
    """

    ranges: list[Range]
    sequence: int | None
    next_offset: int | None


class GetRanges(ControlRequest[RangesReply], frozen=True, kw_only=True):
    """The ranges of the area that the file system uses from an offset on, as many as one reply may hold."""

    method = "ranges"
    reply = RangesReply
    from_offset: int = 0


class MarkerReply(msgspec.Struct, frozen=True, kw_only=True):
    """Digests in hex at the marker's place in the stream, of the writer and (None: not connected) of its
    sync site.
    """

    sequence: int
    digests: list[str]
    sync_digests: list[str] | None
    sync_reason: str


class TakeMarker(ControlRequest[MarkerReply], frozen=True, kw_only=True):
    """Put a marker into the stream of the mount at this site."""

    method = "marker"
    reply = MarkerReply
    ranges: list[Range]
    leaf_bytes: int


class DigestsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Digests in hex, or None while the area has not reached the sequence asked for."""

    digests: list[str] | None
    epoch: int
    sequence: int


class GetDigests(ControlRequest[DigestsReply], frozen=True, kw_only=True):
    """Digests kept for the marker at `sequence`, or (`at_rest`) of the area as it is, which must be there."""

    method = "digests"
    reply = DigestsReply
    sequence: int
    at_rest: bool
    ranges: list[Range]
    leaf_bytes: int


REQUESTS: Final[dict[str, type[ControlRequest[Any]]]] = {
    kind.method: kind
    for kind in (
        GetStatus, CreateVolume, Promote, Adopt, GetListing, ReportRanges, Level, GetLevel,
        FinishMount, Drain, SetPair, LosePosition, NotePair, GetEvents, GetRanges, TakeMarker,
        GetDigests,
    )
}  # fmt: skip


class ControlChannel(Protocol):
    """The part of a channel that a conversation of requests needs."""

    peer: str

    async def send(self, buffers: list[Buffer]) -> None: ...
    async def receive_one(self) -> Frame: ...


_numbers = itertools.count(1)


async def ask(channel: ControlChannel, request: ControlRequest[ReplyT], seconds: float) -> ReplyT:
    """Send one request and wait for its reply at most `seconds`; one request at a time on a channel.

    Raises ControlError when the site says no, PeerUnreachable when it does not answer in time: then it has
    changed nothing, and will not. AnswerLost where the site was told to go on: it may have, or may still.
    """
    number = next(_numbers)
    message = Request(id=number, method=request.method, params=msgspec.to_builtins(request))
    going_on = False
    try:
        with trio.move_on_after(seconds):
            await channel.send(encode_json(message))
            while True:
                frame = await channel.receive_one()
                if frame.type is FrameType.CONFIRM and frame.sequence == number:
                    going_on = True
                    await channel.send(encode(FrameType.CONFIRM, sequence=number))
                    continue
                if frame.type is not FrameType.REPLY:
                    raise RemoteProtocolError(f"{channel.peer} sent {frame.type.name} instead of a reply")
                reply = decode_json(frame, Reply)
                if reply.id == number:
                    return decode_reply(request, reply)
        raise PeerUnreachable(f"{channel.peer} did not answer '{request.method}' within {seconds:g} s")
    except (PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
        if not going_on:
            raise
        raise AnswerLost(
            f"{error}, after it was told to go on with '{request.method}': whether it did is not known"
        ) from error


def decode_reply(request: ControlRequest[ReplyT], reply: Reply) -> ReplyT:
    """The result in a reply. ControlError: the site says no. RemoteProtocolError: it is no such result."""
    if reply.error is not None:
        raise ControlError(reply.error, reply.code or "refused")
    try:
        result: ReplyT = msgspec.convert(reply.result, request.reply)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"the reply to {request.method!r} cannot be read: {error}") from error
    return result


def decode_request(message: Request) -> ControlRequest[Any]:
    """The typed request in a message; ControlError for an unknown method or wrong parameters."""
    kind = REQUESTS.get(message.method)
    if kind is None:
        raise ControlError(f"this daemon does not know the request {message.method[:40]!r}", "unknown")
    try:
        request: ControlRequest[Any] = msgspec.convert(message.params, kind)
    except msgspec.ValidationError as error:
        raise ControlError(f"the request {message.method!r} cannot be read: {error}", "invalid") from error
    return request


def may_ask(request: ControlRequest[Any], peer_site: str | None, *, plain: bool) -> bool:
    """Whether a peer may make the request: what changes anything needs a certificate of the cluster.

    Without TLS (`plain`, loopback only) there are no certificates, and whoever reaches the port may ask.
    """
    return plain or not request.changes or peer_site in {"operator", *SITE_NAMES}
