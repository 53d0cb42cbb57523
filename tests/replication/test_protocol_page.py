"""docs/protocol.md says what the code does: every field, number, flag and limit."""

import re
import struct
from pathlib import Path

from replication import bodies, local_link, messages, packing
from replication.bodies import BODY_FIELDS, SetKind
from replication.frames import HEADER_FIELDS, MAX_BODY_BYTES, PROTOCOL_VERSION, FrameType
from replication.messages import PURPOSES, Hello, RefusalCode, Refused, Reply, Request, Welcome
from replication.roles import Roles

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table that has this heading row."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def test_the_header() -> None:
    at, expected = 0, []
    for name, code, meaning in HEADER_FIELDS:
        size = struct.calcsize(">" + code)
        expected.append([str(at), str(size), f"`{name}`", meaning])
        at += size
    assert rows("| at | bytes | field | meaning |") == expected


def test_the_types_and_their_bodies() -> None:
    found = {}
    for number, name, fixed, _ in rows("| number | type | fixed fields (bytes) | then |"):
        found[(int(number), name)] = re.findall(r"(\w+) \((\d+)\)", fixed)
    expected = {
        (int(kind), kind.name): [
            (name, str(struct.calcsize(">" + code))) for name, code in BODY_FIELDS.get(kind, ())
        ]
        for kind in FrameType
    }
    assert found == expected


def test_flags_kinds_and_limits() -> None:
    for _, number, name, _ in rows("| type | flag | name | meaning |"):
        assert getattr(bodies, name) == int(number)
    named = {name for _, _, name, _ in rows("| type | flag | name | meaning |")}
    assert named == {n for n in vars(bodies) if re.match(r"(WRITE|COPY|RECEIVED|FLUSH|POSITION)_", n)}
    kinds = ", ".join(f"{number} {kind}" for number, kind in enumerate(SetKind))
    assert kinds in PAGE
    assert f"Protocol version: **{PROTOCOL_VERSION}**" in PAGE
    limits = (MAX_BODY_BYTES, messages.MAX_JSON_BYTES, local_link.MAX_LINE_BYTES, packing.UNPACKED_BYTES_MAX)
    for limit in limits:
        assert f"{limit} bytes" in PAGE or f"{limit}\n" in PAGE or f"\n{limit} bytes" in PAGE


def test_the_json_messages() -> None:
    for struct_type, name in ((Hello, "HELLO"), (Welcome, "WELCOME"), (Refused, "REFUSED")):
        start = PAGE.index(f"* {name}:")
        text = PAGE[start : PAGE.index("\n* ", start)]
        assert set(struct_type.__struct_fields__) <= set(re.findall(r"`([\w-]+)`", text)), name
    roles = PAGE[PAGE.index("* `roles`:") :].splitlines()[0]
    assert set(re.findall(r"`(\w+)`", roles)) == {"roles", *Roles.__struct_fields__}
    refused = PAGE[PAGE.index("* REFUSED:") : PAGE.index("* `roles`:")]
    assert set(RefusalCode) <= set(re.findall(r"`([\w-]+)`", refused))
    hello = PAGE[PAGE.index("* HELLO:") : PAGE.index("* WELCOME:")]
    assert set(re.findall(r"`([\w-]+)`", hello)) >= PURPOSES
    assert f"REQUEST `{{{', '.join(Request.__struct_fields__)}}}`" in PAGE
    assert f"REPLY `{{{', '.join(Reply.__struct_fields__)}}}`" in PAGE


def test_the_lines_of_daemon_sock() -> None:
    lines = (
        local_link.HelloLine,
        local_link.EligibleLine,
        local_link.FarLine,
        local_link.RequestLine,
        local_link.ReplyLine,
    )
    for line in lines:
        kind = line.__struct_config__.tag
        assert f"`{kind} {{{', '.join(line.__struct_fields__)}}}`" in PAGE
