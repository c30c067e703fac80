"""How well a detection shows its person: refuses crops that would mislead, grades the rest.

A gate of geometry and one measure of sharpness, before any network runs. Grades order the crops of a
track ("best first"); they are not probabilities and are not compared between cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import ConfigError
from edge_agent.structures import box_areas

__all__ = ["BLURRED", "Graded", "QualityGate", "grade_picture", "sharpness"]

_FULL_HEIGHT = 256.0
"""Pixels; a crop of this height or more loses nothing to enlargement in a 256 x 128 network."""
_ANALYSIS_HEIGHT = 96
"""Pixels; larger crops are reduced to this before sharpness is measured, so that it means the same for
people near and far, and costs the same."""
_FULL_SHARPNESS = 0.5
"""Sharpness from which on a crop is not graded down any more."""
_NOISE = 5.0
"""Grey levels added to the contrast: below it, detail is rounding and sensor noise."""
_BORDER = 2.0
"""Pixels; a box that ends this near to the image border is taken to be cut by it."""
_FRAME = 8
"""Pixels put around a whole picture before it is graded."""
_CUT_GRADE = 0.7
"""Grade of a box that touches the border: what lies beyond cannot be seen."""
_NO_AREA = np.float32(1e-6)
"""Square pixels; in place of the area of what has none."""

BLURRED = "blurred"
"""Why a crop is refused that is not sharp."""


class Graded(NamedTuple):
    """What the gate says of N boxes.

    Attributes:
        quality: `(N,)` float32 grades in 0..1, 0 where refused.
        reasons: N words, why a crop was refused: `invalid` (not a box), `off-image`, `small`, `aspect`,
            `truncated`, `covered`, `blurred`, or "".
        inside: `(N, 4)` int32 xyxy, whole pixels inside the picture: rounded to the nearest pixel border,
            empty where a box lies outside or is none.
    """

    quality: NDArray[np.float32]
    reasons: tuple[str, ...]
    inside: NDArray[np.int32]


class _Look(NamedTuple):
    """What `(..., N, 4)` boxes alone tell.

    Attributes:
        inside: `(..., N, 4)` int32, see `Graded`.
        grade: `(..., N)` float32, as if every crop were sharp.
        checks: every reason to refuse, and whom it applies to, `(..., N)` bool; the first one counts.
    """

    inside: NDArray[np.int32]
    grade: NDArray[np.float32]
    checks: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class QualityGate:
    """Limits below which a crop is refused.

    Attributes:
        min_height: pixels of the visible part. Raising it refuses people who are far away.
        min_width: pixels of the visible part.
        min_aspect: height / width of the visible part. Raising it refuses cut and sitting people.
        max_aspect: height / width of the visible part. Lowering it refuses slivers beside an occluder.
        min_sharpness: see `sharpness`. Raising it refuses motion blur, and smooth clothing with it.
        max_truncation: part of the box that lies outside the picture, 0..1.
        max_overlap: part of the box that a nearer person covers, 0..1. Lowering it refuses crops that
            show two people.
    """

    min_height: int = 48
    min_width: int = 16
    min_aspect: float = 1.0
    max_aspect: float = 5.0
    min_sharpness: float = 0.05
    max_truncation: float = 0.4
    max_overlap: float = 0.6

    def __post_init__(self) -> None:
        if self.min_height < 1 or self.min_width < 1:
            raise ConfigError("quality: min_height and min_width must be at least 1 pixel")
        if not 0 < self.min_aspect < self.max_aspect:
            raise ConfigError("quality: min_aspect must be above 0 and below max_aspect")
        if self.min_sharpness < 0:
            raise ConfigError("quality: min_sharpness must not be negative")
        for name, value in (("max_truncation", self.max_truncation), ("max_overlap", self.max_overlap)):
            if not 0 <= value <= 1:
                raise ConfigError(f"quality: {name} must lie in 0..1, got {value}")

    def assess(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], scores: NDArray[np.float32]
    ) -> Graded:
        """Grade the detections of one picture.

        The grade is a product of five factors in 0..1, each of which grows with what is good:
        visible height (square root of height / 256), sharpness (/ 0.5), the part of the box inside
        the picture, the part that no nearer person covers, and 0.7 where the box touches the border.

        Args:
            image: `(H, W, 3)` uint8 BGR.
            boxes: `(N, 4)` float32 xyxy pixels; may reach over the border.
            scores: `(N,)` float32 of one detector. A box covers another only when its score is at
                least half of the other's: weak boxes are often not people.
        """
        height, width = image.shape[:2]
        quality, reasons, inside = self.look(boxes, scores, (width, height))
        if good := [row for row, reason in enumerate(reasons) if not reason]:
            crops = [image[y1:y2, x1:x2] for x1, y1, x2, y2 in inside[good].tolist()]
            factors, blurred = self.sharp(sharpness(crops))
            quality[good] *= factors
            refused = {row for row, word in zip(good, blurred.tolist(), strict=True) if word}
            reasons = tuple(BLURRED if row in refused else reason for row, reason in enumerate(reasons))
        return Graded(quality, reasons, inside)

    def look(self, boxes: NDArray[np.float32], scores: NDArray[np.float32], size: tuple[int, int]) -> Graded:
        """As `assess`, but from the boxes alone: as if every crop were sharp.

        Args:
            boxes: as in `assess`.
            scores: as in `assess`.
            size: `(width, height)` of the picture in pixels.
        """
        if not len(boxes):
            return Graded(np.zeros(0, np.float32), (), np.zeros((0, 4), np.int32))
        found = self._look(boxes, scores, size)
        reasons = [""] * len(boxes)
        for word, refused in reversed(found.checks):  # the first check has the last word
            if refused.any():
                for row in np.flatnonzero(refused).tolist():
                    reasons[row] = word
                found.grade[refused] = 0.0
        return Graded(found.grade, tuple(reasons), found.inside)

    def sharp(self, sharp: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`(N,)` float32: what crops so sharp keep of their grade; and `(N,)` bool: who is refused."""
        blurred: NDArray[np.bool_] = sharp < self.min_sharpness
        factors = np.minimum(sharp / _FULL_SHARPNESS, 1.0).astype(np.float32)
        factors[blurred] = 0.0
        return factors, blurred

    def outlook(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """The grades of `look` for several pictures at once.

        Args:
            boxes: `(F, N, 4)` float32 xyxy pixels: N detections of each of F pictures; what is no box is
                nobody, so shorter rows are filled up with zeros.
            scores: `(F, N)` float32 of one detector.
            size: `(width, height)` of the pictures in pixels.

        Returns:
            `(F, N)` float32 in 0..1, 0 where `assess` refuses whatever the picture shows.
        """
        found = self._look(boxes, scores, size)
        for _, refused in found.checks:
            found.grade[refused] = 0.0
        return found.grade

    def _look(self, boxes: NDArray[np.float32], scores: NDArray[np.float32], size: tuple[int, int]) -> _Look:
        finite = np.isfinite(boxes)
        known = boxes if finite.all() else np.where(finite.all(axis=-1, keepdims=True), boxes, np.float32(0))
        border = np.array([*size, *size], np.float32)
        clipped = np.minimum(np.maximum(known, 0), border)
        inside = np.rint(clipped).astype(np.int32)
        area = box_areas(known)
        visible = box_areas(clipped) / np.maximum(area, _NO_AREA)
        covered = _covered_part(known, area, scores)
        sides = inside[..., 2:] - inside[..., :2]
        wide, high = sides[..., 0], sides[..., 1]
        near = ((known[..., :2] <= _BORDER) | (known[..., 2:] >= border[:2] - _BORDER)).any(axis=-1)
        grade = np.sqrt(np.minimum(np.maximum(high, 0) / _FULL_HEIGHT, 1.0)) * visible * (1.0 - covered)
        grade *= np.where(near, _CUT_GRADE, 1.0)
        aspect = high / np.maximum(wide, 1)
        checks = (
            ("invalid", (known[..., 2:] <= known[..., :2]).any(axis=-1)),
            ("off-image", (sides < 1).any(axis=-1)),
            ("truncated", visible < 1.0 - self.max_truncation),
            ("small", (high < self.min_height) | (wide < self.min_width)),
            ("aspect", (aspect < self.min_aspect) | (aspect > self.max_aspect)),
            ("covered", covered > self.max_overlap),
        )
        return _Look(inside, grade.astype(np.float32), checks)


def grade_picture(gate: QualityGate, picture: NDArray[np.uint8]) -> tuple[float, str]:
    """Grade a whole picture as one crop: its grade 0..1, and why it was refused, "" where it was not."""
    height, width = picture.shape[:2]
    # In a frame of its own colours, for a box at the border counts as cut by it.
    framed = cv2.copyMakeBorder(picture, _FRAME, _FRAME, _FRAME, _FRAME, cv2.BORDER_REPLICATE)
    box = np.array([[_FRAME, _FRAME, width + _FRAME, height + _FRAME]], np.float32)
    graded = gate.assess(np.asarray(framed, np.uint8), box, np.ones(1, np.float32))
    return float(graded.quality[0]), graded.reasons[0]


_NO_AREA = np.float32(1e-6)
"""Square pixels; in place of the area of what has none."""


def _covered_part(
    boxes: NDArray[np.float32], area: NDArray[np.float32], scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`(..., N)` float32: largest part of each of N boxes that one nearer person of them covers.

    On a floor seen from above, the person whose feet are lower in the picture is the nearer one.
    """
    if boxes.shape[-2] < 2:
        return np.zeros(boxes.shape[:-1], np.float32)
    sides = np.minimum(boxes[..., :, None, 2:], boxes[..., None, :, 2:])
    sides -= np.maximum(boxes[..., :, None, :2], boxes[..., None, :, :2])
    np.maximum(sides, 0, out=sides)
    feet = boxes[..., 3]
    nearer = (feet[..., None, :] > feet[..., :, None]) & (scores[..., None, :] >= 0.5 * scores[..., :, None])
    shared = (sides[..., 0] * sides[..., 1] * nearer).max(axis=-1)
    part: NDArray[np.float32] = np.minimum(shared / np.maximum(area, _NO_AREA), 1.0)
    return part


def sharpness(crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """How much fine detail crops `(h, w, 3)` uint8 hold, relative to their own contrast: `(N,)` float32.

    Standard deviation of the Laplacian, but for the outermost pixels, over that of the grey values, measured
    at a height of at most 96 pixels; 0 for a uniform crop. Relative, so that dark clothing does not count as
    blur. On 220 real crops of 60 to 153 pixels (5th, 50th, 95th percentile): .52/.70/.97 as they are,
    .17/.23/.35 after a Gaussian blur of 1 pixel, .07/.10/.17 of 2 pixels, .05/.06/.12 of 3 pixels.

    All lie on one sheet, for each call of OpenCV lets go of Python's lock and has to wait for it again.
    """
    sizes = [_analysed(*crop.shape[:2]) for crop in crops]
    high, wide = np.array(sizes).T
    tallest, widest = int(high.max()), int(wide.max())
    sheet = np.zeros((len(crops), tallest, widest, 3), np.uint8)
    for crop, place, (height, width) in zip(crops, sheet, sizes, strict=True):
        if len(crop) == height:
            place[:height, :width] = crop
        else:
            cv2.resize(crop, (width, height), dst=place[:height, :width], interpolation=cv2.INTER_NEAREST)
    grey = cv2.cvtColor(sheet.reshape(-1, widest, 3), cv2.COLOR_BGR2GRAY)
    detail = cv2.Laplacian(grey, cv2.CV_16S).reshape(sheet.shape[:3])
    rows, columns = np.arange(tallest)[:, None], np.arange(widest)
    edge = (rows < 1) | (columns < 1)
    detail[edge | (rows >= high[:, None, None] - 1) | (columns >= wide[:, None, None] - 1)] = 0
    inner = np.maximum((high - 2) * (wide - 2), 1)
    return _spread(detail, inner) / (_spread(grey.reshape(sheet.shape[:3]), high * wide) + _NOISE)


def _analysed(height: int, width: int) -> tuple[int, int]:
    """Size at which a crop is measured."""
    if height <= _ANALYSIS_HEIGHT:
        return height, width
    return _ANALYSIS_HEIGHT, max(width * _ANALYSIS_HEIGHT // height, 1)


def _spread(values: NDArray[np.generic], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Standard deviation of each of N pictures of which `counts` pixels are meant, the others being 0."""
    flat = values.reshape(len(values), -1).astype(np.float32)
    means = flat.sum(axis=1) / counts
    squares = np.einsum("np,np->n", flat, flat) / counts
    spread: NDArray[np.float32] = np.sqrt(np.maximum(squares - means**2, 0.0)).astype(np.float32)
    return spread
