"""One connection between two sites: with replication/connections.py the only code that touches a socket.

TLS is driven in place: `send_nowait` encrypts into memory and hands the result to the kernel at once, without
a task switch. What the kernel does not take waits in a bounded buffer; `run` writes it, keeps the connection
alive and closes it when the peer is silent. Without TLS only loopback is allowed, and only when asked for.
"""

import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, cast

import trio

from jfs import in_place
from jfs.busy_wait import BusyWait
from replication.errors import (
    ChannelClosed,
    LocalProtocolError,
    PeerRefused,
    PeerUnreachable,
    RemoteProtocolError,
)
from replication.frames import Buffer, Decoder, Frame, FrameType, encode, total_bytes
from replication.keys import Identity

__all__ = ["DEFAULT_SILENCE_SECONDS", "DEFAULT_TIMEOUT_SECONDS", "Channel"]

DEFAULT_TIMEOUT_SECONDS: Final = 10.0
DEFAULT_SILENCE_SECONDS: Final = 5.0
DEFAULT_MAX_OUT_BYTES: Final = 16 << 20
_RECEIVE_BYTES: Final = 256 * 1024
_RECORD_BYTES: Final = 16 * 1024
_JOIN_BYTES: Final = 64 * 1024
"""Frames up to this size are joined before they are encrypted: one record costs less than two. Longer ones
are encrypted so much at a time.
"""
_PROGRESS_BYTES: Final = 4096
"""A peer that sends less than this, and completes no frame, in `silence_seconds` counts as silent."""
_PINGS_PER_SILENCE: Final = 4


_FailureT = TypeVar("_FailureT", bound=PeerUnreachable | PeerRefused | RemoteProtocolError)


class Channel:
    """A connected peer. One task calls `receive`, one runs `run`; any code may call `send_nowait`.

    Once the channel has failed, every method that sends or receives raises the same exception.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        peer: str,
        identity: Identity | None = None,
        server_side: bool = False,
        silence_seconds: float = DEFAULT_SILENCE_SECONDS,
        max_out_bytes: int = DEFAULT_MAX_OUT_BYTES,
    ) -> None:
        """Take over a connected socket. `peer` names it in sentences; `handshake` is still to be called."""
        sock.setblocking(False)
        self.peer = peer
        self.peer_site: str | None = None
        """Site that the peer's certificate names ("operator" for the operator's); None without TLS."""
        self.silence_seconds = silence_seconds
        self.round_trip_seconds: float | None = None
        """Measured by the latest PING that was answered."""
        self._sock = sock
        self._in_place = in_place.current()
        self.busy: BusyWait | None = None
        """Set by who expects the next frame within moments: waits in place may stay awake for it."""
        self._decoder = Decoder()
        self._ready: deque[Frame] = deque()
        self._failure: PeerUnreachable | PeerRefused | RemoteProtocolError | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._identity = identity
        if identity is not None:
            context = identity.server_context if server_side else identity.client_context
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._read_buffer = bytearray(_RECEIVE_BYTES)
        self._read_view = memoryview(self._read_buffer)
        self._plain = bytearray(_RECORD_BYTES)
        self._plain_view = memoryview(self._plain)
        self._out: deque[memoryview] = deque()
        self._out_bytes = 0
        self._max_out_bytes = max_out_bytes
        self._out_wanted = trio.Event()
        self._flush_lock = trio.Lock()
        self._closed = trio.Event()
        self._reading = False
        self._heard = self._sent = False
        self._quiet_bytes = 0
        self._ping_sent_at: tuple[int, float] | None = None

    # --- sending ----------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that send_nowait would still take; 0 or less when the peer is too slow."""
        return self._max_out_bytes - self._out_bytes

    @property
    def failure(self) -> Exception | None:
        """Why the channel is of no further use; None while it is."""
        return self._failure

    def send_nowait(self, buffers: Sequence[Buffer]) -> None:
        """Send one frame, or several, now; what the kernel does not take at once is kept and written later.

        Raises LocalProtocolError when `room` is used up (nothing is sent), or the channel's failure.
        """
        if self._failure is not None:
            raise self._failure
        if self._out_bytes >= self._max_out_bytes:
            raise LocalProtocolError(f"{self._out_bytes} bytes for {self.peer} wait already")
        self._sent = True
        if self._tls is None:
            self._put(b"".join(buffers))
        elif total_bytes(buffers) <= _JOIN_BYTES:
            self._tls.write(b"".join(buffers))
            self._put(self._outgoing.read())
        else:
            # A portion at a time: it is in the processor's cache still when it goes to the kernel.
            for part in buffers:
                view = memoryview(part)
                for start in range(0, len(view), _JOIN_BYTES):
                    self._tls.write(view[start : start + _JOIN_BYTES])
                    self._put(self._outgoing.read())

    def _put(self, data: bytes) -> None:
        """Hand bytes to the kernel, behind those that wait; what it does not take is kept."""
        sent = 0
        if not self._out:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._fail(self._lost(error)) from error
            if sent == len(data):
                return
        self._out.append(memoryview(data)[sent:])
        self._out_bytes += len(data) - sent
        self._out_wanted.set()

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Wait until at least half of the buffer is free, then send."""
        while self._out_bytes > self._max_out_bytes // 2:
            await self._flush_out(self._max_out_bytes // 2)
        self.send_nowait(buffers)

    async def drain(self) -> None:
        """Wait until the kernel has taken everything that was sent. Raises the channel's failure."""
        await self._flush_out(0)
        if self._failure is not None:
            raise self._failure

    async def _flush_out(self, keep: int) -> None:
        """Write until at most `keep` bytes wait, or the channel has failed."""
        if self._out_bytes <= keep:
            await trio.lowlevel.checkpoint()
            return
        async with self._flush_lock:
            while self._out_bytes > keep and self._failure is None:
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                    self._send_waiting()
                except (trio.ClosedResourceError, trio.BusyResourceError):
                    break
                except OSError as error:
                    self._fail(self._lost(error))

    def _send_waiting(self) -> None:
        while self._out:
            part = self._out[0]
            try:
                sent = self._sock.send(part)
            except BlockingIOError:
                return
            self._out_bytes -= sent
            if sent < len(part):
                self._out[0] = part[sent:]
                return
            self._out.popleft()

    # --- receiving --------------------------------------------------------------------------------------

    async def receive(self) -> list[Frame]:
        """Return the frames that have arrived, at least one; PING and PONG are dealt with here.

        Raises PeerUnreachable when the connection is gone or the peer was silent, RemoteProtocolError for
        bytes that are not the protocol, PeerRefused when the peer does not accept this side's certificate.
        """
        if self._ready:
            frames = list(self._ready)
            self._ready.clear()
            await trio.lowlevel.checkpoint()
            return frames
        while True:
            if self._failure is not None:
                raise self._failure
            waited = await self._fill()
            frames = self._decode()
            if frames:
                if not waited and (self._in_place is None or not self._in_place.may_go_on()):
                    await trio.lowlevel.checkpoint()
                return frames

    def receive_in_place(self) -> list[Frame]:
        """Frames that have arrived, or that arrive while nobody else needs the thread; none where it does.

        Any task may call it: the one that waits in `receive` goes on waiting for what comes after. Raises
        what `receive` raises.
        """
        place = self._in_place
        if self._failure is not None:
            raise self._failure
        if self._ready or place is None or not place.wait(self._sock.fileno(), self.busy):
            return []
        try:
            self._take(self._sock.recv_into(self._read_buffer))
        except BlockingIOError:
            return []
        except OSError as error:
            raise self._fail(self._lost(error)) from error
        return self._decode()

    def fail(self, failure: PeerUnreachable | PeerRefused | RemoteProtocolError) -> None:
        """Close the channel because of what the peer sent; everybody is told this reason."""
        self._fail(failure)

    async def receive_one(self) -> Frame:
        """Return the next frame; those that arrived with it stay for the next call."""
        frames = await self.receive()
        self._ready.extendleft(reversed(frames[1:]))
        return frames[0]

    async def _fill(self) -> bool:
        """Read what has arrived into the decoder (or the TLS object); True if that had to be waited for."""
        waited = self._in_place is not None and self._in_place.wait(self._sock.fileno(), self.busy)
        while True:
            try:
                count = self._sock.recv_into(self._read_buffer)
                break
            except BlockingIOError:
                waited = True
                await self._wait_readable()
            except OSError as error:
                raise self._fail(self._lost(error)) from error
        self._take(count)
        return waited

    def _take(self, count: int) -> None:
        """Hand what was read to the decoder, through TLS."""
        if not count:
            raise self._fail(PeerUnreachable(f"{self.peer} closed the connection"))
        self._quiet_bytes += count
        if self._quiet_bytes >= _PROGRESS_BYTES:
            self._heard = True
            self._quiet_bytes = 0
        if self._tls is None:
            self._decoder.receive_data(self._read_view[:count])
        else:
            self._incoming.write(self._read_view[:count])
            self._decrypt(self._tls)

    async def _wait_readable(self) -> None:
        self._reading = True
        try:
            await trio.lowlevel.wait_readable(self._sock)
        except trio.ClosedResourceError:
            assert self._failure is not None
            raise self._failure from None
        finally:
            self._reading = False

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        incoming, decoder = self._incoming, self._decoder
        read = cast(Callable[[int, bytearray | memoryview], int], tls.read)
        try:
            while incoming.pending or tls.pending():
                room = decoder.room()
                if room is None:
                    decoder.receive_data(self._plain_view[: read(_RECORD_BYTES, self._plain)])
                else:
                    decoder.filled(read(len(room), room))
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError as error:
            raise self._fail(PeerUnreachable(f"{self.peer} closed the connection")) from error
        except ssl.SSLError as error:
            raise self._fail(_tls_failure(self.peer, error)) from error

    def _decode(self) -> list[Frame]:
        frames: list[Frame] = []
        try:
            while (frame := self._decoder.next_frame()) is not None:
                if frame.type is FrameType.PING:
                    self._answer(frame)
                elif frame.type is FrameType.PONG:
                    self._measure(frame)
                else:
                    frames.append(frame)
                self._heard = True
                self._quiet_bytes = 0
        except RemoteProtocolError as error:
            failure = RemoteProtocolError(f"{self.peer}: {error}")
            raise self._fail(failure) from error
        return frames

    def _answer(self, ping: Frame) -> None:
        # A peer that only asks and never reads gets no second answer: nothing may grow at its command.
        if not self._out and self._failure is None:
            with contextlib.suppress(PeerUnreachable, PeerRefused, RemoteProtocolError):
                self.send_nowait(encode(FrameType.PONG, sequence=ping.sequence))

    def _measure(self, pong: Frame) -> None:
        if self._ping_sent_at is not None and self._ping_sent_at[0] == pong.sequence:
            self.round_trip_seconds = trio.current_time() - self._ping_sent_at[1]
            self._ping_sent_at = None

    # --- life -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what waits and keep the connection alive, until the channel is closed or has failed.

        Raises nothing of its own: a failure comes out of `receive` and `send_nowait`.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_waiting)
            nursery.start_soon(self._keep_alive)
            await self._closed.wait()
            nursery.cancel_scope.cancel()

    async def _write_waiting(self) -> None:
        while self._failure is None:
            await self._out_wanted.wait()
            self._out_wanted = trio.Event()
            await self._flush_out(0)

    async def _keep_alive(self) -> None:
        interval = self.silence_seconds / _PINGS_PER_SILENCE
        silent_seconds = 0.0
        number = 0
        before = trio.current_time()
        while self._failure is None:
            await trio.sleep(interval)
            now = trio.current_time()
            if self._heard or not self._reading:
                silent_seconds = 0.0
            else:
                # If this process itself was stopped, the time it slept says nothing about the peer.
                silent_seconds += min(now - before, 2 * interval)
            before = now
            self._heard = False
            if silent_seconds >= self.silence_seconds:
                self._fail(PeerUnreachable(f"{self.peer} has been silent for {self.silence_seconds:g} s"))
                return
            if not self._sent and not self._out and self._failure is None:
                number += 1
                self._ping_sent_at = (number, now)
                with contextlib.suppress(PeerUnreachable, PeerRefused, RemoteProtocolError):
                    self.send_nowait(encode(FrameType.PING, sequence=number))
            self._sent = False

    def close(self, sentence: str = "this side closed the connection") -> None:
        """Close now; what the kernel has not taken is lost. Safe to call again and from anywhere."""
        if self._failure is None:
            self._fail(ChannelClosed(sentence))

    def _fail(self, failure: _FailureT) -> _FailureT:
        """Close the socket and remember why; the first failure is the one that everybody is told."""
        if self._failure is not None:
            return failure
        self._failure = failure
        if self._tls is not None and not self._out:
            # A close_notify tells the peer that nothing was cut off; whether it arrives does not matter.
            with contextlib.suppress(OSError):
                with contextlib.suppress(ssl.SSLError):
                    self._tls.unwrap()
                self._sock.send(self._outgoing.read())
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        self._out.clear()
        self._out_bytes = 0
        self._closed.set()
        self._out_wanted.set()
        return failure

    def _lost(self, error: OSError) -> PeerUnreachable:
        return PeerUnreachable(f"the connection to {self.peer} was lost: {error.strerror or error}")

    # --- TLS handshake ----------------------------------------------------------------------------------

    async def handshake(self, expect: str | None = None) -> None:
        """Do the TLS handshake and check whom the certificate names; `expect` is the site it must be.

        Raises PeerRefused for a certificate of another CA, cluster or site, PeerUnreachable when the
        connection is lost. The caller sets the deadline. Without TLS there is nothing to do.
        """
        tls = self._tls
        if tls is None:
            return
        try:
            while not await self._handshake_step(tls):
                pass
        except ssl.SSLError as error:
            raise self._fail(_tls_failure(self.peer, error)) from error
        except OSError as error:
            raise self._fail(self._lost(error)) from error
        assert self._identity is not None
        try:
            self.peer_site = self._identity.check_peer(tls.getpeercert(), expect)
        except ValueError as error:
            raise self._fail(PeerRefused(f"{self.peer}: {error}", code="certificate")) from error
        # The peer's first frames may have come together with the end of its handshake.
        self._decrypt(tls)
        self._ready.extend(self._decode())

    async def _handshake_step(self, tls: ssl.SSLObject) -> bool:
        done = False
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        finally:
            # Also on an error: the alert tells the peer why it is refused.
            data = memoryview(self._outgoing.read())
            while data:
                try:
                    data = data[self._sock.send(data) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
        if done:
            return True
        await self._wait_readable()
        try:
            received = self._sock.recv(_RECORD_BYTES)
        except BlockingIOError:
            return False
        if not received:
            raise self._fail(PeerUnreachable(f"{self.peer} closed the connection during the TLS handshake"))
        self._incoming.write(received)
        return False


def _tls_failure(peer: str, error: ssl.SSLError) -> PeerUnreachable | PeerRefused:
    """The sentence for what OpenSSL reports."""
    reason = (error.reason or str(error)).upper()
    if isinstance(error, ssl.SSLCertVerificationError):
        return PeerRefused(
            f"{peer} has a certificate that this cluster's CA did not sign ({error.verify_message}); "
            "give both sites certificates of the same CA",
            code="certificate",
        )
    if "ALERT" in reason and any(word in reason for word in ("UNKNOWN_CA", "CERTIFICATE", "DECRYPT")):
        return PeerRefused(
            f"{peer} does not accept this side's certificate; give both sites certificates of the same CA",
            code="certificate",
        )
    if isinstance(error, ssl.SSLEOFError):
        return PeerUnreachable(f"{peer} closed the connection")
    return PeerUnreachable(f"the TLS connection to {peer} failed: {reason.replace('_', ' ').lower()}")
