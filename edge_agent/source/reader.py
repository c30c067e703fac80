"""Reads one source in threads of its own, so that it cannot block anything else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from edge_agent.core.errors import EdgeAgentError
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.structures import SourceState, SourceStatus
from edge_agent.source.attempt import ItemBuffer
from edge_agent.source.base import Item, Source
from edge_agent.source.read_loop import ReadLoop

_log = structlog.get_logger(__name__)

QUEUE_LIMIT = 4
"""Items that may wait for the consumer."""
LIVE_LIMIT = 2
"""The same of a live source without `backlog`: the newest, and one that is late."""
_STOP_SECONDS = 1.0
"""Wait of `stop` for a worker in a blocking call, which is then abandoned (documented limit: 2 s)."""


class FrameReader:
    """Reads `source` during the `with` block and delivers its items one by one.

    One thread repeats the attempts to read and reports the state (`ReadLoop`); for each attempt, a worker
    thread runs the source (`Attempt`). A lost source is opened again after a random wait
    (`read_loop.BACKOFF_S`). `live`, `ends` and `backlog` are those of the source.

    Args:
        source: what to read.
        wake: set whenever an item waits, the state changes or the source is over.
        on_status: called from the reader's thread with each change of state, in order.
    """

    def __init__(
        self, source: Source, *, wake: threading.Event, on_status: Callable[[SourceStatus], None]
    ) -> None:
        self.camera, self.live, self.ends = source.id, source.live, source.ends
        self._source = source
        changed = threading.Condition()
        self.backlog: int | None = getattr(source, "backlog", None)
        limit = (self.backlog or LIVE_LIMIT) if source.live else QUEUE_LIMIT
        self._buffer = ItemBuffer(changed, live=source.live, limit=limit)
        self._loop = ReadLoop(source, self._buffer, changed, wake.set, on_status)
        self._thread: threading.Thread | None = None
        self._stop_by = 0.0

    def __enter__(self) -> FrameReader:
        self._loop.beat()
        self._thread = threading.Thread(target=self._loop.run, name=f"reader-{self.camera}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def state(self) -> SourceState | None:
        """State last reported, None before the first report."""
        return self._loop.connection.state

    @property
    def ended(self) -> bool:
        """Whether no item waits and none will come: a finite source is over, or `error` is set."""
        return self._loop.over and not len(self._buffer)

    @property
    def error(self) -> EdgeAgentError | None:
        """Why the source was given up, None where it was not."""
        return self._loop.error

    @property
    def delivered(self) -> int:
        """Items returned by `poll`."""
        return self._buffer.delivered

    @property
    def dropped(self) -> int:
        """Items of a live source replaced by a newer one before they were polled, since the first `poll`."""
        return self._buffer.dropped

    @property
    def failures(self) -> int:
        """Unexpected exceptions while reading, since the start; each is followed by another attempt."""
        return self._loop.failures

    @property
    def waiting(self) -> int:
        """Items that wait to be polled."""
        return len(self._buffer)

    @property
    def heartbeat(self) -> HeartbeatState:
        """Current task of the reader, or why it delivers nothing; see `ReadLoop.heartbeat`."""
        return self._loop.heartbeat

    def poll(self, *, late: bool = False) -> Item | None:
        """Return the next item, None when none waits. Never blocks.

        Of a live source without `backlog` that is the newest one, with `late` the oldest one that waits.
        """
        return self._buffer.take(newest=self.live and self.backlog is None and not late)

    def done(self, item: Item) -> None:
        """Acknowledge `item` to a source that needs it (crop folders); no effect for others."""
        acknowledge = getattr(self._source, "done", None)
        if acknowledge is not None:
            acknowledge(item)

    def close(self, reason: str) -> None:
        """Release the source until `reopen`: its state is `disabled`, and nothing is decoded.

        For cameras. A file would start again.
        """
        self._loop.close(reason)

    def reopen(self) -> None:
        """Read again after `close`."""
        self._loop.reopen()

    def request_stop(self) -> None:
        """Let the threads end, without waiting for them, so that many readers end at the same time."""
        if self._loop.request_stop():
            self._stop_by = time.monotonic() + _STOP_SECONDS

    def stop(self) -> None:
        """End the threads; returns within 2 s even if one is stuck in a driver. May be called again."""
        self.request_stop()
        for thread in (self._thread, self._loop.worker):
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, self._stop_by - time.monotonic()))
                if thread.is_alive():
                    _log.info("source_thread_left_behind", camera=self.camera, thread=thread.name)
