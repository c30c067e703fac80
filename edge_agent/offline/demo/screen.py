"""Display of the events that come back from the broker: a live table, or lines without a terminal."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

from edge_agent.core.codec import decode
from edge_agent.core.events import Event, InfoData
from edge_agent.deliver.subscriber import Subscriber
from edge_agent.offline.demo.street import Recorder

__all__ = ["Screen"]

RECENT = 12
"""Events in the table."""

LAST_EVENTS_S = 5.0
"""Longest wait, at the end, for events that the broker has not passed on yet."""


@dataclass(slots=True)
class Screen:
    """Shows received events on a thread, while it is entered.

    Args:
        subscriber: connected.
        recorder: counts the frames.
        console: where to.
        total: frames in all; None where not known.
    """

    subscriber: Subscriber
    recorder: Recorder
    console: Console
    total: int | None
    info: InfoData | None = None
    """The latest `info` event."""
    arrived: dict[str, float] = field(default_factory=dict)
    """`time.monotonic()` of the arrival of every identity event by its id."""
    _recent: deque[Event] = field(default_factory=lambda: deque(maxlen=RECENT))
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Screen:
        self._thread = threading.Thread(target=self._show, name="screen", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def wait_for(self, events: int) -> None:
        """Wait until this many identity events have arrived, at most `LAST_EVENTS_S`."""
        deadline = time.monotonic() + LAST_EVENTS_S
        while len(self.arrived) < events and time.monotonic() < deadline:
            self._stop.wait(0.05)

    def _show(self) -> None:
        if not self.console.is_terminal:
            self._receive()
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=4):
            self._receive()

    def _receive(self) -> None:
        while not self._stop.is_set():
            message = self.subscriber.next(0.1)
            if message is None or not message.payload:
                continue
            event = decode(message.payload)
            if event.kind == "info":
                self.info = event.data
            elif event.kind == "identity":
                self.arrived[event.id] = time.monotonic()
                self._recent.append(event)
                if not self.console.is_terminal:
                    self.console.print("  ".join(_cells(event)), highlight=False, markup=False)

    def _table(self) -> Table:
        frames = f"{self.recorder.frames}" + (f" of {self.total}" if self.total else "") + " frames"
        table = Table("event", "camera", "track", "who", "score", "threshold", "rule", "why", title=frames)
        for event in list(self._recent):
            table.add_row(*_cells(event))
        return table


def _cells(event: Event) -> tuple[str, ...]:
    """Return an identity event as columns."""
    data = event.data
    who = "?" if data.number is None else f"person {data.number}"
    score = "-" if data.score is None else f"{data.score:.3f}"
    threshold = "-" if data.threshold is None else f"{data.threshold:.3f}"
    cells = (data.kind, data.camera, f"#{data.track_id}", who, score, threshold, data.rule, data.reason)
    return tuple(map(str, cells))
