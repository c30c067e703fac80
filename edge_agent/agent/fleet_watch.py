"""Watch of the fleet: a store that is away for long, or refuses this device, raises an alert."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_agent.core.alerts import AlertKind
from edge_agent.core.events import Event, alert_event
from edge_agent.core.fleet_state import FleetState

AWAY_S = 300.0
"""A store may be away for this time before an alert: a restart or an upgrade of the server takes less."""


def fleet_telemetry(state: FleetState) -> dict[str, Any]:
    """Return the telemetry fields of the fleet."""
    return {
        "fleet_link": state.link,
        "fleet_down": state.link in ("waiting", "refused"),
        "fleet_retry_s": state.retry_s,
        "fleet_lag": state.lag,
        "fleet_pending": state.pending,
        "fleet_sent": state.sent,
        "fleet_received": state.received,
        "fleet_asked": state.asked,
        "fleet_known": state.known,
        "fleet_late": state.late,
        "fleet_unasked": state.unasked,
        "fleet_conflicts": state.conflicts,
    }


@dataclass(slots=True)
class FleetWatch:
    """Publishes `fleet_down` and notes it as a cause of degraded work; the telemetry thread calls `check`."""

    publish: Callable[[Event], object]
    note: Callable[[str, str], None]
    """Adds a cause of degraded work, or with the reason "" removes it."""
    label: Callable[[], float]
    """Returns the Unix time for an event."""
    now: Callable[[], float] = time.monotonic
    _since: float | None = None
    """When the store was first found away."""
    _active: bool = False

    def check(self, state: FleetState) -> None:
        """Compare the state with the one before."""
        if state.link in ("connected", "stopped"):
            self._since = None
            if self._active and state.link == "connected":
                self._report(state, "")
            return
        self._since = self.now() if self._since is None else self._since
        if state.link == "refused" or self.now() - self._since >= AWAY_S:
            self._report(state, state.problem or f"the fleet's store {state.store} was not reached yet")

    def _report(self, state: FleetState, reason: str) -> None:
        self.note("fleet", reason)
        if bool(reason) == self._active:
            return
        self._active = bool(reason)
        details = {
            "site": state.site,
            "store": state.store,
            "link": state.link,
            "reason": state.problem or None,
            "pending": state.pending,
        }
        message = reason or f"the fleet's store {state.store} is reached again"
        self.publish(
            alert_event(
                AlertKind.FLEET_DOWN, message, active=self._active, time=self.label(), details=details
            )
        )
