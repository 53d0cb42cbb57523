"""Limits on size, and habits that hide faults: checked over every tracked Python file."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FUNCTION = 80
LONGEST_MODULE = 600
# Put together here so that this file passes its own check.
MARKER_WORDS = ("TO" + "DO", "FIX" + "ME", "X" * 3)
MARKERS = re.compile(rf"\b({'|'.join(MARKER_WORDS)})\b")
CATCH_ALL = frozenset({"Exception", "BaseException"})


def tracked_python() -> list[Path]:
    """The Python files git knows; all of them where there is no git (an unpacked archive)."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--", "*.py"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        names = [name.decode() for name in listing.stdout.split(b"\0") if name]
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    parts = ("jfs", "vsap", "replication", "tools", "tests")
    return sorted(path for part in parts for path in (ROOT / part).rglob("*.py"))


def long_functions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                yield f"{node.lineno}: function {node.name} has {lines} lines (limit {LONGEST_FUNCTION})"


def does_nothing(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(statement, ast.Pass)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in body
    )


def catches_all(kind: ast.expr) -> bool:
    names = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(isinstance(name, ast.Name) and name.id in CATCH_ALL for name in names)


def swallowed_errors(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ExceptHandler(type=None):
                yield f"{node.lineno}: a bare except"
            case ast.ExceptHandler(type=ast.expr() as kind) if catches_all(kind) and does_nothing(node.body):
                yield f"{node.lineno}: every error is caught and dropped"
            case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress")):
                if any(catches_all(argument) for argument in node.args):
                    yield f"{node.lineno}: every error is suppressed"


def untidy(source: str) -> list[str]:
    tree = ast.parse(source)
    lines = source.splitlines()
    found = [*long_functions(tree), *swallowed_errors(tree)]
    if len(lines) > LONGEST_MODULE:
        found.append(f"1: the module has {len(lines)} lines (limit {LONGEST_MODULE})")
    found += [
        f"{number}: a leftover marker, {mark[0]}"
        for number, line in enumerate(lines, 1)
        if (mark := MARKERS.search(line))
    ]
    return found


def test_every_tracked_file_is_tidy() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in tracked_python()
        for fault in untidy(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept:\n    raise\n",
        "try:\n    f()\nexcept Exception:\n    pass\n",
        "try:\n    f()\nexcept (OSError, BaseException):\n    ...\n",
        "with contextlib.suppress(Exception):\n    f()\n",
        f"x = 1  # {MARKER_WORDS[0]}: later\n",
        "def f() -> None:\n" + "    x = 1\n" * LONGEST_FUNCTION,
        "x = 1\n" * (LONGEST_MODULE + 1),
    ],
)
def test_the_check_finds(source: str) -> None:
    assert len(untidy(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept OSError:\n    pass\n",
        "try:\n    f()\nexcept Exception as error:\n    log(error)\n",
        f"template = 'a{MARKER_WORDS[2] * 2}'\n",
        "def f() -> None:\n" + "    x = 1\n" * (LONGEST_FUNCTION - 1),
        "x = 1\n" * LONGEST_MODULE,
    ],
)
def test_the_check_lets_pass(source: str) -> None:
    assert untidy(source) == []
