"""Entries that C has and a killed mount process did not mark."""

import pytest
from msgspec.structs import replace

from replication.leftovers import acknowledged
from replication.roles import Roles

ROLES = Roles(epoch=3, writer="primary", sync_to="sync", async_to="async")


@pytest.mark.parametrize(
    ("theirs", "received", "newest", "through"),
    [
        (ROLES, 7, 9, 7),
        (ROLES, 12, 9, 9),
        (ROLES, None, 9, 0),
        (None, 7, 9, 0),
        (replace(ROLES, epoch=4), 7, 9, 0),
        (replace(ROLES, epoch=2), 7, 9, 0),
    ],
)
def test_only_what_the_sync_site_of_this_epoch_says_counts(
    theirs: Roles | None, received: int | None, newest: int, through: int
) -> None:
    assert acknowledged(ROLES, theirs, received, newest) == through
