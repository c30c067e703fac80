"""How many crops the engine and the host can process before the cameras' next frames.

Live cameras do not wait: with more crops than are processed in time, whole frames of any camera are lost.
So each frame brings time along: the time since the last processed frame of its camera, divided by the
number of active cameras. The measured speed, of the engine or of the host, the slower one, converts it into
crops. Time that one camera does not use is available to others. Nothing depends on the wall clock but the
host's speed: without that, a replayed recording gives the same result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_agent.core.structures import Candidates

MEMORY_S = 1.0
"""Half-life of a measurement of speed, in seconds of work."""
TRUSTED_S = 0.1
"""Work before a speed is used."""
HOST_FULL = 0.95
"""Share of the time of the driving thread that work on crops and frames may take together."""
HOST_LEAST = 0.5
"""Share of it for the work on crops, even where that on frames takes more: a slow detector is not helped by
fewer embeddings."""
SLOWEST = 1.0
"""Least speed in crops a second: an engine that gave no rows must get crops to show that it works again."""
FRAMES = 16
"""Frames over which the rate of a camera is measured."""
GAP_S = 5.0
"""After this silence, or when its clock was set back, the rate of a camera is measured again."""
ACTIVE_S = 2.0
"""A camera that is silent for this long leaves its share to the others."""
SAVED_S = 0.5
"""Most engine time that is saved up; never more than a frame of the slowest camera."""
REVIEW_S = 1.0
"""Interval of the corrections of the pace."""
BUSY = 0.95
"""Share of the time above which the engine is the cause of lost frames."""
IDLE = 0.975
"""Share of the time below which the engine could have embedded more of the spared crops."""
LOST = 0.05
"""Share of lost frames above which they are not accidental."""
LEAST_PACE, MOST_PACE = 0.25, 2.0
PACE_STEP = 0.05
"""Largest correction upwards and back to 1; downwards twice that."""


@dataclass(slots=True)
class _Camera:
    """Rate of a camera: `frames` are pairs of time and number of delivered frames."""

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
    """Since the last review: frames delivered and lost, crops spared.

    `engine_s` and `host_s` are the work of the engine, and of the host on crops, before it.
    """

    since: float
    engine_s: float
    host_s: float
    frames: int = 0
    lost: int = 0
    short: bool = False


@dataclass(slots=True)
class Speed:
    """Crops per second of work; the latest work counts most."""

    crops: float = 0.0
    seconds: float = 0.0

    def add(self, crops: int, worked_s: float) -> None:
        """Count crops that took `worked_s` of work."""
        kept = 0.5 ** (worked_s / MEMORY_S)
        self.crops = kept * self.crops + crops
        self.seconds = kept * self.seconds + worked_s

    @property
    def rate(self) -> float | None:
        """None while too little work was seen."""
        return None if self.seconds < TRUSTED_S else max(SLOWEST, self.crops / self.seconds)


class HostSpeed:
    """Speed of the driving thread, which works on every frame (detect, grade, track) and on embedded crops.

    What it does for crops (copy, decide, publish) counts as proportional to them. Where a part of it belongs
    to the frames, fewer crops seem to be slower; the budget still settles where both works fill the time.
    """

    def __init__(self) -> None:
        self.worked_s = 0.0
        """Work on crops since the start."""
        self._speed = Speed()
        self._frames_s = self._passed_s = 0.0

    def note(self, crops: int, crops_s: float, frames_s: float, passed_s: float) -> None:
        """Note the work on a round and on its crops, in the time that passed since the round before."""
        self.worked_s += crops_s
        self._speed.add(crops, crops_s)
        kept = 0.5 ** (passed_s / MEMORY_S)
        self._frames_s = kept * self._frames_s + frames_s
        self._passed_s = kept * self._passed_s + passed_s

    @property
    def share(self) -> float:
        """Share of the time that the work on crops may take."""
        frames = self._frames_s / self._passed_s if self._passed_s else 0.0
        return max(HOST_LEAST, HOST_FULL - frames)

    @property
    def rate(self) -> float | None:
        """Crops a second that it can process beside the frames; None while unknown."""
        rate = self._speed.rate
        return None if rate is None else max(SLOWEST, rate * self.share)


class CropBudget:
    """Converts time into crops. For one thread.

    `worked` returns the crops that the engine has embedded, and its seconds of work, since the start. The
    frames' own times are compared within one camera only, others with `clock`. Where `host` is not noted, the
    engine alone counts.
    """

    def __init__(
        self, worked: Callable[[], tuple[int, float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.host = HostSpeed()
        self._worked, self._clock, self._known = worked, clock, worked()
        self._engine = Speed()
        self._cameras: dict[str, _Camera] = {}
        self._available, self._fraction, self._pace = 0.0, 0.0, 1.0
        self._window: _Window | None = None

    @property
    def rate(self) -> float | None:
        """Crops per second of the engine or the host, the slower one; None while both are unknown."""
        return min((rate for rate in (self._engine.rate, self.host.rate) if rate is not None), default=None)

    def offer(self, frames: Sequence[Candidates], wanted: int, every_nth: int) -> int | None:
        """Return how many crops of these frames may be embedded; None for all. `spend` must follow.

        The frames are those of live cameras in one round, with `wanted` crops. Every n-th frame of a camera
        is offered; the others are skipped on purpose.
        """
        now = self._clock()
        self._measure()
        passed = [self._note(frame, now, every_nth) for frame in frames]
        self._review(now)
        intervals = [self._cameras[frame.camera].interval_s for frame in frames]
        known = [n * interval for n, interval in zip(passed, intervals, strict=True) if interval is not None]
        rate = self.rate
        if rate is None or not frames or len(known) < len(frames):
            return None
        active = [
            camera
            for camera in self._cameras.values()
            if now - camera.seen <= max(ACTIVE_S, 2.0 * (camera.interval_s or 0.0))
        ]
        own = [every_nth * camera.interval_s for camera in active if camera.interval_s is not None]
        brought_s = max(sum(known) / len(active), sum(frame.detect_s for frame in frames))
        saved = min(self._available, max(1.0, rate * min(SAVED_S, max(own))))
        self._available = saved + self._pace * rate * brought_s
        if wanted <= self._available:
            return None
        # A round that lasts longer than a frame of the fastest camera costs that camera the next one.
        self._fraction, whole = math.modf(self._fraction + self._pace * rate * min(own))
        return int(min(self._available, max(1.0, whole)))

    def spend(self, crops: int, spared: int) -> None:
        """Note how many crops of the offered frames are embedded, and how many are spared."""
        self._available = max(0.0, self._available - crops)
        if self._window is not None:
            self._window.short |= spared > 0

    def _measure(self) -> None:
        crops, seconds = self._worked()
        worked_s = seconds - self._known[1]
        if worked_s > 0:
            self._engine.add(crops - self._known[0], worked_s)
            self._known = (crops, seconds)

    def _note(self, frame: Candidates, now: float, every_nth: int) -> int:
        """Note a frame; return how many its camera has delivered since the one before, this one included."""
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

    def _review(self, now: float) -> None:
        """Correct what the engine's speed does not show: refused crops, batches that come late."""
        window = self._window or _Window(now, self._known[1], self.host.worked_s)
        span = now - window.since
        if span >= REVIEW_S:
            engine = (self._known[1] - window.engine_s) / span
            host = (self.host.worked_s - window.host_s) / span / self.host.share
            self._pace = _next_pace(self._pace, window, max(engine, host))
            window = _Window(now, self._known[1], self.host.worked_s)
        self._window = window


def _next_pace(pace: float, window: _Window, busy: float) -> float:
    """Slow down where crops keep engine or host busy and frames are lost, speed up where both idle."""
    lost = window.lost / max(1, window.frames)
    if lost > LOST and busy > BUSY:
        return max(LEAST_PACE, pace - min(lost - LOST, 2 * PACE_STEP))
    if busy < IDLE and lost <= 2 * LOST and window.short:
        return min(MOST_PACE, pace + min(IDLE - busy, PACE_STEP))
    if lost > LOST or not window.short:
        return pace + min(PACE_STEP, max(-PACE_STEP, 1.0 - pace))
    return pace
