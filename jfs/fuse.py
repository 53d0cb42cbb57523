"""The door to the kernel: jfs as a FUSE file system. The only module of jfs that imports pyfuse3.

The volume has one writer, this process, so the kernel may believe names and attributes for as long as it
likes and keeps written pages until it writes them back (writeback cache). Of regular files the kernel keeps
size and times of change itself and sends them along; a WRITE must therefore not stamp times.

What the kernel leaves to us: keeping ACLs and modes in step, inheriting default ACLs, and access times.
Setuid and setgid are ours to clear as well (`fuse_init` promises it): with a cut, with a new owner, at a
SETATTR that sets nothing, by which the kernel says that they must go (before a write, or at a chown of
nothing), and at a write through a handle by which somebody other than root opened such a file.
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial, wraps
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

from jfs import acl, xattrs
from jfs.errors import CorruptionError, DeviceError, FileSystemError, NoSpace
from jfs.fileio import privileges_cleared
from jfs.filesystem import FileSystem, Node, Owner
from jfs.fuse_init import InitExchange, kernel_descriptors
from jfs.mountpoint import (
    FUSERMOUNT,
    MountOptions,
    MountRefused,
    check_fuse,
    check_mountpoint,
    wait_for_answer,
)
from jfs.open_files import ACCESSES, CLEARS, DIRECT, HANDLE_SHIFT, Writers, make_handle

log = logging.getLogger("jfs")

CACHE_SECONDS = 3600.0
BLKSIZE = 65_536  # what stdio and the like use as the size of their buffers: each write(2) costs a request
SECTORS = 8  # of 512 bytes, in a block: what st_blocks counts
MIN_TASKS = 4  # readers of the kernel's queue that stay; more come and go
UNMOUNT_SECONDS = 10.0
_PRIVILEGES = S_ISUID | S_ISGID
WRITES_AHEAD = 8  # answered to the kernel and not yet complete: it keeps no more than this before the device

P = ParamSpec("P")
R = TypeVar("R")


def kernel_error(error: Exception) -> FUSEError:
    """What the kernel hears of a failure, decided in this one place. Faults leave a line in the log."""
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
    """Make a plain method a request handler that changes something; the store may slow the answer down."""

    @wraps(handler)
    async def run(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            await self.make_way()
            try:
                result = handler(self, *args, **kwargs)
            except NoSpace:
                # Refused before anything was changed.
                await self.fs.make_room()
                result = handler(self, *args, **kwargs)
            with suppress(NoSpace):  # it is done; fsync says if it cannot be made durable
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


def entry_attributes(node: Node, *, is_written: bool = False) -> EntryAttributes:
    """An inode as the kernel wants it. `is_written`: open for writing, so the page cache may hold data that
    we do not know of. tar and others take a file without blocks for one hole: it shows one meanwhile.
    """
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
    entry.st_blocks = node.blocks * SECTORS
    if is_written and not node.blocks:
        entry.st_blocks = SECTORS
    entry.st_atime_ns = node.atime_ns
    entry.st_mtime_ns = node.mtime_ns
    entry.st_ctime_ns = node.ctime_ns
    return entry


class Operations(pyfuse3.Operations):
    """The requests of the kernel."""

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True

    def __init__(self, file_system: FileSystem) -> None:
        super().__init__()
        self.fs = file_system
        self.init_exchange: InitExchange | None = None
        can_change = not file_system.read_only
        self.throttle = file_system.throttle if can_change else trio.lowlevel.checkpoint
        self.make_way = file_system.make_way if can_change else trio.lowlevel.checkpoint
        self._missing = EntryAttributes()  # inode 0: "no such name", which the kernel may remember
        self._missing.st_ino = 0
        self._missing.entry_timeout = CACHE_SECONDS
        self._writers = Writers()
        self.stale: Callable[[int], None] = lambda ino: None  # lets the kernel ask for attributes again

    def _attributes(self, node: Node) -> EntryAttributes:
        return entry_attributes(node, is_written=node.ino in self._writers)

    def _known(self, node: Node) -> EntryAttributes:
        """The answer that lets the kernel hold an inode once more."""
        self.fs.remember_lookup(node.ino)
        return self._attributes(node)

    def _opened(self, node: Node, flags: int, uid: int) -> FileInfo:
        handle = make_handle(node.ino, flags, clears=uid != 0 and bool(node.mode & _PRIVILEGES))
        self._writers.opened(handle, node.blocks)
        return FileInfo(fh=handle, keep_cache=True)

    @answers
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self.fs.lookup(parent_inode, name)
        return self._missing if node is None else self._known(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        if self.init_exchange is not None:
            self.init_exchange.finish()
            self.init_exchange = None
            return
        try:
            for ino, count in inode_list:
                self.fs.forget(ino, count)
            await self.throttle()
        except Exception as error:
            kernel_error(error)  # nobody waits for an answer: what goes wrong is only logged

    @answers
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self.fs.node(inode))

    @changes
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        sets = (fields.update_mode, fields.update_uid, fields.update_gid, fields.update_size)
        drops = not any(sets) and not fields.update_atime and not fields.update_mtime
        if drops and fields.update_ctime and ctx.uid not in (0, self.fs.node(inode).uid):
            _refuse_to_drop(self.fs.node(inode))
        node = self.fs.setattr(
            inode,
            drop_privileges=drops,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            clear_privileges=ctx.uid != 0,
        )
        return self._attributes(node)

    @answers
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.fs.readlink(inode)

    @changes
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        owner = Owner(ctx.uid, ctx.gid, ctx.umask)
        return self._known(self.fs.make(parent_inode, name, mode, owner, rdev=rdev))

    @changes
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._known(self.fs.make(parent_inode, name, mode, Owner(ctx.uid, ctx.gid, ctx.umask)))

    @changes
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._known(self.fs.symlink(parent_inode, name, target, Owner(ctx.uid, ctx.gid, ctx.umask)))

    @changes
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        node = self.fs.make(parent_inode, name, S_IFREG | mode & 0o7777, Owner(ctx.uid, ctx.gid, ctx.umask))
        return self._opened(node, flags, ctx.uid), self._known(node)

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
        owner = Owner(ctx.uid, ctx.gid, ctx.umask)
        self.fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, owner)

    @changes
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self.fs.node(inode)
        if flags & os.O_TRUNC:  # the kernel leaves it to us, to do both at once
            self.fs.setattr(inode, size=0, clear_privileges=ctx.uid != 0)
        return self._opened(node, flags, ctx.uid)

    @answers
    def read(self, fh: int, off: int, size: int) -> bytes:
        access = bool(fh & ACCESSES)  # any buffer will do as the answer
        return self.fs.read(fh >> HANDLE_SHIFT, off, size, access=access)  # type: ignore[return-value]

    @waits
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        ino, clears = fh >> HANDLE_SHIFT, bool(fh & CLEARS)
        await self.make_way()
        try:
            sequence = self.fs.write(ino, off, buf, stamp=False, clear_privileges=clears)
        except NoSpace:  # as in `changes`
            await self.fs.make_room()
            sequence = self.fs.write(ino, off, buf, stamp=False, clear_privileges=clears)
        await self._accepted(sequence if fh & DIRECT else sequence - WRITES_AHEAD)
        return len(buf)

    async def _accepted(self, sequence: int) -> None:
        """What the answer to a WRITE means: the device has completed everything up to `sequence`.

        A write of the application itself (O_DIRECT) is complete, at both sites, when it is answered. Pages
        that the kernel writes back were acknowledged long before and promised nothing: their fsync waits for
        them, and until then only so many may be under way.
        """
        await self.fs.store.device.complete(sequence)
        with suppress(NoSpace):
            await self.throttle()

    # Not answering FLUSH (ENOSYS, as the base class does) saves a request at every close(2). The kernel has
    # written back its pages by then and reports what went wrong with them.

    async def release(self, fh: int) -> None:
        """The kernel holds the inode as long as it is open; here only those who write are counted."""
        self._writers.released(fh)

    @waits
    async def fsync(self, fh: int, datasync: bool) -> None:
        ino = fh >> HANDLE_SHIFT
        await self.fs.fsync(ino, datasync)
        blocks = self.fs.node(ino).blocks if ino in self._writers else 0
        if self._writers.is_stale(ino, blocks):
            # Whoever waits for this answer has the file open: the kernel cannot wait for us to let it go.
            self.stale(ino)

    @answers
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self.fs.directory_node(inode).ino

    @answers
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        fs = self.fs
        for name, ino, _, cookie in fs.readdir(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._attributes(fs.node(ino)), cookie):
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
        names = self.fs.listxattr(inode)
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(xattrs.TRUSTED)]

    @changes
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self.fs.removexattr(inode, name)


def _refuse_to_drop(node: Node) -> None:
    """A chown of nothing by somebody else than the owner: it may not take setuid or setgid away. EPERM."""
    if S_IFMT(node.mode) == S_IFREG and privileges_cleared(node.mode) != node.mode:
        raise FileSystemError(errno.EPERM)


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
        operations = Operations(file_system)
        before = kernel_descriptors()
        try:
            pyfuse3.init(operations, place, options.words())
            operations.stale = partial(pyfuse3.invalidate_inode, attr_only=True)
        except RuntimeError as error:
            raise MountRefused(f"mounting on {mountpoint} failed: {error}; libfuse says why above") from None
        (descriptor,) = kernel_descriptors() - before
        exchange = operations.init_exchange = InitExchange.begin(descriptor)
        detached = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                if not file_system.read_only:
                    nursery.start_soon(_background, file_system)
                    nursery.start_soon(_settle_orphans, file_system)
                if exchange is not None:
                    nursery.start_soon(exchange.run)
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
    await trio.to_thread.run_sync(wait_for_answer, place, abandon_on_cancel=True)
    ready()
