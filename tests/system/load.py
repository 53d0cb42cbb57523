"""A load on a mounted file system, in a process of its own because the file system is killed under it.

    python -m tests.system.load work MOUNTPOINT LEDGERS SEED     until SIGTERM, or until the mount is gone
    python -m tests.system.load check MOUNTPOINT LEDGERS         what was acknowledged, as JSON

A worker whose call fails notes the error and begins again, as a program does that is told of an error; a
worker whose mount is gone ends.
"""

import errno
import json
import os
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.system.load_workers import WORKERS, Worker

ENDED: Final = 0
FAULT: Final = 1
MOUNT_GONE: Final = 3
GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
AGAIN_SECONDS: Final = 0.05


def mount_is_gone(mount: Path) -> bool:
    """Whether the process that served the mount is dead."""
    try:
        # `stat` would be answered from the kernel's cache.
        os.statvfs(mount)
    except OSError as error:
        return error.errno in GONE
    return False


def work_on(worker: Worker, mount: Path, stop: threading.Event) -> bool:
    """Run a worker until the end is asked for, or (false) until the mount is gone."""
    while not stop.is_set():
        try:
            worker.open()
            while not stop.is_set():
                worker.step()
        except (OSError, sqlite3.Error) as error:
            if mount_is_gone(mount):
                return False
            worker.ledger.error(f"{type(error).__name__}: {error}".replace("\n", " "))
            stop.wait(AGAIN_SECONDS)
        finally:
            closed(worker)
    return True


def closed(worker: Worker) -> None:
    """Close a worker's files; a close that fails on a dead mount was of nothing acknowledged."""
    try:
        worker.close()
    except (OSError, sqlite3.Error) as error:
        worker.ledger.error(f"close: {error}")


def work(mount: Path, ledgers: Path, seed: str) -> int:
    """All workers at once; the exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    ends: list[int] = []

    def guarded(kind: Callable[[Path, Path, str], Worker]) -> None:
        try:
            ends.append(ENDED if work_on(kind(mount, ledgers, seed), mount, stop) else MOUNT_GONE)
        except BaseException:
            traceback.print_exc()
            ends.append(FAULT)
            stop.set()
            raise

    threads = [threading.Thread(target=guarded, args=(kind,)) for kind in WORKERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return FAULT if FAULT in ends else max(ends)


def check(mount: Path, ledgers: Path) -> int:
    """Compare the file system with the ledgers; the findings go to standard output."""
    workers = [kind(mount, ledgers, "") for kind in WORKERS]
    found = {
        "acknowledged": {worker.name: worker.ledger.acknowledged for worker in workers},
        "errors": [error for worker in workers for error in worker.ledger.errors],
        "faults": [fault for worker in workers for fault in worker.check()],
    }
    json.dump(found, sys.stdout)
    return FAULT if found["faults"] else ENDED


if __name__ == "__main__":
    mode, mountpoint, directory, *rest = sys.argv[1:]
    if mode == "work":
        sys.exit(work(Path(mountpoint), Path(directory), rest[0]))
    sys.exit(check(Path(mountpoint), Path(directory)))
