"""How a store is told to behave, and what it tells."""

from dataclasses import dataclass, field

from jfs.checkpoint import LEAVES_LIMIT
from jfs.coverage import CoveragePolicy
from jfs.replay import DEFAULT_CACHE_BYTES

COARSEN = "coarsen"
WAIT = "wait"


@dataclass(frozen=True)
class StoreOptions:
    """How a store behaves. `epoch` is written with the next superblock if it is a higher one."""

    commit_seconds: float = 1.0  # a change is on its way to the disks at most this long after it was made
    idle_checkpoint_seconds: float = 3.0
    linger_seconds: float = 2.0
    on_log_full: str = COARSEN  # or WAIT: commits wait for the far site rather than name files less precisely
    checkpoint_bytes: int = 16 << 20  # of log, between two checkpoints; at most a quarter of the log's limit
    overlay_items: int = 200_000
    overlay_bytes: int = 32 << 20
    merge_leaves: int = LEAVES_LIMIT  # of the new tree, in memory at once
    pending_items: int = 20_000
    pending_bytes: int = 4 << 20
    cache_bytes: int = DEFAULT_CACHE_BYTES
    epoch: int = 0
    coverage_policy: CoveragePolicy = field(default_factory=CoveragePolicy)


@dataclass(frozen=True)
class LogStatus:
    """What the log names now, the bytes from its tail to its end, and the size it may grow to."""

    files: int
    bytes: int
    capacity_bytes: int


@dataclass(frozen=True)
class Statistics:
    """For statfs, in blocks of 4096 bytes. Blocks freed since the last commit count as free."""

    total_blocks: int
    free_blocks: int
    available_blocks: int
    inodes: int
