"""Protocol of the detectors, the whole frame as a detection, and box arithmetic."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, ScoreLevels, iou_matrix

_MOST = 512
"""Boxes that are compared with each other, best first: bounds the work of one frame."""


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


class WholeFrame:
    """No detector: the whole frame is one person, for cameras that deliver crops."""

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


def suppress(found: Detections, max_iou: float, max_inside: float = 1.0) -> Detections:
    """Greedy non-maximum suppression, best score first; of more than 512 boxes only the best 512 are used.

    `max_iou` is the largest intersection over union with a kept box, `max_inside` the largest share of the
    smaller of two boxes inside the other.
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
