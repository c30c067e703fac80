"""Waits and rates: back-off between attempts to connect, after a conflict of ids too, and a token bucket."""

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


CONFLICT_WAIT_S = 30.0
LONGEST_CONFLICT_WAIT_S = 900.0
CONFLICT_OVER_S = 1800.0
"""A connection that lasts this long ends a conflict: longer than the other client waits."""
EARLY_S = 90.0
"""A connection that is closed within this time may have been closed for another client with its id."""
EARLY_LOSSES = 4
"""So many such losses in a row, without any other sign of a fault, mean another client with the same id; more
than `elimination` needs to find a message with QoS 0 at which the broker hangs up.
"""


class Conflict:
    """Recognises another client with the same id, and says how long to leave the broker to it.

    A broker closes a connection when another client with the same id connects. With MQTT 5 it gives the
    reason 142, otherwise none. Each client then connects again: so both wait longer each time.
    """

    def __init__(self) -> None:
        self._early = 0
        self.count = 0
        """Losses for this reason."""

    @property
    def is_known(self) -> bool:
        """Whether there is another client with the same id, as far as is known."""
        return self.count > 0

    def lost(self, lasted_s: float, *, taken_over: bool, unexplained: bool) -> float | None:
        """Handle the loss of a working connection; return the seconds to wait, None without a conflict.

        `taken_over`: the broker has given that reason; `unexplained`: it closed the connection without any,
        and no message waited for its acknowledgement.
        """
        self.connected_for(lasted_s)
        self._early = self._early + 1 if unexplained and lasted_s < EARLY_S else 0
        if not taken_over and self._early < (1 if self.is_known else EARLY_LOSSES):
            return None
        self.count += 1
        bound = min(CONFLICT_WAIT_S * 2.0 ** min(self.count - 1, 30), LONGEST_CONFLICT_WAIT_S)
        return bound * random.uniform(0.5, 1.0)  # noqa: S311 - both clients must not wait equally long

    def not_connected(self) -> None:
        """Handle a failed attempt to connect: the losses before it had another reason."""
        self._early = 0

    def connected_for(self, seconds: float) -> bool:
        """Handle a connection that lasts so long; return True when it ends a known conflict."""
        if not self.is_known or seconds < CONFLICT_OVER_S:
            return False
        self.count = self._early = 0
        return True


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
