"""NVIDIA PeopleNet, a DetectNet_v2: `output_cov [N, 3, H/16, W/16]` and `output_bbox [N, 12, H/16, W/16]`.

A cell at column i has its centre at `(16 i + 0.5) / 35`; the four numbers of a box are its distances to the
left, upper, right and lower side, in units of 35 pixels (DeepStream's `NvDsInferParseCustomResnet`). Classes
are person, bag and face. Preprocessing as in DeepStream's configuration of PeopleNet: RGB, 0..1, aspect not
kept; its levels, too, are from there (`pre-cluster-threshold` 0.4, `nms-iou-threshold` 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import ScoreLevels
from edge_agent.detect.fit import Fit
from edge_agent.detect.kinds.base import UNIT_RGB, Array, Decoder, Kind
from edge_agent.detect.kinds.seen import (
    Response,
    Seen,
    Unlike,
    expect_attention,
    expect_probabilities,
    expect_sparse,
    shapes,
)
from edge_agent.engine.graph.detector import DetectorGraph

STRIDE = 16
_OFFSET = 0.5
NORM = np.float32(35.0)
_CLASSES = (1, 3)
"""PeopleNet has three classes, a version that was trained for people alone has one."""


@dataclass(frozen=True)
class GridDecoder(Decoder):
    """A `Decoder`; `centres` `(A, 2)` are the centres of the cells in units of 35 pixels."""

    outputs: tuple[str, str]
    centres: Array

    def rows(self, graph: DetectorGraph) -> str:
        """See `Decoder.rows`: box and score of people for each cell."""
        coverage, boxes = (graph.output(name) for name in self.outputs)
        first = 4 * self.person
        joined = graph.concat(
            [graph.pick(boxes, 1, list(range(first, first + 4))), graph.pick(coverage, 1, [self.person])], 1
        )
        return graph.transpose(graph.reshape(joined, [0, 5, -1]), [0, 2, 1])

    def expected_rows(self) -> int:
        """See `Decoder.expected_rows`."""
        return len(self.centres)

    def boxes(self, rows: Array, cells: NDArray[np.intp]) -> Array:
        """See `Decoder.boxes`."""
        centre = self.centres[cells]
        sides: Array = np.concatenate((centre - rows[:, :2], centre + rows[:, 2:4]), axis=1) * NORM
        return sides


def _read(seen: Seen) -> Decoder:
    names = list(seen.outputs)
    if len(names) != 2 or any(seen.outputs[name][0].ndim != 3 for name in names):
        raise Unlike(f"its outputs are {shapes(seen)}, expected coverage and boxes of a grid")
    coverage, boxes = sorted(names, key=lambda name: seen.outputs[name][0].shape[0])
    covers = seen.outputs[coverage]
    count, *grid = covers[0].shape
    wanted = [seen.size[0] // STRIDE, seen.size[1] // STRIDE]
    if grid != wanted or list(seen.outputs[boxes][0].shape) != [4 * count, *grid]:
        expected = f"[3, {wanted[0]}, {wanted[1]}] and [12, {wanted[0]}, {wanted[1]}]"
        raise Unlike(f"its outputs are {shapes(seen)}, expected {expected}")
    if any(picture.shape != values[0].shape for values in seen.outputs.values() for picture in values):
        raise Unlike("its outputs have another shape for each picture")
    if count < 1 or (seen.classes is None and count not in _CLASSES):
        raise Unlike(f"it has {count} classes; PeopleNet has person, bag and face")
    for picture in covers:
        expect_probabilities(picture, f"{coverage!r}")
    expect_sparse(covers, f"{coverage!r}")
    if not all(np.isfinite(picture).all() for picture in seen.outputs[boxes]):
        raise Unlike(f"{boxes!r} has values that are no finite numbers")
    expect_attention(covers)
    person = seen.person(count)  # of PeopleNet's classes, whose order is known, no other counts
    response = Response(person, float(covers[-1][person].max()))
    return grid_decoder(seen.size, response, (coverage, boxes))


def grid_decoder(
    size: tuple[int, int], response: Response, outputs: tuple[str, str] = ("output_cov", "output_bbox")
) -> GridDecoder:
    """Return the decoder of a network whose input is `(height, width)`."""
    y, x = np.mgrid[0 : size[0] // STRIDE, 0 : size[1] // STRIDE]
    centres = (np.stack((x, y), axis=-1).reshape(-1, 2) * STRIDE + _OFFSET).astype(np.float32) / NORM
    return GridDecoder(response, outputs, centres)


PEOPLENET = Kind(
    "peoplenet", UNIT_RGB, Fit.STRETCH, ScoreLevels(low=0.2, high=0.4, new_track=0.5), 0.5, (544, 960), _read
)
