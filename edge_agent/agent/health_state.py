"""Health of the agent and its cameras, as the broker and the service manager see it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_agent.core.events import alert_event
from edge_agent.core.structures import SourceState, SourceStatus

if TYPE_CHECKING:
    from edge_agent.deliver.local import State
    from edge_agent.deliver.publisher import AnyPublisher

__all__ = ["HealthState"]

_DOWN = (SourceState.RECONNECTING, SourceState.OFFLINE)


@dataclass(slots=True)
class HealthState:
    """Publishes the states of the agent and of the cameras. Called from any thread.

    Args:
        publisher: takes states and alerts.
        set_status_line: called with the agent's state and reason as one line, for the service manager.
    """

    publisher: AnyPublisher
    set_status_line: Callable[[str], None]
    state: State = "online"
    """State last published."""
    reason: str = ""
    """Reason last published."""
    _causes: dict[str, str] = field(default_factory=dict)
    """Why the agent is degraded: reason by cause, oldest first."""
    _cameras: dict[str, SourceStatus] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, state: State, reason: str = "") -> None:
        """Publish the state of the agent; `stopping` is final."""
        if self.state != "stopping":
            self.state, self.reason = state, reason
            self.set_status_line(f"{state}: {reason}" if reason else state)
            self.publisher.set_status(state, reason)

    def note(self, cause: str, reason: str) -> None:
        """Add a cause of degraded work, or with the reason "" remove it."""
        with self._lock:
            self._note(cause, reason)

    def on_status(self, status: SourceStatus) -> None:
        """Publish the new state of a camera; cameras that are down make the agent degraded."""
        with self._lock:
            before = self._cameras.get(status.camera)
            self._cameras[status.camera] = status
            self.publisher.set_camera_status(status)
            down = [name for name, latest in sorted(self._cameras.items()) if latest.state in _DOWN]
            self._note("cameras", f"no frames from {', '.join(down)}" if down else "")
            self._alert_if_lost(before, status)

    def _note(self, cause: str, reason: str) -> None:
        self._causes.pop(cause, None)
        if reason:
            self._causes[cause] = reason
        self.set("degraded" if self._causes else "online", "; ".join(self._causes.values()))

    def _alert_if_lost(self, before: SourceStatus | None, status: SourceStatus) -> None:
        """Publish an alert when a camera goes offline, and when it is back."""
        was_lost = before is not None and before.state is SourceState.OFFLINE
        is_lost = status.state is SourceState.OFFLINE
        if was_lost == is_lost or (was_lost and status.state is SourceState.RECONNECTING):
            return
        change = f"is offline: {status.reason}" if is_lost else "is back"
        alert = alert_event(
            "camera_lost",
            f"camera {status.camera} {change}",
            active=is_lost,
            time=status.time,
            details={"camera": status.camera},
        )
        self.publisher.publish(alert)
