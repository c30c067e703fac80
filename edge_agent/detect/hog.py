"""OpenCV's HOG people detector with the Daimler 48 x 96 weights: needs no model file.

Dalal and Triggs 2005 for the features; weights of Enzweiler and Gavrila 2009 as shipped in OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections, ScoreLevels
from edge_agent.detect.base import Detector

_WINDOW = (48, 96)
_SHRINK = np.asarray([[0.16, 0.08], [0.84, 0.92]], np.float32)
"""Corners of the person as shares of a HOG window: the training crops had a margin."""

_WINSTRIDE = (8, 8)
_SCALE = 1.1
"""Pyramid step between window sizes; a smaller one costs more and finds hardly more."""
_PADDING = (8, 8)
"""Pixels searched beyond the border of the picture, so that the margin of a window may be outside."""


class HogDetector(Detector):
    """`resize` scales the picture first, above 1 to find smaller people."""

    name = "hog"
    levels = ScoreLevels(low=0.65, high=0.75, new_track=0.8, sure=0.85)
    max_iou = 0.4
    max_inside = 0.6
    """HOG finds parts of people as smaller people: on the rendered street nearly all false boxes were inside
    a true one, and this limit doubled precision at the same recall."""

    def __init__(self, resize: float = 1.0) -> None:
        self._resize = resize
        self.smallest = _WINDOW[1] * float(_SHRINK[1, 1] - _SHRINK[0, 1]) / resize

    def _load(self) -> None:
        self._hog = cv2.HOGDescriptor(_WINDOW, (16, 16), (8, 8), (8, 8), 9)
        # This spelling exists in OpenCV 4.5 too; the type stubs list only the newer one.
        weights = cv2.HOGDescriptor_getDaimlerPeopleDetector()  # type: ignore[attr-defined]
        self._hog.setSVMDetector(weights)

    def _find(self, image: NDArray[np.uint8]) -> Detections:
        searched = image
        if self._resize != 1.0:
            searched = np.asarray(cv2.resize(image, None, fx=self._resize, fy=self._resize), np.uint8)
        if searched.shape[0] < _WINDOW[1] or searched.shape[1] < _WINDOW[0]:
            return Detections.none()
        windows, weights = self._hog.detectMultiScale(
            searched, winStride=_WINSTRIDE, padding=_PADDING, scale=_SCALE, groupThreshold=0
        )
        # OpenCV gives x, y, w, h of windows, and distances to the SVM's plane from 0: scores from 0.5 to 1.
        window = np.asarray(windows, np.float32).reshape(-1, 1, 4) / np.float32(self._resize)
        people = (window[..., :2] + window[..., 2:] * _SHRINK).reshape(-1, 4)
        scores = 1 / (1 + np.exp(-np.asarray(weights, np.float32).reshape(-1)))
        return Detections(people, scores.astype(np.float32))
