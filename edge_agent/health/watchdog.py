"""Feed systemd's watchdog while no vital stage is stuck, and report the stages that are.

A stage whose heartbeat is older than its limit is stuck. When a vital group is stuck, the watchdog is no
longer fed, and systemd restarts the service after its own timeout. Before that, the stuck stage is reported
in the log (with the stack of its thread), in the status and, while delivery works, in an alert.

A thread that holds Python's interpreter lock inside a library blocks the supervisor too. The watchdog is not
fed then either, and `faulthandler` writes the stacks of all threads to standard error.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from edge_agent.core.heartbeat import HeartbeatState
from edge_agent.health.systemd import Notifier

__all__ = ["Stage", "StageState", "Supervisor"]

_log = structlog.get_logger(__name__)

TICK_S = 1.0
"""How often the stages are looked at where no watchdog asks for more."""

FEEDS_PER_LIMIT = 3
"""The watchdog is fed so often within its limit: sd_watchdog_enabled(3) asks for two at least."""

BLOCKED_S = 20.0
"""When this thread has not run for so long, another one holds the interpreter: its place is written down."""

_PLACES = 3  # innermost calls of a stuck thread that are logged


@dataclass(frozen=True, slots=True)
class Stage:
    """Something that must get on.

    Attributes:
        name: for log and status, e.g. `pipeline` or `source:gate`.
        heartbeat: its latest heartbeat; must not wait for anything.
        limit_s: older than this, it is stuck; asked anew each time, since settings may change.
        group: the watchdog starves when every stage of a vital group that does not stand aside is stuck.
        vital: whether the service is of no use without its group.
        aside: whether the stage is over or away, and neither helps nor harms its group.
    """

    name: str
    heartbeat: Callable[[], HeartbeatState]
    limit_s: Callable[[], float]
    group: str
    vital: bool = True
    aside: Callable[[], bool] = bool


@dataclass(frozen=True, slots=True)
class StageState:
    """How a stage was when it was last looked at.

    Attributes:
        name: of the stage.
        state: `working`, `idle` or `stuck`.
        doing: what it does, or why it is idle.
        silent_s: seconds since its latest sign of life.
        limit_s: when it counts as stuck.
        vital: whether a restart follows when its group is stuck.
    """

    name: str
    state: str
    doing: str
    silent_s: float
    limit_s: float
    vital: bool


@dataclass(slots=True)
class Supervisor:
    """The thread that looks at the stages; lifetime is a `with`.

    Args:
        notifier: feeds the watchdog.
        on_change: called with the stuck stages (name and words) whenever they change.
        on_tick: called at each look. Both are called on this thread, and must not wait for anything.
    """

    notifier: Notifier
    on_change: Callable[[dict[str, str]], None]
    on_tick: Callable[[], None]
    stages: Sequence[Stage] = ()
    """What is looked at; replaced as a whole."""
    fed: bool = True
    """Whether the watchdog was fed at the last look."""
    _stuck: dict[str, str] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Supervisor:
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * TICK_S)

    @property
    def stuck(self) -> tuple[str, ...]:
        """Names of the stages that were stuck at the last look."""
        return tuple(self._stuck)

    def states(self) -> list[StageState]:
        """How every stage is now."""
        now = time.monotonic()
        return [_look(stage, now) for stage in self.stages]

    @property
    def _every_s(self) -> float:
        limit = self.notifier.watchdog_s
        return TICK_S if limit is None else min(TICK_S, limit / FEEDS_PER_LIMIT)

    def _run(self) -> None:
        faulthandled = _stderr_is_a_file()
        try:
            while not self._stop.is_set():
                if faulthandled:
                    faulthandler.dump_traceback_later(BLOCKED_S, exit=False)
                self._tick()
                self._stop.wait(self._every_s)
        finally:
            if faulthandled:
                faulthandler.cancel_dump_traceback_later()

    def _tick(self) -> None:
        stages = self.stages
        now = time.monotonic()
        looked = [(stage, _look(stage, now)) for stage in stages]
        self._tell({state.name: _words(state) for _, state in looked if state.state == "stuck"})
        self.fed = not _starved(looked)
        if self.fed:
            self.notifier.alive()
        self.on_tick()

    def _tell(self, stuck: dict[str, str]) -> None:
        """Name stages that got stuck, or got on again, once each."""
        if stuck.keys() == self._stuck.keys():
            self._stuck = stuck
            return
        for stage in self.stages:
            if stage.name in stuck and stage.name not in self._stuck:
                where = _places(stage.heartbeat().thread)
                _log.error("stage_stuck", stage=stage.name, what=stuck[stage.name], where=where)
            elif stage.name in self._stuck and stage.name not in stuck:
                _log.info("stage_goes_on", stage=stage.name)
        self._stuck = stuck
        self.on_change(stuck)


def _look(stage: Stage, now: float) -> StageState:
    heartbeat, limit = stage.heartbeat(), stage.limit_s()
    silent = max(0.0, now - heartbeat.at)
    gets_on = "working" if heartbeat.idle is None else "idle"
    state = "stuck" if silent > limit else gets_on
    doing = heartbeat.task if heartbeat.idle is None else heartbeat.idle
    return StageState(stage.name, state, doing, round(silent, 1), limit, stage.vital)


def _starved(looked: Sequence[tuple[Stage, StageState]]) -> bool:
    """Whether a vital group has members that are stuck and none that gets on."""
    groups: dict[str, list[str]] = {}
    for stage, state in looked:
        if stage.vital and not stage.aside():
            groups.setdefault(stage.group, []).append(state.state)
    return any(all(state == "stuck" for state in states) for states in groups.values())


def _words(state: StageState) -> str:
    doing = f" in {state.doing}" if state.doing else ""
    return f"{state.name} has not got on{doing} for {state.silent_s:.0f} s (limit {state.limit_s:.0f} s)"


def _places(thread: int | None) -> list[str]:
    """The innermost calls of a thread, outermost first; files and lines, no values."""
    frame = sys._current_frames().get(thread) if thread is not None else None
    if frame is None:
        return []
    calls = traceback.extract_stack(frame)[-_PLACES:]
    return [f"{call.filename}:{call.lineno} {call.name}" for call in calls]


def _stderr_is_a_file() -> bool:
    """Whether standard error has a descriptor: in tests it may be a text buffer."""
    try:
        return sys.stderr.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False
