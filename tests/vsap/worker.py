"""Processes that tests start and kill: one that appends to a queue, one that writes to a virtual area.

    python -m tests.vsap.worker append DIRECTORY COUNT
    python -m tests.vsap.worker write DIRECTORY SEED KILL_AT_STEP [area-first]

Both print a line when they are under way. `write` kills itself with SIGKILL at a step (0: never),
a step being the moment before or after something reaches the queue, the area or C.
"""

import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

import trio

from jfs.device import Buffer
from jfs.errors import DeviceError
from vsap import pointing
from vsap.area import FileArea
from vsap.entry import Entry, write_entry
from vsap.index import Record
from vsap.queue import EntryQueue
from vsap.queue_files import Transaction
from vsap.virtual import VirtualArea, apply_entries

VOLUME = UUID(int=21)
BLOCKS = 64


def payload(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big") * 64


def point_early() -> None:
    """Entries of this process point into the area as soon as they are durable at A and C, short ones too."""
    pointing.POINT_SECONDS, pointing.LOOK_SECONDS = 0.0, 0.0  # type: ignore[misc]
    pointing.LEAST_BYTES, pointing.KEPT_SHARE = 4096, 1  # type: ignore[misc]


def append(directory: Path, count: int) -> None:
    """Appends `count` entries in batches of random size, each eligible at once."""
    queue = EntryQueue.open(directory, VOLUME, segment_bytes=100_000)
    rng = random.Random(1)
    first = queue.next_sequence
    end = first + count
    print("ready", flush=True)
    while first < end:
        last = min(first + rng.randrange(1, 20), end)
        queue.append_batch(
            [write_entry(number, number, number * 4096, payload(number)) for number in range(first, last)],
            eligible_sequence=last - 1,
        )
        first = last
    queue.close()


class Steps:
    """Counts steps and dies at one of them."""

    def __init__(self, kill_at: int) -> None:
        self.left = kill_at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class SteppingArea(FileArea):
    steps: Steps

    def write(self, offset: int, data: Buffer) -> None:
        self.steps.step()
        super().write(offset, data)
        self.steps.step()

    def discard(self, offset: int, length: int) -> None:
        self.steps.step()
        super().discard(offset, length)
        self.steps.step()


class SteppingQueue(EntryQueue):
    steps: Steps

    def append_batch(self, entries: Sequence[Entry], *, eligible_sequence: int | None = None) -> None:
        self.steps.step()
        super().append_batch(entries, eligible_sequence=eligible_sequence)
        self.steps.step()

    def _move(self, txn: Transaction, key: bytes, record: Record, place: int) -> None:
        self.steps.step()
        super()._move(txn, key, record, place)
        self.steps.step()


class FileRemote:
    """C as another file of this machine: like the real one it survives the process that sends."""

    on_received: Callable[[], None] | None = None
    unprotected = False

    def __init__(self, area: SteppingArea) -> None:
        self.area = area
        self.received_sequence = self.durable_sequence = 0

    def send(self, entries: Sequence[Entry], *, flush: bool = False) -> None:
        for entry in entries:
            apply_entries(self.area, [entry])
            self.received_sequence = entry.sequence
        if flush:
            self.request_flush(self.received_sequence)

    def request_flush(self, sequence: int) -> None:
        self.durable_sequence = sequence

    async def wait_received(self, sequence: int) -> None:
        assert self.received_sequence >= sequence

    async def wait_durable(self, sequence: int) -> None:
        assert self.durable_sequence >= sequence

    def refusal(self) -> DeviceError | None:
        return None


class AreaFirst(VirtualArea):
    """The mutant: writes the area before the queue has the entries."""

    def _push(self, *, flush: bool = False) -> None:
        apply_entries(self._area, self._pending)
        super()._push(flush=flush)


async def write(directory: Path, seed: int, kill_at: int, kind: type[VirtualArea]) -> None:
    """Random writes, discards and flushes, as fast as possible, for ever."""
    rng = random.Random(seed)
    steps = Steps(kill_at)
    area = SteppingArea(directory / "area")
    remote_area = SteppingArea(directory / "remote")
    point_early()
    queue = SteppingQueue.open(directory / "queue", VOLUME, segment_bytes=20_000, area=area.path)
    area.steps = remote_area.steps = queue.steps = steps
    async with kind(area, queue, FileRemote(remote_area)) as device:
        print("ready", flush=True)
        await device.recover()
        while True:
            for _ in range(rng.randrange(1, 8)):
                place = rng.randrange(BLOCKS) * 4096
                if rng.random() < 0.2:
                    device.discard(place, 4096)
                else:
                    device.write(place, rng.randbytes(4096))
            await trio.lowlevel.checkpoint()
            if rng.random() < 0.1:
                await device.flush()
            device._point()


def main() -> None:
    """Runs what the arguments say."""
    match sys.argv[1:]:
        case ["append", directory, count]:
            append(Path(directory), int(count))
        case ["write", directory, seed, kill_at, *rest]:
            kind = AreaFirst if rest == ["area-first"] else VirtualArea
            trio.run(write, Path(directory), int(seed), int(kill_at), kind)
        case other:
            raise SystemExit(f"what is {other}?")


if __name__ == "__main__":
    main()
