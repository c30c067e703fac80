"""The newest numbered events of a run in memory, for readers that follow them (server-sent events)."""

from __future__ import annotations

import threading
from collections import deque

MOST_EVENTS = 1000
MOST_BYTES = 2 << 20
"""Bounds of what is kept; the oldest events are dropped."""


class RecentEvents:
    """Every event after the number `base`. Thread-safe; events come in the order of their numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._base = 0
        self._last = 0

    def begin(self, seq: int) -> None:
        """Set the last number that was given out before this run."""
        with self._lock:
            self._base = self._last = seq

    def add(self, seq: int, message: bytes) -> None:
        """Add an event."""
        with self._lock:
            self._events.append((seq, message))
            self._bytes += len(message)
            self._last = seq
            while len(self._events) > MOST_EVENTS or (self._bytes > MOST_BYTES and len(self._events) > 1):
                self._base, dropped = self._events.popleft()
                self._bytes -= len(dropped)

    @property
    def last(self) -> int:
        """The highest number so far."""
        return self._last

    def after(self, seq: int, most: int) -> tuple[int, list[tuple[int, bytes]]]:
        """Return the number after which all events are here, and up to `most` of those after `seq`."""
        with self._lock:
            if seq >= self._last:
                return self._base, []
            found = [event for event in self._events if event[0] > seq]
        return self._base, found[:most]
