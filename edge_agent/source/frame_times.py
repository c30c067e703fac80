"""Times of the frames of a recording, from the positions that its container states.

Positions are usually right, also where frames are not evenly spaced (phones, recorders that pause). They can
be missing, repeat, go back (files joined end to end) or be absurd (damaged bytes). The rules, in this order;
a *step* is the latest interval between two frames, at first that of the header's frame rate:

1. A position that follows the time before it, by at most `LONGEST_GAP_S`, is the time. If the next
   frame's position lies before it, it is wrong and counts as missing.
2. A frame without such a position lies half-way to the next frame, at most one step after the one before it;
   where the next has none either, one step after the one before it.
3. Where two positions in a row agree with each other and not with the times so far - they restart at least
   `_RESTART_S` earlier, leap by more than `LONGEST_GAP_S`, or stay behind for `_PATIENCE` frames - the
   sequence goes on from there, one step after the frame before it.
4. Positions that are closer than `1 / FASTEST_FPS` on average are ticks of a clock, not times: all missing.
"""

from __future__ import annotations

import math
from typing import TypeGuard

ASSUMED_FPS = 25.0
"""For recordings that state neither positions nor a frame rate; FFmpeg assumes the same."""
FASTEST_FPS = 260.0
"""The fastest phones record 240; a higher rate in a header (600, 1000, 90000) is a time base."""
LONGEST_GAP_S = 86_400.0
"""A recorder may pause for a day; longer leaps are damage."""
_RESTART_S = 1.0
"""Positions of joined files go back further; those of frames in decoding order do not."""
_PATIENCE = 8
_LONGEST_STEP_S = 1.0
"""A longer interval is a pause, after which the step is as before it."""


class FrameTimes:
    """Places frames in time: 0 for the first one, then never decreasing and finite.

    Args:
        rate: frames per second of the header; a value that cannot be a rate is ignored.
    """

    def __init__(self, rate: float | None) -> None:
        stated = rate is not None and 1 / LONGEST_GAP_S <= rate <= FASTEST_FPS
        self._step = 1 / rate if rate is not None and stated else 1 / ASSUMED_FPS
        self._step_known = stated
        self._started = False
        self._time = 0.0
        self._offset = 0.0
        """Time minus position; OpenCV counts positions from the start of the stream."""
        self._first = 0.0
        """Position at which the present sequence began."""
        self._since = 0
        """Frames since then."""
        self._behind = 0
        self._taken = self._assumed = 0

    @property
    def guessed(self) -> bool:
        """Whether most frames so far have their time from `ASSUMED_FPS`."""
        return self._assumed > self._taken

    def place(self, position: float, following: float | None) -> float:
        """Return the seconds from the first frame to this one.

        Args:
            position: what the container states for this frame, in seconds; 0 (except for the first frame),
                negative and not finite values mean that it states none.
            following: the same for the next frame; None at the end.
        """
        if not self._started:
            self._started = True
            wrong = _is_stated(following) and following < position
            if math.isfinite(position) and position >= 0 and not wrong:
                self._begin(position)
            return self._time
        self._since += 1
        here, after = self._usable(position, 0), self._usable(following, 1)
        if here is not None and self._fits(here, after):
            self._take(here + self._offset)
        elif after is not None and self._follows(after):
            self._advance(min(self._step, self._lead(after) / 2))
        else:
            self._advance(self._step)
            if here is not None and after is not None and here < after and self._is_new_base(here):
                self._begin(here)
        return self._time

    def _usable(self, position: float | None, ahead: int) -> float | None:
        """The position, or None where it states nothing (also rule 4)."""
        if not _is_stated(position):
            return None
        dense = 0 <= position - self._first < (self._since + ahead) / FASTEST_FPS
        return None if dense else position

    def _lead(self, position: float) -> float:
        """Seconds from the latest time to that of a position."""
        return position + self._offset - self._time

    def _follows(self, position: float) -> bool:
        return 0 < self._lead(position) <= LONGEST_GAP_S

    def _fits(self, here: float, after: float | None) -> bool:
        """Rule 1."""
        return self._follows(here) and not (after is not None and after < here and self._follows(after))

    def _is_new_base(self, here: float) -> bool:
        """Rule 3; neither this position nor the next follows, and the time has advanced already."""
        self._behind += 1
        lead = self._lead(here) + self._step
        return not -_RESTART_S < lead <= LONGEST_GAP_S or self._behind >= _PATIENCE

    def _take(self, time: float) -> None:
        if time - self._time <= _LONGEST_STEP_S:
            self._step, self._step_known = max(time - self._time, 1 / FASTEST_FPS), True
        self._time = time
        self._behind = 0
        self._taken += 1

    def _advance(self, seconds: float) -> None:
        self._time += seconds
        self._assumed += not self._step_known

    def _begin(self, position: float) -> None:
        """Start a sequence of positions at the present time."""
        self._offset = self._time - position
        self._first, self._since, self._behind = position, 0, 0


def _is_stated(position: float | None) -> TypeGuard[float]:
    """OpenCV returns 0 for a frame without a time stamp; older versions, a large negative number."""
    return position is not None and math.isfinite(position) and position > 0
