"""Which blocks are used by what, and whether the free map says the same. Pure.

Both sides are kept in groups as the free map has them; a group of which nothing is used costs nothing, so
that a check needs memory for what is used and not for the size of the volume.
"""

from collections.abc import Iterator

from bitarray import bitarray
from bitarray.util import zeros

from jfs.errors import CorruptionError
from jfs.freemap import decode_group, pieces
from jfs.fsck_codes import Fault
from jfs.fsck_edit import drop_key
from jfs.layout import FREE_MAP_INO, GROUP, GROUP_BLOCKS, make_key
from jfs.runs import Run, extend_runs

_NONE_USED = zeros(GROUP_BLOCKS, "little")


class BlockUse:
    """The blocks of a volume that have an owner, and the free map to compare them with."""

    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = total_blocks
        self._used: dict[int, bitarray] = {}
        self._map: dict[int, bitarray] = {}

    def inside(self, start: int, count: int) -> bool:
        """Is this a run of blocks that exist?"""
        return start >= 0 and 0 < count <= self.total_blocks - start

    def claim(self, start: int, count: int) -> list[Run] | None:
        """Give a run inside the volume an owner. None if it had none, else the runs of it that had none."""
        end = start + count
        group, bit = divmod(start, GROUP_BLOCKS)
        if bit + count <= GROUP_BLOCKS:
            bits = self._used.get(group)
            if bits is None:
                bits = self._used[group] = zeros(GROUP_BLOCKS, "little")
            elif bits.find(1, bit, bit + count) >= 0:
                return self._claim_rest(start, end)
            bits[bit : bit + count] = 1
            return None
        kept = self._claim_rest(start, end)
        return None if sum(length for _, length in kept) == count else kept

    def _claim_rest(self, start: int, end: int) -> list[Run]:
        kept: list[Run] = []
        for group, bit, part in pieces(start, end - start):
            bits = self._used.setdefault(group, zeros(GROUP_BLOCKS, "little"))
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
        for group in sorted(self._used):
            base = group * GROUP_BLOCKS
            yield from ((base + start, count) for start, count in runs_of(self._used[group]))

    def mark(self, start: int, count: int) -> None:
        """Note that the free map marks a run as used."""
        for group, bit, part in pieces(start, count):
            bits = self._map.get(group)
            if bits is None:
                bits = self._map[group] = zeros(GROUP_BLOCKS, "little")
            bits[bit : bit + part] = 1

    def marked_blocks(self) -> int:
        """How many blocks the free map marks as used."""
        return sum(bits.count() for bits in self._map.values())

    def check_group(self, group: int, value: bytes) -> Fault | None:
        """The fault of one item of the free map, if it has one."""
        place = f"free map group {group}"
        sentence = f"the free map has a group {group}, which lies outside the volume"
        if group * GROUP_BLOCKS < self.total_blocks:
            try:
                decode_group(value, group)
            except CorruptionError as error:
                sentence = error.sentence
            else:
                return None
        return Fault("map-undecodable", place, sentence, drop_key(make_key(FREE_MAP_INO, GROUP, group)))

    def differences(self) -> Iterator[tuple[Run, bool]]:
        """Runs that the free map has wrong, ascending by group, and whether they are used."""
        for group in sorted(self._used.keys() | self._map.keys()):
            used = self._used.get(group, _NONE_USED)
            marked = self._map.get(group, _NONE_USED)
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
