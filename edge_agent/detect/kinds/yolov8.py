"""YOLOv8 and its successors: `[N, 4 + classes, A]` of centre x, y, w, h and final scores of the classes.

The transposed `[N, A, 4 + classes]` is read, too. Preprocessing as in Ultralytics' `LetterBox`: RGB, 0..1,
picture centred, the rest 114.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_agent.core.structures import ScoreLevels
from edge_agent.detect.fit import Fit
from edge_agent.detect.kinds.base import UNIT_RGB, Array, Decoder, Kind
from edge_agent.detect.kinds.seen import (
    Response,
    Seen,
    Unlike,
    are_whole,
    expect_attention,
    expect_pixels,
    expect_probabilities,
    expect_sparse,
    fits_rows,
    shapes,
    usual_rows,
)
from edge_agent.engine.graph.detector import DetectorGraph

_BOX_COLUMNS = 4
_FINAL = 0.05
"""In the grey picture the best class of most rows has a lower score: these are final scores."""

LEVELS = ScoreLevels(low=0.1, high=0.5, new_track=0.6)
"""Of the ByteTrack settings that Ultralytics' first tracker came with; not measured here."""
MAX_IOU = 0.65


@dataclass(frozen=True)
class _FinalDecoder(Decoder):
    """A `Decoder`; `transposed`: rows are the second axis of the output."""

    transposed: bool

    def rows(self, graph: DetectorGraph) -> str:
        """See `Decoder.rows`: the box and the score of people."""
        columns = [*range(_BOX_COLUMNS), _BOX_COLUMNS + self.person]
        if self.transposed:
            return graph.pick(graph.only_output(), 2, columns)
        return graph.transpose(graph.pick(graph.only_output(), 1, columns), [0, 2, 1])


def _read(seen: Seen) -> Decoder:
    pictures = seen.table()
    transposed = _is_transposed(seen, pictures[0])
    if not transposed:
        pictures = tuple(picture.T for picture in pictures)
    classes = tuple(picture[:, _BOX_COLUMNS:] for picture in pictures)
    for picture in classes:
        expect_probabilities(picture, "a class score (4 or later)")
    expect_sparse(classes, "a class score")
    if float(np.median(classes[0].max(axis=1))) >= _FINAL:
        raise Unlike("its class scores are high in an empty picture: an objectness comes before them")
    if classes[0].shape[1] == 2 and all(are_whole(picture[:, 1]) for picture in classes):
        raise Unlike("its last value is always a whole number: a label, not a probability")
    expect_pixels(seen, pictures)
    expect_attention(pictures)
    person = seen.person(classes[0].shape[1])
    return _FinalDecoder(Response.of(classes[-1], person), transposed)


def _is_transposed(seen: Seen, picture: Array) -> bool:
    """Return whether rows come first; Unlike where neither axis has one for each cell."""
    for transposed, (columns, rows) in ((False, picture.shape), (True, picture.shape[::-1])):
        if columns > _BOX_COLUMNS and fits_rows(seen, rows):
            return transposed
    expected = usual_rows(seen)
    raise Unlike(f"its output is {shapes(seen)}, expected [4 + classes, {expected}]")


YOLOV8 = Kind("yolov8", UNIT_RGB, Fit.CENTRE, LEVELS, MAX_IOU, (640, 640), _read)
