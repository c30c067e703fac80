"""State of the connection to one source, as reported to the pipeline and the log."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from edge_agent.core.errors import EdgeAgentError
from edge_agent.core.structures import SourceState, SourceStatus
from edge_agent.source.redact import redact_url

__all__ = ["OFFLINE_AFTER_S", "ConnectionState"]

_log = structlog.get_logger(__name__)

OFFLINE_AFTER_S = 30.0
"""After an outage of this time the state is `offline` instead of `reconnecting`; attempts continue."""


class ConnectionState:
    """Reports each change of state once. Logs the start of an outage at WARNING, its end once.

    Args:
        camera: id of the source.
        on_status: called with each change of state, in order.

    Attributes:
        state: last reported, None before the first report.
        reason: of that state.
    """

    def __init__(self, camera: str, on_status: Callable[[SourceStatus], None]) -> None:
        self.state: SourceState | None = None
        self.reason = ""
        self._camera = camera
        self._on_status = on_status
        self._offline_after_s = OFFLINE_AFTER_S
        self._lost_since: float | None = None

    @property
    def is_online(self) -> bool:
        """Whether the last report was `online`."""
        return self.state is SourceState.ONLINE

    def online(self) -> None:
        """Frames arrive."""
        if self.is_online:
            return
        if self._lost_since is None:
            _log.debug("source_online", camera=self._camera)
            reason = "frames arrive"
        else:
            away = time.monotonic() - self._lost_since
            _log.info("source_recovered", camera=self._camera, away_seconds=round(away, 1))
            reason = f"recovered after {away:.1f} s"
        self.report(SourceState.ONLINE, reason)

    def lost(self, failure: EdgeAgentError) -> None:
        """An attempt failed; there will be another one."""
        now = time.monotonic()
        reason = redact_url(str(failure))
        if self._lost_since is None:
            self._lost_since = now
            _log.warning("source_lost", camera=self._camera, reason=reason)
        else:
            _log.debug("source_still_lost", camera=self._camera, reason=reason)
        offline = now - self._lost_since >= self._offline_after_s
        state = SourceState.OFFLINE if offline else SourceState.RECONNECTING
        if state is not self.state:
            self._set(state, reason)

    def report(self, state: SourceState, reason: str) -> None:
        """Set a state that ends an outage, or the source."""
        self._lost_since = None
        self._set(state, reason)

    def _set(self, state: SourceState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._on_status(SourceStatus(self._camera, state, reason, time.time()))
