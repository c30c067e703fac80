"""What looks after a running agent: readiness, the watchdog, crash loops, memory, and who asks how it is.

`daemon` opens one `Oversight` before everything else and leaves it last, so that a start that takes long and
a stop that hangs are told as well.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import structlog

from edge_agent import __version__
from edge_agent.core.config import Settings
from edge_agent.core.errors import EdgeAgentError, EngineError, SpaceMismatch, StorageError
from edge_agent.core.events import Event, alert_event
from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.core.structures import SourceState
from edge_agent.health.inquiry import SOCKET_NAME, Answering
from edge_agent.health.memory import MemoryWatch, control_group_limit
from edge_agent.health.starts import STARTS_FILE, Run, Starts, pause_s
from edge_agent.health.systemd import Notifier
from edge_agent.health.watchdog import Stage, Supervisor

__all__ = ["LONGEST_START_S", "Delivers", "Oversight", "Reads"]

_log = structlog.get_logger(__name__)

LONGEST_START_S = 3600.0
"""More time is asked for at most so long: TensorRT builds an engine within minutes, on a busy board too."""

_AWAY = (SourceState.RECONNECTING, SourceState.OFFLINE, SourceState.ENDED, SourceState.DISABLED)
_UP = (SourceState.ONLINE, SourceState.ENDED)


class Reads(Protocol):
    """See `edge_agent.source.reader.FrameReader`."""

    @property
    def camera(self) -> str:
        """Id of the source."""

    @property
    def state(self) -> SourceState | None:
        """State last reported."""

    @property
    def heartbeat(self) -> HeartbeatState:
        """Its latest sign of life."""


class Delivers(Protocol):
    """See `edge_agent.deliver.publisher.Publisher`."""

    @property
    def heartbeat(self) -> HeartbeatState:
        """Its latest sign of life."""

    def publish(self, event: Event) -> int:
        """Deliver an event at least once."""


@dataclass(slots=True)
class Oversight:
    """Lifetime is a `with` around the whole run.

    Args:
        settings: asked anew at each look, since they may change.
        note: told what keeps the agent from working fully, by cause; "" when that is over.
        notifier: the service manager.
    """

    settings: Callable[[], Settings]
    note: Callable[[str, str], None]
    notifier: Notifier = field(default_factory=Notifier.from_environment)
    session: str = ""
    ready: bool = False
    """Whether the start is over."""
    describe: Callable[[], Mapping[str, Any]] = dict
    """What the status says beside what is known here; must not wait for anything."""
    _began: float = field(default_factory=time.time)
    _doing: str = "starting"
    _starts: Starts | None = None
    _answering: Answering | None = None
    _memory: MemoryWatch | None = None
    _braked: str = ""
    _how: str = ""
    _readers: Sequence[Reads] = ()
    _publisher: Delivers | None = None
    _opened_at: float | None = None
    _stopping: bool = False
    _without_source: bool = False
    _told: str = ""
    _supervisor: Supervisor | None = None
    _words: queue.SimpleQueue[Callable[[], object] | None] = field(default_factory=queue.SimpleQueue)

    def __enter__(self) -> Oversight:
        # What is said goes through locks that a stuck stage may hold: the supervisor must not wait for them.
        threading.Thread(target=self._speak, name="oversight", daemon=True).start()
        self._supervisor = Supervisor(self.notifier, on_change=self._on_stuck, on_tick=self._tick)
        self._supervisor.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor is not None:
            self._supervisor.__exit__(kind, error, trace)
        if self._answering is not None:
            self._answering.__exit__(kind, error, trace)
        if self._starts is not None:
            self._starts.end(*self._judge(kind, error))
        self._words.put(None)
        self.notifier.close()

    # --- the start ----------------------------------------------------------------------------

    def begin(self, state: Path, stop: threading.Event) -> None:
        """Answer from the state folder, find out how earlier runs ended, and brake a crash loop.

        Raises:
            StorageError: another agent uses this state folder.
        """
        answering = Answering(state / SOCKET_NAME, self._document)
        self._answering = answering.__enter__()
        self._starts = Starts(state / STARTS_FILE)
        self._starts.begin()
        chosen = self.settings().supervision
        crashes = self._starts.recent_crashes(60 * chosen.crash_window_min)
        wait = pause_s(len(crashes), chosen.crashes)
        if wait:
            self._braked = (
                f"{len(crashes)} runs within {chosen.crash_window_min:g} min crashed: {_ends(crashes)}"
            )
            _log.error("crash_loop", reason=self._braked, waits_s=wait)
            with self.opening(f"waiting {wait:.0f} s, since {self._braked}"):
                stop.wait(wait)

    @contextlib.contextmanager
    def opening(self, what: str) -> Iterator[None]:
        """Around what may take minutes at the start."""
        self._doing = what
        with self.notifier.taking_long(f"starting: {what}", at_most_s=LONGEST_START_S):
            yield

    def progress(self, text: str) -> None:
        """How far something is that takes long at the start: a `notify.StartProgress`."""
        self._doing = text
        self.notifier.progress(text)

    def watch(
        self,
        pipeline: Callable[[], HeartbeatState],
        slow: Mapping[str, tuple[Callable[[], HeartbeatState], Callable[[], float]]],
        readers: Sequence[Reads],
        to: Delivers,
    ) -> None:
        """Everything is open and runs from now on.

        Args:
            pipeline: beat of the driving thread: detection, inference, decisions, hand-over.
            slow: beats of the threads that read sensors, by name, and how many seconds each waits between
                two looks. A sensor's bus that hangs is told of, and is no reason for a restart.
            readers: the sources.
            to: delivery.
        """
        self._readers, self._publisher = readers, to
        stages = [
            Stage("pipeline", pipeline, self._limit_s, "inference"),
            Stage("delivery", lambda: to.heartbeat, self._limit_s, "delivery"),
        ]
        stages += [self._slow_stage(name, *of) for name, of in slow.items()]
        stages += [_source_stage(reader, self._limit_s) for reader in readers]
        self._opened_at = time.monotonic()
        self._tell_of_earlier_runs()
        if self._supervisor is not None:
            self._supervisor.stages = stages

    def _tell_of_earlier_runs(self) -> None:
        """Alerts for the run before, where it crashed, and for a crash loop."""
        before = self._starts.former[-1:] if self._starts is not None else ()
        for run in before:
            if run.crashed:
                self._alert(_crash_alert(run))
        if self._braked:
            self._alert(_loop_alert(self._braked))
            self._note_later("crash loop", self._braked)

    def _alert(self, event: Event) -> None:
        """Publish without waiting for what may be stuck."""
        if self._publisher is not None:
            publish = self._publisher.publish
            self._words.put(lambda: publish(event))

    def _note_later(self, cause: str, reason: str) -> None:
        self._words.put(lambda: self.note(cause, reason))

    def _limit_s(self) -> float:
        return self.settings().supervision.stuck_after_s

    def _slow_stage(
        self, name: str, heartbeat: Callable[[], HeartbeatState], waits_s: Callable[[], float]
    ) -> Stage:
        return Stage(name, heartbeat, lambda: self._limit_s() + waits_s(), name, vital=False)

    # --- while it runs ------------------------------------------------------------------------

    def reloading(self) -> None:
        """Settings are read again."""
        self.notifier.reloading()

    def reloaded(self) -> None:
        """They are in use, or refused."""
        if self.ready:
            self.notifier.ready()

    def tell(self, text: str) -> None:
        """How the agent is, for `systemctl status`; the same is told once."""
        if text != self._told:
            self._told = text
            self.notifier.status(text)

    @property
    def stuck(self) -> tuple[str, ...]:
        """Names of the stages that do not get on."""
        return () if self._supervisor is None else self._supervisor.stuck

    def take_memory(self, resident_bytes: int | None) -> None:
        """Look at the memory of the process; an alert when it grows as it should not, and when that ends."""
        if resident_bytes is None or self._publisher is None:
            return
        chosen = self.settings().supervision
        if self._memory is None:
            self._memory = MemoryWatch(limit_bytes=None, growth_bytes_per_hour=0)
        watch = self._memory
        limit = None if chosen.memory_mb is None else chosen.memory_mb * 1e6
        watch.limit_bytes = control_group_limit() if limit is None else limit
        watch.growth_bytes_per_hour = chosen.memory_growth_mb * 1e6
        before, now = bool(watch.trouble), watch.take(time.monotonic(), resident_bytes)
        if bool(now) != before:
            (_log.warning if now else _log.info)("memory", trouble=now or "over", resident=resident_bytes)
            self._note_later("memory", now)
            self._alert(_memory_alert(now, resident_bytes))

    def asked_to_stop(self) -> None:
        """Somebody wants an end: whatever comes now is none of the crashes. Does not wait for the disk."""
        self._how = "stopped"
        self.notifier.stopping("stopping")
        starts = self._starts
        if starts is not None:
            self._words.put(lambda: starts.end("stopped"))

    def stopping(self) -> None:
        """No further frame will be taken: from now on the service manager's own limit for a stop holds."""
        self._stopping = True
        self._doing = "stopping"
        if self._supervisor is not None:
            self._supervisor.stages = ()
        if not self.ready and not self._how:
            self.ready = True
            self.notifier.ready()  # one that ends by itself before it was ready has not failed
        if not self._how:
            self.notifier.stopping("stopping")

    def _judge(self, kind: type[BaseException] | None, error: BaseException | None) -> tuple[str, str]:
        """How this run ended, and why."""
        if self._how:
            return self._how, ""
        if kind is None or not isinstance(error, Exception):
            return "clean", ""
        if not isinstance(error, EdgeAgentError):
            return "failed", kind.__name__  # its words may hold anything, an address with a login too
        faults = isinstance(error, (EngineError, StorageError)) and not isinstance(error, SpaceMismatch)
        return ("failed" if faults else "refused"), str(error)

    def _tick(self) -> None:
        self._look_at_start()
        braked_for = 60 * self.settings().supervision.crash_window_min
        if self._braked and self._opened_at is not None and time.monotonic() - self._opened_at > braked_for:
            self._braked = ""
            self._note_later("crash loop", "")
            self._alert(_loop_alert(""))

    def _look_at_start(self) -> None:
        if self._opened_at is None or self._stopping or (self.ready and not self._without_source):
            return
        up = [reader.camera for reader in self._readers if reader.state in _UP]
        waited = time.monotonic() - self._opened_at
        if up and self.ready:
            self._without_source = False
            self._note_later("start", "")
        elif up:
            self._become_ready(f"source {up[0]} is up")
        elif self.ready:
            return
        elif waited >= self.settings().supervision.ready_after_s:
            reason = f"no source is up after {waited:.0f} s"
            _log.warning("ready_without_a_source", reason=reason)
            self._without_source = True
            self._become_ready(reason)
            self._note_later("start", reason)

    def _become_ready(self, why: str) -> None:
        self.ready = True
        self.notifier.ready(why)
        _log.info("ready", reason=why)

    def _speak(self) -> None:
        while (say := self._words.get()) is not None:
            try:
                say()
            except EdgeAgentError as problem:
                _log.warning("oversight_not_heard", error=str(problem))
            except Exception:  # noqa: BLE001  what follows must be heard all the same
                _log.exception("oversight_failed")

    # --- stuck stages -------------------------------------------------------------------------

    def _on_stuck(self, stuck: dict[str, str]) -> None:
        """Say it wherever somebody may hear it."""
        text = "; ".join(stuck.values())
        if stuck:
            self.notifier.status(f"stuck: {text}")
        if self._stopping or self._publisher is None:
            return
        starts = self._starts
        if starts is not None:  # before the rest: it is what the next run tells of this one
            self._words.put(lambda: starts.stuck(text))
        self._note_later("stuck", text)
        self._alert(_stuck_alert(stuck))

    # --- the status ---------------------------------------------------------------------------

    def _document(self) -> dict[str, Any]:
        """What `edge-agent status` shows. Nothing here waits for a lock that a stuck stage may hold."""
        states = self._supervisor.states() if self._supervisor is not None else []
        chosen = self.settings().supervision
        crashes = self._starts.recent_crashes(60 * chosen.crash_window_min) if self._starts else []
        document: dict[str, Any] = {
            "version": __version__,
            "pid": os.getpid(),
            "session": self.session,
            "started": self._began,
            "uptime_s": round(time.time() - self._began, 1),
            "state": "stopping" if self._stopping else "starting",
            "reason": self._doing,
            "ready": self.ready,
            "watchdog": {
                "limit_s": self.notifier.watchdog_s,
                "fed": self._supervisor is not None and self._supervisor.fed,
            },
            "stages": [asdict(state) for state in states],
            "memory": {
                "trouble": (self._memory.trouble if self._memory else "") or None,
                "growth_bytes_per_hour": self._memory.growth if self._memory else None,
            },
            "starts": {
                "recent_crashes": len(crashes),
                "braked": self._braked or None,
                "former": [asdict(run) for run in (self._starts.former if self._starts else ())[-5:]],
            },
        }
        return document | dict(self.describe())


def _source_stage(reader: Reads, limit_s: Callable[[], float]) -> Stage:
    """One source; a camera that is away is looked after by its reader, which tries again."""
    return Stage(
        f"source:{reader.camera}",
        lambda: reader.heartbeat,
        limit_s,
        "sources",
        aside=lambda: reader.state in _AWAY,
    )


def _ends(runs: Sequence[Run]) -> str:
    """How runs ended, each way once."""
    return ", ".join(dict.fromkeys(f"{run.how} ({run.words})" if run.words else run.how for run in runs))


def _crash_alert(run: Run) -> Event:
    words = f": {run.words}" if run.words else ""
    return alert_event(
        "run_crashed",
        f"the run before this one did not end by itself: {run.how}{words}",
        time=time.time(),
        details={"how": run.how, "words": run.words or None, "began": run.began},
    )


def _loop_alert(reason: str) -> Event:
    message = f"{reason}; starts are delayed until one holds: see the log of the earlier runs"
    return alert_event(
        "crash_loop",
        message if reason else "the agent holds again",
        severity="critical",
        active=bool(reason),
        time=time.time(),
    )


def _memory_alert(trouble: str, resident_bytes: int) -> Event:
    return alert_event(
        "memory_growth",
        trouble or "memory is as it should be again",
        active=bool(trouble),
        time=time.time(),
        details={"resident_bytes": resident_bytes},
    )


def _stuck_alert(stuck: dict[str, str]) -> Event:
    message = "; ".join(stuck.values()) + "; the service manager restarts the agent if it stays so"
    return alert_event(
        "stage_stuck",
        message if stuck else "every stage gets on again",
        severity="critical",
        active=bool(stuck),
        time=time.time(),
        details={"stages": ",".join(sorted(stuck)) or None},
    )
