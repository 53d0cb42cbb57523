"""What the check can find: the codes, and the finding itself. `docs/fsck.md` is held to this table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Code:
    """One kind of damage: what it means and what repair does; `repair` is empty where nothing can be done."""

    name: str
    meaning: str
    repair: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `place` names it for a machine, `sentence` for a person.

    `repaired` is set by repair only, once a check after it no longer finds the same.
    """

    code: str
    place: str
    sentence: str
    repairable: bool
    repaired: bool = False


class Editor(Protocol):
    """What a fix may do: read and change items. jfs.store.Store is one."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(self, first: bytes, last: bytes) -> Iterator[tuple[bytes, bytes]]: ...


Fix = Callable[[Editor], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A finding in the making, with the change of items that would repair it. No `fix`: repaired elsewhere
    or not at all."""

    code: str
    place: str
    sentence: str
    fix: Fix | None = None

    def finding(self) -> Finding:
        """The fault as the caller of fsck sees it."""
        return Finding(self.code, self.place, self.sentence, bool(CODES[self.code].repair))


def _table(*codes: Code) -> dict[str, Code]:
    return {code.name: code for code in codes}


CODES = _table(
    Code(
        "superblock-lost",
        "neither superblock slot can be read",
    ),
    Code(
        "superblock-newer",
        "a superblock slot is of a later format version: nothing is damaged, use the trisite that wrote it",
    ),
    Code(
        "superblock-older",
        "a superblock slot is of an earlier format version: nothing is damaged, use the trisite that wrote "
        "it",
    ),
    Code(
        "superblock-slot",
        "one superblock slot cannot be read, or disagrees with the other about the volume",
        "written again from the good slot",
    ),
    Code(
        "superblock-backup",
        "the copy of the superblock in the last block cannot be read, or is of another volume",
        "written again from the good slot",
    ),
    Code(
        "area-truncated",
        "the storage area is smaller than the volume on it",
    ),
    Code(
        "log-table",
        "the superblock's table of log segments has a segment outside the volume, over another one, or over "
        "something else",
        "the log is started anew in free blocks, after what it holds is in the tree",
    ),
    Code(
        "log-damaged",
        "a part of the log that was durable once cannot be read",
        "what the log holds before the damage is kept, what follows it is lost; the log is started anew",
    ),
    Code(
        "tree-node",
        "a node of the tree cannot be read: wrong checksum, place, level, or order of keys",
        "the tree is built again without it, from what can still be read",
    ),
    Code(
        "tree-shared",
        "a node is reached twice in the tree, or lies over the log or a superblock",
        "the tree is built again; the node counts where it is reached first",
    ),
    Code(
        "item-unknown",
        "an item of the tree belongs to no kind that this version knows, or to a reserved inode",
        "dropped",
    ),
    Code(
        "root-missing",
        "the root directory has no inode, or is not a directory",
        "made again, owned by root, with the names that are left",
    ),
    Code(
        "inode-undecodable",
        "the record of an inode cannot be read or has no valid type",
        "dropped; what else belongs to the inode is kept as for inode-missing",
    ),
    Code(
        "inode-missing",
        "an inode has items but no record",
        "extents, names or a link's target get a record for root only; anything else is dropped",
    ),
    Code(
        "inode-number",
        "an inode has a number that the volume would give to a new file",
        "the next number to give is raised",
    ),
    Code(
        "inode-foreign",
        "an inode has items that its type cannot have",
        "dropped; the type of the record counts",
    ),
    Code(
        "inode-size",
        "a size is wrong: less than the blocks of a file reach, not the length of a link's target, not the "
        "number of a directory's names, or not 0 for another type",
        "corrected",
    ),
    Code(
        "inode-blocks",
        "an inode counts more or fewer blocks than it has",
        "corrected",
    ),
    Code(
        "inode-links",
        "a link count is wrong",
        "corrected",
    ),
    Code(
        "inode-parent",
        "an inode names a directory and a name that do not lead to it",
        "corrected",
    ),
    Code(
        "inode-unreachable",
        "an inode has no name, or its directory cannot be reached from the root",
        "named #INODE in /lost+found",
    ),
    Code(
        "extent-undecodable",
        "an extent cannot be read",
        "dropped: the blocks of the file read as zeros",
    ),
    Code(
        "extent-range",
        "an extent is empty, or lies outside the volume or beyond the largest file",
        "dropped: the blocks of the file read as zeros",
    ),
    Code(
        "extent-overlap",
        "two extents hold the same blocks of one file",
        "the second one loses them",
    ),
    Code(
        "extent-shared",
        "blocks of the volume belong to two files, or to a file and to the tree, the log or the superblock",
        "the second one loses them: they read as zeros in that file",
    ),
    Code(
        "name-undecodable",
        "names in a directory cannot be read",
        "dropped; the inodes they led to go to /lost+found",
    ),
    Code(
        "name-invalid",
        "a directory holds a name that no file can have: `.`, `..`, with a slash or a zero in it",
        "dropped; the inode it led to goes to /lost+found",
    ),
    Code(
        "name-misplaced",
        "a name is stored where its hash does not lead",
        "moved to its place, or dropped if that name is there already",
    ),
    Code(
        "name-slot",
        "the names of one hash do not have slots of their own in ascending order, or a name is there twice",
        "slots are given anew; of two equal names the first counts",
    ),
    Code(
        "name-dangling",
        "a name leads to an inode that does not exist",
        "dropped",
    ),
    Code(
        "name-type",
        "a name tells a type that the inode does not have",
        "corrected",
    ),
    Code(
        "name-second-parent",
        "a directory has two names, or the root directory has one",
        "the name that the directory does not know of is dropped",
    ),
    Code(
        "directory-cycle",
        "directories lie in one another and cannot be reached from the root",
        "the one with the lowest number moves to /lost+found",
    ),
    Code(
        "orphan-stale",
        "the list of deleted files names an inode that does not exist, or one with names that is not a file",
        "taken off the list",
    ),
    Code(
        "orphan-unlisted",
        "a deleted inode is not in the list of deleted files, so its space would never come back",
        "put on the list",
    ),
    Code(
        "xattr-undecodable",
        "extended attributes cannot be read",
        "dropped",
    ),
    Code(
        "xattr-invalid",
        "an extended attribute has a name or a value that it cannot have, or is more than can be listed",
        "dropped",
    ),
    Code(
        "xattr-misplaced",
        "an extended attribute is stored where its hash does not lead",
        "moved to its place, or dropped if there is one of that name already",
    ),
    Code(
        "symlink-missing",
        "a symbolic link has no target",
        "the link and its names are removed",
    ),
    Code(
        "symlink-invalid",
        "the target of a symbolic link is too long or has a zero in it",
        "the link and its names are removed",
    ),
    Code(
        "map-undecodable",
        "a part of the free map cannot be read, or lies outside the volume",
        "computed anew",
    ),
    Code(
        "map-used-as-free",
        "blocks in use are marked free, so that something else might be written over them",
        "marked used",
    ),
    Code(
        "map-free-as-used",
        "blocks are marked used, but nothing uses them",
        "marked free",
    ),
    Code(
        "count-free",
        "the superblock's number of free blocks is wrong",
        "corrected",
    ),
    Code(
        "count-inodes",
        "the superblock's number of inodes is wrong",
        "corrected",
    ),
)
