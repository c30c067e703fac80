"""Times and durations as text, the duration of steps, and the age of this process."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

LATEST_TIME = 1e11
"""Unix seconds of the year 5138; a later time is an error, mostly milliseconds taken for seconds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST, _LAST = -62_135_596_800.0, 253_402_300_799.0
"""The times that `rfc3339` can write."""


@lru_cache(maxsize=256)
def rfc3339(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC with milliseconds: `2024-05-01T10:00:00.000Z`."""
    moment = datetime.fromtimestamp(round(seconds, 3), timezone.utc)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def parse_time(text: str) -> float:
    """RFC 3339 text to Unix seconds.

    ValueError for other text, for a time without offset from UTC, and outside the years 1 to 9999 in UTC.
    """
    # datetime.fromisoformat accepts `Z` only from Python 3.11 on.
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in {"Z", "z"} else text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    seconds = (moment - _EPOCH).total_seconds()
    if not _FIRST <= seconds <= _LAST:
        raise ValueError(f"{text!r} is outside the years 1 to 9999 in UTC")
    return seconds


def duration(seconds: float) -> str:
    """Return a time span in the largest unit that fits: `3 s`, `2 min`, `2 h`, `10 days`, `9.9 years`."""
    for unit, size in (("years", 365.25 * 86_400), ("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size or (unit in {"h", "min"} and seconds >= size):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def process_age_s() -> float | None:
    """Seconds since this process was executed, to a hundredth (proc(5), field 22); None off Linux."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        started = ticks / os.sysconf("SC_CLK_TCK")
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 2)
    except (OSError, AttributeError):
        return None


class Laps:
    """Durations of consecutive steps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.monotonic()

    def lap(self, step: str) -> None:
        """Record the end of this step, which began at the end of the one before."""
        now = time.monotonic()
        self.seconds[step] = round(now - self._at, 3)
        self._at = now
