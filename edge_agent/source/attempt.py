"""One run of a source in a worker thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import structlog

from edge_agent.core.errors import EdgeAgentError, SourceError
from edge_agent.source.base import Item, Source
from edge_agent.source.buffer import ItemBuffer
from edge_agent.source.redact import redact_url

__all__ = ["Attempt", "stuck_threads"]

_log = structlog.get_logger(__name__)

_WORKER = "source-"
"""Prefix of the names of worker threads."""


def stuck_threads() -> int:
    """Return the number of workers still inside a read, including those of stopped readers.

    A program with such workers should end by `os._exit`: a thread that returns from C++ during the shutdown
    of Python aborts the process.
    """
    return sum(thread.name.startswith(_WORKER) for thread in threading.enumerate())


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

    Attributes:
        alive: whether an item or a heartbeat came.
        first_item: `time.monotonic()` of the first item or heartbeat, of the start before it.
        last_item: the same of the last one.
        finished: whether the run has ended.
        failure: why it failed; None where the source ended.
        cancelled: set by the reader when the items are no longer wanted.
    """

    def __init__(
        self,
        source: Source,
        buffer: ItemBuffer,
        changed: threading.Condition,
        beat: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
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
    def stalled(self) -> bool:
        """Whether the source has been silent for longer than a healthy one."""
        limit = self._source.stall_seconds
        if limit is None or self._buffer.blocked:
            return False
        return time.monotonic() - self.last_item > limit

    @property
    def seconds_to_stall(self) -> float | None:
        """Seconds until the source counts as stalled, unless an item comes; None where it never does."""
        limit = self._source.stall_seconds
        return None if limit is None else self.last_item + limit - time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether no item is due: the buffer is full, or the source is connecting."""
        return self._buffer.blocked or (not self.alive and self._source.stall_seconds is not None)

    def _run(self) -> None:
        failure: EdgeAgentError | None = None
        try:
            with contextlib.closing(self._source.frames()) as items:
                for item in items:
                    if not self._accept(item):
                        break
        except EdgeAgentError as problem:
            failure = problem
        except Exception as problem:  # noqa: BLE001 - reported by the reader's thread
            _log.exception("source_failed", camera=self._source.id)
            failure = SourceError(f"source {self._source.id}: {redact_url(repr(problem))}")
        with self._changed:
            self.failure = self.failure or failure
            self.finished = True
            self._changed.notify_all()

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
