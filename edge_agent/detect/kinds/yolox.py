"""YOLOX, nano to x: `[N, A, 5 + classes]` of x, y, w, h, objectness and classes.

Decoding as in the YOLOX paper (Ge et al. 2021, section 2.1): `xy = (out + cell) * stride`,
`wh = exp(out) * stride`. Preprocessing as in its `demo/ONNXRuntime`: BGR, 0..255, picture at the top left,
the rest 114.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import ScoreLevels
from edge_agent.detect.fit import Fit
from edge_agent.detect.kinds.base import RAW_BGR, Array, Decoder, Kind, corners
from edge_agent.detect.kinds.objectness import BOX_COLUMNS, ObjectnessDecoder, check_objectness
from edge_agent.detect.kinds.seen import (
    USUAL_STRIDES,
    Response,
    Seen,
    Unlike,
    are_whole,
    expect_pixels,
    shapes,
    usual_rows,
)

_MAX_LOG_SIZE = 10.0
"""exp of more is wider than any picture; limits the output of a faulty network."""
_CONDITIONAL = 0.005
"""The classes of YOLOX are conditional: trained on objects only, they are not low where there is none. In the
grey picture the best class of a row has a median of 0.16 (nano). Without an objectness before them, they are
final scores, and about 0."""

LEVELS = ScoreLevels(low=0.1, high=0.6, new_track=0.65)
MAX_IOU = 0.65
"""A higher limit keeps people who stand close together, and duplicates."""


@dataclass(frozen=True)
class GridDecoder(ObjectnessDecoder):
    """A `Decoder` of boxes relative to their cell, with cell `(A, 2)` and stride `(A, 1)` of every row."""

    cells: Array
    strides: Array

    def expected_rows(self) -> int:
        """See `Decoder.expected_rows`."""
        return len(self.cells)

    def boxes(self, rows: Array, cells: NDArray[np.intp]) -> Array:
        """See `Decoder.boxes`."""
        stride = self.strides[cells]
        size = np.exp(np.minimum(rows[:, 2:4], _MAX_LOG_SIZE)) * stride
        return corners((rows[:, :2] + self.cells[cells]) * stride, size)


def _read(seen: Seen) -> Decoder:
    pictures = seen.table()
    rows, columns = pictures[0].shape
    if rows != usual_rows(seen) or columns <= BOX_COLUMNS:
        raise Unlike(f"its output is {shapes(seen)}, expected [{usual_rows(seen)}, 5 + classes]")
    response = check_objectness(seen, pictures)
    classes = [picture[:, BOX_COLUMNS:] for picture in pictures]
    if columns == BOX_COLUMNS + 1 and all(are_whole(picture) for picture in classes):
        raise Unlike("column 5 has whole numbers only: labels, not probabilities")
    if not all(np.isfinite(picture[:, :4]).all() for picture in pictures):
        raise Unlike("its boxes are not finite numbers")
    # Exports made with --decode_in_inference give pixels: their centres cover the whole input.
    if np.ptp(pictures[0][:, 0]) <= seen.size[1] / 2:
        return grid_decoder(seen.size, response)
    expect_pixels(seen, pictures)
    if float(np.median(classes[0].max(axis=1))) < _CONDITIONAL:
        raise Unlike("all its class scores are about 0 in an empty picture: there is no objectness")
    return ObjectnessDecoder(response)


def grid_decoder(size: tuple[int, int], response: Response) -> GridDecoder:
    """Return the decoder of a network whose input is `(height, width)`."""
    cells, strides = [], []
    for stride in USUAL_STRIDES:
        y, x = np.mgrid[0 : size[0] // stride, 0 : size[1] // stride]
        cells.append(np.stack((x, y), axis=-1).reshape(-1, 2))
        strides.append(np.full((x.size, 1), stride))
    return GridDecoder(
        response, np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)
    )


YOLOX = Kind("yolox", RAW_BGR, Fit.CORNER, LEVELS, MAX_IOU, (640, 640), _read)
