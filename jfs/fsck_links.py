"""The checks between inodes: names and what they lead to, parents, link counts, reachability, deleted files.

All but what concerns directories together is decided within one share of the census at a time. Of each
directory some 33 bytes stay in memory until the end.
"""

import struct
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from stat import S_IFREG

from jfs import directory, fsck_edit
from jfs.fsck_census import UNKNOWN_LINKS, Census, Rows
from jfs.fsck_codes import Fault
from jfs.fsck_edit import DIRECTORY_KIND
from jfs.layout import ROOT_INO

_NONE = 0xFFFFFFFFFFFFFFFF
_REGULAR_KIND = S_IFREG >> 12
# What is known of an inode.
_HOLDS = 1  # it is a directory with names
_KNOWN = 2  # the name that it knows leads to it
_ORPHAN = 4  # it is in the list of deleted files


_DIRECTORY = struct.Struct("<QIIQQB")  # as the columns of Directories


class Directories:
    """All directories, and what only all together show: link counts and reachability."""

    def __init__(self) -> None:
        self.corrections: Counter[int] = Counter()  # of `below`: names that tell a wrong type
        self.unreachable: list[int] = []
        self._inos = array("Q")  # ascending
        self._links = array("I")
        self._below = array("I")  # directories that its names lead to
        self._parents = array("Q")  # where the name is that counts (_NONE: there is none),
        self._cookies = array("Q")  # and at which place there
        self._settled = bytearray()  # 1: hangs on the root or on something that will, 2: on the way up now

    def gather(self, shares: Iterable[Rows]) -> None:
        """Put the directories of all shares in order."""
        for ino, links, below, parent, cookie, settled in merge(*shares):
            self._inos.append(ino)
            self._links.append(links)
            self._below.append(below)
            self._parents.append(parent)
            self._cookies.append(cookie)
            self._settled.append(settled)

    def counts(self) -> Iterator[Fault]:
        """The faults of link counts."""
        for ino, links, below in zip(self._inos, self._links, self._below, strict=True):
            right = below + 2 + self.corrections[ino]
            if links not in (right, UNKNOWN_LINKS):
                yield _links_fault(ino, links, right)

    def reach(self) -> Iterator[Fault]:
        """What no chain of names joins to the root; only the top of each such tree is named."""
        for index in range(len(self._inos)):
            if not self._settled[index]:
                yield from self._climb(index)

    def _climb(self, index: int) -> Iterator[Fault]:
        way: list[int] = []
        while not self._settled[index]:
            self._settled[index] = 2
            way.append(index)
            above = self._index(self._parents[index])
            if above < 0:
                self.unreachable.append(self._inos[index])
                yield _unreachable_fault(self._inos[index])
                break
            index = above
        else:
            if self._settled[index] == 2:
                yield self._cycle(way[way.index(index) :])
        for passed in way:
            self._settled[passed] = 1

    def _index(self, ino: int) -> int:
        found = bisect_left(self._inos, ino)
        return found if found < len(self._inos) and self._inos[found] == ino else -1

    def _cycle(self, indexes: list[int]) -> Fault:
        lowest = min(indexes)
        ino = self._inos[lowest]
        self.unreachable.append(ino)
        names = ", ".join(str(self._inos[index]) for index in sorted(indexes)[:20])
        return Fault(
            "directory-cycle",
            f"inode {ino}",
            f"the directories {names} lie in one another and not below the root",
            fsck_edit.remove_name(self._parents[lowest], self._cookies[lowest]),
        )


class Share:
    """The inodes of one share of the census, and the names that lead to them."""

    def __init__(self, inodes: Rows, directories: Rows, corrections: Counter[int]) -> None:
        self._directories, self._corrections = directories, corrections
        self._inos = array("Q")  # ascending
        self._kinds = bytearray()
        self._links = array("I")
        self._parents = array("Q")  # what the inode says of its name
        self._suffixes = array("Q")
        self._below = array("I")  # directories that its names say they lead to
        self._flags = bytearray()
        for inos, kinds, links, parents, suffixes, names, below in inodes.columns():
            self._inos.extend(inos)
            self._kinds.extend(kinds)
            self._links.extend(links)
            self._parents.extend(parents)
            self._suffixes.extend(suffixes)
            self._below.extend(below)
            self._flags.extend(_HOLDS if count else 0 for count in names)
        count = len(self._inos)
        self._index = dict(zip(self._inos, range(count), strict=True))
        self._names = array("I", bytes(4 * count))  # that lead to the inode
        # Which name counts: of a directory its only one, of anything else any.
        self._name_parents = array("Q", b"\xff" * (8 * count))
        self._name_cookies = array("Q", bytes(8 * count))

    # -- names ------------------------------------------------------------------

    def follow_names(self, rows: Rows) -> Iterator[Fault]:
        """The faults of names that lead here, or nowhere."""
        index_of, kinds, names = self._index.get, self._kinds, self._names
        parents, suffixes, name_parents = self._parents, self._suffixes, self._name_parents
        slots = directory.SLOT_COUNT - 1
        for ino, cookie, target, kind in rows:
            index = index_of(target)
            if index is None:
                yield _name_fault("name-dangling", ino, cookie, f"inode {target}, which does not exist", None)
                continue
            actual = kinds[index]
            if kind != actual:
                self._corrections[ino] += (actual == DIRECTORY_KIND) - (kind == DIRECTORY_KIND)
                yield _name_fault("name-type", ino, cookie, f"inode {target} with a wrong type", actual)
            names[index] += 1
            matches = parents[index] == ino and suffixes[index] == cookie & ~slots
            if actual == DIRECTORY_KIND:
                fault = self._directory_name(index, target, ino, cookie, matches)
                if fault is not None:
                    yield fault
            elif name_parents[index] == _NONE:
                name_parents[index], self._name_cookies[index] = ino, cookie
            if matches:
                self._flags[index] |= _KNOWN

    def _directory_name(self, index: int, target: int, ino: int, cookie: int, matches: bool) -> Fault | None:
        """A directory was found by a name: the fault if it has another one, or is the root."""
        loser, loser_cookie = ino, cookie
        if target != ROOT_INO:
            before = self._name_parents[index], self._name_cookies[index]
            if before[0] == _NONE or (matches and not self._flags[index] & _KNOWN):
                self._name_parents[index], self._name_cookies[index] = ino, cookie
                loser, loser_cookie = before
        if loser == _NONE:
            return None
        place = f"directory {target}, which has its place elsewhere"
        return _name_fault("name-second-parent", loser, loser_cookie, place, None)

    # -- inodes -----------------------------------------------------------------

    def list_orphans(self, orphans: Iterable[int]) -> Iterator[Fault]:
        """Those of the list of deleted files that should not be on it."""
        for ino in orphans:
            index = self._index.get(ino)
            sentence = f"the list of deleted files names inode {ino}, which "
            if index is None:
                sentence += "does not exist"
            elif not self._is_alive(index, ino):
                self._flags[index] |= _ORPHAN
                continue
            elif self._kinds[index] == _REGULAR_KIND:
                continue  # it was cut, and what was behind its end has not all gone yet
            else:
                sentence += "is not deleted"
            yield Fault("orphan-stale", f"orphan {ino}", sentence, fsck_edit.unlist_orphan(ino))

    def _is_alive(self, index: int, ino: int) -> bool:
        return bool(
            self._names[index] or self._links[index] or self._flags[index] & _HOLDS or ino == ROOT_INO
        )

    def finish(self, unreachable: list[int]) -> Iterator[Fault]:
        """The faults of the inodes, when all names and orphans were seen. `unreachable` gets the files
        without a name; directories are passed on."""
        names, flags, all_links, kinds = self._names, self._flags, self._links, self._kinds
        for index, ino in enumerate(self._inos):
            count, links, kind = names[index], all_links[index], kinds[index]
            if kind == DIRECTORY_KIND:
                yield from self._finish_directory(index, ino)
            elif count == 1 and links == 1 and flags[index] & _KNOWN:
                continue  # as nearly always
            else:
                if count and links not in (count, UNKNOWN_LINKS):
                    # No name at all is reported as unreachable or deleted, not as a wrong count.
                    yield _links_fault(ino, links, count)
                if count:
                    yield from self._parent(index, ino)
                elif links and not flags[index] & _ORPHAN:
                    unreachable.append(ino)
                    yield _unreachable_fault(ino)
                elif not flags[index] & _ORPHAN:
                    yield _unlisted_fault(ino)

    def _finish_directory(self, index: int, ino: int) -> Iterator[Fault]:
        yield from self._parent(index, ino)
        links, is_orphan = self._links[index], bool(self._flags[index] & _ORPHAN)
        if not self._is_alive(index, ino):
            links = UNKNOWN_LINKS  # a deleted directory: 0 is right
            if not is_orphan:
                is_orphan = True
                yield _unlisted_fault(ino)
        self._directories.fresh += _DIRECTORY.pack(
            ino,
            links,
            self._below[index],
            self._name_parents[index],
            self._name_cookies[index],
            is_orphan or ino == ROOT_INO,
        )

    def _parent(self, index: int, ino: int) -> Iterator[Fault]:
        """An inode with a name may know none (unless it is a directory), but not a wrong one."""
        parent, knows = self._name_parents[index], self._parents[index]
        if ino == ROOT_INO or parent == _NONE or self._flags[index] & _KNOWN:
            return
        if self._links[index] == UNKNOWN_LINKS or (not knows and self._kinds[index] != DIRECTORY_KIND):
            return
        sentence = f"inode {ino} names a place in directory {knows}, but is in directory {parent}"
        fix = fsck_edit.set_parent(ino, parent, self._name_cookies[index])
        yield Fault("inode-parent", f"inode {ino}", sentence, fix)


def check_links(census: Census, unreachable: list[int], progress: Callable[[float], None]) -> Iterator[Fault]:
    """The faults between inodes, over a complete census. `unreachable` gets the inodes that need a name in
    lost+found; `progress` hears fractions."""
    directories, found = Directories(), list[Rows]()
    shares = census.shares()
    for number, (inodes, names) in enumerate(shares):
        progress(number / len(shares))
        found.append(Rows(_DIRECTORY, census.scratch))
        share = Share(inodes, found[-1], directories.corrections)
        yield from share.follow_names(names)
        yield from share.list_orphans(ino for ino in census.orphans if census.share_of(ino) == number)
        yield from share.finish(unreachable)
        found[-1].put_away()
    progress(1.0)
    directories.gather(found)
    yield from directories.counts()
    yield from directories.reach()
    unreachable += directories.unreachable


def _links_fault(ino: int, links: int, right: int) -> Fault:
    sentence = f"inode {ino} has link count {links}, but should have {right}"
    return Fault("inode-links", f"inode {ino}", sentence, fsck_edit.set_fields(ino, nlink=right))


def _unlisted_fault(ino: int) -> Fault:
    sentence = f"inode {ino} is deleted, but not in the list of deleted files"
    return Fault("orphan-unlisted", f"inode {ino}", sentence, fsck_edit.list_orphan(ino))


def _unreachable_fault(ino: int) -> Fault:
    return Fault("inode-unreachable", f"inode {ino}", f"inode {ino} has no name")


def _name_fault(code: str, ino: int, cookie: int, leads_to: str, kind: int | None) -> Fault:
    """A fault of one name: it gets another type, or is removed."""
    fix = fsck_edit.remove_name(ino, cookie) if kind is None else fsck_edit.retype_name(ino, cookie, kind)
    return Fault(
        code, f"directory {ino} place {cookie:#x}", f"a name in directory {ino} leads to {leads_to}", fix
    )
