"""Items between the thread that reads a source and the pipeline."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from edge_agent.source.base import Item

__all__ = ["ItemBuffer"]


class ItemBuffer:
    """Queue of items. A live source keeps only its newest item; any other waits for room.

    Args:
        changed: condition that guards the buffer, notified when a waiting writer can go on.
        live: whether old items are dropped.
        limit: largest number of items of a source that waits.
    """

    def __init__(self, changed: threading.Condition, *, live: bool, limit: int) -> None:
        self._changed = changed
        self._live = live
        self._limit = 1 if live else limit
        self._items: deque[Item] = deque()
        self._polled = False
        self.delivered = 0
        """Items returned by `take`."""
        self.dropped = 0
        """Items replaced by a newer one before they were taken, from the first `take` on."""

    def __len__(self) -> int:
        return len(self._items)

    @property
    def blocked(self) -> bool:
        """Whether the source has to wait until an item is taken."""
        return not self._live and len(self._items) >= self._limit

    def put(self, item: Item, cancelled: Callable[[], bool]) -> bool:
        """Add an item; False when cancelled while waiting for room. The caller holds the condition."""
        self._changed.wait_for(lambda: not self.blocked or cancelled())
        if cancelled():
            return False
        while len(self._items) >= self._limit:
            self._items.popleft()
            self.dropped += self._polled
        self._items.append(item)
        return True

    def take(self) -> Item | None:
        """Return the oldest item, None where there is none. Never blocks."""
        self._polled = True
        with self._changed:
            if not self._items:
                return None
            item = self._items.popleft()
            self.delivered += 1
            if not self._live:  # the writer of a live source never waits
                self._changed.notify_all()
            return item

    def clear(self) -> None:
        """Remove all items; the caller holds the condition."""
        self._items.clear()
