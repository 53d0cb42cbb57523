"""Random operations on the file system and on a dumb oracle: same answers, same errors, same tree.

The oracle is a tree of plain objects, dictionaries and byte arrays. A run also remounts, with
and without a proper end, and commits at random places.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from stat import S_IFDIR, S_IFLNK, S_IFREG
from uuid import UUID

import hypothesis.strategies as st
import trio
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jfs.errors import FileSystemError
from jfs.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE, FileSystem, FileSystemOptions
from jfs.fsck import check
from jfs.layout import ORPHAN, ORPHAN_INO, key_range
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import MemoryDevice

SIZE = 32 << 20
ROOT = 1
OPTIONS = FileSystemOptions(cache_inodes=6)  # few enough that inodes come and go all the time


@dataclass(eq=False)
class Thing:
    """A file, directory or symbolic link of the oracle."""

    kind: int
    nlink: int
    content: bytearray = field(default_factory=bytearray)
    names: dict[bytes, "Thing"] = field(default_factory=dict)
    parent: "Thing | None" = None
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    held: bool = False

    @property
    def is_directory(self) -> bool:
        return self.kind == S_IFDIR


class Refused(Exception):
    """The oracle refuses, with an errno."""


class Oracle:
    """POSIX as simply as it can be said."""

    def __init__(self) -> None:
        self.root = Thing(S_IFDIR, 2)

    def make(self, parent: Thing, name: bytes, kind: int) -> Thing:
        self._need_place(parent)
        if name in parent.names:
            raise Refused(errno.EEXIST)
        thing = Thing(kind, 2 if kind == S_IFDIR else 1, parent=parent)
        parent.names[name] = thing
        parent.nlink += thing.is_directory
        return thing

    def link(self, thing: Thing, parent: Thing, name: bytes) -> None:
        if not parent.is_directory:
            raise Refused(errno.ENOTDIR)
        if thing.is_directory:
            raise Refused(errno.EPERM)
        if not thing.nlink or not parent.nlink:
            raise Refused(errno.ENOENT)
        if name in parent.names:
            raise Refused(errno.EEXIST)
        parent.names[name] = thing
        thing.nlink += 1

    def unlink(self, parent: Thing, name: bytes) -> None:
        thing = self._existing(parent, name)
        if thing.is_directory:
            raise Refused(errno.EISDIR)
        del parent.names[name]
        thing.nlink -= 1

    def rmdir(self, parent: Thing, name: bytes) -> None:
        thing = self._existing(parent, name)
        if not thing.is_directory:
            raise Refused(errno.ENOTDIR)
        if thing.names:
            raise Refused(errno.ENOTEMPTY)
        del parent.names[name]
        parent.nlink -= 1
        thing.nlink = 0

    def rename(self, parent: Thing, name: bytes, new_parent: Thing, new_name: bytes, flags: int) -> None:
        if not parent.is_directory or not new_parent.is_directory:
            raise Refused(errno.ENOTDIR)
        thing = self._existing(parent, name)
        other = new_parent.names.get(new_name)
        if not new_parent.nlink:
            raise Refused(errno.ENOENT)
        if flags == RENAME_NOREPLACE and other is not None:
            raise Refused(errno.EEXIST)
        if thing.is_directory and self._is_below(new_parent, thing):
            raise Refused(errno.EINVAL)
        if flags == RENAME_EXCHANGE:
            self._exchange(parent, name, thing, new_parent, new_name, other)
            return
        if other is thing:
            return
        if other is not None:
            if other.is_directory != thing.is_directory:
                raise Refused(errno.ENOTDIR if thing.is_directory else errno.EISDIR)
            if other.names:
                raise Refused(errno.ENOTEMPTY)
            other.nlink = 0 if other.is_directory else other.nlink - 1
            new_parent.nlink -= other.is_directory
        del parent.names[name]
        new_parent.names[new_name] = thing
        parent.nlink -= thing.is_directory
        new_parent.nlink += thing.is_directory
        thing.parent = new_parent

    def _exchange(
        self,
        parent: Thing,
        name: bytes,
        thing: Thing,
        new_parent: Thing,
        new_name: bytes,
        other: Thing | None,
    ) -> None:
        if other is None:
            raise Refused(errno.ENOENT)
        if other.is_directory and self._is_below(parent, other):
            raise Refused(errno.EINVAL)
        parent.names[name], new_parent.names[new_name] = other, thing
        parent.nlink += other.is_directory - thing.is_directory
        new_parent.nlink += thing.is_directory - other.is_directory
        other.parent, thing.parent = parent, new_parent

    def _existing(self, parent: Thing, name: bytes) -> Thing:
        if not parent.is_directory:
            raise Refused(errno.ENOTDIR)
        if name not in parent.names:
            raise Refused(errno.ENOENT)
        return parent.names[name]

    def _need_place(self, parent: Thing) -> None:
        if not parent.is_directory:
            raise Refused(errno.ENOTDIR)
        if not parent.nlink:
            raise Refused(errno.ENOENT)

    def _is_below(self, place: Thing | None, thing: Thing) -> bool:
        while place is not None:
            if place is thing:
                return True
            place = place.parent
        return False


def outcome(call: Callable[[], object]) -> tuple[int | None, object]:
    """The errno of a call, or None and its result."""
    try:
        return None, call()
    except FileSystemError as error:
        return error.errno, None
    except Refused as refusal:
        return refusal.args[0], None


TARGETS = st.binary(min_size=1, max_size=4095).map(lambda target: target.replace(b"\0", b"/"))
NAMES = st.sampled_from([b"a", b"b", b"c", b"d" * 255])
PICK = st.integers(0, 30)
KINDS = st.sampled_from([S_IFREG, S_IFREG, S_IFDIR, S_IFDIR, S_IFLNK])
OFFSETS = st.one_of(st.integers(0, 40_000), st.sampled_from([0, 4096, 8192, 4095, 1 << 20]))


class Comparison(RuleBasedStateMachine):
    """Every rule does one thing on both sides and compares."""

    fs: FileSystem
    device: MemoryDevice

    @initialize()
    def begin(self) -> None:
        self.device = MemoryDevice(SIZE)
        self.oracle = Oracle()
        self.things: dict[int, Thing] = {ROOT: self.oracle.root}

        async def make() -> None:
            await make_file_system(self.device, volume_uuid=UUID(int=99 << 64), epoch=1, label="model")
            await self._open()

        trio.run(make)

    async def _open(self) -> None:
        self.fs = FileSystem(await Store.open(self.device), OPTIONS)

    def pick(self, number: int) -> tuple[int, Thing]:
        inos = sorted(self.things)
        ino = inos[number % len(inos)]
        return ino, self.things[ino]

    def forget_gone(self) -> None:
        for ino, thing in list(self.things.items()):
            if not thing.nlink and not thing.held:
                del self.things[ino]
                assert outcome(lambda ino=ino: self.fs.node(ino))[0] == errno.ESTALE  # type: ignore[misc]

    def same(self, ours: Callable[[], object], theirs: Callable[[], object]) -> bool:
        """Do both; equal errors; True if both did it."""
        got, wanted = outcome(ours)[0], outcome(theirs)[0]
        assert got == wanted, (got and errno.errorcode[got], wanted and errno.errorcode[wanted])
        self.forget_gone()
        return got is None

    @rule(place=PICK, name=NAMES, kind=KINDS, says=TARGETS)
    def make(self, place: int, name: bytes, kind: int, says: bytes) -> None:
        ino, parent = self.pick(place)
        target = says if kind == S_IFLNK else b""
        code, node = outcome(lambda: self.fs.make(ino, name, kind | 0o644, target=target))
        wanted, thing = outcome(lambda: self.oracle.make(parent, name, kind))
        assert code == wanted
        if node is not None and isinstance(thing, Thing):
            thing.content[:] = target
            self.things[node.ino] = thing  # type: ignore[attr-defined]

    @rule(what=PICK, place=PICK, name=NAMES)
    def link(self, what: int, place: int, name: bytes) -> None:
        ino, thing = self.pick(what)
        parent_ino, parent = self.pick(place)
        self.same(lambda: self.fs.link(ino, parent_ino, name), lambda: self.oracle.link(thing, parent, name))

    @rule(place=PICK, name=NAMES)
    def unlink(self, place: int, name: bytes) -> None:
        ino, parent = self.pick(place)
        self.same(lambda: self.fs.unlink(ino, name), lambda: self.oracle.unlink(parent, name))

    @rule(place=PICK, name=NAMES)
    def rmdir(self, place: int, name: bytes) -> None:
        ino, parent = self.pick(place)
        self.same(lambda: self.fs.rmdir(ino, name), lambda: self.oracle.rmdir(parent, name))

    @rule(
        place=PICK,
        name=NAMES,
        new_place=PICK,
        new_name=NAMES,
        flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(self, place: int, name: bytes, new_place: int, new_name: bytes, flags: int) -> None:
        ino, parent = self.pick(place)
        new_ino, new_parent = self.pick(new_place)
        self.same(
            lambda: self.fs.rename(ino, name, new_ino, new_name, flags),
            lambda: self.oracle.rename(parent, name, new_parent, new_name, flags),
        )

    @rule(what=PICK, offset=OFFSETS, length=st.integers(1, 20_000), fill=st.integers(1, 255))
    def write(self, what: int, offset: int, length: int, fill: int) -> None:
        ino, thing = self.pick(what)
        if thing.kind == S_IFREG:
            self.fs.write(ino, offset, bytes([fill]) * length)
            thing.content.extend(bytes(max(0, offset + length - len(thing.content))))
            thing.content[offset : offset + length] = bytes([fill]) * length
        else:
            code = errno.EISDIR if thing.is_directory else errno.EINVAL
            assert outcome(lambda: self.fs.write(ino, offset, b"x"))[0] == code

    @rule(what=PICK, size=OFFSETS)
    def truncate(self, what: int, size: int) -> None:
        ino, thing = self.pick(what)
        if thing.kind == S_IFREG:
            self.fs.setattr(ino, size=size)
            del thing.content[size:]
            thing.content.extend(bytes(size - len(thing.content)))

    @rule(what=PICK, offset=OFFSETS, length=st.integers(0, 50_000))
    def read(self, what: int, offset: int, length: int) -> None:
        ino, thing = self.pick(what)
        if thing.kind == S_IFREG:
            assert bytes(self.fs.read(ino, offset, length)) == thing.content[offset : offset + length]

    @rule(what=PICK, name=NAMES, value=st.none() | st.binary(max_size=2000))
    def xattr(self, what: int, name: bytes, value: bytes | None) -> None:
        ino, thing = self.pick(what)
        name = b"user." + name[:200]
        if value is not None:
            self.fs.setxattr(ino, name, value)
            thing.attributes[name] = value
        else:
            code = outcome(lambda: self.fs.removexattr(ino, name))[0]
            assert code == (None if name in thing.attributes else errno.ENODATA)
            thing.attributes.pop(name, None)

    @rule(what=PICK)
    def hold(self, what: int) -> None:
        ino, thing = self.pick(what)
        if not thing.held:
            self.fs.remember_lookup(ino)
            thing.held = True

    @rule(what=PICK)
    def let_go(self, what: int) -> None:
        ino, thing = self.pick(what)
        if thing.held:
            thing.held = False
            self.fs.forget(ino)
            self.forget_gone()

    @rule()
    def commit(self) -> None:
        trio.run(self.fs.commit)

    @rule()
    def checkpoint(self) -> None:
        trio.run(self.fs.store.checkpoint)

    @rule(clean=st.booleans())
    def remount(self, clean: bool) -> None:
        """End properly, or die right after a commit; nobody holds anything afterwards."""

        async def again() -> None:
            if clean:
                await self.fs.close()
            else:
                await self.fs.commit()
            await self._open()

        trio.run(again)
        for thing in self.things.values():
            thing.held = False
        self.forget_gone()

    @invariant()
    def inodes_agree(self) -> None:
        if not hasattr(self, "things"):
            return
        for ino, thing in self.things.items():
            node = self.fs.node(ino)
            size = len(thing.names) if thing.is_directory else len(thing.content)
            assert (node.nlink, node.size_bytes) == (thing.nlink, size)

    def teardown(self) -> None:
        if not hasattr(self, "things"):
            return
        for written in (self.fs.commit, self.fs.store.checkpoint):
            trio.run(written)
            assert check(self.device) == []
        numbers = {thing: ino for ino, thing in self.things.items()}
        used = 0
        for ino, thing in self.things.items():
            node = self.fs.node(ino)
            used += node.blocks
            assert {name: self.fs.getxattr(ino, name) for name in self.fs.listxattr(ino)} == thing.attributes
            if thing.is_directory:
                listed = {entry.name: (entry.ino, entry.kind << 12) for entry in self.fs.readdir(ino)}
                del listed[b"."], listed[b".."]
                assert listed == {name: (numbers[child], child.kind) for name, child in thing.names.items()}
            elif thing.kind == S_IFLNK:
                assert self.fs.readlink(ino) == thing.content
            else:
                assert bytes(self.fs.read(ino, 0, 1 << 30)) == thing.content
        orphans = {
            int.from_bytes(key[9:], "big") for key, _ in self.fs.store.scan(*key_range(ORPHAN_INO, ORPHAN))
        }
        assert orphans == {ino for ino, thing in self.things.items() if not thing.nlink}


Comparison.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, suppress_health_check=list(HealthCheck), deadline=None
)
TestModel = Comparison.TestCase
