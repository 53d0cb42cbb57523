"""Names: lookup, making, linking, removing and renaming, reading directories, and the list of orphans.

A directory's size is its number of names, its link count 2 and one for each directory in it. An inode whose
last name went while somebody still holds it is an orphan: it is named in the orphan list, so that a mount
after a crash removes it. `parent_ino` and `name` of an inode say where it was linked last; they are empty
when that name went.
"""

from collections.abc import Iterator
from errno import (
    EEXIST,
    EINVAL,
    EISDIR,
    EMLINK,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    EPERM,
)
from stat import S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_ISGID
from typing import NamedTuple

import trio

from jfs import directory
from jfs.attributes import Attributes
from jfs.errors import CorruptionError, FileSystemError, NoSpace
from jfs.fileio import blocks_of
from jfs.filemap import BLOCK_LIMIT
from jfs.layout import (
    DIRENT,
    INODE,
    ORPHAN,
    ORPHAN_INO,
    ROOT_INO,
    SYMLINK,
    VALUE_LIMIT_BYTES,
    XATTR,
    key_range,
    make_key,
    split_key,
)
from jfs.nodes import DEFAULT_OPTIONS, NONE, FileSystemOptions, Node, now_ns
from jfs.store import Store

NLINK_MAX = (1 << 31) - 1
MAKE_WAY_TRIES = 4  # others change things while a checkpoint is written
TARGET_MAX = 4095  # PATH_MAX without the final zero
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
_DIRECTORY_KIND = S_IFDIR >> 12


class Owner(NamedTuple):
    """Who makes a file; `umask` holds where no default ACL says what others may."""

    uid: int = 0
    gid: int = 0
    umask: int = 0


ROOT_OWNER = Owner()


class Name(NamedTuple):
    """A name as readdir gives it: file type (mode >> 12) and the cookie after which reading goes on."""

    name: bytes
    ino: int
    kind: int
    cookie: int


class Namespace(Attributes):
    """Everything that changes or reads directories."""

    def __init__(self, store: Store, options: FileSystemOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(store, options)
        self._settling = trio.Lock()

    def _bucket(self, parent: Node, name: bytes) -> tuple[bytes, bytes | None]:
        """Key and content of the bucket of a name. FileSystemError ENAMETOOLONG, EINVAL for no name."""
        if len(name) > directory.NAME_MAX:
            raise FileSystemError(ENAMETOOLONG)
        if not name:
            raise FileSystemError(EINVAL)
        key = make_key(parent.ino, DIRENT, directory.suffix_of(name, self.seed))
        return key, self.store.get(key)

    def _find(self, parent: Node, name: bytes) -> directory.Entry | None:
        bucket = self._bucket(parent, name)[1]
        return None if bucket is None else directory.find(bucket, name)

    def _found(self, parent: Node, name: bytes) -> directory.Entry:
        entry = self._find(parent, name)
        if entry is None:
            raise FileSystemError(EINVAL if name in (b".", b"..") else ENOENT)
        return entry

    def lookup(self, parent_ino: int, name: bytes) -> Node | None:
        """The inode a name leads to, None if there is no such name. FileSystemError ENOTDIR, ENAMETOOLONG.

        `.` leads from any inode to itself: so the kernel finds the file of a handle again, for NFS; ESTALE if
        it was removed.
        """
        if name == b".":
            return self.living_node(parent_ino)
        parent = self.directory_node(parent_ino)
        if name == b"..":
            return self.node(parent.parent_ino or ROOT_INO)
        entry = self._find(parent, name)
        return None if entry is None else self._target(parent, entry)

    def _target(self, parent: Node, entry: directory.Entry) -> Node:
        try:
            return self.node(entry.ino)
        except FileSystemError:
            raise CorruptionError(
                f"the name {entry.name!r} in directory {parent.ino} leads to inode {entry.ino}, "
                "which does not exist"
            ) from None

    def make(
        self,
        parent_ino: int,
        name: bytes,
        mode: int,
        owner: Owner = ROOT_OWNER,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Node:
        """Make a file of any type; `mode` has type and permissions, `target` is what a symbolic link says.

        FileSystemError EEXIST, ENOTDIR, ENOENT (the directory was removed), ENAMETOOLONG, EMLINK, ENOSPC.
        """
        parent = self.directory_node(parent_ino)
        if not parent.nlink:
            raise FileSystemError(ENOENT)
        key, bucket = self._bucket(parent, name)
        if name in (b".", b"..") or (bucket is not None and directory.find(bucket, name) is not None):
            raise FileSystemError(EEXIST)
        kind = S_IFMT(mode)
        if kind == S_IFDIR and parent.nlink >= NLINK_MAX:
            raise FileSystemError(EMLINK)
        self._need_room()
        if len(target) > TARGET_MAX:
            raise FileSystemError(ENAMETOOLONG)
        node = self._new_node(parent, name, mode, owner, rdev)
        self.store.put(key, directory.insert(bucket, name, node.ino, kind >> 12))
        self._remember(node)
        self.mark(node)
        if kind != S_IFLNK and (parent.xattrs == NONE or not self._inherit_acl(parent, node)):
            node.mode &= ~(owner.umask & 0o777)
        if kind == S_IFLNK:
            node.size_bytes = len(target)
            for part in range(0, len(target), VALUE_LIMIT_BYTES):
                piece = target[part : part + VALUE_LIMIT_BYTES]
                self.store.put(make_key(node.ino, SYMLINK, part // VALUE_LIMIT_BYTES), piece)
        self._changed(parent, node.btime_ns, names=1, directories=int(kind == S_IFDIR))
        return node

    def symlink(self, parent_ino: int, name: bytes, target: bytes, owner: Owner = ROOT_OWNER) -> Node:
        """Make a symbolic link. FileSystemError as `make`; ENOENT for an empty target."""
        if not target:
            raise FileSystemError(ENOENT)
        return self.make(parent_ino, name, S_IFLNK | 0o777, owner, target=target)

    def _new_node(self, parent: Node, name: bytes, mode: int, owner: Owner, rdev: int) -> Node:
        now = now_ns()
        gid = owner.gid
        is_directory = S_IFMT(mode) == S_IFDIR
        if parent.mode & S_ISGID:
            gid = parent.gid
            if is_directory:
                mode |= S_ISGID
        ino = self.store.allocate_ino()
        return Node(
            mode=mode,
            uid=owner.uid,
            gid=gid,
            nlink=2 if is_directory else 1,
            rdev=rdev,
            # A number used before a crash and lost with it may be given again: the birth tells the two files
            # apart.
            generation=now >> 10 & 0xFFFFFFFF,
            parent_ino=parent.ino,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            btime_ns=now,
            name=name,
            ino=ino,
            changed_in=self._period,
            born_in=self._period,
            xattrs=NONE,
        )

    def _changed(self, parent: Node, now: int, *, names: int = 0, directories: int = 0) -> None:
        """Note a change of a directory: how many names and directories it gained or lost."""
        parent.size_bytes += names
        parent.nlink += directories
        parent.mtime_ns = parent.ctime_ns = now
        self.mark(parent)

    def link(self, ino: int, parent_ino: int, name: bytes) -> Node:
        """Give a file another name. FileSystemError EPERM for a directory, EEXIST, EMLINK, ENOENT, ENOTDIR,
        ENOSPC.
        """
        node = self.node(ino)
        parent = self.directory_node(parent_ino)
        if S_IFMT(node.mode) == S_IFDIR:
            raise FileSystemError(EPERM)
        if not node.nlink or not parent.nlink:
            raise FileSystemError(ENOENT)
        key, bucket = self._bucket(parent, name)
        if name in (b".", b"..") or (bucket is not None and directory.find(bucket, name) is not None):
            raise FileSystemError(EEXIST)
        if node.nlink >= NLINK_MAX:
            raise FileSystemError(EMLINK)
        self._need_room()
        self.store.put(key, directory.insert(bucket, name, ino, S_IFMT(node.mode) >> 12))
        now = now_ns()
        node.nlink += 1
        node.ctime_ns = now
        node.parent_ino, node.name = parent_ino, name
        self.mark(node)
        self._changed(parent, now, names=1)
        return node

    def unlink(self, parent_ino: int, name: bytes) -> None:
        """Remove a name of anything but a directory. FileSystemError ENOENT, EISDIR, ENOTDIR."""
        parent = self.directory_node(parent_ino)
        entry = self._found(parent, name)
        node = self._target(parent, entry)
        if S_IFMT(node.mode) == S_IFDIR:
            raise FileSystemError(EISDIR)
        now = now_ns()
        self._take_name(parent, name)
        self._changed(parent, now, names=-1)
        self._drop_link(node, parent.ino, name, now)

    def rmdir(self, parent_ino: int, name: bytes) -> None:
        """Remove an empty directory. FileSystemError ENOENT, ENOTDIR, ENOTEMPTY, EINVAL for `.`."""
        parent = self.directory_node(parent_ino)
        if name == b"..":
            raise FileSystemError(ENOTEMPTY)
        entry = self._found(parent, name)
        node = self._target(parent, entry)
        if S_IFMT(node.mode) != S_IFDIR:
            raise FileSystemError(ENOTDIR)
        if node.size_bytes:
            raise FileSystemError(ENOTEMPTY)
        now = now_ns()
        self._take_name(parent, name)
        self._changed(parent, now, names=-1, directories=-1)
        self._drop_link(node, parent.ino, name, now)

    def _take_name(self, parent: Node, name: bytes) -> None:
        key, bucket = self._bucket(parent, name)
        rest = directory.remove(bucket or b"", name)
        if rest is None:
            self.store.delete(key)
        else:
            self.store.put(key, rest)

    def _put_name(self, parent: Node, name: bytes, node: Node, *, over: bool) -> None:
        """Let a name lead to an inode: a new name, or `over` one that is there."""
        key, bucket = self._bucket(parent, name)
        change = directory.replace if over else directory.insert
        self.store.put(key, change(bucket or b"", name, node.ino, S_IFMT(node.mode) >> 12))

    def _drop_link(self, node: Node, parent_ino: int, name: bytes, now: int) -> None:
        """One name of the inode went (a directory has only the one): keep it, make it an orphan, or remove
        it.
        """
        node.ctime_ns = now
        node.nlink = 0 if S_IFMT(node.mode) == S_IFDIR else node.nlink - 1
        if node.nlink:
            if node.parent_ino == parent_ino and node.name == name:
                node.parent_ino, node.name = 0, b""
            self.mark(node)
        elif node.ino in self._lookups:
            self.mark(node)
            self._list_orphan(node.ino)
        else:
            self._destroy(node)

    def _destroy(self, node: Node) -> None:
        """Remove an inode without names and all that is its; one of many extents goes in `settle`."""
        ino = node.ino
        if node.blocks and not self._unmap(node, 0):
            return
        self._cuts.pop(ino, None)
        self._unlist_orphan(ino)
        store = self.store
        if S_IFMT(node.mode) == S_IFLNK:
            for part in range(0, node.size_bytes, VALUE_LIMIT_BYTES):
                store.delete(make_key(ino, SYMLINK, part // VALUE_LIMIT_BYTES))
        if node.xattrs != NONE:
            for key, _ in list(store.scan(*key_range(ino, XATTR))):
                store.delete(key)
        store.delete(make_key(ino, INODE))
        self._forget_node(ino)

    def is_held(self, ino: int) -> bool:
        """Whether somebody (the kernel) holds the inode."""
        return ino in self._lookups

    def remember_lookup(self, ino: int) -> None:
        """Somebody (the kernel) holds the inode once more."""
        self._lookups.add(ino)

    def forget(self, ino: int, count: int = 1) -> None:
        """Somebody lets go of the inode `count` times; the last to let go of an orphan removes it."""
        left = self._lookups.remove(ino, count)
        if not left and ino in self._orphans and not self.node(ino).nlink:
            self._destroy(self.node(ino))

    def _take_up_orphans(self) -> None:
        """Let `settle` remove what the orphan list names: left by a crash or, at the end, held."""
        self._lookups.clear()
        for key, _ in self.store.scan(*key_range(ORPHAN_INO, ORPHAN)):
            ino = split_key(key)[2]
            self._orphans.add(ino)
            self._cuts[ino] = BLOCK_LIMIT

    async def settle(self) -> None:
        """Remove what is left of files that were cut or lost their last name, in pieces the log can hold."""
        async with self._settling:
            while self._cuts:
                ino = next(iter(self._cuts))
                try:
                    self._settle_piece(self.node(ino))
                except CorruptionError:
                    self._cuts.pop(ino, None)  # it stays in the orphan list
                    raise
                await self.store.throttle()
                await trio.lowlevel.checkpoint()

    def _settle_piece(self, node: Node) -> None:
        if not node.nlink and node.ino not in self._lookups:
            self._destroy(node)
        else:
            self._unmap(node, blocks_of(node.size_bytes))

    def may_change(self) -> bool:
        """Whether a change may begin now; if not, `make_way` comes first."""
        return not self.store.volume.is_tight(len(self._dirty))

    async def make_way(self) -> None:
        """Before a change: on a volume with hardly any room left, let what waits in memory become part of the
        tree while there surely is room for the nodes that this takes. So removing always works.
        """
        for _ in range(MAKE_WAY_TRIES):
            if self.may_change():
                return
            try:
                await self.store.checkpoint()
            except NoSpace:
                return  # the change itself may give the room

    def must_throttle(self) -> bool:
        """Whether `throttle` would do anything."""
        has_cuts = bool(self._cuts) and not self._settling.locked()
        return has_cuts or self.store.must_throttle(len(self._dirty))

    async def throttle(self) -> None:
        """Hold a caller up while too much waits to be written or removed."""
        await self.store.throttle(len(self._dirty))
        if self._cuts and not self._settling.locked():
            await self.settle()

    async def make_room(self) -> None:
        """After NoSpace: let what was removed be used again, and make room in the log."""
        await self.settle()
        await self.store.checkpoint()
        await self.store.release_vouchers()

    def readlink(self, ino: int) -> bytes:
        """What a symbolic link says. FileSystemError EINVAL if it is none."""
        node = self.node(ino)
        if S_IFMT(node.mode) != S_IFLNK:
            raise FileSystemError(EINVAL)
        self._touch_access_time(node)
        return b"".join(value for _, value in self.store.scan(*key_range(ino, SYMLINK)))

    def readdir(self, ino: int, cookie: int = directory.COOKIE_START) -> Iterator[Name]:
        """The names of a directory behind a cookie, in the order of their cookies, `.` and `..` first.

        Names made or removed meanwhile may or may not come; every other name comes exactly once.
        """
        node = self.directory_node(ino)
        self._touch_access_time(node)
        if cookie < directory.COOKIE_SELF:
            yield Name(b".", ino, _DIRECTORY_KIND, directory.COOKIE_SELF)
        if cookie < directory.COOKIE_PARENT:
            yield Name(b"..", node.parent_ino or ROOT_INO, _DIRECTORY_KIND, directory.COOKIE_PARENT)
        suffix, last_slot = directory.split_cookie(cookie)
        for key, bucket in self.store.scan(make_key(ino, DIRENT, suffix), key_range(ino, DIRENT)[1]):
            base = split_key(key)[2]
            for slot, kind, target, name in directory.entries(bucket):
                if base != suffix or slot > last_slot:
                    yield Name(name, target, kind, base | slot)

    def rename(
        self,
        parent_ino: int,
        name: bytes,
        new_parent_ino: int,
        new_name: bytes,
        flags: int = 0,
        owner: Owner = ROOT_OWNER,
    ) -> None:
        """Rename, with RENAME_NOREPLACE, RENAME_EXCHANGE, or RENAME_WHITEOUT (and NOREPLACE): the old name
        then leads to a whiteout of `owner`, a character device 0, 0, as overlay file systems want it.

        FileSystemError ENOENT, EEXIST, EINVAL (into itself, `.`, other flags), ENOTDIR, EISDIR, ENOTEMPTY,
        EMLINK, ENAMETOOLONG, ENOSPC.
        """
        whiteout = flags & RENAME_WHITEOUT
        flags -= whiteout
        if flags not in (0, RENAME_NOREPLACE, 0 if whiteout else RENAME_EXCHANGE):
            raise FileSystemError(EINVAL)
        parent = self.directory_node(parent_ino)
        new_parent = parent if parent_ino == new_parent_ino else self.directory_node(new_parent_ino)
        if new_name in (b".", b".."):
            raise FileSystemError(EEXIST if flags == RENAME_NOREPLACE else EINVAL)
        node = self._target(parent, self._found(parent, name))
        entry = self._find(new_parent, new_name)
        replaced = None if entry is None else self._target(new_parent, entry)
        if not new_parent.nlink:
            raise FileSystemError(ENOENT)
        if flags == RENAME_NOREPLACE and replaced is not None:
            raise FileSystemError(EEXIST)
        if S_IFMT(node.mode) == S_IFDIR:
            self._check_not_below(new_parent, node)
        if flags == RENAME_EXCHANGE:
            if replaced is None:
                raise FileSystemError(ENOENT)
            if S_IFMT(replaced.mode) == S_IFDIR:
                self._check_not_below(parent, replaced)
            if replaced is not node:
                self._exchange(parent, name, node, new_parent, new_name, replaced)
        elif replaced is not node:
            self._check_replace(node, parent, new_parent, replaced)
            if whiteout or len(new_name) > len(name):
                self._need_room(1 if whiteout else 2)
            self._move(parent, name, node, new_parent, new_name, replaced)
            if whiteout:
                self.make(parent_ino, name, S_IFCHR, owner)

    def _check_not_below(self, place: Node, node: Node) -> None:
        """FileSystemError EINVAL if the directory `place` is `node` or below it."""
        while place is not node:
            if place.ino == ROOT_INO:
                return
            place = self.node(place.parent_ino or ROOT_INO)
        raise FileSystemError(EINVAL)

    def _check_replace(self, node: Node, parent: Node, new_parent: Node, replaced: Node | None) -> None:
        is_directory = S_IFMT(node.mode) == S_IFDIR
        if replaced is not None:
            if (S_IFMT(replaced.mode) == S_IFDIR) != is_directory:
                raise FileSystemError(ENOTDIR if is_directory else EISDIR)
            if is_directory and replaced.size_bytes:
                raise FileSystemError(ENOTEMPTY)
        elif is_directory and parent is not new_parent and new_parent.nlink >= NLINK_MAX:
            raise FileSystemError(EMLINK)

    def _move(
        self, parent: Node, name: bytes, node: Node, new_parent: Node, new_name: bytes, replaced: Node | None
    ) -> None:
        now = now_ns()
        is_directory = int(S_IFMT(node.mode) == S_IFDIR)
        # The new name first: it is the step that can fail.
        self._put_name(new_parent, new_name, node, over=replaced is not None)
        self._take_name(parent, name)
        self._changed(parent, now, names=-1, directories=-is_directory)
        self._changed(
            new_parent, now, names=int(replaced is None), directories=is_directory * (replaced is None)
        )
        node.ctime_ns = now
        node.parent_ino, node.name = new_parent.ino, new_name
        self.mark(node)
        if replaced is not None:
            self._drop_link(replaced, new_parent.ino, new_name, now)

    def _exchange(
        self, parent: Node, name: bytes, node: Node, new_parent: Node, new_name: bytes, other: Node
    ) -> None:
        now = now_ns()
        self._put_name(parent, name, other, over=True)
        self._put_name(new_parent, new_name, node, over=True)
        moved = int(S_IFMT(other.mode) == S_IFDIR) - int(S_IFMT(node.mode) == S_IFDIR)
        self._changed(parent, now, directories=moved)
        self._changed(new_parent, now, directories=-moved)
        for moved_node, place, new in ((node, new_parent, new_name), (other, parent, name)):
            moved_node.ctime_ns = now
            moved_node.parent_ino, moved_node.name = place.ino, new
            self.mark(moved_node)
