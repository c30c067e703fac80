"""Box arithmetic of the detectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, iou_matrix

__all__ = ["clip", "suppress"]


_MOST = 512
"""Boxes that are compared with each other, best first: bounds the work of one frame."""


def suppress(found: Detections, max_iou: float, max_inside: float = 1.0) -> Detections:
    """Greedy non-maximum suppression, best score first; of more than 512 boxes only the best 512 are used.

    Args:
        found: boxes of one picture.
        max_iou: largest intersection over union with a kept box.
        max_inside: largest share of the smaller of two boxes inside the other.
    """
    order = np.argsort(-found.scores, kind="stable")[:_MOST]
    ranked = found.take(order)
    overlapping = iou_matrix(ranked.boxes, ranked.boxes) > max_iou
    if max_inside < 1.0:
        overlapping |= _inside(ranked.boxes) > max_inside
    alive = np.ones(len(ranked), np.bool_)
    for row in range(len(ranked)):
        if alive[row]:
            alive[row + 1 :] &= ~overlapping[row, row + 1 :]
    return ranked.take(alive)


def _inside(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the share of the smaller box inside the other, for every pair: `(N, 4)` xyxy -> `(N, N)`."""
    corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.clip(opposite - corner, 0, None), axis=2)
    area = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    smaller = np.minimum(area[:, None], area[None, :])
    return np.asarray(shared / np.maximum(smaller, 1e-6), np.float32)


def clip(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Limit `(N, 4)` float32 xyxy to the picture."""
    return np.clip(boxes, 0, np.asarray([width, height, width, height], np.float32)).astype(np.float32)
