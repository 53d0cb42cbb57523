"""The free map: which blocks are used, in groups of 8192 blocks, loaded when they are needed.

A group that has no item is all free, so an empty volume of any size costs nothing. In memory a group is a
bitarray of *busy* blocks: used, or freed and still *pinned* because the freeing is not durable yet.
"""

import re
import struct
from collections.abc import Callable, Iterator

from bitarray import bitarray
from bitarray.util import zeros

from jfs.errors import CorruptionError, NoSpace
from jfs.layout import FREE_MAP_INO, GROUP, GROUP_BLOCKS, NODE_BLOCKS, SUPERBLOCK_SLOTS, make_key
from jfs.runs import Run, join_runs

LoadGroup = Callable[[int], bytes | None]

ALL_USED = b"\x01"
PREFIX = 2
BITMAP = 3
_PREFIX_VALUE = struct.Struct("<BH")
GROUP_BYTES = GROUP_BLOCKS // 8
FIRST_BLOCK = len(SUPERBLOCK_SLOTS)
CONTIGUOUS_BLOCKS = 1024  # a run of this length is as good as any longer one
PATIENCE_GROUPS = 4  # groups searched for a long run before short ones are taken
CACHED_GROUPS = 4096
_NODE_PLACE = bytes(NODE_BLOCKS)
_FREE_RUN = re.compile(b"\0+")


def encode_group(bits: bitarray) -> bytes | None:
    """The shortest value for a group; None (no item) if all is free."""
    used = bits.count()
    if used == 0:
        return None
    if used == GROUP_BLOCKS:
        return ALL_USED
    if bits.find(0) == used:
        return _PREFIX_VALUE.pack(PREFIX, used)
    return bytes((BITMAP,)) + bits.tobytes()


def decode_group(value: bytes | None, group: int) -> bitarray:
    """The bits of a group, 1 is used; CorruptionError if the value cannot be one."""
    bits = zeros(GROUP_BLOCKS, "little")
    if value is None:
        return bits
    if value == ALL_USED:
        bits.setall(1)
    elif len(value) == _PREFIX_VALUE.size and value[0] == PREFIX:
        bits[: _PREFIX_VALUE.unpack(value)[1]] = 1
    elif len(value) == 1 + GROUP_BYTES and value[0] == BITMAP:
        bits = bitarray(endian="little")
        bits.frombytes(value[1:])
    else:
        raise CorruptionError(f"the free map item of group {group} cannot be read")
    return bits


def pieces(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """A run cut at group boundaries: (group, first bit, bits)."""
    while count > 0:
        group, bit = divmod(start, GROUP_BLOCKS)
        part = min(count, GROUP_BLOCKS - bit)
        yield group, bit, part
        start += part
        count -= part


class FrozenMap:
    """The map as a checkpoint writes it: the state at the freeze, and the checkpoint's own changes."""

    def __init__(self, dirty: dict[int, bitarray], load: LoadGroup, used_free_blocks: int) -> None:
        self._groups = dirty
        self._load = load
        self._changed = set(dirty)
        self._freed: dict[int, bitarray] = {}  # since the freeze
        self.frozen_groups = frozenset(dirty)
        self.free_blocks = used_free_blocks

    def bits(self, group: int) -> bitarray:
        """A group as the checkpoint writes it."""
        bits = self._groups.get(group)
        if bits is None:
            bits = self._groups[group] = decode_group(self._load(group), group)
        return bits

    def __contains__(self, group: int) -> bool:
        return group in self._groups

    def note_freed(self, group: int, bit: int, count: int) -> None:
        """Blocks are freed after the freeze."""
        freed = self._freed.get(group)
        if freed is None:
            freed = self._freed[group] = zeros(GROUP_BLOCKS, "little")
        freed[bit : bit + count] = 1

    def closed_to_nodes(self, group: int) -> bitarray:
        """Where in a group no node of the checkpoint may go. Not to be changed."""
        freed = self._freed.get(group)
        return self.bits(group) if freed is None else self.bits(group) | freed

    def set(self, start: int, count: int, *, used: bool) -> None:
        """Make a run used or free; harmless when it is already."""
        for group, bit, part in pieces(start, count):
            bits = self.bits(group)
            before = bits.count(1, bit, bit + part)
            bits[bit : bit + part] = used
            self.free_blocks += before - (part if used else 0)
            self._changed.add(group)

    def take_changed(self) -> list[tuple[bytes, bytes | None]]:
        """The items of the groups changed since the last call, ascending.

        A value says all free rather than vanishing (a one byte prefix): so that a repeated call never removes
        an item that an earlier one made.
        """
        changed, self._changed = sorted(self._changed), set()
        empty = _PREFIX_VALUE.pack(PREFIX, 0)
        return [
            (make_key(FREE_MAP_INO, GROUP, group), encode_group(self._groups[group]) or empty)
            for group in changed
        ]


class FreeMap:
    """Allocation in memory. `free_blocks` may be allocated now; pinned blocks are not among them."""

    def __init__(self, total_blocks: int, reserve_blocks: int, load: LoadGroup, free_blocks: int) -> None:
        self.total_blocks = total_blocks
        self.reserve_blocks = reserve_blocks
        self.free_blocks = free_blocks
        self.pinned_blocks = 0
        self._load = load
        self._groups: dict[int, bitarray] = {}
        self._dirty: set[int] = set()
        self._pinned: dict[int, list[Run]] = {}
        self._frozen: FrozenMap | None = None
        self._group_count = -(-total_blocks // GROUP_BLOCKS)
        self._full = bytearray(self._group_count)  # 1: known to hold no free block
        self._node_places: dict[int, int] = {}  # that a group has, until it changes
        self._known_places = 0  # the sum
        # That data leaves: three quarters of the reserve.
        self._least_places = reserve_blocks * 3 // 4 // NODE_BLOCKS
        self._stale: list[int] = []  # groups that changed since they were counted
        self._uncounted = iter(range(self._group_count))
        self._cursor = reserve_blocks
        self._node_cursor = reserve_blocks

    # -- groups ----------------------------------------------------------------

    def _bits(self, group: int) -> bitarray:
        bits = self._groups.get(group)
        if bits is None:
            if len(self._groups) >= CACHED_GROUPS:
                self._evict()
            bits = self._groups[group] = decode_group(self._load(group), group)
            if group == self._group_count - 1:
                bits[self.total_blocks - group * GROUP_BLOCKS :] = 1
        return bits

    def _evict(self) -> None:
        """Drop some groups that the tree holds just as well."""
        keep = self._frozen if self._frozen is not None else ()
        clean = [
            group
            for group in self._groups
            if group not in self._dirty and group not in self._pinned and group not in keep
        ]
        for group in clean[: CACHED_GROUPS // 4]:
            del self._groups[group]

    def is_used(self, block: int) -> bool:
        """Used or pinned."""
        group, bit = divmod(block, GROUP_BLOCKS)
        return bool(self._bits(group)[bit])

    def marked(self, group: int) -> bitarray:
        """The used (or pinned) blocks of a group, none beyond the end of the volume. Not to be changed."""
        bits = self._bits(group)
        if group == self._group_count - 1:
            bits = bits.copy()
            bits[self.total_blocks - group * GROUP_BLOCKS :] = 0
        return bits

    def changed_groups(self) -> Iterator[int]:
        """The groups that differ from what the tree says of them."""
        return iter(self._dirty)

    def used_runs(self) -> Iterator[Run]:
        """All used (or pinned) blocks, ascending, neighbours joined. For a full copy and for the check."""
        open_start, open_end = 0, 0
        for group in range(self._group_count):
            bits = self._bits(group)
            if not bits.any():
                continue
            base = group * GROUP_BLOCKS
            limit = min(GROUP_BLOCKS, self.total_blocks - base)
            start = bits.find(1)
            while 0 <= start < limit:
                end = bits.find(0, start)
                end = limit if end < 0 else min(end, limit)
                if base + start != open_end:
                    if open_end > open_start:
                        yield open_start, open_end - open_start
                    open_start = base + start
                open_end = base + end
                start = bits.find(1, end)
        if open_end > open_start:
            yield open_start, open_end - open_start

    # -- changes ----------------------------------------------------------------

    def set_used(self, start: int, count: int) -> None:
        """Replay of an allocation: harmless when the blocks are used already."""
        for group, bit, part in self._pieces(start, count):
            bits = self._bits(group)
            self._recount(group)
            self.free_blocks -= part - bits.count(1, bit, bit + part)
            bits[bit : bit + part] = 1
            self._dirty.add(group)

    def set_free(self, start: int, count: int) -> None:
        """Replay of a freeing, which is durable: harmless when the blocks are free already."""
        for group, bit, part in self._pieces(start, count):
            bits = self._bits(group)
            self._recount(group)
            self.free_blocks += bits.count(1, bit, bit + part)
            bits[bit : bit + part] = 0
            self._full[group] = 0
            self._dirty.add(group)

    def pin(self, start: int, count: int) -> None:
        """Free blocks, but keep them from being allocated until `unpin`. CorruptionError if one is free."""
        parts = list(self._pieces(start, count))
        for group, bit, part in parts:
            if self._bits(group).count(1, bit, bit + part) != part:
                raise CorruptionError(f"blocks {start}+{count} are to be freed, but some are free already")
        for group, bit, part in parts:
            self._pinned.setdefault(group, []).append((bit, part))
            self._dirty.add(group)
            if self._frozen is not None:
                self._frozen.note_freed(group, bit, part)
        self.pinned_blocks += count

    def unpin(self, start: int, count: int) -> None:
        """The freeing of pinned blocks is durable: they may be allocated."""
        for group, bit, part in self._pieces(start, count):
            pinned = self._pinned[group]
            pinned.remove((bit, part))
            if not pinned:
                del self._pinned[group]
        self.pinned_blocks -= count
        self.release(start, count)

    def release(self, start: int, count: int) -> None:
        """Make busy blocks free that the written map shows as free already (or never showed as used)."""
        for group, bit, part in pieces(start, count):
            self._bits(group)[bit : bit + part] = 0
            self._full[group] = 0
            self._recount(group)
        self.free_blocks += count

    def _pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        if start < 0 or start + count > self.total_blocks or count <= 0:
            raise CorruptionError(
                f"blocks {start}+{count} are outside the volume's {self.total_blocks} blocks"
            )
        return pieces(start, count)

    # -- room for the tree -----------------------------------------------------------

    def _recount(self, group: int) -> None:
        """A group changes: how many nodes have a place in it is to be counted again."""
        places = self._node_places.pop(group, None)
        if places is not None:
            self._known_places -= places
            self._stale.append(group)

    def node_places(self, wanted: int) -> int:
        """The nodes there is a place for, as far as they are `wanted`: free blocks alone do not say, because
        a node needs a run. No more groups are counted than it takes, each once until it changes.
        """
        while self._known_places < wanted:
            group = self._stale.pop() if self._stale else next(self._uncounted, None)
            if group is None:
                break
            places = 0 if self._full[group] else self._bits(group).unpack().count(_NODE_PLACE)
            self._node_places[group] = places
            self._known_places += places
        return min(self._known_places, wanted)

    # -- allocation ----------------------------------------------------------------

    def allocate(self, count: int, near: int = 0) -> list[Run]:
        """Blocks for data, at `near` if that is free, long runs first. NoSpace leaves the map as it was.

        Where the tree is short of places for its nodes, data gets blocks that are none.
        """
        if count > self.free_blocks - self.reserve_blocks:
            raise NoSpace
        places = self.node_places(self._least_places)
        runs = self._take_blocks(count, near)
        if self.node_places(places) < places:
            for taken in runs:
                self.release(*taken)
            runs = self._take_leftovers(count)
        return join_runs(runs)

    def _take_blocks(self, count: int, near: int) -> list[Run]:
        near = near if self.reserve_blocks <= near < self.total_blocks else 0
        position = near or self._cursor
        runs: list[Run] = []
        rest = count
        if near:
            rest -= self._take_at(near, rest, runs)
        patience = PATIENCE_GROUPS
        while rest:
            want = min(rest, CONTIGUOUS_BLOCKS) if patience else 1
            start = self._find(want, position, self.reserve_blocks, patience or self._group_count + 1)
            if start < 0:
                if not patience:
                    for taken in runs:
                        self.release(*taken)
                    raise CorruptionError(
                        f"the free map counts {self.free_blocks} free blocks that are not there"
                    )
                patience = 0
                continue
            rest -= self._take_at(start, rest, runs)
            position = runs[-1][0] + runs[-1][1]
        if not near:
            self._cursor = position
        return runs

    def _take_leftovers(self, count: int) -> list[Run]:
        """Blocks that are left over in free runs when nodes take what they can. NoSpace takes none."""
        runs: list[Run] = []
        rest = count
        first = self.reserve_blocks // GROUP_BLOCKS
        for group in range(first, self._group_count):
            if self._full[group]:
                continue
            low = self.reserve_blocks - first * GROUP_BLOCKS if group == first else 0
            for found in _FREE_RUN.finditer(self._bits(group).unpack(), low):
                part = min((found.end() - found.start()) % NODE_BLOCKS, rest)
                if part:
                    rest -= self._take_at(group * GROUP_BLOCKS + found.end() - part, part, runs)
                if not rest:
                    return runs
        for taken in runs:
            self.release(*taken)
        raise NoSpace

    def allocate_segment(self, count: int, near: int) -> int | None:
        """One run for a log segment; None if there is none that leaves the reserve to the tree."""
        return self._take_run(count, near, self.reserve_blocks) if self.may_give_segment(count) else None

    def may_give_segment(self, count: int) -> bool:
        """Does a log segment leave the reserve alone?"""
        return self.free_blocks >= self.reserve_blocks + 2 * count

    def allocate_contiguous(self, count: int, near: int = 0) -> int | None:
        """One run, in the reserve if need be; None if there is none."""
        found = self._take_run(count, near, self.reserve_blocks)
        return self._take_run(count, 0, FIRST_BLOCK) if found is None else found

    def _take_run(self, count: int, near: int, low: int, frozen: FrozenMap | None = None) -> int | None:
        start = self._find(count, max(near, low), low, self._group_count + 1, frozen)
        if start < 0:
            return None
        self._take_at(start, count, [])
        return start

    def allocate_nodes(self, count: int) -> list[int]:
        """Addresses for tree nodes, ascending where possible. NoSpace leaves the map as it was.

        Not in blocks that were freed after the freeze, also if they were allocated after it: the log behind
        the checkpoint frees them again when it is replayed, and would then free the node.
        """
        addresses: list[int] = []
        want = CONTIGUOUS_BLOCKS
        while len(addresses) < count:
            want = min(want, (count - len(addresses)) * NODE_BLOCKS)
            start = self._find(want, self._node_cursor, self.reserve_blocks, PATIENCE_GROUPS, self._frozen)
            if start < 0 and want > NODE_BLOCKS:
                want = max(want // 2 // NODE_BLOCKS, 1) * NODE_BLOCKS
                continue
            if start >= 0:
                self._take_at(start, want, [])
            else:
                found = self._take_run(NODE_BLOCKS, self._node_cursor, self.reserve_blocks, self._frozen)
                if found is None:
                    found = self._take_run(NODE_BLOCKS, 0, FIRST_BLOCK, self._frozen)
                if found is None:
                    for address in addresses:
                        self.release(address, NODE_BLOCKS)
                    raise NoSpace("the volume has no room left for its own tree")
                start = found
            addresses += range(start, start + want, NODE_BLOCKS)
            self._node_cursor = start + want
        return addresses

    def _take_at(self, start: int, limit: int, runs: list[Run]) -> int:
        """Take the free run that begins at a block, up to the group's end; returns how many blocks."""
        group, bit = divmod(start, GROUP_BLOCKS)
        bits = self._bits(group)
        end = bits.find(1, bit, bit + limit)
        taken = (min(bit + limit, GROUP_BLOCKS) if end < 0 else end) - bit
        if taken:
            bits[bit : bit + taken] = 1
            self._dirty.add(group)
            self._recount(group)
            self.free_blocks -= taken
            runs.append((start, taken))
        return taken

    def _find(
        self, count: int, position: int, low: int, patience: int, frozen: FrozenMap | None = None
    ) -> int:
        """The start of a free run of `count` blocks at or after `position`, then from `low`; or -1.

        Looks into at most `patience` groups that are not full. A run does not cross a group's end. With
        `frozen` it is open to nodes there as well.
        """
        wanted = zeros(count, "little")
        if position >= self.total_blocks:
            position = low
        group, bit = divmod(position, GROUP_BLOCKS)
        low_group, low_bit = divmod(low, GROUP_BLOCKS)
        wrapped = False
        while patience > 0:
            group = self._full.find(0, group)
            if group < 0 or (wrapped and group > position // GROUP_BLOCKS):
                if wrapped:
                    return -1
                group, bit, wrapped = low_group, low_bit, True
                continue
            bits = self._bits(group) if frozen is None else self._bits(group) | frozen.closed_to_nodes(group)
            begin = bit if group * GROUP_BLOCKS + bit >= low else low_bit
            found = bits.find(wanted, begin)
            if found >= 0:
                return group * GROUP_BLOCKS + found
            if begin == 0 and count == 1 and frozen is None:
                self._full[group] = 1
            patience -= 1
            group, bit = group + 1, 0
        return -1

    # -- checkpoints ----------------------------------------------------------------

    def freeze(self) -> FrozenMap:
        """The state now, for a checkpoint to write; the map goes on changing."""
        dirty: dict[int, bitarray] = {}
        for group in self._dirty:
            bits = dirty[group] = self._bits(group).copy()
            for bit, part in self._pinned.get(group, ()):
                bits[bit : bit + part] = 0
            if group == self._group_count - 1:
                bits[self.total_blocks - group * GROUP_BLOCKS :] = 0
        self._dirty = set()
        self._frozen = FrozenMap(dirty, self._load, self.free_blocks + self.pinned_blocks)
        return self._frozen

    def thaw(self, *, written: bool) -> None:
        """The checkpoint is over: its tree holds the frozen state, or (`written` false) it was given up."""
        assert self._frozen is not None
        if not written:
            self._dirty |= self._frozen.frozen_groups
        self._frozen = None
