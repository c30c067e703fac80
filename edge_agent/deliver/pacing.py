"""Waits and rates: back-off between attempts to connect, and a token bucket."""

from __future__ import annotations

import random
import time

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
REFUSED_WAIT_S = 300.0
"""After a refusal (login, certificate), which a retry rarely changes."""


class Backoff:
    """Waits between attempts: doubling, and a long one after a refusal.

    Each is between half and all of its bound, which spreads the load of a fleet on a broker that returns.
    """

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        """Start again with the shortest wait."""
        self._failures = 0

    def next_wait(self, *, refused: bool) -> float:
        """Return the seconds to wait now."""
        bound = min(FIRST_WAIT_S * 2.0**self._failures, LONGEST_WAIT_S)
        self._failures = min(self._failures + 1, 30)
        bound = max(bound, REFUSED_WAIT_S) if refused else bound
        return bound * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


class TokenBucket:
    """Limits a rate to `per_s` on average and `burst` at once.

    With `hold_s`, it starts empty and is filled only after this time (seconds).
    """

    def __init__(self, per_s: float, burst: float, *, hold_s: float | None = None) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst if hold_s is None else 0.0
        self._at = time.monotonic() + (hold_s or 0.0)

    def wait(self, now: float) -> float:
        """Take a token and return 0.0, or return the seconds until there is one. `now`: monotonic seconds."""
        if now < self._at:
            return self._at - now
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_s

    def take(self) -> bool:
        """Take a token if there is one."""
        return self.wait(time.monotonic()) <= 0.0
