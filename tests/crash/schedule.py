"""A crash schedule: one short string that names a workload, the moment of the power cut and what survived it.

    WORKLOAD:POINT:CHOICE          for example random-22:417:5

WORKLOAD is `random-SEED`, `script-HEX` (the operations themselves, as Hypothesis found them) or `trace-NAME`
(a recorded program). POINT counts the events of the recording (writes, discards, flushes, remarks): the cut
falls before that event. CHOICE numbers the subset of the unflushed writes that survived, and whether a second
crash follows while the volume is being recovered. Everything else is drawn from these three.
"""

import random
from dataclasses import dataclass

SUBSETS = 8
SECOND_EVERY = 3  # every third choice crashes again


@dataclass(frozen=True)
class Schedule:
    """See the module. `str()` and `parse` are each other's opposite."""

    workload: str
    point: int
    choice: int

    def __str__(self) -> str:
        return f"{self.workload}:{self.point}:{self.choice}"

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """ValueError if it is none."""
        try:
            workload, point, choice = text.strip().split(":")
            return cls(workload, int(point), int(choice))
        except ValueError:
            raise ValueError(f"{text!r} is no crash schedule: WORKLOAD:POINT:CHOICE") from None

    @property
    def subset(self) -> int:
        """Which kind of subset survives: see images.survivors."""
        return self.choice % SUBSETS

    @property
    def has_second(self) -> bool:
        """Does another power cut follow?"""
        return self.choice % SECOND_EVERY == 0

    def chance(self) -> random.Random:
        """Where everything else is drawn from."""
        return random.Random(str(self))
