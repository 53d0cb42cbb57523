"""The changes of items that repairs are made of. Each leaves alone what another repair has put right
already."""

from collections.abc import Sequence
from functools import partial
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG

from jfs import directory, xattrs
from jfs.errors import CorruptionError, FileSystemError
from jfs.filemap import Run
from jfs.fsck_codes import Editor, Fix
from jfs.inode import Inode
from jfs.layout import DIRENT, EXTENT, INODE, ORPHAN, ORPHAN_INO, XATTR, encode_extent, make_key, split_key

DIRECTORY_KIND = S_IFDIR >> 12
_REBUILT_PERMISSIONS = {S_IFREG: 0o600, S_IFDIR: 0o700, S_IFLNK: 0o777}


def drop_key(key: bytes) -> Fix:
    """Drop one item."""
    return partial(_drop_key, key)


def _drop_key(key: bytes, editor: Editor) -> None:
    editor.delete(key)


def drop_inode(ino: int) -> Fix:
    """Drop everything that belongs to an inode; its blocks come back with the free map."""
    return partial(_drop_inode, ino)


def _drop_inode(ino: int, editor: Editor) -> None:
    last = make_key(ino, 0xFF, (1 << 64) - 1)
    for key, _ in list(editor.scan(make_key(ino, 0), last)):
        editor.delete(key)


def load_inode(editor: Editor, ino: int) -> Inode | None:
    """The record of an inode, None if there is none that can be read."""
    value = editor.get(make_key(ino, INODE))
    if value is None:
        return None
    try:
        return Inode.decode(value)
    except CorruptionError:
        return None


def set_fields(ino: int, **fields: int | bytes) -> Fix:
    """Correct fields of an inode's record."""
    return partial(_set_fields, ino, fields)


def _set_fields(ino: int, fields: dict[str, int | bytes], editor: Editor) -> None:
    inode = load_inode(editor, ino)
    if inode is None:
        return
    for name, value in fields.items():
        setattr(inode, name, value)
    editor.put(make_key(ino, INODE), inode.encode())


def rebuild_inode(ino: int, kind: int, size_bytes: int, blocks: int) -> Fix:
    """Make a record for items that have none: owned by root, readable for nobody else, times at 1970.

    `kind` are the file type bits of a mode. Names and parent are corrected when the links are checked.
    """
    inode = Inode(
        mode=kind | _REBUILT_PERMISSIONS[kind],
        nlink=2 if kind == S_IFDIR else 1,
        size_bytes=size_bytes,
        blocks=blocks,
    )
    return partial(_put, make_key(ino, INODE), inode.encode())


def rebuild_root(ino: int, names: int) -> Fix:
    """Make the record of the root directory."""
    inode = Inode(mode=S_IFDIR | 0o755, nlink=2, size_bytes=names, parent_ino=ino)
    return partial(_put, make_key(ino, INODE), inode.encode())


def _put(key: bytes, value: bytes, editor: Editor) -> None:
    editor.put(key, value)


def replace_extent(key: bytes, kept: Sequence[Run]) -> Fix:
    """Put the parts of an extent that are kept in its place."""
    return partial(_replace_extent, key, tuple(kept))


def _replace_extent(key: bytes, kept: Sequence[Run], editor: Editor) -> None:
    editor.delete(key)
    ino = split_key(key)[0]
    for file_block, start, count in kept:
        editor.put(make_key(ino, EXTENT, file_block), encode_extent(start, count))


# -- names -----------------------------------------------------------------------------------------


def rewrite_names(
    key: bytes, kept: Sequence[directory.Entry], moved: Sequence[directory.Entry], seed: int
) -> Fix:
    """Put the names that belong to a bucket into it, with slots of their own, and move others to their
    buckets."""
    return partial(_rewrite_names, key, tuple(kept), tuple(moved), seed)


def _rewrite_names(
    key: bytes, kept: Sequence[directory.Entry], moved: Sequence[directory.Entry], seed: int, editor: Editor
) -> None:
    slots = [entry.slot for entry in kept]
    if slots != sorted(set(slots)):
        kept = [entry._replace(slot=slot) for slot, entry in enumerate(kept[: directory.SLOT_COUNT])]
    value = b"".join(directory.encode(*entry) for entry in kept)
    if value:
        editor.put(key, value)
    else:
        editor.delete(key)
    for entry in moved:
        _insert_name(editor, split_key(key)[0], entry.name, entry.ino, entry.kind, seed)


def _insert_name(editor: Editor, ino: int, name: bytes, target: int, kind: int, seed: int) -> bool:
    """Add a name to a directory's buckets; False if it is there already, or its bucket is full or
    unreadable."""
    key = make_key(ino, DIRENT, directory.suffix_of(name, seed))
    bucket = editor.get(key)
    try:
        if bucket is not None and directory.find(bucket, name) is not None:
            return False
        editor.put(key, directory.insert(bucket, name, target, kind))
    except (CorruptionError, FileSystemError):
        return False
    return True


def retype_name(ino: int, cookie: int, kind: int) -> Fix:
    """Correct the type that the name at a place of a directory tells."""
    return partial(_change_name, ino, cookie, kind)


def remove_name(ino: int, cookie: int) -> Fix:
    """Remove the name at a place of a directory, and count the directory's names anew."""
    return partial(_change_name, ino, cookie, None)


def find_name(editor: Editor, ino: int, cookie: int) -> directory.Entry | None:
    """The name at a place of a directory, if there is one."""
    suffix, slot = directory.split_cookie(cookie)
    bucket = editor.get(make_key(ino, DIRENT, suffix)) or b""
    try:
        return next((entry for entry in directory.entries(bucket) if entry.slot == slot), None)
    except CorruptionError:
        return None


def _change_name(ino: int, cookie: int, kind: int | None, editor: Editor) -> None:
    entry = find_name(editor, ino, cookie)
    if entry is None:
        return
    key = make_key(ino, DIRENT, directory.split_cookie(cookie)[0])
    bucket = editor.get(key) or b""
    if kind is not None:
        editor.put(key, directory.replace(bucket, entry.name, entry.ino, kind))
        return
    rest = directory.remove(bucket, entry.name)
    if rest is None:
        editor.delete(key)
    else:
        editor.put(key, rest)
    _count_name(editor, ino, -1, entry.kind)


def _count_name(editor: Editor, ino: int, change: int, kind: int) -> None:
    """One name more or fewer: the directory's size, and its link count if the name leads to a directory."""
    parent = load_inode(editor, ino)
    if parent is None:
        return
    parent.size_bytes = max(parent.size_bytes + change, 0)
    if kind == DIRECTORY_KIND:
        parent.nlink = max(parent.nlink + change, 2)
    editor.put(make_key(ino, INODE), parent.encode())


def add_name(editor: Editor, parent_ino: int, name: bytes, ino: int, seed: int) -> bool:
    """Name an inode in a directory and let it know; False if that name is taken or one of them is missing."""
    inode = load_inode(editor, ino)
    if inode is None or load_inode(editor, parent_ino) is None:
        return False
    kind = S_IFMT(inode.mode) >> 12
    if not _insert_name(editor, parent_ino, name, ino, kind, seed):
        return False
    inode.parent_ino, inode.name = parent_ino, name
    # A directory's own count also holds its directories, and is checked as such; a file has this name alone.
    inode.nlink = max(inode.nlink, 2) if kind == DIRECTORY_KIND else 1
    editor.put(make_key(ino, INODE), inode.encode())
    _count_name(editor, parent_ino, 1, kind)
    return True


def set_parent(ino: int, parent_ino: int, cookie: int) -> Fix:
    """Let an inode know the directory and the name that lead to it."""
    return partial(_set_parent, ino, parent_ino, cookie)


def _set_parent(ino: int, parent_ino: int, cookie: int, editor: Editor) -> None:
    entry = find_name(editor, parent_ino, cookie)
    if entry is not None and entry.ino == ino:
        _set_fields(ino, {"parent_ino": parent_ino, "name": entry.name}, editor)


# -- extended attributes, orphans ------------------------------------------------------------------


def rewrite_attributes(
    key: bytes, kept: Sequence[tuple[bytes, bytes]], moved: Sequence[tuple[bytes, bytes]], seed: int
) -> Fix:
    """Keep the attributes that belong to a bucket, and move others to theirs."""
    return partial(_rewrite_attributes, key, tuple(kept), tuple(moved), seed)


def _rewrite_attributes(
    key: bytes,
    kept: Sequence[tuple[bytes, bytes]],
    moved: Sequence[tuple[bytes, bytes]],
    seed: int,
    editor: Editor,
) -> None:
    value: bytes | None = None
    for name, content in kept:
        value = xattrs.store(value, name, content)
    if value is None:
        editor.delete(key)
    else:
        editor.put(key, value)
    for name, content in moved:
        place = make_key(split_key(key)[0], XATTR, xattrs.suffix_of(name, seed))
        bucket = editor.get(place)
        try:
            if all(stored != name for stored, _ in xattrs.entries(bucket or b"")):
                editor.put(place, xattrs.store(bucket, name, content))
        except (CorruptionError, FileSystemError):
            continue  # its bucket is full or unreadable: it is dropped


def list_orphan(ino: int) -> Fix:
    """Put an inode on the list of deleted files."""
    return partial(_put, make_key(ORPHAN_INO, ORPHAN, ino), b"")


def unlist_orphan(ino: int) -> Fix:
    """Take an inode off the list of deleted files."""
    return drop_key(make_key(ORPHAN_INO, ORPHAN, ino))
