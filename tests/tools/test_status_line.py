"""What `status` says of the far site and the link to it, to people."""

from types import SimpleNamespace
from typing import cast

import pytest

from replication.far_link import FarLinkStatus
from replication.status import QueueStatus, Status
from tools.status import far_link, waiting


@pytest.mark.parametrize(
    ("limit", "compression", "says"),
    [
        (None, "none", ""),
        (1 << 20, "none", "far link: 4 MiB sent, at most 1 MiB a second"),
        (None, "zstd", "far link: 4 MiB sent for 16 MiB (zstd)"),
        (1 << 20, "zstd", "far link: 4 MiB sent for 16 MiB (zstd), at most 1 MiB a second"),
    ],
)
def test_a_link_that_is_limited_or_compressed_has_a_line(
    limit: int | None, compression: str, says: str
) -> None:
    link = FarLinkStatus(
        limit_bytes_per_second=limit,
        compression=compression,  # type: ignore[arg-type]
        raw_bytes=16 << 20,
        wire_bytes=4 << 20,
    )
    assert far_link(cast(Status, SimpleNamespace(far_link=link))) == says
    assert far_link(cast(Status, SimpleNamespace(far_link=None))) == ""


@pytest.mark.parametrize(
    ("state", "durable", "older"),
    [
        ("Duplex-Pending", 99, False),
        ("Duplex-Pending", 98, True),
        ("Failure-Suspend", None, False),
        ("Duplex", 98, False),
    ],
)
def test_the_lag_of_the_queue_is_not_all_after_an_overflow(
    state: str, durable: int | None, older: bool
) -> None:
    snapshot = SimpleNamespace(
        writer="primary",
        queue=QueueStatus(entries=2, bytes=8192, oldest_seq=100, newest_seq=101),
        lag_seconds=1.5,
        log=None,
        pairs=[SimpleNamespace(kind="async", target="async", state=state)],
        sites={"async": SimpleNamespace(durable_seq=durable)},
    )
    assert ("the far site is older until that is copied" in waiting(cast(Status, snapshot))) is older


@pytest.mark.parametrize(
    ("writer", "says"),
    [(None, "not known"), ("primary", "not known, the writer does not answer")],
)
def test_a_writer_that_is_not_known_is_not_said_to_be_silent(writer: str | None, says: str) -> None:
    snapshot = SimpleNamespace(writer=writer, queue=None, log=None)
    assert waiting(cast(Status, snapshot)) == f"waiting for the async site: {says}"
