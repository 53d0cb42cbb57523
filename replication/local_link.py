"""daemon.sock: the mount process and the daemon of its site, on one host, in JSON lines over a Unix socket.

mount -> daemon: hello, eligible, reply. daemon -> mount: far, request. Positions are coalesced: only the
newest is sent. Either side may be started again at any time; the mount process reconnects by itself.
"""

import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from replication.backoff import Backoff
from replication.errors import PeerUnreachable, RemoteProtocolError

__all__ = ["LocalClient", "LocalServer"]

MAX_LINE_BYTES: Final = 16 << 20
_RECEIVE_BYTES: Final = 64 * 1024
_FAR_EVERY_SECONDS: Final = 0.02
"""What the far site has is sent at most this often; each position carries everything before it."""
_ELIGIBLE_EVERY_SECONDS: Final = 0.016
"""And what may be shipped this often: after a set the shipper gathers that long, and then looks by itself."""
_CREDENTIALS: Final = struct.Struct("3i")

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class HelloLine(msgspec.Struct, frozen=True, tag_field="kind", tag="hello"):
    """First line of the mount process."""

    pid: int


class EligibleLine(msgspec.Struct, frozen=True, tag_field="kind", tag="eligible"):
    """Entries up to here may be shipped (P1)."""

    sequence: int


class FarLine(msgspec.Struct, frozen=True, tag_field="kind", tag="far"):
    """What the async site has, as it acknowledged to the daemon."""

    epoch: int
    durable_sequence: int
    applied_sequence: int


class RequestLine(msgspec.Struct, frozen=True, tag_field="kind", tag="request"):
    """The daemon asks the mount process: status, marker {ranges, leaf_bytes}, finish."""

    id: int
    method: str
    params: dict[str, Any] = {}


class ReplyLine(msgspec.Struct, frozen=True, tag_field="kind", tag="reply"):
    """The answer: a result, or one sentence that says why there is none."""

    id: int
    result: Any = None
    error: str | None = None


Line = HelloLine | EligibleLine | FarLine | RequestLine | ReplyLine
_DECODER: Final = msgspec.json.Decoder(Line)


def decode_line(line: bytes | bytearray) -> Line:
    """A line of daemon.sock. RemoteProtocolError: it is none."""
    try:
        found: Line = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a line on daemon.sock that cannot be read: {error}") from error
    return found


class RequestFailed(Exception):
    """The mount process could not do what was asked; one sentence."""


class _Connection:
    """One connection: reads lines; writes them in order, positions coalesced."""

    def __init__(self, stream: trio.SocketStream, every_seconds: float = 0.0) -> None:
        """Positions are sent no more often than `every_seconds`."""
        self._stream = stream
        self._every_seconds = every_seconds
        self._buffer = bytearray()
        self._queue: deque[Line] = deque()
        self._position: Line | None = None
        self._wake = trio.Event()

    def put(self, line: Line) -> None:
        """Send a line as soon as possible."""
        self._queue.append(line)
        self._wake.set()

    def put_position(self, line: Line) -> None:
        """Send this position, unless a newer one replaces it first."""
        self._position = line
        self._wake.set()

    async def write(self) -> None:
        """Send what was put, until cancelled. Raises trio.BrokenResourceError or ClosedResourceError."""
        while True:
            if not self._wake.is_set():
                await self._wake.wait()
            self._wake = trio.Event()
            lines = list(self._queue)
            self._queue.clear()
            position, self._position = self._position, None
            if position is not None:
                lines.append(position)
            await self._stream.send_all(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            if position is not None and self._every_seconds:
                await trio.sleep(self._every_seconds)

    async def read(self) -> list[Line]:
        """The lines that have arrived; none at the end. RemoteProtocolError for what is no such line."""
        while True:
            data = await self._stream.receive_some(_RECEIVE_BYTES)
            if not data:
                return []
            self._buffer += data
            if b"\n" not in data:
                if len(self._buffer) > MAX_LINE_BYTES:
                    raise RemoteProtocolError(f"a line of more than {MAX_LINE_BYTES} bytes on daemon.sock")
                continue
            *whole, rest = self._buffer.split(b"\n")
            self._buffer = rest
            return [decode_line(line) for line in whole]

    async def close(self) -> None:
        """Close the socket."""
        await trio.aclose_forcefully(self._stream)


class LocalServer:
    """The daemon's end. One mount process at a time; a newer one replaces the older."""

    def __init__(
        self,
        path: Path,
        *,
        on_eligible: Callable[[int], None],
        on_mount: Callable[[int | None], None] | None = None,
        on_fault: Callable[[str], None] | None = None,
    ) -> None:
        """`on_mount` is told the process id of the mount process, None when it is gone.

        `on_fault` is told, in a sentence, why a connection was dropped.
        """
        self._path = path
        self._on_eligible = on_eligible
        self._on_mount = on_mount
        self._on_fault = on_fault
        self._lines: _Connection | None = None
        self._far: FarLine | None = None
        self._requests: dict[int, trio.Event] = {}
        self._replies: dict[int, ReplyLine] = {}
        self._number = 0
        self.mount_pid: int | None = None
        """Process id of the connected mount process, as the kernel says; None without one."""

    def far(self, epoch: int, durable_sequence: int, applied_sequence: int) -> None:
        """Tell the mount process, this one and any later one, what the async site has. Never waits."""
        self._far = FarLine(epoch, durable_sequence, applied_sequence)
        if self._lines is not None:
            self._lines.put_position(self._far)

    async def request(
        self, method: str, params: dict[str, Any] | None = None, *, timeout_seconds: float = 10.0
    ) -> Any:  # noqa: ANN401 - the result of a method is JSON
        """Ask the mount process. PeerUnreachable: none there, or no answer; RequestFailed: it cannot."""
        lines = self._lines
        if lines is None:
            raise PeerUnreachable("no mount process is connected to the daemon of this site")
        self._number += 1
        number = self._number
        answered = self._requests[number] = trio.Event()
        try:
            lines.put(RequestLine(number, method, params or {}))
            with trio.move_on_after(timeout_seconds):
                await answered.wait()
            reply = self._replies.pop(number, None)
        finally:
            del self._requests[number]
            self._replies.pop(number, None)
        if reply is None:
            raise PeerUnreachable(f"the mount process did not answer {method!r}")
        if reply.error is not None:
            raise RequestFailed(reply.error)
        return reply.result

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. OSError when the socket cannot be made. The caller holds daemon.lock."""
        self._path.unlink(missing_ok=True)
        listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _Address(self._path) as address:
                await listening.bind(address)
            self._path.chmod(0o600)
            listening.listen(8)
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    accepted, _ = await listening.accept()
                    nursery.start_soon(self._serve, accepted)
        finally:
            listening.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, accepted: trio.socket.SocketType) -> None:
        pid, user = _peer(accepted)
        stream = trio.SocketStream(accepted)
        lines = _Connection(stream, _FAR_EVERY_SECONDS)
        try:
            if user not in (0, os.getuid()):
                raise RemoteProtocolError(f"user {user} may not use daemon.sock")
            await _while_writing(lines, lambda _: self._converse(lines, pid))
        except RemoteProtocolError as error:
            if self._on_fault is not None:
                self._on_fault(str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the mount process was killed: said below, like any other end
        finally:
            with trio.CancelScope(shield=True):
                await lines.close()
            if self._lines is lines:
                self._lines = self.mount_pid = None
                for answered in self._requests.values():
                    answered.set()
                if self._on_mount is not None:
                    self._on_mount(None)

    async def _converse(self, lines: _Connection, pid: int) -> None:
        while batch := await lines.read():
            for line in batch:
                if isinstance(line, HelloLine) and self._lines is not lines:
                    await self._greeted(lines, pid)
                elif self._lines is not lines:
                    raise RemoteProtocolError("a line before hello on daemon.sock")
                elif isinstance(line, EligibleLine):
                    self._on_eligible(line.sequence)
                elif isinstance(line, ReplyLine):
                    if line.id in self._requests:
                        self._replies[line.id] = line
                        self._requests[line.id].set()
                else:
                    raise RemoteProtocolError("a line on daemon.sock that only the daemon sends")

    async def _greeted(self, lines: _Connection, pid: int) -> None:
        old, self._lines, self.mount_pid = self._lines, lines, pid
        if old is not None:
            await old.close()
        if self._far is not None:
            lines.put_position(self._far)
        if self._on_mount is not None:
            self._on_mount(pid)


class LocalClient:
    """The mount process's end. `run` keeps it connected; positions said meanwhile are sent when it is."""

    def __init__(
        self,
        path: Path,
        *,
        on_far: Callable[[int, int, int], None],
        handlers: Mapping[str, Handler],
        seed: int = 0,
    ) -> None:
        """`on_far(epoch, durable, applied)`. `handlers` answer requests by method.

        A handler's result must be JSON; what it raises is sent back as a sentence.
        """
        self._path = path
        self._on_far = on_far
        self._handlers = handlers
        self._backoff = Backoff(seed, longest_seconds=1.0)
        self._eligible: EligibleLine | None = None
        self._lines: _Connection | None = None

    @property
    def connected(self) -> bool:
        """Whether the daemon is there."""
        return self._lines is not None

    def eligible(self, sequence: int) -> None:
        """Tell the daemon that entries up to `sequence` may be shipped. Never waits."""
        self._eligible = EligibleLine(sequence)
        if self._lines is not None:
            self._lines.put_position(self._eligible)

    async def run(self) -> None:
        """Connect, and again whenever the connection ends, until cancelled."""
        while True:
            # No daemon, or one that was stopped: tried again below.
            with contextlib.suppress(
                OSError, trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError
            ):
                await self._connect_once()
            await trio.sleep(self._backoff.failed())

    async def _connect_once(self) -> None:
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _Address(self._path) as address:
                await sock.connect(address)
        except BaseException:
            sock.close()
            raise
        lines = _Connection(trio.SocketStream(sock), _ELIGIBLE_EVERY_SECONDS)
        try:
            lines.put(HelloLine(os.getpid()))
            if self._eligible is not None:
                lines.put_position(self._eligible)
            self._lines = lines
            await _while_writing(lines, lambda nursery: self._listen(lines, nursery))
        finally:
            self._lines = None
            with trio.CancelScope(shield=True):
                await lines.close()

    async def _listen(self, lines: _Connection, nursery: trio.Nursery) -> None:
        while batch := await lines.read():
            self._backoff.succeeded()
            for line in batch:
                if isinstance(line, FarLine):
                    self._on_far(line.epoch, line.durable_sequence, line.applied_sequence)
                elif isinstance(line, RequestLine):
                    nursery.start_soon(self._answer, lines, line)
                else:
                    raise RemoteProtocolError("a line on daemon.sock that only a mount sends")

    async def _answer(self, lines: _Connection, line: RequestLine) -> None:
        handler = self._handlers.get(line.method)
        if handler is None:
            lines.put(ReplyLine(line.id, error=f"the mount process does not know {line.method[:40]!r}"))
            return
        try:
            result = await handler(line.params)
        except Exception as error:
            lines.put(ReplyLine(line.id, error=str(error) or type(error).__name__))
        else:
            lines.put(ReplyLine(line.id, result=result))


async def _while_writing(lines: _Connection, body: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    """Run the body and the writer together; both end with the connection, the body's failure comes out."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            try:
                await lines.write()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                nursery.cancel_scope.cancel()

        nursery.start_soon(write)
        try:
            await body(nursery)
        except (RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Address:
    """A name for a Unix socket that is short enough (108 bytes) however deep the site directory is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = -1

    def __enter__(self) -> str:
        self._directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{self._path.name}"

    def __exit__(self, *exception: object) -> None:
        os.close(self._directory)


def _peer(sock: trio.socket.SocketType) -> tuple[int, int]:
    """Process and user id of the other end, as the kernel knows them."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(raw)
    return pid, user
