"""What a synchronous secondary holds of the stream: a small file that outlives the process and the host.

Page 0 is mapped: how far the stream was received is stored there after every burst, with no system call.
It survives the death of the process, not that of the host. Page 1 has two slots, written in turn and synced,
with what must survive: the durable sequence, the epoch, whether the site is in step. After another boot of
the host the record goes back to the durable sequence and has a new incarnation.
"""

import mmap
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self
from uuid import UUID, uuid4

import xxhash

from jfs.errors import CorruptionError, DeviceError
from replication.state import boot_id

__all__ = ["Facts", "ReceivedRecord"]

_MAGIC: Final = b"TRISRCV1"
_PAGE: Final = 4096
_SLOT_BYTES: Final = 512
_SLOT: Final = struct.Struct("<8sQ16s16s36sQQQQ")
"""magic, generation, volume, incarnation, boot id, flags, epoch, durable sequence, far epoch."""
_CHECKSUM: Final = struct.Struct("<Q")
_NUMBER: Final = struct.Struct("<Q")
_RECEIVED_AT, _COPY_STREAM_AT, _FAR_AT = 0, 8, 16
_HAS_VOLUME, _COPYING, _IN_STEP, _PROTECT, _CLEAN = 1, 2, 4, 8, 16


class Facts(NamedTuple):
    """The synced part of the record."""

    epoch: int = 0
    durable_sequence: int = 0
    """Everything up to here is on stable storage. While a copy is under way: where it began from."""
    far_epoch: int = 0
    has_volume: bool = False
    copying: bool = False
    """A copy has begun and is not complete: the area is no state of the stream."""
    in_step: bool = False
    """The writer's last word was that this site has everything it had acknowledged."""
    protect: bool = False
    """The writer promised to acknowledge nothing that this site does not have."""
    clean: bool = False
    """The writer said good-bye after its last flush."""

    @property
    def promise(self) -> tuple[int, bool, bool, bool]:
        """The part that says what this site may conclude about what was acknowledged."""
        return self.epoch, self.in_step, self.protect, self.clean


class ReceivedRecord:
    """The record of one area. One process at a time; methods that sync block (call them in a thread)."""

    def __init__(self, path: Path, volume: UUID, *, boot: str | None = None) -> None:
        """Open or create the file. DeviceError: the host refuses; CorruptionError: another volume, damage.

        `boot` is the identity of this boot of the host; left out, it is asked for.
        """
        self._volume = volume.bytes
        boot = boot or boot_id()
        self._boot_known = boot != "unknown"
        self._boot = boot.encode("ascii")[:36].ljust(36)
        self._generation = 0
        self.incarnation = uuid4()
        """New whenever something that was received but not durable may have been lost."""
        self.facts = Facts()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fresh = os.fstat(self._file).st_size < 2 * _PAGE
            if fresh:
                os.ftruncate(self._file, 2 * _PAGE)
            self._map = mmap.mmap(self._file, _PAGE)
            self._received = self._get(_RECEIVED_AT)
        except OSError as error:
            raise DeviceError(
                error.errno or 5, f"the record {path} cannot be opened: {error.strerror}"
            ) from error
        try:
            same_boot = not fresh and self._load(path)
        except BaseException:
            self.close()
            raise
        if not same_boot:
            self._go_back()
            self._set(_FAR_AT, 0)

    def distrust(self) -> None:
        """What was received and is not durable may be lost: the disk could not write something. Blocks."""
        self.incarnation = uuid4()
        self._go_back()

    def _go_back(self) -> None:
        """To what is durable: so this site may no longer have all that was acknowledged."""
        self.received_sequence = self.facts.durable_sequence
        self.copy_sequence = 0
        self.save(self.facts._replace(in_step=self.facts.in_step and self.facts.clean))

    def _load(self, path: Path) -> bool:
        """Read the newer good slot; True if it is of this boot, so that the mapped numbers hold."""
        best: tuple[int, bytes] | None = None
        blank = True
        for slot in (0, 1):
            raw = os.pread(self._file, _SLOT.size + _CHECKSUM.size, _PAGE + slot * _SLOT_BYTES)
            blank = blank and not any(raw)
            body = raw[: _SLOT.size]
            if raw[_SLOT.size :] != _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)):
                continue
            generation = _SLOT.unpack(body)[1]
            if best is None or generation > best[0]:
                best = (generation, body)
        if best is None:
            if blank:
                return False
            raise CorruptionError(f"the record {path} is damaged; remove it to have the area copied afresh")
        magic, self._generation, volume, incarnation, boot, flags, *numbers = _SLOT.unpack(best[1])
        if magic != _MAGIC or volume != self._volume:
            raise CorruptionError(f"the record {path} is not of this volume")
        epoch, durable, far_epoch = numbers
        bits = [bool(flags & bit) for bit in (_HAS_VOLUME, _COPYING, _IN_STEP, _PROTECT, _CLEAN)]
        self.facts = Facts(epoch, durable, far_epoch, *bits)
        if boot != self._boot or not self._boot_known:
            return False
        self.incarnation = UUID(bytes=incarnation)
        if not self.facts.copying:
            # The process may have died between the end of a copy, on stable storage, and the mapped number.
            self.received_sequence = max(self.received_sequence, durable)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is mapped stays with the host."""
        self._map.close()
        os.close(self._file)

    def _get(self, at: int) -> int:
        return int(_NUMBER.unpack_from(self._map, at)[0])

    def _set(self, at: int, number: int) -> None:
        # Eight aligned bytes: one store, so that a kill cannot tear it.
        _NUMBER.pack_into(self._map, at, number)

    @property
    def received_sequence(self) -> int:
        """The stream up to here is in the area (in memory at least)."""
        return self._received

    @received_sequence.setter
    def received_sequence(self, sequence: int) -> None:
        self._set(_RECEIVED_AT, sequence)
        self._received = sequence

    @property
    def copy_sequence(self) -> int:
        """While copying: the stream that came with the copy is in the area up to here. 0: unknown."""
        return self._get(_COPY_STREAM_AT)

    @copy_sequence.setter
    def copy_sequence(self, sequence: int) -> None:
        self._set(_COPY_STREAM_AT, sequence)

    @property
    def far_sequence(self) -> int:
        """The async site has everything up to here durable, in epoch `facts.far_epoch`; 0: unknown."""
        return self._get(_FAR_AT)

    @far_sequence.setter
    def far_sequence(self, sequence: int) -> None:
        self._set(_FAR_AT, sequence)

    def save(self, facts: Facts) -> None:
        """Make the facts durable, then believe them. Blocks. DeviceError when the host refuses."""
        self.store(facts)
        self.facts = facts

    def store(self, facts: Facts) -> None:
        """Make the facts durable and leave `facts` as it is: the caller sets it, in its own thread."""
        flags = (
            _HAS_VOLUME * facts.has_volume
            | _COPYING * facts.copying
            | _IN_STEP * facts.in_step
            | _PROTECT * facts.protect
            | _CLEAN * facts.clean
        )
        generation = self._generation + 1
        body = _SLOT.pack(
            _MAGIC,
            generation,
            self._volume,
            self.incarnation.bytes,
            self._boot,
            flags,
            facts.epoch,
            facts.durable_sequence,
            facts.far_epoch,
        )
        slot = body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))
        try:
            os.pwritev(self._file, [slot], _PAGE + (generation % 2) * _SLOT_BYTES, os.RWF_DSYNC)
        except OSError as error:
            raise DeviceError(
                error.errno or 5, f"the record of what was received cannot be written: {error.strerror}"
            ) from error
        self._generation = generation

    def reset(self, epoch: int, sequence: int, *, has_volume: bool = True) -> None:
        """The area holds the stream of `epoch` up to `sequence`, durably (a procedure brought it level)."""
        self.received_sequence = sequence
        self.copy_sequence = 0
        self.far_sequence = 0
        self.save(Facts(epoch, sequence, has_volume=has_volume))
