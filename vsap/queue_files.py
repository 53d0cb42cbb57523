"""What the queue is made of on the host's disk: the LMDB environment, the segments, the condition, the spare
room.
"""

import errno
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias
from uuid import UUID

import lmdb

from jfs.errors import CorruptionError, DeviceError
from vsap.condition import Condition
from vsap.index import (
    DROP_REASONS,
    FORMAT_VERSION,
    READABLE_VERSIONS,
    VOLUME,
    VOLUME_MAGIC,
    State,
    StateDamaged,
)
from vsap.payload import SegmentFiles
from vsap.records import IndexReader

Transaction: TypeAlias = "lmdb.Transaction[bytes]"

SEGMENT_BYTES = 64 << 20
"""A segment file ends before it would be longer."""
SPARE_BYTES = 1 << 20
"""Room kept in a file that is given up when the host's disk is full, so that LMDB can still commit the
drop.
"""
_DAMAGED = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError)


def is_full(error: OSError | lmdb.Error) -> bool:
    """Whether the host's disk, or LMDB's map, has no room left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, lmdb.MapFullError) or error.code in (errno.ENOSPC, errno.EDQUOT)


class _Refusals:
    """See `QueueFiles._refusals`; a class, because a generator would cost as much as what it guards."""

    __slots__ = ("_deed", "_queue")

    def __init__(self, queue: "QueueFiles", deed: str) -> None:
        self._queue = queue
        self._deed = deed

    def __enter__(self) -> None:
        """Nothing to begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, lmdb.Error | OSError):
            raise self._queue._refused(self._deed, error) from error


class QueueFiles:
    """Opens and closes a queue directory, judges after a crash, and reads and writes the state record."""

    def __init__(
        self,
        directory: Path,
        volume: UUID,
        condition: Condition,
        limit_bytes: int,
        segment_bytes: int,
        area: Path | None,
    ) -> None:
        """Use `open`."""
        self.directory = directory
        self.volume = volume
        self.limit_bytes = limit_bytes
        self._segment_bytes = segment_bytes
        self._condition = condition
        self._segments = SegmentFiles(directory / "segments", volume)
        self._environment = self._open_environment()
        self._index = self._environment.open_db(b"index", integerkey=True)
        self._meta = self._environment.open_db(b"meta")
        self._reader = IndexReader(self._environment, self._index, self._segments, area)
        self._next = 1
        self._closed = False

    # --- opening and closing

    @classmethod
    def open(
        cls,
        directory: Path,
        volume: UUID,
        *,
        limit_bytes: int = 8 << 30,
        segment_bytes: int | None = None,
        next_sequence: int = 1,
        area: Path | None = None,
        boot: UUID | None = None,
    ) -> Self:
        """Opens or creates the queue; `next_sequence` numbers the first entry of a new one. `area` is the
        one that its entries write to, and that they may point into.

        After a crash of the host (P4) everything in it is dropped, `state().trusted` is False until
        `acknowledge_loss()`, and numbering goes on behind every sequence that can have been issued. `boot`
        stands in for the host's boot id in tests. CorruptionError: another volume, another format.
        DeviceError: the host refuses.
        """
        segment_bytes = SEGMENT_BYTES if segment_bytes is None else segment_bytes
        condition = Condition.open(directory, volume, boot=boot)
        queue = None
        try:
            lost = "crash" if condition.lost else ""
            if lost:
                cls._clear(directory)
            try:
                queue = cls(directory, volume, condition, limit_bytes, segment_bytes, area)
                queue._check_state()
            except (*_DAMAGED, StateDamaged) as error:
                if queue is not None:
                    queue._segments.close()
                    queue._environment.close()
                    queue = None
                if not condition.alone:
                    raise CorruptionError(f"the index in {directory} is damaged: {error}") from error
                lost = "damaged"
                cls._clear(directory)
                queue = cls(directory, volume, condition, limit_bytes, segment_bytes, area)
            queue._begin(lost, max(next_sequence, condition.ceiling if lost else 1))
        except BaseException as error:
            if queue is not None:
                queue._segments.close()
                queue._environment.close()
            condition.abandon()
            if isinstance(error, lmdb.Error | OSError):
                code = (error.errno if isinstance(error, OSError) else 0) or errno.EIO
                raise DeviceError(code, f"cannot open the queue in {directory}: {error}") from error
            raise
        return queue

    def _check_state(self) -> None:
        """StateDamaged where the state of a queue of this format cannot be believed."""
        with self._environment.begin() as txn:
            stored = txn.get(b"volume", db=self._meta)
            if stored is not None and VOLUME.unpack(stored)[1] in READABLE_VERSIONS:
                self._state(txn)

    @staticmethod
    def _clear(directory: Path) -> None:
        for name in ("index", "segments"):
            shutil.rmtree(directory / name, ignore_errors=True)

    def _open_environment(self) -> lmdb.Environment:
        # The map is address space, not memory: room for an index of nothing but discards, twice.
        return lmdb.open(
            str(self.directory / "index"),
            map_size=max(4 << 30, 2 * self.limit_bytes),
            max_dbs=2,
            max_readers=64,
            sync=False,
            metasync=False,
            writemap=False,
            readahead=False,
            lock=True,
        )

    def _begin(self, lost: str, next_sequence: int) -> None:
        """Reads or makes the state, and lets others in."""
        with self._environment.begin(write=True) as txn:
            stored = txn.get(b"volume", db=self._meta)
            if stored is None:
                self._create(txn, lost, next_sequence)
            else:
                magic, version, volume = VOLUME.unpack(stored)
                if magic != VOLUME_MAGIC or volume != self.volume.bytes:
                    raise CorruptionError(f"{self.directory} is not the queue of volume {self.volume}")
                if version not in READABLE_VERSIONS:
                    raise CorruptionError(
                        f"{self.directory} has format {version}; this program knows {FORMAT_VERSION}"
                    )
                if version != FORMAT_VERSION:
                    self._put_volume(txn)
            state = self._state(txn)
        self._next = state.next_sequence
        self._environment.reader_check()
        alone = self._condition.alone
        if alone:
            self._condition.ceiling = max(self._condition.ceiling, self._next)
        # What a process killed between a commit and its unlink left behind.
        self._segments.remove(
            number
            for number in self._segments.numbers()
            if number < state.first_segment or (alone and number > state.tail_segment)
        )
        self._condition.enter()
        self._keep_spare()

    def _create(self, txn: Transaction, lost: str, next_sequence: int) -> None:
        state = State(next_sequence=next_sequence, oldest_sequence=next_sequence)
        state.eligible_sequence = state.common_flush_sequence = next_sequence - 1
        if lost:
            state.untrusted = 1
            state.dropped_through = next_sequence - 1
            state.drop_reason = DROP_REASONS.index(lost)
        self._put_volume(txn)
        self._put_state(txn, state)

    def _put_volume(self, txn: Transaction) -> None:
        txn.put(b"volume", VOLUME.pack(VOLUME_MAGIC, FORMAT_VERSION, self.volume.bytes), db=self._meta)

    def close(self) -> None:
        """Closes; the last process to close syncs everything and marks the queue clean. Harmless when
        repeated.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._condition.last():
                with self._refusals("close"):
                    self._segments.sync()
                    self._environment.sync(True)
        except BaseException:
            self._condition.abandon()
            raise
        else:
            self._condition.leave()
        finally:
            self._segments.close()
            self._environment.close()

    def _keep_spare(self) -> None:
        """Takes the room that `_make_room` gives up. Without it (disk full) the queue works, with less of a
        margin.
        """
        path = self.directory / "spare"
        try:
            if path.exists() and path.stat().st_blocks * 512 >= SPARE_BYTES:
                return
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SPARE_BYTES)
            finally:
                os.close(fd)
        except OSError:
            path.unlink(missing_ok=True)

    def _refusals(self, deed: str) -> "_Refusals":
        """Turns what LMDB and the host raise meanwhile into a DeviceError."""
        return _Refusals(self, deed)

    def _refused(self, deed: str, error: lmdb.Error | OSError) -> DeviceError:
        if is_full(error):
            return DeviceError(
                errno.ENOSPC, f"cannot {deed} the queue: {self.directory} has no room ({error})"
            )
        return DeviceError(errno.EIO, f"cannot {deed} the queue in {self.directory}: {error}")

    # --- the state record

    def _state(self, txn: Transaction) -> State:
        stored = txn.get(b"state", db=self._meta)
        if stored is None:
            raise StateDamaged(f"the queue in {self.directory} has no state")
        return State.unpack(stored)

    def _put_state(self, txn: Transaction, state: State) -> None:
        txn.put(b"state", state.pack(), db=self._meta)
