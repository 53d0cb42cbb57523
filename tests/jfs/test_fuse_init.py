"""The promise that saves a request at every write: pure parts, and a real mount that counts the requests."""

import os
import struct
from pathlib import Path
from uuid import UUID

import pytest
import trio

from jfs import fuse, fuse_init
from jfs.device import FileDevice
from jfs.filesystem import FileSystem
from jfs.mkfs import make_file_system
from jfs.mountpoint import MountOptions
from jfs.store import Store

WRITES = 50


def test_flags_are_added_to_an_answer_and_nothing_else_changes() -> None:
    body = struct.pack("<IIII", 7, 38, 1 << 17, 0x11) + bytes(48)
    answer = struct.pack("<IiQ", 16 + len(body), 0, 9) + body
    changed = fuse_init.with_flags(answer, fuse_init.FUSE_HANDLE_KILLPRIV_V2)
    assert struct.unpack_from("<I", changed, 28) == (0x11 | fuse_init.FUSE_HANDLE_KILLPRIV_V2,)
    assert (changed[:28], changed[32:]) == (answer[:28], answer[32:])


@pytest.mark.parametrize(
    "answer", [struct.pack("<IiQ", 16, -71, 9), bytes(20), struct.pack("<IiQ", 40, -1, 9) + bytes(24)]
)
def test_an_answer_that_is_an_error_stays_as_it_is(answer: bytes) -> None:
    assert fuse_init.with_flags(answer, 0xFF) == answer


def test_what_the_kernel_offers() -> None:
    init = struct.pack("<IIQQIIII", 56, 26, 2, 0, 0, 0, 0, 0) + struct.pack("<IIII", 7, 41, 1 << 17, 0xABC)
    assert fuse_init.offered_flags(init) == 0xABC
    assert fuse_init.offered_flags(init[:50]) == 0
    assert fuse_init.offered_flags(fuse_init.forget_of_nothing() + bytes(16)) == 0


@pytest.mark.fuse
async def test_the_kernel_asks_for_capabilities_once_and_not_at_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    real = fuse.Operations.getxattr

    async def counting(operations: fuse.Operations, inode: int, name: bytes, ctx: object) -> bytes:
        asked.append(name)
        return await real(operations, inode, name, ctx)  # type: ignore[arg-type]

    monkeypatch.setattr(fuse.Operations, "getxattr", counting)
    device = FileDevice(tmp_path / "image", create_bytes=64 << 20)
    await make_file_system(device, volume_uuid=UUID(int=5), epoch=1, label="")
    file_system = FileSystem(await Store.open(device))
    place = tmp_path / "mnt"
    place.mkdir()
    ready, stop = trio.Event(), trio.Event()

    def work() -> None:
        file = os.open(place / "f", os.O_RDWR | os.O_CREAT)
        try:
            for number in range(WRITES):
                os.pwrite(file, b"x", number)
        finally:
            os.close(file)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, file_system, str(place), ready, stop)
        await ready.wait()
        try:
            await trio.to_thread.run_sync(work)
        finally:
            stop.set()
    device.close()
    assert asked.count(b"security.capability") <= 3


async def _serve(file_system: FileSystem, place: str, ready: trio.Event, stop: trio.Event) -> None:
    await fuse.serve(file_system, place, MountOptions(), ready=ready.set, stop=stop)
