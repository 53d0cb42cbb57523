"""Whether what a directory holds can be believed after the host went away (P4), and who has the directory
open.

A small file, `condition`, says on which boot of the host the directory was opened, whether it was closed
cleanly and synced, and the first sequence that is certainly unused. It lives outside LMDB because an LMDB
file that was not synced must not even be opened after a crash of the host.
"""

import errno
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple, Self
from uuid import UUID

import xxhash

from jfs.errors import CorruptionError, DeviceError

MAGIC = b"trisiteC"
VERSION = 1
SLOT = struct.Struct("<8sII16s16sQQQ")
"""magic, version, clean (0 or 1), volume, boot id, generation, sequence ceiling, checksum of the bytes
before.
"""
SLOT_SPACING = 512
"""Bytes from one slot to the other: each has a sector of its own, so that a torn write costs one at most."""
NO_BOOT = UUID(int=0)


class Record(NamedTuple):
    """What the file says."""

    clean: bool
    volume: UUID
    boot: UUID
    ceiling: int
    """No sequence from here on was ever issued."""
    generation: int


def current_boot() -> UUID:
    """Identity of this run of the host's kernel; NO_BOOT where the host does not tell."""
    try:
        return UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return NO_BOOT


def pack_slot(record: Record) -> bytes:
    """The bytes of a slot."""
    body = SLOT.pack(
        MAGIC,
        VERSION,
        record.clean,
        record.volume.bytes,
        record.boot.bytes,
        record.generation,
        record.ceiling,
        0,
    )[:-8]
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def unpack_slot(data: bytes) -> Record | None:
    """The record of a slot, or None when it is not whole. CorruptionError: a format this version does not
    know.
    """
    if len(data) < SLOT.size:
        return None
    magic, version, clean, volume, boot, generation, ceiling, checksum = SLOT.unpack_from(data)
    if magic != MAGIC or checksum != xxhash.xxh3_64_intdigest(data[: SLOT.size - 8]):
        return None
    if version != VERSION:
        raise CorruptionError(f"condition file of version {version}; this program knows version {VERSION}")
    return Record(bool(clean), UUID(bytes=volume), UUID(bytes=boot), ceiling, generation)


class Condition:
    """The open `condition` file. The one process that has the directory alone may judge, and later mark it
    clean.
    """

    def __init__(self, directory: Path, volume: UUID, boot: UUID | None) -> None:
        """See `open`."""
        self._directory = directory
        self._volume = volume
        self._boot = current_boot() if boot is None else boot
        self._fd = os.open(directory / "condition", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.alone = False
        self.lost = False
        self.known = False
        """Somebody had the directory open before: what is not there was lost, not never written."""
        self.ceiling = 1

    @classmethod
    def open(cls, directory: Path, volume: UUID, *, boot: UUID | None = None) -> Self:
        """Opens the condition of `directory`. `boot` stands in for the host's boot id in tests.

        Afterwards `lost` says that nothing in the directory may be believed. While `alone` is true nobody
        else gets past this call; the caller clears up and calls `enter`. CorruptionError: the directory is
        another volume's.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            condition = cls(directory, volume, boot)
        except OSError as error:
            raise DeviceError(
                error.errno or errno.EIO, f"cannot open {directory}: {error.strerror}"
            ) from error
        try:
            condition._judge()
        except BaseException:
            os.close(condition._fd)
            raise
        return condition

    def _judge(self) -> None:
        record = self._enter_or_take_alone()
        if record is None:
            # A new directory has nothing to lose; one with content but no condition cannot be judged.
            self.lost = any(path.name != "condition" for path in self._directory.iterdir())
            return
        if record.volume != self._volume:
            raise CorruptionError(
                f"{self._directory} belongs to volume {record.volume}, not to {self._volume}"
            )
        self.known = True
        self.ceiling = record.ceiling
        same_boot = record.boot == self._boot and self._boot != NO_BOOT
        self.lost = self.alone and not record.clean and not same_boot

    def _enter_or_take_alone(self) -> Record | None:
        """Joins a process that has entered, or becomes the one that is alone; returns what the file says."""
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.alone = True
                return self._newest()
            except BlockingIOError:
                pass
            # Waits while another clears up; it goes on to a shared lock in `enter`.
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            record = self._newest()
            if record is not None and not record.clean and record.boot == self._boot:
                return record
            # It left, or died before it entered, so somebody has to judge.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            time.sleep(0.01)

    def _newest(self) -> Record | None:
        slots = [unpack_slot(os.pread(self._fd, SLOT.size, number * SLOT_SPACING)) for number in (0, 1)]
        return max(
            (slot for slot in slots if slot is not None), key=lambda slot: slot.generation, default=None
        )

    def _write(self, *, clean: bool, ceiling: int) -> None:
        newest = self._newest()
        generation = 1 if newest is None else newest.generation + 1
        record = Record(clean, self._volume, self._boot, ceiling, generation)
        try:
            os.pwrite(self._fd, pack_slot(record), generation % 2 * SLOT_SPACING)
            os.fsync(self._fd)
        except OSError as error:
            raise DeviceError(
                error.errno or errno.EIO, f"cannot write {self._directory / 'condition'}: {error.strerror}"
            ) from error
        self.ceiling = ceiling

    def enter(self) -> None:
        """The directory is in use from now on; others may open it. Nothing to do for one who is not alone."""
        if not self.alone:
            return
        self._write(clean=False, ceiling=self.ceiling)
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        self.alone = False

    def reserve(self, ceiling: int) -> None:
        """Records, durably, that sequences below `ceiling` may be issued; only the appending process does."""
        newest = self._newest()
        self._write(clean=False, ceiling=ceiling if newest is None else max(ceiling, newest.ceiling))

    def last(self) -> bool:
        """Before `leave`: whether no other process has the directory open, and then keeps others out."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.alone = True
        return True

    def leave(self) -> None:
        """Closes. One who is alone has synced everything before, so the directory is marked clean."""
        try:
            if self.alone:
                newest = self._newest()
                self._write(clean=True, ceiling=self.ceiling if newest is None else newest.ceiling)
        finally:
            os.close(self._fd)

    def abandon(self) -> None:
        """Closes without a word: the directory stays marked as in use."""
        os.close(self._fd)
