"""The door to the kernel: takes every request from /dev/fuse, answers the frequent ones in place and hands
the others to libfuse.

pyfuse3 costs more for a request than most of them need, and tells a handler neither the inode of a READ nor
the flags of a WRITE. So the door stands before it. libfuse's descriptor is a socket; what the door does not
answer itself goes into it, and the answers that come out go to the kernel. The first exchange is INIT, in
which the door adds promises and takes back what pyfuse3 has no word for:

FUSE_DONT_MASK: this file system applies the umask: where a default ACL is inherited it does not count.
FUSE_HANDLE_KILLPRIV_V2: this file system itself takes setuid, setgid and file capabilities away where a write
must. Without that promise the kernel asks for the attribute security.capability before every write(2), which
costs as much as the write; with it, it asks once and remembers.
FUSE_ATOMIC_O_TRUNC, taken back: the kernel cuts a file by SETATTR, since it is not to say when it opens one.
FUSE_HANDLE_KILLPRIV, taken back: the older promise, which lets the kernel say less. Where it does not know
the newer one it takes them away itself.
"""

import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final

import trio

from jfs import fuse_wire as wire
from jfs import in_place
from jfs.busy_wait import BusyWait
from jfs.device import Buffer
from jfs.errors import NoSpace
from jfs.fuse_gate import Gate
from jfs.fuse_requests import Requests, error_number

log = logging.getLogger("jfs")

FUSE_ATOMIC_O_TRUNC: Final = 1 << 3
FUSE_DONT_MASK: Final = 1 << 6
FUSE_HANDLE_KILLPRIV: Final = 1 << 19
FUSE_HANDLE_KILLPRIV_V2: Final = 1 << 28
PROMISES: Final = FUSE_DONT_MASK | FUSE_HANDLE_KILLPRIV_V2
NOT_WANTED: Final = FUSE_ATOMIC_O_TRUNC | FUSE_HANDLE_KILLPRIV
_INIT_IN: Final = struct.Struct("<IIII")  # major, minor, max_readahead, flags
_INIT_FLAGS_AT: Final = wire.OUT_HEADER.size + 12  # behind major, minor and max_readahead
_FLAGS: Final = struct.Struct("<I")
_LARGEST_REQUEST: Final = (1 << 20) + 4096
_INIT_SECONDS: Final = 5.0
_TURN_SECONDS: Final = 0.001
"""Requests are answered one after the other for this long, then others in this process have a turn."""
_AWAKE_SECONDS: Final = 150e-6
"""An application that makes one request after the other has the next one ready within this."""
_JOINED_BYTES: Final = 8192
"""An answer up to this size is joined to its header."""
_UNHEARD: Final = suppress(OSError)
"""Nobody waits for the answer: the request was taken back, or the mount is gone, which reading tells."""
_NOT_DONE: Final = frozenset({wire.OPEN, wire.OPENDIR, wire.CREATE, wire.FLUSH, wire.IOCTL})
"""Of IOCTL the kernel makes ENOTTY: Python's open() asks of each file whether it is a terminal."""


def offered_flags(request: bytes) -> int:
    """The flags that the kernel offers in an INIT request; 0 if it is none."""
    if len(request) < wire.BODY_AT + _INIT_IN.size or wire.IN_HEADER.unpack_from(request)[1] != wire.INIT:
        return 0
    return int(_INIT_IN.unpack_from(request, wire.BODY_AT)[3])


def with_flags(answer: bytes, flags: int, without: int = 0) -> bytes:
    """The answer to INIT with more flags set, others cleared; an error, or one too short to have any, as it
    is.
    """
    if len(answer) < _INIT_FLAGS_AT + _FLAGS.size or wire.OUT_HEADER.unpack_from(answer)[1] != 0:
        return answer
    (chosen,) = _FLAGS.unpack_from(answer, _INIT_FLAGS_AT)
    behind = _INIT_FLAGS_AT + _FLAGS.size
    return answer[:_INIT_FLAGS_AT] + _FLAGS.pack((chosen | flags) & ~without) + answer[behind:]


def kernel_descriptors() -> set[int]:
    """The descriptors of this process that are connections to the kernel's FUSE."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if Path(f"/proc/self/fd/{name}").readlink() == Path("/dev/fuse"):
                found.add(int(name))
        except OSError:
            continue  # closed meanwhile: the one that lists
    return found


class Door:
    """One mount. `open` takes the kernel's descriptor from its owner, `close` gives it back."""

    def __init__(self, requests: Requests, gate: Gate) -> None:
        self._requests = requests
        self._gate = gate
        requests.stale = self._stale
        self._descriptor = -1
        self._kernel = -1
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._nursery: trio.Nursery | None = None
        self._in_place = in_place.current()
        self._busy = BusyWait(_AWAKE_SECONDS)
        self._gone = trio.Event()
        self._syncs: list[tuple[int, tuple[int, bool]]] = []
        self._writes: list[tuple[int, int, int]] = []

    def open(self, descriptor: int) -> bool:
        """Stand before the owner of `descriptor`, a fresh mount that nobody waits for yet; False if the
        kernel does not say INIT.
        """
        if not select.select([descriptor], [], [], _INIT_SECONDS)[0]:
            return False
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGEST_REQUEST)
        self._theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGEST_REQUEST)
        self._ours.setblocking(False)
        self._descriptor = descriptor
        self._kernel = os.dup(descriptor)
        os.dup2(self._theirs.fileno(), descriptor, inheritable=False)
        self._theirs.close()
        os.set_blocking(self._kernel, False)
        if self._in_place is not None:
            self._in_place.watch(self._kernel)
        return True

    def close(self) -> None:
        """Give the descriptor back; from here on nobody answers."""
        if self._kernel >= 0:
            os.dup2(self._kernel, self._descriptor, inheritable=False)
            os.close(self._kernel)
            self._kernel = -1
        self._ours.close()
        self._theirs.close()

    async def run(self, over: Callable[[], None]) -> None:
        """Answer the kernel until it is unmounted; then call `over` and return. After `open`."""
        init = os.read(self._kernel, _LARGEST_REQUEST)
        promises = PROMISES & offered_flags(init)
        await self._hand_on(init)
        await trio.lowlevel.wait_readable(self._ours)
        os.write(self._kernel, with_flags(self._ours.recv(_LARGEST_REQUEST), promises, NOT_WANTED))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._pass_answers)
            nursery.start_soon(self._take_forever)
            await self._gone.wait()
            over()
            nursery.cancel_scope.cancel()

    async def _take_forever(self) -> None:
        """Answer requests. What waits for the disks is done when no more requests are there, for all that
        wait together, and by this task; if it really has to wait, another goes on here and this one ends.
        """
        kernel, place = self._kernel, self._in_place
        turn = monotonic()
        while True:
            if place is not None and not (self._syncs or self._writes):
                place.wait(kernel, self._busy)  # and try in any case
            try:
                request = os.read(kernel, _LARGEST_REQUEST)
            except BlockingIOError:
                if not (self._syncs or self._writes):
                    await trio.lowlevel.wait_readable(kernel)
                    turn = monotonic()
                elif await self._work_for_those_who_wait():
                    return
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:  # taken back before it was read
                    continue
                if error.errno != errno.ENODEV:
                    raise
                self._gone.set()
                return
            if not self._take(request):
                await self._hand_on(request)
            if monotonic() - turn > _TURN_SECONDS:
                if (self._syncs or self._writes) and await self._work_for_those_who_wait():
                    return
                if place is None or not place.may_go_on():
                    await trio.lowlevel.checkpoint()
                turn = monotonic()

    async def _work_for_those_who_wait(self) -> bool:
        """One flush for all fsyncs, one wait for all writes; whether another task took over to read."""
        syncs, self._syncs = self._syncs, []
        writes, self._writes = self._writes, []
        if syncs and writes:
            self._later(self._accept_all, writes)
        work = self._sync_all(syncs) if syncs else self._accept_all(writes)
        is_followed = False

        def follow() -> None:
            nonlocal is_followed
            is_followed = True
            self._later(self._take_forever)

        await in_place.noticing(work, follow)
        return is_followed

    async def _sync_all(self, syncs: list[tuple[int, tuple[int, bool]]]) -> None:
        try:
            await self._requests.fsync_all([file for _, file in syncs])
        except Exception as error:
            number = error_number(error)
            for unique, _ in syncs:
                self._send(wire.refusal(unique, number))
        else:
            for unique, _ in syncs:
                self._answer(unique, b"")

    async def _accept_all(self, writes: list[tuple[int, int, int]]) -> None:
        """Writes that are answered when the device has completed them: (request, size, sequence)."""
        try:
            await self._requests.fs.store.device.complete(max(sequence for _, _, sequence in writes))
        except Exception as error:
            number = error_number(error)
            for unique, _, _ in writes:
                self._send(wire.refusal(unique, number))
        else:
            for unique, size, _ in writes:
                await self._throttled(unique, wire.WRITE_OUT.pack(size, 0))

    def _take(self, request: bytes) -> bool:
        """Answer a request, or begin to; False if libfuse is to do it."""
        _, opcode, unique, ino, uid, gid, _, _, _ = wire.IN_HEADER.unpack_from(request)
        requests = self._requests
        try:
            if handler := requests.looks.get(opcode):
                self._answer(unique, handler(ino, request, uid, gid))
            elif handler := requests.changes.get(opcode):
                self._change(unique, partial(handler, ino, request, uid, gid))
            elif opcode == wire.WRITE:
                self._write(unique, ino, request)
            elif opcode == wire.FSYNC:
                _, flags, _ = wire.FSYNC_IN.unpack_from(request, wire.BODY_AT)
                self._syncs.append((unique, (ino, bool(flags & wire.FSYNC_DATA_ONLY))))
            elif opcode == wire.FSYNCDIR:
                self._syncs.append((unique, (ino, False)))
            elif opcode == wire.FORGET:
                self._forget(
                    partial(requests.forget, ino, *wire.FORGET_IN.unpack_from(request, wire.BODY_AT))
                )
            elif opcode == wire.BATCH_FORGET:
                self._forget(partial(requests.forget_many, request))
            elif opcode in _NOT_DONE:
                self._send(wire.refusal(unique, errno.ENOSYS))
            else:
                return bool(opcode == wire.INTERRUPT)  # what is asked for is done, and answered, soon
        except Exception as error:
            self._refuse(unique, error)
        return True

    # --- requests that change something

    def _change(self, unique: int, change: Callable[[], Buffer]) -> None:
        if not self._gate.is_open():
            self._later(self._change_slowly, unique, change)
            return
        try:
            body = change()
        except NoSpace:
            self._later(self._change_slowly, unique, change)
            return
        if self._requests.fs.must_throttle():
            self._later(self._throttled, unique, body)
        else:
            self._answer(unique, body)

    async def _change_slowly(self, unique: int, change: Callable[[], Buffer]) -> None:
        try:
            body = await self._gate.change(change)
        except Exception as error:
            self._refuse(unique, error)
        else:
            await self._throttled(unique, body)

    async def _throttled(self, unique: int, body: Buffer) -> None:
        await self._gate.leave()
        self._answer(unique, body)

    def _write(self, unique: int, ino: int, request: bytes) -> None:
        fs = self._requests.fs
        try:
            if not self._gate.is_open():
                raise NoSpace
            size, sequence = self._requests.write(ino, request)
        except NoSpace:
            self._later(self._write_slowly, unique, ino, request)
            return
        if fs.must_throttle() or not fs.store.device.is_complete(sequence):
            self._writes.append((unique, size, sequence))
        else:
            self._answer(unique, wire.WRITE_OUT.pack(size, 0))

    async def _write_slowly(self, unique: int, ino: int, request: bytes) -> None:
        try:
            size, sequence = await self._gate.change(partial(self._requests.write, ino, request))
        except Exception as error:
            self._refuse(unique, error)
        else:
            await self._accept_all([(unique, size, sequence)])

    def _forget(self, forget: Callable[[], None]) -> None:
        try:
            forget()
        except Exception as error:
            error_number(error)  # nobody waits for an answer: what goes wrong is only logged
        if self._requests.fs.must_throttle():
            self._later(self._gate.leave)

    def _later(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(work, *arguments)

    # --- answers

    def _answer(self, unique: int, body: Buffer) -> None:
        if type(body) is bytes and len(body) < _JOINED_BYTES:
            self._send(wire.answer(unique, body))
            return
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), 0, unique)
        with _UNHEARD:
            os.writev(self._kernel, (header, body))

    def _refuse(self, unique: int, error: Exception) -> None:
        self._send(wire.refusal(unique, error_number(error)))

    def _send(self, answer: bytes) -> None:
        with _UNHEARD:
            os.write(self._kernel, answer)

    def _stale(self, ino: int) -> None:
        # Whoever waits for a fsync has the file open: the kernel need not wait for us to let it go.
        self._send(wire.invalidation(ino))

    # --- libfuse

    async def _hand_on(self, request: bytes) -> None:
        while True:
            try:
                self._ours.send(request)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._ours)

    async def _pass_answers(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            with suppress(BlockingIOError):
                self._send(self._ours.recv(_LARGEST_REQUEST))
