"""How earlier runs ended: a small file in the state folder, and the brake on a crash loop.

A run writes itself down when it begins, and how it ended when it ends. One that finds the run before it still
open knows that it was killed: by the watchdog, for memory, by a fault in a library. A run that the machine
took with it (another boot) is not counted: that is no fault of the agent's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from edge_agent.core.errors import EdgeAgentError, InputError
from edge_agent.core.manifest import read_json, write_json_atomic

__all__ = ["STARTS_FILE", "Run", "Starts", "pause_s"]

_log = structlog.get_logger(__name__)

STARTS_FILE = "starts.json"

KEPT = 20
"""Runs that are remembered."""

FIRST_PAUSE_S = 15.0
"""First wait of the brake; it doubles with each further crash."""

LONGEST_PAUSE_S = 300.0
"""Longest wait: whatever is wrong may have been mended by hand meanwhile."""

CRASHES = frozenset({"killed", "stuck", "failed"})
"""Ends that count. The others: `clean`, `stopped` (asked for), `refused` (a wrong setting, a missing file, a
gallery of another model), `machine` (it went down meanwhile)."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the agent.

    Attributes:
        began: Unix seconds.
        boot: id of the boot of the machine; "" where it has none.
        pid: of the process.
        ended: Unix seconds; None while it runs, or when it was killed.
        how: see `CRASHES`; "" while it runs.
        words: why, for people.
    """

    began: float
    boot: str
    pid: int
    ended: float | None = None
    how: str = ""
    words: str = ""

    @property
    def crashed(self) -> bool:
        """Whether its end counts."""
        return self.how in CRASHES


class Starts:
    """The file, for the one agent that uses the state folder. A file that cannot be used brakes nothing.

    Args:
        path: of the file.
        boot: id of this boot; the machine's own when None.
    """

    def __init__(self, path: Path, *, boot: str | None = None) -> None:
        self._path = path
        self._boot = _boot_id() if boot is None else boot
        self._lock = threading.Lock()
        self.runs: list[Run] = []
        """Oldest first, this one last."""

    @property
    def former(self) -> Sequence[Run]:
        """The runs before this one."""
        return self.runs[:-1]

    def begin(self) -> None:
        """Write this run down, and find out how the one before ended."""
        known = [self._closed(run) for run in self._read()]
        self.runs = [*known[1 - KEPT :], Run(round(time.time(), 3), self._boot, os.getpid())]
        self._write()

    def stuck(self, words: str) -> None:
        """This run is likely to be ended for a stuck stage ("": no longer)."""
        with self._lock:
            if self.runs and not self.runs[-1].how:
                self._change(replace(self.runs[-1], words=words))

    def end(self, how: str, words: str = "") -> None:
        """This run ends like this; the first word counts."""
        with self._lock:
            if self.runs and not self.runs[-1].how:
                self._change(replace(self.runs[-1], ended=round(time.time(), 3), how=how, words=words))

    def recent_crashes(self, window_s: float) -> list[Run]:
        """Earlier runs that began within `window_s` before this one and crashed."""
        since = self.runs[-1].began - window_s
        return [run for run in self.former if run.crashed and since <= run.began <= self.runs[-1].began]

    def _closed(self, run: Run) -> Run:
        """A run that has no end was killed, or went down with the machine."""
        if run.how:
            return run
        if run.boot != self._boot:
            return replace(run, how="machine", words="the machine went down")
        return replace(run, how="stuck" if run.words else "killed")

    def _change(self, run: Run) -> None:
        self.runs[-1] = run
        self._write()

    def _read(self) -> list[Run]:
        if not self._path.exists():
            return []
        try:
            return [_run(entry) for entry in read_json(self._path)["runs"]]
        except (InputError, KeyError, TypeError, ValueError) as problem:
            _log.warning("starts_forgotten", path=str(self._path), error=str(problem))
            return []

    def _write(self) -> None:
        try:
            write_json_atomic(self._path, {"runs": [asdict(run) for run in self.runs]}, mode=0o600)
        except EdgeAgentError as problem:
            _log.warning("starts_not_written", path=str(self._path), error=str(problem))


def pause_s(crashes: int, allowed: int) -> float:
    """How long a start waits after so many recent crashes; 0.0 while there are fewer than `allowed`."""
    if crashes < allowed:
        return 0.0
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(crashes - allowed, 32))


def _run(entry: Any) -> Run:  # noqa: ANN401  JSON
    ended = entry["ended"]
    return Run(
        float(entry["began"]),
        str(entry["boot"]),
        int(entry["pid"]),
        None if ended is None else float(ended),
        str(entry["how"]),
        str(entry["words"]),
    )


def _boot_id() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
