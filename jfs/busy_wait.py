"""Whether a wait stays awake for a moment before it sleeps.

To wake a sleeping process costs more than a short request itself: 15 microseconds and more, and where the
processor went to sleep as well, as an idle one of a virtual machine does, some 50 to 100. A wait that most
likely ends within moments stays awake instead and looks again and again. In between it offers the processor
to whoever waits for this very one, and where more want to run than there are processors it sleeps at once.
"""

import os
from contextlib import suppress
from typing import Final

__all__ = ["BusyWait", "Processors"]

LOAD: Final = "/proc/loadavg"
FIRST_SECONDS: Final = 20e-6
"""The shortest time worth staying awake for."""
PAUSE_SECONDS: Final = 0.005
"""Where too many want to run, waits sleep at once for so long: to ask costs 4 microseconds."""
CROWDED_SECONDS: Final = 300e-6
"""Who offers the processor to others and has it back only after this has met somebody who computes."""
PAUSE_FACTOR: Final = 30
"""So many times as long as they had it the next waits sleep at once: what was lost is a thirtieth at most."""


class BusyWait:
    """One kind of wait: what it waits for comes at about the same pace.

    While waits end within `most_seconds` the time to stay awake doubles up to that; each wait that takes
    longer halves it. So who has nothing to wait for soon is asleep after a few waits.
    """

    def __init__(self, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self.awake_seconds = 0.0
        """How long the next wait may stay awake."""
        self.asleep_until = 0.0
        """Until then waits sleep at once, and are not told of."""

    def ended(self, seconds: float) -> None:
        """A wait took so long in all."""
        if seconds > self._most_seconds:
            self.awake_seconds = self.awake_seconds / 2 if self.awake_seconds > FIRST_SECONDS else 0.0
        elif seconds > self.awake_seconds:
            self.awake_seconds = min(max(2 * self.awake_seconds, FIRST_SECONDS), self._most_seconds)

    def crowded(self, now: float, seconds: float) -> None:
        """A wait that would stay awake found too many who want to run: for so long the next ones sleep."""
        self.asleep_until = now + seconds


class Processors:
    """Whether the processors of this machine have little to do just now."""

    def __init__(self) -> None:
        self._count = len(os.sched_getaffinity(0))
        self._file = -1
        if self._count > 1:
            with suppress(OSError):
                self._file = os.open(LOAD, os.O_RDONLY | os.O_CLOEXEC)

    def are_enough(self) -> bool:
        """At most one more runs, or could run, than there are processors: of those who talk to each other one
        is always about to sleep. False with a single one, or where the host does not tell.
        """
        if self._file < 0:
            return False
        running = os.pread(self._file, 100, 0).partition(b"/")[0].rpartition(b" ")[2]
        return int(running) <= self._count + 1
