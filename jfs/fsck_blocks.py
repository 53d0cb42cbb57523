"""Which blocks are used by what, and whether the free map says the same.

The blocks in use are kept in groups as the free map has them; a group of which nothing is used costs
nothing, and of the others only so many are in memory, the rest in a temporary file: what a check needs
depends neither on the size of the volume nor on what is used of it.
"""

from collections.abc import Iterator
from itertools import islice

from bitarray import bitarray
from bitarray.util import zeros

from jfs.errors import CorruptionError
from jfs.freemap import GROUP_BYTES, FreeMap, decode_group, pieces
from jfs.fsck_codes import Fault
from jfs.fsck_edit import drop_key
from jfs.fsck_scratch import Scratch
from jfs.layout import FREE_MAP_INO, GROUP, GROUP_BLOCKS, make_key
from jfs.runs import Run, extend_runs


class BlockUse:
    """The blocks of a volume that have an owner, and the free map to compare them with. At most
    `memory_groups` are in memory, a good KiB each."""

    def __init__(self, free_map: FreeMap, memory_groups: int) -> None:
        self.total_blocks = free_map.total_blocks
        self._free_map = free_map
        self._memory_groups = memory_groups
        group_count = -(-free_map.total_blocks // GROUP_BLOCKS)
        self._groups: dict[int, bitarray] = {}
        self._away = zeros(group_count)  # 1: there is a copy in the temporary file
        self._touched = zeros(group_count)  # 1: some of it is used
        self._marked = zeros(group_count)  # 1: the tree has an item of it
        self._scratch = Scratch()

    # -- the groups ---------------------------------------------------------------

    def _bits(self, group: int) -> bitarray:
        """A group, to be looked at and changed before the next one."""
        bits = self._groups.get(group)
        if bits is None:
            if len(self._groups) >= self._memory_groups:
                self._put_away()
            bits = self._groups[group] = self._peek(group)
            self._touched[group] = 1
        return bits

    def _put_away(self) -> None:
        """Make room for other groups."""
        oldest = list(islice(self._groups, self._memory_groups // 4 + 1))
        for group in oldest:
            self._scratch.write(group * GROUP_BYTES, self._groups.pop(group).tobytes())
            self._away[group] = 1

    def _peek(self, group: int) -> bitarray:
        """A group, not to be changed if it is in memory."""
        bits = self._groups.get(group)
        if bits is None:
            bits = zeros(GROUP_BLOCKS, "little")
            if self._away[group]:
                bits = bitarray(self._scratch.read(group * GROUP_BYTES, GROUP_BYTES), endian="little")
        return bits

    # -- owners -------------------------------------------------------------------

    def inside(self, start: int, count: int) -> bool:
        """Is this a run of blocks that exist?"""
        return start >= 0 and 0 < count <= self.total_blocks - start

    def claim(self, start: int, count: int) -> list[Run] | None:
        """Give a run inside the volume an owner. None if it had none, else the runs of it that had none."""
        end = start + count
        group, bit = divmod(start, GROUP_BLOCKS)
        if bit + count <= GROUP_BLOCKS:
            bits = self._bits(group)
            if bits.find(1, bit, bit + count) >= 0:
                return self._claim_rest(start, end)
            bits[bit : bit + count] = 1
            return None
        kept = self._claim_rest(start, end)
        return None if sum(length for _, length in kept) == count else kept

    def _claim_rest(self, start: int, end: int) -> list[Run]:
        kept: list[Run] = []
        for group, bit, part in pieces(start, end - start):
            bits = self._bits(group)
            stop = bit + part
            while bit < stop:
                begin = bits.find(0, bit, stop)
                if begin < 0:
                    break
                bit = bits.find(1, begin, stop)
                bit = stop if bit < 0 else bit
                extend_runs(kept, group * GROUP_BLOCKS + begin, bit - begin)
                bits[begin:bit] = 1
        return kept

    def used_runs(self) -> Iterator[Run]:
        """All blocks that have an owner, ascending, a run for each stretch of a group."""
        for group in self._touched.search(1):
            base = group * GROUP_BLOCKS
            yield from ((base + start, count) for start, count in runs_of(self._peek(group)))

    # -- the free map -------------------------------------------------------------

    def _marked_groups(self) -> Iterator[int]:
        """The groups of which the free map may mark something as used."""
        marked = self._marked.copy()
        for group in self._free_map.changed_groups():
            marked[group] = 1
        return marked.search(1)

    def marked_blocks(self) -> int:
        """How many blocks the free map marks as used."""
        return sum(self._free_map.marked(group).count() for group in self._marked_groups())

    def check_group(self, group: int, value: bytes) -> Fault | None:
        """The fault of one item of the free map, if it has one."""
        place = f"free map group {group}"
        sentence = f"the free map has a group {group}, which lies outside the volume"
        if group * GROUP_BLOCKS < self.total_blocks:
            self._marked[group] = 1
            try:
                decode_group(value, group)
            except CorruptionError as error:
                sentence = error.sentence
            else:
                return None
        return Fault("map-undecodable", place, sentence, drop_key(make_key(FREE_MAP_INO, GROUP, group)))

    def differences(self) -> Iterator[tuple[Run, bool]]:
        """Runs that the free map has wrong, ascending by group, and whether they are used."""
        groups = self._touched.copy()
        for group in self._marked_groups():
            groups[group] = 1
        for group in groups.search(1):
            used, marked = self._peek(group), self._free_map.marked(group)
            if used != marked:
                base = group * GROUP_BLOCKS
                yield from (((base + start, count), True) for start, count in runs_of(used & ~marked))
                yield from (((base + start, count), False) for start, count in runs_of(marked & ~used))

    def faults(self) -> Iterator[Fault]:
        """The faults of the free map; to be asked for when every owner has claimed its blocks."""
        for (start, count), is_used in self.differences():
            place = f"blocks {start}+{count}"
            if is_used:
                sentence = f"{count} blocks from {start} are in use, but the free map calls them free"
                yield Fault("map-used-as-free", place, sentence)
            else:
                sentence = f"{count} blocks from {start} are marked used, but nothing uses them"
                yield Fault("map-free-as-used", place, sentence)


def runs_of(bits: bitarray) -> Iterator[Run]:
    """The runs of ones, as (first bit, bits)."""
    start = bits.find(1)
    while start >= 0:
        end = bits.find(0, start)
        end = len(bits) if end < 0 else end
        yield start, end - start
        start = bits.find(1, end) if end < len(bits) else -1
