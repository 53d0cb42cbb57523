"""What the tests of bad input share: sites made quickly, and the one way in which every command may fail."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tools.demo.stage import SITES, Stage, trisite_command

SECONDS: Final = 90  # far more than any command here may take: a hang is a failure of its own
OPTIONS: Final = "silence_seconds = 3.0\nprotect_timeout_seconds = 6.0\n"


@contextmanager
def sites(directory: Path, *, volume: bool = True, options: str = OPTIONS) -> Iterator[Stage]:
    """Three running sites, with an empty file system if `volume`, nothing mounted."""
    with Stage(directory) as stage:
        stage.trisite("init", str(directory), "--size", "64MiB", config=False)
        with stage.config.open("a", encoding="utf-8") as file:
            file.write(options)
        for site in SITES:
            stage.start_site(site)
        if volume:
            stage.trisite("mkfs")
        yield stage


def run(config: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A command as an operator types it; TimeoutExpired where it hangs."""
    return subprocess.run(
        [*prefix, *trisite_command(), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TRISITE_CONFIG": str(config)},
    )


def assert_refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One sentence on standard error with these words, that exit code, nothing on standard output."""
    told = [line for line in result.stderr.splitlines() if not line.startswith("[")]  # steps are no errors
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert len(told) == 1, result.stderr
    assert told[0].startswith("trisite: ")
    assert "fault in trisite" not in told[0]
    for word in words:
        assert word in told[0]


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and fsync it; OSError where the file system refuses, with nothing left open."""
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def assert_quiet(stage: Stage) -> None:
    """No process of the stage has died, and none has told a story of its own insides."""
    for name, process in stage.running.items():
        assert process.poll() is None, stage.last_words(name)
    for log in [*stage.logs.glob("*.log"), *stage.directory.glob("*/mount.log")]:
        text = log.read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in text, text
        assert "fault in trisite" not in text, text
