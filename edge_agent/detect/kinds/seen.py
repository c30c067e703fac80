"""What a network gave for the start-up pictures, and the checks that several kinds share.

The pictures are an evenly grey one, in which there is nothing to find, and one with rendered people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-3
"""Values of a probability may leave 0..1 by this much: a float16 network rounds."""

_COCO = 80
"""Classes of networks that were trained on COCO; `person` is the first in all YOLO families."""

PEOPLE = ("person", "people", "pedestrian", "human")
"""Names of the class that is searched for."""

USUAL_STRIDES = (8, 16, 32)
_STRIDES = (USUAL_STRIDES, (*USUAL_STRIDES, 64), (4, *USUAL_STRIDES), (16, 32))
"""Strides of the YOLO families: usual, P6, P2 and tiny variants."""

QUIET = 0.5
"""At least half of the rows have a lower score, whatever the picture."""
_FAINT = 0.01
"""A score that is the same everywhere and not below is no score; below, it may be rounded."""
_ORDERED = 0.98
"""Share of boxes whose last two numbers are above the first two: with more, these are corners. Most cells lie
further from the origin than their box is wide and high."""


class Unlike(Exception):
    """The network is not of the kind; the text says why."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Outputs of a network for the start-up pictures.

    Attributes:
        size: `(height, width)` of its input.
        outputs: by name, the values for each picture, float32, without the batch axis; grey picture first.
        classes: names of the classes by number from the file's metadata, None where it has none.
        task: what the file's metadata call its task, "" where they do not.
    """

    size: tuple[int, int]
    outputs: Mapping[str, tuple[NDArray[np.float32], ...]]
    classes: tuple[str, ...] | None = None
    task: str = ""

    def only(self) -> tuple[NDArray[np.float32], ...]:
        """Return the only output, as a matrix for each picture."""
        if self.task not in {"", "detect"}:
            raise Unlike(f"its metadata call its task {self.task!r}, not detect")
        if len(self.outputs) != 1:
            raise Unlike(f"it has {len(self.outputs)} outputs instead of one")
        (values,) = self.outputs.values()
        if values[0].ndim > 2:
            raise Unlike(f"its output is {shapes(self)}, not a table of rows for each picture")
        return tuple(np.atleast_2d(picture) for picture in values)

    def table(self) -> tuple[NDArray[np.float32], ...]:
        """Return the only output as by `only`, with as many rows and columns for each picture."""
        pictures = self.only()
        if any(picture.shape != pictures[0].shape for picture in pictures):
            raise Unlike("its output has another shape for each picture")
        return pictures

    def person(self, count: int) -> int:
        """Return the number of the class of people among `count` classes."""
        if self.classes is None:
            return 0
        if len(self.classes) != count:
            raise Unlike(f"its metadata name {len(self.classes)} classes, its output has {count}")
        for number, name in enumerate(self.classes):
            if name.strip().lower() in PEOPLE:
                return number
        listed = ", ".join(repr(name[:20]) for name in self.classes[:6])
        raise Unlike(f"none of its classes is a person: {listed}{', ...' if count > 6 else ''}")


@dataclass(frozen=True, slots=True)
class Response:
    """Best scores in the start-up picture with people: of a person, and of another class, 0 without one."""

    person: int
    best: float
    other: int = 0
    other_best: float = 0.0

    @staticmethod
    def of(scores: NDArray[np.float32], person: int) -> Response:
        """Return the response of scores by row and class, `(A, classes)`.

        The classes of COCO have a known order, so no other is stated for them.
        """
        if scores.shape[1] == _COCO:
            return Response(person, float(scores[:, person].max()))
        top = np.asarray(scores.max(axis=0), np.float32)
        others = top.copy()
        others[person] = 0
        other = int(others.argmax())
        return Response(person, float(top[person]), other, float(others[other]))


def shapes(seen: Seen) -> str:
    """Return the shapes of all outputs for one picture, as text."""
    return " and ".join(str(list(values[0].shape)) for values in seen.outputs.values())


def rows_of(size: tuple[int, int], strides: tuple[int, ...]) -> int:
    """Return the number of cells of all strides for an input of `(height, width)`."""
    return sum((size[0] // stride) * (size[1] // stride) for stride in strides)


def usual_rows(seen: Seen) -> int:
    """Return the number of cells of a usual YOLO network for the size of the input."""
    return rows_of(seen.size, USUAL_STRIDES)


def fits_rows(seen: Seen, rows: int, per_cell: int = 1) -> bool:
    """Return whether this number of rows follows from the size of the input."""
    return any(rows == per_cell * rows_of(seen.size, strides) for strides in _STRIDES)


def expect_probabilities(values: NDArray[np.float32], what: str) -> None:
    """Raise Unlike unless all values are numbers from 0 to 1."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also for NaN
        raise Unlike(f"{what} has values from {low:.3g} to {high:.3g}, a probability is 0 to 1")


def expect_sparse(values: tuple[NDArray[np.float32], ...], what: str) -> None:
    """Raise Unlike unless most scores are low in every picture, and are not one value for all rows."""
    together = np.concatenate([scores.ravel() for scores in values])
    level = float(np.median(together))
    if float(np.ptp(together)) <= ROUNDING and level > _FAINT:
        whose = ", as in YOLOv6, which is not read" if level >= 1 - ROUNDING else ""
        raise Unlike(f"{what} has the value {level:.3g} everywhere{whose}")
    if max(float(np.median(scores)) for scores in values) >= QUIET:
        raise Unlike(f"{what} is above {QUIET} in most rows, also where there is nothing")
    if not together.any():
        raise Unlike(f"{what} is 0 everywhere")


def expect_attention(values: tuple[NDArray[np.float32], ...]) -> None:
    """Raise Unlike where the output does not depend on the picture."""
    if all(np.array_equal(values[0], other) for other in values[1:]):
        raise Unlike("its output is the same for every picture")


def expect_pixels(seen: Seen, pictures: tuple[NDArray[np.float32], ...]) -> None:
    """Raise Unlike unless rows begin with centre and size of boxes in pixels, spread over the input."""
    height, width = seen.size
    for rows in pictures:
        box = rows[:, :4]
        if not np.isfinite(box).all():
            raise Unlike("its boxes are not finite numbers")
        if np.ptp(box[:, 0]) <= width / 2 or np.ptp(box[:, 1]) <= height / 2:
            raise Unlike("its boxes are not in pixels of the input: their centres do not cover it")
        if box[:, 2:].min() < -1:
            raise Unlike("its boxes have negative sizes")
        if (box[:, 2:] >= box[:, :2]).all(axis=1).mean() > _ORDERED:
            raise Unlike("its boxes seem to be corners x1, y1, x2, y2, not centre and size")


def are_whole(values: NDArray[np.float32]) -> bool:
    """Return whether all values are whole numbers, as labels are."""
    return bool((values == np.round(values)).all())
