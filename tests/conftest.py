"""What all tests share: the seed of a run, and what a machine without FUSE may skip."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

SEED_VARIABLE = "TRISITE_SEED"
SCHEDULE_VARIABLE = "TRISITE_CRASH_SCHEDULE"
DEFAULT_SEED = 22  # `make test` is the same run every time; `make soak` draws a fresh seed

settings.register_profile("trisite", deadline=None, print_blob=True)
settings.load_profile("trisite")


def run_seed() -> int:
    """The seed of this run: every test that uses chance draws from it and from nothing else."""
    return int(os.environ.get(SEED_VARIABLE, str(DEFAULT_SEED)))


@pytest.fixture
def seed() -> int:
    return run_seed()


@pytest.fixture
def crash_schedule(request: pytest.FixtureRequest) -> str | None:
    """The one power cut to play, if one was asked for."""
    given = request.config.getoption("crash_schedule")
    return None if given is None else str(given)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crash-schedule",
        metavar="STRING",
        default=os.environ.get(SCHEDULE_VARIABLE),
        help=f"play this one power cut (tests/crash; also by {SCHEDULE_VARIABLE})",
    )


def pytest_report_header() -> str:
    return f"seed: {run_seed()} (repeat with {SEED_VARIABLE}={run_seed()})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"repeat with {SEED_VARIABLE}={run_seed()}")


def why_no_mount() -> str | None:
    """Why this machine cannot mount, or None."""
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse on this machine, so nothing can be mounted here"
    if os.geteuid() != 0:
        return "mounting with all options needs root"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_no_mount()
    if reason is None or os.environ.get("CI"):  # there a test that cannot mount fails
        return
    for item in items:
        if item.get_closest_marker("fuse") is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
