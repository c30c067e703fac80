"""Decide when the agent is ready, and report it to the service manager."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from edge_agent.core.config import SupervisionSettings
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.structures import SourceState
from edge_agent.health.systemd import Notifier

_log = structlog.get_logger(__name__)

_UP = (SourceState.ONLINE, SourceState.ENDED)


class Reader(Protocol):
    """Reader of one source; see `edge_agent.source.reader.FrameReader`."""

    @property
    def camera(self) -> str:
        """Id of the source."""

    @property
    def state(self) -> SourceState | None:
        """State last reported."""

    @property
    def heartbeat(self) -> HeartbeatState:
        """Its latest heartbeat."""


@dataclass(slots=True)
class Readiness:
    """The agent is ready when a source is up, or `ready_after_s` after it opened.

    Args:
        settings: called at each check.
        notifier: the service manager.
        note: called with the reason for a start without source; "" when a source is up.
    """

    settings: Callable[[], SupervisionSettings]
    notifier: Notifier
    note: Callable[[str], None]
    ready: bool = False
    readers: Sequence[Reader] = ()
    _opened_at: float | None = None
    _without_source: bool = False

    def open(self, readers: Sequence[Reader]) -> None:
        """Start to wait for the sources."""
        self.readers = readers
        self._opened_at = time.monotonic()

    @property
    def open_s(self) -> float | None:
        """Seconds since `open`; None before."""
        return None if self._opened_at is None else time.monotonic() - self._opened_at

    def check(self) -> None:
        """Report ready if it is time; must not block."""
        waited = self.open_s
        if waited is None or (self.ready and not self._without_source):
            return
        up = [reader.camera for reader in self.readers if reader.state in _UP]
        if up and self.ready:
            self._without_source = False
            self.note("")
        elif up:
            self._become_ready(f"source {up[0]} is up")
        elif not self.ready and waited >= self.settings().ready_after_s:
            reason = f"no source is up after {waited:.0f} s"
            _log.warning("ready_without_a_source", reason=reason)
            self._without_source = True
            self._become_ready(reason)
            self.note(reason)

    def finish(self) -> None:
        """Report ready before the stop of a run that never was: it did not fail."""
        if not self.ready:
            self.ready = True
            self.notifier.ready()

    def _become_ready(self, reason: str) -> None:
        self.ready = True
        self.notifier.ready(reason)
        _log.info("ready", reason=reason)
