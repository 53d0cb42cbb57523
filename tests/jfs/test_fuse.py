"""The rare requests, called as pyfuse3 would call them, without a kernel; and a mount that is refused."""

import errno
import os
from collections.abc import Awaitable
from pathlib import Path
from stat import S_IFREG
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import trio

from jfs.filesystem import FileSystem
from jfs.fuse_gate import Gate
from jfs.fuse_requests import Requests
from jfs.mkfs import make_file_system
from jfs.mountpoint import MountOptions, MountRefused
from jfs.store import Store
from tests.devices import MemoryDevice

fuse = pytest.importorskip("jfs.fuse", reason="libfuse or pyfuse3 is not installed", exc_type=ImportError)

ROOT_USER: Any = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)
SOMEBODY: Any = SimpleNamespace(uid=1000, gid=1000, pid=os.getpid(), umask=0)


class Bench:
    def __init__(self, device: MemoryDevice, fs: FileSystem) -> None:
        self.device = device
        self.fs = fs
        self.operations = fuse.Operations(Requests(fs), Gate(fs))


@pytest.fixture
async def bench() -> Bench:
    device = MemoryDevice(16 << 20)
    await make_file_system(device, volume_uuid=UUID(int=5 << 64), epoch=1, label="fuse")
    fs = FileSystem(await Store.open(device))
    await fs.commit()
    return Bench(device, fs)


async def fails(code: int, answer: Awaitable[object]) -> None:
    with pytest.raises(fuse.FUSEError) as caught:
        await answer
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


async def test_links_are_made_read_and_counted(bench: Bench) -> None:
    operations, fs = bench.operations, bench.fs
    node = fs.make(1, b"f", S_IFREG | 0o644)
    entry = await operations.link(node.ino, 1, b"g", ROOT_USER)
    assert (entry.st_ino, entry.st_nlink, entry.attr_timeout) == (node.ino, 2, 3600)
    link = await operations.symlink(1, b"l", b"f", ROOT_USER)
    assert await operations.readlink(link.st_ino, ROOT_USER) == b"f"
    assert (node.ino in fs._lookups, link.st_ino in fs._lookups) == (True, True)
    await fails(errno.EEXIST, operations.link(node.ino, 1, b"l", ROOT_USER))
    await fails(errno.EINVAL, operations.readlink(node.ino, ROOT_USER))


async def test_only_root_sees_trusted_attributes(bench: Bench) -> None:
    node = bench.fs.make(1, b"f", S_IFREG | 0o644)
    for name in (b"trusted.a", b"user.b"):
        await bench.operations.setxattr(node.ino, name, b"x", ROOT_USER)
    assert sorted(await bench.operations.listxattr(node.ino, ROOT_USER)) == [b"trusted.a", b"user.b"]
    assert await bench.operations.listxattr(node.ino, SOMEBODY) == [b"user.b"]
    await bench.operations.removexattr(node.ino, b"user.b", ROOT_USER)
    await fails(errno.ENODATA, bench.operations.getxattr(node.ino, b"user.b", ROOT_USER))


async def test_a_refused_mount_closes_the_store(bench: Bench, tmp_path: Path) -> None:
    bench.fs.make(1, b"f", S_IFREG)
    with pytest.raises(MountRefused, match="does not exist"):
        await fuse.serve(bench.fs, str(tmp_path / "no"), MountOptions(), ready=print, stop=trio.Event())
    again = await Store.open(bench.device)
    assert again.superblock.clean
    assert FileSystem(again).lookup(1, b"f") is not None
