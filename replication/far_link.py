"""The link to the far site, as the operator limits it and as it is used: one for all connections over it."""

from typing import Final, Literal

import msgspec
import trio

Compression = Literal["none", "zstd"]

LEAST_PORTION_BYTES: Final = 16 << 10
"""No portion is smaller, however narrow the link: it would cost more than it is worth."""


class FarLinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The far link as configured, and what a daemon sent over it since it began to write or was started:
    frames of sets and of questions before compression, and as they went to the connection.
    """

    limit_bytes_per_second: int | None
    compression: Compression
    raw_bytes: int
    wire_bytes: int


class FarLink:
    """Spends the bytes a second that there are, and counts. Without a limit nobody waits.

    Only what goes to the far site in sets, and the questions of a copy, is paced, and before it is handed to
    the connection: keep-alive, acknowledgements, refusals and control requests never stand behind it.
    """

    def __init__(self, limit_bytes_per_second: int | None = None, compression: Compression = "none") -> None:
        self.limit_bytes_per_second = limit_bytes_per_second
        self.compression: Compression = compression
        self._raw_bytes = self._wire_bytes = 0
        self._free_at = 0.0

    async def pace(self, raw_bytes: int, wire_bytes: int) -> None:
        """Wait until so much may be sent, and count it. By trio's clock, which knows no jumps."""
        self._raw_bytes += raw_bytes
        self._wire_bytes += wire_bytes
        if self.limit_bytes_per_second is None:
            return
        start = max(trio.current_time(), self._free_at)
        self._free_at = start + wire_bytes / self.limit_bytes_per_second
        await trio.sleep_until(start)

    def portion(self, seconds: float, most: int) -> int:
        """What the limit lets through in `seconds`, at most `most` bytes, in whole blocks."""
        if self.limit_bytes_per_second is None:
            return most
        wanted = int(self.limit_bytes_per_second * seconds) // 4096 * 4096
        return min(most, max(LEAST_PORTION_BYTES, wanted))

    def status(self) -> FarLinkStatus:
        """How it is configured and what went over it."""
        return FarLinkStatus(
            limit_bytes_per_second=self.limit_bytes_per_second,
            compression=self.compression,
            raw_bytes=self._raw_bytes,
            wire_bytes=self._wire_bytes,
        )
