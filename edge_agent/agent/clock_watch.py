"""Watch of the wall clock: alerts on implausible steps, and the labels of the gallery after a new time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from edge_agent.core.alerts import AlertKind
from edge_agent.core.errors import StorageError
from edge_agent.core.events import alert_event
from edge_agent.core.timing import duration

if TYPE_CHECKING:
    from edge_agent.agent.stages import Stages

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ClockWatch:
    """Checks the clock; `stages.clock` has the rules."""

    stages: Stages
    note: Callable[[str, str], None]
    """Called with a cause of degraded work and its reason, "" when it is over."""
    _reported: str = ""
    """The reason reported last, without numbers that grow."""

    def check(self) -> None:
        """Follow an accepted step, and report a step that is not plausible, or its end."""
        clock = self.stages.clock
        relabelled = clock.check()
        if relabelled is not None:
            try:
                self.stages.gallery.retention.relabel(relabelled)
            except StorageError as error:
                _log.warning("gallery_not_relabelled", error=str(error))
        state = clock.state()
        kind = f"{state.state}{state.paused}" if state.state == "stepped" else ""
        if kind == self._reported:
            return
        self._reported = kind
        message = str(state)
        if not kind and relabelled is not None:
            message = f"the system clock is taken as right, a step of {duration(abs(relabelled.step_s))}"
        elif not kind:
            message = "the system clock is back at the time that has passed"
        (_log.warning if kind else _log.info)("clock_stepped", reason=message)
        self.note("clock", message if kind else "")
        details = {"step_s": round(state.step_s, 1), "expiry_paused": state.paused}
        event = alert_event(
            AlertKind.CLOCK_STEPPED, message, active=bool(kind), time=clock.label(), details=details
        )
        self.stages.publisher.publish(event)
