"""Heartbeat of a stage: its current task, or why it is idle. Its thread writes, any thread reads."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple


class HeartbeatState(NamedTuple):
    """Latest heartbeat of a stage: what it began then, at `time.monotonic()`; "" if it does not report tasks.

    `idle` is why it has nothing to do, None while it works. An idle stage must repeat its heartbeat: a stage
    whose heartbeat is too old counts as stuck, idle or not.
    """

    at: float
    task: str = ""
    idle: str | None = None
    thread: int | None = None


class Heartbeat:
    """Records the heartbeats of one stage. Needs no lock: `latest` is replaced in one step."""

    __slots__ = ("latest",)

    def __init__(self) -> None:
        self.latest = HeartbeatState(time.monotonic(), "start")

    def working(self, task: str) -> None:
        """Record that the stage begins this task."""
        self.latest = HeartbeatState(time.monotonic(), task, None, threading.get_ident())

    def idle(self, reason: str) -> None:
        """Record that the stage has nothing to do."""
        self.latest = HeartbeatState(time.monotonic(), "", reason, threading.get_ident())
