"""Operations on a recorded file system, made out of bytes: four bytes are one operation.

So a workload is a string that chance can draw, Hypothesis can shrink, and a schedule can name.
"""

import random
from collections.abc import Awaitable, Callable
from errno import ENOENT
from functools import partial
from stat import S_IFDIR, S_IFIFO, S_IFREG, S_ISDIR, S_ISREG

import trio

from jfs.errors import FileSystemError, NoSpace
from jfs.filesystem import RENAME_EXCHANGE, FileSystem, Node, Owner
from tests.crash.recording import Recording, pattern
from tests.jfs.crash_model import small_store

ROOT = 1
OPERATION_BYTES = 4
NAMES = [b"a", b"b", b"c", b"d", b"name-of-some-length", b"x", b"y"]
DIRECTORIES = [b"dir", b"other"]


class Script:
    """Plays operations on a recording."""

    def __init__(self, recording: Recording, chance: random.Random) -> None:
        self.recording = recording
        self.options = small_store(chance.choice((1, 4, 64)) << 16)
        self.scale = chance.choice((1, 1, 8))  # the last one fills the volume
        self.held: list[int] = []
        self.arguments = (0, 0, 0)
        self.nursery: trio.Nursery | None = None
        self.fs: FileSystem

    async def run(self, script: bytes) -> None:
        """All of it; the file system is left as a power cut finds it, or closed."""
        self.fs = await self.recording.open(self.options)
        for start in range(0, len(script), OPERATION_BYTES * 64):
            piece = script[start : start + OPERATION_BYTES * 64]
            async with trio.open_nursery() as self.nursery:
                await self._run_piece(piece)
            if len(piece) == OPERATION_BYTES * 64 and piece[-1] % 3 == 0:
                await self._mount_again()

    async def _run_piece(self, piece: bytes) -> None:
        for at in range(0, len(piece) - OPERATION_BYTES + 1, OPERATION_BYTES):
            kind, *arguments = piece[at : at + OPERATION_BYTES]
            self.arguments = (arguments[0], arguments[1], arguments[2])
            try:
                await OPERATIONS[kind % len(OPERATIONS)](self)
            except NoSpace:
                await self.fs.make_room()
            except FileSystemError:
                continue  # refused: nothing has happened
            await self.fs.throttle()

    async def _mount_again(self) -> None:
        self.held.clear()
        await self.recording.make_durable(self.fs.close)
        self.fs = await self.recording.open(self.options)

    # -- what operations are made of -----------------------------------------------------------------

    def _place(self, number: int) -> tuple[int, bytes]:
        """A directory and a name in it."""
        name = NAMES[number % len(NAMES)]
        if number % 5 < 3:
            return ROOT, name
        node = self.fs.lookup(ROOT, DIRECTORIES[number // 8 % len(DIRECTORIES)])
        return (node.ino if node is not None and S_ISDIR(node.mode) else ROOT), name

    def _node(self) -> Node:
        node = self.fs.lookup(*self._place(self.arguments[0]))
        if node is None:
            raise FileSystemError(ENOENT)
        return node

    def _file(self) -> Node:
        """The regular file of the first argument, made if there is nothing of that name."""
        place = self._place(self.arguments[0])
        node = self.fs.lookup(*place)
        if node is None:
            node = self.fs.make(*place, S_IFREG | 0o640, Owner(7, 8))
            self.recording.add_content(node.ino, b"")
        if not S_ISREG(node.mode):
            raise FileSystemError(ENOENT)
        return node

    def _write_at(self, node: Node, offset: int, length: int) -> None:
        recording = self.recording
        with recording.change():
            data = pattern(node.ino, recording.tick, offset, length)
            self.fs.write(node.ino, offset, data)
            old = recording.content(node.ino).ljust(offset, b"\0")
            recording.add_content(node.ino, old[:offset] + data + old[offset + length :])

    def _cut_at(self, node: Node, size: int) -> None:
        recording = self.recording
        with recording.change():
            self.fs.setattr(node.ino, size=size)
            recording.add_content(node.ino, recording.content(node.ino)[:size].ljust(size, b"\0"))

    # -- content -------------------------------------------------------------------------------------

    async def write(self) -> None:
        _, second, third = self.arguments
        self._write_at(self._file(), second * 67 * self.scale, 1 + third * 37 * self.scale)

    async def append(self) -> None:
        node = self._file()
        if node.size_bytes < 40_000 * self.scale:
            self._write_at(node, node.size_bytes, 1 + self.arguments[1] * 20 * self.scale)

    async def write_blocks(self) -> None:
        _, second, third = self.arguments
        self._write_at(self._file(), second % 6 * 4096, (1 + third % 3 * self.scale) * 4096)

    async def truncate(self) -> None:
        node = self._node()
        if S_ISREG(node.mode):
            self._cut_at(node, self.arguments[1] * 80 * self.scale)

    # -- names ---------------------------------------------------------------------------------------

    async def remove(self) -> None:
        place = self._place(self.arguments[0])
        if S_ISDIR(self._node().mode):
            self.fs.rmdir(*place)
        else:
            self.fs.unlink(*place)

    async def rename(self) -> None:
        first, second, third = self.arguments
        flags = RENAME_EXCHANGE if third % 6 == 0 else 0
        self.fs.rename(*self._place(first), *self._place(second), flags)

    async def make_directory(self) -> None:
        self.fs.make(ROOT, DIRECTORIES[self.arguments[0] % len(DIRECTORIES)], S_IFDIR | 0o755)

    async def link(self) -> None:
        self.fs.link(self._node().ino, *self._place(self.arguments[1]))

    async def make_special(self) -> None:
        if self.arguments[1] % 2:
            target = b"t" * (1 + self.arguments[2] * 17 % 4095)
            self.fs.symlink(*self._place(self.arguments[0]), target)
        else:
            self.fs.make(*self._place(self.arguments[0]), S_IFIFO | 0o600)

    async def replace_file(self) -> None:
        """As programs do it: a new file, fsync, rename over the old one."""
        first, second, third = self.arguments
        parent, name = self._place(first)
        self.arguments = (NAMES.index(b"x"), second, third)
        new = self._file()
        self._cut_at(new, 0)
        self._write_at(new, 0, 1 + second * 40)
        await self.recording.make_durable(lambda: self.fs.fsync(new.ino))
        self.fs.rename(*self._place(NAMES.index(b"x")), parent, name)

    # -- attributes ----------------------------------------------------------------------------------

    async def change_attributes(self) -> None:
        _, second, third = self.arguments
        node = self._node()
        match second % 4:
            case 0:
                self.fs.setattr(node.ino, mode=third | 0o400)
            case 1:
                self.fs.setattr(node.ino, uid=third, gid=second)
            case _:
                self.fs.setattr(node.ino, atime_ns=third * 10**9, mtime_ns=-third * 10**9)

    async def change_xattr(self) -> None:
        _, second, third = self.arguments
        ino, name = self._node().ino, b"user.%d" % (second % 3)
        if third % 4 == 0:
            self.fs.removexattr(ino, name)
        else:
            self.fs.setxattr(ino, name, bytes((second,)) * (third * 15))

    async def hold(self) -> None:
        """Open a file (it may lose its name meanwhile), or close the one held longest."""
        if self.arguments[1] % 2 and self.held:
            self.fs.forget(self.held.pop(0))
        else:
            ino = self._node().ino
            self.fs.remember_lookup(ino)
            self.held.append(ino)

    # -- durability ----------------------------------------------------------------------------------

    async def commit(self) -> None:
        await self.recording.make_durable(self.fs.commit)

    async def commit_beside(self) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self._quietly, partial(self.recording.make_durable, self.fs.commit))
        await trio.lowlevel.checkpoint()

    async def sync_data(self) -> None:
        node = self._node()
        if S_ISREG(node.mode):
            await self.recording.make_data_durable(self.fs, node.ino)

    async def overwrite(self) -> None:
        """As databases do it: pages of a durable file in place, then fdatasync."""
        _, second, third = self.arguments
        node = self._file()
        if node.size_bytes < 4096:
            self._write_at(node, 0, 12_288)
            await self.recording.make_durable(self.fs.commit)
        for page in (second % (node.size_bytes // 512), third % (node.size_bytes // 512)):
            self._write_at(node, page * 512, 512)
        await self.recording.make_data_durable(self.fs, node.ino)

    async def checkpoint(self) -> None:
        await self.fs.store.checkpoint()

    async def checkpoint_beside(self) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self._quietly, self.fs.store.checkpoint)
        await trio.lowlevel.checkpoint()

    async def _quietly(self, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        except NoSpace:
            return  # nothing was promised

    async def breathe(self) -> None:
        await trio.lowlevel.checkpoint()


OPERATIONS: list[Callable[[Script], Awaitable[None]]] = [
    *[Script.write] * 4,
    *[Script.append] * 3,
    *[Script.write_blocks] * 3,
    *[Script.truncate] * 3,
    *[Script.remove] * 3,
    *[Script.rename] * 2,
    Script.make_directory,
    Script.link,
    Script.make_special,
    Script.replace_file,
    Script.change_attributes,
    Script.change_xattr,
    Script.hold,
    *[Script.commit] * 2,
    Script.commit_beside,
    Script.sync_data,
    *[Script.overwrite] * 2,
    Script.checkpoint,
    Script.checkpoint_beside,
    *[Script.breathe] * 2,
]
