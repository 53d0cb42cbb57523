"""What `status` says of the far link, to people."""

from types import SimpleNamespace
from typing import cast

import pytest

from replication.far_link import FarLinkStatus
from replication.status import Status
from tools.status import far_link


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
