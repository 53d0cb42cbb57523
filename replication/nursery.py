"""A nursery for a conversation: what runs in it serves the block, and ends with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def serving_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled when the block ends; an exception of the block comes out as it is.

    trio would wrap it in a group, which callers that catch errors by their type would miss.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
