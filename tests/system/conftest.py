"""Nothing that a test has mounted outlives it, whatever ended the test."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.namespaces import Network, NetworkUnavailable
from tools.mount_table import MOUNT_TABLE, unescape


def mounts_below(directory: Path) -> list[str]:
    """The mount points below a directory, by the kernel's table: no file system is asked."""
    lines = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [place for line in lines if (place := unescape(line.split(" ")[4])).startswith(f"{directory}/")]


@pytest.fixture(scope="session", autouse=True)
def told_to_end() -> Iterator[None]:
    """A run that is told to end (`timeout`, a service manager) ends like one that is interrupted: by way of
    the finalizers. Unhandled, SIGTERM would leave daemons and mounts behind.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_mounted(tmp_path_factory: pytest.TempPathFactory, told_to_end: None) -> Iterator[None]:
    """The first fixture of a module, so the last to end: it takes away what the others left, and tells."""
    yield
    left = mounts_below(tmp_path_factory.getbasetemp().resolve())
    for place in reversed(left):  # what was mounted last covers what was mounted before
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)
    assert not left, f"left mounted: {', '.join(left)}"


@pytest.fixture
def network() -> Iterator[Network]:
    """Network namespaces for the sites; where none can be made the test is skipped, and says why."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Network())
        except NetworkUnavailable as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield made
