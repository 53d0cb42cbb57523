"""How long to wait before the next attempt: doubling, bounded, with jitter. Pure, decided by the seed."""

import random
from typing import Final

FIRST_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 5.0


class Backoff:
    """The waits between attempts to reach one peer. Jitter keeps several that lost the same peer apart."""

    def __init__(
        self, seed: int, *, first_seconds: float = FIRST_SECONDS, longest_seconds: float = LONGEST_SECONDS
    ) -> None:
        if not 0 < first_seconds <= longest_seconds:
            raise ValueError(f"waits from {first_seconds} s to {longest_seconds} s make no sense")
        self._random = random.Random(seed)
        self._first = first_seconds
        self._longest = longest_seconds
        self._attempts = 0

    @property
    def attempts(self) -> int:
        """Failed attempts in a row."""
        return self._attempts

    def failed(self) -> float:
        """An attempt failed: the seconds to wait, between half and all of first * 2**failures, bounded."""
        # The exponent is bounded too: a site may be away for weeks.
        whole = min(self._longest, self._first * 2.0 ** min(self._attempts, 60))
        self._attempts += 1
        return whole * (0.5 + 0.5 * self._random.random())

    def succeeded(self) -> None:
        """An attempt succeeded: the next wait is a short one again."""
        self._attempts = 0
