"""One typed snapshot of a volume as every reachable site tells it (`trisite status`)."""

import msgspec

from replication.config import Config, SiteName
from replication.control import SiteReport
from replication.far_link import FarLinkStatus
from replication.pair import State
from replication.procedures.plan import Survey, doubt_of_sync
from replication.procedures.survey import take_survey
from replication.roles import Roles, fork_sentence, iso_text, role_of
from replication.state import PairKind


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


class ForkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One of several writers of the same epoch, which did not see each other when they were promoted."""

    writer: SiteName
    epoch: int
    term: str
    since: str
    start_sequence: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot, with the fields of `status --json`.

    `writer` is that of the newest epoch any site knows; `lag_seconds` None where no reachable site knows it;
    `armed` says whether C could take over with nothing lost and bring D level at once, `armed_reason` why or
    why not; `warnings` are sentences; `forks` are the writers of an epoch that has more than one;
    `far_link` is what the writer sent to the far site, None where it does not answer.
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
    forks: list[ForkStatus]
    far_link: FarLinkStatus | None = None


async def collect(config: Config) -> Status:
    """Ask every site, at once and with a short patience, and put the answers together."""
    return snapshot(config.volume.name, await take_survey(config), config)


def snapshot(volume: str, survey: Survey, config: Config) -> Status:
    """The status that these answers amount to; pure."""
    roles = survey.newest()
    writer = survey.reports.get(roles.writer) if roles is not None else None
    queue = writer.queue if writer is not None else None
    protected, why = _protected(survey, roles)
    armed, armed_reason = _armed(survey, roles) if protected else (False, why)
    return Status(
        volume=volume,
        epoch=roles.epoch if roles is not None else None,
        writer=roles.writer if roles is not None else None,
        pairs=_pairs(survey, roles, writer),
        queue=None
        if queue is None
        else QueueStatus(
            entries=queue.entries,
            bytes=queue.bytes,
            oldest_seq=queue.oldest_sequence if queue.entries else None,
            newest_seq=queue.newest_sequence if queue.entries else None,
        ),
        lag_seconds=queue.lag_seconds if queue is not None else None,
        log=_log(writer),
        forks=[
            ForkStatus(
                writer=one.writer,
                epoch=one.epoch,
                term=one.term,
                since=iso_text(one.since),
                start_sequence=one.start_sequence,
            )
            for one in survey.forks()
        ],
        sites={name: _site(survey, name, roles) for name in config.sites},
        far_link=writer.far_link if writer is not None else None,
        armed=armed,
        armed_reason=armed_reason,
        warnings=[
            *_contradictions(survey, config),
            *_warnings(survey, roles, writer, protected=protected, reason=why),
        ],
    )


def _pairs(survey: Survey, roles: Roles | None, writer: SiteReport | None) -> list[PairStatus]:
    """The pairs of the newest epoch as the writer has them, and where it is silent as the other end has."""
    if roles is None:
        return []
    kinds: list[tuple[PairKind, SiteName | None]] = [("sync", roles.sync_to), ("async", roles.async_to)]
    found: list[PairStatus] = []
    for kind, target in kinds:
        if target is None:
            continue
        known = [
            one
            for one in (writer.pairs if writer is not None else [])
            if (one.kind, one.source, one.target) == (kind, roles.writer, target) and one.epoch == roles.epoch
        ]
        if known:
            state, since, reason = known[0].state, known[0].since, known[0].reason
        elif writer is None:
            state, since, reason = _without_writer(survey, roles, target)
        else:
            state, since, reason = _never_connected(survey, roles, kind, target, writer)
        if kind == "sync" and known and writer is not None and not writer.mounted:
            reason = _at_rest(survey, target, state, reason)
        found.append(
            PairStatus(
                kind=kind,
                source=roles.writer,
                target=target,
                state=state,
                since=iso_text(since),
                reason=reason,
            )
        )
    return found


def _never_connected(
    survey: Survey, roles: Roles, kind: PairKind, target: SiteName, writer: SiteReport
) -> tuple[str, int, str]:
    """A pair that no mount of this epoch has looked at: after a return both ends stand where it begins."""
    report = survey.reports.get(target)
    stands = report.received_sequence if report is not None and report.roles == writer.roles else None
    begins = stands == roles.start_sequence and writer.next_sequence == roles.start_sequence + 1
    if kind == "sync" and begins and report is not None and report.proven:
        return str(State.DUPLEX), roles.since, "level since the epoch began; the volume was not mounted yet"
    return str(State.DUPLEX_PENDING), roles.since, "not connected in this epoch yet"


def _without_writer(survey: Survey, roles: Roles, target: SiteName) -> tuple[str, int, str]:
    """State, since when and why of a pair whose writing site is silent, as its other end knows them."""
    silent = f"the writing site does not answer ({survey.why_silent(roles.writer)})"
    report = survey.reports.get(target)
    heard = report.heard if report is not None else None
    own = [
        one
        for one in (report.pairs if report is not None else [])
        if one.target == target and one.epoch == roles.epoch and one.state in {State.SUSPEND, State.SIMPLEX}
    ]
    if own:
        return own[0].state, own[0].since, f"{own[0].reason}, as site {target} has it on record; {silent}"
    if heard is None or heard.since < roles.since:
        return str(State.FAILURE_SUSPEND), roles.since, f"{silent}; when that began is not known here"
    if heard.connected:
        state = State.DUPLEX if heard.in_step else State.DUPLEX_PENDING
        return str(state), heard.since, f"as site {target} knows it, which is connected; {silent}"
    return str(State.FAILURE_SUSPEND), heard.since, f"site {target} lost the connection then; {silent}"


def _at_rest(survey: Survey, target: SiteName, state: str, reason: str) -> str:
    """Why the synchronous pair is as it is while nobody copies: as its writer last knew it, not as it is."""
    if target not in survey.reports:
        silent = f"site {target} does not answer now ({survey.why_silent(target)})"
        return f"as it was at the last mount ({reason}); the volume is not mounted, {silent}"
    if state == State.DUPLEX:
        return "in step; the volume is not mounted"
    return f"as it was at the last mount ({reason}); the volume is not mounted"


def _log(writer: SiteReport | None) -> LogStatus | None:
    if writer is None or writer.mount is None or not writer.mount.log_capacity_bytes:
        return None
    mount = writer.mount
    return LogStatus(files=mount.log_files, bytes=mount.log_bytes, capacity_bytes=mount.log_capacity_bytes)


def _site(survey: Survey, name: SiteName, roles: Roles | None) -> SiteStatus:
    report = survey.reports.get(name)
    if report is None:
        return SiteStatus(
            reachable=False,
            epoch=None,
            applied_seq=None,
            durable_seq=None,
            role=None if roles is None else role_of(roles, name),
            mounted=None,
            reason=survey.why_silent(name),
        )
    position = report.position
    newest = report.next_sequence - 1 if report.next_sequence is not None else None
    return SiteStatus(
        reachable=True,
        epoch=report.roles.epoch if report.roles is not None else None,
        applied_seq=position.applied_sequence if position is not None else newest,
        durable_seq=position.durable_sequence if position is not None else newest,
        role=role_of(report.roles, name) if report.roles is not None else None,
        mounted=report.mounted,
        reason=None if report.roles is not None else "it has no volume yet",
    )


def _protected(survey: Survey, roles: Roles | None) -> tuple[bool, str]:
    """Whether the sync site could take over now with nothing lost, and the sentence why (not)."""
    if roles is None and survey.silent:
        return False, "no site that answers holds a volume; start the daemons of those that do not answer"
    if roles is None:
        return False, "there is no volume yet; make one with `trisite mkfs`"
    if roles.sync_to is None:
        return False, f"site {roles.writer} writes alone; `trisite failback` brings the normal operation back"
    report = survey.reports.get(roles.sync_to)
    if report is None:
        return False, f"site {roles.sync_to} does not answer ({survey.why_silent(roles.sync_to)})"
    if not report.proven:
        return False, report.proven_reason
    doubt = doubt_of_sync(survey, roles) if roles.sync_to == "sync" else None
    if doubt is not None:
        return False, doubt
    return True, f"site {roles.sync_to} has every write that was acknowledged"


def _armed(survey: Survey, roles: Roles | None) -> tuple[bool, str]:
    """Whether sync, which has everything, could bring async level at once; the sentence why (not)."""
    has_all = f"site {roles.sync_to if roles is not None else 'sync'} has every write that was acknowledged"
    if roles is None or roles.async_to is None:
        return False, f"{has_all}, and there is no asynchronous site it could go on with"
    report = survey.reports.get(roles.async_to)
    pairs = _pairs(survey, roles, survey.reports.get(roles.writer))
    if any((pair.kind, pair.state) == ("async", State.SIMPLEX) for pair in pairs):
        return False, f"{has_all}, but the pair to site {roles.async_to} was deleted"
    if report is None:
        why = survey.why_silent(roles.async_to)
        return False, f"{has_all}, but site {roles.async_to} does not answer ({why})"
    if report.position is None or report.position.epoch == 0:
        return False, f"{has_all}, but site {roles.async_to} holds no complete copy yet"
    return True, has_all


def _contradictions(survey: Survey, config: Config) -> list[str]:
    """A size in the configuration that is not the volume's: said once, however many sites hold the volume."""
    sizes = {report.volume.size_bytes for report in survey.reports.values() if report.volume is not None}
    return [sentence for one in sorted(sizes) if (sentence := config.contradicts(one)) is not None]


def _warnings(
    survey: Survey, roles: Roles | None, writer: SiteReport | None, *, protected: bool, reason: str
) -> list[str]:
    """What an operator should see first."""
    found = [f"site {site} does not answer: {survey.why_silent(site)}" for site in survey.silent]
    if (sentence := survey.disagreement()) is not None:
        found.append(sentence)
    if forks := survey.forks():
        found.append(fork_sentence(forks))
    if roles is None:
        return found
    if roles.writer in survey.silent and protected:
        found.append(
            f"if site {roles.writer} is lost, `trisite failover --to {roles.sync_to}` goes on with all "
            "that was acknowledged"
        )
    for site, report in survey.reports.items():
        if report.roles is not None and report.roles.epoch < roles.epoch:
            found.append(
                f"site {site} is still in epoch {report.roles.epoch}; it learns of {roles.epoch} soon"
            )
        found += [f"site {site}: {fault}" for fault in report.faults]
    found += [
        f"the pair to site {pair.target} was deleted: nothing is copied there and it protects nothing; "
        f"`trisite pair create {pair.source},{pair.target}` copies the difference and forms it again"
        for pair in _pairs(survey, roles, writer)
        if pair.state == State.SIMPLEX
    ]
    found += [
        f"the pair to site {pair.target} is suspended ({pair.reason}): it falls behind until "
        f"`trisite pair resync {pair.source},{pair.target}`"
        for pair in _pairs(survey, roles, writer)
        if pair.state == State.SUSPEND and pair.kind == "async"
    ]
    if not protected:
        found.append(f"the volume is not protected against the loss of site {roles.writer}: {reason}")
    mount = writer.mount if writer is not None else None
    failed = mount is not None and mount.sync_state == State.FAILURE_SUSPEND and not mount.unprotected
    if failed and roles.sync_to is not None:
        found.append(
            f"writes wait for site {roles.sync_to} and then fail (EIO) until it is back; "
            f"start its daemon with `trisite site {roles.sync_to}`, or write with one copy less after "
            f"`trisite pair delete {roles.writer},{roles.sync_to} --force`"
        )
    if mount is not None and mount.unprotected:
        suspended = mount.sync_state == State.SUSPEND
        way_out = f"; `trisite pair resync {roles.writer},{roles.sync_to}` ends that" if suspended else ""
        found.append(
            f"site {roles.writer} writes WITHOUT the sync site, which is behind: {mount.sync_reason}{way_out}"
            if roles.sync_to is not None
            else f"site {roles.writer} writes without a sync site"
        )
    return found
