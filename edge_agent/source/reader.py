"""Read one source in threads of its own, so that nothing it does can stall anything else.

A supervisor thread owns the state and reports it; per attempt, a worker thread runs the source.
OpenCV's `open()` and `read()` block inside C code and cannot be interrupted, so a worker that stays
silent for too long is abandoned: whatever it delivers later is thrown away, and a new one is started.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

import structlog

from edge_agent.core.errors import EdgeAgentError, Retryable, SourceError, SourceLost
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.structures import SourceState, SourceStatus
from edge_agent.source.base import Item, Source
from edge_agent.source.redact import redact_url

__all__ = ["FrameReader", "stuck_threads"]

_log = structlog.get_logger(__name__)

_STOP_SECONDS = 1.0
"""How long `stop` waits for a worker in a blocking call before it is left to itself (promise: 2 s)."""
_STABLE_SECONDS = 5.0
"""A connection that lasted this long was a good one: the next outage starts at the shortest wait."""
_MAX_ABANDONED = 3
"""Threads stuck in a driver at one time; more would only pile up memory and sockets."""
_TICK_SECONDS = 1.0
"""How often a waiting supervisor shows that it is alive (`last_progress`)."""

_WORKER = "source-"
"""Begin of the names of worker threads."""


def stuck_threads() -> int:
    """Workers that are still inside a read although their readers may have stopped.

    A program that ends while there are some had better do it by `os._exit`: Python kills a thread that
    comes back from C++ during its shutdown in a way that aborts the process.
    """
    return sum(thread.name.startswith(_WORKER) for thread in threading.enumerate())


class _Attempt:
    """One run of the source in one worker thread."""

    def __init__(self) -> None:
        self.first_item = self.last_item = time.monotonic()  # its start, until an item comes
        self.alive = False  # an item came, or a sign of life
        self.finished = False
        self.interrupted = False
        self.failure: EdgeAgentError | None = None
        self.thread: threading.Thread | None = None


class FrameReader:
    """Runs `source` while the `with` block lasts and hands over its items one by one.

    A source with `live` keeps only its newest item, and counts what it drops; any other waits until
    its items are taken. A source that is lost is opened again after a random wait of up to
    `backoff[0] * 2 ** failures` seconds, at most `backoff[1]` (exponential with full jitter).

    Args:
        source: what to read.
        wake: set whenever an item waits, the state changes or the source is over.
        on_status: called from the reader's thread with each change of state, in order.
        backoff: first and largest wait in seconds between attempts.
        queue: items that may wait for the consumer; a live source keeps one.
        offline_after: seconds of outage after which the state is `offline` rather than `reconnecting`.
            The attempts go on all the same.
    """

    def __init__(
        self,
        source: Source,
        *,
        wake: threading.Event,
        on_status: Callable[[SourceStatus], None],
        backoff: tuple[float, float] = (1.0, 60.0),
        queue: int = 4,
        offline_after: float = 30.0,
    ) -> None:
        if queue < 1 or not 0 < backoff[0] <= backoff[1]:
            raise ValueError(f"expected queue >= 1 and 0 < backoff[0] <= backoff[1], got {queue}, {backoff}")
        self._source = source
        self._wake = wake
        self._on_status = on_status
        self._backoff = backoff
        self._limit = 1 if source.live else queue
        self._offline_after = offline_after
        self._changed = threading.Condition()
        self._queue: deque[Item] = deque()
        self._attempt: _Attempt | None = None
        self._abandoned: list[threading.Thread] = []
        self._supervisor: threading.Thread | None = None
        self._stopping = False
        self._closed = ""
        self._stop_by = 0.0
        self._over = False
        self._state: SourceState | None = None
        self._reason = ""
        self._lost_since: float | None = None
        self._error: EdgeAgentError | None = None
        self._delivered = 0
        self._dropped = 0
        self._polled = False
        self._progress = time.monotonic()

    def __enter__(self) -> FrameReader:
        self._progress = time.monotonic()
        self._supervisor = threading.Thread(target=self._supervise, name=f"reader-{self.camera}", daemon=True)
        self._supervisor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def camera(self) -> str:
        """Id of the source."""
        return self._source.id

    @property
    def live(self) -> bool:
        """Whether the source drops what the consumer is too slow for."""
        return self._source.live

    @property
    def ends(self) -> bool:
        """Whether the source has an end (a file), or goes on for ever (a camera, a watched folder)."""
        return self._source.ends

    @property
    def state(self) -> SourceState | None:
        """State last reported, None before the first."""
        return self._state

    @property
    def ended(self) -> bool:
        """Whether nothing waits and nothing will come: a finite source is over, or `error` is set."""
        with self._changed:
            return self._over and not self._queue

    @property
    def error(self) -> EdgeAgentError | None:
        """Why the source was given up for good, None while it was not."""
        return self._error

    @property
    def delivered(self) -> int:
        """Items handed over by `poll`."""
        return self._delivered

    @property
    def dropped(self) -> int:
        """Items of a live source that a newer one replaced before they were polled.

        Those before the first `poll` do not count: nobody looked yet.
        """
        return self._dropped

    @property
    def waiting(self) -> int:
        """Items that wait to be polled."""
        return len(self._queue)

    @property
    def last_progress(self) -> float:
        """`time.monotonic()` when an item last came, or when the reader last waited for a known reason.

        Known reasons: an outage, a full queue, an idle folder that shows life, the end. It stands still
        while a source is expected to deliver and does not.
        """
        return self._progress

    @property
    def heartbeat(self) -> HeartbeatState:
        """`last_progress` with what the reader does, or why it delivers nothing."""
        attempt, state = self._attempt, self._state
        if self._over:
            return HeartbeatState(time.monotonic(), idle=self._reason)
        if state is not None and state is not SourceState.ONLINE:
            return HeartbeatState(self._progress, idle=f"{state.value}: {self._reason}")
        if not self.live and len(self._queue) >= self._limit:
            return HeartbeatState(self._progress, idle="waits for the pipeline")
        thread = attempt.thread if attempt is not None else None
        doing = "open" if state is None else "read"
        return HeartbeatState(self._progress, doing, thread=thread.ident if thread is not None else None)

    def poll(self) -> Item | None:
        """The next item (of a live source: the newest), None when nothing waits. Never blocks."""
        self._polled = True
        with self._changed:
            if not self._queue:
                return None
            item = self._queue.popleft()
            self._delivered += 1
            if not self._source.live:  # which waits for nobody
                self._changed.notify_all()
            return item

    def done(self, item: Item) -> None:
        """Acknowledge `item` to a source that wants it (crop folders); nothing for the others."""
        acknowledge = getattr(self._source, "done", None)
        if acknowledge is not None:
            acknowledge(item)

    def close(self, reason: str) -> None:
        """Give the source back until `reopen`: its state is `disabled`, and nothing is decoded.

        For cameras. A file would begin anew.
        """
        with self._changed:
            self._closed = reason
            self._attempt = None  # its worker ends with the next frame
            self._queue.clear()
            self._changed.notify_all()

    def reopen(self) -> None:
        """Read on after `close`."""
        with self._changed:
            self._closed = ""
            self._changed.notify_all()

    def ask_to_stop(self) -> None:
        """Tell the threads to end, and return at once: so that many readers end together, not in turn."""
        with self._changed:
            if not self._stopping:
                self._stop_by = time.monotonic() + _STOP_SECONDS
                self._stopping = True
                self._changed.notify_all()

    def stop(self) -> None:
        """End the threads; returns within 2 s even if one is stuck in a driver. May be called again."""
        self.ask_to_stop()
        attempt = self._attempt
        workers = [self._supervisor, attempt.thread if attempt else None]
        for thread in workers:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, self._stop_by - time.monotonic()))
                if thread.is_alive():
                    _log.info("source_thread_left_behind", camera=self.camera, thread=thread.name)

    # ---- supervisor thread ----------------------------------------------------------------------

    def _supervise(self) -> None:
        try:
            self._keep_reading()
        except Exception as problem:  # noqa: BLE001 - the thread's last words: nothing else would tell
            _log.exception("source_reader_failed", camera=self.camera)
            self._give_up(SourceError(f"source {self.camera}: reader failed: {problem!r}"))
        finally:
            self._wake.set()

    def _keep_reading(self) -> None:
        failures = 0
        while not self._stopping:
            if self._is_closed():
                self._stay_closed()
                failures = 0
                continue
            if not self._may_start():
                self._lost(
                    SourceLost(f"{_MAX_ABANDONED} reads hang in the driver; waiting for one to return")
                )
                self._wait(self._backoff[1])
                continue
            attempt = self._run_attempt()
            if attempt.interrupted:
                return
            if self._is_closed():
                continue
            if attempt.finished and attempt.failure is None and self._source.ends:
                self._finish(SourceState.ENDED, "every frame was read")
                return
            failure = attempt.failure or SourceLost("the stream ended")
            if not isinstance(failure, Retryable):
                self._give_up(failure)
                return
            if attempt.last_item - attempt.first_item >= _STABLE_SECONDS:
                failures = 0
            self._lost(failure)
            self._wait(self._next_wait(failures))
            failures += 1

    def _is_closed(self) -> bool:
        return bool(self._closed)

    def _stay_closed(self) -> None:
        self._report(SourceState.DISABLED, self._closed)
        self._lost_since = None
        with self._changed:
            while self._closed and not self._stopping:
                self._changed.wait(_TICK_SECONDS)
                self._progress = time.monotonic()

    def _next_wait(self, failures: int) -> float:
        """Full jitter: cameras that fell together do not come back together."""
        first, largest = self._backoff
        # The exponent is bounded since 2.0 ** 2000 overflows on a camera that is away for a year.
        return random.uniform(0.0, min(largest, first * 2.0 ** min(failures, 32)))  # noqa: S311 - no secret

    def _may_start(self) -> bool:
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        return len(self._abandoned) < _MAX_ABANDONED

    def _run_attempt(self) -> _Attempt:
        """Run the source in a worker thread until it ends, fails, stalls, or the reader stops."""
        attempt = _Attempt()
        attempt.thread = threading.Thread(
            target=self._work, args=(attempt,), name=f"{_WORKER}{self.camera}", daemon=True
        )
        with self._changed:
            self._attempt = attempt if not self._closed else None
        attempt.thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._closed or attempt.finished or self._came_online(attempt),
                    timeout=self._next_look(attempt),
                )
                if self._idle_for_a_reason(attempt):
                    self._progress = time.monotonic()
                stalled = not attempt.finished and self._stalled(attempt)
                if stalled:
                    attempt.failure = SourceLost(f"no frame for {self._source.stall_seconds:.1f} s")
                    self._attempt = None
            closed = bool(self._closed) and not attempt.finished
            if stalled or closed:
                self._abandoned.append(attempt.thread)
            if attempt.alive and not closed:
                self._online()
            attempt.interrupted = self._stopping
            if attempt.interrupted or stalled or closed or attempt.finished:
                return attempt

    def _next_look(self, attempt: _Attempt) -> float:
        """Seconds until there is something to look at: the moment of a stall, at most a tick."""
        if self._source.stall_seconds is None:
            return _TICK_SECONDS
        left = attempt.last_item + self._source.stall_seconds - time.monotonic()
        return min(_TICK_SECONDS, max(0.01, left))

    def _came_online(self, attempt: _Attempt) -> bool:
        return attempt.alive and self._state is not SourceState.ONLINE

    def _stalled(self, attempt: _Attempt) -> bool:
        limit = self._source.stall_seconds
        if limit is None or (len(self._queue) >= self._limit and not self._source.live):
            return False
        return time.monotonic() - attempt.last_item > limit

    def _idle_for_a_reason(self, attempt: _Attempt) -> bool:
        full = not self._source.live and len(self._queue) >= self._limit
        connecting = not attempt.alive and self._source.stall_seconds is not None
        return full or connecting

    def _wait(self, seconds: float) -> None:
        """Wait before the next attempt, showing life, until `stop`."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._stopping and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, _TICK_SECONDS))
                self._progress = time.monotonic()

    # ---- states ---------------------------------------------------------------------------------

    def _online(self) -> None:
        if self._state is SourceState.ONLINE:
            return
        if self._lost_since is None:
            _log.debug("source_online", camera=self.camera)
            reason = "frames arrive"
        else:
            away = time.monotonic() - self._lost_since
            _log.info("source_recovered", camera=self.camera, away_seconds=round(away, 1))
            reason = f"recovered after {away:.1f} s"
        self._lost_since = None
        self._report(SourceState.ONLINE, reason)

    def _lost(self, failure: EdgeAgentError) -> None:
        now = time.monotonic()
        reason = redact_url(str(failure))
        if self._lost_since is None:
            self._lost_since = now
            _log.warning("source_lost", camera=self.camera, reason=reason)
        else:
            _log.debug("source_still_lost", camera=self.camera, reason=reason)
        away = now - self._lost_since
        state = SourceState.OFFLINE if away >= self._offline_after else SourceState.RECONNECTING
        if state is not self._state:
            self._report(state, reason)

    def _give_up(self, failure: EdgeAgentError) -> None:
        self._error = failure
        _log.error("source_unusable", camera=self.camera, reason=redact_url(str(failure)))
        self._finish(SourceState.OFFLINE, redact_url(str(failure)))

    def _finish(self, state: SourceState, reason: str) -> None:
        with self._changed:
            self._over = True
            self._progress = time.monotonic()
        self._report(state, reason)

    def _report(self, state: SourceState, reason: str) -> None:
        self._state, self._reason = state, reason
        self._on_status(SourceStatus(self.camera, state, reason, time.time()))
        self._wake.set()

    # ---- worker thread --------------------------------------------------------------------------

    def _work(self, attempt: _Attempt) -> None:
        failure: EdgeAgentError | None = None
        try:
            with contextlib.closing(self._source.frames()) as items:
                for item in items:
                    if not self._accept(attempt, item):
                        break
        except EdgeAgentError as problem:
            failure = problem
        except Exception as problem:  # noqa: BLE001 - a thread's exception has nobody else to go to
            _log.exception("source_failed", camera=self.camera)
            failure = SourceError(f"source {self.camera}: {redact_url(repr(problem))}")
        with self._changed:
            attempt.failure = attempt.failure or failure
            attempt.finished = True
            self._changed.notify_all()

    def _accept(self, attempt: _Attempt, item: Item | None) -> bool:
        """Queue one item, or note a sign of life; False when the reader stops or gave this worker up."""
        with self._changed:
            if item is not None and not self._source.live:
                self._changed.wait_for(lambda: len(self._queue) < self._limit or not self._wanted(attempt))
            if not self._wanted(attempt):
                return False
            attempt.last_item = self._progress = time.monotonic()
            if not attempt.alive:
                attempt.alive, attempt.first_item = True, attempt.last_item
                self._changed.notify_all()
            if item is None:
                return True
            while len(self._queue) >= self._limit:
                self._queue.popleft()
                self._dropped += self._polled
            self._queue.append(item)
        self._wake.set()
        return True

    def _wanted(self, attempt: _Attempt) -> bool:
        return attempt is self._attempt and not self._stopping
