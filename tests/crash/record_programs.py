"""Record what real programs do to a file system: mount jfs, run them, write down each call that changes it.

    python -m tests.crash.record_programs NAME...      (git, sqlite, wal, untar; needs /dev/fuse and root)

writes tests/crash/traces/NAME.trace. One call a line, with inode numbers as the recording had them; of data
only place and length are kept: when the trace is played, every byte says whose it is. See programs.py.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import trio

from jfs.filesystem import FileSystem
from jfs.mkfs import make_file_system
from jfs.mountpoint import parse_options
from jfs.store import Store
from tests.devices import MemoryDevice

TRACES = Path(__file__).parent / "traces"
SIZE_BYTES = 64 << 20
RECORDED = ("make", "symlink", "link", "unlink", "rmdir", "rename", "setattr", "setxattr", "removexattr")
SQLITE = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/db.sqlite", isolation_level=None)
db.execute("pragma journal_mode = " + sys.argv[2])
db.execute("pragma synchronous = full")
db.execute("create table if not exists t (k integer primary key, v text)")
for turn in range(6):
    db.execute("begin")
    for number in range(12):
        db.execute("insert or replace into t values (?, ?)", (number * 7 % 40, "v" * (50 + 90 * turn)))
    db.execute("rollback" if turn == 3 else "commit")
db.execute("vacuum")
db.close()
"""
GIT = """
cd "$0" && git init -q --template= . && git config user.name t && git config user.email t@example.org
git config core.fsync all
for n in 1 2 3; do
  for f in a b sub/c; do mkdir -p sub; seq $n $((n * 150)) > $f; done
  git add . && git commit -q -m "turn $n"
done
git checkout -q -b other HEAD~1 && seq 9 99 > b && git commit -q -a -m side && git checkout -q master
git merge -q other -m merged -X ours; git gc -q --prune=now; git status > /dev/null
"""
UNTAR = """
mkdir "$0/../tree" && cd "$0/../tree" && mkdir -p x/y z
seq 900 > x/one && seq 9 > x/y/two && seq 5000 > z/three
ln z/three z/four && ln -s ../x/one z/link && mkfifo z/fifo && chmod 4755 x/y/two && touch -d 1960-01-01 z
for n in $(seq 12); do seq $((n * 60)) > x/y/f$n; done
tar -cf ../tree.tar . && cd "$0" && tar -xf ../tree.tar && sync -f . && cp -a . copy 2> /dev/null
sync z/three copy/x/one; rm -r x && mv copy x && tar -xf ../tree.tar && sync z/three
"""
PROGRAMS: dict[str, list[str]] = {
    "git": ["bash", "-c", GIT],
    "sqlite": [sys.executable, "-c", SQLITE],
    "wal": [sys.executable, "-c", SQLITE],
    "untar": ["bash", "-c", UNTAR],
}
JOURNAL_MODES = {"sqlite": ["delete"], "wal": ["wal"]}


class Watched(FileSystem):
    """A file system that writes down what it is asked to change. Calls made by other calls do not count."""

    def watch(self) -> list[str]:
        """Begin; the lines come into this list."""
        self.lines: list[str] = []
        self._depth = 0
        for name in RECORDED:
            setattr(self, name, partial(self._called, name, getattr(self, name)))
        self.write = partial(self._wrote, self.write)  # type: ignore[method-assign]
        self.remember_lookup = partial(self._told, "hold", self.remember_lookup)  # type: ignore[method-assign]
        self.forget = partial(self._told, "forget", self.forget)  # type: ignore[method-assign]
        return self.lines

    def _called(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        given = {key: value for key, value in kwargs.items() if value is not None and value is not False}
        self._depth += 1
        try:
            result = real(*args, **kwargs)
        finally:
            self._depth -= 1
        if not self._depth:
            made = f" -> {result.ino}" if name in ("make", "symlink") else ""
            self.lines.append(f"{name} {tuple(_plain(one) for one in args)!r} {given!r}{made}")
        return result

    def _wrote(self, real: Callable[..., int], ino: int, offset: int, data: bytes, **kwargs: bool) -> int:
        sequence = real(ino, offset, data, **kwargs)
        self.lines.append(f"write {(ino, offset, len(data))!r} {kwargs!r}")
        return sequence

    def _told(self, name: str, real: Callable[..., None], ino: int, count: int = 1) -> None:
        self.lines.append(f"{name} {(ino, count)!r} {{}}")
        if name == "hold":
            real(ino)
        else:
            real(ino, count)

    async def fsync(self, ino: int, datasync: bool = False) -> None:
        await super().fsync(ino, datasync)
        self.lines.append(f"fsync {(ino, datasync)!r} {{}}")

    async def commit(self) -> None:
        await super().commit()
        self.lines.append("commit () {}")


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, tuple) else value


async def record(name: str) -> None:
    """Mount, run one of the programs, write its trace."""
    from jfs.fuse import serve  # needs libfuse

    device = MemoryDevice(SIZE_BYTES)
    await make_file_system(device, volume_uuid=UUID(int=1), epoch=1, label="trace")
    file_system = Watched(await Store.open(device))
    lines = file_system.watch()
    mounted, stop = trio.Event(), trio.Event()
    with tempfile.TemporaryDirectory() as place:
        mountpoint = Path(place) / "mount"
        mountpoint.mkdir()
        async with trio.open_nursery() as nursery:
            options = parse_options("", fsname="trace")
            nursery.start_soon(
                partial(serve, ready=mounted.set, stop=stop), file_system, str(mountpoint), options
            )
            await mounted.wait()
            command = [*PROGRAMS[name], str(mountpoint), *JOURNAL_MODES.get(name, [])]
            with trio.move_on_after(60):
                await trio.run_process(command, stdin=subprocess.DEVNULL)
            stop.set()
    TRACES.mkdir(exist_ok=True)
    (TRACES / f"{name}.trace").write_text("\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        trio.run(record, each)
