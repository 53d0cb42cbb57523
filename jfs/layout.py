"""Where things are on a volume: constants, keys, the superblock."""

import struct
from dataclasses import dataclass
from uuid import UUID

from xxhash import xxh3_64_intdigest

from jfs.device import BLOCK_BYTES as BLOCK_BYTES
from jfs.errors import CorruptionError, OtherFormatError
from jfs.record import Field, Record

FORMAT_VERSION = 3
NODE_BYTES = 16384
NODE_BLOCKS = NODE_BYTES // BLOCK_BYTES
GROUP_BLOCKS = 8192
KEY_BYTES = 17
VALUE_LIMIT_BYTES = 4000

ROOT_INO = 1
FREE_MAP_INO = 2
ORPHAN_INO = 3
LOG_INO = 5
FIRST_FILE_INO = 16

INODE = 1
EXTENT = 2
DIRENT = 3
XATTR = 4
SYMLINK = 5
ORPHAN = 6
GROUP = 7

KEY = Record(
    "key",
    Field("ino", "Q", "the file the item belongs to"),
    Field("kind", "B", "1 inode, 2 extent, 3 dirent, 4 xattr, 5 symlink, 6 orphan, 7 group"),
    Field("suffix", "Q", "meaning depends on the kind"),
    order=">",
)
_pack_key = KEY.struct.pack
_unpack_key = KEY.struct.unpack
_PREFIX = struct.Struct(">QB")


def make_key(ino: int, kind: int, suffix: int = 0) -> bytes:
    """The 17 bytes that order items by inode, kind and suffix."""
    return _pack_key(ino, kind, suffix)


def split_key(key: bytes) -> tuple[int, int, int]:
    """(inode, kind, suffix) of a key."""
    ino, kind, suffix = _unpack_key(key)
    return ino, kind, suffix


def key_range(ino: int, kind: int) -> tuple[bytes, bytes]:
    """The first and the last possible key of one kind of one inode, as Store.scan takes them."""
    prefix = _PREFIX.pack(ino, kind)
    return prefix + b"\0" * 8, prefix + b"\xff" * 8


EXTENT_VALUE = Record(
    "extent",
    Field("start_block", "Q", "first block on the volume; the key's suffix is the first block in the file"),
    Field("count", "I", "blocks"),
)
_pack_extent = EXTENT_VALUE.struct.pack
_unpack_extent = EXTENT_VALUE.struct.unpack_from


def encode_extent(start_block: int, count: int) -> bytes:
    """The value of an EXTENT item."""
    return _pack_extent(start_block, count)


def decode_extent(value: bytes) -> tuple[int, int]:
    """(start block, count) of an EXTENT value; CorruptionError if it cannot be one."""
    if len(value) != EXTENT_VALUE.size:
        raise CorruptionError(f"an extent item has {len(value)} bytes instead of {EXTENT_VALUE.size}")
    start_block, count = _unpack_extent(value)
    return start_block, count


SUPERBLOCK_MAGIC = b"trisitefs"[:8]
CLEAN = 1
SUPERBLOCK_SLOTS = (0, 1)
SUPERBLOCK = Record(
    "superblock",
    Field("checksum", "Q", "xxh3-64 of the rest of the block"),
    Field("magic", "8s", "`trisitef`"),
    Field("version", "I", "of the format; a reader refuses any other"),
    Field("flags", "I", "1: closed cleanly"),
    Field("uuid", "16s", "of the volume"),
    Field("label", "32s", "UTF-8, padded with zeros"),
    Field("generation", "Q", "rises by one with every superblock; the slot is generation mod 2"),
    Field("epoch", "Q", "of the writing site that wrote it"),
    Field("created_ns", "Q", "when the volume was made, ns since 1970"),
    Field("block_bytes", "I", "4096"),
    Field("node_bytes", "I", "16384"),
    Field("total_blocks", "Q", "size of the volume"),
    Field("reserve_blocks", "Q", "the first blocks of the volume, where no data is allocated"),
    Field("tree_root", "Q", "block of the root node"),
    Field("tree_height", "I", "1: the root is a leaf"),
    Field("segment_blocks", "I", "size of a log segment"),
    Field("segment_limit", "I", "most segments the log may have"),
    Field("segment_count", "I", "entries of the segment table"),
    Field("free_blocks", "Q", "at the checkpoint"),
    Field("inodes", "Q", "at the checkpoint"),
    Field("next_ino", "Q", "first inode number never used up to the checkpoint"),
    Field("checkpoint_lsn", "Q", "number of the first batch that is not in the tree"),
    Field("checkpoint_block", "Q", "block where that batch begins or will begin"),
    Field("checkpoint_chain", "Q", "checksum of the batch before it"),
    Field("tail_lsn", "Q", "number of the first batch that the log still needs"),
    Field("tail_block", "Q", "block where it begins: the start of a segment"),
    Field("tail_chain", "Q", "checksum of the batch before it"),
)
SEGMENT_TABLE_LIMIT = 256
_SEGMENT = struct.Struct("<Q")


@dataclass(frozen=True)
class LogPlace:
    """A place in the log: the number of the next batch, the block where it begins, the checksum before it."""

    lsn: int
    block: int
    chain: int


@dataclass(frozen=True)
class Superblock:
    """What a checkpoint leaves behind: the root of everything."""

    uuid: UUID
    label: str
    generation: int
    epoch: int
    created_ns: int
    total_blocks: int
    reserve_blocks: int
    tree_root: int
    tree_height: int
    segment_blocks: int
    segment_limit: int
    segments: tuple[int, ...]
    free_blocks: int
    inodes: int
    next_ino: int
    checkpoint: LogPlace
    tail: LogPlace
    clean: bool

    def encode(self) -> bytes:
        """One block."""
        body = SUPERBLOCK.struct.pack(
            0,
            SUPERBLOCK_MAGIC,
            FORMAT_VERSION,
            CLEAN if self.clean else 0,
            self.uuid.bytes,
            self.label.encode()[:32],
            self.generation,
            self.epoch,
            self.created_ns,
            BLOCK_BYTES,
            NODE_BYTES,
            self.total_blocks,
            self.reserve_blocks,
            self.tree_root,
            self.tree_height,
            self.segment_blocks,
            self.segment_limit,
            len(self.segments),
            self.free_blocks,
            self.inodes,
            self.next_ino,
            *(self.checkpoint.lsn, self.checkpoint.block, self.checkpoint.chain),
            *(self.tail.lsn, self.tail.block, self.tail.chain),
        )
        block = (body + b"".join(map(_SEGMENT.pack, self.segments))).ljust(BLOCK_BYTES, b"\0")
        return xxh3_64_intdigest(block[8:]).to_bytes(8, "little") + block[8:]

    @classmethod
    def decode(cls, block: bytes, place: str = "the superblock") -> "Superblock":
        """Read one block; CorruptionError says what is wrong with it."""
        if len(block) != BLOCK_BYTES:
            raise CorruptionError(f"{place} is cut short: {len(block)} bytes")
        fields = iter(SUPERBLOCK.struct.unpack_from(block))
        checksum, magic, version, flags = (next(fields) for _ in range(4))
        if magic != SUPERBLOCK_MAGIC:
            raise CorruptionError(f"{place} is not one of a trisite file system (no magic number)")
        # First the checksum, which every version has here: a flipped bit is no newer format.
        if checksum != xxh3_64_intdigest(block[8:]):
            raise CorruptionError(f"{place} has a wrong checksum")
        if version != FORMAT_VERSION:
            age = "newer" if version > FORMAT_VERSION else "older"
            raise OtherFormatError(
                f"{place} has format version {version}; this program knows version {FORMAT_VERSION} only: "
                f"use the {age} trisite that wrote it",
                newer=version > FORMAT_VERSION,
            )
        uuid, label, generation, epoch, created_ns, block_bytes, node_bytes = (next(fields) for _ in range(7))
        if (block_bytes, node_bytes) != (BLOCK_BYTES, NODE_BYTES):
            raise CorruptionError(f"{place} names blocks of {block_bytes} and nodes of {node_bytes} bytes")
        total, reserve, root, height, segment_blocks, limit, count = (next(fields) for _ in range(7))
        free, inodes, next_ino = (next(fields) for _ in range(3))
        if count > SEGMENT_TABLE_LIMIT or limit > SEGMENT_TABLE_LIMIT or segment_blocks == 0:
            raise CorruptionError(f"{place} names {count} log segments of {segment_blocks} blocks")
        table = struct.unpack_from(f"<{count}Q", block, SUPERBLOCK.size)
        places = [LogPlace(next(fields), next(fields), next(fields)) for _ in range(2)]
        superblock = cls(
            uuid=UUID(bytes=uuid),
            label=label.rstrip(b"\0").decode("utf-8", "replace"),
            generation=generation,
            epoch=epoch,
            created_ns=created_ns,
            total_blocks=total,
            reserve_blocks=reserve,
            tree_root=root,
            tree_height=height,
            segment_blocks=segment_blocks,
            segment_limit=limit,
            segments=table,
            free_blocks=free,
            inodes=inodes,
            next_ino=next_ino,
            checkpoint=places[0],
            tail=places[1],
            clean=bool(flags & CLEAN),
        )
        superblock._check(place)
        return superblock

    def _check(self, place: str) -> None:
        blocks = (self.tree_root, self.checkpoint.block, self.tail.block, *self.segments)
        if any(block >= self.total_blocks for block in blocks):
            raise CorruptionError(f"{place} points outside the volume of {self.total_blocks} blocks")
