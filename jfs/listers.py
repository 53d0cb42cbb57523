"""Who looks at the files that it lists, and who only wants their names. Pure.

Attributes in a list spare a LOOKUP for every file that is looked at, and cost an inode in the kernel for
every file that is not. No request says which it will be, and what the kernel holds it does not ask for. So in
a directory with many files the last is listed bare, without attributes, as a probe: whoever looks at the
files has that one looked up. A thread whose probe nobody looks up before it lists the next directory gets all
files bare, until somebody looks one up in a directory that it has listed. A wrong guess costs time and
nothing else: a bare file is looked up when it is asked for.

What is looked up after the kernel has let go of the directory says nothing: it would have forgotten
attributes too. Who looks up does not matter: a thread may list what others look at, of its program or of the
next in a pipe. What is no file is never bare: who only lists goes on into directories, and asks where links
lead.
"""

from collections.abc import Callable, Sequence
from stat import S_IFDIR, S_IFREG
from typing import Final

FILE: Final = S_IFREG >> 12
DIRECTORY: Final = S_IFDIR >> 12

PROBED_FILES: Final = 32
"""So many files in the first answer about a directory are worth a probe."""
MOST_SPARED: Final = 15
"""Directories without a probe after one that was looked up: 1, 3, 7, then so many. Each costs a LOOKUP."""
MOST: Final = 256
"""Threads that are remembered, and directories in which a LOOKUP is noticed; of more the oldest go."""
_DOTS: Final = 2  # `.` and `..`, with which the first answer begins


class _Lister:
    """A thread that lists directories."""

    __slots__ = ("ignored", "is_probing", "patience", "spared", "to_spare")

    def __init__(self) -> None:
        self.is_probing = False
        """The directory that it listed last had a probe, which nobody has looked up."""
        self.ignored = 0
        """Probes one after the other that nobody looked up before the next directory was listed."""
        self.patience = 1
        """So many of those say that it only wants names. Doubled each time that this was wrong: some programs
        list several directories, or all, before they look at anything.
        """
        self.to_spare = 0
        """Directories that will have no probe."""
        self.spared = 0
        """What that was after the last probe."""

    def wants_names(self) -> bool:
        return self.ignored >= self.patience

    def lists(self) -> None:
        """It lists the next directory."""
        if self.is_probing:
            self.is_probing = False
            self.ignored += 1
            self.spared = 0

    def looks(self) -> None:
        """Somebody looks at what it listed."""
        if self.wants_names():
            self.patience *= 2
        if self.is_probing:
            self.is_probing = False
            self.to_spare = self.spared = min(2 * self.spared + 1, MOST_SPARED)
        self.ignored = 0

    def takes_probe(self) -> bool:
        if self.to_spare:
            self.to_spare -= 1
            return False
        self.is_probing = True
        return True


class Listers:
    """What is known of the threads that list directories."""

    def __init__(self) -> None:
        self.watched: Final[dict[int, _Lister]] = {}
        """Directories in which somebody may look up a bare file, and who listed them; the oldest first."""
        self._known: Final[dict[int, _Lister]] = {}

    def bare(
        self,
        thread: int,
        directory: int,
        kinds: Sequence[int],
        is_held: Callable[[int], bool],
        *,
        first: bool,
    ) -> list[bool]:
        """Which names of an answer go without attributes.

        `kinds` are their types, mode >> 12; `is_held` tells of a place among them whether the kernel has the
        attributes, so that a look at it does not show; `first`: the list of this directory begins here.
        Thread 0 stands for all whose number the kernel does not tell: nothing is learnt of it.
        """
        lister = self._known.get(thread)
        if lister is not None:
            if first:
                lister.lists()
            if lister.wants_names():
                if first:
                    self._watch(thread, lister, directory)
                return [kind == FILE for kind in kinds]
        bare = [False] * len(kinds)
        if first and thread and _is_worth_a_probe(kinds):
            lister = lister or _Lister()
            last_file = len(kinds) - 1 - kinds[::-1].index(FILE)
            if not is_held(last_file) and lister.takes_probe():
                self._watch(thread, lister, directory)
                bare[last_file] = True
        return bare

    def looked_up(self, directory: int) -> None:
        """Somebody looked up a file in a directory that is watched."""
        self.watched.pop(directory).looks()

    def forgotten(self, directory: int) -> None:
        """The kernel let go of a directory that is watched, and of what it knew of the files in it: looks at
        them would not have been spared by attributes.
        """
        del self.watched[directory]

    def _watch(self, thread: int, lister: _Lister, directory: int) -> None:
        _put_last(self._known, thread, lister)
        _put_last(self.watched, directory, lister)


def _is_worth_a_probe(kinds: Sequence[int]) -> bool:
    """Where there are directories too a program may list those before it looks at the files."""
    return kinds.count(FILE) >= PROBED_FILES and DIRECTORY not in kinds[_DOTS:]


def _put_last(notes: dict[int, _Lister], key: int, lister: _Lister) -> None:
    notes.pop(key, None)
    notes[key] = lister
    if len(notes) > MOST:
        del notes[next(iter(notes))]
