"""One typed snapshot of a volume as every reachable site tells it (`trisite status`)."""

import msgspec

from replication.config import SiteName


class PairStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A pair: `state` by the name of design section 6, `since` as ISO 8601 in UTC, `reason` one sentence."""

    kind: str
    source: SiteName = msgspec.field(name="from")
    target: SiteName = msgspec.field(name="to")
    state: str
    since: str
    reason: str


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The entries the far site has not made durable; `oldest_seq` and `newest_seq` None when empty."""

    entries: int
    bytes: int
    oldest_seq: int | None
    newest_seq: int | None


class LogStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata log: files named, bytes used and bytes there are."""

    files: int
    bytes: int
    capacity_bytes: int


class SiteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One site; everything but `reachable` and `reason` is None where the site does not answer."""

    reachable: bool
    epoch: int | None
    applied_seq: int | None
    durable_seq: int | None
    role: str | None
    mounted: bool | None
    reason: str | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot, with the fields of `status --json`.

    `writer` is that of the newest epoch any site knows; `lag_seconds` None where no reachable site knows it;
    `armed` says whether C could take over with nothing lost, `armed_reason` why or why not; `warnings`
    are sentences.
    """

    volume: str
    epoch: int | None
    writer: SiteName | None
    pairs: list[PairStatus]
    queue: QueueStatus | None
    lag_seconds: float | None
    log: LogStatus | None
    sites: dict[SiteName, SiteStatus]
    armed: bool
    armed_reason: str
    warnings: list[str]
