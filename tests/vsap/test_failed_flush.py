"""A host that could not write what was in a flush of an area: it tells once, and forgets the data."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jfs.errors import CorruptionError, DeviceError
from tests.vsap.test_virtual_area import A, B, C, Site, settle
from vsap.entry import Entry
from vsap.virtual import VirtualArea

pytestmark = pytest.mark.usefixtures("autojump_clock")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


class Forgetful:
    """A host that cannot write what is in one flush of an area, and forgets it."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch, *, times: int = 1) -> None:
        self._path, self._times, self._fdatasync = site.area.path, times, os.fdatasync
        self._durable = self._path.read_bytes()
        monkeypatch.setattr(os, "fdatasync", self._flush)

    def _flush(self, descriptor: int) -> None:
        if self._times:
            self._times -= 1
            os.pwrite(descriptor, self._durable, 0)
            raise OSError(errno.EIO, "Input/output error")
        self._fdatasync(descriptor)
        self._durable = self._path.read_bytes()


async def write_durably(device: VirtualArea) -> None:
    """The first write, flushed at both sites and recorded so."""
    device.write(0, A)
    await device.flush()
    await settle()


async def test_what_a_failed_flush_lost_is_written_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site.virtual() as device:
        await write_durably(device)
        Forgetful(site, monkeypatch)
        device.write(0, B)
        device.discard(8192, 4096)
        device.write(4096, C)
        with pytest.raises(DeviceError, match="cannot flush"):
            await device.flush()
        await settle()
        assert device.common_flush_sequence == 1
        assert device.read(0, 8192) == B + C
        await device.flush()
        await settle()
        assert device.common_flush_sequence == 4
    assert site.area.read(0, 8192) == B + C


async def test_where_it_cannot_be_written_again_nothing_is_believed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.virtual() as device:
        await write_durably(device)
        Forgetful(site, monkeypatch)
        device.write(0, B)

        def damaged(sequence: int) -> list[Entry]:
            raise CorruptionError("damaged")

        monkeypatch.setattr(site.queue, "read", damaged)
        for _ in range(2):
            with pytest.raises(DeviceError):
                await device.flush()
            with pytest.raises(DeviceError, match="may have lost data: damaged"):
                device.read(0, 4096)
        await settle()
        assert device.common_flush_sequence == 1
        monkeypatch.undo()
        await device.flush()
        assert device.read(0, 4096) == B


async def test_a_barrier_that_fails_keeps_back_what_is_behind_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.virtual() as device:
        await write_durably(device)
        Forgetful(site, monkeypatch, times=3)
        device.write(0, B)
        await device.barrier()
        device.write(4096, C)
        with pytest.raises(DeviceError):
            await device.flush()
        assert site.area.path.read_bytes()[:8192] == A + bytes(4096), "neither of them"
        await device.flush()
        await settle()
        assert device.common_flush_sequence == device.issued_sequence
        assert device.read(0, 8192) == B + C
