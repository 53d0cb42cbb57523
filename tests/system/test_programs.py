"""Real programs on the file system at three sites do there exactly what they do in a plain directory."""

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.kills import Ground, prepared

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

PATIENCE_SECONDS = 100
DAY = "2024-03-01T12:00:00+0000"
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "one", "GIT_AUTHOR_EMAIL": "one@localhost", "GIT_AUTHOR_DATE": DAY,
    "GIT_COMMITTER_NAME": "one", "GIT_COMMITTER_EMAIL": "one@localhost", "GIT_COMMITTER_DATE": DAY,
}  # fmt: skip


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with prepared(tmp_path / "volume") as ground:
        yield ground


@pytest.fixture
def places(ground: Ground, tmp_path: Path) -> tuple[Path, Path]:
    """A plain directory and one on the mounted file system, of the same name."""
    plain, mounted = tmp_path / "plain" / "work", ground.mountpoint / "work"
    plain.mkdir(parents=True)
    mounted.mkdir()
    return plain, mounted


def run(directory: Path, *command: str) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, f"{command} in {directory}: {done.stdout}"
    return done.stdout


def tree(directory: Path) -> dict[str, tuple[str, int, str]]:
    """Every name below a directory: its kind and permissions, its size, the digest of its content."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            seen = os.readlink(path)
        else:
            seen = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        size = 0 if path.is_dir() else status.st_size
        found[str(path.relative_to(directory))] = (stat.filemode(status.st_mode), size, seen)
    return found


def afresh(ground: Ground) -> None:
    """The sites agree and are sound; then mount again, so that nothing comes from the page cache."""
    ground.follow("primary", "sync", "async")
    ground.verify("primary,sync", "sync,async")
    ground.unmount()
    ground.check_sites()
    ground.mount("primary")


# -- git


def make_source(directory: Path) -> Path:
    """A repository with a history: text, binary files, a deep path, a link, a script, a branch, a tag."""
    directory.mkdir()
    run(directory, "git", "init", "-q", "-b", "main")
    deep = directory / "a" / "b" / "c"
    deep.mkdir(parents=True)
    for number in range(12):
        (directory / f"text{number}").write_text(f"line {number}\n" * (200 * number + 1))
        (deep / f"blob{number % 3}").write_bytes(bytes(range(256)) * (number * 40 + 1))
        (directory / "script").write_text(f"#!/bin/sh\necho {number}\n")
        (directory / "script").chmod(0o755)
        run(directory, "git", "add", "-A")
        run(directory, "git", "commit", "-q", "-m", f"step {number}")
        if number == 5:
            (directory / "link").symlink_to("a/b/c/blob0")
            run(directory, "git", "tag", "-a", "-m", "half", "half")
            run(directory, "git", "branch", "side")
    return directory


def use_clone(source: Path, place: Path) -> str:
    """Clone, commit, merge, move, pack; what git says of the outcome."""
    run(place, "git", "clone", "-q", "--no-hardlinks", str(source), "clone")
    clone = place / "clone"
    (clone / "text3").write_text("changed\n")
    run(clone, "git", "mv", "text4", "moved")
    run(clone, "git", "commit", "-q", "-a", "-m", "changed and moved")
    run(clone, "git", "checkout", "-q", "-b", "other", "origin/side")
    (clone / "new").write_text("new\n")
    run(clone, "git", "add", "new")
    run(clone, "git", "commit", "-q", "-m", "beside")
    run(clone, "git", "checkout", "-q", "main")
    run(clone, "git", "merge", "-q", "--no-edit", "other")
    run(clone, "git", "gc", "-q", "--prune=now")
    said = run(clone, "git", "fsck", "--full", "--strict")
    for question in (
        ("status", "--porcelain"), ("log", "--format=%H %P %s", "--all"), ("ls-files", "-s"),
        ("show-ref",), ("diff", "--stat", "half"),
    ):  # fmt: skip
        said += run(clone, "git", *question)
    return said


def test_git(ground: Ground, places: tuple[Path, Path], tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    plain, mounted = (use_clone(source, place) for place in places)
    assert "beside" in plain
    assert mounted == plain
    work = [{n: v for n, v in tree(place / "clone").items() if not n.startswith(".git")} for place in places]
    assert work[0] == work[1]
    afresh(ground)
    clone = places[1] / "clone"
    run(clone, "git", "fsck", "--full", "--strict")
    assert run(clone, "git", "status", "--porcelain") == ""
    back = tmp_path / "back"
    run(tmp_path, "git", "clone", "-q", str(clone), str(back))
    assert run(back, "git", "rev-parse", "HEAD") == run(places[0] / "clone", "git", "rev-parse", "HEAD")


# -- make

MAKEFILE = """\
CFLAGS = -O1 -Wall -Werror
OBJECTS = main.o words.o table.o sort.o text.o sum.o
all: report
report: $(OBJECTS) libcommon.a
\t$(CC) -o $@ $(OBJECTS) libcommon.a
libcommon.a: common.o
\tar rcsD $@ $^
%.o: %.c common.h
\t$(CC) $(CFLAGS) -c -o $@ $<
words.o: words.h
main.o: words.h
clean:
\trm -f *.o *.a report
.PHONY: all clean
"""
C_FILES = {
    "common.h": "#ifndef COMMON_H\n#define COMMON_H\nint twice(int);\nint add(int, int);\n"
    "int mul(int, int);\nint order(int);\nint length(const char *);\nint total(int);\n"
    "const char *word(int);\n#endif\n",
    "words.h": "#define WORDS 3\n",
    "common.c": '#include "common.h"\nint twice(int n) { return 2 * n; }\n',
    "words.c": '#include "common.h"\n#include "words.h"\n'
    'static const char *all[WORDS] = {"a", "bc", "def"};\n'
    "const char *word(int n) { return all[n % WORDS]; }\n",
    "table.c": '#include "common.h"\nint add(int a, int b) { return a + b; }\n'
    "int mul(int a, int b) { return a * b; }\n",
    "sort.c": '#include "common.h"\nint order(int n) { return n % 7; }\n',
    "text.c": '#include "common.h"\n#include <string.h>\n'
    "int length(const char *s) { return (int)strlen(s); }\n",
    "sum.c": '#include "common.h"\nint total(int n) { return n ? add(n, total(n - 1)) : 0; }\n',
    "main.c": '#include "common.h"\n#include "words.h"\n#include <stdio.h>\nint main(void) {\n'
    '  for (int n = 0; n < WORDS; n++)\n    printf("%s %d %d\\n", word(n), length(word(n)),\n'
    "           add(mul(twice(n), order(n + 9)), total(n * 10)));\n  return 0;\n}\n",
}


def build(project: Path) -> list[str]:
    """Build, build again, change a header, build, clean and build: what each of them said and made."""
    project.mkdir()
    (project / "Makefile").write_text(MAKEFILE)
    for name, text in C_FILES.items():
        (project / name).write_text(text)
    said = [run(project, "make"), run(project, "./report"), run(project, "make")]
    newer = max(path.stat().st_mtime_ns for path in project.glob("*.o")) + 1
    os.utime(project / "words.h", ns=(newer, newer))
    rebuilt = run(project, "make")
    assert "-o words.o" in rebuilt
    assert "-o sort.o" not in rebuilt
    said += [rebuilt, run(project, "make", "clean"), str(sorted(os.listdir(project)))]
    run(project, "make", "-s", "-j3")
    return [*said, run(project, "./report")]


def test_make(ground: Ground, places: tuple[Path, Path]) -> None:
    plain, mounted = (build(place / "project") for place in places)
    assert "def 3 226" in plain[1]
    assert mounted == plain
    assert tree(places[1]) == tree(places[0])
    afresh(ground)
    assert tree(places[1]) == tree(places[0])
    os.utime(places[1] / "project" / "words.h")
    assert "words.o" in run(places[1] / "project", "make")


# -- pytest

PACKAGE = {
    "notes/__init__.py": '"""Notes in files."""\n\nfrom notes.store import Store\n\n__all__ = ["Store"]\n',
    "notes/store.py": '''\
"""Notes kept as files that are replaced whole, with an index in SQLite and a lock."""

import fcntl
import os
import sqlite3
import tempfile


class Store:
    def __init__(self, place):
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        self.index = sqlite3.connect(place / "index.db", isolation_level=None)
        self.index.execute("PRAGMA journal_mode=WAL")
        self.index.execute("CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, size INTEGER)")
        self.lock = open(place / "lock", "a+")

    def save(self, name, text):
        fcntl.lockf(self.lock, fcntl.LOCK_EX)
        try:
            descriptor, path = tempfile.mkstemp(dir=self.place)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(path, self.place / name)
            self.index.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, len(text)))
        finally:
            fcntl.lockf(self.lock, fcntl.LOCK_UN)

    def read(self, name):
        return (self.place / name).read_text(encoding="utf-8")

    def sizes(self):
        return dict(self.index.execute("SELECT name, size FROM notes ORDER BY name"))

    def close(self):
        self.index.close()
        self.lock.close()
''',
    "tests/conftest.py": """\
import pytest

from notes import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "notes")
    yield store
    store.close()
""",
    "tests/test_notes.py": """\
import fcntl
import mmap
import multiprocessing
import os
import shutil

import pytest

from notes import Store


@pytest.mark.parametrize("name", ["plain", "with blank", "\\u00fcml\\u00e4ut", "x" * 200])
@pytest.mark.parametrize("size", [0, 4095, 4097, 300000])
def test_what_is_saved_is_read(store, name, size):
    store.save(name, "y" * size)
    assert store.read(name) == "y" * size
    assert store.sizes() == {name: size}


def test_saved_again(store):
    for number in range(20):
        store.save("note", f"version {number}")
    assert store.read("note") == "version 19"
    assert sorted(path.name for path in store.place.iterdir()) == sorted(
        ["index.db", "index.db-shm", "index.db-wal", "lock", "note"]
    )


def test_opened_again(store):
    store.save("note", "text")
    other = Store(store.place)
    other.save("other", "longer text")
    assert store.sizes() == {"note": 4, "other": 11}
    other.close()


def add(place, worker):
    store = Store(place)
    for number in range(5):
        store.save(f"{worker}-{number}", "z" * number)
    store.close()


def test_several_processes(store):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add, args=(store.place, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(store.sizes()) == 15


def test_a_lock_is_one(tmp_path):
    with open(tmp_path / "lock", "w") as one, open(tmp_path / "lock", "w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_memory_map(tmp_path):
    path = tmp_path / "map"
    path.write_bytes(bytes(10000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[5000:5005] = b"hello"
        view.flush()
    assert path.read_bytes()[4999:5006] == b"\\0hello\\0"


def test_copy_and_remove_a_tree(tmp_path):
    for number in range(30):
        directory = tmp_path / "tree" / str(number % 5)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / str(number)).write_text(str(number))
    (tmp_path / "tree" / "link").symlink_to("0")
    os.link(tmp_path / "tree" / "1" / "1", tmp_path / "tree" / "hard")
    shutil.copytree(tmp_path / "tree", tmp_path / "copy", symlinks=True)
    assert os.readlink(tmp_path / "copy" / "link") == "0"
    assert (tmp_path / "tree" / "hard").stat().st_nlink == 2
    shutil.rmtree(tmp_path / "tree")
    assert len(list((tmp_path / "copy").rglob("*"))) == 30 + 5 + 2


def test_times_modes_holes(tmp_path):
    path = tmp_path / "file"
    path.touch()
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    path.chmod(0o640)
    assert path.stat().st_mode & 0o7777 == 0o640
    os.truncate(path, 5_000_000)
    assert path.stat().st_blocks <= 8
    with path.open() as file:
        os.fsync(file.fileno())
    assert path.stat().st_blocks == 0
    assert path.read_bytes() == bytes(5_000_000)


def test_unlinked_while_open(tmp_path):
    path = tmp_path / "file"
    with path.open("w+") as file:
        file.write("still here")
        path.unlink()
        file.seek(0)
        assert file.read() == "still here"
    assert not path.exists()


@pytest.mark.xfail(strict=True)
def test_that_fails(store):
    store.read("never saved")
""",
}


def run_tests(project: Path, *options: str) -> list[str]:
    """The outcome of every test of the package, with its bytecode, cache and files in the project."""
    for name, text in PACKAGE.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text, encoding="utf-8")
    (project / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    pytest_command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--basetemp=made"]
    said = run(project, *pytest_command, *options, "tests").splitlines()
    return [line.rpartition("[")[0] for line in said if "::" in line]  # without the percentage


def test_pytest(ground: Ground, places: tuple[Path, Path]) -> None:
    plain, mounted = (run_tests(place / "project") for place in places)
    assert len(plain) > 20
    assert all("PASSED" in line or "XFAIL" in line for line in plain)
    assert mounted == plain
    sources = [{n: v for n, v in tree(place).items() if n.endswith(".py")} for place in places]
    assert sources[0] == sources[1]
    assert list((places[1] / "project").rglob("*.pyc"))
    afresh(ground)
    again = run_tests(places[1] / "project", "-k", "again")
    assert again == [line for line in plain if "again" in line]
