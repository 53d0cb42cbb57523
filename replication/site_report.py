"""What a daemon says of its site, for `status` and for the surveys of the procedures."""

from typing import TYPE_CHECKING

from jfs.errors import CorruptionError, DeviceError
from replication.control import CopyReport, HeardReport, PositionReport, QueueReport, SiteReport, VolumeReport
from replication.position import NOWHERE
from replication.site_parts import AwayPart, FollowPart, Part, SyncPart, WriterPart
from replication.site_take_over import proof_of

if TYPE_CHECKING:
    from replication.site import Site


async def report_of(site: "Site") -> SiteReport:
    """The report; what a part cannot tell at the moment is left out, a status never fails for that."""
    state, part = site.state, site.part
    identity, roles = state.identity, state.roles
    mount = await site.link.report()
    proven, reason = _proof(site)
    queue: QueueReport | None = None
    copy: CopyReport | None = None
    if isinstance(part, WriterPart):
        try:
            queue = _queue(part)
        except (DeviceError, CorruptionError):
            queue = None
        copy = part.report()
    return SiteReport(
        site=site.name,
        volume=None
        if identity is None
        else VolumeReport(uuid=str(identity.uuid), name=identity.name, size_bytes=identity.size_bytes),
        roles=roles,
        history=state.history(),
        pairs=[record for record in state.pairs() if roles is not None and record.source == roles.writer],
        mounted=site.link.connected,
        mount=mount,
        received_sequence=part.receiver.received_sequence if isinstance(part, SyncPart) else None,
        position=_position(site),
        queue=queue,
        next_sequence=part.queue.state().next_sequence if isinstance(part, WriterPart) else None,
        copy=copy,
        proven=proven,
        proven_reason=reason,
        newest_known=state.newest_known,
        take_over=state.take_over,
        level=part.levelling.status() if isinstance(part, WriterPart) else None,
        faults=_faults(part),
        heard=_heard(site),
        far_link=part.far_link.status() if isinstance(part, WriterPart) else None,
    )


def _heard(site: "Site") -> HeardReport | None:
    """What this end knows of its writer; None where it is no secondary, or has not heard of one yet."""
    part = site.part
    connected = site.connected_since is not None
    since = site.connected_since or site.silent_since
    if since is None:
        return None
    if isinstance(part, SyncPart):
        return HeardReport(connected=connected, since=since, in_step=part.record.facts.in_step)
    if isinstance(part, FollowPart):
        return HeardReport(connected=connected, since=since, in_step=part.receiver.durable != NOWHERE)
    return None


def _faults(part: Part) -> list[str]:
    """What an operator must put right."""
    if isinstance(part, WriterPart) and part.fault is not None:
        return [part.fault]
    if isinstance(part, FollowPart):
        receiver = part.receiver
        fault = receiver.failure or receiver.hindrance or receiver.no_room
        return [fault] if fault else []
    if isinstance(part, AwayPart) and part.faulty:
        return [part.sentence]
    return []


def _proof(site: "Site") -> tuple[bool, str]:
    part, roles = site.part, site.state.roles
    if roles is None:
        return False, f"site {site.name} has no volume yet"
    if isinstance(part, SyncPart):
        return proof_of(part.record.facts, roles)
    if isinstance(part, WriterPart):
        kept = site.state.take_over
        if kept is not None and kept.epoch == roles.epoch:
            return kept.lost == 0, kept.sentence
        return True, "it is the writer"
    if isinstance(part, FollowPart):
        return False, "an asynchronous site may lack the last writes"
    return False, part.sentence


def _queue(part: WriterPart) -> QueueReport:
    counts = part.queue.counts()
    lag = part.shipper.lag().durable.seconds if part.shipper is not None else 0.0
    return QueueReport(
        entries=counts.entries,
        bytes=counts.bytes,
        oldest_sequence=counts.oldest_sequence,
        newest_sequence=counts.newest_sequence,
        lag_seconds=round(lag, 3),
    )


def _position(site: "Site") -> PositionReport | None:
    part = site.part
    if isinstance(part, SyncPart):
        return PositionReport(
            epoch=part.record.facts.epoch,
            durable_sequence=part.receiver.durable_sequence,
            applied_sequence=part.receiver.received_sequence,
        )
    if isinstance(part, FollowPart):
        same = part.receiver.applied.epoch == part.receiver.durable.epoch
        return PositionReport(
            epoch=part.receiver.durable.epoch,
            durable_sequence=part.receiver.durable.sequence,
            applied_sequence=part.receiver.applied.sequence if same else 0,
            timestamp_ns=part.receiver.newest_ns,
        )
    return None
