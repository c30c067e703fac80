"""Check the memory of the agent: too large, or growing without end."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edge_agent.core.config import SupervisionSettings

BUCKET_S = 60.0  # one sample a minute: its minimum, so that a burst of crops does not count
WINDOW = 60  # samples for the growth: one hour
WARM_UP = 15  # samples after the start that do not count, while models, allocators and galleries fill up
_QUARTER = WINDOW // 4
_RELEASED = 0.95  # the alert ends below this share of the limit
_SHARE_OF_GROUP = 0.9  # alert before the kernel kills the process
_UNLIMITED = 1 << 60


class MemoryWatch:
    """Checks the resident memory of the process.

    Memory grows when the median of each quarter of the last hour is above that of the previous quarter, and
    the last is above the first by more than the allowed growth. A gallery that fills up grows too: once, by
    about 8 MB per 1000 people with 16 exemplars of 128 numbers.

    `group_limit` returns the limit in bytes where `memory_mb` is not set; None: no limit.
    """

    def __init__(
        self,
        settings: Callable[[], SupervisionSettings],
        group_limit: Callable[[], float | None] | None = None,
    ) -> None:
        self._settings = settings
        self._group_limit = group_limit or control_group_limit
        self.trouble = ""
        """The problem as text; "" without one."""
        self._large = False
        self._samples: deque[float] = deque(maxlen=WINDOW)
        self._skipped = 0
        self._bucket: tuple[float, float] | None = None

    def update(self, now: float, resident_bytes: int) -> str:
        """Add the memory at this time (monotonic seconds), and return `trouble`."""
        began, least = self._bucket or (now, float(resident_bytes))
        if now - began >= BUCKET_S:
            if self._skipped < WARM_UP:
                self._skipped += 1
            else:
                self._samples.append(least)
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

    def _quarters(self) -> list[float]:
        samples = list(self._samples)
        return [statistics.median(samples[at : at + _QUARTER]) for at in range(0, WINDOW, _QUARTER)]

    def _growing(self) -> str:
        growth = self.growth
        if (
            growth is None
            or growth <= self._settings().memory_growth_mb * 1e6
            or any(later <= earlier for earlier, later in itertools.pairwise(self._quarters()))
        ):
            return ""
        return f"memory grew throughout the last hour, by {growth / 1e6:.0f} MB an hour"

    def _too_large(self, resident_bytes: int) -> str:
        megabytes = self._settings().memory_mb
        limit = self._group_limit() if megabytes is None else megabytes * 1e6
        if limit is None:
            return ""
        self._large = resident_bytes > limit * (_RELEASED if self._large else 1.0)
        if not self._large:
            return ""
        return f"{resident_bytes / 1e6:.0f} MB of memory in use, more than {limit / 1e6:.0f} MB"


def control_group_limit(root: Path = Path("/")) -> float | None:
    """Nine tenths of the control group's memory limit (systemd: MemoryMax) in bytes; None without one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        path = next(line[3:].strip("/") for line in lines if line.startswith("0::"))
        limit = int((root / "sys/fs/cgroup" / path / "memory.max").read_text())  # `max` means none
    except (OSError, ValueError, StopIteration):
        return None
    return None if limit >= _UNLIMITED else limit * _SHARE_OF_GROUP
