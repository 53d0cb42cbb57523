"""Check and repair of a volume: `check` reads only, `repair` makes one atomic change of everything it can.

Both work on the state that a mount would see: the tree of the last checkpoint, and the log replayed over it
in memory. What they find is data; see `docs/fsck.md` for the codes.
"""

from jfs.device import BlockDevice
from jfs.fsck_codes import CODES, Code, Finding
from jfs.fsck_examine import Collector, examine
from jfs.fsck_repair import repair
from jfs.fsck_volume import Progress, open_volume

__all__ = ["CODES", "Code", "Finding", "Progress", "check", "repair"]


def check(device: BlockDevice, progress: Progress | None = None) -> list[Finding]:
    """Everything that is wrong with the volume on a device, without writing; an empty list if nothing is.

    `progress` hears the fraction done (0 to 1) and what is being looked at. DeviceError if the device
    cannot be read; damage of any kind is a finding and not an error.
    """
    collector = Collector()
    superblocks, opened = open_volume(device)
    collector.add(superblocks.faults)
    if opened is not None:
        collector.add(opened.faults)
        examine(opened, progress or _unheard, collector.add)
    return collector.findings()


def _unheard(_fraction: float, _phase: str) -> None:
    """Nobody wants to hear of progress."""
