"""Everything that is shown to a person or a script passes here; no other module prints.

With `--json`, standard output carries exactly one JSON object; what a person would be shown instead of it is
not shown, and only progress, questions and errors go to standard error.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from replication.words import size

__all__ = [
    "Output", "clear_screen", "confirm", "duration", "error", "note", "shown_on_terminal", "size",
]  # fmt: skip

WIDTH_WITHOUT_TERMINAL = 200  # a table in a log or a pipe is not to be folded at 80 columns
PROGRESS_LINE_SECONDS = 5.0  # how often progress is told where there is no terminal to draw on

Advance = Callable[[int, int], None]  # (done, of): what a piece of long work calls now and then


def _console(*, stderr: bool) -> Console:
    """A console over the stream of this moment, so that a redirected standard output is honoured."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)


def duration(seconds: float) -> str:
    """A span of time as a person reads it: 0.21 s, 4 m 10 s, 2 h 5 m, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


class Output:
    """Where a command's answer goes: to a person, or as one JSON object to a script.

    `aside`: a person is shown it on standard error, because standard output belongs to something else.
    """

    def __init__(self, *, as_json: bool = False, aside: bool = False) -> None:
        self.as_json = as_json
        self._aside = aside

    def say(self, text: str, *, style: str | None = None) -> None:
        """One line of the answer for a person."""
        if not self.as_json:
            _console(stderr=self._aside).print(Text(text, style=style or ""), soft_wrap=True)

    def note(self, text: str) -> None:
        """One line about the work itself, never part of the answer: always on standard error."""
        note(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for a person; columns whose name starts with '>' are set to the right."""
        if self.as_json:
            return
        table = Table(
            title=title or None,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for name in columns:
            right = name.startswith(">")
            table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        _console(stderr=self._aside).print(table)

    def result(self, document: Mapping[str, object] | msgspec.Struct) -> None:
        """The answer for a script; nothing where a person asked."""
        if self.as_json:
            sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """A bar on standard error while the work goes on; a line now and then where that is no terminal."""
        console = _console(stderr=True)
        if not console.is_terminal:
            yield _progress_lines(what)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=None, amount="")

            def advance(done: int, of: int) -> None:
                bar.update(task, completed=done, total=of or None, amount=f"{done:,} of {of:,}")

            yield advance

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[str], None]]:
        """A changing line on standard error while work of unknown length goes on; now and then in a log."""
        console = _console(stderr=True)
        if not console.is_terminal:
            last = time.monotonic()

            def tell(sentence: str) -> None:
                nonlocal last
                if time.monotonic() - last >= PROGRESS_LINE_SECONDS:
                    last = time.monotonic()
                    note(sentence)

            yield tell
            return
        with console.status(Text(what)) as status:
            yield lambda sentence: status.update(Text(sentence))


def _progress_lines(what: str) -> Advance:
    last = time.monotonic()

    def advance(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_LINE_SECONDS:
            last = time.monotonic()
            note(f"{what}: {done:,} of {of:,}")

    return advance


def note(text: str) -> None:
    """One line on standard error."""
    _console(stderr=True).print(Text(text), soft_wrap=True)


def error(sentence: str) -> None:
    """The one sentence a failed command ends with."""
    note(f"trisite: {sentence}")


def confirm(question: str) -> bool | None:
    """Ask on the terminal; None where there is nobody to ask."""
    if not sys.stdin.isatty():
        return None
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def shown_on_terminal() -> bool:
    """Whether the answer is read by a person as it comes, not kept in a file or read by a program."""
    return sys.stdout.isatty()


def clear_screen() -> None:
    """Start a fresh picture of `status --watch`; in a pipe the pictures follow one another."""
    console = _console(stderr=False)
    if console.is_terminal:
        console.clear()
