"""The base class of all detectors, the whole frame as a detection, and box arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.core.structures import Detections, ScoreLevels, iou_matrix
from edge_agent.detect.search import Search

if TYPE_CHECKING:
    from edge_agent.engine.base import Engine

_MOST = 512
"""Boxes that are compared with each other, best first: bounds the work of one frame."""
_BLOCK = 24
"""Best boxes that are compared with all others at once. Networks give a dozen boxes for each person: most are
gone after the first blocks. For 512 boxes of 64 people all pairs took 8.7 ms, blocks take 0.9 ms."""


class Detector(ABC):
    """Finds people in one frame. Lifetime is a `with`, as often as wanted. One thread owns a detector.

    A subclass names itself and its scores, and finds boxes: `_find`. What it loads on entering, and frees at
    the end, belongs into `_load` and `_release`.

    Attributes:
        name: for events and logs, e.g. `hog` or `yolox:yolox_nano`.
        levels: meaning of the scores.
        max_iou, max_inside: limits of `suppress`.
        smallest: height in pixels of the smallest person that it finds; 0 where that depends on the picture.
        engine: which runs the network; None for a detector without one.
    """

    name: str
    levels: ScoreLevels
    max_iou: float = 1.0
    max_inside: float = 1.0
    smallest: float = 0.0
    engine: Engine | None = None
    _entered = False

    def __enter__(self) -> Detector:
        self._load()
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._release()

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """People in `(H, W, 3)` uint8 BGR, best first, from `levels.low` on; boxes are inside the picture.

        Raises:
            EngineError: the detector is not entered, or its network failed.
        """
        self._require_entered()
        return self._best(self._find(image), image.shape)

    def begin(self, images: Sequence[NDArray[np.uint8]]) -> Search:
        """Begin to search several pictures, of any sizes; the results are those of `detect` for each.

        A network may still run when this returns. A subclass whose network takes several pictures at once
        overrides it. Raises as `detect`.
        """
        return Search.over([self.detect(image) for image in images])

    def _require_entered(self) -> None:
        if not self._entered:
            raise EngineError(f"the detector {self.name} is not entered")

    def _best(self, found: Detections, shape: tuple[int, ...]) -> Detections:
        """Return what `detect` promises, of the boxes that were found in a picture of this shape."""
        enough = found.scores >= self.levels.low
        if not enough.all():
            found = found.take(enough)
        boxes = clip(found.boxes, *shape[:2])
        return suppress(Detections(boxes, found.scores), self.max_iou, self.max_inside)

    @abstractmethod
    def _find(self, image: NDArray[np.uint8]) -> Detections:
        """Return what may be people in `(H, W, 3)` uint8 BGR, in any order; none of it may be NaN."""

    def _load(self) -> None:  # noqa: B027 - many detectors load nothing
        """Load what `_find` needs."""

    def _release(self) -> None:  # noqa: B027
        """Free what `_load` loaded."""


class WholeFrame(Detector):
    """No detector: the whole frame is one person, for cameras that deliver crops."""

    name = "none"
    levels = ScoreLevels(low=0.5, high=0.5, new_track=0.5)

    def _find(self, image: NDArray[np.uint8]) -> Detections:
        """Return one box over `(H, W, 3)`, with score 1."""
        height, width = image.shape[:2]
        return Detections(np.asarray([[0, 0, width, height]], np.float32), np.ones(1, np.float32))


def suppress(found: Detections, max_iou: float, max_inside: float = 1.0) -> Detections:
    """Greedy non-maximum suppression, best score first; of more than 512 boxes only the best 512 are used.

    `max_iou` is the largest intersection over union with a kept box, `max_inside` the largest share of the
    smaller of two boxes inside the other.
    """
    if len(found) < 2:
        return found
    order = np.argsort(-found.scores, kind="stable")[:_MOST]
    ranked = found.take(order)
    kept: list[int] = []
    left = np.arange(len(ranked))
    while len(left):
        head, boxes = left[:_BLOCK], ranked.boxes[left]
        overlapping = iou_matrix(boxes[:_BLOCK], boxes) > max_iou
        if max_inside < 1.0:
            overlapping |= _inside(boxes[:_BLOCK], boxes) > max_inside
        alive = np.ones(len(left), np.bool_)
        for row, number in enumerate(head.tolist()):
            if alive[row]:
                kept.append(number)
                alive[row + 1 :] &= ~overlapping[row, row + 1 :]
        left = left[_BLOCK:][alive[_BLOCK:]]
    return ranked.take(np.asarray(kept))


def _inside(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of the smaller box inside the other, for every pair: `(N, 4)`, `(M, 4)` xyxy -> `(N, M)`."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    opposite = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(opposite - corner, 0, None), axis=2)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (a, b)]
    smaller = np.minimum(areas[0][:, None], areas[1][None, :])
    return np.asarray(shared / np.maximum(smaller, 1e-6), np.float32)


def clip(boxes: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Limit `(N, 4)` float32 xyxy to the picture."""
    return np.clip(boxes, 0, np.asarray([width, height, width, height], np.float32)).astype(np.float32)
