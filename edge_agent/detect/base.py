"""What every detector offers."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections

__all__ = ["Detector", "ScoreLevels"]


@dataclass(frozen=True, slots=True)
class ScoreLevels:
    """What a detector's scores mean to a tracker; every detector has its own.

    Attributes:
        low: boxes below are not reported at all.
        high: boxes from here on count as people on their own; those between `low` and `high` only
            continue a track (ByteTrack's second stage).
        new_track: least score that may begin a track.
    """

    low: float
    high: float
    new_track: float


class Detector(Protocol):
    """Finds people in one frame. Lifetime is a `with`. One thread owns a detector."""

    @property
    def name(self) -> str:
        """For events and logs, e.g. `hog` or `yolox:yolox_nano`."""

    @property
    def levels(self) -> ScoreLevels:
        """What the scores mean."""

    def __enter__(self) -> Detector: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """People in `(H, W, 3)` uint8 BGR, best score first; boxes are clipped to the picture."""
