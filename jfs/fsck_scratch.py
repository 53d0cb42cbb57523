"""Room beside memory for what a check has to keep in mind: a temporary file without a name."""

import os
import tempfile
import weakref
from errno import EIO

from jfs.device import read_fully, write_fully
from jfs.errors import DeviceError


class Scratch:
    """A temporary file, made when something is first written, gone with the process. DeviceError if the host
    has no room for it."""

    def __init__(self) -> None:
        self._descriptor = -1
        self.end = 0  # what was appended, bytes

    def append(self, data: bytes | bytearray) -> int:
        """Write at the end; where that is."""
        offset = self.end
        self.write(offset, data)
        self.end += len(data)
        return offset

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Write anywhere."""
        try:
            if self._descriptor < 0:
                self._descriptor, path = tempfile.mkstemp(prefix="trisite-fsck-")
                weakref.finalize(self, os.close, self._descriptor)
                os.unlink(path)
            write_fully(self._descriptor, data, offset)
        except OSError as error:
            raise _failure(error) from error

    def read(self, offset: int, length: int) -> bytes:
        """What was written there."""
        try:
            return read_fully(self._descriptor, length, offset)
        except OSError as error:
            raise _failure(error) from error


def _failure(error: OSError) -> DeviceError:
    place = tempfile.gettempdir()
    return DeviceError(
        error.errno or EIO,
        f"the check cannot use a temporary file in {place}: {error.strerror}; TMPDIR may name another place",
    )
