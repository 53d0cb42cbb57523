"""How a number of bytes is said to a person, the same in every sentence; JSON has the bytes themselves."""

from typing import Final

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(count: int) -> str:
    """A number of bytes as a person reads it: 8 GiB, 1.5 MiB, 12 B."""
    value = float(count)
    for unit in UNITS:
        if abs(value) < 1024 or unit == UNITS[-1]:
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit takes any value")
