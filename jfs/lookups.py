"""How often the kernel holds each inode. It may hold as many as there are files: a count takes one byte."""

PAGE_SHIFT = 8
PAGE_INODES = 1 << PAGE_SHIFT
_MASK = PAGE_INODES - 1
_MANY = 255  # in a page: the count is among the large ones


class LookupCounts:
    """Counts by inode number. Numbers are given in order, so those held at once share pages."""

    __slots__ = ("_large", "_pages")

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._large: dict[int, int] = {}

    def __getitem__(self, ino: int) -> int:
        page = self._pages.get(ino >> PAGE_SHIFT)
        count = 0 if page is None else page[ino & _MASK]
        return self._large[ino] if count == _MANY else count

    def __contains__(self, ino: int) -> bool:
        page = self._pages.get(ino >> PAGE_SHIFT)
        return page is not None and page[ino & _MASK] > 0

    def __len__(self) -> int:
        return sum(PAGE_INODES - page.count(0) for page in self._pages.values())

    def add(self, ino: int) -> None:
        """Hold the inode once more."""
        page = self._pages.get(ino >> PAGE_SHIFT)
        if page is None:
            page = self._pages[ino >> PAGE_SHIFT] = bytearray(PAGE_INODES)
        place = ino & _MASK
        count = page[place]
        if count < _MANY - 1:
            page[place] = count + 1
        else:
            page[place] = _MANY
            self._large[ino] = self._large.get(ino, count) + 1

    def remove(self, ino: int, count: int) -> int:
        """Let the inode go `count` times; how often it is held then, at least 0."""
        left = max(self[ino] - count, 0)
        page = self._pages.get(ino >> PAGE_SHIFT)
        if page is None:
            return 0
        if left >= _MANY:
            self._large[ino] = left
            return left
        self._large.pop(ino, None)
        page[ino & _MASK] = left
        if not left and page.count(0) == PAGE_INODES:
            del self._pages[ino >> PAGE_SHIFT]
        return left

    def clear(self) -> None:
        """Nobody holds anything."""
        self._pages.clear()
        self._large.clear()
