"""The motion gate: where nothing moves, nobody is looked for.

A small copy of each picture is held against a background that adapts (a mixture of Gaussians per pixel:
Zivkovic 2004, OpenCV's `BackgroundSubtractorMOG2`), so that noise, flicker and swaying leaves are told from
what is new. Once a spot of the size of a small person is new, every picture is looked at; some seconds after
the last one, the detector rests. Who stood still when it began to rest is still there: the boxes of the last
look are given again, and are looked after every now and then.

Why this and not another: `docs/decisions/028-motion-before-the-detector.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, Frame

__all__ = ["Motion", "MotionGate", "Pace"]

WIDTH = 160
"""Columns of the small copy, about: a mixture of Gaussians costs 0.2 ms of CPU for 160 x 90 cells."""

CELLS_HIGH = 4
"""Cells that the smallest person is high at least, whatever the picture's width."""

ROWS_PER_CELL = 2
"""Rows of the picture that are averaged for a cell; to read all twelve would cost four times as much."""

SPOT = 0.4
"""Share of the smallest person's area that must be new."""

LEAST_CELLS = 3
"""Smaller spots are noise, whatever the size of people."""

ADAPTS_S = 60.0
"""Time constant of the background. What stays as it is belongs to it after a tenth of that (MOG2 takes the
likeliest nine tenths of what a pixel was for background)."""

LONGEST_STEP_S = 1.0
"""A longer pause between two pictures teaches no more than this."""

VARIANCES = 16.0
"""Squared distance from a background's mean, in variances, from which on a pixel is new: MOG2's default."""

RECENT_S = 10.0
"""So long after somebody was found, a resting detector looks at the shorter interval."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When the detector works although nothing moves.

    Attributes:
        hold_s: after the last movement, or after somebody was no longer found.
        refresh_s: between two looks while somebody is there.
        look_s: between two looks while nobody is.
    """

    hold_s: float = 2.0
    refresh_s: float = 1.0
    look_s: float = 30.0


class Motion:
    """Whether something moves in the pictures of one camera.

    Args:
        smallest: `(width, height)` in pixels of the smallest person that matters.
    """

    def __init__(self, smallest: tuple[int, int]) -> None:
        self._smallest = smallest
        self._shape: tuple[int, ...] = ()
        self._last = -math.inf

    def moved(self, image: NDArray[np.uint8], time: float) -> bool:
        """Take in the next picture; the first one counts as movement.

        Args:
            image: `(H, W, 3)` uint8 BGR.
            time: of its capture, Unix seconds.
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
        """Whether cells that hang together, also by their corners, are enough for a person."""
        if cv2.countNonZero(new) < self._spot:
            return False
        _, _, spots, _ = cv2.connectedComponentsWithStats(new, connectivity=8)
        return bool(spots[1:, cv2.CC_STAT_AREA].max() >= self._spot)


@dataclass(slots=True)
class _Camera:
    """What is known of one camera."""

    motion: Motion
    found: Detections = field(default_factory=Detections.none)
    """At the last look."""
    looked: float = -math.inf
    stirred: float = -math.inf
    """When something moved, or somebody was no longer found."""
    seen: float = -math.inf
    """When somebody was found."""
    rests: bool = False


class MotionGate:
    """Stands before a detector, for the cameras that are named. One thread calls it.

    Args:
        detect: finds people in a frame.
        cameras: ids of those whose pictures need not all be looked at; the others are passed on.
        pace: when the detector works although nothing moves.
        smallest: as for `Motion`.
    """

    def __init__(
        self,
        detect: Callable[[Frame], Detections],
        *,
        cameras: frozenset[str],
        pace: Pace,
        smallest: tuple[int, int],
    ) -> None:
        self._detect = detect
        self._pace = pace
        self._cameras = {camera: _Camera(Motion(smallest)) for camera in cameras}
        self._still = dict.fromkeys(sorted(cameras), 0)

    @property
    def still(self) -> Mapping[str, int]:
        """By camera: frames that the detector did not see."""
        return self._still

    def detect(self, frame: Frame) -> Detections:
        """People in a frame; those of the last look where nothing has moved since."""
        camera = self._cameras.get(frame.camera)
        if camera is None:
            return self._detect(frame)
        now = frame.time
        if camera.motion.moved(frame.image, now):
            camera.stirred = now
        if not self._is_due(camera, now):
            self._still[frame.camera] += 1
            return camera.found
        found = self._detect(frame)
        if len(found) < len(camera.found):
            camera.stirred, camera.rests = now, False
        if len(found):
            camera.seen = now
        camera.found, camera.looked = found, now
        return found

    def rests(self, camera: str) -> bool:
        """Whether nothing has moved for a while in the pictures of this camera. Called from any thread."""
        return self._cameras[camera].rests

    def _is_due(self, camera: _Camera, now: float) -> bool:
        pace = self._pace
        camera.rests = now - camera.stirred > pace.hold_s
        if not camera.rests:
            return True
        waits = pace.refresh_s if now - camera.seen <= RECENT_S else pace.look_s
        return not 0 <= now - camera.looked < waits
