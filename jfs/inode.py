"""The inode record: what a file is, apart from its name's place and its blocks."""

from dataclasses import dataclass

from jfs.errors import CorruptionError
from jfs.record import Field, Record

INODE_RECORD = Record(
    "inode",
    Field("mode", "I", "type and permissions, as st_mode"),
    Field("uid", "I", "owner"),
    Field("gid", "I", "group"),
    Field("nlink", "I", "names; 0: an orphan"),
    Field("size_bytes", "Q", "as st_size"),
    Field("blocks", "Q", "allocated blocks of 4096 bytes"),
    Field("rdev", "Q", "of a device file"),
    Field("generation", "Q", "differs between two files that had the same inode number"),
    Field("flags", "I", "reserved for the file system"),
    Field("parent_ino", "Q", "directory that holds the name below"),
    Field("atime_s", "q", "last access, seconds since 1970"),
    Field("atime_ns", "I", "nanoseconds of it"),
    Field("mtime_s", "q", "last change of the content"),
    Field("mtime_ns", "I", "nanoseconds of it"),
    Field("ctime_s", "q", "last change of the inode"),
    Field("ctime_ns", "I", "nanoseconds of it"),
    Field("btime_s", "q", "birth"),
    Field("btime_ns", "I", "nanoseconds of it"),
    Field("name_bytes", "H", "length of the name that follows: the one linked last"),
)
NAME_LIMIT_BYTES = 255
NS_PER_S = 1_000_000_000
_pack = INODE_RECORD.struct.pack
_unpack_from = INODE_RECORD.struct.unpack_from
_RECORD_BYTES = INODE_RECORD.size


@dataclass(slots=True)
class Inode:
    """One inode in memory. Times are ns since 1970 and may be negative. `name` is the one linked last."""

    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    size_bytes: int = 0
    blocks: int = 0
    rdev: int = 0
    generation: int = 0
    flags: int = 0
    parent_ino: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    name: bytes = b""

    def encode(self) -> bytes:
        """The value of the INODE item."""
        return (
            _pack(
                self.mode,
                self.uid,
                self.gid,
                self.nlink,
                self.size_bytes,
                self.blocks,
                self.rdev,
                self.generation,
                self.flags,
                self.parent_ino,
                *divmod(self.atime_ns, NS_PER_S),
                *divmod(self.mtime_ns, NS_PER_S),
                *divmod(self.ctime_ns, NS_PER_S),
                *divmod(self.btime_ns, NS_PER_S),
                len(self.name),
            )
            + self.name
        )

    @classmethod
    def decode(cls, value: bytes) -> "Inode":
        """Read the value of an INODE item; CorruptionError if it cannot be one."""
        if len(value) < _RECORD_BYTES:
            raise CorruptionError(f"an inode record has only {len(value)} bytes")
        fields = _unpack_from(value)
        name_bytes = fields[-1]
        if name_bytes > NAME_LIMIT_BYTES or len(value) != _RECORD_BYTES + name_bytes:
            raise CorruptionError(f"an inode record of {len(value)} bytes names a name of {name_bytes} bytes")
        mode, uid, gid, nlink, size_bytes, blocks, rdev, generation, flags, parent_ino = fields[:10]
        atime_s, atime_ns, mtime_s, mtime_ns, ctime_s, ctime_ns, btime_s, btime_ns = fields[10:18]
        return cls(
            mode,
            uid,
            gid,
            nlink,
            size_bytes,
            blocks,
            rdev,
            generation,
            flags,
            parent_ino,
            atime_s * NS_PER_S + atime_ns,
            mtime_s * NS_PER_S + mtime_ns,
            ctime_s * NS_PER_S + ctime_ns,
            btime_s * NS_PER_S + btime_ns,
            value[_RECORD_BYTES:],
        )
