"""The kernel's end of /dev/fuse, and libfuse's end of the door, played by a test; and a real kernel's."""

import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from jfs import fuse_door
from jfs import fuse_wire as wire
from jfs.device import FileDevice
from jfs.filesystem import FileSystem
from jfs.fuse_door import Door
from jfs.fuse_gate import Gate
from jfs.fuse_requests import Requests
from jfs.mkfs import make_file_system
from jfs.mountpoint import MountOptions
from jfs.store import Store

ROOT = (0, 0)
SOMEBODY = (1000, 1000)
OFFERED = fuse_door.PROMISES | fuse_door.FUSE_ATOMIC_O_TRUNC | 1


def request(
    opcode: int, ino: int, body: bytes = b"", *, unique: int = 7, user: tuple[int, int] = ROOT, pid: int = 1
) -> bytes:
    """A request as the kernel sends it."""
    return wire.IN_HEADER.pack(wire.BODY_AT + len(body), opcode, unique, ino, *user, pid, 0, 0) + body


def read_in(offset: int, size: int, flags: int = os.O_RDONLY) -> bytes:
    return wire.READ_IN.pack(0, offset, size, 0, 0, flags, 0)


def write_in(offset: int, data: bytes, flags: int = os.O_WRONLY, write_flags: int = 0) -> bytes:
    return wire.WRITE_IN.pack(0, offset, len(data), write_flags, 0, flags, 0) + data


def mknod_in(name: bytes, mode: int, umask: int = 0) -> bytes:
    return wire.MKNOD_IN.pack(mode, 0, umask, 0) + name + b"\0"


def mkdir_in(name: bytes, mode: int = 0o755) -> bytes:
    return wire.MKDIR_IN.pack(mode, 0) + name + b"\0"


def setattr_in(valid: int, *, size: int = 0, mode: int = 0, uid: int = 0, ctime: int = 0) -> bytes:
    return wire.SETATTR_IN.pack(valid, 0, 0, size, 0, 0, 0, ctime, 0, 0, 0, mode, 0, uid, 0, 0)


class Kernel:
    """A mount on which requests are made; `libfuse` is what the owner of the descriptor reads and writes."""

    def __init__(self, file_system: FileSystem) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._ours = ours
        self._socket = trio.socket.from_stdlib_socket(ours)
        self.requests = Requests(file_system)
        self.door = Door(self.requests, Gate(file_system))
        self.descriptor = self._theirs.fileno()
        self.notified: list[int] = []
        self.init_answer = b""
        self._unique = 10
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, tuple[int, bytes]] = {}

    async def begin(self, nursery: trio.Nursery) -> None:
        """INIT, as libfuse answers it."""
        await self._socket.send(
            request(wire.INIT, 0, struct.pack("<IIII", 7, 41, 1 << 17, OFFERED), unique=1)
        )
        assert self.door.open(self.descriptor)
        nursery.start_soon(self.door.run, lambda: None)
        await trio.lowlevel.wait_readable(self.descriptor)
        assert wire.IN_HEADER.unpack_from(os.read(self.descriptor, 4096))[1] == wire.INIT
        chosen = fuse_door.FUSE_ATOMIC_O_TRUNC | 1
        os.write(self.descriptor, wire.answer(1, struct.pack("<IIII", 7, 38, 1 << 17, chosen) + bytes(48)))
        self.init_answer = await self._socket.recv(4096)
        nursery.start_soon(self._receive)

    async def tell(self, opcode: int, ino: int, body: bytes = b"") -> None:
        """A request without an answer."""
        await self._socket.send(request(opcode, ino, body, unique=0))

    async def ask_together(self, *asked: tuple[int, int, bytes]) -> list[tuple[int, bytes]]:
        """Requests (opcode, inode, body) that are all there before the first is read, and their answers."""
        waiting: dict[int, trio.Event] = {}
        for opcode, ino, body in asked:
            self._unique += 1
            waiting[self._unique] = self._waiting[self._unique] = trio.Event()
            self._ours.send(request(opcode, ino, body, unique=self._unique))
        for event in waiting.values():
            await event.wait()
        return [self._answers.pop(unique) for unique in waiting]

    async def ask(
        self, opcode: int, ino: int, body: bytes = b"", user: tuple[int, int] = ROOT
    ) -> tuple[int, bytes]:
        """A request and its answer: errno (0: none) and body."""
        self._unique += 1
        unique = self._unique
        waiting = self._waiting[unique] = trio.Event()
        await self._socket.send(request(opcode, ino, body, unique=unique, user=user))
        await waiting.wait()
        return self._answers.pop(unique)

    async def _receive(self) -> None:
        while True:
            found = await self._socket.recv((1 << 20) + 4096)
            length, error, unique = wire.OUT_HEADER.unpack_from(found)
            assert length == len(found)
            if unique:
                self._answers[unique] = (-error, found[wire.OUT_HEADER.size :])
                self._waiting.pop(unique).set()
            else:
                assert error == wire.NOTIFY_INVALIDATE_INODE
                self.notified.append(wire.INVALIDATE_INODE.unpack_from(found, wire.OUT_HEADER.size)[0])

    async def entry(self, opcode: int, ino: int, body: bytes, user: tuple[int, int] = ROOT) -> dict[str, int]:
        """Ask for something that leads to an inode: its attributes."""
        error, answer = await self.ask(opcode, ino, body, user)
        assert not error, os.strerror(error)
        return _named(wire.ENTRY_OUT.unpack(answer)[3:4] + wire.ENTRY_OUT.unpack(answer)[6:])

    async def attributes(self, ino: int) -> dict[str, int]:
        """GETATTR."""
        error, answer = await self.ask(wire.GETATTR, ino, bytes(16))
        assert not error, os.strerror(error)
        return _named(wire.ATTR_OUT.unpack(answer)[0:1] + wire.ATTR_OUT.unpack(answer)[3:])

    def close(self) -> None:
        """The mount is gone."""
        self.door.close()
        self._socket.close()
        self._theirs.close()


def _named(values: tuple[Any, ...]) -> dict[str, int]:
    names = (
        "seconds",
        "ino",
        "size",
        "sectors",
        "atime",
        "mtime",
        "ctime",
        "atime_ns",
        "mtime_ns",
        "ctime_ns",
    )
    return dict(zip((*names, "mode", "nlink", "uid", "gid", "rdev", "blksize"), values, strict=False))


@asynccontextmanager
async def kernel_for(file_system: FileSystem) -> AsyncIterator[Kernel]:
    """A mount of this file system, as its kernel sees it."""
    kernel = Kernel(file_system)
    try:
        async with trio.open_nursery() as nursery:
            await kernel.begin(nursery)
            yield kernel
            nursery.cancel_scope.cancel()
    finally:
        kernel.close()


@asynccontextmanager
async def mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[FileSystem, Path, Counter[int]]]:
    """A new file system, mounted, where it is, and how often the kernel has asked for each opcode."""
    fuse = pytest.importorskip("jfs.fuse", reason="libfuse or pyfuse3 is not installed", exc_type=ImportError)
    asked: Counter[int] = Counter()
    real = Door._take

    def counting(door: Door, asking: bytes) -> bool:
        asked[wire.IN_HEADER.unpack_from(asking)[1]] += 1
        return real(door, asking)

    monkeypatch.setattr(Door, "_take", counting)
    device = FileDevice(tmp_path / "image", create_bytes=64 << 20)
    await make_file_system(device, volume_uuid=UUID(int=5), epoch=1, label="")
    file_system = FileSystem(await Store.open(device))
    place = tmp_path / "mnt"
    place.mkdir()
    ready, stop = trio.Event(), trio.Event()

    async def serve() -> None:
        await fuse.serve(file_system, str(place), MountOptions(), ready=ready.set, stop=stop)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await ready.wait()
        try:
            yield file_system, place, asked
        finally:
            stop.set()
    device.close()
