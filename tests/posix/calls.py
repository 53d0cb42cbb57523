"""System calls and flags of Linux that Python's os module does not have."""

import ctypes
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long

AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE, FALLOC_ZERO = 1, 2, 8, 16
FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR, FIONREAD = 0x80086601, 0x801C581F, 0x541B
_SYS_OPENAT2 = 437
_SYS_NAME_TO_HANDLE, _SYS_OPEN_BY_HANDLE = 303, 304
_DIRENT_NAME = 19  # where the name is in struct dirent64
_HANDLE_BYTES = 128


def _answer(result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def renameat2(old: Path | str, new: Path | str, flags: int) -> None:
    _answer(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Times as (seconds, nanoseconds or UTIME_NOW, UTIME_OMIT)."""
    _answer(_libc.utimensat(AT_FDCWD, bytes(path), struct.pack("4q", *atime, *mtime), flags))


def linkat(descriptor: int, path: Path, flags: int) -> None:
    """Give an open file a name, by its descriptor."""
    _answer(_libc.linkat(descriptor, b"", AT_FDCWD, bytes(path), flags))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    arguments = (ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length))
    _answer(_libc.fallocate(descriptor, *arguments))


def openat2(path: Path, flags: int, resolve: int) -> int:
    how = struct.pack("3Q", flags, 0, resolve)
    return _answer(_libc.syscall(_SYS_OPENAT2, AT_FDCWD, bytes(path), how, len(how)))


def fsync_range(descriptor: int) -> None:
    """sync_file_range(2): write the pages of a whole file out and wait."""
    _answer(_libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), 7))


def handle_of(path: Path) -> bytes:
    """The file handle as NFS uses it: struct file_handle."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii", _HANDLE_BYTES, 0), 8 + _HANDLE_BYTES)
    mount = ctypes.c_int()
    _answer(_libc.syscall(_SYS_NAME_TO_HANDLE, AT_FDCWD, bytes(path), buffer, ctypes.byref(mount), 0))
    return buffer.raw[: 8 + struct.unpack_from("I", buffer.raw)[0]]


def open_handle(mount: Path, handle: bytes, flags: int = os.O_RDONLY) -> int:
    """Open a file by its handle."""
    anchor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _answer(_libc.syscall(_SYS_OPEN_BY_HANDLE, anchor, handle, flags))
    finally:
        os.close(anchor)


class Directory:
    """A directory stream: readdir, telldir, seekdir, rewinddir."""

    def __init__(self, path: Path) -> None:
        self._stream = ctypes.c_void_p(_libc.opendir(bytes(path)))
        assert self._stream.value

    def read(self) -> str | None:
        """The next name, None at the end."""
        found = _libc.readdir64(self._stream)
        return None if found is None else ctypes.string_at(found + _DIRENT_NAME).decode()

    def rest(self) -> list[str]:
        names = []
        while (name := self.read()) is not None:
            names.append(name)
        return names

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(place))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)
