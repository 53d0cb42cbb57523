"""A mount goes on in the background: the process that serves it, its record, and the wait for its end.

The mount process keeps a record in the directory of its site, so that `umount` can find it and wait until it
has drained. The record is removed at a clean end; after a failed one it holds the sentence that says why.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tools.errors import ExitCode, Failure

RECORD_NAME: Final = "mount.json"
LOG_NAME: Final = "mount.log"
READY: Final = b"ready"
LOOK_SECONDS: Final = 0.25
STOPPED_SECONDS: Final = 5.0
"""A process that stays stopped for so long is not waited for."""


class MountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who serves a mount; `born` tells the process from a later one with the same number."""

    pid: int
    born: int
    mountpoint: str
    site: str
    failure: str | None = None


class Ready:
    """The serving side of the pipe on which whoever started the mount waits; without one it is silent."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def mounted(self, warning: str | None = None) -> None:
        """The file system is mounted; and what the operator should know of it."""
        self._tell(READY + (b"" if warning is None else b" " + warning.encode()))

    def failed(self, sentence: str, code: int) -> None:
        """It will not be; the sentence and the exit code go to whoever waits."""
        self._tell(b"%d %s" % (code, sentence.encode()))

    def _tell(self, message: bytes) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(BrokenPipeError):  # whoever waited was interrupted; the mount goes on
                os.write(self._descriptor, message)
            os.close(self._descriptor)
            self._descriptor = None


def start(arguments: Sequence[str], log: Path) -> str | None:
    """Start `trisite ARGUMENTS` detached and return when it is mounted; Failure with its sentence.

    The warning is what the operator should know all the same.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-m", "tools.cli", *arguments, "--ready-fd", str(writing)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[writing],
            start_new_session=True,
            cwd="/",
        )
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()  # until the other side closes it: it is mounted, has failed, or is dead
    except KeyboardInterrupt:
        process.terminate()
        raise
    code, _, sentence = answer.decode(errors="replace").partition(" ")
    if code == READY.decode():
        process.returncode = 0  # it goes on without us; keeps Popen from warning that it still runs
        return sentence or None
    if not sentence:
        raise Failure(f"the mount process ended before it had mounted; {log} has what it said")
    raise Failure(sentence, int(code))


def birth(pid: int) -> int | None:
    """When process `pid` was started, in ticks since the boot; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])


def write_record(directory: Path, mountpoint: str, site: str) -> None:
    """Note in the site directory that this process serves `mountpoint`."""
    pid = os.getpid()
    _replace_record(directory, MountRecord(pid=pid, born=birth(pid) or 0, mountpoint=mountpoint, site=site))


def note_failure(directory: Path, sentence: str, *, keep: bool) -> None:
    """Note why this process ended badly, if the record is its own; without `keep` (it never mounted)
    remove it: who started it was told.
    """
    record = read_record(directory)
    if record is None or record.pid != os.getpid():
        return
    if keep:
        _replace_record(directory, msgspec.structs.replace(record, failure=sentence))
    else:
        remove_record(directory)


def _replace_record(directory: Path, record: MountRecord) -> None:
    fresh = directory / f"{RECORD_NAME}.new"
    fresh.write_bytes(msgspec.json.encode(record))
    fresh.replace(directory / RECORD_NAME)


def lives(record: MountRecord) -> bool:
    """Whether the process of a record is still there."""
    return birth(record.pid) == record.born


def remove_record(directory: Path) -> None:
    """The mount ended well."""
    (directory / RECORD_NAME).unlink(missing_ok=True)


def read_record(directory: Path) -> MountRecord | None:
    """The record in a site directory; None if nothing is or was badly unmounted there."""
    try:
        return msgspec.json.decode((directory / RECORD_NAME).read_bytes(), type=MountRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def is_stopped(record: MountRecord) -> bool:
    """Whether the process of a record was stopped (SIGSTOP) and does nothing until it is continued."""
    try:
        text = Path(f"/proc/{record.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] in {"T", "t"} and lives(record)


class Patience:
    """How long an end is waited for: `seconds` in all, and not on a process that stays stopped."""

    def __init__(self, record: MountRecord | None, seconds: float) -> None:
        self._record = record
        self._seconds = seconds
        self._began = time.monotonic()
        self._stopped_since: float | None = None

    def check(self) -> None:
        """Failure where there is nothing more to wait for."""
        record, now = self._record, time.monotonic()
        if record is None or not is_stopped(record):
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now
        elif now - self._stopped_since >= STOPPED_SECONDS:
            raise Failure(
                f"the mount process {record.pid} is stopped and lets nothing be unmounted; continue it "
                f"(kill -CONT {record.pid}) and run umount again",
                ExitCode.TIMEOUT,
            )
        if now - self._began >= self._seconds:
            who = "the mount process" if record is None else f"the mount process {record.pid}"
            raise Failure(
                f"{who} has not finished after {self._seconds:.0f} seconds; it still writes out, or waits "
                "for the sync site: look at `trisite status`, and run umount again",
                ExitCode.TIMEOUT,
            )


def wait_or_stopped(process: subprocess.Popen[bytes], record: MountRecord | None, seconds: float) -> int:
    """The exit code of `process`, which waits for the process of the record; Failure after `seconds`, or
    where that is stopped. What is given up goes on by itself as soon as it can.
    """
    patience = Patience(record, seconds)
    while True:
        try:
            return process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            try:
                patience.check()
            except Failure:
                process.returncode = 0  # it cannot be ended while the kernel waits: not ours any more
                raise


def wait_for_end(record: MountRecord, seconds: float) -> None:
    """Wait until the mount process is gone; Failure after `seconds`, or where it is stopped."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if birth(record.pid) != record.born:
            return  # the number went to another process
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        patience = Patience(record, seconds)
        while not poll.poll(LOOK_SECONDS * 1000):
            patience.check()
    finally:
        os.close(descriptor)
