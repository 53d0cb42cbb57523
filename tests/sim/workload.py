"""A random file workload on jfs, from one seed: creates, overwrites, truncates, renames, unlinks, links."""

from __future__ import annotations

import random
import stat

from jfs.filesystem import FileSystem
from jfs.layout import ROOT_INO

FILE_MODE = stat.S_IFREG | 0o644
DIRECTORY_MODE = stat.S_IFDIR | 0o755


class Workload:
    """Issues operations; keeps the names it made, so that most operations hit something."""

    def __init__(self, file_system: FileSystem, rng: random.Random) -> None:
        self.file_system = file_system
        self.rng = rng
        self.directories = [ROOT_INO]
        self.names: list[tuple[int, bytes, int]] = []
        self.counter = 0

    def find_again(self) -> None:
        """After a crash: the names and directories that are really there."""
        self.directories, self.names = [], []
        waiting = [ROOT_INO]
        while waiting:
            parent = waiting.pop()
            self.directories.append(parent)
            for entry in list(self.file_system.readdir(parent)):
                if entry.name in (b".", b".."):
                    continue
                if stat.S_ISDIR(self.file_system.node(entry.ino).mode):
                    waiting.append(entry.ino)
                else:
                    self.names.append((parent, entry.name, entry.ino))

    def step(self) -> None:
        """One operation; writes into existing files are the most frequent."""
        kinds = (
            self.create,
            self.overwrite,
            self.extend,
            self.truncate,
            self.rename,
            self.unlink,
            self.make_directory,
        )
        kind = self.rng.choices(kinds, weights=(3, 6, 3, 1, 1, 1, 1))[0]
        if kind not in (self.create, self.make_directory) and not self.names:
            kind = self.create
        kind()

    def _name(self) -> bytes:
        self.counter += 1
        return b"file-%d" % self.counter

    def _data(self, length: int) -> bytes:
        return self.rng.randbytes(length)

    def create(self) -> None:
        parent, name = self.rng.choice(self.directories), self._name()
        node = self.file_system.make(parent, name, FILE_MODE)
        self.names.append((parent, name, node.ino))
        self.file_system.write(node.ino, 0, self._data(self.rng.choice((10, 4096, 9000, 40000))))

    def overwrite(self) -> None:
        _, _, ino = self.rng.choice(self.names)
        size = self.file_system.node(ino).size_bytes
        offset = self.rng.randrange(size + 1)
        length = min(size - offset, self.rng.choice((1, 500, 4096, 12000)))
        if length:
            self.file_system.write(ino, offset, self._data(length))

    def extend(self) -> None:
        _, _, ino = self.rng.choice(self.names)
        size = self.file_system.node(ino).size_bytes
        self.file_system.write(
            ino, size + self.rng.choice((0, 0, 0, 5000)), self._data(self.rng.choice((200, 4096, 20000)))
        )

    def truncate(self) -> None:
        _, _, ino = self.rng.choice(self.names)
        self.file_system.truncate(ino, self.rng.randrange(30000))

    def rename(self) -> None:
        place = self.rng.randrange(len(self.names))
        parent, name, ino = self.names[place]
        target, new_name = self.rng.choice(self.directories), self._name()
        self.file_system.rename(parent, name, target, new_name)
        self.names[place] = (target, new_name, ino)

    def unlink(self) -> None:
        parent, name, _ = self.names.pop(self.rng.randrange(len(self.names)))
        self.file_system.unlink(parent, name)

    def make_directory(self) -> None:
        if len(self.directories) < 6:
            node = self.file_system.make(self.rng.choice(self.directories), self._name(), DIRECTORY_MODE)
            self.directories.append(node.ino)
