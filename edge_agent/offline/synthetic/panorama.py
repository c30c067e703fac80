"""Endless frames of a turning camera from one rendered picture, for benchmarks.

People stand along a ring of twice the frame's width. The camera turns at a constant speed: people enter on
one side, leave on the other, and return. A frame is a view into the ring and costs almost no processor time,
which leaves the processor to the measured code.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import Detections
from edge_agent.offline.synthetic.camera import camera
from edge_agent.offline.synthetic.crops import render_crop
from edge_agent.offline.synthetic.identity import identity

TALLEST = 0.25
"""Height of the tallest person, share of the frame's height. In PETS09-S2L1, by its ground truth: 0.10, 0.14
and 0.25 (2nd, 50th and 98th percentile). Heights here are distributed evenly, so larger on average."""
_SMALLEST = 0.4  # height of the smallest person, share of the tallest
_WIDE = 0.42  # width of a person's box over its height
_VISIBLE = 0.6  # smallest visible share of a person that a detector still reports
_JITTER = 0.015  # standard deviation of a detector's box edge, in heights
_DRAWS = 64  # sets of box errors, used in turn


class Panorama:
    """The ring of one camera; rendering takes about 25 ms per person.

    No two seeds below 10,000 share a person. `people`, at least 1, is the average number in view, `size` the
    `(width, height)` of a frame, `tallest` the height of the tallest person as a share of the frame's; it is
    less where people do not fit.
    """

    def __init__(
        self, seed: int, *, people: int, size: tuple[int, int] = (1920, 1080), tallest: float = TALLEST
    ) -> None:
        width, height = size
        self._size = size
        self._length = 2 * width
        random = np.random.default_rng(seed)
        rows = max(1, math.ceil(math.sqrt(people / 8)))
        places = _places(people, rows, self._length)
        step = self._length * rows / len(places)
        most = min(tallest * height, 0.9 * height / rows, 0.9 * step / _WIDE)
        self._ring = random.integers(70, 140, (height, self._length + width, 3), np.uint8)
        self.empty: NDArray[np.uint8] = self._ring[:, :width].copy()
        """A view without people, `(H, W, 3)` uint8 BGR."""
        self._boxes = np.zeros((len(places), 4), np.float32)
        view = camera(seed)
        for number, (row, x) in enumerate(places):
            high = int(most * random.uniform(_SMALLEST, 1.0))
            wide = int(high * _WIDE)
            top, left = int(height * row / rows + (height / rows - high) / 2), int(x)
            self._boxes[number] = left, top, left + wide, top + high
            crop = render_crop(identity(seed * 1000 + number), view, random, (high, wide))
            columns = (left + np.arange(wide)) % self._length
            self._ring[top : top + high, columns] = crop
        self._ring[:, self._length :] = self._ring[:, :width]
        spread = _JITTER * (self._boxes[:, 3] - self._boxes[:, 1])[:, None]
        self._errors = (random.standard_normal((_DRAWS, len(places), 4)) * spread).astype(np.float32)

    def __len__(self) -> int:
        """People on the ring."""
        return len(self._boxes)

    def frame(self, turned: float, draw: int) -> tuple[NDArray[np.uint8], Detections]:
        """Return the picture, `(H, W, 3)` uint8 BGR, a view into the ring, and the detections in it.

        `turned` counts the pixels that the camera has turned since the start; `draw` is the number of the set
        of box errors. People at the border have boxes beyond it.
        """
        width = self._size[0]
        offset = int(turned) % self._length
        boxes = self._boxes + self._errors[draw % _DRAWS]
        boxes -= np.array([offset, 0, offset, 0], np.float32)
        boxes[boxes[:, 2] < 0] += np.array([self._length, 0, self._length, 0], np.float32)
        shown = np.minimum(boxes[:, 2], width) - np.maximum(boxes[:, 0], 0)
        found = boxes[shown >= _VISIBLE * (boxes[:, 2] - boxes[:, 0])]
        return self._ring[:, offset : offset + width], Detections(found, np.full(len(found), 0.9, np.float32))


def _places(people: int, rows: int, length: int) -> list[tuple[int, float]]:
    """Row and left edge of each person: twice as many as in view, evenly distributed over rows."""
    found = []
    for row in range(rows):
        count = 2 * people * (row + 1) // rows - 2 * people * row // rows
        found += [(row, length * place / count) for place in range(count)]
    return found
