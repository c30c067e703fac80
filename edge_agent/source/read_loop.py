"""Attempts to read a source, repeated until it ends, cannot be read, or the reader stops."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import structlog

from edge_agent.core.errors import EdgeAgentError, Retryable, SourceError, SourceLost
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.structures import SourceState, SourceStatus
from edge_agent.source.attempt import Attempt
from edge_agent.source.base import Source
from edge_agent.source.buffer import ItemBuffer
from edge_agent.source.connection_state import ConnectionState
from edge_agent.source.redact import redact_url

__all__ = ["BACKOFF_S", "ReadLoop"]

_log = structlog.get_logger(__name__)

BACKOFF_S = (1.0, 60.0)
"""First and largest limit of the random wait between attempts."""
_STABLE_SECONDS = 5.0
"""After a connection of this duration the back-off starts again."""
_MAX_ABANDONED = 3
"""Threads stuck in a driver at one time; more would only use memory and sockets."""
_TICK_SECONDS = 1.0
"""Interval of the heartbeat while the loop waits."""


class _Backoff:
    """Exponential waits with full jitter, so that cameras lost together do not return together."""

    def __init__(self, first: float, largest: float) -> None:
        self._first, self.largest = first, largest
        self.failures = 0

    def next(self) -> float:
        # The exponent is limited because 2.0 ** 2000 overflows.
        limit = min(self.largest, self._first * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return random.uniform(0.0, limit)  # noqa: S311 - no secret


class ReadLoop:
    """Runs the attempts one after the other, on the thread that calls `run`.

    A worker that is silent for longer than `stall_seconds` is abandoned, and another one is started.

    Args:
        source: to read.
        buffer: for its items.
        changed: condition that guards the state shared with the workers and the callers.
        wake: called when an item waits, the state changes or the source is over.
        on_status: called with each change of state, in order.

    Attributes:
        over: whether no item will come any more.
        error: why the source was given up, None where it was not.
    """

    def __init__(
        self,
        source: Source,
        buffer: ItemBuffer,
        changed: threading.Condition,
        wake: Callable[[], None],
        on_status: Callable[[SourceStatus], None],
    ) -> None:
        self.over = False
        self.error: EdgeAgentError | None = None
        self.connection = ConnectionState(source.id, self._report)
        self._source = source
        self._buffer = buffer
        self._changed = changed
        self._wake = wake
        self._on_status = on_status
        self._backoff = _Backoff(*BACKOFF_S)
        self._attempt: Attempt | None = None
        self._abandoned: list[threading.Thread] = []
        self._stopping = False
        self._closed = ""
        self.beat()

    def beat(self) -> None:
        """Record a heartbeat."""
        self._beat = time.monotonic()

    @property
    def heartbeat(self) -> HeartbeatState:
        """Current task, or why no items come.

        The time is that of the latest item or of the latest wait for a known reason: an outage, a full
        buffer, an idle folder, the end. It stands still while a source should deliver and does not.
        """
        connection, worker, beat = self.connection, self.worker, self._beat
        if self.over:
            return HeartbeatState(time.monotonic(), idle=connection.reason)
        if connection.state is not None and not connection.is_online:
            return HeartbeatState(beat, idle=f"{connection.state.value}: {connection.reason}")
        if self._buffer.blocked:
            return HeartbeatState(beat, idle="waits for the pipeline")
        thread = None if worker is None else worker.ident
        return HeartbeatState(beat, "open" if connection.state is None else "read", thread=thread)

    @property
    def worker(self) -> threading.Thread | None:
        """Thread of the current attempt."""
        return None if self._attempt is None else self._attempt.thread

    def close(self, reason: str) -> None:
        """Release the source until `reopen`."""
        with self._changed:
            self._closed = reason
            self._cancel()
            self._buffer.clear()
            self._changed.notify_all()

    def reopen(self) -> None:
        """Read again after `close`."""
        with self._changed:
            self._closed = ""
            self._changed.notify_all()

    def request_stop(self) -> bool:
        """Let `run` and the worker end; False when that was requested before."""
        with self._changed:
            if self._stopping:
                return False
            self._stopping = True
            if self._attempt is not None:
                self._attempt.cancelled = True
            self._changed.notify_all()
            return True

    def run(self) -> None:
        """Read until the source ends, cannot be read, or a stop is requested."""
        try:
            while not (self._stopping or self.over):
                if self._closed:
                    self._stay_closed()
                elif not self._may_start():
                    reason = f"{_MAX_ABANDONED} reads hang in the driver; waiting for one to return"
                    self.connection.lost(SourceLost(reason))
                    self._wait(self._backoff.largest)
                else:
                    self._evaluate(self._run_attempt())
        except Exception as problem:  # noqa: BLE001 - nothing else reports the end of this thread
            _log.exception("source_reader_failed", camera=self._source.id)
            self._give_up(SourceError(f"source {self._source.id}: reader failed: {problem!r}"))
        finally:
            self._wake()

    def _evaluate(self, attempt: Attempt) -> None:
        """Decide what follows an attempt."""
        if self._stopping or self._closed:
            return
        if attempt.finished and attempt.failure is None and self._source.ends:
            self._finish(SourceState.ENDED, "every frame was read")
            return
        failure = attempt.failure or SourceLost("the stream ended")
        if not isinstance(failure, Retryable):
            self._give_up(failure)
            return
        if attempt.last_item - attempt.first_item >= _STABLE_SECONDS:
            self._backoff.failures = 0
        self.connection.lost(failure)
        self._wait(self._backoff.next())

    def _stay_closed(self) -> None:
        self.connection.report(SourceState.DISABLED, self._closed)
        self._backoff.failures = 0
        with self._changed:
            while self._closed and not self._stopping:
                self._changed.wait(_TICK_SECONDS)
                self.beat()

    def _may_start(self) -> bool:
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        return len(self._abandoned) < _MAX_ABANDONED

    def _run_attempt(self) -> Attempt:
        """Run the source until it ends, fails, stalls, is closed, or a stop is requested."""
        attempt = Attempt(self._source, self._buffer, self._changed, self.beat, self._wake)
        with self._changed:
            self._attempt = attempt
            attempt.cancelled = bool(self._closed) or self._stopping
        attempt.thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._needs_attention(attempt), self._next_check(attempt))
                if attempt.idle:
                    self.beat()
                if not attempt.finished and attempt.stalled:
                    attempt.failure = SourceLost(f"no frame for {self._source.stall_seconds:.1f} s")
                    self._cancel()
                leaving = attempt.finished or attempt.cancelled or self._stopping
                if leaving and not attempt.finished:
                    self._abandoned.append(attempt.thread)
            if attempt.alive and not self._closed:
                self.connection.online()
            if leaving:
                return attempt

    def _needs_attention(self, attempt: Attempt) -> bool:
        came_online = attempt.alive and not self.connection.is_online
        return self._stopping or attempt.cancelled or attempt.finished or came_online

    @staticmethod
    def _next_check(attempt: Attempt) -> float:
        """Seconds until the attempt may be stalled, at most a tick."""
        left = attempt.seconds_to_stall
        return _TICK_SECONDS if left is None else min(_TICK_SECONDS, max(0.01, left))

    def _cancel(self) -> None:
        """Discard the items of the current attempt from now on; the caller holds the condition."""
        if self._attempt is not None:
            self._attempt.cancelled = True
            self._attempt = None

    def _wait(self, seconds: float) -> None:
        """Wait before the next attempt, with heartbeats, until a stop is requested."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._stopping and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, _TICK_SECONDS))
                self.beat()

    def _give_up(self, failure: EdgeAgentError) -> None:
        reason = redact_url(str(failure))
        self.error = failure
        _log.error("source_unusable", camera=self._source.id, reason=reason)
        self._finish(SourceState.OFFLINE, reason)

    def _finish(self, state: SourceState, reason: str) -> None:
        with self._changed:
            self.over = True
        self.connection.report(state, reason)

    def _report(self, status: SourceStatus) -> None:
        self._on_status(status)
        self._wake()
