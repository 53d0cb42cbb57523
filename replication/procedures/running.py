"""Executing a plan: report each step, measure it, and ask sites with errors that become one sentence."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from replication.client import ask_site
from replication.config import Config, SiteName
from replication.control import ControlError, ControlRequest, ReplyT
from replication.errors import AnswerLost, PeerRefused, PeerUnreachable, RemoteProtocolError
from replication.procedures.plan import Step
from replication.procedures.results import ProcedureRefused, StepEvent
from replication.roles import Roles

Report = Callable[[StepEvent], None]

REQUEST_SECONDS: Final = 30.0
"""A step that a living site may need some time for: flushing, applying a journal, saving to quarantine."""
POLL_SECONDS: Final = 0.1
PROGRESS_SECONDS: Final = 1.0


class Progress:
    """The steps of one run, told to `report` and kept for the result."""

    def __init__(self, steps: list[Step], report: Report) -> None:
        self._steps = {step.name: (number, step) for number, step in enumerate(steps, 1)}
        self._report = report
        self._detail = ""
        self._told = 0.0
        self._pending = False
        self.events: list[StepEvent] = []
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the procedure began."""
        return round(time.monotonic() - self.started, 3)

    def plan_only(self) -> None:
        """Tell the steps without taking them."""
        for name in self._steps:
            self._tell(name, "planned", 0.0)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Around one step: started before, done (or pending) after; an error passes through."""
        began = time.monotonic()
        self._detail, self._pending = "", False
        self._tell(name, "started", 0.0)
        yield
        seconds = round(time.monotonic() - began, 3)
        self._tell(name, "pending" if self._pending else "done", seconds)

    def note(self, detail: str) -> None:
        """What the step under way found out, told when it ends."""
        self._detail = detail

    def pending(self, detail: str) -> None:
        """The step under way goes on by itself after this run."""
        self._detail, self._pending = detail, True

    def progress(self, name: str, detail: str) -> None:
        """Told at most once a second, so that a long copy shows it is alive."""
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._detail = detail
            self._tell(name, "progress", 0.0)

    def _tell(self, name: str, status: str, seconds: float) -> None:
        number, step = self._steps[name]
        event = StepEvent(
            number=number,
            total=len(self._steps),
            name=name,
            sentence=step.sentence,
            cost=step.cost,
            status=status,  # type: ignore[arg-type]  # one of the literals above, all written in this class
            seconds=seconds,
            detail=self._detail,
        )
        if status not in {"progress", "started"}:
            self.events.append(event)
        self._report(event)


async def demand(
    config: Config, site: SiteName, request: ControlRequest[ReplyT], seconds: float = REQUEST_SECONDS
) -> ReplyT:
    """The reply of a site the procedure cannot do without; ProcedureRefused with the way out otherwise."""
    try:
        return await ask_site(config, site, request, seconds)
    except ControlError as error:
        raise ProcedureRefused(f"site {site} refuses: {error.sentence}", 1) from error
    except AnswerLost as error:
        raise ProcedureRefused(
            f"site {site} stopped answering ({error}); see `trisite status` once it is back, or run the "
            "command again, which is safe and finishes it",
            3,
        ) from error
    except (PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
        raise ProcedureRefused(
            f"site {site} stopped answering ({error}); run the command again once it is back",
            4,
        ) from error


async def request_if_there(
    config: Config, site: SiteName, request: ControlRequest[ReplyT], seconds: float = REQUEST_SECONDS
) -> ReplyT | str:
    """The reply of a site the procedure can do without, or in one sentence why there is none."""
    try:
        return await ask_site(config, site, request, seconds)
    except (ControlError, PeerUnreachable, PeerRefused, RemoteProtocolError) as error:
        return str(error)


def raise_if_overtaken(site: SiteName, now: Roles | None, expected: Roles) -> None:
    """ProcedureRefused where a site is no longer in the epoch that this run began or found.

    Another command has changed the writer meanwhile: what this one waits for may never come.
    """
    if now is None or now.identity != expected.identity:
        state = (
            "has no volume" if now is None else f"is in epoch {now.epoch}, in which site {now.writer} writes"
        )
        raise ProcedureRefused(
            f"another command has changed the writer meanwhile: site {site} {state}; see `trisite status` "
            "before you run this one again",
            1,
        )
