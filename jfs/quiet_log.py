"""A fault that every request meets is one line in the log now and then, not one for each request."""

import logging
import time
from collections.abc import Callable
from typing import Final

REPEAT_SECONDS: Final = 60.0
MOST_SENTENCES: Final = 64


class QuietLog:
    """Tells a sentence again only `REPEAT_SECONDS` after it was told last."""

    def __init__(self, log: logging.Logger, *, now: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._now = now
        self._told: dict[str, tuple[float, int]] = {}
        """By sentence: when it was told last, and how often it was kept back since."""

    def error(self, sentence: str) -> None:
        """Tell it as an error, with how often it happened since, or count it."""
        self._tell(logging.ERROR, sentence)

    def warning(self, sentence: str) -> None:
        """The same as a warning."""
        self._tell(logging.WARNING, sentence)

    def _tell(self, level: int, sentence: str) -> None:
        now = self._now()
        last, kept_back = self._told.get(sentence, (-REPEAT_SECONDS, 0))
        if now - last < REPEAT_SECONDS:
            self._told[sentence] = (last, kept_back + 1)
            return
        if len(self._told) >= MOST_SENTENCES:
            self._told.clear()
        self._told[sentence] = (now, 0)
        self._log.log(level, "%s%s", sentence, f" ({kept_back} more times since)" if kept_back else "")
