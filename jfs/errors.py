"""The errors that cross the boundaries of jfs. Each carries what an operator or the kernel needs to hear."""

import errno
import os


class FileSystemError(Exception):
    """A POSIX operation fails: `errno` is what the caller of the system call gets."""

    def __init__(self, errno_: int, sentence: str = "") -> None:
        super().__init__(sentence or os.strerror(errno_))
        self.errno = errno_


class NoSpace(FileSystemError):
    """No block is left for data (ENOSPC). Blocks freed since the last commit become usable with the next."""

    def __init__(self, sentence: str = "the volume has no free block left") -> None:
        super().__init__(errno.ENOSPC, sentence)


class DeviceError(Exception):
    """The block device refuses or fails; nothing of the refused request was changed. `sentence` says why."""

    def __init__(self, errno_: int, sentence: str) -> None:
        super().__init__(sentence)
        self.errno = errno_
        self.sentence = sentence


class CorruptionError(Exception):
    """What the device holds cannot be right. `sentence` says what and where."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class OtherFormatError(CorruptionError):
    """Nothing is damaged, but a later (`newer`) or earlier version of trisite wrote it: to be left exactly as
    it is."""

    def __init__(self, sentence: str, *, newer: bool) -> None:
        super().__init__(sentence)
        self.newer = newer
