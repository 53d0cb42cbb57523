"""Changes over the tree that live in memory: a map of keys that can also be walked in order."""

from bisect import bisect_left, bisect_right, insort
from enum import Enum
from typing import Final

PREFIX_BYTES = 9  # inode and kind


class Absent(Enum):
    """What an overlay says of a key that it knows nothing about (None says: deleted)."""

    ABSENT = 0


ABSENT: Final = Absent.ABSENT


class Overlay:
    """key -> value, or None for deleted. Keys of one inode and kind stay sorted; a write is about 1 us."""

    __slots__ = ("_prefixes", "_sorted", "items", "value_bytes")

    def __init__(self) -> None:
        self.items: dict[bytes, bytes | None] = {}
        self.value_bytes = 0
        self._sorted: dict[bytes, list[bytes]] = {}
        self._prefixes: list[bytes] | None = []

    def set(self, key: bytes, value: bytes | None) -> None:
        """Record a value, or a deletion (None)."""
        items = self.items
        old = items.get(key, ABSENT)
        if old is Absent.ABSENT:
            prefix = key[:PREFIX_BYTES]
            keys = self._sorted.get(prefix)
            if keys is None:
                self._sorted[prefix] = [key]
                self._prefixes = None
            elif keys[-1] < key:
                keys.append(key)
            else:
                insort(keys, key)
        elif old is not None:
            self.value_bytes -= len(old)
        items[key] = value
        if value is not None:
            self.value_bytes += len(value)

    def __len__(self) -> int:
        return len(self.items)

    def floor(self, key: bytes) -> bytes | None:
        """The greatest key <= `key` of the same inode and kind, deleted ones too."""
        keys = self._sorted.get(key[:PREFIX_BYTES])
        if keys is None:
            return None
        index = bisect_right(keys, key)
        return keys[index - 1] if index else None

    def page(self, first: bytes, last: bytes, limit: int) -> list[bytes]:
        """Up to `limit` keys from `first` to `last`, ascending, deleted ones too."""
        prefix = first[:PREFIX_BYTES]
        if prefix == last[:PREFIX_BYTES]:
            keys = self._sorted.get(prefix)
            if keys is None:
                return []
            start = bisect_left(keys, first)
            return keys[start : min(start + limit, bisect_right(keys, last))]
        if self._prefixes is None:
            self._prefixes = sorted(self._sorted)
        found: list[bytes] = []
        for index in range(bisect_left(self._prefixes, prefix), len(self._prefixes)):
            keys = self._sorted[self._prefixes[index]]
            start = bisect_left(keys, first)
            found += keys[start : min(start + limit - len(found), bisect_right(keys, last))]
            if len(found) >= limit or keys[-1] > last:
                break
        return found

    def absorb(self, newer: "Overlay") -> None:
        """Take over all changes of a newer overlay."""
        for key, value in newer.items.items():
            self.set(key, value)
