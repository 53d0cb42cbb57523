"""What a program sees on trisite that it would not see on ext4, each with its reason.

The table in docs/posix.md is this one; a test holds them together.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from jfs.xattrs import VALUE_MAX
from tests.posix.world import Outcome

FUSE = "the kernel's FUSE file system decides this; nothing arrives here"
PYFUSE3 = "pyfuse3 has no handler for this request"


@dataclass(frozen=True)
class Difference:
    """Checks whose outcome may differ from that of ext4. In `checks`, `*` stands for anything.

    `ours` is the outcome here, or says of (ours, oracle) whether the difference is the one described.
    """

    checks: tuple[str, ...]
    ours: Outcome | Callable[[Outcome, Outcome], bool]
    sees: str
    reason: str

    def names(self, check: str) -> bool:
        """Is this check one of them?"""
        return any(
            re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), check) is not None
            for pattern in self.checks
        )

    def is_as_described(self, ours: Outcome, oracle: Outcome) -> bool:
        """Is what was seen the difference that the table describes?"""
        return bool(self.ours(ours, oracle)) if callable(self.ours) else ours == self.ours


def _modes_are_stricter(ours: Outcome, oracle: Outcome) -> bool:
    """Every mode that is shown has only bits that it has at the oracle."""
    found, expected = (re.findall(r"0o[0-7]+", repr(outcome)) for outcome in (ours, oracle))
    pairs = [(int(one, 8), int(two, 8)) for one, two in zip(found, expected, strict=True)]
    return all(one & ~two == 0 for one, two in pairs)


def _setgid_stays(ours: Outcome, oracle: Outcome) -> bool:
    return (ours, oracle) == (("ok", "0o2766", "0o2766"), ("ok", "0o766", "0o766"))


def _times(*letters: str) -> Callable[[Outcome, Outcome], bool]:
    return lambda ours, oracle: ours == list(letters)


DIFFERENCES = (
    Difference(
        ("open: a file without a name*",),
        lambda ours, oracle: ours in (("ENOTSUP", "EINVAL", []), 95),
        "open(2) with `O_TMPFILE` fails with EOPNOTSUPP; programs fall back to a named temporary file",
        PYFUSE3,
    ),
    Difference(
        ("linux: fallocate*",),
        (("ENOTSUP", 16_384), 16_384),
        "fallocate(2) fails with EOPNOTSUPP in every mode; posix_fallocate(3) writes the blocks instead",
        PYFUSE3,
    ),
    Difference(
        ("linux: holes are found",),
        [0, 1 << 20],
        "lseek(2) with `SEEK_DATA` and `SEEK_HOLE` takes a file for all data; holes still take no room "
        "and read as zeros",
        PYFUSE3,
    ),
    Difference(
        ("linux: ioctl for the*",),
        ("ENOTTY", "ENOTTY"),
        "lsattr, chattr and project quotas: ioctl(2) fails with ENOTTY",
        PYFUSE3,
    ),
    Difference(
        ("modes: * by somebody else on 2766",),
        _setgid_stays,
        "setgid on a file that its group may not execute, where it has no effect, stays when somebody "
        "outside the group writes or cuts the file",
        "for FUSE file systems the kernel clears both by the rule that Linux had before 6.2",
    ),
    Difference(
        ("modes: a shared map by *",),
        _modes_are_stricter,
        "setuid and setgid also go when somebody other than root writes through a shared map",
        "they go with the pages that are written back",
    ),
    Difference(
        ("times: a read from the page cache", "times: read at the end*"),
        _times(""),
        "a read that the page cache answers, also one behind the end, leaves the access time alone; "
        "one that needs data from the volume sets it",
        FUSE,
    ),
    Difference(
        ("times: write through a descriptor that also reads",),
        _times("amc"),
        "a write of a part of a page that is not cached may set the access time, if the file is open for "
        "reading too",
        "the kernel reads the page first, and such a read looks like any other",
    ),
    Difference(
        ("times: truncate to the same",),
        _times(""),
        "truncate(2) to the size that the file has sets no time, as POSIX has it",
        FUSE,
    ),
    Difference(
        ("times: setxattr to the same",),
        _times("c"),
        "setting an extended attribute to the value it has sets the change time, as on tmpfs and XFS",
        FUSE,
    ),
    Difference(
        ("times: the times of a pipe",),
        ([""], [""]),
        "what goes through a named pipe leaves the times of its inode alone",
        FUSE,
    ),
    Difference(
        ("times: a time in 1800",),
        -5_364_662_400.0,
        "times may be any that Linux can say, to the nanosecond, as on tmpfs; ext4 ends at 1901 and 2446",
        "seconds have 64 bits",
    ),
    Difference(
        (
            "data: truncate to a size that is*",
            "data: seeking from [SEEK_SET]",
            "data: writes at the end of all*",
        ),
        lambda ours, oracle: "EFBIG" not in repr(ours),
        "a file may be as long as Linux can say, 2^63 - 1 bytes, as on tmpfs; ext4 ends at 16 TiB",
        "file blocks are numbered with 64 bits",
    ),
    Difference(
        ("data: direct writes with an odd*",),
        lambda ours, oracle: "EINVAL" not in repr(ours),
        "`O_DIRECT` takes any offset, length and buffer, as on tmpfs",
        FUSE,
    ),
    Difference(
        ("data: blocks of a new file that is only cut to a length",),
        4096,
        "a new file that is only cut to a length shows one block in `st_blocks` until its next fsync",
        "the kernel asks the same before a cut as before a write, and a file whose data waits in the page "
        "cache must not look like a hole",
    ),
    Difference(
        ("xattrs: attributes that take more than a block",),
        ({"ok"}, 10),
        f"extended attributes of a file may be as many as listxattr(2) can return; one value takes up to "
        f"{VALUE_MAX:,} bytes",
        "they are items of the tree",
    ),
)

# Where tmpfs, as the oracle, is not what Linux users mean by a local file system.
OF_TMPFS = ("data: a map of a hole", "times: read of nothing", "xattrs: a value of four thousand bytes")


def difference(check: str) -> Difference | None:
    """The entry of the table that names a check."""
    for entry in DIFFERENCES:
        if entry.names(check):
            return entry
    return None


def page() -> str:
    """The table as it stands in docs/posix.md."""
    lines = ["| what a program sees here | why |", "|---|---|"]
    lines += [f"| {entry.sees} | {entry.reason} |" for entry in DIFFERENCES]
    return "\n".join(lines) + "\n"
