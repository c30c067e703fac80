"""Whether the agent's memory grows as it should not: too large, or larger every hour."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from pathlib import Path

__all__ = ["MemoryWatch", "control_group_limit"]

BUCKET_S = 60.0
"""One sample a minute: the least in it, so that a burst of crops does not count."""

WINDOW = 60
"""Samples that growth is judged by: an hour."""

WARM_UP = 15
"""Samples after the start that do not count: models, allocators and galleries fill up."""

_QUARTER = WINDOW // 4
_RELEASED = 0.95  # below this share of the limit the alarm is over
_SHARE_OF_GROUP = 0.9  # alarm before the kernel ends the process
_UNLIMITED = 1 << 60


class MemoryWatch:
    """Takes in the resident memory of the process and says what is wrong with it.

    Growth counts when the median of each quarter of the last hour lies above that of the one before, and
    the last above the first by more than is allowed. A gallery that fills up grows too: by about 8 MB per
    1000 people with 16 exemplars of 128 numbers, once.

    Args:
        limit_bytes: more than this is too much; None: no limit.
        growth_bytes_per_hour: allowed growth.
    """

    def __init__(self, *, limit_bytes: float | None, growth_bytes_per_hour: float) -> None:
        self.limit_bytes = limit_bytes
        self.growth_bytes_per_hour = growth_bytes_per_hour
        self.trouble = ""
        """What is wrong, for people; "" when nothing is."""
        self._large = False
        self._samples: deque[float] = deque(maxlen=WINDOW)
        self._left_out = 0
        self._bucket: tuple[float, float] | None = None

    def take(self, now: float, resident_bytes: int) -> str:
        """Take in the memory at this time (monotonic seconds); returns `trouble`."""
        began, least = self._bucket or (now, float(resident_bytes))
        if now - began >= BUCKET_S:
            self._close(least)
            began, least = now, float(resident_bytes)
        self._bucket = began, min(least, resident_bytes)
        self.trouble = self._too_large(resident_bytes) or self._growing()
        return self.trouble

    @property
    def growth(self) -> float | None:
        """Bytes per hour between the first and the last quarter of the last hour; None before that."""
        if len(self._samples) < WINDOW:
            return None
        first, *_, last = self._quarters()
        return (last - first) / 0.75

    def _close(self, least: float) -> None:
        if self._left_out < WARM_UP:
            self._left_out += 1
        else:
            self._samples.append(least)

    def _quarters(self) -> list[float]:
        samples = list(self._samples)
        return [statistics.median(samples[at : at + _QUARTER]) for at in range(0, WINDOW, _QUARTER)]

    def _growing(self) -> str:
        growth = self.growth
        if growth is None or growth <= self.growth_bytes_per_hour:
            return ""
        quarters = self._quarters()
        if any(later <= earlier for earlier, later in itertools.pairwise(quarters)):
            return ""
        return f"memory grew all through the last hour, by {growth / 1e6:.0f} MB an hour"

    def _too_large(self, resident_bytes: int) -> str:
        if self.limit_bytes is None:
            return ""
        floor = self.limit_bytes * (_RELEASED if self._large else 1.0)
        self._large = resident_bytes > floor
        if not self._large:
            return ""
        return f"{resident_bytes / 1e6:.0f} MB of memory in use, more than {self.limit_bytes / 1e6:.0f} MB"


def control_group_limit(root: Path = Path("/")) -> float | None:
    """Nine tenths of what the service's control group may use (systemd: MemoryMax); None without a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        if path is None:
            return None
        text = (root / "sys/fs/cgroup" / path.strip("/") / "memory.max").read_text().strip()
        limit = int(text)  # `max` means none
    except (OSError, ValueError):
        return None
    return None if limit >= _UNLIMITED else limit * _SHARE_OF_GROUP
