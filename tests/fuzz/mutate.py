"""Broken inputs from whole ones: bytes and JSON documents."""

import copy
import random
from collections.abc import Sequence
from typing import Any

import msgspec

EDGES = [
    number.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for number in (0, 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, (1 << 8 * size) - 1)
    for order in ("big", "little")
]
"""Numbers at which a field of such a size turns over."""

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**40,
    1.5,
    1e308,
    -0.0,
    "",
    "primary",
    "async",
    "\0",
    "x" * 5000,
    "\ud7ff\U0010ffff",
    "0" * 32,
    [],
    {},
    [[0, 4096]],
    [[0, 4096], [1 << 70, -1]],
    {"epoch": 1},
]


def bytes_from(rng: random.Random, bases: Sequence[bytes]) -> bytes:
    """One of the bases with one to four things wrong with it; now and then nothing but noise."""
    base = bases[int(rng.random() * len(bases))]
    if rng.random() < 0.02:
        return rng.randbytes(int(rng.random() * 200))
    data = bytearray(base)
    for _ in range(int(rng.random() * 4) + 1):
        _break(rng, data, bases)
    return bytes(data)


def _break(rng: random.Random, data: bytearray, bases: Sequence[bytes]) -> None:
    how = int(rng.random() * 10)
    size = len(data)
    at = int(rng.random() * size) if size else 0
    if how < 3 and size:
        data[at] ^= 1 << int(rng.random() * 8)
    elif how < 5 and size:
        data[at] = int(rng.random() * 256)
    elif how == 5:
        edge = EDGES[int(rng.random() * len(EDGES))]
        data[at : at + len(edge)] = edge
    elif how == 6:
        del data[at:]
    elif how == 7:
        del data[at : at + int(rng.random() * 40)]
    elif how == 8:
        other = bases[int(rng.random() * len(bases))]
        place = int(rng.random() * len(other))
        data[at:at] = other[place : place + int(rng.random() * 80)]
    else:
        data += rng.randbytes(int(rng.random() * 40))


def json_from(rng: random.Random, bases: Sequence[bytes]) -> bytes:
    """One of the documents with values exchanged, left out or added, half of the time with broken bytes."""
    if rng.random() < 0.4:
        return bytes_from(rng, bases)
    document = msgspec.json.decode(bases[int(rng.random() * len(bases))])
    for _ in range(int(rng.random() * 3) + 1):
        _exchange(rng, document)
    return msgspec.json.encode(document)


def _exchange(rng: random.Random, document: Any) -> None:  # noqa: ANN401
    inner = document
    while True:
        if not isinstance(inner, dict | list) or not inner:
            return
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = keys[int(rng.random() * len(keys))]
        if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.8:
            inner = inner[key]
            continue
        break
    if rng.random() < 0.1:
        del inner[key]
    else:
        inner[key] = copy.deepcopy(VALUES[int(rng.random() * len(VALUES))])
