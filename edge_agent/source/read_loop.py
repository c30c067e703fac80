"""Attempts to read a source, repeated until it ends, cannot be read, or the reader stops."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from edge_agent.core.errors import EdgeAgentError, Retryable, SourceError, SourceFailed, SourceLost
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.redaction import redact
from edge_agent.core.structures import SourceState, SourceStatus
from edge_agent.source.attempt import Attempt, ItemBuffer
from edge_agent.source.base import Source

_log = structlog.get_logger(__name__)

BACKOFF_S = (1.0, 60.0)
"""First and largest limit of the random wait between attempts."""
OFFLINE_AFTER_S = 30.0
"""After an outage of this time the state is `offline` instead of `reconnecting`; attempts continue."""
_MAX_REPEATS = 3
"""A recording whose reading fails this often in the same way after the same item is given up."""
_STABLE_SECONDS = 5.0
"""After a connection of this duration the back-off starts again."""
_MAX_ABANDONED = 3
"""Threads stuck in a driver at one time; more would only use memory and sockets."""
_TICK_SECONDS = 1.0
"""Interval of the heartbeat while the loop waits."""


class ConnectionState:
    """Reports each change of state once, in order. Logs the start of an outage at WARNING, its end once.

    `state` and `reason` are the last reported ones; `state` is None before the first report.
    """

    def __init__(self, camera: str, on_status: Callable[[SourceStatus], None]) -> None:
        self.state: SourceState | None = None
        self.reason = ""
        self._camera = camera
        self._on_status = on_status
        self._offline_after_s = OFFLINE_AFTER_S
        self._lost_since: float | None = None

    @property
    def is_online(self) -> bool:
        """Whether the last report was `online`."""
        return self.state is SourceState.ONLINE

    def online(self) -> None:
        """Frames arrive."""
        if self.is_online:
            return
        if self._lost_since is None:
            _log.debug("source_online", camera=self._camera)
            reason = "frames arrive"
        else:
            away = time.monotonic() - self._lost_since
            _log.info("source_recovered", camera=self._camera, away_seconds=round(away, 1))
            reason = f"recovered after {away:.1f} s"
        self.report(SourceState.ONLINE, reason)

    def lost(self, failure: EdgeAgentError) -> None:
        """An attempt failed; there will be another one."""
        now = time.monotonic()
        reason = redact(str(failure))
        if self._lost_since is None:
            self._lost_since = now
            _log.warning("source_lost", camera=self._camera, reason=reason)
        else:
            _log.debug("source_still_lost", camera=self._camera, reason=reason)
        offline = now - self._lost_since >= self._offline_after_s
        state = SourceState.OFFLINE if offline else SourceState.RECONNECTING
        if state is not self.state:
            self._set(state, reason)

    def report(self, state: SourceState, reason: str) -> None:
        """Set a state that ends an outage, or the source."""
        self._lost_since = None
        self._set(state, reason)

    def _set(self, state: SourceState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._on_status(SourceStatus(self._camera, state, reason, time.time()))


@dataclass(slots=True)
class _Repeats:
    """Counts unexpected failures at the same place in a row."""

    count: int = 0
    _place: tuple[int, str] = (-1, "")

    def note(self, items: int, failure: str) -> None:
        """Count a failure after this number of items."""
        self.count = self.count + 1 if self._place == (items, failure) else 1
        self._place = items, failure


class ReadLoop:
    """Runs the attempts one after the other, on the thread that calls `run`.

    A worker that is silent for longer than `stall_seconds` is abandoned, and another one is started. Between
    attempts it waits with full jitter, so that cameras lost together do not return together.

    Args:
        source: to read.
        buffer: for its items.
        changed: condition that guards the state shared with the workers and the callers.
        wake: called when an item waits, the state changes or the source is over.
        on_status: called with each change of state, in order.

    Attributes:
        over: whether no item will come any more.
        error: why the source was given up, None where it was not.
        failures: unexpected exceptions since the start.
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
        self.failures = 0
        self.connection = ConnectionState(source.id, self._report)
        self._source = source
        self._buffer = buffer
        self._changed = changed
        self._wake = wake
        self._on_status = on_status
        self._first_wait, self._longest_wait = BACKOFF_S
        self._failed_in_a_row = 0
        self._repeats = _Repeats()
        self._delivered = 0
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
                try:
                    self._step()
                except Exception:  # noqa: BLE001 - nothing else reports it, and the source must not end by it
                    _log.exception("source_reader_failed", camera=self._source.id)
                    self.failures += 1
                    with self._changed:
                        self._cancel()
                    self._wait(self._first_wait)
        finally:
            self._wake()

    def _step(self) -> None:
        """Run one attempt, or wait while none is wanted or possible."""
        if self._closed:
            self._stay_closed()
            return
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if len(self._abandoned) < _MAX_ABANDONED:
            self._evaluate(self._run_attempt())
            return
        reason = f"{_MAX_ABANDONED} reads hang in the driver; waiting for one to return"
        self.connection.lost(SourceLost(reason))
        self._wait(self._longest_wait)

    def _evaluate(self, attempt: Attempt) -> None:
        """Decide what follows an attempt."""
        if self._stopping or self._closed:
            return
        if attempt.finished and attempt.failure is None and self._source.ends:
            self._finish(SourceState.ENDED, "every frame was read")
            return
        failure = attempt.failure or SourceLost("the stream ended")
        if isinstance(failure, SourceFailed):
            self.failures += 1
            self._repeats.note(attempt.items, str(failure))
            if self._source.ends and self._repeats.count >= _MAX_REPEATS:
                failure = SourceError(f"{failure}, {_MAX_REPEATS} times after item {attempt.items}")
        if getattr(self._source, "rewinds", False):
            self._delivered = max(self._delivered, attempt.items)
        if not isinstance(failure, Retryable):
            self._give_up(failure)
            return
        if attempt.last_item - attempt.first_item >= _STABLE_SECONDS:
            self._failed_in_a_row = 0
        self.connection.lost(failure)
        # The exponent is limited because 2.0 ** 2000 overflows.
        limit = min(self._longest_wait, self._first_wait * 2.0 ** min(self._failed_in_a_row, 32))
        self._failed_in_a_row += 1
        self._wait(random.uniform(0.0, limit))  # noqa: S311 - no secret

    def _stay_closed(self) -> None:
        self.connection.report(SourceState.DISABLED, self._closed)
        self._failed_in_a_row = 0
        with self._changed:
            while self._closed and not self._stopping:
                self._changed.wait(_TICK_SECONDS)
                self.beat()

    def _run_attempt(self) -> Attempt:
        """Run the source until it ends, fails, stalls, is closed, or a stop is requested."""
        attempt = Attempt(
            self._source, self._buffer, self._changed, self.beat, self._wake, skip=self._delivered
        )
        with self._changed:
            self._attempt = attempt
            attempt.cancelled = bool(self._closed) or self._stopping
        attempt.thread.start()
        while True:
            with self._changed:
                left = attempt.seconds_to_stall
                self._changed.wait_for(
                    lambda: self._needs_attention(attempt),
                    _TICK_SECONDS if left is None else min(_TICK_SECONDS, max(0.01, left)),
                )
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
        reason = redact(str(failure))
        self.error = failure
        _log.error("source_unusable", camera=self._source.id, reason=reason)
        self._finish(SourceState.OFFLINE, reason)

    def _finish(self, state: SourceState, reason: str) -> None:
        with self._changed:
            self.over = True
        self.connection.report(state, reason)

    def _report(self, status: SourceStatus) -> None:
        try:
            self._on_status(status)
        except Exception:  # noqa: BLE001 - a report that fails, e.g. on a full disk, must not end the source
            _log.exception("source_report_failed", camera=self._source.id, state=status.state.value)
        self._wake()
