"""How many crops the engine and the host can process before the cameras' next frames.

Live cameras do not wait: with more crops than are processed in time, whole frames of any camera are lost.
So each frame brings time along: the interval of its camera, divided by the number of active cameras. The
measured speed of the engine converts it into crops: more of them where too few wait for the engine, fewer
where too many do. Time that one camera does not use is available to others. Where the host is the slower
one, it sets a limit, by its load. Nothing depends on the wall clock but that load: without it, a replayed
recording gives the same result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edge_agent.core.structures import Candidates

MEMORY_S = 1.0
"""Half-life of a measurement of speed, in seconds of work."""
TRUSTED_S = 0.1
"""Work before a speed is used."""
HOST_FULL = 0.9
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
REVIEW_S = 0.5
"""Interval of the corrections of the host's limit."""
BUSY = 0.8
"""Load above which the host is the cause of lost frames."""
IDLE = 0.95
"""Load below which the host could have done more."""
LOST = 0.03
"""Share of lost frames above which they are not accidental."""
LEAST_STEP, MOST_STEP = 0.75, 1.5
"""Factors of the largest corrections of the limit."""
LEAST_SHARE = 0.1
"""Least limit, as a share of the crops that cameras offer: much work does not depend on the number of crops,
and without any nobody is recognised."""
MOST_SPEEDS = 4.0
"""Largest limit, as a multiple of the engine's speed."""


@dataclass(slots=True)
class _Camera:
    """Rate of a camera: `frames` are pairs of time and number of delivered frames."""

    seen: float
    lost: int
    delivered: int = 0
    frames: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=FRAMES))
    interval_s: float | None = None
    """Between two of its frames; None while too few were seen."""

    def add(self, time: float, every_nth: int) -> None:
        """Add a frame."""
        if self.frames and not 0.0 <= time - self.frames[-1][0] <= GAP_S * every_nth:
            self.frames.clear()
        self.frames.append((time, self.delivered))
        (begin, first), (end, last) = self.frames[0], self.frames[-1]
        self.interval_s = (end - begin) / (last - first) if last > first else None


@dataclass(slots=True)
class HostWork:
    """Seconds of the driving thread since the start: for embedded crops (copy, decide, publish), and for
    frames, embedded or not (detect, grade, track).
    """

    crops_s: float = 0.0
    frames_s: float = 0.0

    def note(self, crops_s: float, frames_s: float) -> None:
        """Note the work on a round."""
        self.crops_s += crops_s
        self.frames_s += frames_s

    def on_frames(self, since: HostWork, span: float) -> float:
        """Return the share of `span` that frames took since another state."""
        return (self.frames_s - since.frames_s) / span

    def load(self, since: HostWork, span: float) -> float:
        """Return the work on crops since another state, over the time that frames leave for it in `span`."""
        left = max(HOST_LEAST, HOST_FULL - self.on_frames(since, span))
        return (self.crops_s - since.crops_s) / span / left


@dataclass(slots=True)
class _Window:
    """Since the last review: frames delivered and lost, crops wanted and embedded. `host` is before it."""

    since: float
    host: HostWork
    frames: int = 0
    lost: int = 0
    wanted: int = 0
    crops: int = 0


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


class CropBudget:
    """Converts time into crops. For one thread.

    `worked` returns the crops that the engine has embedded, and its seconds of work, since the start;
    `queue` the crops that wait for it, and the number that keeps it busy. The frames' own times are compared
    within one camera only, others with `clock`. Where `host` is not noted, the engine alone counts.
    """

    def __init__(
        self,
        worked: Callable[[], tuple[int, float]],
        queue: Callable[[], tuple[int, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = HostWork()
        self._worked, self._queue, self._clock, self._known = worked, queue, clock, worked()
        self._engine, self._embedded = Speed(), Speed()
        self._cameras: dict[str, _Camera] = {}
        self._available, self._fraction, self._limit = 0.0, 0.0, math.inf
        self._window: _Window | None = None
        self.interval_s = 0.0
        """Shortest interval of the frames of a camera."""
        self.helps = True
        """Whether fewer crops leave time for frames that are late: not where frames themselves take it."""

    @property
    def rate(self) -> float | None:
        """Crops per second of the engine or the host, the slower one; None while both are unknown."""
        rate = min(self._engine.rate or math.inf, self._limit)
        return rate if rate < math.inf else None

    def offer(self, frames: Sequence[Candidates], wanted: int, every_nth: int) -> int | None:
        """Return how many crops of these frames may be embedded; None for all. `spend` must follow.

        The frames are those of live cameras in one round, with `wanted` crops. Every n-th frame of a camera
        is offered; the others are skipped on purpose.
        """
        now = self._clock()
        self._measure()
        for frame in frames:
            self._note(frame, now, every_nth)
        self._review(now)
        if self._window is not None:
            self._window.wanted += wanted
        intervals = [self._cameras[frame.camera].interval_s for frame in frames]
        known = [every_nth * interval for interval in intervals if interval is not None]
        rate = self.rate
        if rate is None or not frames or len(known) < len(frames):
            return None
        active = [
            camera
            for camera in self._cameras.values()
            if now - camera.seen <= max(ACTIVE_S, 2.0 * (camera.interval_s or 0.0))
        ]
        own = [every_nth * camera.interval_s for camera in active if camera.interval_s is not None]
        self.interval_s = min(own)
        brought_s = max(sum(known) / len(active), sum(frame.detect_s for frame in frames))
        saved = min(self._available, max(1.0, rate * min(SAVED_S, max(own))))
        self._available = saved + self._crops_in(brought_s)
        if wanted <= self._available:
            return None
        # A round that lasts longer than a frame of the fastest camera costs that camera the next one.
        # One with late frames is shorter, so that no further ones are late.
        timely = 1 - sum(late(frames)) / len(frames)
        self._fraction, whole = math.modf(self._fraction + timely * self._crops_in(self.interval_s))
        return int(min(self._available, max(1.0, whole)))

    def _crops_in(self, time_s: float) -> float:
        """Return the crops of this time; for the engine more where few wait for it, fewer where many do."""
        engine, most = self._engine.rate, self._limit * time_s
        if engine is None:
            return most
        waiting, enough = self._queue()
        crops = engine * time_s
        return min(most, max(0.0, crops + (1.0 - waiting / enough) * min(crops, enough)))

    def spend(self, crops: int) -> None:
        """Note how many crops of the offered frames are embedded."""
        self._available = max(0.0, self._available - crops)
        if self._window is not None:
            self._window.crops += crops

    def _measure(self) -> None:
        crops, seconds = self._worked()
        worked_s = seconds - self._known[1]
        if worked_s > 0:
            self._engine.add(crops - self._known[0], worked_s)
            self._known = (crops, seconds)

    def _note(self, frame: Candidates, now: float, every_nth: int) -> None:
        camera = self._cameras.get(frame.camera)
        if camera is None:
            camera = self._cameras[frame.camera] = _Camera(now, frame.lost)
        lost, camera.lost, camera.seen = frame.lost - camera.lost, frame.lost, now
        camera.delivered += every_nth + lost
        if self._window is not None:
            self._window.frames += every_nth + lost
            self._window.lost += lost
        camera.add(frame.time, every_nth)

    def _review(self, now: float) -> None:
        """Correct the host's limit by its load."""
        window = self._window or _Window(now, replace(self.host))
        span = now - window.since
        if span >= REVIEW_S:
            self._embedded.add(window.crops, span)
            limit = min(self._limit, MOST_SPEEDS * (self._engine.rate or math.inf))
            lost = window.lost / max(1, window.frames)
            load = self.host.load(window.host, span)
            self.helps = self.host.on_frames(window.host, span) <= HOST_FULL - HOST_LEAST
            limit = _next_limit(limit, self._embedded.rate or limit, load, lost)
            self._limit = max(limit, LEAST_SHARE * window.wanted / span)
            window = _Window(now, replace(self.host))
        self._window = window


def late(frames: Sequence[Candidates]) -> list[bool]:
    """Return for each frame of a round whether it is late: a newer one of its live camera is there, too."""
    newest = {frame.camera: at for at, frame in enumerate(frames)}
    return [frame.live and newest[frame.camera] != at for at, frame in enumerate(frames)]


def _next_limit(limit: float, embedded: float, load: float, lost: float) -> float:
    """Return the crops a second that the host can decide about, by its load and the share of lost frames.

    Work grows at most as the crops do, and much of it does not depend on them: a bound, approached in steps.
    """
    if load > 1.0 or (lost > LOST and load > BUSY):
        return max(SLOWEST, min(limit, embedded) * max(LEAST_STEP, 1.0 - max(load - 1.0, lost - LOST)))
    return limit * min(MOST_STEP, max(1.0, IDLE / max(load, 0.1)))
