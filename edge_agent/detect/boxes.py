"""Box arithmetic that detectors share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_agent.structures import Detections, iou_matrix

__all__ = ["clip", "suppress"]


_MOST = 512
"""Boxes that are compared with each other, best first: bounds the work of one frame, whatever it shows."""


def suppress(found: Detections, max_iou: float) -> Detections:
    """Greedy non-maximum suppression: best score first, what overlaps a kept box too much goes.

    Of more than 512 boxes only the best 512 are looked at.
    """
    order = np.argsort(-found.scores, kind="stable")[:_MOST]
    ranked = found.take(order)
    overlapping = iou_matrix(ranked.boxes, ranked.boxes) > max_iou
    alive = np.ones(len(ranked), np.bool_)
    for row in range(len(ranked)):
        if alive[row]:
            alive[row + 1 :] &= ~overlapping[row, row + 1 :]
    return ranked.take(alive)


def clip(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """`(N, 4)` float32 xyxy limited to the picture."""
    return np.clip(boxes, 0, np.asarray([width, height, width, height], np.float32)).astype(np.float32)
