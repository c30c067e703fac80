"""Record how runs ended, and delay the start after repeated crashes.

A run records its start and its end in a small file in the state folder. A run without recorded end was
killed: by the watchdog, for memory, by a fault in a library. A run that ended with the machine (another boot
id) does not count as crashed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from edge_agent.core.clock import Clock
from edge_agent.core.codec import from_wire
from edge_agent.core.config import SupervisionSettings
from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.core.files import read_json
from edge_agent.core.manifest import write_json_atomic
from edge_agent.core.system_time import boot_id

_log = structlog.get_logger(__name__)

STARTS_FILE = "starts.json"

KEPT = 20  # recorded runs
FIRST_PAUSE_S = 15.0  # first delay of a start; it doubles with each further crash
LONGEST_PAUSE_S = 300.0  # longest delay, since the cause may have been corrected meanwhile
CRASHES = frozenset({"killed", "stuck", "failed"})
"""Ends that count as crashes. The others: `clean`, `stopped` (on request), `refused` (wrong setting, missing
file, gallery of another model), `machine` (shut down or crashed)."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the agent.

    `ended` (Unix seconds, as `began`) is None while it runs, or when it was killed. `how` is the kind of end,
    see `CRASHES`, or "" while it runs; `words` is the reason. `boot` is the boot id, "" on a machine without.
    `instant` is when it began by the clock `axis`, see `core.clock`; None in files of earlier versions.
    """

    began: float
    boot: str
    pid: int
    ended: float | None = None
    how: str = ""
    words: str = ""
    instant: float | None = None
    axis: str = ""

    @property
    def crashed(self) -> bool:
        """Whether its end counts as a crash."""
        return self.how in CRASHES

    def shown(self) -> dict[str, Any]:
        """Return what people read of it, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key not in {"instant", "axis"}}

    def __str__(self) -> str:
        return f"{self.how} ({self.words})" if self.words else self.how


class Starts:
    """The file of runs, for the one agent that uses the state folder. A damaged file counts as empty."""

    def __init__(self, path: Path, clock: Clock, *, boot: str | None = None) -> None:
        self._path = path
        self._clock = clock
        self._boot = boot_id() if boot is None else boot
        self._lock = threading.Lock()
        self.runs: list[Run] = []  # oldest first, this run last

    @property
    def former(self) -> Sequence[Run]:
        """The runs before this one."""
        return self.runs[:-1]

    def begin(self) -> None:
        """Record the start of this run, and find out how the previous one ended."""
        known = [self._closed(run) for run in self._read()]
        clock = self._clock
        this = Run(
            round(clock.label(), 3), self._boot, os.getpid(), instant=round(clock.now(), 3), axis=clock.id
        )
        self.runs = [*known[1 - KEPT :], this]
        self._write()

    def stuck(self, reason: str) -> None:
        """Record that this run may be killed because of a stuck stage ("": no longer)."""
        with self._lock:
            if self.runs and not self.runs[-1].how:
                self._replace_last(words=reason)

    def end(self, how: str, reason: str = "") -> None:
        """Record the end of this run; only the first call counts."""
        with self._lock:
            if self.runs and not self.runs[-1].how:
                self._replace_last(ended=round(self._clock.label(), 3), how=how, words=reason)

    def recent_crashes(self, window_s: float) -> list[Run]:
        """Return earlier runs that crashed and began within `window_s` before this one."""
        if not self.runs:
            return []
        this = self.runs[-1]
        oldest = self._clock.ago(window_s + self._clock.age(this.instant or 0.0))
        return [
            run
            for run in self.former
            if run.crashed and run.axis == this.axis and run.instant is not None and run.instant >= oldest
        ]

    def _closed(self, run: Run) -> Run:
        """Complete a run without end: it was killed, or ended with the machine."""
        if run.how:
            return run
        if run.boot != self._boot:
            return replace(run, how="machine", words="the machine went down")
        return replace(run, how="stuck" if run.words else "killed")

    def _replace_last(self, **changes: Any) -> None:  # noqa: ANN401 - fields of `Run`
        self.runs[-1] = replace(self.runs[-1], **changes)
        self._write()

    def _read(self) -> list[Run]:
        if not self._path.exists():
            return []
        try:
            return [from_wire(Run, entry) for entry in read_json(self._path)["runs"]]
        except (InputError, KeyError, TypeError, ValueError) as problem:
            _log.warning("starts_forgotten", path=str(self._path), error=str(problem))
            return []

    def _write(self) -> None:
        try:
            write_json_atomic(self._path, {"runs": [asdict(run) for run in self.runs]}, mode=0o600)
        except EdgeAgentError as problem:
            _log.warning("starts_not_written", path=str(self._path), error=str(problem))


class CrashLoop:
    """Detects repeated crashes at the start, until this run has been stable for as long as the window."""

    def __init__(self, starts: Starts, settings: Callable[[], SupervisionSettings]) -> None:
        self._starts = starts
        self._settings = settings
        self.reason = ""
        """Why the start was delayed; "" without a crash loop."""

    @property
    def crashes(self) -> list[Run]:
        """Recent crashes."""
        return self._starts.recent_crashes(self._settings().crash_window_s)

    def delay_s(self) -> float:
        """Return the delay of this start, and set the reason."""
        settings, crashes = self._settings(), self.crashes
        if delay := pause_s(len(crashes), settings.crashes):
            ends = ", ".join(dict.fromkeys(str(run) for run in crashes))
            self.reason = f"{len(crashes)} runs within {settings.crash_window_min:g} min crashed: {ends}"
        return delay

    def is_over(self, running_s: float) -> bool:
        """Whether a crash loop has just ended, since this run has been stable."""
        if not self.reason or running_s <= self._settings().crash_window_s:
            return False
        self.reason = ""
        return True


def pause_s(crashes: int, allowed: int) -> float:
    """Delay of a start after this number of recent crashes; 0.0 for fewer than `allowed`."""
    if crashes < allowed:
        return 0.0
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(crashes - allowed, 32))
