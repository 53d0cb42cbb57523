"""What the tests of bad input share: sites made quickly, and the one way in which every command may fail."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tools.demo.stage import SITES, Stage, trisite_command

SECONDS: Final = 90  # far more than any command here may take: a hang is a failure of its own
OPTIONS: Final = "silence_seconds = 3.0\nprotect_timeout_seconds = 2.0\n"


@contextmanager
def sites(directory: Path, *, volume: bool = True, options: str = OPTIONS) -> Iterator[Stage]:
    """Three running sites, with an empty file system if `volume`, nothing mounted."""
    with Stage(directory) as stage:
        stage.trisite("init", str(directory), "--size", "64MiB", config=False)
        with stage.config.open("a", encoding="utf-8") as file:
            file.write(options)
        start_daemons(stage)
        if volume:
            stage.trisite("mkfs")
        yield stage


def start_daemons(stage: Stage, *names: str) -> None:
    """Start these daemons (all three if none is named) at once; return when each has said that it listens."""

    def said(site: str) -> int:
        log = stage.logs / f"{site}.log"
        return log.read_text(encoding="utf-8").count(" listens at ") if log.exists() else 0

    chosen = names or SITES
    before = {site: said(site) for site in chosen}
    for site in chosen:
        stage.start(site, [*trisite_command(), "site", site, "-c", str(stage.config)])
    for site, count in before.items():
        stage.wait_for(
            lambda site=site, count=count: said(site) > count,  # type: ignore[misc]
            f"site {site} to listen",
            stage.running[site],
            site,
        )


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


def run_all(config: Path, *commands: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    """Commands that do not disturb one another, a few at a time; their results in the order given."""
    with ThreadPoolExecutor(max_workers=3) as pool:
        return list(pool.map(lambda command: run(config, *command), commands))


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
