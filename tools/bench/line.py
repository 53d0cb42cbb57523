"""A line with a delay in front of a site, and how long it really takes."""

import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final

ECHOES: Final = 21
MESSAGE_BYTES: Final = 8192
"""About what an overwrite with fsync sends; the answer is short."""


class Line:
    """A relay process (`tools.bench.relay`) that listens at `port`."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port = port
        self._process = process

    def set_round_trip(self, milliseconds: float) -> None:
        """From now on a byte and its answer take so much longer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{milliseconds}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


@contextmanager
def line_to(host: str, port: int) -> Iterator[Line]:
    """A line to a port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own_port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "tools.bench.relay", str(own_port), host, str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as relay:
        assert relay.stdin is not None
        assert relay.stdout is not None
        try:
            relay.stdout.readline()
            yield Line(relay, own_port)
        finally:
            relay.stdin.close()


def _answer(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting = 0
        while data := connection.recv(1 << 16):
            waiting += len(data)
            while waiting >= MESSAGE_BYTES:
                waiting -= MESSAGE_BYTES
                connection.sendall(b"!")


def round_trip_ms(milliseconds: float) -> float:
    """What a line that is set to `milliseconds` takes from a message to its answer when nobody works: timers
    and hand-overs come on top of what it is set to. The median.
    """
    took = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_answer, args=(listening,), daemon=True).start()
        with line_to("127.0.0.1", listening.getsockname()[1]) as line:
            line.set_round_trip(milliseconds)
            with socket.create_connection(("127.0.0.1", line.port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for _ in range(ECHOES):
                    began = perf_counter()
                    connection.sendall(bytes(MESSAGE_BYTES))
                    connection.recv(1)
                    took.append((perf_counter() - began) * 1e3)
    return statistics.median(took)
