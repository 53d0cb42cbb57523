"""Lists in which files have no attributes: what the kernel is told and counts, and what programs see."""

import ctypes
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from uuid import UUID

import pytest
import trio

from jfs import fuse_wire as wire
from jfs.filesystem import FileSystem
from jfs.fuse_requests import Requests
from jfs.mkfs import make_file_system
from jfs.store import Store
from tests.devices import MemoryDevice
from tests.jfs.fuse_kernel import mounted, read_in, request
from tests.posix.calls import Directory

DIRECTORIES = 8
FILES = [f"f{number:02}" for number in range(40)]
ANSWER_BYTES = 32 << 10


def fill(fs: FileSystem) -> None:
    """Directories, each with a link and with files of two names, of which the other is elsewhere. A file has
    as many bytes as its inode number says.
    """
    elsewhere = fs.make(1, b"elsewhere", S_IFDIR | 0o755).ino
    for number in range(DIRECTORIES):
        directory = fs.make(1, b"d%d" % number, S_IFDIR | 0o755).ino
        for name in FILES:
            node = fs.make(directory, name.encode(), S_IFREG | 0o640)
            fs.link(node.ino, elsewhere, b"%d%s" % (number, name.encode()))
            fs.write(node.ino, 0, bytes(node.ino))
        fs.symlink(directory, b"link", b"f00")


class Listing:
    """A kernel that lists and looks up, and counts as one does."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self._requests = Requests(fs)
        self._looks = self._requests.looks
        self.held = 0
        self.directories = [
            node.ino for number in range(DIRECTORIES) if (node := fs.lookup(1, b"d%d" % number))
        ]

    def list(self, ino: int, pid: int, room: int = ANSWER_BYTES) -> dict[bytes, bool]:
        """The names of a directory, in as many answers as it takes: whether each has attributes."""
        found: dict[bytes, bool] = {}
        cookie = 0
        while answer := self._ask(wire.READDIRPLUS, ino, read_in(cookie, room), pid):
            while answer:
                told, *_ = wire.ENTRY_OUT.unpack_from(answer)
                target, cookie, length, kind = wire.DIRENT.unpack_from(answer, wire.ENTRY_OUT.size)
                begin = wire.ENTRY_OUT.size + wire.DIRENT.size
                name = answer[begin : begin + length]
                assert name not in found
                assert told in (0, target)
                assert kind == self.fs.node(target).mode >> 12
                found[name] = bool(told)
                self.held += bool(told)
                answer = answer[begin + length + (-length & 7) :]
        assert found.keys() == {name.name for name in self.fs.readdir(ino)}
        return found

    def bare(self, ino: int, pid: int, room: int = ANSWER_BYTES) -> int:
        return sum(
            not has_attributes
            for name, has_attributes in self.list(ino, pid, room).items()
            if name.strip(b".")
        )

    def look(self, ino: int, name: bytes, pid: int) -> None:
        answer = self._ask(wire.LOOKUP, ino, name + b"\0", pid)
        self.held += bool(wire.ENTRY_OUT.unpack_from(answer)[0])

    def forget(self, ino: int) -> None:
        """What dropped caches have the kernel say of a directory that it has asked for once."""
        self.fs.remember_lookup(ino)
        self._requests.forget(ino, self.fs._lookups[ino])

    def _ask(self, opcode: int, ino: int, body: bytes, pid: int) -> bytes:
        return bytes(self._looks[opcode](ino, request(opcode, ino, body, pid=pid), 0, 0))


@pytest.fixture
async def listing() -> Listing:
    device = MemoryDevice(16 << 20)
    await make_file_system(device, volume_uuid=UUID(int=5 << 64), epoch=1, label="fuse")
    fs = FileSystem(await Store.open(device))
    fill(fs)
    return Listing(fs)


def counted(fs: FileSystem) -> int:
    """Inodes that the kernel is thought to hold."""
    return len(fs._lookups)


async def test_a_thread_that_only_lists_gets_names(listing: Listing) -> None:
    first, second, third, *_ = listing.directories
    assert listing.bare(first, pid=5) == 1, "the probe"
    assert listing.bare(second, pid=5) == len(FILES), "but the link has attributes"
    assert listing.bare(1, pid=5) == 0, "directories have them"
    assert listing.bare(third, pid=6) == 1, "another thread"
    assert listing.bare(third, pid=0) == 0
    links, elsewhere = 3, 1
    assert counted(listing.fs) == DIRECTORIES + elsewhere + links + 2 * len(FILES) - 1


async def test_what_has_no_attributes_is_not_counted(listing: Listing) -> None:
    for directory in listing.directories:
        listing.list(directory, pid=5)
        listing.look(listing.directories[0], b"f00", pid=5)
    counts = listing.fs._lookups
    inos = {name.ino for directory in listing.directories for name in listing.fs.readdir(directory)}
    assert sum(counts[ino] for ino in inos) == listing.held
    assert 0 < listing.held < DIRECTORIES * len(FILES)


@pytest.mark.parametrize("name", [b"missing", b"link"])
async def test_only_a_look_at_a_file_counts(listing: Listing, name: bytes) -> None:
    first, second, third, fourth, *_ = listing.directories
    listing.bare(first, pid=5)
    for directory in (second, third):
        assert listing.bare(directory, pid=5) == len(FILES)
        listing.look(directory, name, pid=5)
    listing.look(third, b"f07", pid=7)
    assert listing.bare(fourth, pid=5) == 1, "somebody looks at what this one lists"


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_a_look_after_dropped_caches_does_not_count(listing: Listing, is_forgotten: bool) -> None:
    first, second, third, *_ = listing.directories
    listing.bare(first, pid=5)
    assert listing.bare(second, pid=5) == len(FILES)
    if is_forgotten:
        listing.forget(first)
        listing.forget(second)
    listing.look(second, b"f07", pid=5)
    assert listing.bare(third, pid=5) == (len(FILES) if is_forgotten else 1)


async def test_a_file_that_the_kernel_holds_is_no_probe(listing: Listing) -> None:
    first, second, third, *_ = listing.directories
    assert listing.bare(first, pid=0) == 0
    assert listing.bare(first, pid=5) == 0, "it would not be looked up"
    assert listing.bare(second, pid=5) == 1
    assert listing.bare(first, pid=5) == listing.bare(third, pid=5) == len(FILES)


@pytest.mark.parametrize("names", [3, 5, 20, 41])
async def test_answers_of_any_size(listing: Listing, names: int) -> None:
    room = names * (wire.ENTRY_OUT.size + wire.DIRENT.size + 8)
    for number, directory in enumerate(listing.directories):
        is_probing = names > 32
        expected = 0 if not is_probing else len(FILES) if number else 1
        assert listing.bare(directory, pid=5, room=room) == expected


async def in_new_thread(work: Callable[[], None]) -> None:
    """Trio keeps its threads, and a mount what it has learnt of them."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    assert not failures


def directories(place: Path) -> Iterator[Path]:
    for number in range(DIRECTORIES):
        yield place / f"d{number}"


@pytest.mark.fuse
async def test_a_real_kernel_looks_up_what_it_was_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is listed first and looked at afterwards: the guess is wrong, and what is seen is right."""
    async with mounted(tmp_path, monkeypatch) as (fs, place, asked):
        fill(fs)
        found: list[tuple[Path, int]] = []

        def lists() -> None:
            for path in directories(place):
                with os.scandir(path) as entries:
                    for entry in entries:
                        assert (entry.is_file(follow_symlinks=False), entry.is_symlink()) == (
                            entry.name in FILES,
                            entry.name == "link",
                        )
                        found.append((Path(entry.path), entry.inode()))

        def looks() -> None:
            for path, ino in found:
                status = path.lstat()
                assert status.st_ino == ino
                if path.name != "link":
                    assert (status.st_nlink, status.st_size) == (2, ino)
                    assert path.read_bytes() == bytes(ino)
                    assert (place / "elsewhere" / f"{path.parent.name[1:]}{path.name}").samefile(path)

        await in_new_thread(lists)
        assert sorted(path.relative_to(place) for path, _ in found) == sorted(
            Path(f"d{number}", name) for number in range(DIRECTORIES) for name in (*FILES, "link")
        )
        assert asked[wire.LOOKUP] == DIRECTORIES
        bare = 1 + (DIRECTORIES - 1) * len(FILES)
        assert counted(fs) == len(found) - bare + DIRECTORIES
        await in_new_thread(looks)
        assert asked[wire.LOOKUP] == DIRECTORIES + bare + 1 + DIRECTORIES * len(FILES), (
            "and as many names elsewhere"
        )


@pytest.mark.fuse
async def test_a_real_kernel_asks_nothing_more_for_who_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path, monkeypatch) as (fs, place, asked):
        fill(fs)

        def walks() -> None:
            for path in directories(place):
                for name in os.listdir(path):
                    status = (path / name).stat()
                    assert status.st_size == status.st_ino

        await in_new_thread(walks)
        assert asked[wire.LOOKUP] <= DIRECTORIES + 3, "of eight probes three: the first, third and seventh"
        assert asked[wire.GETATTR] <= 2


@pytest.mark.fuse
async def test_a_real_kernel_goes_on_in_a_list_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several answers, from a place in the middle, and beside names that come and go."""
    async with mounted(tmp_path, monkeypatch) as (fs, place, asked):
        fill(fs)
        names = {f"name{number:04}" for number in range(1000)}
        for directory in (b"streamed", b"large"):
            large = fs.make(1, directory, S_IFDIR | 0o755).ino
            for name in names:
                fs.make(large, name.encode(), S_IFREG | 0o640)

        def lists() -> None:
            for path in directories(place):
                os.listdir(path)
            stream = Directory(place / "streamed")
            first = [stream.read() for _ in range(500)]
            told = stream.tell()
            rest = stream.rest()
            assert {*first, *rest} == names | {".", ".."}
            assert len(first) + len(rest) == len(names) + 2
            stream.seek(told)
            assert stream.rest() == rest
            stream.close()

            before = asked[wire.LOOKUP]
            with os.scandir(place / "large") as entries:
                seen = [next(entries).name for _ in range(10)]
                victim = min(names.difference(seen))
                (place / "large" / victim).unlink()
                (place / "large" / "new").touch()
                seen += [entry.name for entry in entries]
            assert len(seen) == len(set(seen))
            assert names - {victim} <= set(seen) <= names | {"new"}
            assert asked[wire.LOOKUP] - before == 3, "the directory, the victim and the new name"
            assert set(os.listdir(place / "large")) == names - {victim} | {"new"}

        await in_new_thread(lists)


MS_REMOUNT = 32
"""At a remount the kernel gives back what nobody uses."""


@pytest.mark.fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="a remount needs root")
async def test_a_real_kernel_counts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Threads that list, look, and make and remove names of each other: afterwards every inode is let go."""
    async with mounted(tmp_path, monkeypatch) as (fs, place, _):
        fill(fs)

        def works(chance: random.Random) -> None:
            def path() -> Path:
                return place / f"d{chance.randrange(DIRECTORIES)}" / f"f{chance.randrange(60):02}"

            deeds: list[Callable[[], object]] = [
                lambda: os.listdir(path().parent),
                lambda: [os.lstat(path().parent / name) for name in os.listdir(path().parent)[:5]],
                lambda: path().write_bytes(bytes(chance.randrange(9000))),
                lambda: path().unlink(),
                lambda: path().rename(path()),
                lambda: os.link(path(), path()),
                lambda: path().read_bytes(),
            ]
            for _ in range(300):
                with suppress(FileNotFoundError, FileExistsError):
                    chance.choice([deeds[0], deeds[0], *deeds])()

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(in_new_thread, partial(works, random.Random(f"{seed} {number}")))
        assert counted(fs) > DIRECTORIES

        mount = partial(ctypes.CDLL(None).mount, None, os.fsencode(place), None, MS_REMOUNT, None)
        assert await trio.to_thread.run_sync(mount) == 0
        for _ in range(1000):  # what is let go is told a moment later
            if not counted(fs):
                break
            await trio.sleep(0.01)
        assert not counted(fs)
