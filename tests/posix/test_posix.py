"""POSIX as Linux does it: every check on a real mount and on the oracle, with the same outcome.

Where the outcomes differ on purpose, the table in differences.py says how and why.
"""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.differences import DIFFERENCES, OF_TMPFS, difference, page
from tests.posix.oracle import Pair, both_mounted
from tests.posix.world import CHECKS, Check, Outcome

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "posix.md"
FAMILIES = sorted(path.stem for path in HERE.glob("checks_*.py"))

for family in FAMILIES:
    importlib.import_module(f"tests.posix.{family}")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with both_mounted() as mounted:
        yield mounted


def outcome(check: Check, place: Path) -> Outcome:
    """Run a check in an empty directory of its own, with the umask that users have."""
    place.mkdir()
    before = os.umask(0o022)
    try:
        return check(place)
    finally:
        os.umask(before)


@pytest.mark.fuse
@pytest.mark.parametrize("name", list(CHECKS))
def test_a_program_sees_the_same(pair: Pair, name: str) -> None:
    place = str(list(CHECKS).index(name))
    ours = outcome(CHECKS[name], pair.ours / place)
    oracle = outcome(CHECKS[name], pair.oracle / place)
    if pair.oracle_type == "tmpfs" and name.startswith(OF_TMPFS):
        pytest.skip("the oracle is a tmpfs, which differs here")
    entry = difference(name)
    if entry is None or ours == oracle:
        assert ours == oracle
    else:
        assert entry.is_as_described(ours, oracle), f"here {ours}, on {pair.oracle_type} {oracle}"


def test_every_difference_names_checks() -> None:
    unused = [
        pattern
        for entry in DIFFERENCES
        for pattern in entry.checks
        if not any(type(entry)((pattern,), None, "", "").names(name) for name in CHECKS)
    ]
    assert unused == []


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page() in text, f"the table of {PAGE.name} is not that of differences.py, which is:\n{page()}"
    assert f"{len(CHECKS):,} checks" in text
