"""Feed systemd's watchdog while no vital stage is stuck, and report the stages that are.

A stage whose heartbeat is older than its limit is stuck. When a vital group is stuck, the watchdog is no
longer fed, and systemd restarts the service after its own timeout. A thread that holds Python's interpreter
lock inside a library blocks the watchdog thread too; then `faulthandler` writes the stacks of all threads.
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

_log = structlog.get_logger(__name__)

CHECK_INTERVAL_S = 1.0  # interval of the checks, unless systemd's watchdog needs a shorter one
FEEDS_PER_LIMIT = 3  # watchdog signals within its limit; sd_watchdog_enabled(3) recommends at least two
BLOCKED_S = 20.0  # the stacks of all threads are written when the watchdog thread has not run for this time
_STACK_DEPTH = 3  # innermost calls of a stuck thread that are logged


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage under supervision.

    A group is stuck when all its active stages are; `inactive` returns whether this one has ended or is
    disconnected. If the group is `vital`, the service then needs a restart. `heartbeat` must not block;
    `limit_s` returns the age of a heartbeat that counts as stuck.
    """

    name: str
    heartbeat: Callable[[], HeartbeatState]
    limit_s: Callable[[], float]
    group: str
    vital: bool = True
    inactive: Callable[[], bool] = bool


@dataclass(frozen=True, slots=True)
class StageState:
    """State of a stage at one check: `working`, `idle` or `stuck`, and its task, or why it is idle.

    `silent_s` is the age of its heartbeat, `limit_s` the age that counts as stuck.
    """

    name: str
    state: str
    doing: str
    silent_s: float
    limit_s: float
    vital: bool

    @staticmethod
    def of(stage: Stage, now: float) -> StageState:
        """Return the state of a stage at this time (monotonic seconds)."""
        heartbeat, limit = stage.heartbeat(), stage.limit_s()
        silent = max(0.0, now - heartbeat.at)
        state, task = ("working", heartbeat.task) if heartbeat.idle is None else ("idle", heartbeat.idle)
        if silent > limit:
            state = "stuck"
        return StageState(stage.name, state, task, round(silent, 1), limit, stage.vital)

    @property
    def message(self) -> str:
        """Description of a stuck stage."""
        task = f" in {self.doing}" if self.doing else ""
        return f"{self.name} is stuck{task} for {self.silent_s:.0f} s (limit {self.limit_s:.0f} s)"


@dataclass(slots=True)
class Watchdog:
    """Thread that checks the stages; lifetime is a `with`.

    Both functions run on the watchdog thread, and must not block: `on_change` with the stuck stages (name and
    message) when they change, `on_check` at each check.
    """

    notifier: Notifier
    on_change: Callable[[dict[str, str]], None]
    on_check: Callable[[], None]
    stages: Sequence[Stage] = ()  # stages to check; replaced as a whole
    fed: bool = True  # whether the last check sent a watchdog signal
    _stuck: dict[str, str] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * CHECK_INTERVAL_S)

    @property
    def stuck(self) -> tuple[str, ...]:
        """Names of the stages that were stuck at the last check."""
        return tuple(self._stuck)

    def states(self) -> list[StageState]:
        """Return the present state of every stage."""
        now = time.monotonic()
        return [StageState.of(stage, now) for stage in self.stages]

    def check(self) -> None:
        """Check all stages once."""
        now = time.monotonic()
        states = [(stage, StageState.of(stage, now)) for stage in self.stages]
        self._report({state.name: state.message for _, state in states if state.state == "stuck"})
        self.fed = not _is_group_stuck(states)
        if self.fed:
            self.notifier.alive()
        self.on_check()

    def _run(self) -> None:
        limit = self.notifier.watchdog_s
        interval = CHECK_INTERVAL_S if limit is None else min(CHECK_INTERVAL_S, limit / FEEDS_PER_LIMIT)
        dumps = _stderr_has_descriptor()
        try:
            while not self._stop.is_set():
                if dumps:
                    faulthandler.dump_traceback_later(BLOCKED_S, exit=False)
                self.check()
                self._stop.wait(interval)
        finally:
            if dumps:
                faulthandler.cancel_dump_traceback_later()

    def _report(self, stuck: dict[str, str]) -> None:
        """Report stages that became stuck, or work again, once each."""
        if stuck.keys() == self._stuck.keys():
            self._stuck = stuck
            return
        for stage in self.stages:
            if stage.name in stuck and stage.name not in self._stuck:
                where = _stack(stage.heartbeat().thread)
                _log.error("stage_stuck", stage=stage.name, what=stuck[stage.name], where=where)
            elif stage.name in self._stuck and stage.name not in stuck:
                _log.info("stage_goes_on", stage=stage.name)
        self._stuck = stuck
        self.on_change(stuck)


def _is_group_stuck(states: Sequence[tuple[Stage, StageState]]) -> bool:
    """Whether all active stages of a vital group are stuck."""
    groups: dict[str, list[str]] = {}
    for stage, state in states:
        if stage.vital and not stage.inactive():
            groups.setdefault(stage.group, []).append(state.state)
    return any(all(state == "stuck" for state in group) for group in groups.values())


def _stack(thread: int | None) -> list[str]:
    """The innermost calls of a thread, outermost first; files and lines, no values."""
    frame = sys._current_frames().get(thread) if thread is not None else None
    calls = traceback.extract_stack(frame)[-_STACK_DEPTH:] if frame is not None else ()
    return [f"{call.filename}:{call.lineno} {call.name}" for call in calls]


def _stderr_has_descriptor() -> bool:
    """Whether standard error has a file descriptor; under test it may be a text buffer."""
    try:
        return sys.stderr.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False
