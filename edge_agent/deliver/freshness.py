"""Whether a command is fresh, by a clock that does not jump.

A command states when it was sent (`issued`), by the clock of its sender. It may come late: from a queue of
the broker or of the sender. What the broker may hold back is bounded by the session (`session_expiry_s`).
For the rest, `issued` is compared with the sender's time as it is known here: a reference at one instant,
continued by running time. At the start it is the label of the device's clock. Then

- a clock that is confirmed (`core.clock`) is the reference, whatever comes;
- a reference before 2024 or after 2033 is of a clock that was never set: the first command replaces it;
- a command that is newer than the reference moves it, where the clock is not confirmed: a command cannot
  come before it was sent, so the device's clock is behind. Once a command has agreed with the device's
  clock, a newer one is taken and moves nothing: its sender is ahead, and must not lock out the others;
- a command that is older is refused, unless it names the present run (`session`), where the clock is not
  confirmed: then it was sent in this run, and the device's clock is ahead.
"""

from __future__ import annotations

from edge_agent.core.clock import CLOCK_SET, Clock
from edge_agent.core.timing import duration

MAX_AGE_S = 60.0
"""Older commands are refused."""
LATEST_CLOCK = CLOCK_SET + 10 * 366 * 86_400.0
"""2034. A clock that is not confirmed and shows more is wrong."""


def session_expiry_s(keepalive_s: float, least_s: float) -> int:
    """Return how long the broker may keep commands for an agent that is away, in seconds.

    It notices after one and a half keepalive that a connection is dead; until the end of both, no command
    gets older than `MAX_AGE_S`. `least_s` is needed for another purpose.
    """
    return int(max(least_s, MAX_AGE_S - 1.5 * keepalive_s))


class Freshness:
    """Judges commands in the order of their arrival; for one thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.label() - clock.now()
        """Sender's time less the instant: the reference."""
        self._is_own = True
        """Whether the reference is that of the device's clock."""
        self._agreed = False
        """Whether a command has agreed with the device's clock."""

    def problem(self, issued: float, *, names_run: bool = False) -> str:
        """Return why a command is not fresh; "" if it is.

        `issued`: Unix seconds; `names_run`: whether it names the present run.
        """
        now, confirmed = self._clock.now(), self._clock.state().state == "confirmed"
        if confirmed:
            self._offset, self._is_own = self._clock.label() - now, True
        time = now + self._offset
        age = time - issued
        if abs(age) <= MAX_AGE_S:
            self._agreed = self._agreed or self._is_own
            return ""
        if not confirmed and not _is_possible(time) and _is_possible(issued):
            self._move(issued - now)
            return ""
        if age > 0 and (confirmed or not names_run):
            advice = "" if confirmed else "; the clock of this device is not confirmed, check it"
            return f"issued {duration(age)} ago; {MAX_AGE_S:.0f} s are allowed{advice}"
        if age < 0 and (confirmed or not _is_possible(issued)):
            return f"issued {duration(-age)} ahead of the time of this device; check both clocks"
        if not self._agreed:
            self._move(issued - now)
        return ""

    def _move(self, offset: float) -> None:
        self._offset, self._is_own, self._agreed = offset, False, False


def _is_possible(time: float) -> bool:
    return CLOCK_SET <= time < LATEST_CLOCK
