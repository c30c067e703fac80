"""YOLOX detectors (nano to x, or custom models whose first class is a person) through the engine layer.

Decoding as in the YOLOX paper (Ge et al. 2021, section 2.1): `xy = (out + cell) * stride`,
`wh = exp(out) * stride`, score = objectness * class.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.errors import EngineError
from edge_agent.core.structures import Detections, ScoreLevels
from edge_agent.detect.base import clip, suppress
from edge_agent.engine.base import Engine

_GREY = 114
"""Value of the letterbox's empty part, as in the preprocessing of YOLOX."""
_STRIDES = (8, 16, 32)
_MAX_IOU = 0.65
"""Boxes that overlap a better one by more are dropped. A higher limit keeps people who stand close together,
and duplicates."""
_MAX_LOG_SIZE = 10.0
"""exp of more is wider than any picture; limits the output of a faulty network."""


class YoloxDetector:
    """A `Detector`; `engine` runs a graph of `prepare_detector` and is not yet entered."""

    levels = ScoreLevels(low=0.1, high=0.6, new_track=0.65)

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._cells, self._strides = _grid(engine.input_size)
        self._decoded = False
        self._filled: dict[int, tuple[int, int]] = {}

    @property
    def name(self) -> str:
        """For events and logs."""
        return f"yolox:{self.engine.info.model}"

    def __enter__(self) -> YoloxDetector:
        self.engine.__enter__()
        self._filled.clear()
        try:
            self.engine.buffer()[0] = _GREY
            self.engine.submit(1)
            rows = self.engine.collect()[0]
        except EngineError:
            self.engine.__exit__(None, None, None)
            raise
        # Exports made with --decode_in_inference give pixels: their centres cover the whole input.
        self._decoded = bool(np.ptp(rows[:, 0]) > self.engine.input_size[1] / 2)
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.__exit__(None, None, None)

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """People in `(H, W, 3)` uint8 BGR, best first, from `levels.low` on."""
        ratio = self._letterbox(image)
        self.engine.submit(1)
        found = self._decode(self.engine.collect()[0])
        height, width = image.shape[:2]
        boxes = clip(found.boxes / np.float32(ratio), height, width)
        return suppress(Detections(boxes, found.scores), _MAX_IOU)

    def _letterbox(self, image: NDArray[np.uint8]) -> float:
        """Scale the picture into the top left of the engine's buffer, aspect kept; return the scale."""
        target = self.engine.buffer()[0]
        high, wide = target.shape[:2]
        height, width = image.shape[:2]
        ratio: float = min(high / height, wide / width)
        inner = (max(int(height * ratio), 1), max(int(width * ratio), 1))
        if self._filled.get(target.ctypes.data) != inner:  # another size left its edges
            target[:] = _GREY
            self._filled[target.ctypes.data] = inner
        cv2.resize(
            image, (inner[1], inner[0]), dst=target[: inner[0], : inner[1]], interpolation=cv2.INTER_LINEAR
        )
        return ratio

    def _decode(self, rows: NDArray[np.float32]) -> Detections:
        """Convert `(A, 6)` raw rows to boxes in pixels of the network's input; only rows above `low`."""
        scores = rows[:, 4] * rows[:, 5]
        keep = np.flatnonzero(scores >= self.levels.low)
        centre, size = rows[keep, :2], rows[keep, 2:4]
        if not self._decoded:
            stride = self._strides[keep]
            centre = (centre + self._cells[keep]) * stride
            size = np.exp(np.minimum(size, _MAX_LOG_SIZE)) * stride
        return Detections(np.concatenate((centre - size / 2, centre + size / 2), axis=1), scores[keep])


def _grid(size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cell `(A, 2)` and stride `(A, 1)` of every row of the output, float32."""
    cells, strides = [], []
    for stride in _STRIDES:
        y, x = np.mgrid[0 : size[0] // stride, 0 : size[1] // stride]
        cells.append(np.stack((x, y), axis=-1).reshape(-1, 2))
        strides.append(np.full((x.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)
