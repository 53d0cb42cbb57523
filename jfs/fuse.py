"""The door to the kernel: jfs as a FUSE file system. The only module of jfs that imports pyfuse3.

The volume has one writer, this process, so the kernel may believe names and attributes for as long as it
likes and keeps written pages until it writes them back (writeback cache). Of regular files the kernel keeps
size and times of change itself and sends them along; a WRITE must therefore not stamp times.

What the kernel leaves to us: clearing setuid and setgid (libfuse promises that on our behalf), keeping ACLs
and modes in step, inheriting default ACLs. It does not pass on who writes, so a file with setuid or setgid
bits that somebody other than root opens for writing bypasses the page cache: its writes arrive at once, and
clear the bits.
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from stat import S_IFMT, S_IFREG, S_ISGID, S_ISUID
from subprocess import DEVNULL
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from jfs import acl
from jfs.errors import CorruptionError, DeviceError, FileSystemError, NoSpace
from jfs.filesystem import FileSystem, Node, Owner
from jfs.mountpoint import FUSERMOUNT, MountOptions, MountRefused, check_fuse, check_mountpoint, device_number

log = logging.getLogger("jfs")

CACHE_SECONDS = 3600.0
BLKSIZE = 65_536  # what stdio and the like use as the size of their buffers: each write(2) costs a request
READ_AHEAD_KIB = 1024
MIN_TASKS = 4  # readers of the kernel's queue that stay; more come and go
UNMOUNT_SECONDS = 10.0
_PRIVILEGES = S_ISUID | S_ISGID
# A file handle is the inode number shifted by one; the low bit says that writes through it clear setuid and
# setgid.
_CLEARS = 1

P = ParamSpec("P")
R = TypeVar("R")


def kernel_error(error: Exception) -> FUSEError:
    """What the kernel hears of a failure, the one place where this is decided. Faults leave a line in the
    log.
    """
    match error:
        case FileSystemError():
            return FUSEError(error.errno)
        case DeviceError():
            log.error("the device refuses: %s", error.sentence)
            return FUSEError(errno.EIO)
        case CorruptionError():
            log.error("the volume is damaged: %s; unmount it and run fsck", error.sentence)
            return FUSEError(errno.EIO)
        case FUSEError():
            return error
    log.error("a request failed for an unknown reason", exc_info=error)
    return FUSEError(errno.EIO)


def answers(
    handler: Callable[Concatenate["Operations", P], R],
) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]:
    """Make a plain method a request handler that only reads."""

    @wraps(handler)
    async def run(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(self, *args, **kwargs)
        except Exception as error:
            raise kernel_error(error) from None

    return run


def changes(
    handler: Callable[Concatenate["Operations", P], R],
) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]:
    """Make a plain method a request handler that changes something: before it answers, the store may slow it
    down.
    """

    @wraps(handler)
    async def run(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            try:
                result = handler(self, *args, **kwargs)
            except NoSpace:
                # Refused before anything was changed.
                await self.fs.make_room()
                result = handler(self, *args, **kwargs)
            await self.throttle()
        except Exception as error:
            raise kernel_error(error) from None
        return result

    return run


def waits(
    handler: Callable[Concatenate["Operations", P], Awaitable[R]],
) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]:
    """Make an async method a request handler."""

    @wraps(handler)
    async def run(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:
            raise kernel_error(error) from None

    return run


def entry_attributes(node: Node) -> EntryAttributes:
    """An inode as the kernel wants it."""
    entry = EntryAttributes()
    entry.st_ino = node.ino
    entry.generation = node.generation
    mode = node.mode
    entry.st_mode = mode
    entry.entry_timeout = CACHE_SECONDS
    # The kernel does not notice that a write cleared setuid: let it ask.
    plain = not mode & _PRIVILEGES or S_IFMT(mode) != S_IFREG
    entry.attr_timeout = CACHE_SECONDS if plain else 0
    entry.st_nlink = node.nlink
    entry.st_uid = node.uid
    entry.st_gid = node.gid
    entry.st_rdev = node.rdev
    entry.st_size = node.size_bytes
    entry.st_blksize = BLKSIZE
    entry.st_blocks = node.blocks * 8
    entry.st_atime_ns = node.atime_ns
    entry.st_mtime_ns = node.mtime_ns
    entry.st_ctime_ns = node.ctime_ns
    return entry


def file_info(node: Node, flags: int, uid: int) -> FileInfo:
    """How the kernel shall treat an open file."""
    clears = uid != 0 and node.mode & _PRIVILEGES and flags & os.O_ACCMODE != os.O_RDONLY
    if clears:
        return FileInfo(fh=node.ino << 1 | _CLEARS, direct_io=True)
    return FileInfo(fh=node.ino << 1, keep_cache=True)


class Operations(pyfuse3.Operations):
    """The requests of the kernel."""

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True

    def __init__(self, file_system: FileSystem) -> None:
        super().__init__()
        self.fs = file_system
        self.throttle = trio.lowlevel.checkpoint if file_system.read_only else file_system.throttle
        self._missing = EntryAttributes()  # inode 0: "no such name", which the kernel may remember
        self._missing.st_ino = 0
        self._missing.entry_timeout = CACHE_SECONDS

    def _known(self, node: Node) -> EntryAttributes:
        """The answer that lets the kernel hold an inode once more."""
        self.fs.remember_lookup(node.ino)
        return entry_attributes(node)

    @answers
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self.fs.lookup(parent_inode, name)
        return self._missing if node is None else self._known(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            for ino, count in inode_list:
                self.fs.forget(ino, count)
            await self.throttle()
        except Exception as error:
            kernel_error(error)  # nobody waits for an answer: what goes wrong is only logged

    @answers
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return entry_attributes(self.fs.node(inode))

    @changes
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.fs.setattr(
            inode,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            clear_privileges=ctx.uid != 0,
        )
        return entry_attributes(node)

    @answers
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.fs.readlink(inode)

    @changes
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._known(self.fs.make(parent_inode, name, mode, Owner(ctx.uid, ctx.gid), rdev=rdev))

    @changes
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._known(self.fs.make(parent_inode, name, mode, Owner(ctx.uid, ctx.gid)))

    @changes
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._known(self.fs.symlink(parent_inode, name, target, Owner(ctx.uid, ctx.gid)))

    @changes
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        node = self.fs.make(parent_inode, name, S_IFREG | mode & 0o7777, Owner(ctx.uid, ctx.gid))
        return file_info(node, flags, ctx.uid), self._known(node)

    @changes
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return self._known(self.fs.link(inode, new_parent_inode, new_name))

    @changes
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.fs.unlink(parent_inode, name)

    @changes
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.fs.rmdir(parent_inode, name)

    @changes
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self.fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @changes
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self.fs.node(inode)
        if flags & os.O_TRUNC:  # the kernel leaves it to us, to do both at once
            self.fs.setattr(inode, size=0, clear_privileges=ctx.uid != 0)
        return file_info(node, flags, ctx.uid)

    @answers
    def read(self, fh: int, off: int, size: int) -> bytes:
        return self.fs.read(fh >> 1, off, size)  # type: ignore[return-value]  # any buffer will do

    @waits
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        clears = bool(fh & _CLEARS)
        try:
            sequence = self.fs.write(fh >> 1, off, buf, stamp=clears, clear_privileges=clears)
        except NoSpace:  # as in `changes`
            await self.fs.make_room()
            sequence = self.fs.write(fh >> 1, off, buf, stamp=clears, clear_privileges=clears)
        await self._accepted(sequence)
        return len(buf)

    async def _accepted(self, sequence: int) -> None:
        """What the answer to a WRITE means: the device has completed it (at both sites), not just begun."""
        await self.fs.store.device.complete(sequence)
        await self.throttle()

    # Not answering FLUSH (ENOSYS, as the base class does) saves a request at every close(2). The kernel has
    # written back its pages by then and reports what went wrong with them.

    async def release(self, fh: int) -> None:
        """Nothing hangs on an open file: the kernel holds the inode as long as it is open."""

    @waits
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.fs.fsync(fh >> 1, datasync)

    @answers
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self.fs.directory_node(inode).ino

    @answers
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        fs = self.fs
        for name, ino, _, cookie in fs.readdir(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, entry_attributes(fs.node(ino)), cookie):
                return
            if name not in (b".", b".."):  # the kernel does not count these two
                fs.remember_lookup(ino)

    async def releasedir(self, fh: int) -> None:
        """Nothing hangs on an open directory."""

    @waits
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.fs.commit()

    @answers
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        usage = self.fs.statfs()
        found = StatvfsData()
        found.f_bsize = BLKSIZE
        found.f_frsize = usage.block_bytes
        found.f_blocks = usage.blocks
        found.f_bfree = usage.blocks_free
        found.f_bavail = usage.blocks_available
        found.f_files = usage.inodes
        found.f_ffree = found.f_favail = usage.inodes_free
        found.f_namemax = usage.name_max
        return found

    @changes
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        keep = True
        if name == acl.ACCESS and ctx.uid != 0:
            keep = _in_group(ctx, self.fs.node(inode))
        self.fs.setxattr(inode, name, value, keep_setgid=keep)

    @answers
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return self.fs.getxattr(inode, name)

    @answers
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self.fs.listxattr(inode)

    @changes
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self.fs.removexattr(inode, name)


def _in_group(ctx: RequestContext, node: Node) -> bool:
    """Is the caller of the file's group? Only asked where setgid hangs on it."""
    if not node.mode & S_ISGID or ctx.gid == node.gid:
        return True
    try:
        return node.gid in pyfuse3.get_sup_groups(ctx.pid)
    except OSError:  # the caller is gone
        return False


async def serve(
    file_system: FileSystem,
    mountpoint: str,
    options: MountOptions,
    *,
    ready: Callable[[], None],
    stop: trio.Event,
) -> None:
    """Mount, answer the kernel until somebody unmounts or `stop` is set; then make all durable and close.

    `ready` is called once the mount answers. MountRefused if it cannot be made; the store is then closed as
    well. DeviceError if the end could not be made durable.
    """
    try:
        check_fuse()
        place = check_mountpoint(mountpoint)
        try:
            pyfuse3.init(Operations(file_system), place, options.words())
        except RuntimeError as error:
            raise MountRefused(f"mounting on {mountpoint} failed: {error}; libfuse says why above") from None
        detached = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                if not file_system.read_only:
                    nursery.start_soon(_background, file_system)
                    nursery.start_soon(_settle_orphans, file_system)
                nursery.start_soon(_begin, place, ready)
                nursery.start_soon(_unmount_when, stop, place, detached)
                await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=options.max_tasks)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=not detached.is_set())
    finally:
        with trio.CancelScope(shield=True):
            await file_system.close()


async def _background(file_system: FileSystem) -> None:
    """The store's own work. A device that refuses for a while must not end the mount."""
    while True:
        try:
            await file_system.store.run()
        except DeviceError as error:
            log.error("writing back failed: %s; trying again", error.sentence)
        await trio.sleep(1)


async def _settle_orphans(file_system: FileSystem) -> None:
    """What the last mount left to be removed; after an error the next change goes on with it."""
    try:
        await file_system.settle()
    except Exception as error:
        kernel_error(error)  # nobody waits for an answer: what goes wrong is only logged


async def _unmount_when(stop: trio.Event, place: str, detached: trio.Event) -> None:
    """Unmount as umount(8) does, while requests are still answered: the kernel has pages to write back.

    If somebody still uses the mount, write the pages back, take it out of sight (`detached`) and end anyway.
    """
    await stop.wait()
    command = [FUSERMOUNT, "-u", "--", place]
    done = await trio.run_process(command, check=False, stdin=DEVNULL, capture_stderr=True)
    if done.returncode == 0:
        return
    log.warning("the mount is in use: %s", done.stderr.decode(errors="replace").strip())
    with trio.move_on_after(UNMOUNT_SECONDS):
        await trio.run_process(["sync", "-f", place], check=False, stdin=DEVNULL, stderr=DEVNULL)
    command = [FUSERMOUNT, "-u", "-z", "--", place]
    if (await trio.run_process(command, check=False, stdin=DEVNULL, stderr=DEVNULL)).returncode == 0:
        detached.set()
    pyfuse3.terminate()


async def _begin(place: str, ready: Callable[[], None]) -> None:
    """Wait for the first answer through the kernel, then say that the mount is ready."""
    await trio.to_thread.run_sync(_settle, place, abandon_on_cancel=True)
    ready()


def _settle(place: str) -> None:
    """Ask once (the kernel answers when it is set up), then let the kernel read further ahead than 128 KiB.

    That is a matter for root and worth a try only. Waits: not for the event loop.
    """
    os.statvfs(place)
    number = device_number(place)
    with suppress(OSError):
        Path(f"/sys/class/bdi/{number}/read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n", encoding="ascii")
