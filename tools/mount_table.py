"""What the kernel says is mounted, without asking any file system."""

import re
from pathlib import Path
from typing import Final

MOUNT_TABLE: Final = Path("/proc/self/mountinfo")
FILE_SYSTEM_TYPE: Final = "fuse.trisite"
OCTAL: Final = re.compile(r"\\([0-7]{3})")


def mount_source(place: str, table: Path = MOUNT_TABLE) -> str | None:
    """The source of the newest trisite mount at the resolved path `place`: the configuration it was given."""
    found = None
    for line in table.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, source = rest.split(" ")[:2]
        if unescape(fields.split(" ")[4]) == place:
            found = unescape(source) if kind == FILE_SYSTEM_TYPE else None
    return found


def type_at(path: str, table: Path = MOUNT_TABLE) -> str:
    """The type of the file system that a resolved path lies in, by the mount table."""
    best, kind = "", ""
    for line in table.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        place = unescape(fields.split(" ")[4])
        inside = place == "/" or path == place or path.startswith(place + "/")
        if inside and len(place) >= len(best):  # of several at one place the last covers the others
            best, kind = place, rest.split(" ")[0]
    return kind


def unescape(field: str) -> str:
    """A field of the table, where blanks and backslashes stand in octal."""
    return OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
