"""The two ways to drive a file system by paths: through system calls, and through jfs's own interface.

Both answer with the same words: a value, or an error that has an errno. What the kernel does before a file
system is asked (walking paths, a few checks of rename and link) the second one does itself.
"""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from uuid import UUID

import trio

from jfs.errors import FileSystemError
from jfs.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE, FileSystem, FileSystemOptions, Node
from jfs.fsck import check
from jfs.mkfs import make_file_system
from jfs.nodes import now_ns
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.posix import calls

Steps = Sequence[str]  # the names of a path
OLD_NS = 1_000_000_000 * 10**9  # in 2001; what is later was set by the file system itself
BEFORE_NOW_NS = OLD_NS + 10**17
ROOT = 1
SIZE_BYTES = 32 << 20
TARGET = "/nowhere/at/all"  # of all symbolic links: they lead nowhere
ALL = 1 << 30


class Seen(tuple[object, ...]):
    """What can be seen of one file."""

    __slots__ = ()


Tree = dict[str, Seen]


class Side(Protocol):
    """One file system, by paths, and by numbers for what is open."""

    def make(self, path: Steps, kind: int, mode: int) -> None: ...
    def link(self, old: Steps, new: Steps) -> None: ...
    def unlink(self, path: Steps) -> None: ...
    def rmdir(self, path: Steps) -> None: ...
    def rename(self, old: Steps, new: Steps, flags: int) -> None: ...
    def chmod(self, path: Steps, mode: int) -> None: ...
    def chown(self, path: Steps, uid: int, gid: int) -> None: ...
    def set_time(self, path: Steps, mtime_ns: int) -> None: ...
    def truncate(self, path: Steps, size: int) -> None: ...
    def set_xattr(self, path: Steps, name: str, value: bytes) -> None: ...
    def remove_xattr(self, path: Steps, name: str) -> None: ...
    def open(self, number: int, path: Steps, append: bool) -> None: ...
    def write(self, number: int, offset: int, data: bytes) -> None: ...
    def read(self, number: int, offset: int, length: int) -> bytes: ...
    def cut(self, number: int, size: int) -> None: ...
    def close(self, number: int) -> None: ...
    def seen_open(self, number: int) -> Seen: ...
    def tree(self) -> Tree: ...
    def sync(self) -> None: ...


def stamp(mtime_ns: int) -> object:
    """A time that a step has set, or that it is the file system's own."""
    return mtime_ns if mtime_ns < BEFORE_NOW_NS else "now"


class Calls:
    """A directory, by system calls: the mount, or the oracle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, int] = {}

    def _at(self, path: Steps) -> Path:
        return self.root.joinpath(*path)

    def make(self, path: Steps, kind: int, mode: int) -> None:
        place = self._at(path)
        if kind == stat.S_IFDIR:
            place.mkdir(mode)
        elif kind == stat.S_IFLNK:
            place.symlink_to(TARGET)
        else:
            os.mknod(place, kind | mode)

    def link(self, old: Steps, new: Steps) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def unlink(self, path: Steps) -> None:
        self._at(path).unlink()

    def rmdir(self, path: Steps) -> None:
        self._at(path).rmdir()

    def rename(self, old: Steps, new: Steps, flags: int) -> None:
        calls.renameat2(self._at(old), self._at(new), flags)

    def chmod(self, path: Steps, mode: int) -> None:
        self._at(path).chmod(mode)

    def chown(self, path: Steps, uid: int, gid: int) -> None:
        os.chown(self._at(path), uid, gid)

    def set_time(self, path: Steps, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(OLD_NS, mtime_ns))

    def truncate(self, path: Steps, size: int) -> None:
        os.truncate(self._at(path), size)

    def set_xattr(self, path: Steps, name: str, value: bytes) -> None:
        os.setxattr(self._at(path), name, value)

    def remove_xattr(self, path: Steps, name: str) -> None:
        os.removexattr(self._at(path), name)

    def open(self, number: int, path: Steps, append: bool) -> None:
        flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_APPEND if append else 0)
        self.files[number] = os.open(self._at(path), flags)

    def write(self, number: int, offset: int, data: bytes) -> None:
        assert os.pwrite(self.files[number], data, offset) == len(data)

    def read(self, number: int, offset: int, length: int) -> bytes:
        return os.pread(self.files[number], length, offset)

    def cut(self, number: int, size: int) -> None:
        os.ftruncate(self.files[number], size)

    def close(self, number: int) -> None:
        os.close(self.files.pop(number))

    def seen_open(self, number: int) -> Seen:
        found = os.fstat(self.files[number])
        return Seen((found.st_nlink, found.st_size, stamp(found.st_mtime_ns), self.read(number, 0, ALL)))

    def tree(self) -> Tree:
        found = {"": self._seen(self.root)}
        for place, directories, files in os.walk(self.root):
            for name in directories + files:
                path = Path(place, name)
                found[str(path.relative_to(self.root))] = self._seen(path)
        return found

    def _seen(self, path: Path) -> Seen:
        found = path.lstat()
        says: object = None
        names = sorted(os.listxattr(path, follow_symlinks=False))
        values = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
        if stat.S_ISREG(found.st_mode):
            says = found.st_size, path.read_bytes()
        elif stat.S_ISLNK(found.st_mode):
            says = str(path.readlink())
        owner = found.st_uid, found.st_gid
        return Seen((oct(found.st_mode), found.st_nlink, owner, stamp(found.st_mtime_ns), says, values))

    def sync(self) -> None:
        """Make all of it durable, as a program can."""
        for place, _, files in os.walk(self.root):
            paths = [Path(place, name) for name in files]
            for path in [one for one in paths if one.is_file() and not one.is_symlink()] + [Path(place)]:
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)


class Interface:
    """jfs in memory, by its own interface."""

    def __init__(self) -> None:
        self.device = MemoryDevice(SIZE_BYTES)
        self.files: dict[int, tuple[int, bool]] = {}
        trio.run(self._make)

    async def _make(self) -> None:
        await make_file_system(self.device, volume_uuid=UUID(int=98 << 64), epoch=1, label="model")
        await self._open_store()

    async def _open_store(self) -> None:
        # Few inodes in memory, so that they come and go all the time.
        self.fs = FileSystem(await Store.open(self.device), FileSystemOptions(cache_inodes=6))

    def remount(self, *, clean: bool) -> None:
        """End properly, or lose what was not made durable."""
        if clean:
            trio.run(self.fs.close)
        trio.run(self._open_store)

    def sync(self) -> None:
        trio.run(self.fs.commit)

    def checked(self) -> None:
        """The volume is sound."""
        for written in (self.fs.commit, self.fs.store.checkpoint):
            trio.run(written)
            assert check(self.device) == []

    def _node(self, path: Steps) -> Node:
        node = self.fs.node(ROOT)
        for step, name in enumerate(path):
            found = self.fs.lookup(self._directory(node), name.encode())
            if found is None:
                raise FileSystemError(errno.ENOENT)
            node = found
            if stat.S_ISLNK(node.mode) and step < len(path) - 1:
                raise FileSystemError(errno.ENOENT)  # it leads nowhere
        return node

    def _directory(self, node: Node) -> int:
        if not stat.S_ISDIR(node.mode):
            raise FileSystemError(errno.ENOTDIR)
        return node.ino

    def _place(self, path: Steps) -> tuple[int, bytes]:
        """Directory and name; the kernel wants the directory to be one before it asks for the rest."""
        node = self._node(path[:-1])
        if stat.S_ISLNK(node.mode):
            raise FileSystemError(errno.ENOENT)
        return self._directory(node), path[-1].encode()

    def _followed(self, path: Steps) -> Node:
        if path:
            self._place(path)
        node = self._node(path)
        if stat.S_ISLNK(node.mode):
            raise FileSystemError(errno.ENOENT)
        return node

    def make(self, path: Steps, kind: int, mode: int) -> None:
        parent, name = self._place(path)
        if kind == stat.S_IFLNK:
            self.fs.symlink(parent, name, TARGET.encode())
        else:
            self.fs.make(parent, name, kind | mode)

    def link(self, old: Steps, new: Steps) -> None:
        self._place(old)
        node = self._node(old)
        parent, name = self._place(new)
        if self.fs.lookup(parent, name) is not None:
            raise FileSystemError(errno.EEXIST)
        self.fs.link(node.ino, parent, name)

    def unlink(self, path: Steps) -> None:
        self.fs.unlink(*self._place(path))

    def rmdir(self, path: Steps) -> None:
        self.fs.rmdir(*self._place(path))

    def rename(self, old: Steps, new: Steps, flags: int) -> None:
        places = *self._place(old), *self._place(new)
        is_there = self.fs.lookup(*places[:2]) is not None
        if is_there and len(new) < len(old) and list(old[: len(new)]) == list(new):
            # The kernel sees to this alone: what is to be replaced holds what is moved.
            codes = {RENAME_EXCHANGE: errno.EINVAL, RENAME_NOREPLACE: errno.EEXIST}
            raise FileSystemError(codes.get(flags, errno.ENOTEMPTY))
        self.fs.rename(*places, flags)

    def chmod(self, path: Steps, mode: int) -> None:
        self.fs.setattr(self._followed(path).ino, mode=mode)

    def chown(self, path: Steps, uid: int, gid: int) -> None:
        self.fs.setattr(self._followed(path).ino, uid=uid, gid=gid)

    def set_time(self, path: Steps, mtime_ns: int) -> None:
        self.fs.setattr(self._followed(path).ino, atime_ns=OLD_NS, mtime_ns=mtime_ns)

    def truncate(self, path: Steps, size: int) -> None:
        self.fs.setattr(self._followed(path).ino, size=size, mtime_ns=now_ns())

    def set_xattr(self, path: Steps, name: str, value: bytes) -> None:
        self.fs.setxattr(self._with_xattrs(path, name), name.encode(), value)

    def remove_xattr(self, path: Steps, name: str) -> None:
        self.fs.removexattr(self._with_xattrs(path, name), name.encode())

    def _with_xattrs(self, path: Steps, name: str) -> int:
        """The kernel sees to this alone: only files and directories have attributes of users."""
        node = self._followed(path)
        if name.startswith("user.") and not (stat.S_ISREG(node.mode) or stat.S_ISDIR(node.mode)):
            raise FileSystemError(errno.EPERM)
        return node.ino

    def open(self, number: int, path: Steps, append: bool) -> None:
        self._place(path)
        node = self._node(path)
        if stat.S_ISLNK(node.mode):
            raise FileSystemError(errno.ELOOP)
        if stat.S_ISDIR(node.mode):
            raise FileSystemError(errno.EISDIR)
        self.fs.remember_lookup(node.ino)
        self.files[number] = node.ino, append

    def write(self, number: int, offset: int, data: bytes) -> None:
        ino, append = self.files[number]
        self.fs.write(ino, self.fs.node(ino).size_bytes if append else offset, data)

    def read(self, number: int, offset: int, length: int) -> bytes:
        return bytes(self.fs.read(self.files[number][0], offset, length))

    def cut(self, number: int, size: int) -> None:
        self.fs.setattr(self.files[number][0], size=size, mtime_ns=now_ns())

    def close(self, number: int) -> None:
        self.fs.forget(self.files.pop(number)[0])

    def seen_open(self, number: int) -> Seen:
        node = self.fs.node(self.files[number][0])
        return Seen((node.nlink, node.size_bytes, stamp(node.mtime_ns), self.read(number, 0, ALL)))

    def tree(self) -> Tree:
        found: Tree = {}
        self._look(ROOT, "", found)
        return found

    def _look(self, ino: int, path: str, found: Tree) -> None:
        node = self.fs.node(ino)
        says: object = None
        names = sorted(self.fs.listxattr(ino))
        values = [(name.decode(), self.fs.getxattr(ino, name)) for name in names]
        head = oct(node.mode), node.nlink, (node.uid, node.gid), stamp(node.mtime_ns)
        if stat.S_ISREG(node.mode):
            says = node.size_bytes, bytes(self.fs.read(ino, 0, ALL))
        elif stat.S_ISLNK(node.mode):
            says = self.fs.readlink(ino).decode()
        found[path] = Seen((*head, says, values))
        if stat.S_ISDIR(node.mode):
            for entry in list(self.fs.readdir(ino)):
                if entry.name not in (b".", b".."):
                    self._look(entry.ino, os.path.join(path, entry.name.decode()), found)
