"""Attributes: mode, owner, times, size, extended attributes and access control lists of an inode."""

from errno import EACCES, EOPNOTSUPP
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_ISGID

from jfs import acl, xattrs
from jfs.errors import FileSystemError
from jfs.fileio import FileIO, privileges_cleared
from jfs.layout import XATTR, key_range, make_key
from jfs.nodes import NONE, SOME, UNKNOWN, Node, now_ns

_PERMISSIONS = 0o7777


class Attributes(FileIO):
    """Everything about an inode but its names and its content."""

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
        clear_privileges: bool = False,
        drop_privileges: bool = False,
    ) -> Node:
        """Change what is given; the time of change becomes `ctime_ns` or now. Times are ns since 1970.

        `clear_privileges`: whoever cuts the file has no right to keep setuid and setgid. A new owner always
        clears them, and so does `drop_privileges`. FileSystemError as truncate; a size that it has already
        is no change.
        """
        node = self.node(ino)
        now = now_ns() if ctime_ns is None else ctime_ns
        mode_before = node.mode
        if size is not None:
            is_cut = size != node.size_bytes
            self.truncate(ino, size)
            if is_cut:
                node.mtime_ns = now
            if clear_privileges:
                node.mode = privileges_cleared(node.mode)
        if uid is not None or gid is not None:
            node.uid = node.uid if uid is None else uid
            node.gid = node.gid if gid is None else gid
        if (uid is not None or gid is not None or drop_privileges) and S_IFMT(node.mode) != S_IFDIR:
            node.mode = privileges_cleared(node.mode)
        if mode is not None:
            node.mode = S_IFMT(node.mode) | (mode & _PERMISSIONS)
            if self._has_xattrs(node):
                self._acl_follows_mode(node)
        if atime_ns is not None:
            node.atime_ns = atime_ns
        if mtime_ns is not None:
            node.mtime_ns = mtime_ns
        others = (mode, uid, gid, atime_ns, mtime_ns, ctime_ns)
        if size is None or is_cut or node.mode != mode_before or any(given is not None for given in others):
            node.ctime_ns = now
            self.mark(node)
        return node

    def _has_xattrs(self, node: Node) -> bool:
        if node.xattrs == UNKNOWN:
            found = next(iter(self.store.scan(*key_range(node.ino, XATTR))), None)
            node.xattrs = NONE if found is None else SOME
        return node.xattrs == SOME

    def _key(self, node: Node, name: bytes) -> bytes:
        return make_key(node.ino, XATTR, xattrs.suffix_of(name, self.seed))

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value of an extended attribute. FileSystemError ENODATA, EOPNOTSUPP, ERANGE."""
        node = self.node(ino)
        xattrs.check_name(name)
        if node.xattrs != NONE and self._has_xattrs(node):
            return xattrs.find(self.store.get(self._key(node, name)), name)
        return xattrs.find(None, name)

    def listxattr(self, ino: int) -> list[bytes]:
        """The names of all extended attributes."""
        node = self.node(ino)
        if not self._has_xattrs(node):
            return []
        buckets = self.store.scan(*key_range(ino, XATTR))
        return [name for _, bucket in buckets for name, _ in xattrs.entries(bucket)]

    def setxattr(
        self,
        ino: int,
        name: bytes,
        value: bytes,
        *,
        create: bool = False,
        replace: bool = False,
        keep_setgid: bool = True,
    ) -> None:
        """Set an extended attribute; `create`: it must be new, `replace`: it must be there.

        An access ACL also changes the mode; without `keep_setgid` (the caller is not of the file's group) it
        takes setgid away. FileSystemError EEXIST, ENODATA, E2BIG, ENOSPC, ERANGE, EOPNOTSUPP; for ACLs
        EINVAL, EACCES.
        """
        node = self.node(ino)
        xattrs.check_name(name)
        key = self._key(node, name)
        bucket = self.store.get(key)
        present = any(stored == name for stored, _ in xattrs.entries(bucket or b""))
        xattrs.check_presence(present, create=create, replace=replace)
        self._need_room()
        if name in (acl.ACCESS, acl.DEFAULT):
            self._set_acl(node, name, value, keep_setgid)
        else:
            if not present:
                xattrs.check_list([*self.listxattr(ino), name])
            self.store.put(key, xattrs.store(bucket, name, value))
            node.xattrs = SOME
        node.ctime_ns = now_ns()
        self.mark(node)

    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute. FileSystemError ENODATA (but for an ACL: without one the mode holds),
        EOPNOTSUPP, ERANGE.
        """
        node = self.node(ino)
        xattrs.check_name(name)
        if name in (acl.ACCESS, acl.DEFAULT) and self._acl(node, name) is None:
            return
        self._remove_xattr(node, name)
        node.ctime_ns = now_ns()
        self.mark(node)

    def _remove_xattr(self, node: Node, name: bytes) -> None:
        key = self._key(node, name)
        rest = xattrs.remove(self.store.get(key), name)
        if rest is None:
            self.store.delete(key)
            node.xattrs = UNKNOWN
        else:
            self.store.put(key, rest)

    def _set_acl(self, node: Node, name: bytes, value: bytes, keep_setgid: bool) -> None:
        """Store an ACL and let the mode follow an access ACL; one that says no more than the mode is not
        stored.
        """
        kind = S_IFMT(node.mode)
        if kind == S_IFLNK:
            raise FileSystemError(EOPNOTSUPP)
        if name == acl.DEFAULT and kind != S_IFDIR:
            raise FileSystemError(EACCES)
        found = acl.decode(value)
        if name == acl.ACCESS and found:
            mode = node.mode & ~0o777 | acl.permission_bits(found)
            node.mode = mode if keep_setgid else mode & ~S_ISGID
        if not found or (name == acl.ACCESS and acl.is_minimal(found)):
            if self._acl(node, name) is not None:
                self._remove_xattr(node, name)
            return
        self._store_acl(node, name, found)

    def _store_acl(self, node: Node, name: bytes, found: list[acl.AclEntry]) -> None:
        key = self._key(node, name)
        self.store.put(key, xattrs.store(self.store.get(key), name, acl.encode(found)))
        node.xattrs = SOME

    def _acl(self, node: Node, name: bytes) -> list[acl.AclEntry] | None:
        for stored, value in xattrs.entries(self.store.get(self._key(node, name)) or b""):
            if stored == name:
                return acl.decode(value)
        return None

    def _acl_follows_mode(self, node: Node) -> None:
        found = self._acl(node, acl.ACCESS)
        if found is not None:
            self._store_acl(node, acl.ACCESS, acl.with_mode(found, node.mode))

    def _inherit_acl(self, parent: Node, node: Node) -> bool:
        """Give a new file what the default ACL of its directory says; False if it has none."""
        default = self._acl(parent, acl.DEFAULT) if self._has_xattrs(parent) else None
        if default is None:
            return False
        access, node.mode = acl.inherited(default, node.mode)
        if not acl.is_minimal(access):
            self._store_acl(node, acl.ACCESS, access)
        if S_IFMT(node.mode) == S_IFDIR:
            self._store_acl(node, acl.DEFAULT, default)
        return True
