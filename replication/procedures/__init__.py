"""The procedures of the figures: each a plan first, then idempotent steps that a rerun finishes."""

from replication.procedures.commands import failback, failover, recover
from replication.procedures.results import (
    FailbackResult,
    FailoverResult,
    ListedFileReport,
    ProcedureRefused,
    RecoverResult,
    StepEvent,
)

__all__ = [
    "FailbackResult",
    "FailoverResult",
    "ListedFileReport",
    "ProcedureRefused",
    "RecoverResult",
    "StepEvent",
    "failback",
    "failover",
    "recover",
]
