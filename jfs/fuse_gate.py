"""The gate through which every change of a mounted file system goes: it lets a change in while what waits in
memory can be written out, and holds the caller up where too much of it waits.
"""

from collections.abc import Callable
from contextlib import suppress
from errno import EROFS
from typing import TypeVar

from jfs.errors import FileSystemError, NoSpace
from jfs.filesystem import FileSystem
from jfs.fuse_requests import error_number

T = TypeVar("T")


class Gate:
    """One mount. A change is refused before it is made or not at all: the kernel believes names for as
    long as it likes, so an error for what was done would leave it with names that are gone.
    """

    def __init__(self, file_system: FileSystem) -> None:
        self._fs = file_system
        self._is_behind = False  # what waits could not be written: no more of it until that is cured

    def is_open(self) -> bool:
        """Whether a change may be made now; if not, `change` waits for it or says why not."""
        fs = self._fs
        return not self._is_behind and not fs.read_only and fs.may_change()

    async def change(self, change: Callable[[], T]) -> T:
        """Make a change when that is possible. What `change` raises; DeviceError, and EROFS where nothing may
        be changed (an operator can make a mount writable that was begun read only).
        """
        fs = self._fs
        if fs.read_only:
            raise FileSystemError(EROFS)
        if self._is_behind:
            with suppress(NoSpace):  # the change itself may give the room
                await fs.throttle()
            self._is_behind = False
        await fs.make_way()
        try:
            return change()
        except NoSpace:
            # Refused before anything was changed.
            await fs.make_room()
            return change()

    async def leave(self) -> None:
        """After a change: hold the caller up while too much waits. What goes wrong is told to the next one,
        and to fsync.
        """
        try:
            await self._fs.throttle()
        except NoSpace:
            pass
        except Exception as error:
            error_number(error)  # for the log
            self._is_behind = True
