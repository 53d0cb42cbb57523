"""The arrows of the architecture: tools -> replication -> vsap -> jfs, and one door to libfuse."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("jfs", "vsap", "replication", "tools")
MAY_IMPORT_PYFUSE3 = frozenset({"jfs/fuse.py", "tools/bench/passthrough.py"})

IMPORT_EVERYTHING_WITHOUT_LIBFUSE = """
import importlib, sys
sys.modules["pyfuse3"] = None
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def sources(*parts: str) -> list[Path]:
    return sorted(path for part in parts for path in (ROOT / part).rglob("*.py"))


def imported_modules(tree: ast.AST) -> set[str]:
    """The modules a source file imports: by statement, or by name through importlib or __import__."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                found.add(module)
    return found


def imports_pyfuse3(source: str) -> bool:
    return any(module.split(".")[0] == "pyfuse3" for module in imported_modules(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import pyfuse3",
        "import os, pyfuse3 as kernel",
        "def f() -> None:\n    from pyfuse3 import FUSEError",
        "from pyfuse3.asyncio import enable",
        "import importlib\nimportlib.import_module('pyfuse3')",
        "__import__('pyfuse3')",
    ],
)
def test_the_check_sees_every_kind_of_import(source: str) -> None:
    assert imports_pyfuse3(source)


def test_the_check_is_not_fooled_by_a_mere_mention() -> None:
    assert not imports_pyfuse3('"""pyfuse3"""\nfrom jfs import pyfuse3\nimport pyfuse3_like')


def test_only_the_fuse_door_imports_pyfuse3() -> None:
    offenders = [
        name
        for path in sources(*PARTS)
        if (name := path.relative_to(ROOT).as_posix()) not in MAY_IMPORT_PYFUSE3
        and imports_pyfuse3(path.read_text(encoding="utf-8"))
    ]
    assert not offenders, f"import pyfuse3 but may not: {offenders}"


def test_the_lower_parts_import_without_libfuse() -> None:
    """fsck and recovery must run on a machine that cannot mount."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources("jfs", "vsap", "replication")
        if path.name != "__main__.py" and path.relative_to(ROOT).as_posix() not in MAY_IMPORT_PYFUSE3
    ]
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING_WITHOUT_LIBFUSE, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_imports_run_one_way() -> None:
    run = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
