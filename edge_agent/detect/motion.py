"""Motion gate: frames without motion are not searched for people.

A small copy of each picture is compared with an adaptive background (a mixture of Gaussians per pixel:
Zivkovic 2004, OpenCV's `BackgroundSubtractorMOG2`), which separates noise, flicker and swaying leaves from
what is new. While a spot of the size of a small person is new, every picture is searched; some seconds after
the last one, the detector rests. A person who stands still is kept: the boxes of the last search are
repeated, and the search itself is repeated at intervals.

The choice of this method: `docs/decisions/028-motion-before-the-detector.md`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, Frame
from edge_agent.detect.search import Begin, Search

if TYPE_CHECKING:
    from edge_agent.core.config import MotionSettings

WIDTH = 160
"""Approximate columns of the small copy: a mixture of Gaussians costs 0.2 ms of CPU for 160 x 90 cells."""

CELLS_HIGH = 4
"""Height in cells of the smallest person at least, at any width of the picture."""

ROWS_PER_CELL = 2
"""Rows of the picture that are averaged for a cell; all twelve would cost four times as much."""

SPOT = 0.4
"""Share of the smallest person's area that must be new."""

LEAST_CELLS = 3
"""Smaller spots are noise, whatever the size of people."""

ADAPTS_S = 60.0
"""Time constant of the background. A lasting change belongs to the background after a tenth of that (MOG2
uses the most frequent nine tenths of a pixel's values as background)."""

LONGEST_STEP_S = 1.0
"""A longer pause between two pictures adapts the background no more than this."""

VARIANCES = 16.0
"""Squared distance from the background's mean, in variances, above which a pixel is new: MOG2's default."""

RECENT_S = 10.0
"""For this time after a person was found, a resting detector searches at the shorter interval."""


class Motion:
    """Detects motion in the pictures of one camera.

    `smallest` is the `(width, height)` in pixels of the smallest relevant person.
    """

    def __init__(self, smallest: tuple[int, int]) -> None:
        self._smallest = smallest
        self._shape: tuple[int, ...] = ()
        self._last = -math.inf

    def moved(self, image: NDArray[np.uint8], time: float) -> bool:
        """Compare the next picture, `(H, W, 3)` uint8 BGR, with the background and add it there.

        The first one counts as motion.
        """
        begins = image.shape != self._shape or time < self._last
        if begins:
            self._begin(image.shape)
        step = LONGEST_STEP_S if begins else min(time - self._last, LONGEST_STEP_S)
        self._last = time
        new = self._background.apply(
            self._shrink(image), learningRate=1.0 if begins else 1 - math.exp(-step / ADAPTS_S)
        )
        return begins or self._has_spot(new)

    def _begin(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        width, height = self._smallest
        self._factor = max(1, min(round(shape[1] / WIDTH), height // CELLS_HIGH))
        self._spot = max(LEAST_CELLS, round(SPOT * width * height / self._factor**2))
        self._background = cv2.createBackgroundSubtractorMOG2(varThreshold=VARIANCES, detectShadows=False)

    def _shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        factor = self._factor
        size = (max(1, image.shape[1] // factor), max(1, image.shape[0] // factor))
        rows = image[:: max(1, factor // ROWS_PER_CELL)]
        return np.asarray(cv2.resize(rows, size, interpolation=cv2.INTER_AREA), np.uint8)

    def _has_spot(self, new: NDArray[np.uint8]) -> bool:
        """Whether adjacent cells, also diagonally, are enough for a person."""
        if cv2.countNonZero(new) < self._spot:
            return False
        _, _, spots, _ = cv2.connectedComponentsWithStats(new, connectivity=8)
        return bool(spots[1:, cv2.CC_STAT_AREA].max() >= self._spot)


@dataclass(slots=True)
class _Wave:
    """Frames that are searched together; begun by `start`, or by the first that needs a result."""

    begin: Begin
    frames: list[Frame] = field(default_factory=list)
    search: Search | None = None

    def start(self) -> Search:
        """Begin to search, once."""
        if self.search is None:
            self.search = self.begin(self.frames) if self.frames else Search.over([])
        return self.search

    def people(self, at: int) -> Detections:
        """Wait for the search; return the people in the frame with this number."""
        return self.start().results()[at]


@dataclass(slots=True)
class _Looked:
    """A frame of a gated camera whose search may still run."""

    time: float
    wave: _Wave
    at: int


@dataclass(slots=True)
class _Camera:
    """State of one camera; times in Unix seconds. What depends on boxes is that of the ended searches."""

    motion: Motion
    found: Detections = field(default_factory=Detections.none)
    """Boxes of the last search."""
    searched: float = -math.inf
    active: float = -math.inf
    """Last motion, or last search that found fewer people than the one before."""
    seen: float = -math.inf
    """Last search that found a person."""
    rests: bool = False
    running: deque[_Looked] = field(default_factory=deque)

    def settle(self, *, wait: bool) -> None:
        """Take over the results of searches in order: of those that have ended, or of all."""
        while self.running and (wait or ((search := self.running[0].wave.search) and search.done)):
            looked = self.running.popleft()
            found = looked.wave.people(looked.at)
            if len(found) < len(self.found):
                self.active, self.rests = max(self.active, looked.time), False
            if len(found):
                self.seen = looked.time
            self.found, self.searched = found, looked.time


class MotionGate:
    """Runs the detector only where it is needed. One thread calls `begin`.

    Args:
        begin: begins to search frames.
        cameras: ids of the gated cameras; frames of others are always searched.
        settings: intervals of the gate.
        smallest: as for `Motion`.
    """

    def __init__(
        self,
        begin: Begin,
        cameras: frozenset[str],
        settings: MotionSettings,
        smallest: tuple[int, int],
    ) -> None:
        self._begin = begin
        self._settings = settings
        self._cameras = {camera: _Camera(Motion(smallest)) for camera in cameras}
        self.still = dict.fromkeys(sorted(cameras), 0)
        """By camera: frames that were not searched."""

    def begin(self, frames: Sequence[Frame]) -> Search:
        """Begin to search frames; those where nothing has moved get the people of the last search.

        The results do not depend on how long searches run. It waits for one only where it decides whether
        a frame is searched, that is while the camera rests.
        """
        wave = _Wave(self._begin)
        parts: list[Detections | _Looked] = []
        for frame in frames:
            camera = self._cameras.get(frame.camera)
            if camera is not None and not self._is_due(camera, frame):
                self.still[frame.camera] += 1
                parts.append(camera.found)
                continue
            if wave.search is not None:  # a frame had to wait for its result
                wave = _Wave(self._begin)
            looked = _Looked(frame.time, wave, len(wave.frames))
            wave.frames.append(frame)
            parts.append(looked)
            if camera is not None:
                camera.running.append(looked)
        cameras = [self._cameras[name] for name in {frame.camera for frame in frames} & self._cameras.keys()]

        def results() -> list[Detections]:
            found = [part.wave.people(part.at) if isinstance(part, _Looked) else part for part in parts]
            for camera in cameras:
                camera.settle(wait=False)
            return found

        last = wave.start()  # searches end in order
        return Search(results, lambda: last.done)

    def rests(self, camera: str) -> bool:
        """Whether nothing has moved in the pictures of this camera for `hold_s`. Called from any thread."""
        return self._cameras[camera].rests

    def _is_due(self, camera: _Camera, frame: Frame) -> bool:
        settings, now = self._settings, frame.time
        if camera.motion.moved(frame.image, now):
            camera.active = now
        if now - camera.active > settings.hold_s:
            camera.settle(wait=True)
        camera.rests = now - camera.active > settings.hold_s
        if not camera.rests:
            return True
        interval = settings.refresh_s if now - camera.seen <= RECENT_S else settings.look_s
        return not 0 <= now - camera.searched < interval
