"""jfs as a FUSE file system: makes the mount and answers the rare requests. The frequent ones never come
here: `fuse_door`, `fuse_requests`. The only module of jfs that imports pyfuse3.
"""

import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from stat import S_ISGID
from subprocess import DEVNULL
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FUSEError,
    RequestContext,
    StatvfsData,
)

from jfs import acl, xattrs
from jfs import fuse_wire as wire
from jfs.errors import DeviceError
from jfs.filesystem import FileSystem, Node, Owner
from jfs.fuse_door import Door, kernel_descriptors
from jfs.fuse_gate import Gate
from jfs.fuse_requests import Requests, error_number
from jfs.mountpoint import (
    FUSERMOUNT,
    MountOptions,
    MountRefused,
    check_fuse,
    check_mountpoint,
    wait_for_answer,
)

log = logging.getLogger("jfs")

MIN_TASKS = 4  # readers of the kernel's queue that stay; more come and go
UNMOUNT_SECONDS = 10.0

P = ParamSpec("P")
R = TypeVar("R")


def kernel_error(error: Exception) -> FUSEError:
    """What the kernel hears of a failure."""
    return error if isinstance(error, FUSEError) else FUSEError(error_number(error))


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
            result = await self.gate.change(lambda: handler(self, *args, **kwargs))
        except Exception as error:
            raise kernel_error(error) from None
        await self.gate.leave()
        return result

    return run


def entry_attributes(node: Node, sectors: int) -> EntryAttributes:
    """An inode as libfuse wants it."""
    entry = EntryAttributes()
    entry.st_ino = node.ino
    entry.generation = node.generation
    entry.st_mode = node.mode
    entry.entry_timeout = wire.CACHE_SECONDS
    entry.attr_timeout = wire.attribute_seconds(node.mode)
    entry.st_nlink = node.nlink
    entry.st_uid = node.uid
    entry.st_gid = node.gid
    entry.st_rdev = node.rdev
    entry.st_size = node.size_bytes
    entry.st_blksize = wire.BLKSIZE
    entry.st_blocks = sectors
    entry.st_atime_ns = node.atime_ns
    entry.st_mtime_ns = node.mtime_ns
    entry.st_ctime_ns = node.ctime_ns
    return entry


class Operations(pyfuse3.Operations):
    """The requests that libfuse is handed."""

    supports_dot_lookup = True
    enable_writeback_cache = True
    enable_acl = True

    def __init__(self, requests: Requests, gate: Gate) -> None:
        super().__init__()
        self.fs = requests.fs
        self.gate = gate
        self._requests = requests

    def _known(self, node: Node) -> EntryAttributes:
        """The answer that lets the kernel hold an inode once more."""
        self.fs.remember_lookup(node.ino)
        return entry_attributes(node, self._requests.sectors(node))

    @answers
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.fs.readlink(inode)

    @changes
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._known(self.fs.symlink(parent_inode, name, target, Owner(ctx.uid, ctx.gid, ctx.umask)))

    @changes
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return self._known(self.fs.link(inode, new_parent_inode, new_name))

    @answers
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        usage = self.fs.statfs()
        found = StatvfsData()
        found.f_bsize = wire.BLKSIZE
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
        """Asked by pyfuse3 itself, where a new attribute must not be there yet or an old one must be."""
        return self.fs.getxattr(inode, name)

    @answers
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        names = self.fs.listxattr(inode)
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(xattrs.TRUSTED)]

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
        requests, gate = Requests(file_system), Gate(file_system)
        before = kernel_descriptors()
        try:
            pyfuse3.init(Operations(requests, gate), place, options.words())
        except RuntimeError as error:
            raise MountRefused(f"mounting on {mountpoint} failed: {error}; libfuse says why above") from None
        (descriptor,) = kernel_descriptors() - before
        detached = trio.Event()
        door = Door(requests, gate)
        try:
            if not door.open(descriptor):
                raise MountRefused(f"mounting on {mountpoint} failed: the kernel does not answer")
            async with trio.open_nursery() as nursery:
                if not file_system.read_only:
                    nursery.start_soon(_background, file_system)
                    nursery.start_soon(_settle_orphans, file_system)
                nursery.start_soon(door.run, pyfuse3.terminate)
                nursery.start_soon(_begin, place, ready)
                nursery.start_soon(_unmount_when, stop, place, detached)
                await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=options.max_tasks)
                nursery.cancel_scope.cancel()
        finally:
            door.close()
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
