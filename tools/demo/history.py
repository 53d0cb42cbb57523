"""A history whose every state is known: step n follows from n alone, so any prefix of it can be made again.

It is what shows that the far site is an exact earlier state: the directory must be what it was after some
step, with at most the one step that was under way in part.
"""

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tools.demo.ledger import digest

SEED: Final = 22
NAMES: Final = 40
LARGEST: Final = 60_000
UNFINISHED: Final = ".fresh"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step: write the whole file `name`, rename it to `target`, or remove it; size of what is written."""

    number: int
    kind: str
    name: str
    target: str = ""
    size: int = 0


def content(number: int, size: int) -> bytes:
    """What step `number` writes."""
    return hashlib.shake_128(b"step %d" % number).digest(size)


def steps() -> Iterator[Step]:
    """The endless history, the same at every call."""
    chance = random.Random(SEED)
    there: set[str] = set()
    number = 0
    while True:
        number += 1
        name = f"n{chance.randrange(NAMES):02d}"
        draw = chance.random()
        if name in there and draw < 0.15:
            there.discard(name)
            yield Step(number=number, kind="remove", name=name)
        elif name in there and draw < 0.35:
            target = f"n{chance.randrange(NAMES):02d}"
            if target == name:
                target = f"{name}-moved"
            there.discard(name)
            there.add(target)
            yield Step(number=number, kind="rename", name=name, target=target)
        else:
            there.add(name)
            yield Step(number=number, kind="write", name=name, size=chance.randrange(LARGEST))


def perform(step: Step, directory: Path) -> None:
    """Do a step and return when it is durable. Doing it again after a half-done one is right."""
    path = directory / step.name
    if step.kind == "write":
        # A new file takes the place of the old one at once: a half-done step leaves the old content whole.
        fresh = directory / UNFINISHED
        with fresh.open("wb") as file:
            file.write(content(step.number, step.size))
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    elif step.kind == "rename":
        if path.exists():
            path.rename(directory / step.target)
    else:
        path.unlink(missing_ok=True)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def matching_step(directory: Path, least: int, most: int) -> int | None:
    """The newest step from `least` to `most` after which the directory was as it is now; None for none."""
    found = {path.name: digest(path.read_bytes()) for path in directory.iterdir() if path.name != UNFINISHED}
    state: dict[str, str] = {}
    matching = 0 if least == 0 and not found else None
    for step in steps():
        if step.number > most:
            return matching
        if step.kind == "write":
            state[step.name] = digest(content(step.number, step.size))
        elif step.kind == "rename":
            state[step.target] = state.pop(step.name)
        else:
            del state[step.name]
        if step.number >= least and state == found:
            matching = step.number
    raise AssertionError("unreachable: the history has no end")
