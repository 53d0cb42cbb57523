"""The checks of single inodes: every item of the tree, in order of key, without looking anything up. Pure.

What concerns several inodes (links, parents, the free map) is noted in the census and in the use of blocks,
as if what this check finds were repaired: one damage is then reported once and not by all that hangs on it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import TypeVar

from jfs import acl, directory, fsck_edit, xattrs
from jfs.errors import CorruptionError, FileSystemError
from jfs.filemap import BLOCK_LIMIT, Run
from jfs.fsck_blocks import BlockUse
from jfs.fsck_census import UNKNOWN_LINKS, Census
from jfs.fsck_codes import Fault
from jfs.inode import Inode
from jfs.layout import (
    BLOCK_BYTES,
    DIRENT,
    EXTENT,
    FIRST_FILE_INO,
    FREE_MAP_INO,
    GROUP,
    INODE,
    ORPHAN,
    ORPHAN_INO,
    ROOT_INO,
    SYMLINK,
    VALUE_LIMIT_BYTES,
    XATTR,
    decode_extent,
    split_key,
)

TYPES = frozenset({S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK})
TARGET_MAX = 4095
SIZE_MAX = (1 << 63) - 1
_TYPE_OF_ITEM = {EXTENT: S_IFREG, DIRENT: S_IFDIR, SYMLINK: S_IFLNK}
_ITEM_NAMES = {EXTENT: "an extent", DIRENT: "names", SYMLINK: "a link's target"}
_NO_FAULTS: tuple[Fault, ...] = ()
_T = TypeVar("_T")


@dataclass(slots=True)
class Subject:
    """What is known of the inode whose items are passing."""

    ino: int
    kind: int = 0  # file type; without a record that of the first item which only one type can have
    inode: Inode | None = None
    unreadable: str = ""  # why the record is no record
    extent_end: int = 0
    blocks: int = 0
    names: int = 0
    directories: int = 0  # that its names say they lead to
    target_bytes: int = 0
    target_parts: int = 0
    target_broken: bool = False
    attribute_bytes: int = 0


class ItemCheck:
    """The check of all items.

    `seed` is the volume's for hashes, `next_ino` the number of its next file. A volume that was never
    mounted has no root yet (`has_root` false). Afterwards `records` counts the inode records, whatever is
    in them.
    """

    records = 0

    def __init__(self, seed: int, next_ino: int, census: Census, blocks: BlockUse, *, has_root: bool) -> None:
        self._seed = seed
        self._next_ino = next_ino
        self._has_root = has_root
        self._census = census
        self._blocks = blocks

    def run(self, items: Iterable[tuple[bytes, bytes]]) -> Iterator[Fault]:
        """The faults of single inodes. The items come in ascending order of key."""
        subject = Subject(-1)
        root_seen = False
        for key, value in items:
            ino, kind, suffix = split_key(key)
            if ino < FIRST_FILE_INO and ino != ROOT_INO:
                yield from self._reserved(key, ino, kind, suffix, value)
                continue
            if ino != subject.ino:
                yield from self._finish(subject)
                if not root_seen and ino != ROOT_INO:
                    yield self._no_root()
                subject, root_seen = Subject(ino), True
            faults = self._item(subject, key, kind, suffix, value)
            if faults:
                yield from faults
        yield from self._finish(subject)
        if not root_seen and self._has_root:
            yield self._no_root()

    def _no_root(self) -> Fault:
        self._census.add_inode(ROOT_INO, S_IFDIR >> 12, UNKNOWN_LINKS)
        sentence = "the root directory has no inode"
        return Fault("root-missing", f"inode {ROOT_INO}", sentence, fsck_edit.rebuild_root(ROOT_INO, 0))

    def _reserved(self, key: bytes, ino: int, kind: int, suffix: int, value: bytes) -> Iterable[Fault]:
        if ino == FREE_MAP_INO and kind == GROUP:
            fault = self._blocks.check_group(suffix, value)
            return _NO_FAULTS if fault is None else (fault,)
        if ino == ORPHAN_INO and kind == ORPHAN:
            self._census.orphans.append(suffix)
            return _NO_FAULTS
        self.records += kind == INODE
        return (_unknown(key, f"inode {ino} is reserved and has no items of kind {kind}"),)

    def _item(self, subject: Subject, key: bytes, kind: int, suffix: int, value: bytes) -> Iterable[Fault]:
        if kind == INODE:
            return self._inode(subject, key, suffix, value)
        if kind == XATTR:
            return self._attributes(subject, key, suffix, value)
        wanted = _TYPE_OF_ITEM.get(kind)
        if wanted is None:
            return (_unknown(key, f"inode {subject.ino} has an item of unknown kind {kind}"),)
        if not subject.kind and subject.inode is None:
            subject.kind = wanted
        if subject.kind != wanted:
            sentence = f"inode {subject.ino} has {_ITEM_NAMES[kind]}, which its type cannot have"
            return (Fault("inode-foreign", _place_of(key), sentence, fsck_edit.drop_key(key)),)
        if kind == EXTENT:
            return self._extent(subject, key, suffix, value)
        if kind == DIRENT:
            return self._names(subject, key, suffix, value)
        return self._target(subject, key, suffix, value)

    def _inode(self, subject: Subject, key: bytes, suffix: int, value: bytes) -> Iterable[Fault]:
        ino = subject.ino
        self.records += 1
        if suffix:
            return (_unknown(key, f"inode {ino} has a second record"),)
        try:
            inode = Inode.decode(value)
        except CorruptionError as error:
            subject.unreadable = error.sentence
            return _NO_FAULTS
        if S_IFMT(inode.mode) not in TYPES:
            subject.unreadable = f"mode {inode.mode:o} has no file type"
            return _NO_FAULTS
        subject.inode = inode
        subject.kind = S_IFMT(inode.mode)
        if ino == ROOT_INO and subject.kind != S_IFDIR:
            subject.inode, subject.kind = None, S_IFDIR
            subject.unreadable = "it is not a directory"
        return _NO_FAULTS

    # -- extents ----------------------------------------------------------------

    def _extent(self, subject: Subject, key: bytes, file_block: int, value: bytes) -> Iterable[Fault]:
        place = f"inode {subject.ino} file block {file_block}"
        try:
            start, count = decode_extent(value)
        except CorruptionError as error:
            sentence = f"{error.sentence}, at file block {file_block} of inode {subject.ino}"
            return (Fault("extent-undecodable", place, sentence, fsck_edit.drop_key(key)),)
        blocks = self._blocks
        if not blocks.inside(start, count) or file_block + count > BLOCK_LIMIT:
            sentence = f"inode {subject.ino} has {count} blocks from {start}, outside the volume or any file"
            return (Fault("extent-range", place, sentence, fsck_edit.drop_key(key)),)
        skipped = min(max(subject.extent_end - file_block, 0), count)
        subject.extent_end = max(subject.extent_end, file_block + count)
        free: list[Run] | None = None
        if skipped < count:
            owned = blocks.claim(start + skipped, count - skipped)
            if owned is None and not skipped:
                subject.blocks += count
                return _NO_FAULTS
            runs = [(start + skipped, count - skipped)] if owned is None else owned
            free = [Run(file_block + begin - start, begin, length) for begin, length in runs]
        kept = free or []
        subject.blocks += sum(blocks for _, _, blocks in kept)
        return self._extent_faults(subject, key, place, skipped, count, kept)

    def _extent_faults(
        self, subject: Subject, key: bytes, place: str, skipped: int, count: int, kept: list[Run]
    ) -> Iterator[Fault]:
        fix = fsck_edit.replace_extent(key, kept)
        if skipped:
            sentence = f"inode {subject.ino} has two extents over {skipped} of its blocks"
            yield Fault("extent-overlap", place, sentence, fix)
        shared = count - skipped - sum(blocks for _, _, blocks in kept)
        if shared:
            sentence = f"{shared} blocks of inode {subject.ino} belong to something else as well"
            yield Fault("extent-shared", place, sentence, fix)

    # -- names ------------------------------------------------------------------

    def _names(self, subject: Subject, key: bytes, suffix: int, value: bytes) -> Iterable[Fault]:
        ino, seed = subject.ino, self._seed
        only = directory.only_entry(value)
        if only is not None and directory.suffix_of(only.name, seed) == suffix and not _is_no_name(only.name):
            subject.names += 1
            subject.directories += only.kind == fsck_edit.DIRECTORY_KIND
            self._census.add_name(ino, suffix | only.slot, only.ino, only.kind)
            return _NO_FAULTS
        found, torn = _readable(directory.entries(value))
        place = f"directory {ino} hash {suffix:#x}"
        faults: list[tuple[str, str]] = []
        if torn or not found:
            faults.append(
                ("name-undecodable", f"directory {ino} has names at {suffix:#x} that cannot be read")
            )
        kept: list[directory.Entry] = []
        moved: list[directory.Entry] = []
        for entry in found:
            if _is_no_name(entry.name):
                faults.append(("name-invalid", f"directory {ino} has the impossible name {entry.name!r}"))
            elif directory.suffix_of(entry.name, seed) != suffix:
                faults.append(
                    ("name-misplaced", f"directory {ino} has the name {entry.name!r} in a wrong place")
                )
                moved.append(entry)
            elif any(entry.name == other.name for other in kept):
                faults.append(("name-slot", f"directory {ino} has the name {entry.name!r} twice"))
            else:
                kept.append(entry)
        if any(first.slot >= second.slot for first, second in pairwise(kept)):
            faults.append(
                ("name-slot", f"directory {ino} has names at {suffix:#x} without slots of their own")
            )
        subject.names += len(kept) + len(moved)
        for entry in (*kept, *moved):
            subject.directories += entry.kind == fsck_edit.DIRECTORY_KIND
            self._census.add_name(ino, suffix | entry.slot, entry.ino, entry.kind)
        if not faults:
            return _NO_FAULTS
        fix = fsck_edit.rewrite_names(key, kept, moved, seed)
        return [Fault(code, place, sentence, fix) for code, sentence in faults]

    # -- extended attributes ------------------------------------------------------

    def _attributes(self, subject: Subject, key: bytes, suffix: int, value: bytes) -> Iterable[Fault]:
        found, torn = _readable(xattrs.entries(value))
        ino = subject.ino
        faults: list[tuple[str, str]] = []
        if torn or not found:
            faults.append(("xattr-undecodable", f"attributes of inode {ino} at {suffix:#x} cannot be read"))
        kept: dict[bytes, bytes] = {}
        moved: list[tuple[bytes, bytes]] = []
        for name, content in found:
            size = len(name) + 1
            if name in kept or not _is_attribute(subject, name, content):
                faults.append(("xattr-invalid", f"inode {ino} has an attribute {name!r} that it cannot have"))
            elif subject.attribute_bytes + size > xattrs.LIST_MAX:
                faults.append(("xattr-invalid", f"inode {ino} has more attributes than can be listed"))
            else:
                subject.attribute_bytes += size
                if xattrs.suffix_of(name, self._seed) == suffix:
                    kept[name] = content
                else:
                    moved.append((name, content))
                    faults.append(
                        ("xattr-misplaced", f"inode {ino} has the attribute {name!r} in a wrong place")
                    )
        if not faults:
            return _NO_FAULTS
        fix = fsck_edit.rewrite_attributes(key, list(kept.items()), moved, self._seed)
        return [
            Fault(code, f"inode {ino} attributes {suffix:#x}", sentence, fix) for code, sentence in faults
        ]

    # -- symbolic links -----------------------------------------------------------

    def _target(self, subject: Subject, key: bytes, part: int, value: bytes) -> Iterable[Fault]:
        subject.target_broken |= (
            part != subject.target_parts or subject.target_bytes != part * VALUE_LIMIT_BYTES or b"\0" in value
        )
        subject.target_parts += 1
        subject.target_bytes += len(value)
        return _NO_FAULTS

    # -- the inode as a whole -------------------------------------------------------

    def _finish(self, subject: Subject) -> Iterator[Fault]:
        ino, inode = subject.ino, subject.inode
        if ino < 0:
            return
        if inode is None:
            yield from self._without_record(subject)
            return
        place = f"inode {ino}"
        if ino >= self._next_ino:
            yield Fault(
                "inode-number", place, f"inode {ino} has a number that the volume would give to a new file"
            )
        if subject.kind == S_IFLNK:
            if not subject.target_bytes:
                sentence = f"the symbolic link {ino} has no target"
                yield Fault("symlink-missing", place, sentence, fsck_edit.drop_inode(ino))
            elif subject.target_broken or subject.target_bytes > TARGET_MAX:
                sentence = f"the target of the symbolic link {ino} cannot be one"
                yield Fault("symlink-invalid", place, sentence, fsck_edit.drop_inode(ino))
        size = _right_size(subject, inode)
        if size != inode.size_bytes and (subject.kind != S_IFREG or ino not in self._census.orphans):
            sentence = f"inode {ino} has size {inode.size_bytes}, but should have {size}"
            yield Fault("inode-size", place, sentence, fsck_edit.set_fields(ino, size_bytes=size))
        if inode.blocks != subject.blocks:
            sentence = f"inode {ino} counts {inode.blocks} blocks, but has {subject.blocks}"
            yield Fault("inode-blocks", place, sentence, fsck_edit.set_fields(ino, blocks=subject.blocks))
        name_suffix = directory.suffix_of(inode.name, self._seed) if inode.parent_ino else 0
        self._census.add_inode(
            ino,
            subject.kind >> 12,
            inode.nlink,
            inode.parent_ino,
            name_suffix,
            names=subject.names,
            directories=subject.directories,
        )

    def _without_record(self, subject: Subject) -> Iterator[Fault]:
        ino, kind = subject.ino, subject.kind
        place = f"inode {ino}"
        if ino == ROOT_INO:
            sentence = f"the root directory cannot be used: {subject.unreadable or 'it has no inode'}"
            yield Fault("root-missing", place, sentence, fsck_edit.rebuild_root(ino, subject.names))
            self._note_without_record(subject, S_IFDIR)
            return
        code = "inode-undecodable" if subject.unreadable else "inode-missing"
        sentence = f"inode {ino} has no record: {subject.unreadable or 'only other items'}"
        if not kind:
            yield Fault(code, place, sentence, fsck_edit.drop_inode(ino))
            return
        sizes = {
            S_IFREG: subject.extent_end * BLOCK_BYTES,
            S_IFDIR: subject.names,
            S_IFLNK: subject.target_bytes,
        }
        yield Fault(code, place, sentence, fsck_edit.rebuild_inode(ino, kind, sizes[kind], subject.blocks))
        self._note_without_record(subject, kind)

    def _note_without_record(self, subject: Subject, kind: int) -> None:
        self._census.add_inode(
            subject.ino,
            kind >> 12,
            UNKNOWN_LINKS,
            names=subject.names,
            directories=subject.directories,
        )


def _right_size(subject: Subject, inode: Inode) -> int:
    """The size that an inode should have: its own, where that can be."""
    if subject.kind == S_IFREG:
        reach = -(-inode.size_bytes // BLOCK_BYTES)
        if subject.extent_end > reach or inode.size_bytes > SIZE_MAX:
            return min(subject.extent_end * BLOCK_BYTES, SIZE_MAX)
        return inode.size_bytes
    if subject.kind == S_IFDIR:
        return subject.names
    return subject.target_bytes if subject.kind == S_IFLNK else 0


def _readable(entries: Iterator[_T]) -> tuple[list[_T], bool]:
    """What a bucket holds up to where it is torn, and whether it is."""
    found: list[_T] = []
    try:
        for entry in entries:
            found.append(entry)  # noqa: PERF402 (what came before the error counts)
    except CorruptionError:
        return found, True
    return found, False


def _is_no_name(name: bytes) -> bool:
    return name in (b".", b"..") or b"/" in name or b"\0" in name


def _is_attribute(subject: Subject, name: bytes, content: bytes) -> bool:
    """Can the inode have this attribute?"""
    try:
        xattrs.check_name(name)
        if name not in (acl.ACCESS, acl.DEFAULT):
            return len(content) <= xattrs.VALUE_MAX
        acl.decode(content)
    except FileSystemError:
        return False
    return subject.kind != S_IFLNK and (name == acl.ACCESS or subject.kind in (0, S_IFDIR))


def _place_of(key: bytes) -> str:
    ino, kind, suffix = split_key(key)
    return f"inode {ino} kind {kind} suffix {suffix:#x}"


def _unknown(key: bytes, sentence: str) -> Fault:
    return Fault("item-unknown", _place_of(key), sentence, fsck_edit.drop_key(key))
