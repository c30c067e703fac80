"""Protocol of the detectors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, ScoreLevels

__all__ = ["Detector"]


class Detector(Protocol):
    """Finds people in one frame. Lifetime is a `with`. One thread owns a detector."""

    @property
    def name(self) -> str:
        """For events and logs, e.g. `hog` or `yolox:yolox_nano`."""

    @property
    def levels(self) -> ScoreLevels:
        """Meaning of the scores."""

    def __enter__(self) -> Detector: ...

    def __exit__(self, *_: object) -> None: ...

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """People in `(H, W, 3)` uint8 BGR, best score first; boxes are clipped to the picture."""
