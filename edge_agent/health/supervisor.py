"""Supervision of a running agent: readiness, watchdog, crash loops, memory, and the status socket.

The agent enters its `Supervisor` first and leaves it last, so that a long start and a stop that hangs are
reported too.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog

from edge_agent import __version__
from edge_agent.core.alerts import AlertKind
from edge_agent.core.clock import Clock
from edge_agent.core.config import SupervisionSettings
from edge_agent.core.errors import EdgeAgentError, EngineError, SpaceMismatch, StorageError
from edge_agent.core.events import Event, alert_event
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.structures import SourceState
from edge_agent.health.inquiry import SOCKET_NAME, StatusServer
from edge_agent.health.memory import MemoryWatch
from edge_agent.health.starts import STARTS_FILE, CrashLoop, Starts
from edge_agent.health.systemd import Notifier, Reader, Readiness
from edge_agent.health.watchdog import Stage, Watchdog

_log = structlog.get_logger(__name__)

LONGEST_START_S = 3600.0
"""Limit of requests for more start time; TensorRT builds an engine within minutes, even on a busy board."""

_DISCONNECTED = (SourceState.RECONNECTING, SourceState.OFFLINE, SourceState.ENDED, SourceState.DISABLED)


class EventSink(Protocol):
    """Delivery of events at least once; see `edge_agent.deliver.publisher.Publisher`."""

    @property
    def heartbeat(self) -> HeartbeatState: ...  # noqa: D102
    @property
    def trouble(self) -> str: ...  # noqa: D102
    def publish(self, event: Event) -> int: ...  # noqa: D102


@dataclass(slots=True)
class Supervisor:
    """Lifetime is a `with` around the whole run.

    `note` is called with a cause of degraded work and its reason, "" when it is over. `describe` returns
    further parts of the status, and must not block.
    """

    settings: Callable[[], SupervisionSettings]
    note: Callable[[str, str], None]
    notifier: Notifier = field(default_factory=Notifier.from_environment)
    session: str = ""
    describe: Callable[[], Mapping[str, Any]] = dict
    _clock: Clock = field(default_factory=Clock)
    """Replaced by that of the state folder."""
    _began: float = field(default_factory=time.monotonic)
    _task: str = "starting"
    _end: str = ""
    """How this run ends, once that is known."""
    _stopping: bool = False
    _status_line: str = ""
    _delivery_trouble: str = ""
    _publisher: EventSink | None = None
    _starts: Starts | None = None
    _crash_loop: CrashLoop | None = None
    _server: StatusServer | None = None
    _memory: MemoryWatch = field(init=False)
    _readiness: Readiness = field(init=False)
    _watchdog: Watchdog = field(init=False)
    _calls: queue.SimpleQueue[Callable[[], object] | None] = field(default_factory=queue.SimpleQueue)
    """Calls that may wait for a lock of a stuck stage, which the watchdog thread must not."""

    def __post_init__(self) -> None:
        self._memory = MemoryWatch(self.settings)
        self._readiness = Readiness(self.settings, self.notifier, partial(self._note, "start"))
        self._watchdog = Watchdog(self.notifier, on_change=self._on_stuck, on_check=self._check)

    def __enter__(self) -> Supervisor:
        threading.Thread(target=self._run_calls, name="oversight", daemon=True).start()
        self._watchdog.__enter__()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._watchdog.__exit__()
        if self._server is not None:
            self._server.__exit__()
        if self._starts is not None:
            self._starts.end(*((self._end, "") if self._end else _end_by(error)))
        self._calls.put(None)
        self.notifier.close()

    def begin(self, state: Path, stop: threading.Event, clock: Clock) -> None:
        """Open the status socket, read how earlier runs ended, and delay the start in a crash loop.

        `clock` is that of the state folder.

        StorageError: another agent uses this state folder.
        """
        self._clock = clock
        self._server = StatusServer(state / SOCKET_NAME, self.status).__enter__()
        self._starts = Starts(state / STARTS_FILE, clock)
        self._starts.begin()
        self._crash_loop = CrashLoop(self._starts, self.settings)
        if delay := self._crash_loop.delay_s():
            reason = self._crash_loop.reason
            _log.error("crash_loop", reason=reason, waits_s=delay)
            with self.opening(f"waiting {delay:.0f} s, since {reason}"):
                stop.wait(delay)

    @contextlib.contextmanager
    def opening(self, task: str) -> Iterator[None]:
        """Report a task of the start that may take minutes."""
        self._task = task
        with self.notifier.taking_long(f"starting: {task}", at_most_s=LONGEST_START_S):
            yield

    def progress(self, text: str) -> None:
        """Report the progress of the start: a `systemd.StartProgress`."""
        self._task = text
        self.notifier.progress(text)

    def watch(
        self,
        pipeline: Callable[[], HeartbeatState],
        slow: Mapping[str, tuple[Callable[[], HeartbeatState], Callable[[], float]]],
        readers: Sequence[Reader],
        publisher: EventSink,
    ) -> None:
        """Start to supervise the stages, which are all open.

        `pipeline` is the heartbeat of the driving thread: detection, inference, decisions, delivery. `slow`
        are those of the threads that read sensors, by name, with their intervals in seconds: a sensor bus
        that hangs is reported, and does not cause a restart.
        """

        def limit_s() -> float:
            return self.settings().stuck_after_s

        def slow_limit_s(interval_s: Callable[[], float]) -> float:
            return limit_s() + interval_s()

        self._publisher = publisher
        self._readiness.open(readers)
        self._report_earlier_runs()
        self._watchdog.stages = [
            Stage("pipeline", pipeline, limit_s, "inference"),
            Stage("delivery", lambda: publisher.heartbeat, limit_s, "delivery"),
            *(
                Stage(name, heartbeat, partial(slow_limit_s, interval_s), name, vital=False)
                for name, (heartbeat, interval_s) in slow.items()
            ),
            *(_source_stage(reader, limit_s) for reader in readers),
        ]

    def stop_requested(self) -> None:
        """A stop was requested: later exits are not crashes. Does not wait for the disk."""
        self._end = "stopped"
        self.notifier.stopping("stopping")
        if self._starts is not None:
            self._calls.put(partial(self._starts.end, "stopped"))

    def stopping(self) -> None:
        """No further frame is processed; from now on the stop timeout of the service manager applies."""
        self._stopping = True
        self._task = "stopping"
        self._watchdog.stages = ()
        if not self._end:
            self._readiness.finish()
            self.notifier.stopping("stopping")

    def reloaded(self) -> None:
        """The new settings are applied, or refused."""
        if self._readiness.ready:
            self.notifier.ready()

    def set_status_line(self, text: str) -> None:
        """Set the systemd status line; skip repeats."""
        if text != self._status_line:
            self._status_line = text
            self.notifier.status(text)

    @property
    def stuck(self) -> tuple[str, ...]:
        """Names of the stuck stages."""
        return self._watchdog.stuck

    def check_memory(self, resident_bytes: int | None) -> None:
        """Check the memory of the process; publish an alert when it becomes excessive, and when that ends."""
        if resident_bytes is None or self._publisher is None:
            return
        before, trouble = bool(self._memory.trouble), self._memory.update(time.monotonic(), resident_bytes)
        if bool(trouble) != before:
            (_log.warning if trouble else _log.info)(
                "memory", trouble=trouble or "over", resident=resident_bytes
            )
            self._note("memory", trouble)
            message = trouble or "memory is normal again"
            self._alert(AlertKind.MEMORY_GROWTH, message, active=bool(trouble), resident_bytes=resident_bytes)

    def _check(self) -> None:
        if not self._stopping:
            self._readiness.check()
            self._check_delivery()
        running_s = self._readiness.open_s
        if self._crash_loop is not None and running_s is not None and self._crash_loop.is_over(running_s):
            self._note("crash loop", "")
            self._alert(AlertKind.CRASH_LOOP, "the agent is stable again", severity="critical", active=False)

    def _check_delivery(self) -> None:
        """Note why delivery does not work, when that changes."""
        trouble = "" if self._publisher is None else self._publisher.trouble
        if trouble != self._delivery_trouble:
            self._delivery_trouble = trouble
            self._note("delivery", trouble)

    def _on_stuck(self, stuck: dict[str, str]) -> None:
        """Report stuck stages to every sink."""
        text = "; ".join(stuck.values())
        if stuck:
            self.notifier.status(f"stuck: {text}")
        if self._stopping or self._publisher is None:
            return
        if self._starts is not None:  # first of all: the next run reads it
            self._calls.put(partial(self._starts.stuck, text))
        self._note("stuck", text)
        message = f"{text}; the service manager restarts the agent unless it recovers"
        self._alert(
            AlertKind.STAGE_STUCK,
            message if stuck else "no stage is stuck any more",
            severity="critical",
            active=bool(stuck),
            stages=",".join(sorted(stuck)) or None,
        )

    def _report_earlier_runs(self) -> None:
        """Publish alerts for the previous run, if it crashed, and for a crash loop."""
        if self._starts is None or self._crash_loop is None:
            return
        for run in self._starts.former[-1:]:
            if run.crashed:
                message = "the previous run crashed: " + ": ".join(filter(None, (run.how, run.words)))
                self._alert(
                    AlertKind.RUN_CRASHED, message, how=run.how, words=run.words or None, began=run.began
                )
        if reason := self._crash_loop.reason:
            message = f"{reason}; starts are delayed until a run is stable: see the log of the earlier runs"
            self._alert(AlertKind.CRASH_LOOP, message, severity="critical")
            self._note("crash loop", reason)

    def _alert(
        self,
        kind: AlertKind,
        message: str,
        *,
        severity: Literal["warning", "critical"] = "warning",
        active: bool = True,
        **details: str | float | None,
    ) -> None:
        if self._publisher is not None:
            event = alert_event(
                kind, message, severity=severity, active=active, time=self._clock.label(), details=details
            )
            self._calls.put(partial(self._publisher.publish, event))

    def _note(self, cause: str, reason: str) -> None:
        self._calls.put(lambda: self.note(cause, reason))

    def _run_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except EdgeAgentError as problem:
                _log.warning("oversight_not_heard", error=str(problem))
            except Exception:  # noqa: BLE001  later calls must run nevertheless
                _log.exception("oversight_failed")

    def status(self) -> dict[str, Any]:
        """Return the document that `edge-agent status` shows. Takes no lock that a stuck stage may hold."""
        crash_loop = self._crash_loop
        former = self._starts.former if self._starts is not None else ()
        uptime_s, clock = time.monotonic() - self._began, self._clock.state()
        document: dict[str, Any] = {
            "version": __version__,
            "pid": os.getpid(),
            "session": self.session,
            "started": round(clock.time - uptime_s, 3),
            "uptime_s": round(uptime_s, 1),
            "clock": {**asdict(clock), "text": str(clock)},
            "state": "stopping" if self._stopping else "starting",
            "reason": self._task,
            "ready": self._readiness.ready,
            "watchdog": {"limit_s": self.notifier.watchdog_s, "fed": self._watchdog.fed},
            "stages": [asdict(state) for state in self._watchdog.states()],
            "memory": {"trouble": self._memory.trouble or None, "growth_bytes_per_hour": self._memory.growth},
            "starts": {
                "recent_crashes": 0 if crash_loop is None else len(crash_loop.crashes),
                "braked": None if crash_loop is None else crash_loop.reason or None,
                "former": [run.shown() for run in former[-5:]],
            },
        }
        return document | dict(self.describe())


def _source_stage(reader: Reader, limit_s: Callable[[], float]) -> Stage:
    """Stage of one source; a disconnected camera does not count, since its reader reconnects."""
    return Stage(
        f"source:{reader.camera}",
        lambda: reader.heartbeat,
        limit_s,
        "sources",
        inactive=lambda: reader.state in _DISCONNECTED,
    )


def _end_by(error: BaseException | None) -> tuple[str, str]:
    """Kind of end and reason of a run that was not asked to stop, by its error."""
    if not isinstance(error, Exception):
        return "clean", ""
    if not isinstance(error, EdgeAgentError):
        return "failed", type(error).__name__  # its message may contain a login
    failed = isinstance(error, (EngineError, StorageError)) and not isinstance(error, SpaceMismatch)
    return ("failed" if failed else "refused"), str(error)
