"""Ways to break the rules that make jfs crash-proof, for the tests that show that the sweep notices."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from jfs import batch, filemap
from jfs.batch import BATCH, Batch
from jfs.checkpoint import Checkpoint
from jfs.commit import Housekeeping, issue_changes
from jfs.device import BLOCK_BYTES
from jfs.errors import NoSpace
from jfs.fileio import BLOCK_MASK, BLOCK_SHIFT, FileIO, blocks_of
from jfs.freemap import FreeMap
from jfs.layout import NODE_BLOCKS
from jfs.log import LogReader
from jfs.nodes import NO_RUN, Node, NodeTable
from jfs.store import Store
from jfs.volume import Changes
from jfs.vouchers import NewBlock, Voucher, Vouchers

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(break_rule: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """A way to break a rule."""
    MUTANTS[break_rule.__name__] = break_rule
    return break_rule


@mutant
def no_flush_of_new_data(patch: Patch) -> None:
    """A batch may be durable before the data it makes reachable."""

    async def nothing(store: Store, changes: Changes) -> None:
        pass

    patch.setattr(Store, "_order_new_data", nothing)


@mutant
def no_flush_of_nodes(patch: Patch) -> None:
    """A superblock may be durable before the tree it points to."""

    async def nothing(store: Store) -> None:
        pass

    patch.setattr(Store, "_flush_nodes", nothing)


@mutant
def no_flush_after_the_batch(patch: Patch) -> None:
    """A commit returns although its batch may still be lost."""
    real = Store._commit_now

    async def without(store: Store) -> None:
        async def no_flush() -> None:
            pass

        with Patch.context() as inner:
            await store._order_new_data(store.volume.pending)
            inner.setattr(store, "_flush", no_flush)
            await real(store)

    patch.setattr(Store, "_commit_now", without)


@mutant
def no_flush_of_the_superblock(patch: Patch) -> None:
    """The old tree and the old log are free while the superblock may still be lost."""

    async def finish(store: Store) -> None:
        assert store._unfinished is not None
        store._unfinished.finish()
        store._unfinished = None

    patch.setattr(Store, "_finish_checkpoint", finish)


@mutant
def no_flush_for_fdatasync(patch: Patch) -> None:
    """fdatasync of a file whose map is durable returns at once."""
    real = NodeTable.fsync

    async def sync(table: NodeTable, ino: int, datasync: bool = False) -> None:
        node = table._nodes.get(ino) if datasync else None
        if node is None or node.changed_in > table._durable_period:
            await real(table, ino, datasync)

    patch.setattr(NodeTable, "fsync", sync)


@mutant
def batch_before_its_data(patch: Patch) -> None:
    """The commit reordered: first the batch, then the flush of the data."""

    async def issue(store: Store) -> None:
        async with store._issue_lock:
            changes = store._capture()
            issue_changes(store.volume, changes, Housekeeping())
            await store._order_new_data(changes)
            store._note_frees(changes)

    patch.setattr(Store, "_issue_pending", issue)


@mutant
def no_checksum_of_records(patch: Patch) -> None:
    """The checksum of a batch covers its header alone."""

    def of_header(content: bytes | memoryview) -> int:
        return xxh3_64_intdigest(content[: BATCH.size - 8])

    patch.setattr(batch, "xxh3_64_intdigest", of_header)


@mutant
def any_batch_continues(patch: Patch) -> None:
    """A batch of an earlier life with the right number continues the log."""
    patch.setattr(LogReader, "_continues", lambda reader, found: found.lsn == reader.place.lsn)


@mutant
def half_a_change(patch: Patch) -> None:
    """A change of several batches is applied although its last ones are missing."""
    patch.setattr(Batch, "more", property(lambda found: False, lambda found, value: None))


@mutant
def free_before_the_commit(patch: Patch) -> None:
    """Freed blocks are given out again before anything durable says that they are free."""
    patch.setattr(FreeMap, "pin", lambda free_map, start, count: free_map.set_free(start, count))
    patch.setattr(FreeMap, "unpin", lambda free_map, start, count: None)


@mutant
def free_before_the_batch_is_durable(patch: Patch) -> None:
    """Freed blocks are given out again as soon as the batch that frees them is issued."""

    def note(store: Store, changes: Changes) -> None:
        for runs in changes.frees.values():
            for start, count in runs:
                store.volume.free_map.unpin(start, count)

    patch.setattr(Store, "_note_frees", note)


@mutant
def old_nodes_free_at_once(patch: Patch) -> None:
    """The nodes that a checkpoint replaces are free before its superblock is issued."""
    real = Checkpoint.merge

    async def merge(checkpoint: Checkpoint) -> None:
        await real(checkpoint)
        for address in checkpoint._edit.replaced:
            checkpoint._volume.free_map.release(address, NODE_BLOCKS)
        checkpoint._edit.replaced = []

    patch.setattr(Checkpoint, "merge", merge)


@mutant
def cut_in_place(patch: Patch) -> None:
    """The rest of the last block is cleared where it is, not in a new block."""

    def cut(file_io: FileIO, node: Node, size: int) -> None:
        if size & BLOCK_MASK:
            file_block = size >> BLOCK_SHIFT
            start = file_io._runs(node, file_block, 1)[0].start
            if start >= 2:
                kept = file_io.store.read_data(start, 1)[: size & BLOCK_MASK].ljust(BLOCK_BYTES, b"\0")
                file_io.store.write_data(node.ino, file_block, start, kept, new=False)
        file_io._unmap(node, blocks_of(size))

    patch.setattr(FileIO, "_cut", cut)


@mutant
def tail_not_cleaned(patch: Patch) -> None:
    """A file grows without a look at what a crash left behind its end."""
    patch.setattr(FileIO, "_clean_tail", lambda file_io, node: None)


@mutant
def size_before_the_data(patch: Patch) -> None:
    """A file that grew inside its last block may have its new size before what was written there."""
    real = Store.write_data

    def write(store: Store, *what: Any, new: bool, grows: bool = False) -> int:  # noqa: ANN401
        return real(store, *what, new=new)

    patch.setattr(Store, "write_data", write)


@mutant
def new_blocks_not_filled(patch: Patch) -> None:
    """A write of a part of a new block leaves in the rest what the block held before."""

    def replace(file_io: FileIO, node: Node, file_block: int, kept: int) -> None:
        ino = node.ino
        start = file_io._runs(node, file_block, 1)[0].start
        if start < 2:
            return
        with suppress(NoSpace):
            new = file_io.store.allocate(ino, 1, start)[0][0]
            older = file_io.store.read_data(new, 1)
            data = file_io.store.read_data(start, 1)[:kept] + older[kept:]
            file_io.store.write_data(ino, file_block, new, data, new=True)
            _map_to(file_io, node, file_block, start, new)

    patch.setattr(FileIO, "_replace_block", replace)


def _map_to(file_io: FileIO, node: Node, file_block: int, start: int, new: int) -> None:
    """Map a block of a file to another block."""
    node.extent = NO_RUN
    filemap.remove(file_io.store, node.ino, file_block, file_block + 1)
    filemap.insert(file_io.store, node.ino, file_block, new, 1)
    file_io.store.free(node.ino, start, 1)
    file_io.mark_map(node)


@mutant
def vouchers_not_checked(patch: Patch) -> None:
    """A replay believes a batch that vouches for data without a look at the data."""
    patch.setattr(Voucher, "holds", lambda voucher, device: True)


@mutant
def vouchers_for_whole_blocks_alone(patch: Patch) -> None:
    """A block of which the file shows only a part is not vouched for."""
    real = Vouchers.vouch

    def vouch(vouchers: Vouchers, taken: dict[int, NewBlock], flushed_sequence: int) -> list[Voucher]:
        return [one for one in real(vouchers, taken, flushed_sequence) if one.size_bytes == BLOCK_BYTES]

    patch.setattr(Vouchers, "vouch", vouch)
    patch.setattr(Store, "_order_new_data", _nothing_of_little)


async def _nothing_of_little(store: Store, changes: Changes) -> None:
    if changes.new_blocks is None and changes.new_sequence > store._flushed_sequence:
        await store.device.barrier()


@mutant
def held_blocks_overwritten(patch: Patch) -> None:
    """What the newest batch vouches for is overwritten where it is."""
    patch.setattr(FileIO, "_held_in", lambda file_io, run, first, data: [])


@mutant
def released_before_anything_says_so(patch: Patch) -> None:
    """What a batch vouches for may change as soon as it is durable."""
    patch.setattr(Vouchers, "release", lambda vouchers, durable_lsn: vouchers._held.clear())
