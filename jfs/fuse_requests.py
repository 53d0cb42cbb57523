"""The frequent requests of the kernel, answered from their bytes. Imports nothing of libfuse.

The volume has one writer, this process, so the kernel may believe names and attributes for as long as it
likes and keeps written pages until it writes them back (writeback cache). Of regular files the kernel keeps
size and times of change itself and sends them along; a WRITE must therefore not stamp times.

Every request names its inode, and a READ or WRITE the flags of the open file. So nobody has to be told of
files that are opened and closed: OPEN, OPENDIR and FLUSH are answered ENOSYS, after which the kernel opens
and closes by itself (and has written back its pages before a close returns, which reports what went wrong
with them); so is CREATE, instead of which it then sends MKNOD. What the kernel holds is counted by names and
FORGET, so a file that loses its last name while it is open stays.

What the kernel leaves to us: keeping ACLs and modes in step, inheriting default ACLs, and access times.
Setuid and setgid are ours to clear as well (`fuse_door` promises it): with a cut, with a new owner, at a
SETATTR that sets nothing, by which the kernel says that they must go (before a write, or at a chown of
nothing), and at a WRITE that says so.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from stat import S_IFDIR, S_IFMT, S_IFREG
from typing import Final

from jfs import fuse_wire as wire
from jfs.device import Buffer
from jfs.errors import CorruptionError, DeviceError, FileSystemError
from jfs.fileio import privileges_cleared
from jfs.filesystem import FileSystem, Node, Owner
from jfs.listers import Listers
from jfs.quiet_log import QuietLog

log = logging.getLogger("jfs")
faults = QuietLog(log)

WRITES_AHEAD: Final = (
    8  # answered to the kernel and not yet complete: it keeps no more than this before the device
)
BLOCKS_SHARE: Final = 16
"""st_blocks of a file is right to this part of it after an fsync."""
_CAPABILITY: Final = b"security.capability"
_MOST_NOTES: Final = 10_000

Handler = Callable[[int, bytes, int, int], Buffer]
"""(inode, request with its header, uid, gid) -> body of the answer. Raises what `error_number` knows."""


def error_number(error: Exception) -> int:
    """What the kernel hears of a failure, decided in this one place. Faults leave a line in the log."""
    match error:
        case FileSystemError():
            return error.errno
        case DeviceError():
            faults.error(f"the device refuses: {error.sentence}")
        case CorruptionError():
            faults.error(f"the volume is damaged: {error.sentence}; unmount it and run fsck")
        case _:
            log.error("a request failed for an unknown reason", exc_info=error)
    return errno.EIO


class Requests:
    """What the kernel asks of a file system. `looks` only read, `changes` change something; none waits."""

    def __init__(self, file_system: FileSystem) -> None:
        self.fs = file_system
        self.stale: Callable[[int], None] = lambda ino: None
        """Lets the kernel ask for the attributes of an inode again."""
        # New files of which the kernel has heard once, and then of one block.
        self._made: set[int] = set()
        # Files without blocks of which the kernel has pages to write.
        self._filling: set[int] = set()
        self._told: dict[int, int] = {}  # after an fsync: the blocks that the kernel was made to ask for
        self._listers = Listers()
        self.looks: Final[dict[int, Handler]] = {
            wire.LOOKUP: self._lookup,
            wire.GETATTR: self._getattr,
            wire.READ: self._read,
            wire.GETXATTR: self._getxattr,
            wire.READDIR: self._readdir,
            wire.READDIRPLUS: self._readdirplus,
        }
        self.changes: Final[dict[int, Handler]] = {
            wire.SETATTR: self._setattr,
            wire.MKNOD: self._mknod,
            wire.MKDIR: self._mkdir,
            wire.UNLINK: self._unlink,
            wire.RMDIR: self._rmdir,
            wire.RENAME: self._rename,
            wire.RENAME2: self._rename2,
        }

    def sectors(self, node: Node) -> int:
        """What st_blocks shows. The page cache may hold data that we do not know of, and tar and others take
        a file without blocks for one hole: it shows one meanwhile.
        """
        blocks = node.blocks
        if blocks or node.ino not in self._filling:
            self._made.discard(node.ino)
            return blocks * wire.SECTORS
        return wire.SECTORS

    def _known(self, node: Node) -> bytes:
        """The answer that lets the kernel hold an inode once more."""
        self.fs.remember_lookup(node.ino)
        return wire.entry(node, self.sectors(node))

    # --- what only reads

    def _lookup(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        node = self.fs.lookup(ino, request[wire.BODY_AT : -1])
        if node is None:
            return wire.MISSING
        if ino in self._listers.watched and S_IFMT(node.mode) == S_IFREG:
            self._listers.looked_up(ino)
        return self._known(node)

    def _getattr(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        node = self.fs.node(ino)
        return wire.attributes(node, self.sectors(node))

    def _read(self, ino: int, request: bytes, uid: int, gid: int) -> Buffer:
        _, offset, size, _, _, flags, _ = wire.READ_IN.unpack_from(request, wire.BODY_AT)
        return self.fs.read(ino, offset, size, access=wire.is_access(flags))

    def _getxattr(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        room, _ = wire.GETXATTR_IN.unpack_from(request, wire.BODY_AT)
        name = request[wire.BODY_AT + wire.GETXATTR_IN.size : -1]
        if name == _CAPABILITY and not room:
            self._note_filling(ino)
        value = self.fs.getxattr(ino, name)
        if not room:
            return wire.GETXATTR_OUT.pack(len(value), 0)
        if len(value) > room:
            raise FileSystemError(errno.ERANGE)
        return value

    def _note_filling(self, ino: int) -> None:
        """Asked before the first write to a file since the kernel had the attributes, and before a cut,
        which looks the same: a file without blocks that is cut to a length shows one until its next fsync.
        """
        node = self.fs.node(ino)
        if not node.blocks and S_IFMT(node.mode) == S_IFREG and ino not in self._filling:
            _add(self._filling, ino)
            if ino not in self._made:
                self.stale(ino)

    def _readdir(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        _, cookie, room, _, _, _, _ = wire.READ_IN.unpack_from(request, wire.BODY_AT)
        parts: list[bytes] = []
        for name, target, kind, after in self.fs.readdir(ino, cookie):
            part = wire.dirent(name, target, kind, after)
            room -= len(part)
            if room < 0:
                break
            parts.append(part)
        return b"".join(parts)

    def _readdirplus(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        """A list in which `listers` says which names go without attributes: of those the kernel learns number
        and type, does not count them, and looks them up when somebody asks for them.
        """
        _, cookie, room, _, _, _, _ = wire.READ_IN.unpack_from(request, wire.BODY_AT)
        names: list[tuple[bytes, int, bytes]] = []
        kinds: list[int] = []
        for name, target, kind, after in self.fs.readdir(ino, cookie):
            part = wire.dirent(name, target, kind, after)
            room -= wire.ENTRY_OUT.size + len(part)
            if room < 0:
                break
            names.append((name, target, part))
            kinds.append(kind)
        pid = wire.IN_HEADER.unpack_from(request)[6]
        bare = self._listers.bare(
            pid, ino, kinds, lambda place: self.fs.is_held(names[place][1]), first=not cookie
        )
        parts: list[bytes] = []
        for (name, target, part), is_bare in zip(names, bare, strict=True):
            parts += wire.UNKNOWN_ENTRY if is_bare else self._listed(name, target), part
        return b"".join(parts)

    def _listed(self, name: bytes, target: int) -> bytes:
        if name in (b".", b".."):  # the kernel does not count these two
            return wire.UNKNOWN_ENTRY
        try:
            return self._known(self.fs.node(target))
        except (FileSystemError, CorruptionError):
            return wire.UNKNOWN_ENTRY  # what is wrong with it is told when it is looked up

    # --- what changes something

    def _setattr(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        (
            valid,
            _,
            _,
            size,
            _,
            atime,
            mtime,
            ctime,
            atime_ns,
            mtime_ns,
            ctime_ns,
            mode,
            _,
            new_uid,
            new_gid,
            _,
        ) = wire.SETATTR_IN.unpack_from(request, wire.BODY_AT)
        drops = not valid & _SETS
        if drops and valid & wire.FATTR_CTIME and uid != 0:
            self._may_drop(self.fs.node(ino), uid)
        node = self.fs.setattr(
            ino,
            drop_privileges=drops,
            mode=mode if valid & wire.FATTR_MODE else None,
            uid=new_uid if valid & wire.FATTR_UID else None,
            gid=new_gid if valid & wire.FATTR_GID else None,
            size=size if valid & wire.FATTR_SIZE else None,
            atime_ns=_time(valid, wire.FATTR_ATIME, wire.FATTR_ATIME_NOW, atime, atime_ns),
            mtime_ns=_time(valid, wire.FATTR_MTIME, wire.FATTR_MTIME_NOW, mtime, mtime_ns),
            ctime_ns=ctime * wire.NS_PER_S + ctime_ns if valid & wire.FATTR_CTIME else None,
            clear_privileges=bool(valid & wire.FATTR_KILL_PRIVILEGES),
        )
        if valid & wire.FATTR_SIZE and not size:
            self._filling.discard(ino)  # no page is left
        return wire.attributes(node, self.sectors(node))

    @staticmethod
    def _may_drop(node: Node, uid: int) -> None:
        """A chown of nothing by somebody else than the owner may not take setuid or setgid away. EPERM."""
        if uid != node.uid and S_IFMT(node.mode) == S_IFREG and privileges_cleared(node.mode) != node.mode:
            raise FileSystemError(errno.EPERM)

    def _mknod(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        mode, rdev, umask, _ = wire.MKNOD_IN.unpack_from(request, wire.BODY_AT)
        name = request[wire.BODY_AT + wire.MKNOD_IN.size : -1]
        node = self.fs.make(ino, name, mode, Owner(uid, gid, umask), rdev=rdev)
        self.fs.remember_lookup(node.ino)
        if S_IFMT(mode) != S_IFREG:
            return wire.entry(node, 0)
        # To be opened and written, most likely; if not, the kernel asks again when it is closed.
        _add(self._made, node.ino)
        return wire.entry(node, wire.SECTORS)

    def _mkdir(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        mode, umask = wire.MKDIR_IN.unpack_from(request, wire.BODY_AT)
        name = request[wire.BODY_AT + wire.MKDIR_IN.size : -1]
        return self._known(self.fs.make(ino, name, S_IFDIR | mode & 0o7777, Owner(uid, gid, umask)))

    def _unlink(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        self.fs.unlink(ino, request[wire.BODY_AT : -1])
        return b""

    def _rmdir(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        self.fs.rmdir(ino, request[wire.BODY_AT : -1])
        return b""

    def _rename(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        (new_ino,) = wire.RENAME_IN.unpack_from(request, wire.BODY_AT)
        old, new, _ = request[wire.BODY_AT + wire.RENAME_IN.size :].split(b"\0")
        self.fs.rename(ino, old, new_ino, new)
        return b""

    def _rename2(self, ino: int, request: bytes, uid: int, gid: int) -> bytes:
        new_ino, flags, _ = wire.RENAME2_IN.unpack_from(request, wire.BODY_AT)
        old, new, _ = request[wire.BODY_AT + wire.RENAME2_IN.size :].split(b"\0")
        self.fs.rename(ino, old, new_ino, new, flags, Owner(uid, gid))
        return b""

    def write(self, ino: int, request: bytes) -> tuple[int, int]:
        """Issue a WRITE: bytes written, and the sequence that must be complete before it is answered.

        A write of the application itself (O_DIRECT) is complete, at both sites, when it is answered. Pages
        that the kernel writes back were acknowledged long before and promised nothing: their fsync waits for
        them, and until then only so many may be under way.
        """
        _, offset, size, write_flags, _, flags, _ = wire.WRITE_IN.unpack_from(request, wire.BODY_AT)
        data = memoryview(request)[wire.BODY_AT + wire.WRITE_IN.size :]
        self._made.discard(ino)
        self._filling.discard(ino)
        clears = bool(write_flags & wire.WRITE_KILL_PRIVILEGES)
        sequence = self.fs.write(ino, offset, data, stamp=False, clear_privileges=clears)
        return size, sequence if flags & _DIRECT else sequence - WRITES_AHEAD

    # --- what waits

    async def fsync_all(self, files: Sequence[tuple[int, bool]]) -> None:
        """Make files (and directories) durable, as (inode, whether times may stay behind), all at once."""
        await self.fs.fsync_all(files)
        for ino, _ in files:
            with suppress(FileSystemError, CorruptionError):  # of one file; all of them are durable
                self._tell_blocks(ino)

    def _tell_blocks(self, ino: int) -> None:
        blocks = self.fs.node(ino).blocks
        if ino in self._filling:  # only cut: none of its pages waits any more
            self._filling.discard(ino)
            self.stale(ino)
        told = self._told.get(ino, 0)
        if abs(blocks - told) * BLOCKS_SHARE > told:
            # Not at every fsync of a file that grows: what the kernel forgets it asks for at the next write.
            if len(self._told) >= _MOST_NOTES:
                self._told.clear()
            self._told[ino] = blocks
            self.stale(ino)

    def forget(self, ino: int, count: int) -> None:
        """The kernel lets go of an inode `count` times."""
        self._made.discard(ino)
        self._filling.discard(ino)
        self._told.pop(ino, None)
        self.fs.forget(ino, count)
        if ino in self._listers.watched and not self.fs.is_held(ino):
            self._listers.forgotten(ino)

    def forget_many(self, request: bytes) -> None:
        """BATCH_FORGET."""
        count, _ = wire.BATCH_IN.unpack_from(request, wire.BODY_AT)
        first = wire.BODY_AT + wire.BATCH_IN.size
        for ino, times in wire.FORGET_ONE.iter_unpack(request[first : first + count * wire.FORGET_ONE.size]):
            self.forget(ino, times)


_SETS: Final = (
    wire.FATTR_MODE
    | wire.FATTR_UID
    | wire.FATTR_GID
    | wire.FATTR_SIZE
    | wire.FATTR_ATIME
    | wire.FATTR_MTIME
    | wire.FATTR_ATIME_NOW
    | wire.FATTR_MTIME_NOW
)
_DIRECT: Final = os.O_DIRECT


def _add(notes: set[int], ino: int) -> None:
    """Note an inode; of too many the others are forgotten, which shows less exact blocks."""
    if len(notes) >= _MOST_NOTES:
        notes.clear()
    notes.add(ino)


def _time(valid: int, given: int, now: int, seconds: int, ns: int) -> int | None:
    """A time of SETATTR in ns since 1970, None if it is not set. The kernel says itself when "now" is, if it
    can.
    """
    if valid & given:
        return seconds * wire.NS_PER_S + ns
    return time.time_ns() if valid & now else None
