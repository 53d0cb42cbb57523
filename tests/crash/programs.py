"""Traces of real programs (see record_programs.py), played on a recorded file system."""

import ast
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any

import trio

from jfs.errors import NoSpace
from jfs.filesystem import FileSystem, Owner
from tests.crash.recording import Recording, pattern
from tests.jfs.crash_model import small_store

TRACES = Path(__file__).parent / "traces"
NAMES = tuple(sorted(path.stem for path in TRACES.glob("*.trace")))
COMMIT_SHARE, CHECKPOINT_SHARE = 0.03, 0.008  # the store's own work falls between the calls
ROOT = 1


def read_trace(name: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any], int | None]]:
    """The calls of a trace: method, arguments, keyword arguments, the inode it made."""
    calls = []
    for line in (TRACES / f"{name}.trace").read_text(encoding="ascii").splitlines():
        call, _, made = line.partition(" -> ")
        method, _, rest = call.partition(" ")
        split = rest.rindex(" {")
        calls.append(
            (
                method,
                ast.literal_eval(rest[:split]),
                ast.literal_eval(rest[split:].strip()),
                int(made) if made else None,
            )
        )
    return calls


class Program:
    """Plays a trace."""

    def __init__(self, recording: Recording, chance: random.Random) -> None:
        self.recording = recording
        self.chance = chance
        self.inos = {ROOT: ROOT}
        self.fs: FileSystem

    async def run(self, name: str) -> None:
        """All of it; the file system is closed."""
        options = small_store(self.chance.choice((1, 4)) << 16)
        self.fs = await self.recording.open(options)
        async with trio.open_nursery() as nursery:
            for method, arguments, options_given, made in read_trace(name):
                await self._play(method, arguments, options_given, made)
                await self.fs.throttle()
                roll = self.chance.random()
                if roll < COMMIT_SHARE:
                    nursery.start_soon(self.recording.make_durable, self.fs.commit)
                elif roll < COMMIT_SHARE + CHECKPOINT_SHARE:
                    nursery.start_soon(self._checkpoint)
        await self.recording.make_durable(self.fs.close)

    async def _checkpoint(self) -> None:
        try:
            await self.fs.store.checkpoint()
        except NoSpace:
            return  # it is tried again later

    async def _play(
        self, method: str, arguments: tuple[Any, ...], given: dict[str, Any], made: int | None
    ) -> None:
        inos = self.inos
        match method:
            case "make" | "symlink":
                parent, name, *rest = arguments
                owner = Owner(*rest.pop())
                node = getattr(self.fs, method)(inos[parent], name, *rest, owner, **given)
                assert made is not None
                inos[made] = node.ino
                if S_ISREG(node.mode):
                    self.recording.add_content(node.ino, b"")
            case "write":
                ino, offset, length = arguments
                self._write(inos[ino], offset, length, given)
            case "setattr":
                self._set(inos[arguments[0]], given)
            case "fsync":
                ino, datasync = arguments
                if datasync:
                    await self.recording.make_data_durable(self.fs, inos[ino])
                else:
                    await self.recording.make_durable(partial(self.fs.fsync, inos[ino]))
            case "commit":
                await self.recording.make_durable(self.fs.commit)
            case "hold":
                self.fs.remember_lookup(inos[arguments[0]])
            case "forget":
                self.fs.forget(inos[arguments[0]], arguments[1])
            case "rename":
                parent, name, new_parent, *rest = arguments
                self.fs.rename(inos[parent], name, inos[new_parent], *rest)
            case "link":
                ino, parent, name = arguments
                self.fs.link(inos[ino], inos[parent], name)
            case _:
                call: Callable[..., None] = getattr(self.fs, method)
                call(inos[arguments[0]], *arguments[1:], **given)

    def _write(self, ino: int, offset: int, length: int, given: dict[str, Any]) -> None:
        recording = self.recording
        with recording.change():
            data = pattern(ino, recording.tick, offset, length)
            self.fs.write(ino, offset, data, **given)
            old = recording.content(ino).ljust(offset, b"\0")
            recording.add_content(ino, old[:offset] + data + old[offset + length :])

    def _set(self, ino: int, given: dict[str, Any]) -> None:
        recording, size = self.recording, given.get("size")
        with recording.change():
            self.fs.setattr(ino, **given)
            if size is not None:
                recording.add_content(ino, recording.content(ino)[:size].ljust(size, b"\0"))
