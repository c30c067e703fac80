"""How long the parts of a start take, and the age of this process."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["Laps", "process_age_s"]


def process_age_s() -> float | None:
    """Seconds since this process was executed, to a hundredth (proc(5), field 22); None off Linux."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf(
            "SC_CLK_TCK"
        )
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return None


class Laps:
    """How long something took, part by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at = time.monotonic()

    def lap(self, part: str) -> None:
        """This part is over; it began when the one before was."""
        now = time.monotonic()
        self.seconds[part] = round(now - self._at, 3)
        self._at = now
