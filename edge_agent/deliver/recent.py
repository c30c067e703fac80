"""The newest numbered events of a run in memory, for readers that follow them (server-sent events)."""

from __future__ import annotations

import threading
from collections import deque

from edge_agent.deliver.rows import naming

MOST_EVENTS = 1000
MOST_BYTES = 2 << 20
"""Bounds of what is kept; the oldest events are dropped."""


class RecentEvents:
    """The events after the number `base`, in the order of their numbers; those that were erased are missing.

    Thread-safe.
    """

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

    def erase(self, word: str) -> None:
        """Drop the events that name a person by this id, as `Outbox.erase`; the others keep their numbers."""
        names = naming(word)
        with self._lock:
            kept = [event for event in self._events if not names(event[1])]
            self._events.clear()
            self._events.extend(kept)
            self._bytes = sum(len(message) for _, message in kept)

    @property
    def last(self) -> int:
        """The highest number so far."""
        return self._last

    def after(self, seq: int, most: int) -> tuple[int, list[tuple[int, bytes]]]:
        """Return the number after which all events are here but erased ones, and up to `most` after `seq`."""
        with self._lock:
            if seq >= self._last:
                return self._base, []
            found = [event for event in self._events if event[0] > seq]
        return self._base, found[:most]
