"""Binary records, each declared once: the code packs with the declaration, `docs/format.md` is held to it."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One field: its name, its struct code (`Q`, `16s`, ...) and what it means."""

    name: str
    code: str
    meaning: str


class Record:
    """A fixed run of fields without padding; little endian unless `order` says `>`."""

    def __init__(self, name: str, *fields: Field, order: str = "<") -> None:
        self.name = name
        self.order = order
        self.fields = fields
        self.struct = struct.Struct(order + "".join(field.code for field in fields))
        self.size = self.struct.size
        RECORDS[name] = self

    def layout(self) -> Iterator[tuple[int, int, Field]]:
        """Offset and size in bytes of each field, in order."""
        offset = 0
        for field in self.fields:
            size = struct.calcsize("<" + field.code)
            yield offset, size, field
            offset += size


RECORDS: dict[str, Record] = {}
"""Every declared record by name, in order of declaration."""
