"""Limit on the frame rate of a camera."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

__all__ = ["RateLimiter"]


class RateLimiter:
    """Passes at most a number of frames per second, evenly; frames left out are not converted.

    Args:
        rate: frames per second; None passes all.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = -math.inf
        self.lower_rate: Callable[[], float | None] = lambda: None
        """Returns a lower rate that is sufficient at present, None for the usual one."""

    def due(self) -> bool:
        """Whether this frame is to be passed."""
        now = time.monotonic()
        if now < self._next:
            return False
        # From the due time rather than from now, or 15 fps limited to 10 would give 7.5.
        interval = self._interval()
        self._next = max(self._next, now - interval) + interval
        return True

    def _interval(self) -> float:
        rates = [rate for rate in (self._rate, self.lower_rate()) if rate is not None]
        return 1.0 / min(rates) if rates else 0.0
