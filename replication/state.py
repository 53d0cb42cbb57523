"""What a site must not forget: volume, roles and their history, pair states, facts about the writer.

One small LMDB environment, `state/`, synced at every change (rare: a hello, an epoch, a pair's state). The
daemon of the site and the mount process open it at the same time; LMDB lets both read and either write.
Every value but `format` is JSON behind a checksum of it and its key: an epoch with a flipped bit would let
the wrong site write.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeVar
from uuid import UUID

import lmdb
import msgspec
import xxhash

from replication.config import SiteName
from replication.pair import Kind, State
from replication.roles import Roles, should_adopt

MAP_BYTES: Final = 64 << 20
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

FORMAT_VERSION: Final = 2
KEY_FORMAT: Final = b"format"
KEY_IDENTITY: Final = b"identity"
KEY_ROLES: Final = b"roles"
KEY_NEWEST_KNOWN: Final = b"newest-known"
KEY_TAKE_OVER: Final = b"take-over"
KEY_LEVEL: Final = b"level"
KEY_TOLD: Final = b"told"
KEY_PREPARED: Final = b"prepared"
KEY_INCARNATION: Final = b"incarnation"
KEY_HELD: Final = b"held"
KEY_BLANK: Final = b"blank"
PREFIX_HISTORY: Final = b"history/"
PREFIX_PAIR: Final = b"pair/"
PREFIX_DOUBT: Final = b"doubt/"
PREFIX_EVENT: Final = b"event/"
KEYS: Final = frozenset(
    {
        KEY_FORMAT,
        KEY_IDENTITY,
        KEY_ROLES,
        KEY_NEWEST_KNOWN,
        KEY_TAKE_OVER,
        KEY_LEVEL,
        KEY_TOLD,
        KEY_PREPARED,
        KEY_INCARNATION,
        KEY_HELD,
        KEY_BLANK,
    }
)
PREFIXES: Final = (PREFIX_HISTORY, PREFIX_PAIR, PREFIX_DOUBT, PREFIX_EVENT)
SEAL_BYTES: Final = 16
MOST_EVENTS: Final = 1000
"""Transitions that are kept; the oldest go first."""

PairKind = Literal["sync", "async"]
T = TypeVar("T")


class StateError(Exception):
    """The state of a site cannot be read or written; the argument is one sentence."""


class VolumeIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The volume that lives at this site; `size_bytes` never changes after mkfs."""

    uuid: UUID
    name: str
    size_bytes: int


class PairRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one pair as this end knows it, since when (Unix ns), why, and in which epoch.

    Whether a record is of the present is told by its epoch: a clock may have been put right since.
    """

    kind: PairKind
    source: SiteName
    target: SiteName
    state: str
    since: int
    reason: str
    epoch: int = 0


def why_alone(records: Iterable[PairRecord], site: str, epoch: int) -> str | None:
    """Why `site`, the writer of `epoch`, acknowledges without site sync by its own records; None where it
    does not. Site sync need not know: the pair may have been suspended or deleted with --force.
    """
    for pair in records:
        is_ours = (pair.kind, pair.source, pair.target) == (Kind.SYNC, site, "sync")
        if is_ours and pair.epoch == epoch and pair.state in {State.SUSPEND, State.SIMPLEX}:
            done = "suspended" if pair.state == State.SUSPEND else "deleted"
            return f"site {site} goes on alone, its pair to site sync was {done} ({pair.reason})"
    return None


class PairEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of a pair as this end made it: `event` of the table (empty: not known) and why.

    `number` rises by one with every transition at this end; `at` is in Unix nanoseconds.
    """

    number: int
    at: int
    kind: PairKind
    source: SiteName
    target: SiteName
    before: str
    state: str
    event: str
    reason: str


class TakeOverRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How this site became the writer, kept so that a repeated promotion reports the same facts."""

    epoch: int
    start_sequence: int
    lost: int | None
    sentence: str
    copied_bytes: int | None = None
    listed_files: int | None = None
    listed_bytes: int | None = None
    as_of_ns: int = 0


class LevelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """At a returning site, once its own writes are kept: the writer of `epoch` may level it.

    `ranges` are where it may differ; `everything`: it cannot know, all blocks are compared.
    """

    epoch: int
    ranges: list[tuple[int, int]]
    everything: bool
    quarantine: str | None
    quarantined_bytes: int
    reason: str


def sealed(key: bytes, text: bytes) -> bytes:
    """`text` as it is kept under `key`: behind the checksum of both, in hexadecimal."""
    return xxhash.xxh3_64_hexdigest(key + text).encode() + text


def unsealed(key: bytes, value: bytes) -> bytes:
    """What was sealed; ValueError where it is not what was put under this key."""
    text = value[SEAL_BYTES:]
    if sealed(key, text) != value:
        raise ValueError("its checksum is wrong")
    return text


def boot_id() -> str:
    """The identity of this boot of the host: what was not synced survives a process but not a boot."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


class SiteState:
    """The durable state of one site; a method that writes returns when the change is on stable storage."""

    def __init__(self, directory: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        """Open (and make) the environment in `directory`; StateError if that cannot be done."""
        self._now_ns = now_ns
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._environment = lmdb.open(str(directory), map_size=MAP_BYTES, sync=True, metasync=True)
        except (OSError, lmdb.Error) as error:
            raise StateError(f"the state in {directory} cannot be opened: {error}") from error
        version = self._get(KEY_FORMAT, int)
        if version is not None and version != FORMAT_VERSION:
            self.close()
            age = "newer" if version > FORMAT_VERSION else "older"
            raise StateError(
                f"the state in {directory} has format version {version}; this program knows version "
                f"{FORMAT_VERSION}: use the {age} trisite that wrote it"
            )
        try:
            self._check()
        except StateError:
            self.close()
            raise

    def _check(self) -> None:
        """StateError where a record is damaged, or missing: a lost key would read as "there was none"."""
        with self._reading(b"the list of keys"), self._environment.begin() as transaction:
            found = {bytes(key): bytes(value) for key, value in transaction.cursor()}
        for key, value in found.items():
            with self._reading(key):
                if key not in KEYS and not key.startswith(PREFIXES):
                    raise ValueError("there is no such record")
                if key != KEY_FORMAT:
                    unsealed(key, value)
        core = {KEY_FORMAT, KEY_IDENTITY, KEY_ROLES}
        if core & found.keys() and not core <= found.keys():
            raise StateError("the state of this site is damaged: the volume or its roles are not on record")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the environment; harmless when repeated."""
        self._environment.close()

    def _get(self, key: bytes, kind: type[T]) -> T | None:
        with self._reading(key), self._environment.begin() as transaction:
            value = transaction.get(key)
            if value is None:
                return None
            text = bytes(value) if key == KEY_FORMAT else unsealed(key, bytes(value))
            return msgspec.json.decode(text, type=kind)

    def _all(self, prefix: bytes, kind: type[T]) -> list[T]:
        """What is kept under `prefix`, in the order of the keys."""
        found: list[T] = []
        with self._reading(prefix), self._environment.begin() as transaction, transaction.cursor() as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not bytes(key).startswith(prefix):
                        break
                    found.append(msgspec.json.decode(unsealed(bytes(key), bytes(value)), type=kind))
        return found

    @contextmanager
    def _reading(self, what: bytes) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, msgspec.MsgspecError, ValueError) as error:
            name = what.decode(errors="backslashreplace")
            raise StateError(f"the state of this site is damaged at {name!r}: {error}") from error

    def _put(self, key: bytes, value: object) -> None:
        self._put_all({key: value})

    def _put_all(self, values: dict[bytes, object]) -> None:
        with self._writing() as transaction:
            for key, value in values.items():
                if value is None:
                    transaction.delete(key)
                else:
                    text = msgspec.json.encode(value)
                    transaction.put(key, text if key == KEY_FORMAT else sealed(key, text))

    @contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction]:
        """One change: on stable storage when the body has ended, or not made."""
        try:
            with self._environment.begin(write=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise StateError(f"the state of this site cannot be written: {error}") from error

    @property
    def identity(self) -> VolumeIdentity | None:
        """The volume of this site, or None before mkfs."""
        return self._get(KEY_IDENTITY, VolumeIdentity)

    @property
    def roles(self) -> Roles | None:
        """The roles of the newest epoch this site knows, or None before mkfs."""
        return self._get(KEY_ROLES, Roles)

    def create(self, identity: VolumeIdentity, roles: Roles, *, blank: bool = False) -> None:
        """Begin a new volume: forget whatever volume was here. `blank`: the epoch has begun elsewhere."""
        with self._environment.begin() as transaction:
            keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
        # In one transaction: where the host refuses it, the site still has what it had.
        fresh: dict[bytes, object] = dict.fromkeys(keys)
        fresh |= {KEY_FORMAT: FORMAT_VERSION, KEY_IDENTITY: identity, KEY_ROLES: roles}
        fresh |= {KEY_BLANK: True} if blank else {}
        self._put_all(fresh | {_history_key(roles.epoch): _bare(roles)})

    @property
    def began_blank(self) -> bool:
        """Whether the volume was there already when this site was made."""
        return bool(self._get(KEY_BLANK, bool))

    def adopt(self, roles: Roles) -> bool:
        """Take over `roles` if their epoch is higher than the own one; whether they were taken over."""
        if not should_adopt(self.roles, roles):
            return False
        self._put_all({KEY_ROLES: roles, _history_key(roles.epoch): _bare(roles)})
        return True

    def history(self) -> list[Roles]:
        """The roles of every epoch this site has seen, oldest first; without the ancestors."""
        return self._all(PREFIX_HISTORY, Roles)

    def epoch_starts(self) -> list[tuple[int, int]]:
        """`(epoch, last sequence before it)` of every epoch of the present history, oldest first.

        What another writer of the same number wrote, and this site saw, is none of it.
        """
        roles = self.roles
        if roles is None:
            return []
        line = {one.epoch: one.start_sequence for one in roles.line()}
        early = {one.epoch: one.start_sequence for one in self.history() if one.epoch < min(line)}
        return sorted((early | line).items())

    def pairs(self) -> list[PairRecord]:
        """The pairs this site has an end of, with state, time and reason of the last change."""
        return self._all(PREFIX_PAIR, PairRecord)

    def set_pair(
        self, kind: PairKind, source: SiteName, target: SiteName, state: str, reason: str, event: str = ""
    ) -> PairRecord:
        """Record a pair's state; the time changes only when the state does, and that is kept as an event."""
        key = PREFIX_PAIR + f"{kind}/{source}/{target}".encode()
        old, roles = self._get(key, PairRecord), self.roles
        epoch = roles.epoch if roles is not None else 0
        if old is not None and (old.state, old.reason, old.epoch) == (state, reason, epoch):
            return old
        before = old.state if old is not None else ""
        stays = old is not None and (old.state, old.epoch) == (state, epoch)
        since = old.since if old is not None and stays else self._now_ns()
        record = PairRecord(
            kind=kind, source=source, target=target, state=state, since=since, reason=reason, epoch=epoch
        )
        if before == state:
            self._put(key, record)
            return record
        with self._writing() as transaction:
            number = _newest_number(transaction) + 1
            happened = PairEvent(
                number=number,
                at=since,
                kind=kind,
                source=source,
                target=target,
                before=before,
                state=state,
                event=event,
                reason=reason,
            )
            for place, value in ((key, record), (_event_key(number), happened)):
                transaction.put(place, sealed(place, msgspec.json.encode(value)))
            transaction.delete(_event_key(number - MOST_EVENTS))
        return record

    def events(self, after: int, most: int) -> list[PairEvent]:
        """At most `most` transitions of the pairs this site has an end of, with a later number, in order."""
        first = _event_key(max(after, 0) + 1)
        found: list[PairEvent] = []
        with self._reading(PREFIX_EVENT), self._environment.begin() as transaction:
            cursor = transaction.cursor()
            if cursor.set_range(first):
                for key, value in cursor:
                    if not bytes(key).startswith(PREFIX_EVENT) or len(found) == most:
                        break
                    found.append(msgspec.json.decode(unsealed(bytes(key), bytes(value)), type=PairEvent))
        return found

    @property
    def newest_event(self) -> int:
        """The number of the last transition on record; 0: there was none."""
        with self._reading(PREFIX_EVENT), self._environment.begin() as transaction:
            return _newest_number(transaction)

    @property
    def newest_known(self) -> int:
        """The newest sequence this site ever heard of; what it lacks below that is known missing."""
        return self._get(KEY_NEWEST_KNOWN, int) or 0

    def note_newest(self, sequence: int) -> None:
        """Remember that the writer had written up to `sequence`."""
        if sequence > self.newest_known:
            self._put(KEY_NEWEST_KNOWN, sequence)

    @property
    def take_over(self) -> TakeOverRecord | None:
        """How this site took over in its newest epoch as the writer, or None."""
        return self._get(KEY_TAKE_OVER, TakeOverRecord)

    def set_take_over(self, record: TakeOverRecord) -> None:
        """Keep the facts of a take-over and of its recovery copy."""
        self._put(KEY_TAKE_OVER, record)

    @property
    def level(self) -> LevelRecord | None:
        """The preparation of this returning site to be levelled, or None."""
        return self._get(KEY_LEVEL, LevelRecord)

    def set_level(self, record: LevelRecord | None) -> None:
        """Begin, change or (None) end being brought level."""
        self._put(KEY_LEVEL, record)

    def doubted(self, site: SiteName) -> bool:
        """Whether everything in use must be compared with `site` in this epoch: see `doubt`."""
        roles = self.roles
        return roles is not None and self._get(_doubt_key(site), int) == roles.epoch

    def doubt(self, site: SiteName, epoch: int) -> None:
        """A crash of this host lost writes that `site` may have, and the records that name them (P4)."""
        self._put(_doubt_key(site), epoch)

    def settle(self, site: SiteName) -> None:
        """The comparison with `site` is complete; nothing is written where it was not in doubt."""
        if self._get(_doubt_key(site), int) is not None:
            self._put(_doubt_key(site), None)

    @property
    def told(self) -> bool:
        """Whether the sync site knows that the writer of this epoch may go on without it."""
        roles = self.roles
        return roles is not None and self._get(KEY_TOLD, int) == roles.epoch

    def set_told(self, epoch: int, told: bool) -> None:
        """Remember what the sync site was told last, in `epoch`."""
        self._put(KEY_TOLD, epoch if told else 0)

    @property
    def prepared_epoch(self) -> int:
        """The epoch for which this site's queue, record and journal were set up; 0: none."""
        return self._get(KEY_PREPARED, int) or 0

    def set_prepared_epoch(self, epoch: int) -> None:
        """The parts of this site stand where the roles of `epoch` want them."""
        self._put(KEY_PREPARED, epoch)

    @property
    def seen_incarnation(self) -> str | None:
        """The incarnation of the received record that this site saw last, or None."""
        return self._get(KEY_INCARNATION, str)

    def set_seen_incarnation(self, incarnation: str) -> None:
        """Remember the incarnation; nothing is written while it stays."""
        if self.seen_incarnation != incarnation:
            self._put(KEY_INCARNATION, incarnation)

    @property
    def held_epoch(self) -> int:
        """The epoch in which this site is not mounted again, because it is being handed over; 0: none."""
        return self._get(KEY_HELD, int) or 0

    def set_held_epoch(self, epoch: int) -> None:
        """Hold the site in `epoch`, or (0) let it be mounted again."""
        self._put(KEY_HELD, epoch)


def _doubt_key(site: SiteName) -> bytes:
    return PREFIX_DOUBT + site.encode()


def _event_key(number: int) -> bytes:
    return PREFIX_EVENT + max(number, 0).to_bytes(8, "big")


def _newest_number(transaction: lmdb.Transaction) -> int:
    """The number in the last key of the events; 0 where there are none."""
    cursor = transaction.cursor()
    found = cursor.prev() if cursor.set_range(PREFIX_EVENT + b"\xff" * 9) else cursor.last()
    key = bytes(cursor.key()) if found else b""
    return int.from_bytes(key[len(PREFIX_EVENT) :], "big") if key.startswith(PREFIX_EVENT) else 0


def _bare(roles: Roles) -> Roles:
    """Without the ancestors, which are in the history themselves: it would grow with the square of it."""
    return msgspec.structs.replace(roles, ancestors=())


def _history_key(epoch: int) -> bytes:
    return PREFIX_HISTORY + epoch.to_bytes(8, "big")
