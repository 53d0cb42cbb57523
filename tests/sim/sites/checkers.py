"""What must hold at every step, judged from outside: the stream, the state of D, epochs, Duplex.

The stream is recorded where it is entered in the queue. At a change of the writer, and where a power cut has
emptied the queue, it goes on from what the writer's area really holds at that moment (`rebase`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import replication.shipper
from jfs.device import FileDevice
from jfs.errors import CorruptionError, DeviceError
from jfs.layout import SUPERBLOCK_SLOTS
from jfs.listing import read_listing
from replication.config import SiteName
from replication.procedures import commands
from replication.procedures.plan import Plan, Survey
from replication.procedures.results import FailoverResult, ProcedureRefused
from replication.roles import Roles, role_of
from replication.set_receiver import SetReceiver
from replication.state import SiteState
from replication.sync_receiver import SyncReceiver
from replication.sync_session import SyncSession
from tests.sim.sites.cluster import Cluster
from tests.sim.sites.host import PROCESS, Process
from tests.sim.sites.world import VOLUME_BYTES
from vsap.area import FileArea
from vsap.entry import DISCARD, WRITE, Entry
from vsap.pointers import Pointers
from vsap.pointing import PointingQueue
from vsap.queue import EntryQueue
from vsap.virtual import VirtualArea

BLOCK = 4096
ZERO = bytes(BLOCK)
UNKNOWN = 3
"""The code of a command that does not know whether a site did what it was told to."""
BLOCKS = VOLUME_BYTES // BLOCK


class Epoch:
    """The writes of one epoch, by block."""

    def __init__(self, parent: int, start: int) -> None:
        self.parent = parent
        self.start = start
        self.blocks: dict[int, tuple[list[int], list[bytes]]] = {}
        self.touched: dict[int, range] = {}

    def put(self, sequence: int, block: int, data: bytes) -> None:
        """The content of a block from a sequence on."""
        sequences, contents = self.blocks.setdefault(block, ([], []))
        while sequences and sequences[-1] > sequence:
            sequences.pop()  # was issued by a process that died before anybody had it
            contents.pop()
        sequences.append(sequence)
        contents.append(data)


class History:
    """Content of every block at every position, in every epoch."""

    def __init__(self, areas: Callable[[str], bytes]) -> None:
        self._areas = areas
        self.epochs: dict[int, Epoch] = {}

    def begin(self, epoch: int, parent: int, start: int) -> None:
        """A new epoch, that goes on after `start` of its parent."""
        self.epochs.setdefault(epoch, Epoch(parent, start))

    def add(self, epoch: int, entry: Entry) -> None:
        """An entry of the stream."""
        if entry.kind not in (WRITE, DISCARD):
            return
        found = self.epochs[epoch]
        first = entry.offset // BLOCK
        blocks = range(first, first + entry.length // BLOCK)
        found.touched[entry.sequence] = blocks
        for block in blocks:
            at = (block - first) * BLOCK
            found.put(entry.sequence, block, entry.payload[at : at + BLOCK] if entry.kind == WRITE else ZERO)

    def rebase(self, epoch: int, sequence: int, area: bytes) -> int:
        """From here on the stream is what the writer's area holds; how many blocks are not as recorded."""
        count = 0
        for block in range(BLOCKS):
            data = area[block * BLOCK : (block + 1) * BLOCK]
            if data not in self.contents(epoch, sequence, block):
                self.epochs[epoch].put(sequence, block, data)
                count += 1
        return count

    def contents(self, epoch: int, sequence: int, block: int) -> list[bytes]:
        """What the block may hold at a position: one content, or two where the stream was rebased there."""
        found = self.epochs.get(epoch)
        if found is None:
            return [ZERO]
        sequences, contents = found.blocks.get(block, ([], []))
        place = bisect_right(sequences, sequence)
        if not place:
            return self.contents(found.parent, min(sequence, found.start), block)
        if sequences[place - 1] < sequence:
            return [contents[place - 1]]
        allowed = [data for at, data in zip(sequences, contents, strict=True) if at == sequence]
        before = place - len(allowed)
        if before:
            return [*allowed, contents[before - 1]] if sequence not in found.touched else allowed
        if sequence in found.touched:
            return allowed
        return [*allowed, *self.contents(found.parent, min(sequence, found.start), block)]


class Checkers:
    """Watches a cluster; a broken promise is a violation of the run."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.history = History(self.area)
        self.history.begin(1, 0, 0)
        self.epoch: dict[str, int] = dict.fromkeys(self.world.hosts, 1)
        self.roles: dict[int, Roles] = {}
        self.dirty: dict[str, set[int]] = {name: set() for name in self.world.hosts}
        self.receivers: dict[str, tuple[SyncReceiver, Process]] = {}
        self.checked = 0
        self.dropped_through = 0
        self.position = (0, 0)
        self.allowed: dict[int, int] = {}
        """How far the far site may be (P1), by epoch: what C had, or what the writer had without it."""
        self.accepting = 0
        """Operators who accept loss just now."""
        self.commands: Counter[SiteName] = Counter()
        """Commands under way that make a site the writer."""
        self.unknown: dict[tuple[int, SiteName], bool] = {}
        """(epoch, writer) of commands that nobody knows to have failed, and whether they accepted loss."""
        self.only_strangers: set[int] = set()
        """Epochs that commands asked for to which no site of this volume had answered."""
        self.began: set[int] = set()
        """Epochs whose writer has its roles on record."""
        self.lossy: set[int] = set()
        """Epochs that began with loss accepted."""
        self.older: set[str] = set()
        """Sites that were set back, until the writer has them level again."""
        self.pairs: dict[tuple[str, str, str], str] = {}
        cluster.superseded = self.superseded

    def begin(self) -> None:
        """Before the first process: all sites hold the template's stream."""
        self.history.rebase(1, 0, self.area("primary"))

    def superseded(self, epoch: int, sequence: int, unprotected: bool) -> bool:
        """Whether an acknowledgement does not count, because a newer epoch goes on without that write."""
        for number, roles in sorted(self.roles.items()):
            if number > epoch and sequence > roles.start_sequence and number in self.began:
                excused = unprotected or any(epoch < lossy <= number for lossy in self.lossy)
                if not excused and sequence < 1 << 62:
                    self.cluster.violate(
                        f"the writer of epoch {epoch} acknowledged sequence {sequence}, while epoch {number} "
                        f"began after {roles.start_sequence}"
                    )
                return True
        return False

    @contextmanager
    def command(self, to: SiteName, *, accept_loss: bool = False) -> Iterator[list[object]]:
        """Around a command that makes a site the writer; its outcome is to be put in the list.

        Until it says that nothing was done, or what was, the epoch it asked for may begin at any time.
        """
        newest = max(self.roles, default=1)
        outcome: list[object] = []
        self.commands[to] += 1
        if to == "async":
            self.commands["sync"] += 1  # it may go by the sync site
        self.accepting += accept_loss
        yield outcome
        self.accepting -= accept_loss
        self.commands[to] -= 1
        if to == "async":
            self.commands["sync"] -= 1
        (said,) = outcome
        if said is None or (isinstance(said, ProcedureRefused) and said.code == UNKNOWN):
            writers: tuple[SiteName, ...] = ("sync", "async") if to == "async" else (to,)
            for writer in writers:
                for epoch in (newest + 1, newest + 2):
                    self.unknown[epoch, writer] = accept_loss or self.unknown.get((epoch, writer), False)

    def writes_nothing(self, site: str) -> bool:
        """Whether a site is not the writer of any roles that may still be in force."""
        own = self.roles.get(self.epoch[site])
        newest = self.roles[max(self.roles)] if self.roles else None
        return site != (own.writer if own else "primary") and site != (newest.writer if newest else "primary")

    def rolled_back(self, site: SiteName, epoch: int) -> None:
        """A site is what it was in an earlier moment: what it was told since is not to be expected of it."""
        self.older.add(site)
        self.epoch[site] = epoch
        self.position = (0, 0)
        self.dirty[site] = set(range(BLOCKS))

    def took_over(self, result: FailoverResult, *, believed: bool) -> None:
        """A command says what was lost; `believed`: if it says nothing, then nothing may be lost."""
        self.cluster.counts[f"take-over at {result.writer}, lost {result.lost}"] += 1
        if believed and result.lost == 0 and self.lossy == {result.epoch} and result.writer not in self.older:
            self.lossy.discard(result.epoch)
            self.cluster.files.loss_accepted = False

    def pairs_now(self, writer: str) -> dict[str, str]:
        """The states of the pairs of the newest roles, by target."""
        roles = self.roles[max(self.roles)] if self.roles else None
        targets = (
            {"sync": roles.sync_to, "async": roles.async_to} if roles else {"sync": "sync", "async": "async"}
        )
        return {
            target: self.pairs.get((kind, writer, target), "unknown")
            for kind, target in targets.items()
            if target is not None
        }

    def area(self, site: str) -> bytes:
        """The area of a site as it is."""
        return (self.world.directory / site / "area").read_bytes()

    @staticmethod
    def here() -> SiteName:
        """The machine on whose behalf this runs."""
        process = PROCESS.get()
        assert process is not None
        return process.host.name

    def is_stranger(self, site: SiteName, what: str) -> bool:
        """Whether the daemon of another volume did something there: a violation, unless for its like."""
        strangers = [host for host in self.world.hosts.values() if host.stranger]
        if self.world.hosts[site].stranger and len(strangers) == 1:
            self.cluster.violate(f"the daemon of another volume at site {site} {what}")
        return self.world.hosts[site].stranger

    def planned(self, plan: Plan, survey: Survey) -> None:
        """A command has looked at the sites, and made its plan."""
        if all(self.world.hosts[site].stranger for site in survey.reports):
            self.only_strangers.add(plan.roles.epoch + 1)

    # --- what the product does

    def adopted(self, roles: Roles) -> None:
        """A site has new roles on record."""
        site = self.here()
        if self.world.hosts[site].stranger and roles.epoch in self.only_strangers:
            self.cluster.counts["another volume promoted, where nobody else answered"] += 1
            return
        if self.is_stranger(site, f"took part in epoch {roles.epoch}"):
            return
        named = (roles.epoch, roles.writer)
        if roles.epoch not in self.roles and not self.commands[roles.writer] and named not in self.unknown:
            self.cluster.violate(
                f"{site} begins epoch {roles.epoch} of {roles.writer}, and no command waits for it"
            )
        known = self.roles.setdefault(roles.epoch, roles)
        if known.writer != roles.writer or known.start_sequence != roles.start_sequence:
            self.cluster.violate(f"two writers of epoch {roles.epoch}: {known} and {roles}")
        parent = max((number for number in self.history.epochs if number < roles.epoch), default=0)
        if roles.writer == site:
            parent = self.epoch[site]
        self.history.begin(roles.epoch, parent, roles.start_sequence)
        self.may_follow(roles.epoch, roles.start_sequence)
        if roles.writer == site:
            self.began.add(roles.epoch)
            if self.accepting or site in self.older or self.unknown.get(named):
                self.lossy.add(roles.epoch)
                self.cluster.files.loss_accepted = True
        self.epoch[site] = roles.epoch
        self.world.note(f"{site} adopts epoch {roles.epoch}: {roles.writer} from {roles.start_sequence}")
        self.cluster.counts[f"epoch: {roles.writer} writes, {site} {role_of(roles, site)}"] += 1

    def loss_acknowledged(self, queue: EntryQueue) -> None:
        """A queue begins: with an epoch, or after a power cut."""
        site = self.here()
        if self.world.hosts[site].stranger:
            return  # what is written there is none of this volume's stream
        state = queue.state()
        changed = self.history.rebase(self.epoch[site], state.next_sequence - 1, self.area(site))
        # Where a crash emptied the queue, D is compared with the writer at once: it may be ahead of C by what
        # the writer alone still had, which nobody was told is safe; a take-over at C compares both again.
        self.may_follow(self.epoch[site], state.next_sequence - 1)
        self.world.note(f"{site} queue begins at {state.next_sequence}, {changed} blocks rebased")
        self.cluster.counts["rebased" if changed else "queue begun"] += 1

    def entered(self, queue: EntryQueue, entries: Iterable[Entry]) -> None:
        """Entries are in the queue."""
        epoch = self.epoch_of_mount()
        for entry in entries:
            self.history.add(epoch, entry)
        state = queue.state()
        if state.dropped_through > self.dropped_through and state.drop_reason == "damaged":
            self.lost_payloads()
        if state.dropped_through > self.dropped_through and state.drop_reason in ("limit", "full"):
            self.cluster.counts[f"queue dropped: {state.drop_reason}"] += 1
        self.dropped_through = state.dropped_through

    def epoch_of_mount(self) -> int:
        """The epoch in which the mount process of this machine writes."""
        return self.cluster.mount_epoch[self.here()]

    def pair_set(self, kind: str, source: str, target: str, state: str) -> None:
        """An end of a pair has a new state on record."""
        site = self.here()
        if self.world.hosts[site].stranger:
            return  # what a volume that was left alone thinks of its own pairs
        if self.pairs.get((kind, source, target)) == state:
            return
        self.pairs[kind, source, target] = state
        self.cluster.counts[f"pair {kind} {state}"] += 1
        self.world.note(f"{site} pair {kind} {state}")
        if state == "Duplex":
            self.older.discard(target)
        if kind == "sync" and state == "Duplex" and target in self.receivers:
            receiver, daemon = self.receivers[target]
            if daemon.dead:
                return  # while the answer was on its way; its machine may be what it was before by now
            received = receiver.received_sequence
            # The mount process brought it level, and may not have heard yet of the epoch its site knows.
            epoch = self.cluster.mount_epoch.get(source, self.epoch[site])
            self.compare(target, epoch, received, range(BLOCKS), "sync pair Duplex")

    def applied(self, receiver: SetReceiver, last: Any) -> None:  # noqa: ANN401
        """Sets were applied; D must be a state of the past."""
        site = self.here()
        if self.is_stranger(site, "applied sets"):
            return
        roles = self.roles.get(self.epoch[site])
        level = roles is not None and role_of(roles, site) == "away"
        dirty, self.dirty[site] = self.dirty[site], set()
        if receiver._unapplied or level:
            self.dirty[site] = dirty
            return
        position = last.head.after
        before, self.position = self.position, (position.epoch, position.sequence)
        self.checked += 1
        waits = roles is None or roles.sync_to is not None
        if (
            waits
            and position.epoch == self.epoch[site]
            and position.sequence > self.allowed.get(position.epoch, 0)
        ):
            self.cluster.violate(
                f"site {site} is at {position.sequence} in epoch {position.epoch}, and site sync had "
                f"{self.allowed.get(position.epoch, 0)} at most"
            )
        blocks: Iterable[int]
        follows = before[0] == position.epoch and 0 <= position.sequence - before[1] < 200
        if follows and self.checked % 20:
            touched = (
                self.history.epochs[position.epoch].touched if position.epoch in self.history.epochs else {}
            )
            for sequence in range(before[1] + 1, position.sequence + 1):
                dirty.update(touched.get(sequence, ()))
            blocks = sorted(dirty)
        else:
            blocks = range(BLOCKS)
        self.compare(site, position.epoch, position.sequence, blocks, "applied sets")

    def compare(self, site: str, epoch: int, sequence: int, blocks: Iterable[int], why: str) -> None:
        """An area against the stream at a position; blocks that its file system does not use may differ."""
        path = self.world.directory / site / "area"
        with path.open("rb") as file:
            wrong = []
            for block in blocks:
                file.seek(block * BLOCK)
                if file.read(BLOCK) not in self.history.contents(epoch, sequence, block):
                    wrong.append(block)
        self.cluster.counts["compared"] += 1
        if wrong:
            used = self.allocated(site)
            bad = [block for block in wrong if block in used]
            if bad:
                self.cluster.violate(
                    f"site {site} is not the stream at ({epoch}, {sequence}) after {why}: blocks {bad[:8]}"
                )

    def allocated(self, site: str) -> set[int]:
        """The blocks that the file system in an area uses.

        Not those that only a batch vouches for that does not count, because they hold something else.
        """
        token = PROCESS.set(None)
        try:
            device = FileDevice(self.world.directory / site / "area", read_only=True)
            try:
                listing = read_listing(device)
                runs = [*listing.allocated_runs(), *((block, 1) for block in SUPERBLOCK_SLOTS)]
            finally:
                device.close()
        except (CorruptionError, DeviceError) as error:
            self.cluster.violate(f"the file system at {site} cannot be read: {error}")
            return set()
        finally:
            PROCESS.reset(token)
        return {block for start, count in runs for block in range(start, start + count)}

    def gathered(self) -> None:
        """What was left of a long queue went as one set."""
        self.cluster.counts["long queue gathered"] += 1

    def given_up(self, pointed: int) -> None:
        """The entries of a segment point into the area now."""
        self.cluster.counts["entries that point into the area"] += pointed

    def saved(self, entries: int) -> None:
        """What entries pointed to was written over."""
        self.cluster.counts["entries saved before they were written over"] += entries

    def lost_payloads(self) -> None:
        """A shipper could not read what is in its queue; no disk of this world rots."""
        self.cluster.violate(f"payloads of the queue at {self.here()} are lost")

    def may_follow(self, epoch: int, sequence: int) -> None:
        """Entries up to here may be shipped."""
        self.allowed[epoch] = max(sequence, self.allowed.get(epoch, 0))

    def progressed(self, device: VirtualArea) -> None:
        """The writer looked at what C has."""
        remote = device._remote
        if remote is None or remote.unprotected:
            self.may_follow(self.epoch[self.here()], device._pushed)

    def wrote(self, area: FileArea, offset: int, length: int) -> None:
        """An area was written."""
        site = area.path.parent.name
        if site in self.dirty:
            self.dirty[site].update(range(offset // BLOCK, (offset + length) // BLOCK))


@contextmanager
def watching(checkers: Checkers) -> Iterator[None]:
    """Tell the checkers of what the product does, after it has done it."""

    def after(owner: object, name: str, tell: Callable[..., None]) -> None:
        real = getattr(owner, name)
        replaced.append((owner, name, real))

        @wraps(real)
        def told(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            result = real(*arguments, **named)
            tell(result, *arguments, **named)
            return result

        setattr(owner, name, told)

    replaced: list[tuple[object, str, Any]] = []
    after(commands, "plan_failover", lambda plan, survey, *a, **k: checkers.planned(plan, survey))
    after(SiteState, "adopt", lambda done, _, roles: checkers.adopted(roles) if done else None)
    after(EntryQueue, "acknowledge_loss", lambda _, queue: checkers.loss_acknowledged(queue))
    after(EntryQueue, "append_batch", lambda _, queue, entries, *a, **k: checkers.entered(queue, entries))
    after(EntryQueue, "drop", lambda *_: checkers.lost_payloads())
    after(Pointers, "take", lambda _, self, standing: checkers.given_up(len(standing)))
    after(PointingQueue, "_overwritten", lambda found, *_: checkers.saved(len(found)))
    # Of a shipper; a difference copy gathers too, and asks for no marker.
    after(replication.shipper, "marker_of", lambda *_: checkers.gathered())
    after(SetReceiver, "_apply_sets", lambda _, self, batch, *more: checkers.applied(self, batch[-1]))
    after(FileArea, "write", lambda _, self, offset, data: checkers.wrote(self, offset, len(data)))
    after(
        FileArea,
        "write_many",
        lambda _, self, offset, buffers: checkers.wrote(self, offset, sum(map(len, buffers))),
    )
    after(FileArea, "discard", lambda _, self, offset, length: checkers.wrote(self, offset, length))

    def paired(
        _: Any,  # noqa: ANN401
        self: SiteState,
        kind: str,
        source: str,
        target: str,
        state: str,
        *more: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> None:
        del self, more, named
        if source == checkers.here():
            checkers.pair_set(kind, source, target, state)

    after(SiteState, "set_pair", paired)

    def made(_: None, self: SyncReceiver, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        process = PROCESS.get()
        assert process is not None
        checkers.receivers[checkers.here()] = self, process

    after(SyncReceiver, "__init__", made)

    def received(_: Any, self: SyncSession, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        checkers.is_stranger(checkers.here(), "took writes")
        checkers.may_follow(self._epoch, self._stream)

    after(SyncSession, "_advance", received)
    after(SyncSession, "_answer_flush", received)
    after(VirtualArea, "_on_progress", lambda _, self: checkers.progressed(self))
    try:
        yield
    finally:
        for owner, name, real in reversed(replaced):
            setattr(owner, name, real)
