"""Rows of x, y, w, h, objectness and classes, whose score is objectness * class: YOLOX and YOLOv5."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_agent.detect.kinds.base import Array, Decoder
from edge_agent.detect.kinds.seen import Response, Seen, expect_attention, expect_probabilities, expect_sparse
from edge_agent.engine.graph.detector import DetectorGraph

BOX_COLUMNS = 5
"""x, y, w, h, objectness; the classes follow."""


@dataclass(frozen=True)
class ObjectnessDecoder(Decoder):
    """A `Decoder` of such rows, whose boxes are in pixels."""

    def rows(self, graph: DetectorGraph) -> str:
        """See `Decoder.rows`: the first five columns and that of people."""
        return graph.pick(graph.only_output(), 2, [*range(BOX_COLUMNS), BOX_COLUMNS + self.person])

    def probabilities(self, rows: Array) -> Array:
        """See `Decoder.probabilities`: objectness and class."""
        return rows[:, 4:6]

    def scores(self, rows: Array) -> Array:
        """See `Decoder.scores`; a negative objectness is none."""
        scores: Array = np.maximum(rows[:, 4], np.float32(0)) * rows[:, 5]
        return scores


def check_objectness(seen: Seen, pictures: tuple[Array, ...]) -> Response:
    """Check objectness and classes; return the response to people, or raise Unlike."""
    for picture in pictures:
        expect_probabilities(picture[:, 4], "column 4, the objectness,")
        expect_probabilities(picture[:, BOX_COLUMNS:], "a class column (5 or later)")
    expect_sparse(tuple(picture[:, 4] for picture in pictures), "column 4, the objectness,")
    expect_attention(pictures)
    person = seen.person(pictures[0].shape[1] - BOX_COLUMNS)
    return Response.of(pictures[-1][:, 4:5] * pictures[-1][:, BOX_COLUMNS:], person)
