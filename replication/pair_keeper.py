"""Puts the state of a pair on record as it changes, also where the host refuses for a while."""

import logging
from collections.abc import Callable
from typing import Final

import trio

from replication.pair import Pair
from replication.state import StateError

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0


class PairKeeper:
    """What is told of every change of a pair. A full disk must not end the copy, nor the process.

    What could not be kept is tried again until it is there; of several changes the newest counts.
    """

    def __init__(self, keep: Callable[[Pair], None]) -> None:
        """`keep` puts a state on record, StateError where the host refuses."""
        self._keep = keep
        self._waiting: Pair | None = None
        self._refused = trio.Event()
        self._trouble = ""

    def __call__(self, pair: Pair) -> None:
        """The pair is in this state now."""
        self._waiting = pair
        self._try(pair)

    def _try(self, pair: Pair) -> None:
        try:
            self._keep(pair)
        except StateError as error:
            if str(error) != self._trouble:
                log.warning("the %s pair is %s, which is not on record: %s", pair.kind, pair.state, error)
            self._trouble = str(error)
            self._refused.set()
        else:
            self._waiting, self._trouble = None, ""

    async def run(self) -> None:
        """Try again, until cancelled."""
        while True:
            await self._refused.wait()
            self._refused = trio.Event()
            while self._waiting is not None:
                await trio.sleep(RETRY_SECONDS)
                if self._waiting is not None:
                    self._try(self._waiting)
