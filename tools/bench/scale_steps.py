"""The steps of `python -m tools.bench.scale`, each run in a process of its own so that its memory is its own.

A step gets the path of an image and numbers, and tells figures, one JSON object a line. What needs no
kernel goes through the file system's own interface (`api`), the rest through a mount of `jfs.run_plain`.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from typing import Final
from uuid import uuid4

import msgspec
import trio

from jfs import fsck
from jfs.device import FileDevice
from jfs.filesystem import FileSystem
from jfs.layout import ROOT_INO
from jfs.mkfs import make_file_system
from jfs.store import Store

BLOCK: Final = 4096
DIRECTORY_FILES: Final = 1000  # in each directory of a volume of many files
YIELD_OPERATIONS: Final = 32  # as under a mount: the background work gets its turn
FILE: Final = S_IFREG | 0o644
DIRECTORY: Final = S_IFDIR | 0o755
MOUNT_SECONDS: Final = 600.0
LOADS: Final = ("create", "write 4 KiB", "lookup", "unlink")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure: `amount` units took `seconds`, and of the processor `cpu_seconds`.

    With the most memory the process had so far, and what the image takes of the disk.
    """

    what: str
    amount: int
    unit: str
    seconds: float
    cpu_seconds: float
    memory_bytes: int
    disk_bytes: int
    load: str = ""  # one of a series: which operation,
    at: str = ""  # and how many files, or how full
    faults: int = 0


def peak_memory_bytes(pid: int | str = "self") -> int:
    """The most memory that a process had resident so far."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def processor_seconds(pid: int | str = "self") -> float:
    """The processor time that a process used so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tell(row: Row) -> None:
    """Hand a figure to the process that started the step."""
    sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    sys.stdout.flush()


class Watch:
    """Measures stretches of a step; `pid` is the process whose memory counts."""

    def __init__(self, image: Path, pid: int | str = "self") -> None:
        self.image = image
        self.pid = pid

    @contextmanager
    def row(
        self, what: str, amount: int, unit: str, *, load: str = "", at: str = ""
    ) -> Iterator[Callable[[int], None]]:
        """Tell how long the block took. What it yields takes the number of faults found."""
        faults = 0

        def found(count: int) -> None:
            nonlocal faults
            faults = count

        began, used = time.perf_counter(), processor_seconds(self.pid)
        yield found
        seconds = time.perf_counter() - began
        tell(
            Row(
                what=what,
                amount=amount,
                unit=unit,
                seconds=seconds,
                cpu_seconds=processor_seconds(self.pid) - used,
                memory_bytes=peak_memory_bytes(self.pid),
                disk_bytes=self.image.stat().st_blocks * 512,
                load=load,
                at=at,
                faults=faults,
            )
        )


@asynccontextmanager
async def opened(image: Path, size_bytes: int | None = None) -> AsyncIterator[FileSystem]:
    """The file system of an image, as a mount has it, without a kernel. Closed cleanly at the end."""
    device = FileDevice(image, create_bytes=size_bytes, exclusive=True)
    try:
        if size_bytes is not None:
            await make_file_system(device, volume_uuid=uuid4(), epoch=1, label="scale")
        file_system = FileSystem(await Store.open(device))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file_system.store.run)
            yield file_system
            await file_system.close()
            nursery.cancel_scope.cancel()
    finally:
        device.close()


async def paced(file_system: FileSystem, number: int) -> None:
    """After each change: as the mount does, wait where too much is pending."""
    await file_system.throttle()
    if number % YIELD_OPERATIONS == 0:
        await trio.lowlevel.checkpoint()


def name_of(number: int) -> bytes:
    """The name of a file of a directory."""
    return b"file-%08d" % number


async def make_files(fs: FileSystem, parent: int, first: int, end: int) -> None:
    """Make empty files in a directory."""
    for number in range(first, end):
        fs.make(parent, name_of(number), FILE)
        await paced(fs, number)


async def measure_loads(fs: FileSystem, watch: Watch, count: int, at: str, rng: random.Random) -> None:
    """Time the four loads beside `count` files in one directory; afterwards it is as before.

    As many operations at every size; each load ends with a commit, checkpoints come as they do in a mount.
    """
    amount = 20_000
    with watch.row("", amount, "files", load=LOADS[0], at=at):
        nodes = []
        for number in range(count, count + amount):
            nodes.append(fs.make(ROOT_INO, name_of(number), FILE).ino)
            await paced(fs, number)
        await fs.commit()
    data = rng.randbytes(BLOCK)
    with watch.row("", amount, "files", load=LOADS[1], at=at):
        for number, ino in enumerate(nodes):
            fs.write(ino, 0, data)
            await paced(fs, number)
        await fs.commit()
    with watch.row("", amount, "names", load=LOADS[2], at=at):
        for number in range(amount):
            assert fs.lookup(ROOT_INO, name_of(rng.randrange(count))) is not None
            await paced(fs, number)
    with watch.row("", amount, "files", load=LOADS[3], at=at):
        for number in range(count, count + amount):
            fs.unlink(ROOT_INO, name_of(number))
            await paced(fs, number)
        await fs.commit()


async def one_directory(image: Path, *counts: int) -> None:
    """One directory that grows to the last of `counts`; the loads at each of them, then all its names."""
    watch, rng = Watch(image), random.Random(counts[-1])
    async with opened(image, 64 << 30) as fs:
        done = 0
        for count in counts:
            if count == counts[-1]:
                with watch.row(f"files made in one directory ({done:,} were there)", count - done, "files"):
                    await make_files(fs, ROOT_INO, done, count)
                    await fs.commit()
            else:
                await make_files(fs, ROOT_INO, done, count)
            done = count
            await measure_loads(fs, watch, count, f"{count:,}", rng)
        with watch.row("the directory read whole", done, "names"):
            assert sum(1 for _ in fs.readdir(ROOT_INO)) == done + 2
        with watch.row("the volume closed", 1, "times"):
            await fs.close()


async def empty_directory(image: Path, count: int) -> None:
    """Remove every file of the one directory."""
    watch = Watch(image)
    async with opened(image) as fs:
        with watch.row("files removed from one directory", count, "files"):
            for number in range(count):
                fs.unlink(ROOT_INO, name_of(number))
                await paced(fs, number)
            await fs.commit()


async def many_files(image: Path, count: int) -> None:
    """A volume of many files, a thousand in each directory."""
    watch = Watch(image)
    async with opened(image, 64 << 30) as fs:
        with watch.row("files made in a volume, 1,000 in each directory", count, "files"):
            for number in range(0, count, DIRECTORY_FILES):
                parent = fs.make(ROOT_INO, b"directory-%06d" % number, DIRECTORY).ino
                await make_files(fs, parent, 0, min(DIRECTORY_FILES, count - number))
            await fs.commit()


async def random_changes(image: Path, count: int) -> None:
    """Change the mode of files all over the volume: each in another leaf of the tree."""
    watch, rng = Watch(image), random.Random(count)
    async with opened(image) as fs:
        highest = fs.store.volume.next_ino
        numbers = rng.sample(range(DIRECTORY_FILES * 2, highest - DIRECTORY_FILES), count)
        with watch.row("files changed all over that volume", count, "files"):
            for number, ino in enumerate(numbers):
                fs.setattr(ino, mode=0o600)
                await paced(fs, number)
            await fs.commit()


async def sparse_file(image: Path, size_bytes: int) -> None:
    """One sparse file, written and read at places all over it."""
    watch, rng = Watch(image), random.Random(size_bytes)
    async with opened(image, 64 << 30) as fs:
        node = fs.make(ROOT_INO, b"sparse", FILE)
        fs.setattr(node.ino, size=size_bytes)
        places = [rng.randrange(size_bytes // BLOCK) * BLOCK for _ in range(10_000)]
        with watch.row(
            f"4 KiB written all over a sparse file of {size_bytes >> 40} TiB", len(places), "writes"
        ):
            for number, place in enumerate(places):
                fs.write(node.ino, place, place.to_bytes(8, "big") * 512)
                await paced(fs, number)
            await fs.commit()
        with watch.row("the same read back", len(places), "reads"):
            for place in places:
                assert bytes(fs.read(node.ino, place, BLOCK)) == place.to_bytes(8, "big") * 512
        with watch.row("1 MiB of holes read", 1000, "reads"):
            for number in range(1000):
                fs.read(node.ino, number << 30, 1 << 20)


async def extents(image: Path, count: int) -> None:
    """A file of so many extents: every other block of a stretch belongs to another file."""
    watch, rng = Watch(image), random.Random(count)
    async with opened(image, 64 << 30) as fs:
        one, other = (fs.make(ROOT_INO, name, FILE) for name in (b"one", b"other"))
        with watch.row(f"a file of {count:,} extents written", count, "writes"):
            for number in range(count):
                block = number.to_bytes(8, "big") * 512
                fs.write(one.ino, number * BLOCK, block)
                fs.write(other.ino, 2 * number * BLOCK, block)
                await paced(fs, number)
            await fs.commit()
        assert sum(1 for _ in fs.store.volume.extents(other.ino)) == count
        with watch.row("blocks of it read at random", 20_000, "reads"):
            for _ in range(20_000):
                number = rng.randrange(count)
                assert bytes(fs.read(other.ino, 2 * number * BLOCK, 8)) == number.to_bytes(8, "big")
        with watch.row("blocks of it written again at random", 20_000, "writes"):
            for number in range(20_000):
                fs.write(other.ino, 2 * rng.randrange(count) * BLOCK, bytes(BLOCK))
                await paced(fs, number)
            await fs.commit()
        with watch.row("it was removed", count, "extents"):
            fs.unlink(ROOT_INO, b"other")
            await fs.settle()
            await fs.commit()


async def fill(image: Path, size_bytes: int) -> None:
    """From empty to 90 % full: what making and writing a file takes on the way."""
    watch, rng = Watch(image), random.Random(size_bytes)
    amount, data = 2000, rng.randbytes(BLOCK)
    async with opened(image, size_bytes) as fs:
        number = 0
        for tenth in range(10):
            at = f"{tenth * 10} %"
            usage = fs.statfs()
            big = fs.make(ROOT_INO, b"big-%d" % tenth, FILE)
            first = number
            with watch.row("", amount, "files", load=LOADS[0], at=at):
                for number in range(first, first + amount):
                    fs.make(ROOT_INO, name_of(number), FILE)
                    await paced(fs, number)
                await fs.commit()
            with watch.row("", amount, "files", load=LOADS[1], at=at):
                for number in range(first, first + amount):
                    node = fs.lookup(ROOT_INO, name_of(number))
                    assert node is not None
                    fs.write(node.ino, 0, data)
                    await paced(fs, number)
                await fs.commit()
            number = first + amount
            offset = 0
            while tenth < 9 and fs.statfs().blocks_available > usage.blocks * (9 - tenth) // 10:
                fs.write(big.ino, offset, data * 64)
                offset += len(data) * 64
                await paced(fs, 0)
            await fs.commit()


async def huge_volume(image: Path, size_bytes: int) -> None:
    """Make a volume as large as this host's file system holds, and a few files on it."""
    watch = Watch(image)
    with watch.row(f"mkfs of a volume of {size_bytes / (1 << 40):.3f} TiB", 1, "times"):
        async with opened(image, size_bytes):
            pass
    async with opened(image) as fs:
        with watch.row("files made on it", 1000, "files"):
            await make_files(fs, ROOT_INO, 0, 1000)
            await fs.commit()


async def check(image: Path) -> None:
    """fsck."""
    watch = Watch(image)
    device = FileDevice(image, read_only=True)
    heard: list[float] = []
    with watch.row("checked by fsck", 1, "times") as found:
        found(len(fsck.check(device, lambda part, _phase: heard.append(part))))
    assert heard == sorted(heard)
    device.close()


async def crash(image: Path, changes: int) -> None:
    """Leave so many changes in the log, and no checkpoint behind them, as a crash would."""
    device = FileDevice(image, exclusive=True)
    fs = FileSystem(await Store.open(device))
    parent = fs.make(ROOT_INO, b"crash-%d-%s" % (changes, uuid4().hex.encode()), DIRECTORY).ino
    for number in range(changes):
        fs.make(parent, name_of(number), FILE)
        if number % 5000 == 0:
            await fs.commit()
    await fs.commit()
    os._exit(0)  # nothing is closed


@contextmanager
def mounted(image: Path) -> Iterator[tuple[Path, Watch]]:
    """The image mounted; the mount process ends with the block."""
    place = image.parent / "mnt"
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "jfs.run_plain", str(image), str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            began = time.perf_counter()
            assert "mounted" in process.stdout.readline()
            seconds = time.perf_counter() - began
            watch = Watch(image, process.pid)
            memory, disk = peak_memory_bytes(process.pid), image.stat().st_blocks * 512
            tell(
                Row(
                    what="mounted (from the start of the process)",
                    amount=1,
                    unit="times",
                    seconds=seconds,
                    cpu_seconds=processor_seconds(process.pid),
                    memory_bytes=memory,
                    disk_bytes=disk,
                )
            )
            yield place, watch
            subprocess.run(["umount", str(place)], check=True)
            if process.wait(MOUNT_SECONDS):
                raise RuntimeError("the mount process ended badly")
        finally:
            if process.poll() is None:
                process.kill()
                subprocess.run(["umount", "-l", str(place)], check=False)


def mount_only(image: Path) -> None:
    """How long it takes until the mount answers."""
    with mounted(image):
        pass


def mount_loads(image: Path, count: int) -> None:
    """The four loads through the kernel, beside `count` files in one directory, and the listing of all."""
    amount, rng, at = 3000, random.Random(count), f"{count:,}"
    data = rng.randbytes(BLOCK)
    with mounted(image) as (place, watch):
        paths = [os.path.join(place, f"new-{number:08d}") for number in range(amount)]
        with watch.row("", amount, "files", load=LOADS[0], at=at):
            for path in paths:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        with watch.row("", amount, "files", load=LOADS[1], at=at):
            for path in paths:
                descriptor = os.open(path, os.O_WRONLY)
                os.write(descriptor, data)
                os.close(descriptor)
            os.sync()
        with watch.row("", amount, "names", load=LOADS[2], at=at):
            for number in rng.sample(range(count), min(amount, count)) * max(1, amount // count):
                os.stat(os.path.join(place, os.fsdecode(name_of(number))))
        with watch.row("", amount, "files", load=LOADS[3], at=at):
            for path in paths:
                os.unlink(path)
        listed = watch.row("one directory listed with attributes through the mount", count, "names")
        with listed, os.scandir(place) as entries:
            seen = sum(1 for entry in entries if entry.stat(follow_symlinks=False).st_nlink == 1)
        assert seen == count


async def grow(image: Path, *counts: int) -> None:
    """Make the one directory from the first count to the second, no figures."""
    first, end = counts
    async with opened(image, None if first else 64 << 30) as fs:
        await make_files(fs, ROOT_INO, first, end)


def walk(image: Path, count: int) -> None:
    """Look at every file of the volume through the mount: the kernel may then hold an inode for each."""
    seen = 0
    with mounted(image) as (place, watch), watch.row("a volume walked through the mount", count, "files"):
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            with os.scandir(entry.path) as entries:
                seen += sum(1 for file in entries if file.stat(follow_symlinks=False).st_nlink)
    assert seen >= count


STEPS: Final = {
    step.__name__: step
    for step in (
        one_directory, empty_directory, many_files, random_changes, sparse_file, extents, fill, huge_volume,
        check, crash, grow,
    )
}  # fmt: skip
MOUNTING: Final = {step.__name__: step for step in (mount_only, mount_loads, walk)}


def main() -> int:
    """`python -m tools.bench.scale_steps STEP IMAGE [NUMBER...]`"""
    step, image, *numbers = sys.argv[1:]
    if step in STEPS:
        trio.run(lambda: STEPS[step](Path(image), *map(int, numbers)))
    else:
        MOUNTING[step](Path(image), *map(int, numbers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
