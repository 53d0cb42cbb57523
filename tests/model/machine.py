"""The machine: every rule does one thing on jfs and on a plain directory, and compares all that can be seen.

The rules are declared once. What jfs is driven through (its interface, a real mount) and how it ends and
begins again is for the subclasses. A crash loses what was not made durable, so the machine makes everything
durable before; or, in `crash_without_sync`, finds jfs in one of the states since then.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jfs.errors import FileSystemError
from jfs.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.model.sides import OLD_NS, Calls, Side, Tree

Act = Callable[[Side], object]

PATHS = st.lists(st.sampled_from(["a", "b", "c", "d" * 255]), min_size=1, max_size=3)
KINDS = st.sampled_from([S_IFREG, S_IFREG, S_IFDIR, S_IFDIR, S_IFDIR, S_IFLNK, S_IFIFO])
FLAGS = st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o700])
OFFSETS = st.one_of(st.integers(0, 40_000), st.sampled_from([0, 4096, 8192, 4095, 1 << 20]))
REGULAR = "0o100"  # how a mode begins
NUMBERS = st.integers(0, 3)  # of what is open
NAME_ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("make"), PATHS, st.just(S_IFDIR), MODES),
        st.tuples(st.just("make"), PATHS, st.just(S_IFREG), MODES),
        st.tuples(st.just("rename"), PATHS, PATHS, FLAGS),
        st.tuples(st.just("link"), PATHS, PATHS),
        st.tuples(st.just("unlink"), PATHS),
        st.tuples(st.just("chmod"), PATHS, MODES),
    ),
    min_size=1,
    max_size=8,
)


def outcome(act: Act, side: Side) -> object:
    """The value that a call answers with, or the name of its error."""
    try:
        return act(side)
    except (OSError, FileSystemError) as error:
        return os.strerror(error.errno or 0)


class Machine(RuleBasedStateMachine):
    """Jfs beside a plain directory. Subclasses make `ours` and let it end and begin again."""

    ours: Side

    def begin_ours(self) -> None:
        raise NotImplementedError

    def remount(self, *, clean: bool) -> None:
        """End jfs (`clean` False: kill it) and begin again."""
        raise NotImplementedError

    def end_ours(self) -> None:
        """At the end of a run: jfs must be sound."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.place = tempfile.mkdtemp(prefix="trisite-oracle-")
        os.chmod(self.place, 0o755)
        self.oracle = Calls(Path(self.place))
        self.begin_ours()
        for side in (self.ours, self.oracle):
            side.set_time([], OLD_NS)

    def both(self, act: Act) -> None:
        """Do it on both; the answers are equal."""
        ours, expected = outcome(act, self.ours), outcome(act, self.oracle)
        assert ours == expected, f"jfs: {ours!r}, the oracle: {expected!r}"

    @rule(path=PATHS, kind=KINDS, mode=MODES)
    def make(self, path: list[str], kind: int, mode: int) -> None:
        self.both(lambda side: side.make(path, kind, mode))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: list[str], new: list[str]) -> None:
        self.both(lambda side: side.link(old, new))

    @rule(path=PATHS)
    def unlink(self, path: list[str]) -> None:
        self.both(lambda side: side.unlink(path))

    @rule(path=PATHS)
    def rmdir(self, path: list[str]) -> None:
        self.both(lambda side: side.rmdir(path))

    @rule(old=PATHS, new=PATHS, flags=FLAGS)
    def rename(self, old: list[str], new: list[str], flags: int) -> None:
        self.both(lambda side: side.rename(old, new, flags))

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: list[str], mode: int) -> None:
        self.both(lambda side: side.chmod(path, mode))

    @rule(path=PATHS, uid=st.integers(0, 5), gid=st.integers(0, 5))
    def chown(self, path: list[str], uid: int, gid: int) -> None:
        self.both(lambda side: side.chown(path, uid, gid))

    @rule(later=st.integers(0, 1 << 40))
    def set_all_times(self, later: int) -> None:
        """So that the next rules show which times they move."""
        for path in self.oracle.tree():
            self.both(lambda side, path=path: side.set_time(Path(path).parts, OLD_NS + later))  # type: ignore[misc]

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: list[str], size: int) -> None:
        self.both(lambda side: side.truncate(path, size))

    @rule(path=PATHS, name=st.sampled_from(["user.a", "user.b"]), value=st.none() | st.binary(max_size=200))
    def xattr(self, path: list[str], name: str, value: bytes | None) -> None:
        if value is None:
            self.both(lambda side: side.remove_xattr(path, name))
        else:
            self.both(lambda side: side.set_xattr(path, name, value))

    @rule(number=NUMBERS, pick=st.integers(0, 1 << 20), append=st.booleans())
    def open(self, number: int, pick: int, append: bool) -> None:
        """One of the names there are, so that much is open."""
        if number not in self.oracle.files:
            names = [name for name, seen in self.oracle.tree().items() if str(seen[0]).startswith(REGULAR)]
            if names:
                path = Path(sorted(names)[pick % len(names)]).parts
                self.both(lambda side: side.open(number, path, append))

    @rule(number=NUMBERS, path=PATHS)
    def open_any(self, number: int, path: list[str]) -> None:
        """Whatever a path leads to, but for pipes, which would wait."""
        if number not in self.oracle.files and not self.oracle.root.joinpath(*path).is_fifo():
            self.both(lambda side: side.open(number, path, False))

    @rule(number=NUMBERS)
    def close(self, number: int) -> None:
        if number in self.oracle.files:
            self.both(lambda side: side.close(number))

    @rule(number=NUMBERS, offset=OFFSETS, length=st.integers(1, 20_000), fill=st.integers(1, 255))
    def write(self, number: int, offset: int, length: int, fill: int) -> None:
        if number in self.oracle.files:
            self.both(lambda side: side.write(number, offset, bytes((fill,)) * length))

    @rule(number=NUMBERS, offset=OFFSETS, length=st.integers(1, 50_000))
    def read(self, number: int, offset: int, length: int) -> None:
        if number in self.oracle.files:
            self.both(lambda side: side.read(number, offset, length))

    @rule(number=NUMBERS, size=OFFSETS)
    def cut(self, number: int, size: int) -> None:
        if number in self.oracle.files:
            self.both(lambda side: side.cut(number, size))

    @rule()
    def remount_after_a_clean_end(self) -> None:
        self._close_all()
        self.remount(clean=True)

    @rule()
    def crash(self) -> None:
        """Killed with files open, just after everything was made durable."""
        self.ours.sync()
        self.remount(clean=False)
        for number in list(self.oracle.files):
            self.oracle.close(number)

    @rule(acts=NAME_ACTS)
    def crash_without_sync(self, acts: list[tuple[object, ...]]) -> None:
        """Killed after changes that nobody made durable: some of them are there, in their order."""
        self._close_all()
        self.ours.sync()
        states = [self.oracle.tree()]
        steps: list[Act] = [partial(_call, act) for act in acts]
        for step in steps:
            self.both(step)
            states.append(self.oracle.tree())
        self.remount(clean=False)
        found = self.ours.tree()
        assert found in states, f"after the crash there is none of {len(states)} states: {found}"
        reached = len(states) - 1 - states[::-1].index(found)
        for step in steps[reached:]:
            outcome(step, self.ours)

    def _close_all(self) -> None:
        for number in list(self.oracle.files):
            self.both(partial(_call, ("close", number)))

    @invariant()
    def all_is_the_same(self) -> None:
        if not hasattr(self, "place"):
            return
        ours, expected = self.ours.tree(), self.oracle.tree()
        assert ours == expected, difference(ours, expected)
        for number in self.oracle.files:
            self.both(partial(_call, ("seen_open", number)))

    def teardown(self) -> None:
        if hasattr(self, "place"):
            for number in list(self.oracle.files):
                self.both(partial(_call, ("close", number)))
            shutil.rmtree(self.place)
            self.end_ours()


def _call(act: tuple[object, ...], side: Side) -> object:
    return getattr(side, str(act[0]))(*act[1:])


def difference(ours: Tree, expected: Tree) -> str:
    """The names that are not the same, with what is seen of them on jfs and on the oracle."""
    names = sorted(name for name in {*ours, *expected} if ours.get(name) != expected.get(name))
    return "; ".join(
        f"{name!r}: {str(ours.get(name))[:300]} / {str(expected.get(name))[:300]}" for name in names
    )
