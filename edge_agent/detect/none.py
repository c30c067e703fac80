"""No detector: the whole frame is one person, for cameras that deliver crops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, ScoreLevels

__all__ = ["WholeFrame"]


class WholeFrame:
    """See `edge_agent.detect.base.Detector`."""

    name = "none"
    levels = ScoreLevels(low=0.5, high=0.5, new_track=0.5)

    def __enter__(self) -> WholeFrame:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Return one box over `(H, W, 3)`, with score 1."""
        height, width = image.shape[:2]
        return Detections(np.asarray([[0, 0, width, height]], np.float32), np.ones(1, np.float32))
