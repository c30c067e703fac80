"""Frames in the input of a network: aspect kept or not, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
from numpy.typing import NDArray


class Fit(Enum):
    """How a frame is put into an input."""

    CORNER = "top left, aspect kept"
    CENTRE = "centred, aspect kept"
    STRETCH = "stretched"


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a frame in an input: upper left corner and size in pixels, and the scales from the frame."""

    top: int
    left: int
    height: int
    width: int
    scale_x: float
    scale_y: float

    @staticmethod
    def of(picture: tuple[int, ...], size: tuple[int, int], fit: Fit) -> Place:
        """Return the place of a picture `(height, width, ...)` in an input of `(height, width)`.

        Sizes are rounded as in YOLOX (`CORNER`) and Ultralytics (`CENTRE`).
        """
        scale_y, scale_x = size[0] / picture[0], size[1] / picture[1]
        if fit is Fit.STRETCH:
            return Place(0, 0, *size, scale_x, scale_y)
        scale = min(scale_y, scale_x)
        if fit is Fit.CORNER:
            return Place(0, 0, max(int(picture[0] * scale), 1), max(int(picture[1] * scale), 1), scale, scale)
        height, width = max(round(picture[0] * scale), 1), max(round(picture[1] * scale), 1)
        top, left = round((size[0] - height) / 2 - 0.1), round((size[1] - width) / 2 - 0.1)
        return Place(top, left, height, width, scale, scale)

    def draw(self, image: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        """Resize a picture into its place in `target`, both `(height, width, 3)` uint8."""
        inner = target[self.top : self.top + self.height, self.left : self.left + self.width]
        cv2.resize(image, (self.width, self.height), dst=inner, interpolation=cv2.INTER_LINEAR)

    def in_input(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert `(N, 4)` xyxy from pixels of the picture to pixels of the input."""
        corner = np.asarray([self.left, self.top] * 2, np.float32)
        scale = np.asarray([self.scale_x, self.scale_y] * 2, np.float32)
        return np.asarray(boxes * scale + corner, np.float32)

    def in_picture(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Convert `(N, 4)` xyxy from pixels of the input to pixels of the picture."""
        corner = np.asarray([self.left, self.top] * 2, np.float32)
        scale = np.asarray([self.scale_x, self.scale_y] * 2, np.float32)
        return np.asarray((boxes - corner) / scale, np.float32)
