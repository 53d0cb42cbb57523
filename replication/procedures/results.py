"""What a procedure says: the steps while it runs, and the typed result with the published JSON fields."""

from typing import Literal

import msgspec

from replication.config import SiteName
from replication.roles import iso_text


class ProcedureRefused(Exception):
    """A procedure will not do this: one sentence with the reason and the way out.

    `code` is the exit status: 1 the state does not allow it, 3 a site was told to go on and whether it did is
    not known, 4 a needed site cannot be reached, 5 it could lose acknowledged data and was not told to accept
    that.
    """

    def __init__(self, sentence: str, code: Literal[1, 3, 4, 5] = 1) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code


class StepEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of progress: `number` of `total`, and what happened to the step."""

    number: int
    total: int
    name: str
    sentence: str
    cost: str
    status: Literal["planned", "started", "progress", "done", "already done", "pending"]
    seconds: float = 0.0
    detail: str = ""


class FailoverResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a take-over (figures 10, 13, 14, 22), with the fields of `failover --json`.

    `lost` is the number of acknowledged operations known missing: 0 when nothing is missing, proven; None
    when no surviving site can know. `bytes_copied` travelled in the recovery copy, `recovery` is how it went.
    Where the volume goes on with an earlier state (figure 13), `as_of` is of when that is (nothing written
    later had arrived), as ISO 8601 in UTC, and `behind_seconds` how long before the take-over (with `--plan`:
    before now); None where nothing is missing, or where the site does not know it.
    """

    writer: SiteName
    epoch: int
    files_listed: int
    bytes_listed: int
    bytes_copied: int
    lost: int | None
    seconds: float
    sequence: int
    recovery: Literal["done", "pending", "not needed"]
    lost_sentence: str
    as_of: str | None = None
    behind_seconds: float | None = None
    steps: list[StepEvent]


def as_of_fields(as_of_ns: int, then_ns: int, lost: int | None) -> tuple[str | None, float | None]:
    """`as_of` and `behind_seconds` of a result; none where nothing is missing or nothing is known."""
    if not as_of_ns or lost == 0:
        return None, None
    return iso_text(as_of_ns), round(max(0, then_ns - as_of_ns) / 1e9, 3)


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """What one returning site alone had: how much, and the directory on its machine where it is kept."""

    site: SiteName
    path: str
    bytes: int


class FailbackResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a return (figures 11 and 15), with the fields of `failback --json`.

    `quarantines` names what every returning site alone had. `quarantine` is the first of these directories,
    or None; `quarantined_bytes` are those of all.
    """

    writer: SiteName
    epoch: int
    bytes_copied: int
    seconds: float
    sequence: int
    quarantine: str | None
    quarantined_bytes: int
    quarantines: list[Quarantined] = []
    steps: list[StepEvent]


class ListedFileReport(msgspec.Struct, frozen=True, kw_only=True):
    """One file that the metadata log names: what a recovery copy must look at, and why."""

    inode: int
    path: str | None
    ranges: list[tuple[int, int]]
    bytes: int
    why: str


class RecoverResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the log names (figure 22, recovery (1) and (2)); `bytes_copied` None when only listed.

    `bytes_listed` is all that a recovery copy looks at: `file_bytes` in ranges of the files, `log_bytes` of
    the log area with the superblocks, which is always looked at, and what is left in whole regions.
    """

    site: SiteName
    epoch: int
    files: list[ListedFileReport]
    files_listed: int
    bytes_listed: int
    file_bytes: int
    log_bytes: int
    bytes_copied: int | None
    seconds: float
