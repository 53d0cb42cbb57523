"""What a killed mount process left in the queue of the writing site, and the synchronous site has.

An entry is shipped when it is eligible (P1): C has acknowledged it. The mount process marks that a moment
later. Killed in between it leaves acknowledged entries that nobody would ship before the next mount; so the
daemon, while there is no mount, asks C itself.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import DeviceError
from replication.client import ask_site
from replication.control import ControlError, GetStatus
from replication.errors import PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.roles import Roles
from vsap.queue import EntryQueue

if TYPE_CHECKING:
    from replication.site import Site

LOOK_SECONDS: Final = 0.5
ASK_SECONDS: Final = 5.0


def acknowledged(roles: Roles, theirs: Roles | None, received_sequence: int | None, newest: int) -> int:
    """Up to where what is in the queue is at the synchronous site, by its own word; 0 if it says nothing of
    this epoch.
    """
    if theirs != roles or received_sequence is None:
        return 0
    return min(received_sequence, newest)


async def mark_leftovers(site: "Site", queue: EntryQueue, roles: Roles, shipped: Callable[[], None]) -> None:
    """While no mount process is connected, mark eligible what C has; `shipped` is called when that was more.

    Until cancelled. `roles` are those of the epoch in which this site writes, with a synchronous site.
    """
    assert roles.sync_to is not None
    place = site.place
    while True:
        await trio.sleep(LOOK_SECONDS)
        try:
            state = queue.state()
        except DeviceError:
            continue
        if site.link.connected or state.eligible_sequence >= state.next_sequence - 1:
            continue
        try:
            report = await ask_site(
                place.config,
                roles.sync_to,
                GetStatus(),
                ASK_SECONDS,
                caller=place.site,
                roles=roles,
                volume=str(place.volume.uuid),
            )
        except (PeerUnreachable, PeerRefused, RemoteProtocolError, ControlError):
            continue
        through = acknowledged(roles, report.roles, report.received_sequence, state.next_sequence - 1)
        if through > state.eligible_sequence and not site.link.connected:
            with suppress(DeviceError):
                queue.set_eligible(through)
                shipped()
