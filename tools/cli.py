"""The `trisite` command: reads the command line, one module a command, failures become one sentence.

A command function returns its exit code. Whatever it raises ends here: a failure with a sentence of its own
is told as it is, anything else is a fault of trisite and is shown whole only with --debug.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from cyclopts import App, CycloptsError

from tools import render
from tools.errors import ExitCode, Failure, explain, innermost

DEBUG_VARIABLE: Final = "TRISITE_DEBUG"
DEBUG_OPTION: Final = "--debug"
CONFIG_OPTIONS: Final = ("-c", "--config")
# Commands whose usage error has another code than 2: fsck(8) says 16.
USAGE_CODES: Final = {"fsck": 16}

# Where every command is. Only the module of the command that was called is imported.
COMMANDS: Final = {
    "init": "tools.init:init",
    "site": "tools.site:site",
    "mkfs": "tools.mkfs:mkfs",
    "mount": "tools.mount:mount",
    "umount": "tools.mount:umount",
    "status": "tools.status:status",
    "pair": "tools.pair:pair",
    "events": "tools.events:events",
    "failover": "tools.failover:failover",
    "failback": "tools.failover:failback",
    "recover": "tools.recover:recover",
    "fsck": "tools.fsck:fsck",
    "quarantine": "tools.quarantine:quarantine",
    "verify": "tools.verify:verify",
    "demo": "tools.demo.story:demo",
}

# Commands that only show something, some of them until Ctrl-C.
WATCHING: Final = {"status", "events"}

HELP: Final = f"""A POSIX file system that lives at three sites at once.

Every command reads the configuration named by -c FILE, before or after the command, or $TRISITE_CONFIG.

{DEBUG_OPTION} (or ${DEBUG_VARIABLE}=1) shows the whole story of a fault.

docs/operations.md has the runbook and the exit codes.
"""


def own_version() -> str:
    """The version that is installed, or what there is to say without an installation."""
    try:
        return version("trisite")
    except PackageNotFoundError:
        return "not installed"


def build(word: str) -> App:
    """The command line, with the command `word` alone if it is one, with all of them otherwise (for help)."""
    # Ctrl-C comes through to `main`, which says what it means.
    app = App(
        name="trisite",
        help=HELP,
        version=own_version,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for name in [word] if word in COMMANDS else COMMANDS:
        module, _, attribute = COMMANDS[name].partition(":")
        app.command(getattr(importlib.import_module(module), attribute), name=name)
    return app


def command_first(words: Sequence[str]) -> list[str]:
    """The words with a configuration that was named before the command moved behind it: it is meant so."""
    rest, named = list(words), list[str]()
    while rest:
        if rest[0] in CONFIG_OPTIONS and len(rest) > 1:
            named += [rest.pop(0), rest.pop(0)]
        elif rest[0].startswith("--config=") or (rest[0].startswith("-c") and len(rest[0]) > 2):
            named.append(rest.pop(0))
        else:
            break
    if named and not rest:
        raise Failure(
            "a configuration was named, but no command; `trisite --help` lists them", ExitCode.USAGE
        )
    return [*rest[:1], *named, *rest[1:]]


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code. Raises what the command raises."""
    word = arguments[0] if arguments else ""
    if word and word not in COMMANDS and not word.startswith("-"):
        raise Failure(
            f"there is no command {word[:40]!r}; there are {', '.join(COMMANDS)}; `trisite --help` says what "
            "each does",
            ExitCode.USAGE,
        )
    app = build(word)
    code = app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
    return int(code) if isinstance(code, int) else ExitCode.OK


def report(error: BaseException, command: str, *, debug: bool) -> int:
    """Tell the operator about `error` in one sentence; the exit code."""
    if command in WATCHING and isinstance(innermost(error), KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if debug:
        render.note("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, CycloptsError):
        sentence = " ".join(str(error).split()).rstrip(".")
        end = "" if sentence.endswith("?") else ";"
        words = ("trisite", command, "--help") if command else ("trisite", "--help")
        render.error(f"{sentence}{end} `{' '.join(words)}` shows what can be said")
        return USAGE_CODES.get(command, ExitCode.USAGE)
    sentence, code = explain(error)
    if code == ExitCode.INTERNAL and not debug:
        sentence += f"; run again with {DEBUG_OPTION} to see where it happened"
    render.error(sentence)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `trisite`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if sys.flags.optimize:
        render.error(
            "Python's -O takes away checks that guard your data; run trisite without -O and PYTHONOPTIMIZE"
        )
        return ExitCode.USAGE
    debug = os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}
    if DEBUG_OPTION in words:
        words.remove(DEBUG_OPTION)
        os.environ[DEBUG_VARIABLE] = "1"  # for the process that `mount` leaves behind
        debug = True
    command = ""
    try:
        words = command_first(words)
        command = words[0] if words and words[0] in COMMANDS else ""
        code = run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read standard output has enough; keep the interpreter from complaining at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OPERATIONAL
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else ExitCode.OPERATIONAL
    except BaseException as error:  # the one place where nothing may pass
        return report(error, command, debug=debug)
    return code


if __name__ == "__main__":
    sys.exit(main())
