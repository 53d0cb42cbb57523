"""What an operator is told when something does not work: one sentence, and an exit code for scripts."""

import os
from enum import IntEnum

import trio

from jfs.errors import CorruptionError, DeviceError
from jfs.mountpoint import MountRefused
from replication.config import ConfigurationError
from replication.control import ControlError
from replication.errors import PeerRefused, PeerUnreachable
from replication.keys import KeysError
from replication.procedures.results import ProcedureRefused


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


class Failure(Exception):
    """A command cannot do what it was asked: the sentence says what, why and what to do."""

    def __init__(self, sentence: str, code: int = ExitCode.OPERATIONAL) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = int(code)


class Interrupted(Failure):
    """The operator pressed Ctrl-C or a service manager asked for an end before the work was done."""

    def __init__(self) -> None:
        super().__init__("interrupted; what was done so far is kept, run the command again to finish", 130)


def innermost(error: BaseException) -> BaseException:
    """The exception worth telling: the first one in a (nested) group that is not mere cancellation."""
    while isinstance(error, BaseExceptionGroup):
        telling = [one for one in error.exceptions if not isinstance(one, trio.Cancelled)]
        error = (telling or list(error.exceptions))[0]
    return error


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code for whatever ended a command."""
    error = innermost(error)
    match error:
        case Failure():
            return error.sentence, error.code
        case KeyboardInterrupt():
            interrupted = Interrupted()
            return interrupted.sentence, interrupted.code
        case ProcedureRefused():
            return error.sentence, error.code
        case ControlError():
            return error.sentence, ExitCode.REFUSED
        case KeysError():
            return str(error), ExitCode.USAGE
        case ConfigurationError():
            return str(error), ExitCode.USAGE
        case MountRefused():
            return str(error), ExitCode.REFUSED
        case PeerUnreachable():
            return error.sentence, ExitCode.UNREACHABLE
        case PeerRefused():
            return error.sentence, ExitCode.REFUSED
        case CorruptionError():
            return str(error), ExitCode.DAMAGED
        case DeviceError():
            return str(error), ExitCode.OPERATIONAL
        case OSError():
            return system_sentence(error), ExitCode.OPERATIONAL
        case _:
            what = f"{type(error).__name__}: {error}".strip(": ")
            return f"this is a fault in trisite itself ({what}); please report it", ExitCode.INTERNAL


def system_sentence(error: OSError) -> str:
    """What the operating system refused, with the file it was about."""
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else f"the system refused: {reason}"
