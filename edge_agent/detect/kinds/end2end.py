"""Exports that decode themselves: `[N, K, 6]` of x1, y1, x2, y2, score and label, in pixels.

Written by YOLOv10 and YOLO26, by Ultralytics with `nms=True`, and by the scripts of DeepStream-Yolo, which
keep all rows and leave the suppression to DeepStream. Its older scripts, and exports with EfficientNMS, have
separate outputs for boxes, scores and labels, the latter also for the number of boxes.

Preprocessing is that of the network inside: as YOLOv8, or as YOLOX. The start-up picture decides which one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.detect.fit import Fit
from edge_agent.detect.kinds import yolov8, yolox
from edge_agent.detect.kinds.base import RAW_BGR, UNIT_RGB, Array, Decoder, Kind
from edge_agent.detect.kinds.seen import (
    Response,
    Seen,
    Unlike,
    are_whole,
    expect_attention,
    expect_probabilities,
    shapes,
    usual_rows,
)
from edge_agent.engine.graph.detector import DetectorGraph

_ORDERS = {6: [0, 1, 2, 3, 4, 5], 7: [1, 2, 3, 4, 6, 5]}
"""By number of columns, those of x1, y1, x2, y2, score, label. YOLOv7's `--end2end` for ONNX Runtime writes
seven: number in the batch, box, label, score."""
_PARTS = ("box", "score", "class", "num")
"""What the names of separate outputs contain; `label` stands for `class`, and the number may be missing."""
_MOST_LABEL = 10_000
_ORDERED = 0.9
"""Share of the boxes, also faint ones, whose corners must be in order."""
_FAINT = 0.05
"""Rows below are not checked for their boxes: they are often padding."""


@dataclass(frozen=True)
class _TableDecoder(Decoder):
    """A `Decoder`; `parts`: names of separate outputs, in the order of `_PARTS`, or nothing."""

    parts: tuple[str, ...]
    columns: int
    count: int
    """Rows of each picture; 0 where their number changes."""

    def rows(self, graph: DetectorGraph) -> str:
        """See `Decoder.rows`: the six columns."""
        if not self.parts:
            table = graph.reshape(graph.only_output(), [1, -1, self.columns])
            return graph.pick(table, 2, _ORDERS[self.columns])
        boxes, scores, labels = (
            graph.reshape(graph.output(name), [1, -1, width])
            for name, width in zip(self.parts[:3], (4, 1, 1), strict=True)
        )
        if len(self.parts) > 3:
            number = graph.reshape(graph.output(self.parts[3]), [1, 1, 1])
            scores = graph.first_rows(scores, number, self.count)
        return graph.concat([boxes, scores, labels], 2)

    def scores(self, rows: Array) -> Array:
        """See `Decoder.scores`."""
        return np.where(rows[:, 5] == self.person, rows[:, 4], np.float32(0))

    def boxes(self, rows: Array, cells: NDArray[np.intp]) -> Array:  # noqa: ARG002
        """See `Decoder.boxes`."""
        return rows[:, :4]


def _read(seen: Seen) -> Decoder:
    parts = _parts(seen) if len(seen.outputs) > 1 else ()
    pictures = _joined(seen, parts) if parts else seen.only()
    columns = pictures[0].shape[1]
    if columns not in _ORDERS:
        raise Unlike(f"its output is {shapes(seen)}, expected rows of x1, y1, x2, y2, score, label")
    pictures = tuple(picture[:, _ORDERS[columns]] for picture in pictures)
    for picture in pictures:
        _check(picture)
    counts = {len(picture) for picture in pictures}
    if counts == {usual_rows(seen)} and not any(picture[:, :4].any() for picture in pictures):
        raise Unlike("its boxes are 0 everywhere")
    if (pictures[-1][:, 4] > _FAINT).any():
        expect_attention(pictures)
    if len(parts) > 3 and len(counts) > 1:
        raise Unlike("it has an output for the number of boxes, and another number of rows each time")
    person = 0
    if seen.classes is not None:
        person = seen.person(len(seen.classes))
    count = counts.pop() if len(counts) == 1 else 0
    return _TableDecoder(_response(pictures[-1], person), parts, columns, count)


def _response(rows: Array, person: int) -> Response:
    own = rows[:, 5] == person
    best = float(rows[own, 4].max(initial=0))
    others = rows[~own & (rows[:, 5] >= 0)]
    if not len(others):
        return Response(person, best)
    *_, score, label = others[others[:, 4].argmax()].tolist()
    return Response(person, best, int(label), score)


def _parts(seen: Seen) -> tuple[str, ...]:
    """Return the names of separate outputs for boxes, scores, labels and, if there is one, their number."""
    found: dict[str, str] = {}
    for name in seen.outputs:
        plain = name.lower().replace("label", "class")
        part = next((part for part in _PARTS[::-1] if part in plain), None)
        if part is None or part in found:
            raise Unlike(f"its outputs are {', '.join(map(repr, seen.outputs))}")
        found[part] = name
    if any(part not in found for part in _PARTS[:3]):
        raise Unlike(f"its outputs are {', '.join(map(repr, seen.outputs))}")
    return tuple(found[part] for part in _PARTS if part in found)


def _joined(seen: Seen, parts: tuple[str, ...]) -> tuple[Array, ...]:
    """Return the six columns of separate outputs for each picture, without the rows after their number."""
    pictures = []
    for number, boxes in enumerate(seen.outputs[parts[0]]):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise Unlike(f"its boxes are {list(boxes.shape)}, expected [K, 4]")
        rows = len(boxes)
        others = [seen.outputs[name][number] for name in parts[1:3]]
        if any(values.size != rows for values in others):
            raise Unlike(f"its outputs are {shapes(seen)}: there is not one score and label for each box")
        table = np.concatenate([boxes, *(values.reshape(rows, 1) for values in others)], axis=1)
        if len(parts) > 3:
            counts = seen.outputs[parts[3]][number]
            if counts.size != 1 or not 0 <= float(counts.reshape(-1)[0]) <= rows:
                raise Unlike(f"{parts[3]!r} is no number of its {rows} boxes")
            table = np.where(np.arange(rows)[:, None] < counts.reshape(1, 1), table, np.float32(0))
        pictures.append(table)
    return tuple(pictures)


def _check(rows: Array) -> None:
    if not np.isfinite(rows).all():
        raise Unlike("its rows are not finite numbers")
    if not len(rows):
        return
    if not are_whole(rows[:, 5]) and are_whole(rows[:, 4]):
        raise Unlike("its rows have the label before the score")
    if not are_whole(rows[:, 5]) or rows[:, 5].max() > _MOST_LABEL or rows[:, 5].min() < -1:
        raise Unlike("column 5 does not have whole numbers, as labels are")
    expect_probabilities(rows[:, 4], "column 4, the score,")
    found = rows[rows[:, 4] > _FAINT]
    if not len(found):
        return
    if np.abs(found[:, :4]).max() <= 2:
        raise Unlike("its boxes are shares of the picture, not pixels of the input")
    used = rows[rows[:, :4].any(axis=1)]
    ordered = (used[:, 2:4] >= used[:, :2] - 1).all(axis=1)
    if ordered.mean() < _ORDERED or (found[:, 2:4] < found[:, :2] - 1).any():
        raise Unlike("its boxes are not x1, y1, x2, y2: some corners are in the wrong order")


END2END = Kind("end2end", UNIT_RGB, Fit.CENTRE, yolov8.LEVELS, yolov8.MAX_IOU, (640, 640), _read)
YOLOX_END2END = Kind("yolox-end2end", RAW_BGR, Fit.CORNER, yolox.LEVELS, yolox.MAX_IOU, (640, 640), _read)
