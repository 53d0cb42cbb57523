"""`python -m tools.bench.relay LISTEN_PORT HOST PORT`: a line with a delay, for measurements on one machine.

Every byte comes out half a round trip after it went in, both ways; any number of bytes are under way at once.
A number on standard input sets the round trip from there on, in ms; the end of it ends the relay.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

PORTION_BYTES: Final = 1 << 18
UNDER_WAY_BYTES: Final = 64 << 20
"""A line of 100 ms holds that much at 600 MB/s."""

LATE_SECONDS: Final = 0.002
"""So much a timer may be late; from then on the clock is watched."""


class Line:
    """What both directions have in common."""

    one_way_seconds = 0.0


async def carry(line: Line, source: trio.SocketStream, target: trio.SocketStream) -> None:
    """One direction of one connection, until it ends."""
    send, receive = trio.open_memory_channel[tuple[float, bytes]](UNDER_WAY_BYTES // PORTION_BYTES)

    async def take() -> None:
        async with send:
            async for data in source:
                await send.send((trio.current_time() + line.one_way_seconds, bytes(data)))

    async def give() -> None:
        async with receive:
            async for due, data in receive:
                await trio.sleep_until(due - LATE_SECONDS)
                while trio.current_time() < due:
                    await trio.lowlevel.checkpoint()
                await target.send_all(data)
        await target.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        nursery.start_soon(give)


async def serve(line: Line, host: str, port: int, stream: trio.SocketStream) -> None:
    """One connection."""
    try:
        async with stream, await trio.open_tcp_stream(host, port) as target, trio.open_nursery() as nursery:
            nursery.start_soon(carry, line, stream, target)
            nursery.start_soon(carry, line, target, stream)
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # one end is gone, so the other has to go


async def run(listen_port: int, host: str, port: int) -> None:
    """Relay until standard input ends."""
    line = Line()
    async with trio.open_nursery() as nursery:
        listen = partial(trio.serve_tcp, partial(serve, line, host, port), listen_port, host="127.0.0.1")
        await nursery.start(listen)
        print("ready", flush=True)
        while text := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            line.one_way_seconds = float(text) / 2e3
            print("set", flush=True)
        nursery.cancel_scope.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    listen_port, host, port = arguments if arguments is not None else sys.argv[1:]
    trio.run(run, int(listen_port), host, int(port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
