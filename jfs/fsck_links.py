"""The checks between inodes: names and what they lead to, parents, link counts, reachability, deleted
files. Pure.

The census keeps a few integers for each inode and each name in flat arrays: about 60 bytes a file.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from stat import S_IFREG

from jfs import directory, fsck_edit
from jfs.fsck_codes import Fault
from jfs.fsck_edit import DIRECTORY_KIND
from jfs.layout import ROOT_INO

UNKNOWN_LINKS = 0xFFFFFFFF  # of an inode whose record is made anew: nothing to compare with
_NONE = 0xFFFFFFFFFFFFFFFF
_REGULAR_KIND = S_IFREG >> 12


class Census:
    """All inodes and all names of a volume. Inodes are added in ascending order."""

    def __init__(self) -> None:
        self.inos = array("Q")
        self.kinds = array("B")  # file type, mode >> 12
        self.links = array("I")
        self.parents = array("Q")
        self.name_suffixes = array("Q")  # key suffix of the bucket of the name that the inode knows
        self.directories = array("Q")  # of each name: where it is,
        self.cookies = array("Q")  # at which place there,
        self.targets = array("Q")  # where it leads,
        self.target_kinds = array("B")  # and the type it tells
        self.orphans = array("Q")

    def add_inode(self, ino: int, kind: int, links: int, parent_ino: int, name_suffix: int) -> None:
        """Note an inode: its type, link count, and the directory and bucket it says its name is in (0:
        none)."""
        self.inos.append(ino)
        self.kinds.append(kind)
        self.links.append(min(links, UNKNOWN_LINKS))
        self.parents.append(parent_ino)
        self.name_suffixes.append(name_suffix)

    def add_name(self, directory_ino: int, cookie: int, target: int, kind: int) -> None:
        """Note a name of a directory."""
        self.directories.append(directory_ino)
        self.cookies.append(cookie)
        self.targets.append(target)
        self.target_kinds.append(kind)

    def index(self, ino: int) -> int:
        """Where an inode is in the arrays, -1 if it does not exist."""
        found = bisect_left(self.inos, ino)
        return found if found < len(self.inos) and self.inos[found] == ino else -1


class LinkCheck:
    """The check between inodes, over a complete census."""

    def __init__(self, census: Census) -> None:
        self._census = census
        count = len(census.inos)
        self._names = array("I", bytes(4 * count))  # names that lead to the inode
        self._below = array("I", bytes(4 * count))  # directories that its names lead to
        self._holds = bytearray(count)  # 1: it is a directory with names
        self._known = bytearray(count)  # 1: the name that the inode knows leads to it
        # Which name counts: of a directory its only one, of anything else any.
        self._name_of = array("Q", [_NONE]) * count
        self._orphan = bytearray(count)
        self.unreachable: list[int] = []  # inodes that need a name in lost+found

    def run(self) -> Iterator[Fault]:
        """The faults between inodes; afterwards `unreachable` is filled."""
        for ino in self._census.orphans:
            index = self._census.index(ino)
            if index >= 0:
                self._orphan[index] = 1
        second = list(self._follow_names())
        # Counts first: their repair sets what is right before names come and go.
        yield from self._counts()
        yield from second
        yield from self._orphans()
        yield from self._reach()

    # -- names ------------------------------------------------------------------

    def _follow_names(self) -> Iterator[Fault]:
        census = self._census
        index_of, kinds, names, name_of = census.index, census.kinds, self._names, self._name_of
        parents, suffixes, known = census.parents, census.name_suffixes, self._known
        last, holder = _NONE, -1
        every = zip(census.directories, census.cookies, census.targets, census.target_kinds, strict=True)
        for number, (ino, cookie, target, kind) in enumerate(every):
            if ino != last:  # the names of one directory follow each other
                last, holder = ino, index_of(ino)
                self._holds[holder] = 1
            index = index_of(target)
            if index < 0:
                yield _name_fault("name-dangling", ino, cookie, f"inode {target}, which does not exist", None)
                self._below[holder] += kind == DIRECTORY_KIND
                continue
            actual = kinds[index]
            if kind != actual:
                yield _name_fault("name-type", ino, cookie, f"inode {target} with a wrong type", actual)
            names[index] += 1
            matches = parents[index] == ino and suffixes[index] == directory.split_cookie(cookie)[0]
            if actual == DIRECTORY_KIND:
                self._below[holder] += 1
                fault = self._directory_name(index, number, matches)
                if fault is not None:
                    yield fault
            elif name_of[index] == _NONE:
                name_of[index] = number
            if matches:
                known[index] = 1

    def _directory_name(self, index: int, number: int, matches: bool) -> Fault | None:
        """A directory was found by a name: the fault if it has another one, or is the root."""
        census = self._census
        loser = number
        if census.inos[index] != ROOT_INO:
            before = self._name_of[index]
            if before == _NONE or (matches and not self._known[index]):
                self._name_of[index] = number
                loser = before
        if loser == _NONE:
            return None
        place = f"directory {census.inos[index]}, which has its place elsewhere"
        return _name_fault(
            "name-second-parent", census.directories[loser], census.cookies[loser], place, None
        )

    # -- counts and parents -------------------------------------------------------

    def _counts(self) -> Iterator[Fault]:
        census = self._census
        every = zip(census.inos, census.kinds, census.links, self._names, self._below, strict=True)
        for index, (ino, kind, links, names, below) in enumerate(every):
            yield from self._parent(index, ino, kind)
            if links == UNKNOWN_LINKS:
                continue
            right = below + 2 if kind == DIRECTORY_KIND else names
            if kind == DIRECTORY_KIND and not names and not links and not self._holds[index]:
                right = 0  # a deleted directory
            # No name at all is reported as unreachable or deleted, not as a wrong count.
            if links != right and (names or kind == DIRECTORY_KIND):
                sentence = f"inode {ino} has link count {links}, but should have {right}"
                yield Fault("inode-links", f"inode {ino}", sentence, fsck_edit.set_fields(ino, nlink=right))

    def _parent(self, index: int, ino: int, kind: int) -> Iterator[Fault]:
        """An inode with a name may know none (unless it is a directory), but not a wrong one."""
        census = self._census
        number = self._name_of[index]
        if ino == ROOT_INO or number == _NONE or self._known[index]:
            return
        if census.links[index] == UNKNOWN_LINKS or (not census.parents[index] and kind != DIRECTORY_KIND):
            return
        parent, cookie = census.directories[number], census.cookies[number]
        sentence = (
            f"inode {ino} names a place in directory {census.parents[index]}, but is in directory {parent}"
        )
        yield Fault("inode-parent", f"inode {ino}", sentence, fsck_edit.set_parent(ino, parent, cookie))

    # -- deleted files --------------------------------------------------------------

    def _orphans(self) -> Iterator[Fault]:
        census = self._census
        for ino in census.orphans:
            index = census.index(ino)
            place = f"orphan {ino}"
            if index < 0:
                sentence = f"the list of deleted files names inode {ino}, which does not exist"
                yield Fault("orphan-stale", place, sentence, fsck_edit.unlist_orphan(ino))
            elif self._is_alive(index):
                self._orphan[index] = 0
                if census.kinds[index] == _REGULAR_KIND:
                    continue  # it was cut, and what was behind its end has not all gone yet
                sentence = f"the list of deleted files names inode {ino}, which is not deleted"
                yield Fault("orphan-stale", place, sentence, fsck_edit.unlist_orphan(ino))
        every = zip(census.inos, self._orphan, strict=True)
        for index, (ino, listed) in enumerate(every):
            if not listed and not self._is_alive(index):
                self._orphan[index] = 1
                sentence = f"inode {ino} is deleted, but not in the list of deleted files"
                yield Fault("orphan-unlisted", f"inode {ino}", sentence, fsck_edit.list_orphan(ino))

    def _is_alive(self, index: int) -> bool:
        return bool(
            self._names[index]
            or self._census.links[index]
            or self._holds[index]
            or self._census.inos[index] == ROOT_INO
        )

    # -- reachability ---------------------------------------------------------------

    def _reach(self) -> Iterator[Fault]:
        """Everything that no chain of names joins to the root; only the top of each such tree is named."""
        census = self._census
        # 0: not yet known, 1: hangs on the root or on something that will, 2: on the way up just now.
        state = bytearray(len(census.inos))
        for index, ino in enumerate(census.inos):
            if self._orphan[index] or ino == ROOT_INO:
                state[index] = 1
        for index, kind in enumerate(census.kinds):
            if kind == DIRECTORY_KIND and not state[index]:
                yield from self._climb(index, state)
        for index, kind in enumerate(census.kinds):
            if kind != DIRECTORY_KIND and not self._names[index] and not self._orphan[index]:
                yield self._lost(index, "has no name")

    def _climb(self, index: int, state: bytearray) -> Iterator[Fault]:
        census = self._census
        way: list[int] = []
        while not state[index]:
            state[index] = 2
            way.append(index)
            number = self._name_of[index]
            above = -1 if number == _NONE else census.index(census.directories[number])
            if above < 0:
                yield self._lost(index, "has no name")
                break
            index = above
        else:
            if state[index] == 2:
                yield self._cycle(way[way.index(index) :])
        for passed in way:
            state[passed] = 1

    def _lost(self, index: int, why: str) -> Fault:
        ino = self._census.inos[index]
        self.unreachable.append(ino)
        return Fault("inode-unreachable", f"inode {ino}", f"inode {ino} {why}")

    def _cycle(self, indexes: list[int]) -> Fault:
        census = self._census
        lowest = min(indexes)
        number = self._name_of[lowest]
        ino = census.inos[lowest]
        self.unreachable.append(ino)
        names = ", ".join(str(census.inos[index]) for index in sorted(indexes)[:20])
        return Fault(
            "directory-cycle",
            f"inode {ino}",
            f"the directories {names} lie in one another and not below the root",
            fsck_edit.remove_name(census.directories[number], census.cookies[number]),
        )


def _name_fault(code: str, ino: int, cookie: int, leads_to: str, kind: int | None) -> Fault:
    """A fault of one name: it gets another type, or is removed."""
    fix = fsck_edit.remove_name(ino, cookie) if kind is None else fsck_edit.retype_name(ino, cookie, kind)
    return Fault(
        code, f"directory {ino} place {cookie:#x}", f"a name in directory {ino} leads to {leads_to}", fix
    )
