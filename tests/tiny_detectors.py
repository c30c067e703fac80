"""Small ONNX detectors of every kind, whose rows a test can choose; they look at the mean of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIZE = 96
CELLS = sum((SIZE // stride) ** 2 for stride in (8, 16, 32))
PERSON = (48.0, 40.0, 20.0, 50.0)
"""Centre and size of the person that every network finds, in pixels of the input."""

Tables = dict[str, np.ndarray]


def _scores(rows: int, columns: int, seed: int, top: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, top, (rows, columns)).astype(np.float32)


def _boxes(rows: int) -> np.ndarray:
    """Boxes of centre and size in pixels, spread over the input; row 5 is the person."""
    place = np.arange(rows, dtype=np.float32)
    boxes = np.stack((place * 7 % SIZE, place * 13 % SIZE, place % 30 + 4, place % 40 + 4), axis=1)
    boxes[5] = PERSON
    return boxes


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)


def yolox(*, classes: int = 4, person: int = 0) -> Tables:
    """Boxes relative to their cell; the person is in the first row of stride 8 whose cell is (5, 4)."""
    table = np.concatenate(
        (np.zeros((CELLS, 4)), _scores(CELLS, 1, 1, 0.01), _scores(CELLS, classes, 2, 0.3)), axis=1
    ).astype(np.float32)
    x, y, width, height = PERSON
    row = (SIZE // 8) * 4 + 5
    table[row, :5] = x / 8 - 5, y / 8 - 4, np.log(width / 8), np.log(height / 8), 0.9
    table[row, 5 + person] = 0.9
    return {"output": table[None]}


def yolox_decoded(*, classes: int = 4, person: int = 0) -> Tables:
    table = np.concatenate(
        (_boxes(CELLS), _scores(CELLS, 1, 1, 0.01), _scores(CELLS, classes, 2, 0.3)), axis=1
    )
    table[5, 4] = table[5, 5 + person] = 0.9
    return {"output": table[None]}


def yolov8(*, classes: int = 4, person: int = 0, transposed: bool = False) -> Tables:
    table = np.concatenate((_boxes(CELLS), _scores(CELLS, classes, 3, 0.004)), axis=1)
    table[5, 4 + person] = 0.81
    return {"output0": table[None] if transposed else table.T[None].copy()}


def yolov5(*, classes: int = 4, person: int = 0) -> Tables:
    rows = 3 * CELLS
    table = np.concatenate((_boxes(rows), _scores(rows, 1, 1, 0.01), _scores(rows, classes, 2, 0.3)), axis=1)
    table[5, 4] = table[5, 5 + person] = 0.9
    return {"output0": table[None]}


def yolov6() -> Tables:
    table = np.concatenate((_boxes(CELLS), np.ones((CELLS, 1)), _scores(CELLS, 4, 3, 0.004)), axis=1)
    table[5, 5] = 0.81
    return {"outputs": table[None].astype(np.float32)}


def end2end(*, rows: int = 50, person: int = 0) -> Tables:
    labels = np.arange(rows, dtype=np.float32)[:, None] % 4 + 7
    table = np.concatenate((_corners(_boxes(rows)), _scores(rows, 1, 4, 0.04), labels), axis=1)
    table[5, 4:] = 0.81, person
    return {"output0": table[None]}


def deepstream(*, person: int = 0) -> Tables:
    return end2end(rows=CELLS, person=person)


def parts(*, person: int = 0) -> Tables:
    table = end2end(person=person)["output0"]
    return {"boxes": table[..., :4], "scores": table[..., 4:5], "labels": table[..., 5:]}


def efficient_nms(*, person: int = 0) -> Tables:
    """Rows after the number of boxes are padding: here, a person who must not be found."""
    table = end2end(person=person)["output0"]
    table[0, 20:, 4] = 0.9
    table[0, 20:, 5] = person
    return {
        "num_dets": np.asarray([[20]], np.int32),
        "det_boxes": table[..., :4],
        "det_scores": table[..., 4],
        "det_classes": table[..., 5].astype(np.int32),
    }


def peoplenet(*, classes: int = 3, person: int = 0) -> Tables:
    side = SIZE // 16
    cover = _scores(classes, side * side, 5, 0.02).reshape(1, classes, side, side)
    boxes = np.zeros((1, 4 * classes, side, side), np.float32)
    row, column = 2, 3
    centre = np.asarray([column * 16 + 0.5, row * 16 + 0.5])
    x1, y1, x2, y2 = _corners(np.asarray([PERSON]))[0]
    cover[0, person, row, column] = 0.81
    boxes[0, 4 * person : 4 * person + 4, row, column] = (
        np.asarray([centre[0] - x1, centre[1] - y1, x2 - centre[0], y2 - centre[1]]) / 35
    )
    return {"output_cov/Sigmoid:0": cover, "output_bbox/BiasAdd:0": boxes}


LAYOUTS = {
    "yolox": (yolox, "yolox"),
    "yolox-decoded": (yolox_decoded, "yolox"),
    "yolov8": (yolov8, "yolov8"),
    "yolov8-transposed": (lambda **options: yolov8(transposed=True, **options), "yolov8"),
    "yolov5": (yolov5, "yolov5"),
    "end2end": (end2end, "end2end"),
    "deepstream": (deepstream, "end2end"),
    "parts": (parts, "end2end"),
    "efficient-nms": (efficient_nms, "end2end"),
    "peoplenet": (peoplenet, "peoplenet"),
}
"""Layout -> its tables, and the kind that reads it."""

SAME_LAYOUTS = {"yolox-end2end": "end2end"}
"""Kinds that read a layout of another kind, and differ from it in preprocessing."""


@dataclass
class Form:
    """How a network takes its pictures and gives its tables."""

    batch: object = 1
    size: object = SIZE
    channels_last: bool = False
    takes: int = TensorProto.FLOAT
    gives: int = TensorProto.FLOAT
    declared: dict[str, list[object] | None] = field(default_factory=dict)
    """Shapes that the file declares instead of the real ones."""
    metadata: dict[str, str] = field(default_factory=dict)
    shift: float = 1e-6
    """What the mean of the picture adds to the scores, at most."""


def write(path: Path, tables: Mapping[str, np.ndarray], form: Form | None = None) -> Path:
    """Write a network that gives these tables, with a trace of the picture's mean in every score."""
    form = form or Form()
    sides = [form.size, form.size]
    shape = [form.batch, *sides, 3] if form.channels_last else [form.batch, 3, *sides]
    nodes = [
        helper.make_node("Cast", ["images"], ["plain"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["plain"], ["mean"], axes=[1, 2, 3], keepdims=0),
    ]
    weights, outputs = [], []
    for number, (name, table) in enumerate(tables.items()):
        base = table.astype(np.float32)
        flat = [1] * (base.ndim - 1)
        weights += [
            numpy_helper.from_array(base, f"table{number}"),
            numpy_helper.from_array(_shift(name, base, form.shift), f"shift{number}"),
            numpy_helper.from_array(np.asarray([-1, *flat]), f"shape{number}"),
        ]
        integer = table.dtype.kind == "i"
        kind = TensorProto.INT32 if integer else form.gives
        nodes += [
            helper.make_node("Reshape", ["mean", f"shape{number}"], [f"light{number}"]),
            helper.make_node("Mul", [f"light{number}", f"shift{number}"], [f"more{number}"]),
            helper.make_node("Add", [f"table{number}", f"more{number}"], [f"sum{number}"]),
            helper.make_node("Cast", [f"sum{number}"], [name], to=kind),
        ]
        real = [form.batch, *base.shape[1:]]
        outputs.append(helper.make_tensor_value_info(name, kind, form.declared.get(name, real)))
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("images", form.takes, shape)], outputs, weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, form.metadata)
    path.write_bytes(model.SerializeToString())
    return path


def _shift(name: str, table: np.ndarray, size: float) -> np.ndarray:
    """Zero for boxes and labels."""
    shift = np.zeros_like(table)
    if "cov" in name or "score" in name:
        shift[:] = size
    elif table.ndim == 2 and "num" not in name and "class" not in name:
        shift[:, -1] = size
    elif table.ndim == 3 and table.shape[2] > table.shape[1]:
        shift[:, 4:] = size
    elif table.ndim == 3 and "box" not in name and table.shape[2] > 4:
        shift[..., 4] = size
    return shift
