"""Roles as the take-overs of the figures make them, for tests of the rules."""

from replication.config import SiteName
from replication.roles import Roles


def after_take_over_at_sync(old: Roles, received_sequence: int, now_ns: int) -> Roles:
    """Figure 10: the sync site writes, the async site follows it; the primary is away."""
    return Roles(
        epoch=old.epoch + 1, writer="sync", async_to="async", start_sequence=received_sequence, since=now_ns
    )


def after_take_over_at_async(old: Roles, position: int, now_ns: int, *, follow: SiteName | None) -> Roles:
    """Figure 13 (`follow` None: alone) and figure 14 (`follow` "sync"): the async site writes."""
    return Roles(epoch=old.epoch + 1, writer="async", async_to=follow, start_sequence=position, since=now_ns)
