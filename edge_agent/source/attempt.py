"""One run of a source in a worker thread, and the buffer for its items."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog

from edge_agent.core.errors import EdgeAgentError, SourceFailed
from edge_agent.core.files import shown
from edge_agent.core.reading import reading
from edge_agent.core.redaction import redact
from edge_agent.source.base import Item, Source

_log = structlog.get_logger(__name__)

_WORKER = "source-"
"""Prefix of the names of worker threads."""


def stuck_threads() -> int:
    """Return the number of workers still inside a read, including those of stopped readers.

    A program with such workers should end by `os._exit`: a thread that returns from C++ during the shutdown
    of Python aborts the process.
    """
    return sum(thread.name.startswith(_WORKER) for thread in threading.enumerate())


class ItemBuffer:
    """Queue of items for the pipeline. A live source keeps its newest items; any other waits for room.

    Args:
        changed: condition that guards the buffer, notified when a waiting writer can go on.
        live: whether old items are dropped.
        limit: largest number of items that wait.
    """

    def __init__(self, changed: threading.Condition, *, live: bool, limit: int) -> None:
        self._changed = changed
        self._live = live
        self._limit = limit
        self._items: deque[Item] = deque()
        self._polled = False
        self.delivered = 0
        """Items returned by `take`."""
        self.dropped = 0
        """Items dropped for a newer one, from the first `take` on."""

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
            self._drop()
        self._items.append(item)
        return True

    def take(self, *, newest: bool = False) -> Item | None:
        """Return the oldest item, None where there is none; `newest` drops all others. Never blocks."""
        with self._changed:
            while newest and len(self._items) > 1:
                self._drop()
            self._polled = True
            if not self._items:
                return None
            item = self._items.popleft()
            self.delivered += 1
            if not self._live:  # the writer of a live source never waits
                self._changed.notify_all()
            return item

    def _drop(self) -> None:
        self._items.popleft()
        self.dropped += self._polled

    def clear(self) -> None:
        """Remove all items; the caller holds the condition."""
        self._items.clear()


class Attempt:
    """Runs `source.frames()` in a thread until it ends, fails, or is cancelled.

    OpenCV's `open()` and `read()` block inside C code and cannot be interrupted. A cancelled worker ends when
    its read returns; its items are discarded.

    Args:
        source: to run.
        buffer: for the items.
        changed: condition that guards all attributes, notified of changes.
        beat: called with each item or heartbeat that is accepted.
        wake: called after each item.
        skip: number of first items that were delivered by an earlier run, and are not wanted again.

    Attributes:
        alive: whether an item or a heartbeat came.
        first_item: `time.monotonic()` of the first item or heartbeat, of the start before it.
        last_item: the same of the last one.
        finished: whether the run has ended.
        failure: why it failed; None where the source ended.
        items: items that the source has given, skipped ones included.
        cancelled: set by the reader when the items are no longer wanted.
    """

    def __init__(
        self,
        source: Source,
        buffer: ItemBuffer,
        changed: threading.Condition,
        beat: Callable[[], None],
        wake: Callable[[], None],
        *,
        skip: int = 0,
    ) -> None:
        self.items = 0
        self._skip = skip
        self.first_item = self.last_item = time.monotonic()
        self.alive = self.finished = self.cancelled = False
        self.failure: EdgeAgentError | None = None
        self.thread = threading.Thread(target=self._run, name=f"{_WORKER}{source.id}", daemon=True)
        self._source = source
        self._buffer = buffer
        self._changed = changed
        self._beat = beat
        self._wake = wake

    @property
    def seconds_to_stall(self) -> float | None:
        """Seconds until the source counts as stalled, unless an item comes; None where it never does."""
        limit = self._source.stall_seconds
        return None if limit is None else self.last_item + limit - time.monotonic()

    @property
    def stalled(self) -> bool:
        """Whether the source has been silent for longer than a healthy one."""
        left = self.seconds_to_stall
        return left is not None and left < 0 and not self._buffer.blocked

    @property
    def idle(self) -> bool:
        """Whether no item is due: the buffer is full, or the source is connecting."""
        return self._buffer.blocked or (not self.alive and self._source.stall_seconds is not None)

    def _run(self) -> None:
        failure: EdgeAgentError | None = None
        try:
            name = shown(getattr(self._source, "path", self._source.id))
            with reading(name), contextlib.closing(self._source.frames()) as items:
                for item in items:
                    if not self._accept(self._unless_skipped(item)):
                        break
        except EdgeAgentError as problem:
            failure = problem
        except Exception as problem:  # noqa: BLE001 - reported by the reader's thread
            _log.exception("source_failed", camera=self._source.id)
            failure = SourceFailed(f"source {self._source.id}: unexpected error: {redact(repr(problem))}")
        with self._changed:
            self.failure = self.failure or failure
            self.finished = True
            self._changed.notify_all()

    def _unless_skipped(self, item: Item | None) -> Item | None:
        """Count an item; None in its place where it is to be skipped."""
        if item is None:
            return None
        self.items += 1
        return item if self.items > self._skip else None

    def _accept(self, item: Item | None) -> bool:
        """Add an item to the buffer, or note a heartbeat; False when cancelled."""
        with self._changed:
            if self.cancelled or (item is not None and not self._buffer.put(item, lambda: self.cancelled)):
                return False
            self.last_item = time.monotonic()
            self._beat()
            if not self.alive:
                self.alive, self.first_item = True, self.last_item
                self._changed.notify_all()
        if item is not None:
            self._wake()
        return True
