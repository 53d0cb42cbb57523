"""The mount's first exchange with the kernel, with two promises added that pyfuse3 has no word for.

FUSE_DONT_MASK: this file system applies the umask: where a default ACL is inherited it does not count.
FUSE_HANDLE_KILLPRIV_V2: this file system itself takes setuid, setgid and file capabilities away where a write
must. Without that promise the kernel asks for the attribute security.capability before every write(2), which
costs as much as the write; with it, it asks once and remembers.

libfuse answers INIT and writes the answer to its descriptor of /dev/fuse. So for this one exchange that
descriptor is a socket: INIT is handed in, the answer comes out, gets its bits and goes to the kernel. Then a
FORGET of nothing is sent after it: while libfuse's caller deals with that, nobody waits for the descriptor,
and it becomes /dev/fuse again (`finish`).
"""

import os
import select
import socket
import struct
from pathlib import Path
from typing import Final, Self

import trio

FUSE_DONT_MASK: Final = 1 << 6
FUSE_HANDLE_KILLPRIV_V2: Final = 1 << 28
PROMISES: Final = FUSE_DONT_MASK | FUSE_HANDLE_KILLPRIV_V2
_IN_HEADER: Final = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, extensions
_INIT_IN: Final = struct.Struct("<IIII")  # major, minor, max_readahead, flags
_OUT_HEADER: Final = struct.Struct("<IiQ")  # length, error, unique
_INIT_FLAGS_AT: Final = _OUT_HEADER.size + 12  # behind major, minor and max_readahead
_FLAGS: Final = struct.Struct("<I")
_INIT: Final = 26
_FORGET: Final = 2
_ROOT: Final = 1
_LARGEST_REQUEST: Final = (1 << 20) + 4096
_INIT_SECONDS: Final = 5.0


def offered_flags(request: bytes) -> int:
    """The flags that the kernel offers in an INIT request; 0 if it is none."""
    if len(request) < _IN_HEADER.size + _INIT_IN.size or _IN_HEADER.unpack_from(request)[1] != _INIT:
        return 0
    return int(_INIT_IN.unpack_from(request, _IN_HEADER.size)[3])


def with_flags(answer: bytes, flags: int) -> bytes:
    """The answer to INIT with more flags set; an error, or one too short to have any, as it is."""
    if len(answer) < _INIT_FLAGS_AT + _FLAGS.size or _OUT_HEADER.unpack_from(answer)[1] != 0:
        return answer
    (chosen,) = _FLAGS.unpack_from(answer, _INIT_FLAGS_AT)
    behind = _INIT_FLAGS_AT + _FLAGS.size
    return answer[:_INIT_FLAGS_AT] + _FLAGS.pack(chosen | flags) + answer[behind:]


def forget_of_nothing() -> bytes:
    """A request that needs no answer and changes nothing: FORGET of the root, zero times."""
    body = struct.pack("<Q", 0)
    return _IN_HEADER.pack(_IN_HEADER.size + len(body), _FORGET, 0, _ROOT, 0, 0, 0, 0) + body


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


class InitExchange:
    """INIT under way between the kernel and the owner of `descriptor`."""

    def __init__(self, descriptor: int, kernel: int, ours: socket.socket, flags: int) -> None:
        self._descriptor = descriptor
        self._kernel = kernel
        self._ours: socket.socket | None = ours
        self._flags = flags

    @classmethod
    def begin(cls, descriptor: int) -> Self | None:
        """Take INIT from a fresh mount and hand it to the descriptor's owner; None leaves all as it was.

        To be called before anybody waits for the descriptor. OSError if the mount is gone.
        """
        if not select.select([descriptor], [], [], _INIT_SECONDS)[0]:
            return None
        request = os.read(descriptor, _LARGEST_REQUEST)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGEST_REQUEST)
        kernel = os.dup(descriptor)
        os.dup2(theirs.fileno(), descriptor, inheritable=False)
        theirs.close()
        ours.send(request)
        return cls(descriptor, kernel, ours, PROMISES & offered_flags(request))

    async def run(self) -> None:
        """Pass the answer on, then have the owner let go of the descriptor for a moment."""
        ours = self._ours
        assert ours is not None
        await trio.lowlevel.wait_readable(ours)
        os.write(self._kernel, with_flags(ours.recv(_LARGEST_REQUEST), self._flags))
        ours.send(forget_of_nothing())

    def finish(self) -> None:
        """The FORGET is being dealt with: the descriptor is the kernel's from here on."""
        if self._ours is not None:
            os.dup2(self._kernel, self._descriptor, inheritable=False)
            os.close(self._kernel)
            self._ours.close()
            self._ours = None
