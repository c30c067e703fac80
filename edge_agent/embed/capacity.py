"""How many crops the engine takes while the cameras' next frames come.

Live cameras do not wait: whoever embeds more than the engine takes in time loses whole frames, of whichever
camera is just unlucky, and with them everybody on them. So each frame brings time along, the time between
frames of its camera that are taken, shared by all cameras that are on. In that time the engine takes so many
crops, by what it took lately. What one camera leaves over, others may use.

Nothing here depends on which clock runs, so that a recording can be replayed to the same result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_agent.core.structures import Candidates

__all__ = ["CropBudget"]

MEMORY_S = 1.0
"""Half of what is known of the engine's speed is from so many of its latest seconds at work."""

TRUSTED_S = 0.1
"""Its speed is not relied on before it has worked for so long."""

SLOWEST = 1.0
"""Crops a second; an engine that gave no row at all must be asked again to show that it does."""

FRAMES = 16
"""Frames over which the rate of a camera is measured."""

GAP_S = 5.0
"""A camera that was silent for so long begins anew, and so does one whose clock was set back."""

ACTIVE_S = 2.0
"""A camera that was silent for so long leaves its share to the others."""

SAVED_S = 0.5
"""Time of the engine that may be saved up, at most; and never more than a frame of the slowest camera."""

REVIEW_S = 1.0
"""How often the pace is looked at."""

BUSY = 0.95
"""Busy for this share of the time, the engine is why frames are lost; else it is something else."""

IDLE = 0.975
"""Busy for less than this while crops are left out, the engine could have taken more."""

LOST = 0.05
"""Lost frames among all that are no accident."""

LEAST_PACE, MOST_PACE = 0.25, 2.0
PACE_STEP = 0.05
"""In one review upwards and back to 1; downwards up to twice that."""


@dataclass(slots=True)
class _Camera:
    """When its latest frames came: `(time, frames it has delivered)`."""

    seen: float
    lost: int
    delivered: int = 0
    frames: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=FRAMES))

    @property
    def interval_s(self) -> float | None:
        """Between two of its frames; None while too few were seen."""
        if len(self.frames) < 2:
            return None
        (begin, first), (end, last) = self.frames[0], self.frames[-1]
        return (end - begin) / (last - first)


@dataclass(slots=True)
class _Window:
    """What happened since the last review.

    Attributes:
        since: when it began.
        seconds: that the engine had been at work until then.
        frames, lost: that came, and that nobody took.
        short: whether crops were left out.
    """

    since: float
    seconds: float
    frames: int = 0
    lost: int = 0
    short: bool = False


class CropBudget:
    """For one thread.

    Args:
        worked: crops that the engine has embedded, and the seconds that it was at work, since the start.
        clock: seconds; the frames' own times are only compared within one camera.
    """

    def __init__(
        self, worked: Callable[[], tuple[int, float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worked = worked
        self._clock = clock
        self._known = worked()
        self._crops = self._seconds = 0.0
        self._cameras: dict[str, _Camera] = {}
        self._room = 0.0
        self._part = 0.0
        self._pace = 1.0
        self._window: _Window | None = None

    @property
    def rate(self) -> float | None:
        """Crops a second that the engine took lately while it was at work; None while that is not known."""
        if self._seconds < TRUSTED_S:
            return None
        return max(SLOWEST, self._crops / self._seconds)

    def offer(self, frames: Sequence[Candidates], wanted: int, every_nth: int) -> int | None:
        """How many crops of these frames may be embedded; None for all. Say with `spend` how many were.

        Args:
            frames: of live cameras, one round.
            wanted: so many crops they have.
            every_nth: of the frames that are taken, every so manyth is offered.
        """
        now = self._clock()
        self._learn()
        passed = [self._take(frame, now, every_nth) for frame in frames]
        self._review(now)
        intervals = [self._cameras[frame.camera].interval_s for frame in frames]
        known = [n * interval for n, interval in zip(passed, intervals, strict=True) if interval is not None]
        rate = self.rate
        if rate is None or not frames or len(known) < len(frames):
            return None
        active = self._active(now)
        own = [every_nth * camera.interval_s for camera in active if camera.interval_s is not None]
        brought_s = max(sum(known) / len(active), sum(frame.detect_s for frame in frames))
        saved = min(self._room, max(1.0, rate * min(SAVED_S, max(own))))
        self._room = saved + self._pace * rate * brought_s
        if wanted <= self._room:
            return None
        # A round that lasts longer than a frame of the fastest camera costs that camera the next one.
        self._part, whole = math.modf(self._part + self._pace * rate * min(own))
        return int(min(self._room, max(1.0, whole)))

    def spend(self, crops: int, spared: int) -> None:
        """Of the crops of the frames that were offered, so many are embedded, and so many left out."""
        self._room = max(0.0, self._room - crops)
        if self._window is not None:
            self._window.short |= spared > 0

    def _learn(self) -> None:
        crops, seconds = self._worked()
        worked_s = seconds - self._known[1]
        if worked_s > 0:
            kept = 0.5 ** (worked_s / MEMORY_S)
            self._crops = kept * self._crops + crops - self._known[0]
            self._seconds = kept * self._seconds + worked_s
            self._known = (crops, seconds)

    def _take(self, frame: Candidates, now: float, every_nth: int) -> int:
        """Note a frame; how many its camera has delivered since the one before, this one included."""
        camera = self._cameras.setdefault(frame.camera, _Camera(now, frame.lost))
        lost, camera.lost, camera.seen = frame.lost - camera.lost, frame.lost, now
        camera.delivered += every_nth + lost
        if self._window is not None:
            self._window.frames += every_nth + lost
            self._window.lost += lost
        if camera.frames and not 0.0 <= frame.time - camera.frames[-1][0] <= GAP_S * every_nth:
            camera.frames.clear()
        camera.frames.append((frame.time, camera.delivered))
        return every_nth + lost

    def _active(self, now: float) -> list[_Camera]:
        return [
            camera
            for camera in self._cameras.values()
            if now - camera.seen <= max(ACTIVE_S, 2.0 * (camera.interval_s or 0.0))
        ]

    def _review(self, now: float) -> None:
        """Mend what the engine's speed does not show: crops that are refused, batches that come late."""
        window = self._window or _Window(now, self._known[1])
        span = now - window.since
        if span >= REVIEW_S:
            self._pace = _next_pace(self._pace, window, (self._known[1] - window.seconds) / span)
            window = _Window(now, self._known[1])
        self._window = window


def _next_pace(pace: float, window: _Window, busy: float) -> float:
    """Slower where a busy engine loses frames, faster where it idles while crops are left out.

    Frames that are lost beside an idle engine are none of its business: no pace would save them.
    """
    lost = window.lost / max(1, window.frames)
    if lost > LOST and busy > BUSY:
        return max(LEAST_PACE, pace - min(lost - LOST, 2 * PACE_STEP))
    if busy < IDLE and lost <= 2 * LOST and window.short:
        return min(MOST_PACE, pace + min(IDLE - busy, PACE_STEP))
    if lost > LOST or not window.short:
        return pace + min(PACE_STEP, max(-PACE_STEP, 1.0 - pace))
    return pace
