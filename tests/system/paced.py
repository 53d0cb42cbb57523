"""A program that overwrites and fsyncs blocks of one file at a steady pace, and notes how long each took.

    python -m tests.system.paced FILE NOTES SEED WRITES_PER_SECOND      until SIGTERM

Write n of a seed goes to a block and has a content that both follow from (seed, n): whoever reads the file
later knows of each block which write it holds, and whether the file is a state of the past.
"""

import os
import random
import signal
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

BLOCK_BYTES: Final = 4096
BLOCKS: Final = 8192
NOTE: Final = struct.Struct("<qdd")  # number of the write, when it began (monotonic), seconds it took
HEAD: Final = struct.Struct("<qq")  # number of the write, number of the block


class Note(NamedTuple):
    """An acknowledged write."""

    number: int
    began: float
    seconds: float


def block_of(seed: int, number: int) -> int:
    """Where write `number` goes."""
    return random.Random(seed * 1_000_003 + number).randrange(BLOCKS)


def content(number: int, block: int) -> bytes:
    """What it writes; write 0 of every block is what the file holds at first."""
    head = HEAD.pack(number, block)
    return head + random.Random(number * BLOCKS + block).randbytes(BLOCK_BYTES - len(head))


def notes(path: Path) -> list[Note]:
    """What was acknowledged up to now."""
    data = path.read_bytes() if path.exists() else b""
    whole = len(data) // NOTE.size * NOTE.size
    return [Note(*found) for found in NOTE.iter_unpack(data[:whole])]


def state_of(seed: int, read: Sequence[bytes]) -> int:
    """The write after which the file held these blocks; ValueError if there was no such moment."""
    held: list[int] = []
    for block, data in enumerate(read):
        number, place = HEAD.unpack_from(data)
        if place != block or data != content(number, block):
            raise ValueError(f"block {block} holds something that was never written")
        held.append(number)
    last: int = max(held)
    wanted = [0] * BLOCKS
    for number in range(1, last + 1):
        wanted[block_of(seed, number)] = number
    for block, (one, other) in enumerate(zip(held, wanted, strict=True)):
        if one != other:
            raise ValueError(f"block {block} holds write {one}, and at write {last} it held {other}")
    return last


def prepare(path: Path) -> None:
    """The file before the first write."""
    with path.open("wb") as file:
        for block in range(BLOCKS):
            file.write(content(0, block))
        file.flush()
        os.fsync(file.fileno())


def work(path: Path, noted: Path, seed: int, pace: float) -> None:
    """Write until told to end; a failed call ends it with a traceback."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    with path.open("r+b", buffering=0) as file, noted.open("ab", buffering=0) as log:
        number = max((note.number for note in notes(noted)), default=0)
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            number += 1
            block = block_of(seed, number)
            data = content(number, block)
            began = time.monotonic()
            os.pwrite(file.fileno(), data, block * BLOCK_BYTES)
            os.fsync(file.fileno())
            log.write(NOTE.pack(number, began, time.monotonic() - began))
            due = max(due + 1 / pace, time.monotonic())


if __name__ == "__main__":
    file_, notes_, seed_, pace_ = sys.argv[1:]
    work(Path(file_), Path(notes_), int(seed_), float(pace_))
