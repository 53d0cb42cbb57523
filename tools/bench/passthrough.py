"""A mount that only passes through: the yardstick for `make bench`.

    python -m tools.bench.passthrough SOURCE MOUNTPOINT [-o OPTION,...]

It does as little as a correct pyfuse3 file system can do, so what it costs is the price of the road (kernel,
libfuse, Python) and the rest of a measurement is ours. The mount is taken to be the only writer of SOURCE.

Every inode the kernel knows is held by an O_PATH descriptor, which stays right through renames and unlinks.
Calls that take no descriptor of that kind go through the /proc/self/fd name of it.
"""

import argparse
import ctypes
import errno
import itertools
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

CACHE_SECONDS = 60  # how long the kernel may believe names and attributes
FIRST_SPARE_NUMBER = 1 << 62  # for inodes whose own number is taken by another device
# The kernel has done what these say, or does it per request; on the backing file they would be wrong:
# its name is a link under /proc, offsets come with each write, and Python's buffers are not aligned.
FLAGS_NOT_PASSED_ON = os.O_NOFOLLOW | os.O_APPEND | os.O_DIRECT
PRIVILEGE_BITS = stat.S_ISUID | stat.S_ISGID

Key = tuple[int, int]  # device and inode number of the backing file

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """rename(2) with RENAME_NOREPLACE or RENAME_EXCHANGE, which the os module does not offer."""
    if _libc.renameat2(old_fd, old, new_fd, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class _ErrnoForKernel(AbstractContextManager[None]):
    """Turns OSError into the one exception pyfuse3 lets a handler raise. Stateless, hence shared."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise FUSEError(error.errno or errno.EIO) from None


errno_for_kernel = _ErrnoForKernel()


def proc_name(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def drop_privilege_bits(file: int | str, mode: int) -> None:
    """What a write does to a set-uid program. libfuse tells the kernel to leave that to us."""
    if stat.S_ISREG(mode) and mode & PRIVILEGE_BITS:
        os.chmod(file, stat.S_IMODE(mode) & ~PRIVILEGE_BITS)


def attributes(number: InodeT, found: os.stat_result) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = number
    entry.generation = 0
    entry.entry_timeout = CACHE_SECONDS
    entry.attr_timeout = CACHE_SECONDS
    entry.st_mode = found.st_mode
    entry.st_nlink = found.st_nlink
    entry.st_uid = found.st_uid
    entry.st_gid = found.st_gid
    entry.st_rdev = found.st_rdev
    entry.st_size = found.st_size
    entry.st_blksize = found.st_blksize
    entry.st_blocks = found.st_blocks
    entry.st_atime_ns = found.st_atime_ns
    entry.st_mtime_ns = found.st_mtime_ns
    entry.st_ctime_ns = found.st_ctime_ns
    return entry


@dataclass(slots=True)
class Node:
    """An inode the kernel knows."""

    number: InodeT
    key: Key
    fd: int  # opened O_PATH
    lookups: int = 0


@dataclass(slots=True)
class Listing:
    """An open directory. Cookies are places in the names read at its start, so they never move."""

    node: Node
    fd: int
    names: list[bytes] = field(default_factory=list)


class NodeTable:
    """The inodes the kernel knows, by its number for them and by what they are on the backing side."""

    def __init__(self, source: Path) -> None:
        fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
        found = os.fstat(fd)
        self.root = Node(pyfuse3.ROOT_INODE, (found.st_dev, found.st_ino), fd, lookups=1)
        self._root_backing_number = found.st_ino
        self._by_number: dict[InodeT, Node] = {pyfuse3.ROOT_INODE: self.root}
        self._by_key: dict[Key, Node] = {self.root.key: self.root}
        self._spare_numbers = itertools.count(FIRST_SPARE_NUMBER)

    def __getitem__(self, number: InodeT) -> Node:
        return self._by_number[number]

    def fd(self, number: InodeT) -> int:
        return self._by_number[number].fd

    def look_up(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """Find a name and count that the kernel knows it; `forget` takes the count back."""
        if name == b".." and parent is self.root:
            name = b"."
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent.fd)
        found = os.fstat(fd)
        key = (found.st_dev, found.st_ino)
        node = self._by_key.get(key)
        if node is None:
            node = Node(self._number_for(found.st_ino), key, fd)
            self._by_key[key] = self._by_number[node.number] = node
        else:
            os.close(fd)
        node.lookups += 1
        return node, found

    def forget(self, node: Node, lookups: int) -> None:
        node.lookups -= lookups
        if node.lookups <= 0 and node is not self.root:
            del self._by_key[node.key], self._by_number[node.number]
            os.close(node.fd)

    def _number_for(self, backing_number: int) -> InodeT:
        """The backing number, with the root's exchanged for the 1 the kernel calls it by."""
        number = self._root_backing_number if backing_number == pyfuse3.ROOT_INODE else backing_number
        return next(self._spare_numbers) if number in self._by_number else number


class PassThrough(pyfuse3.Operations):
    """Each request becomes the same call on the source directory.

    Calls that are served from memory run on the event loop; only what waits for a disk goes to a thread.
    """

    def __init__(self, source: Path, *, writeback_cache: bool = False) -> None:
        super().__init__()
        self.enable_writeback_cache = writeback_cache
        self._nodes = NodeTable(source)
        self._listings: dict[int, Listing] = {}

    # Names

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        with errno_for_kernel:
            return self._entry(parent_inode, name)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for number, lookups in inode_list:
            self._nodes.forget(self._nodes[number], lookups)

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._make(parent_inode, name, ctx, mode, lambda fd: os.mknod(name, mode, rdev, dir_fd=fd))

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._make(parent_inode, name, ctx, 0, lambda fd: os.mkdir(name, mode, dir_fd=fd))

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._make(parent_inode, name, ctx, 0, lambda fd: os.symlink(target, name, dir_fd=fd))

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        with errno_for_kernel:
            parent = self._nodes.fd(new_parent_inode)
            os.link(proc_name(self._nodes.fd(inode)), new_name, dst_dir_fd=parent, follow_symlinks=True)
            return self._entry(new_parent_inode, new_name)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        with errno_for_kernel:
            os.unlink(name, dir_fd=self._nodes.fd(parent_inode))

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        with errno_for_kernel:
            os.rmdir(name, dir_fd=self._nodes.fd(parent_inode))

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        with errno_for_kernel:
            renameat2(
                self._nodes.fd(parent_inode_old), name_old, self._nodes.fd(parent_inode_new), name_new, flags
            )

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        with errno_for_kernel:
            return os.readlink(b"", dir_fd=self._nodes.fd(inode))

    # Attributes

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        with errno_for_kernel:
            return attributes(inode, os.fstat(self._nodes.fd(inode)))

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        with errno_for_kernel:
            fd = self._nodes.fd(inode)
            path = proc_name(fd)
            if fields.update_uid or fields.update_gid:
                os.chown(
                    path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1
                )
            if fields.update_size:
                os.truncate(path if fh is None else fh, attr.st_size)
                drop_privilege_bits(path, os.fstat(fd).st_mode)
            if fields.update_mode:
                os.chmod(path, stat.S_IMODE(attr.st_mode))
            if fields.update_atime or fields.update_mtime:
                now = os.fstat(fd)
                accessed = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
                modified = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
                os.utime(path, ns=(accessed, modified))
            return attributes(inode, os.fstat(fd))

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        with errno_for_kernel:
            found = os.fstatvfs(self._nodes.root.fd)
        answer = StatvfsData()
        answer.f_bsize = found.f_bsize
        answer.f_frsize = found.f_frsize
        answer.f_blocks = found.f_blocks
        answer.f_bfree = found.f_bfree
        answer.f_bavail = found.f_bavail
        answer.f_files = found.f_files
        answer.f_ffree = found.f_ffree
        answer.f_favail = found.f_favail
        answer.f_namemax = found.f_namemax
        return answer

    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        with errno_for_kernel:
            os.setxattr(proc_name(self._nodes.fd(inode)), name, value)

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        with errno_for_kernel:
            return os.getxattr(proc_name(self._nodes.fd(inode)), name)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        with errno_for_kernel:
            return [os.fsencode(name) for name in os.listxattr(proc_name(self._nodes.fd(inode)))]

    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        with errno_for_kernel:
            os.removexattr(proc_name(self._nodes.fd(inode)), name)

    # Contents

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        with errno_for_kernel:
            return FileInfo(fh=os.open(proc_name(self._nodes.fd(inode)), self._backing_flags(flags)))

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        opened: list[int] = []

        def create_and_open(parent: int) -> None:
            # O_EXCL: what somebody else created a moment ago must not change its owner.
            exclusive = self._backing_flags(flags) | os.O_CREAT | os.O_EXCL
            opened.append(os.open(name, exclusive, mode, dir_fd=parent))

        try:
            entry = self._make(parent_inode, name, ctx, mode, create_and_open)
        except FUSEError as error:
            if error.errno != errno.EEXIST or flags & os.O_EXCL:
                raise
            entry = await self.lookup(parent_inode, name, ctx)
            return await self.open(entry.st_ino, flags & ~os.O_CREAT, ctx), entry
        return FileInfo(fh=opened[0]), entry

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        with errno_for_kernel:
            return os.pread(fh, size, off)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        with errno_for_kernel:
            drop_privilege_bits(fh, os.fstat(fh).st_mode)
            done = os.pwrite(fh, buf, off)
            while done < len(buf):
                done += os.pwrite(fh, memoryview(buf)[done:], off + done)
            return done

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        with errno_for_kernel:
            await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fh)

    async def release(self, fh: FileHandleT) -> None:
        with errno_for_kernel:
            os.close(fh)

    # Directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        node = self._nodes[inode]
        with errno_for_kernel:
            fd = os.open(proc_name(node.fd), os.O_RDONLY | os.O_DIRECTORY)
        self._listings[fd] = Listing(node, fd)
        return fd

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        listing = self._listings[fh]
        with errno_for_kernel:
            if start_id == 0:  # opened just now, or rewound
                listing.names = [os.fsencode(name) for name in os.listdir(fh)]
            for cookie, name in enumerate(listing.names[start_id:], start_id + 1):
                try:
                    node, found = self._nodes.look_up(listing.node, name)
                except FileNotFoundError:
                    continue  # removed since the names were read
                if not pyfuse3.readdir_reply(token, name, attributes(node.number, found), cookie):
                    self._nodes.forget(node, 1)
                    return

    async def releasedir(self, fh: FileHandleT) -> None:
        with errno_for_kernel:
            os.close(self._listings.pop(fh).fd)

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        with errno_for_kernel:
            await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fh)

    # Shared steps

    def _entry(self, parent_number: InodeT, name: bytes) -> EntryAttributes:
        node, found = self._nodes.look_up(self._nodes[parent_number], name)
        return attributes(node.number, found)

    def _make(
        self,
        parent_number: InodeT,
        name: bytes,
        ctx: RequestContext,
        mode: ModeT,
        make: Callable[[int], None],
    ) -> EntryAttributes:
        """Make a name in a directory and give it to the caller, who is not the user this program runs as."""
        with errno_for_kernel:
            parent = self._nodes.fd(parent_number)
            make(parent)
            if (ctx.uid, ctx.gid) != (os.geteuid(), os.getegid()):
                # In a set-group-id directory the new file has its group already.
                inherits = os.fstat(parent).st_mode & stat.S_ISGID
                os.chown(name, ctx.uid, -1 if inherits else ctx.gid, dir_fd=parent, follow_symlinks=False)
                if mode & PRIVILEGE_BITS:  # which a change of owner took away
                    os.chmod(name, stat.S_IMODE(mode), dir_fd=parent)
            return self._entry(parent_number, name)

    def _backing_flags(self, flags: FlagT) -> FlagT:
        flags &= ~FLAGS_NOT_PASSED_ON
        if self.enable_writeback_cache and flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR  # the kernel reads the rest of a page it writes
        return flags


def raise_descriptor_limit() -> None:
    """One descriptor for each inode the kernel remembers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve() -> None:
    """Answer the kernel until the mount is unmounted or a signal asks to end."""
    async with trio.open_nursery() as nursery:

        async def end_on_signal() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    pyfuse3.terminate()
                    return

        nursery.start_soon(end_on_signal)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.passthrough", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", type=Path, help="the directory to show")
    parser.add_argument("mountpoint", type=Path, help="where to show it")
    parser.add_argument("-o", dest="options", default="", help="mount options, separated by commas")
    parser.add_argument("--writeback-cache", action="store_true", help="let the kernel collect writes")
    given = parser.parse_args(arguments)

    raise_descriptor_limit()
    os.umask(0)  # the kernel has applied the caller's
    operations = PassThrough(given.source, writeback_cache=given.writeback_cache)
    options = {*pyfuse3.default_options, "fsname=passthrough", "subtype=passthrough"}
    options.update(option for option in given.options.split(",") if option)
    try:
        pyfuse3.init(operations, str(given.mountpoint), options)
    except RuntimeError as error:
        print(f"cannot mount on {given.mountpoint}: {error}", file=sys.stderr)
        return 1
    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
