"""Mount jfs on a plain file, without any site: for tests and for a look at the file system alone.

    python -m jfs.run_plain IMAGE MOUNTPOINT [--mkfs SIZE] [--memory SIZE] [-o OPTION,...]

Stays in the foreground; prints `mounted` once the mount is there; SIGTERM, SIGINT or umount(8) end it
cleanly.
"""

import argparse
import logging
import signal
import sys
from pathlib import Path
from uuid import uuid4

import trio

from jfs.device import BLOCK_BYTES, FileDevice
from jfs.errors import CorruptionError, DeviceError
from jfs.filesystem import FileSystem, FileSystemOptions
from jfs.memory import DEFAULT_MEMORY_BYTES, within
from jfs.mkfs import make_file_system
from jfs.mountpoint import MountRefused, parse_options
from jfs.store import Store, StoreOptions

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes from ``4096``, ``64M``, ``8GiB``; rounded down to whole blocks. ValueError for anything else."""
    number = text.upper().removesuffix("IB").removesuffix("B")
    unit = _UNITS.get(number[-1:], 1)
    return int(number[:-1] if unit > 1 else number) * unit // BLOCK_BYTES * BLOCK_BYTES


async def mount(
    image: Path, mountpoint: str, size_bytes: int | None, option_text: str, memory_bytes: int
) -> None:
    """Make the file system first if a size is given, then serve it until it is unmounted."""
    from jfs.fuse import serve  # needs libfuse; everything above does not

    options = parse_options(option_text, fsname=str(image))
    device = FileDevice(image, create_bytes=size_bytes, exclusive=True)
    try:
        if size_bytes is not None:
            await make_file_system(device, volume_uuid=uuid4(), epoch=1, label="plain")
        store_options, file_system_options = within(
            memory_bytes, StoreOptions(), FileSystemOptions(relatime=options.relatime)
        )
        store = await Store.open(device, read_only=options.read_only, options=store_options)
        file_system = FileSystem(store, file_system_options, read_only=options.read_only)
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, stop)
            await serve(file_system, mountpoint, options, ready=_say_mounted, stop=stop)
            nursery.cancel_scope.cancel()
    finally:
        device.close()


def _say_mounted() -> None:
    print("mounted", flush=True)


async def _stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


def sentences(group: BaseExceptionGroup[Exception]) -> list[str]:
    """What the errors in a group say, however deep nurseries have wrapped them."""
    found = []
    for error in group.exceptions:
        found += sentences(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return found


def main() -> int:
    """The command; 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m jfs.run_plain", description="mount jfs on a plain file")
    parser.add_argument("image", type=Path)
    parser.add_argument("mountpoint")
    parser.add_argument("--mkfs", metavar="SIZE", type=parse_size, help="make the file system first")
    parser.add_argument("-o", dest="options", default="", help="mount options, separated by commas")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        type=parse_size,
        default=DEFAULT_MEMORY_BYTES,
        help="of this process, at most",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    status = 0
    try:
        trio.run(
            mount,
            arguments.image,
            arguments.mountpoint,
            arguments.mkfs,
            arguments.options,
            arguments.memory,
        )
    except* (MountRefused, DeviceError, CorruptionError) as group:
        status = 1
        for sentence in sentences(group):
            print(f"run_plain: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
