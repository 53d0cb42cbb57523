"""How bytes and sites are said to a person, the same in every sentence; JSON has the bytes themselves."""

from collections.abc import Sequence
from typing import Final

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def sites(names: Sequence[str]) -> str:
    """Sites in a sentence: site sync; sites primary and sync; sites primary, sync and async."""
    if len(names) == 1:
        return f"site {names[0]}"
    return f"sites {', '.join(names[:-1])} and {names[-1]}"


def size(count: int) -> str:
    """A number of bytes as a person reads it: 8 GiB, 1.5 MiB, 12 B."""
    value = float(count)
    for unit in UNITS:
        if abs(value) < 1024 or unit == UNITS[-1]:
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit takes any value")
