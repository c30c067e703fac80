"""Quality gate: refuses crops that would mislead, grades the others.

It uses the geometry of boxes and one measure of sharpness, before any network runs. Grades order the crops of
a track and weight them; they are not probabilities and are not comparable between cameras.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edge_agent.core.config import QualitySettings

_ANALYSIS_HEIGHT = 96
"""Pixels; larger crops are reduced to this before sharpness is measured, so that the measure and its cost do
not depend on the distance of the person."""
_FULL_SHARPNESS = np.full(1, 0.5, np.float32)
"""Sharpness from which on the grade of a crop is not reduced."""
_NOISE = 5.0
"""Grey levels added to the contrast: below it, detail is rounding and sensor noise."""
_BORDER = 2.0
"""Pixels; a box that ends this near to the image border counts as cut by it."""
_BLOCK = 8
"""Pixels; edge of the blocks of JPEG and of most video codecs."""
_FEWEST_STEPS = 2 * _BLOCK
"""Least number of steps between pixels in which a grid is looked for."""
_NO_STEP = 1.0
"""Grey levels added to the mean step of a crop: below it, steps are rounding."""
_ONE_WAY, _BOTH_WAYS = 0.3, 0.36
"""Blocking that uncompressed crops stay below, up and down, and as the product with left to right."""
_LEAST_SHARP = 0.2
"""Factor of the grade of the worst blocks; they alone refuse no crop."""
_FRAME = 8
"""Pixels around a whole picture that is graded."""
_OUTWARD = np.array([[-1], [-1], [1], [1]], np.float32)
"""Directions in which x1, y1, x2 and y2 leave a picture."""
_CUT_GRADE = 0.7
"""Grade of a box that touches the border: what lies beyond is not visible."""
_ZERO, _HALF, _ONE = (np.full(1, value, np.float32) for value in (0.0, 0.5, 1.0))
_TINY = float(np.finfo(np.float32).tiny)
_NO_AREA = np.full(1, 1e-6, np.float32)
"""Square pixels; smallest divisor for an area."""
_HEIGHT_GRADES = np.sqrt(np.arange(257) / 256)
"""By height in pixels; a crop of 256 or more loses nothing to enlargement in a 256 x 128 network."""

BLURRED = "blurred"
"""Reason for the refusal of a crop that is not sharp."""

_REASONS = ("", *["invalid"] * 2, *["off-image"] * 2, "truncated", *["small"] * 2, *["aspect"] * 2, "covered")
"""None, and the reason for each measure of `QualityGate._grade` that is too small; the first is reported."""
SETTINGS_OF = {
    "truncated": ("max_truncation",),
    "small": ("min_width", "min_height"),
    "aspect": ("min_aspect", "max_aspect"),
    "covered": ("max_overlap",),
    BLURRED: ("min_sharpness",),
}
"""The settings of the section `quality` that decide about a reason; the other reasons have none."""


class Graded(NamedTuple):
    """Grades of N boxes.

    Attributes:
        quality: `(N,)` float32 grades in 0..1, 0 where refused.
        reasons: why each crop was refused: `invalid` (not a box), `off-image`, `small`, `aspect`,
            `truncated`, `covered`, or "".
        inside: `(N, 4)` int32 xyxy, rounded to whole pixels inside the picture; empty for a box outside.
    """

    quality: NDArray[np.float32]
    reasons: tuple[str, ...]
    inside: NDArray[np.int32]


Boxes = tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]
"""Of one picture: N boxes, `(N, 4)` xyxy pixels, their scores `(N,)`, and its `(width, height)` in pixels."""


class QualityGate:
    """Grades the crops of pictures.

    The grade is a product of five factors in 0..1: visible height (square root of height / 256), sharpness
    (/ 0.5; visible blocks of compression lower it), the part of the box inside the picture, the part that no
    nearer person covers, and 0.7 where the box touches the border.
    """

    def __init__(self, settings: QualitySettings) -> None:
        self.settings = settings
        smallest = (settings.min_width, settings.min_height)
        shape = (settings.min_aspect, -settings.max_aspect, -settings.max_overlap)
        least = (_TINY, _TINY, 1, 1, 1 - settings.max_truncation, *smallest, *shape)
        self._least = np.array(least, np.float32)[:, None]
        """`(10, 1)`: least values of the measures of `_grade`, in the order of `_REASONS`."""

    def grade(self, pictures: Sequence[Boxes]) -> list[Graded]:
        """Grade the boxes of several pictures, as if every crop were sharp.

        Boxes may reach over the border. A box covers another only when its score is at least half of the
        other's: weak boxes are often not people.
        """
        counts = [len(boxes) for boxes, _, _ in pictures]
        if len(pictures) == 1:
            ((boxes, scores, size),) = pictures
            quality, reasons, inside = self._grade(boxes.T, scores, _limits(size))
            return [Graded(quality, _named(reasons), inside.T)]
        if not pictures:
            return []
        there = np.arange(max(counts)) < np.array(counts)[:, None]
        padded, scores = np.zeros((*there.shape, 4), np.float32), np.zeros(there.shape, np.float32)
        padded[there] = np.concatenate([boxes for boxes, _, _ in pictures])
        scores[there] = np.concatenate([sure for _, sure, _ in pictures])
        limits = np.stack([_limits(size) for _, _, size in pictures], axis=2)
        quality, reasons, inside = self._grade(padded.transpose(2, 0, 1), scores, limits)
        return [
            Graded(quality[at, :count], _named(reasons[at, :count]), box[:count])
            for at, (count, box) in enumerate(zip(counts, inside.transpose(1, 2, 0), strict=True))
        ]

    def sharp(self, sharp: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the factors of N sharpnesses `(N,)` float32, and `(N,)` bool, which crops are refused."""
        blurred: NDArray[np.bool_] = sharp < self.settings.min_sharpness
        factors: NDArray[np.float32] = np.minimum(sharp / _FULL_SHARPNESS, _ONE)
        factors[blurred] = 0.0
        return factors, blurred

    def _grade(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], limits: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.int32]]:
        """Grade padded boxes with few calls of NumPy: for a few boxes the calls are the whole cost.

        Takes x1, y1, x2, y2 `(4, F, N)` of N boxes of each of F pictures, scores `(F, N)`, and `_limits`
        `(2, 4, F, 1)`; F is left out for one picture. Returns `(F, N)` float32 `Graded.quality`, `(F, N)`
        places in `_REASONS`, and `(4, F, N)` int32 `Graded.inside`.
        """
        parts = np.empty((2, *boxes.shape), np.float32)
        known, clipped = parts  # of each box all, and what lies inside the picture
        known[...] = boxes
        if not math.isfinite(np.vdot(known, known)):
            known[:, ~np.isfinite(known).all(axis=0)] = 0.0
        border, edges = limits
        np.minimum(np.maximum(known, _ZERO, out=clipped), border, out=clipped)
        inside = np.rint(clipped).astype(np.int32)
        size = inside[2:] - inside[:2]
        sides = parts[:, 2:] - parts[:, :2]
        measures = np.empty((len(_REASONS) - 1, *scores.shape), np.float32)
        measures[:2] = sides[0]
        measures[2:4] = measures[5:7] = size
        np.maximum(sides, _ZERO, out=sides)
        areas = sides[:, 0] * sides[:, 1]
        np.maximum(areas[0], _NO_AREA, out=areas[0])
        visible = np.divide(areas[1], areas[0], out=measures[4])
        np.divide(measures[3], np.maximum(measures[2], _ONE), out=measures[7])
        np.negative(measures[7], out=measures[8])
        grade = _HEIGHT_GRADES.take(size[1], mode="clip") * visible
        if scores.shape[-1] > 1:
            covered = _covered_part(known, areas[0], scores)
            np.negative(covered, out=measures[9])
            grade *= _ONE - covered
        else:
            measures[9] = 0.0
        cut = (known * _OUTWARD if scores.ndim == 1 else known * _OUTWARD[..., None]) >= edges
        if np.count_nonzero(cut):
            grade[cut.any(axis=0)] *= _CUT_GRADE
        failed = measures < (self._least if scores.ndim == 1 else self._least[..., None])
        if not np.count_nonzero(failed):
            return grade.astype(np.float32), np.zeros(scores.shape, np.intp), inside
        refused = failed.any(axis=0)
        grade[refused] = 0.0
        return grade.astype(np.float32), np.where(refused, failed.argmax(axis=0) + 1, 0), inside


@lru_cache
def _limits(size: tuple[int, int]) -> NDArray[np.float32]:
    """`(2, 4, 1)`: largest x1, y1, x2, y2 inside a picture; least ones times `_OUTWARD` of a cut box."""
    width, height = size
    cut = (-_BORDER, -_BORDER, width - _BORDER, height - _BORDER)
    return np.array([(width, height, width, height), cut], np.float32)[..., None]


def _named(reasons: NDArray[np.intp]) -> tuple[str, ...]:
    return tuple([_REASONS[reason] for reason in reasons.tolist()])


def grade_picture(gate: QualityGate, picture: NDArray[np.uint8]) -> tuple[float, str]:
    """Grade a whole picture as one crop: return its grade 0..1, and the reason of a refusal or ""."""
    height, width = picture.shape[:2]
    # Inside a larger picture, for a box at the border counts as cut by it.
    box = np.array([[_FRAME, _FRAME, width + _FRAME, height + _FRAME]], np.float32)
    (graded,) = gate.grade([(box, np.ones(1, np.float32), (width + 2 * _FRAME, height + 2 * _FRAME))])
    factors, blurred = gate.sharp(np.array([sharpness(picture)], np.float32))
    reason = graded.reasons[0] or (BLURRED if blurred[0] else "")
    return float(graded.quality[0] * factors[0]), reason


def _covered_part(
    boxes: NDArray[np.float32], area: NDArray[np.float32], scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`(F, N)` float32: largest part of each of N boxes, `(4, F, N)`, that one nearer person covers.

    On a floor seen from above, the person whose feet are lower in the picture is the nearer one.
    """
    own, others = boxes[..., :, None], boxes[..., None, :]
    sides = np.minimum(own[2:], others[2:])
    sides -= np.maximum(own[:2], others[:2])
    np.maximum(sides, _ZERO, out=sides)
    shared = sides[0] * sides[1]
    nearer = others[3] > own[3]
    nearer &= scores[..., None, :] >= (_HALF * scores)[..., None]
    shared *= nearer
    part: NDArray[np.float32] = np.maximum.reduce(shared, axis=-1)
    part /= area
    return np.minimum(part, _ONE, out=part)


def sharpness(crop: NDArray[np.uint8]) -> float:
    """Measure the fine detail of a crop `(h, w, 3)` uint8, relative to its own contrast.

    Standard deviation of the Laplacian, but for the outermost pixels, over that of the grey values, measured
    at a height of at most 96 pixels; 0 for a uniform crop. Visible blocks (`blocking`) set an upper limit:
    their edges are no detail. Relative, so that dark clothing does not count as blur. On 220 real crops of
    60 to 153 pixels (5th, 50th, 95th percentile): .52/.70/.97 unchanged, .17/.23/.35 after a Gaussian blur of
    1 pixel, .07/.10/.17 of 2 pixels, .05/.06/.12 of 3 pixels.
    """
    height, width = crop.shape[:2]
    if height > _ANALYSIS_HEIGHT:
        size = max(width * _ANALYSIS_HEIGHT // height, 1), _ANALYSIS_HEIGHT
        reduced = cv2.resize(crop, size, interpolation=cv2.INTER_NEAREST)
        first = (height - _ANALYSIS_HEIGHT) // 2
        grey = cv2.cvtColor(reduced, cv2.COLOR_BGR2GRAY)
        whole = cv2.cvtColor(crop[first : first + _ANALYSIS_HEIGHT], cv2.COLOR_BGR2GRAY)
    else:
        grey = whole = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)
    detail = cv2.Laplacian(grey, cv2.CV_16S)[1:-1, 1:-1]
    if not detail.size:
        return 0.0
    sharp, blocks = _deviation(detail) / (_deviation(grey) + _NOISE), blocking(whole)
    if blocks <= _BOTH_WAYS:
        return sharp
    return min(sharp, float(_FULL_SHARPNESS[0]) * max(_BOTH_WAYS / blocks, _LEAST_SHARP))


def blocking(grey: cv2.typing.MatLike) -> float:
    """Measure the edges of a grid of 8 x 8 blocks, wherever it begins, in a grey picture `(h, w)` uint8.

    Each way, the mean steps from pixel to pixel are folded to a period of 8; the measure is how much the
    largest exceeds the mean of its two neighbours, relative to the mean step. The product of both ways, since
    stripes have steps in one; 0 where those up and down show no grid. On 114 real crops of about 83 pixels
    (5th, 50th, 95th percentile): 0/0/.25 unchanged, .15/.39/.97 as JPEG of quality 12, .27/.75/1.6 of 8,
    .94/2.3/3.9 of 4. Pictures that were resized after they had been compressed show no such grid, and those
    of H.264 and its successors hardly any.
    """
    height, width = grey.shape
    if min(height, width) <= _FEWEST_STEPS:
        return 0.0
    down = _grid(cv2.reduce(cv2.absdiff(grey[1:], grey[:-1]), 1, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[:, 0])
    if down < _ONE_WAY:
        return 0.0
    across = cv2.reduce(cv2.absdiff(grey[:, 1:], grey[:, :-1]), 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[0]
    return down * _grid(across)


def _grid(steps: cv2.typing.MatLike) -> float:
    """Return the largest excess of a step of the period over its neighbours, relative to the mean step."""
    *over, mean = (steps @ _folding(len(steps))).tolist()
    return float(max(over) / (mean + _NO_STEP))


@lru_cache(1024)
def _folding(count: int) -> NDArray[np.float32]:
    """`(count, 9)`: gives the steps of a period, each less the mean of its two neighbours, and their mean."""
    period = np.zeros((count, _BLOCK), np.float32)
    period[np.arange(count), np.arange(count) % _BLOCK] = 1.0
    period /= period.sum(axis=0)
    over = np.eye(_BLOCK, dtype=np.float32)
    over -= (np.roll(over, 1, axis=0) + np.roll(over, -1, axis=0)) / 2
    return np.column_stack([period @ over, np.full(count, 1 / count, np.float32)])


def _deviation(values: cv2.typing.MatLike) -> float:
    """Standard deviation."""
    return float(cv2.meanStdDev(values)[1][0, 0])
