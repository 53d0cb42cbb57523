"""The store: items and blocks under one file system, atomic and durable by commit.

Everything that does not wait is plain synchronous code, so between two awaits the state is consistent.
"""

import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import trio

from jfs.checkpoint import Checkpoint
from jfs.commit import (
    Housekeeping,
    checkpoint_housekeeping,
    issue_changes,
    issue_intent,
    ripe_names,
)
from jfs.device import BLOCK_BYTES, BlockDevice, Buffer
from jfs.errors import DeviceError, FileSystemError, NoSpace
from jfs.in_place import QuickLock
from jfs.layout import LOG_INO, VALUE_LIMIT_BYTES, Superblock
from jfs.log import LogFull
from jfs.mkfs import FIRST_SEGMENTS
from jfs.quiet_log import QuietLog
from jfs.replay import attach_log, load_volume
from jfs.runs import Run
from jfs.store_options import COARSEN, WAIT, LogStatus, Statistics, StoreOptions
from jfs.tree import Item
from jfs.volume import Changes, Volume
from jfs.vouchers import Voucher, Vouchers

__all__ = ["COARSEN", "WAIT", "LogStatus", "Statistics", "Store", "StoreOptions"]

faults = QuietLog(logging.getLogger(__name__))
TICK_SECONDS = 0.5
ROOM_TRIES = 8
WAIT_SECONDS = 1.0
ITEM_BYTES = 256  # of an inode in the log, about


class _Round:
    """One commit that several callers share."""

    def __init__(self) -> None:
        self.led = False
        self.waiting = trio.lowlevel.ParkingLot()
        self.succeeded = False
        self.error: Exception | None = None


class Store:
    """See the module. Open with `Store.open`; a writable store must be closed.

    Data: allocate, write_data(new=True) and put the extent before the commit that shall make it reachable.
    NoSpace from allocate may be cured by a commit if blocks were freed since the last one (`pinned_blocks`).
    """

    def __init__(self, volume: Volume, options: StoreOptions) -> None:
        self.volume = volume
        self.options = options
        self.before_commit: list[Callable[[], None]] = []
        self.device = volume.device
        self._coverage = volume.coverage
        self.vouchers = Vouchers()
        self._vouched_sequence = 0  # of the newest batch that vouches for data
        self._flushed_sequence = 0
        self._issued_frees: list[Run] = []
        self._round = _Round()
        self._round_lock = QuickLock()
        self._issue_lock = QuickLock()
        self._checkpoint_lock = QuickLock()
        self._unfinished: Checkpoint | None = None
        self._ripe_files: list[int] = []
        self._retire = False
        self._wake = trio.Event()
        self._last_commit = trio.current_time()
        self._run_scope: trio.CancelScope | None = None
        self._run_over, self._closed = trio.Event(), False
        if volume.log is not None:
            log_bytes = volume.log.capacity_bytes()
            self._checkpoint_bytes = min(options.checkpoint_bytes, log_bytes // 4)
            self._pending_bytes = min(options.pending_bytes, log_bytes // 16)

    @classmethod
    async def open(
        cls, device: BlockDevice, *, read_only: bool = False, options: StoreOptions | None = None
    ) -> "Store":
        """Read the volume and replay its log. CorruptionError if it cannot be read; DeviceError."""
        options = options or StoreOptions()
        policy = replace(options.coverage_policy, linger_ns=int(options.linger_seconds * 1e9))
        volume, end = load_volume(device, policy=policy, cache_bytes=options.cache_bytes)
        if not read_only:
            # What was replayed may so far be only in a cache; its freed blocks are about to be used again.
            await device.flush()
            attach_log(volume, end)
            if end.vouched or end.unproven_lsn is not None:
                # Nothing may change what the log's end vouches for before the log says that it was durable,
                # and what did not count now never may: its data may be there at another site.
                volume.writer().append_word(urgent=True)
                await device.flush()
            epoch = max(options.epoch, volume.superblock.epoch)
            volume.changed = volume.changed or epoch != volume.superblock.epoch
            volume.superblock = replace(volume.superblock, epoch=epoch)
        store = cls(volume, options)
        store._flushed_sequence = device.issued_sequence
        return store

    @property
    def superblock(self) -> Superblock:
        """The one of the last checkpoint."""
        return self.volume.superblock

    @property
    def pinned_blocks(self) -> int:
        """Blocks freed since the last commit: the next one makes them allocatable."""
        return self.volume.free_map.pinned_blocks

    # -- items -------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        return self.volume.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Set an item; the record that makes it durable names the inode in the key."""
        if len(value) > VALUE_LIMIT_BYTES:
            raise ValueError(f"a value of {len(value)} bytes is longer than {VALUE_LIMIT_BYTES}")
        volume = self.volume
        volume.set(key, value)
        volume.pending.items[key] = value
        volume.pending.value_bytes += len(value)

    def delete(self, key: bytes) -> None:
        """Remove an item; harmless if there is none."""
        self.volume.set(key, None)
        self.volume.pending.items[key] = None

    def scan(self, first: bytes, last: bytes) -> Iterator[Item]:
        """Items from `first` to `last` inclusive, ascending. May be changed meanwhile: see Volume.scan."""
        return self.volume.scan(first, last)

    def floor(self, key: bytes) -> Item | None:
        """The greatest item whose key is <= `key`, of the same inode and kind."""
        return self.volume.floor(key)

    def allocate_ino(self) -> int:
        """An inode number that no file had up to the last commit."""
        ino = self.volume.next_ino
        self.volume.next_ino = ino + 1
        return ino

    # -- blocks ------------------------------------------------------------

    def allocate(self, ino: int, count: int, near: int = 0) -> list[Run]:
        """Take blocks for a file, at block `near` if that is free, as (start, count). NoSpace takes none."""
        self._check_writable()
        runs = self.volume.free_map.allocate(count, near)
        self.volume.pending.allocations.setdefault(ino, []).extend(runs)
        return runs

    def free(self, ino: int, start: int, count: int) -> None:
        """Give blocks back; they can be allocated again when the batch that frees them is durable."""
        self._check_writable()
        self.vouchers.freed(start, count)
        self.volume.free_map.pin(start, count)
        self.volume.pending.frees.setdefault(ino, []).append((start, count))

    def write_data(
        self, ino: int, file_block: int, start_block: int, data: Buffer, *, new: bool, grows: bool = False
    ) -> int:
        """Write whole blocks of a file at `start_block`; returns the sequence of the write.

        `new`: the blocks were allocated since the last commit, so nothing reachable is overwritten. Otherwise
        the file and the range are named in the log first (I1), and nothing that is held may change
        (`vouchers`). `grows`: the next commit lets the file show more of these blocks, which must not be
        durable before them. NoSpace if the log has no room even to name the file.
        """
        self._check_writable()
        volume = self.volume
        count = len(data) // BLOCK_BYTES
        if not new and not self._coverage.covers(ino, file_block, count):
            issue_intent(volume, ino, file_block, count)
        sequence = self.device.write(start_block * BLOCK_BYTES, data)
        if new:
            self._coverage.wrote_new(ino, file_block, count, sequence)
        if new or grows:
            volume.pending.new_sequence = sequence
            self.vouchers.note(ino, file_block, start_block, data, sequence)
        else:
            self.vouchers.rewrote(start_block, data, sequence)
        self._coverage.wrote(ino, sequence, volume.now_ns())
        return sequence

    def show_more(self, ino: int, file_block: int, start_block: int, block: bytes) -> None:
        """The next commit lets the file show more of a block, which must not be durable before what was
        written there last: `block`, as it is read.
        """
        sequence = self.device.issued_sequence
        if sequence > self._flushed_sequence:
            self.volume.pending.new_sequence = sequence
            self.vouchers.note(ino, file_block, start_block, block, sequence)

    def read_data(self, start_block: int, count: int) -> bytes:
        return self.device.read(start_block * BLOCK_BYTES, count * BLOCK_BYTES)

    def _check_writable(self) -> None:
        if self.volume.log is None:
            raise FileSystemError(errno.EROFS)

    # -- commit ------------------------------------------------------------

    async def commit(self) -> None:
        """Everything done before the call is durable. Concurrent callers share the work.

        DeviceError: it may not be durable; nothing is lost from memory, and a later commit tries again. Once
        closed, nothing follows the clean superblock.
        """
        while not self._closed:
            round_ = self._round
            if round_.led:
                await round_.waiting.park()
                if round_.error is not None:
                    raise round_.error
                if round_.succeeded:
                    return
                continue  # its leader was cancelled
            round_.led = True
            try:
                async with self._round_lock:
                    self._round = _Round()
                    await self._make_room()
                    if self.volume.log is not None:
                        await self._commit_now()
                round_.succeeded = True
            except (DeviceError, FileSystemError) as error:
                round_.error = error
                raise
            finally:
                if self._round is round_:
                    self._round = _Round()
                round_.waiting.unpark_all()
            return

    async def _commit_now(self) -> None:
        self._last_commit = trio.current_time()
        for _ in range(ROOM_TRIES):
            try:
                await self._issue_pending()
                break
            except LogFull:
                await self.checkpoint()
        else:
            raise LogFull
        if self.device.issued_sequence > self._flushed_sequence:
            await self._flush()
        log = self.volume.writer()
        if log.appended_bytes > self._checkpoint_bytes:
            self._wake.set()

    async def _issue_pending(self) -> None:
        """Take everything pending as one batch and issue it behind its data."""
        async with self._issue_lock:
            changes = self._capture()
            try:
                vouchers = self._vouch(changes)
                if not vouchers:
                    await self._order_new_data(changes)
                issue_changes(self.volume, changes, self._names_to_retire(), vouchers)
            except BaseException:
                self._give_back(changes)
                raise
            if vouchers:
                self.vouchers.hold(vouchers, self.volume.writer().place.lsn - 1)
                self._vouched_sequence = self.device.issued_sequence
            self._note_frees(changes)

    def _capture(self) -> Changes:
        for hook in self.before_commit:
            hook()
        changes = self.volume.pending
        self.volume.pending = Changes()
        changes.new = self._coverage.take_new()
        changes.new_blocks = self.vouchers.take()
        return changes

    def _give_back(self, changes: Changes) -> None:
        changes.absorb(self.volume.pending)
        self._coverage.give_back(changes.new)
        self.vouchers.give_back()
        changes.new, changes.new_blocks = {}, None
        self.volume.pending = changes

    def _note_frees(self, changes: Changes) -> None:
        for runs in changes.frees.values():
            self._issued_frees += runs

    def _vouch(self, changes: Changes) -> list[Voucher]:
        """Vouchers for new data instead of a barrier behind it, if it is little.

        One such batch between two flushes: what follows it must not be durable without it.
        """
        if changes.new_blocks is None or self._vouched_sequence > self._flushed_sequence:
            return []
        return self.vouchers.vouch(changes.new_blocks, self._flushed_sequence)

    async def _order_new_data(self, changes: Changes) -> None:
        """A batch must not be durable before the new blocks that it makes reachable, nor before what an
        earlier one vouches for; and it says so, because what it frees of that may be gone at another site.
        """
        if max(changes.new_sequence, self._vouched_sequence) > self._flushed_sequence:
            log = self.volume.writer()
            lsn = log.place.lsn
            await self.device.barrier()
            log.durable_lsn = max(log.durable_lsn, lsn)

    async def _flush(self) -> None:
        """Flush the device; then what was freed by batches issued before may be used again."""
        sequence = self.device.issued_sequence
        lsn, said_lsn = self.volume.writer().place.lsn, self.volume.writer().said_durable_lsn
        frees, self._issued_frees = self._issued_frees, []
        try:
            await self.device.flush()
        except BaseException:
            self._issued_frees = frees + self._issued_frees
            raise
        self._flushed_sequence = max(self._flushed_sequence, sequence)
        log = self.volume.writer()
        log.durable_lsn = max(log.durable_lsn, lsn)
        self.vouchers.release(said_lsn)
        for start, count in frees:
            self.volume.free_map.unpin(start, count)

    async def release_vouchers(self) -> None:
        """Have the log say that what its newest batches vouch for is durable, so that it may be overwritten
        where it is: on a full volume it cannot be moved. DeviceError, LogFull.
        """
        if self.vouchers.hold_any:
            await self._flush()
            async with self._issue_lock:
                self.volume.writer().append_word()
            await self._flush()

    def _names_to_retire(self) -> Housekeeping:
        """What the last tick found ripe: looking through all names at every commit would cost too much."""
        files, self._ripe_files = self._ripe_files, []
        retire, self._retire = self._retire, False
        return ripe_names(self.volume, files) if retire else Housekeeping()

    async def _make_room(self) -> None:
        """Let the log have room for what is pending, by checkpoints if need be."""
        log = self.volume.log
        if log is None:
            if not self.volume.pending.is_empty():
                raise FileSystemError(errno.EROFS)
            return
        while not self._has_room():
            await self.checkpoint()
            if self.options.on_log_full != WAIT or self._has_room():
                return  # LogFull says if that was not enough
            while True:
                await trio.sleep(WAIT_SECONDS)
                if any(self._coverage.ripe(self.volume.far_state())):
                    break

    def _has_room(self) -> bool:
        """Has the log room for all that the next batch will say?"""
        for hook in self.before_commit:
            hook()
        return self.volume.writer().has_room(self.volume.pending.size_bytes())

    # -- checkpoint --------------------------------------------------------

    async def checkpoint(self) -> None:
        """Everything done before the call is in the tree; the log before it goes as coverage allows."""
        await self._checkpoint(clean=False)

    async def _checkpoint(self, *, clean: bool) -> None:
        self._check_writable()
        async with self._checkpoint_lock:
            with trio.CancelScope(shield=True):
                if self._unfinished is not None:
                    await self._finish_checkpoint()
                checkpoint = await self._freeze(clean=clean)
                if checkpoint is None:
                    return
                try:
                    await checkpoint.merge()
                    await self._flush_nodes()
                    checkpoint.issue_superblock(clean=clean)
                except BaseException:
                    checkpoint.abandon()
                    raise
                self._unfinished = checkpoint
                await self._finish_checkpoint()
                self._give_segments_back()

    async def _freeze(self, *, clean: bool) -> Checkpoint | None:
        """Freeze the changes and issue the batch that completes them; None if there is nothing to write."""
        volume, log = self.volume, self.volume.writer()
        async with self._issue_lock:
            changes = self._capture()
            is_marked = volume.superblock.clean or not clean
            if is_marked and changes.is_empty() and not volume.changed and len(log.segments) == 1:
                return None
            checkpoint = Checkpoint(volume, self.options.merge_leaves)
            try:
                await self._order_new_data(changes)
                housekeeping = checkpoint_housekeeping(volume, self.options.on_log_full == COARSEN)
                lsn = log.place.lsn
                issue_changes(volume, changes, housekeeping, urgent=True)
                if self.vouchers.hold_any and log.place.lsn == lsn:
                    log.append_word(urgent=True)
            except BaseException:
                checkpoint.abandon()
                self._give_back(changes)
                raise
            self._note_frees(changes)
            checkpoint.logged()
        return checkpoint

    async def _flush_nodes(self) -> None:
        """A superblock must not be durable before the tree that it points to."""
        await self._flush()

    async def _finish_checkpoint(self) -> None:
        """The superblock is issued: once it is durable, the old state is free. Tried again after an error."""
        assert self._unfinished is not None
        await self._flush()
        self._unfinished.finish()
        self._unfinished = None

    def _give_segments_back(self) -> None:
        """A log that has grown gives half of the segments it does not need back; on a full volume, all."""
        for _ in range(self.volume.surplus_segments(FIRST_SEGMENTS)):
            self.free(LOG_INO, self.volume.writer().spares.pop(), self.volume.superblock.segment_blocks)

    def must_throttle(self, more_items: int = 0) -> bool:
        """Whether `throttle` would hold a caller up."""
        return self.volume.log is not None and (self._is_overlay_full() or self._is_much_pending(more_items))

    def _is_overlay_full(self) -> bool:
        """Does much more wait in memory than should? Where it is somewhat more, a checkpoint begins."""
        overlay, options = self.volume.overlay, self.options
        items, value_bytes = len(overlay), overlay.value_bytes
        if items <= options.overlay_items and value_bytes <= options.overlay_bytes:
            return False
        self._wake.set()
        return items >= 2 * options.overlay_items or value_bytes >= 2 * options.overlay_bytes

    def _is_much_pending(self, more_items: int) -> bool:
        pending = self.volume.pending
        return (
            len(pending.items) > self.options.pending_items
            or pending.value_bytes > self._pending_bytes
            or not self.volume.writer().has_room(pending.rough_bytes() + more_items * ITEM_BYTES)
        )

    async def throttle(self, more_items: int = 0) -> None:
        """Hold a caller up while there are too many uncommitted changes or too much waits in memory.

        `more_items`: that the hooks before the commit will put.
        """
        if self.volume.log is None:
            return
        if self._is_much_pending(more_items):
            await self.commit()
        if self._is_overlay_full():
            await self.checkpoint()

    async def run(self) -> None:
        """Commit, checkpoint and retire names from time to time, until cancelled or closed."""
        with trio.CancelScope() as scope:
            self._run_scope = scope
            try:
                while True:
                    with trio.move_on_after(TICK_SECONDS):
                        await self._wake.wait()
                    self._wake = trio.Event()
                    try:
                        await self._tick()
                    except (DeviceError, NoSpace) as error:
                        faults.warning(f"the file system could not write what is pending: {error}")
            finally:
                self._run_scope = None
                self._run_over.set()

    async def _tick(self) -> None:
        volume, log, options = self.volume, self.volume.writer(), self.options
        overlay = volume.overlay
        idle_seconds = trio.current_time() - self._last_commit
        if (
            log.appended_bytes > self._checkpoint_bytes
            or len(overlay) > options.overlay_items
            or overlay.value_bytes > options.overlay_bytes
            or (
                volume.changed
                and volume.pending.is_empty()
                and idle_seconds > options.idle_checkpoint_seconds
            )
        ):
            await self.checkpoint()
        self._ripe_files, ripe_regions = self._coverage.ripe(volume.far_state())
        # The tick after this one would be too late.
        is_due = idle_seconds + TICK_SECONDS > options.commit_seconds and self._has_unflushed()
        if is_due or self._ripe_files or ripe_regions:
            self._retire = True
            await self.commit()

    def _has_unflushed(self) -> bool:
        for hook in self.before_commit:
            hook()
        return not self.volume.pending.is_empty() or self.device.issued_sequence > self._flushed_sequence

    async def close(self) -> None:
        """Commit, checkpoint, mark the volume clean. DeviceError leaves it to replay."""
        if self._run_scope is not None:
            self._run_scope.cancel()
            await self._run_over.wait()
        if self.volume.log is not None:
            await self.commit()
            await self._checkpoint(clean=True)
            self._closed = True

    def log_status(self) -> LogStatus:
        log, files = self.volume.log, len(self._coverage.files)
        return LogStatus(files, log.used_bytes() if log else 0, log.capacity_bytes() if log else 0)

    def statistics(self) -> Statistics:
        free_map = self.volume.free_map
        free = free_map.free_blocks + free_map.pinned_blocks
        available = max(free - free_map.reserve_blocks, 0)
        return Statistics(free_map.total_blocks, free, available, self.volume.inodes)
