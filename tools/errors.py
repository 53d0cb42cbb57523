"""What an operator is told when something does not work: one sentence, and an exit code for scripts."""

import os
from enum import IntEnum
from typing import Final

import trio


class ExitCode(IntEnum):
    """Exit codes of `trisite`, stable once published; `fsck` and `verify` have their own."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    TIMEOUT = 3
    UNREACHABLE = 4
    WOULD_LOSE = 5
    DAMAGED = 6
    OPERATIONAL = 8
    INTERNAL = 70
    INTERRUPTED = 130


# Exceptions whose text is a sentence for the operator. By name: no command imports what it does not use.
TOLD_AS_THEY_ARE: Final = {
    "jfs.errors.CorruptionError": ExitCode.DAMAGED,
    "jfs.errors.DeviceError": ExitCode.OPERATIONAL,
    "jfs.errors.NoSpace": ExitCode.OPERATIONAL,
    "jfs.errors.OtherFormatError": ExitCode.REFUSED,  # nothing is damaged
    "jfs.mountpoint.FuseUnusable": ExitCode.OPERATIONAL,
    "jfs.mountpoint.MountRefused": ExitCode.REFUSED,
    "jfs.mountpoint.UnknownOption": ExitCode.USAGE,
    "replication.config.ConfigurationError": ExitCode.USAGE,
    "replication.control.ControlError": ExitCode.REFUSED,
    "replication.errors.AnswerLost": ExitCode.TIMEOUT,
    "replication.errors.PeerRefused": ExitCode.REFUSED,
    "replication.errors.PeerUnreachable": ExitCode.UNREACHABLE,
    "replication.errors.RemoteProtocolError": ExitCode.OPERATIONAL,
    "replication.keys.KeysError": ExitCode.USAGE,
    "replication.restoring.QuarantineDamaged": ExitCode.DAMAGED,
    "replication.set_journal.JournalError": ExitCode.DAMAGED,
    "replication.site.SiteError": ExitCode.REFUSED,
    "replication.site.SiteUnusable": ExitCode.OPERATIONAL,
    "replication.state.StateError": ExitCode.OPERATIONAL,
}
PROCEDURE_REFUSED: Final = "replication.procedures.results.ProcedureRefused"  # brings its own code


class Failure(Exception):
    """A command cannot do what it was asked: the sentence says what, why and what to do."""

    def __init__(self, sentence: str, code: int = ExitCode.OPERATIONAL) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = int(code)


def innermost(error: BaseException) -> BaseException:
    """The exception worth telling: the first one in a (nested) group that is not mere cancellation."""
    while isinstance(error, BaseExceptionGroup):
        telling = [one for one in error.exceptions if not isinstance(one, trio.Cancelled)]
        error = (telling or list(error.exceptions))[0]
    return error


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code for whatever ended a command."""
    error = innermost(error)
    if isinstance(error, Failure):
        return error.sentence, error.code
    if isinstance(error, KeyboardInterrupt):
        sentence = "interrupted; what was done so far is kept, run the command again to finish"
        return sentence, ExitCode.INTERRUPTED
    for kind in type(error).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name == PROCEDURE_REFUSED:
            return str(error), int(getattr(error, "code", ExitCode.REFUSED))
        if name in TOLD_AS_THEY_ARE:
            return str(error), TOLD_AS_THEY_ARE[name]
    if isinstance(error, OSError):
        return system_sentence(error), ExitCode.OPERATIONAL
    what = f"{type(error).__name__}: {error}".strip(": ")
    return f"this is a fault in trisite itself ({what}); please report it", ExitCode.INTERNAL


def system_sentence(error: OSError) -> str:
    """What the operating system refused, with the file it was about."""
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else f"the system refused: {reason}"
