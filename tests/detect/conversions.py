"""The real YOLOX nano with the outputs of other exporters: the same detections in every layout.

`write(source, layout, path)`: the preprocessing that the layout's kind expects is undone inside the graph,
unless `raw` leaves YOLOX's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)


@dataclass
class Surgery:
    """A YOLOX network whose output is decoded: boxes in pixels `xy`, `wh`, objectness `ob`, classes `cl`."""

    model: onnx.ModelProto
    size: int = 416
    added: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    @staticmethod
    def of(source: Path) -> Surgery:
        model = onnx.load(source)
        cut = Surgery(model)
        graph = model.graph
        for node in graph.node:
            for place, name in enumerate(node.output):
                if name == graph.output[0].name:
                    node.output[place] = "raw"
        cells, strides = [], []
        for stride in STRIDES:
            y, x = np.mgrid[0 : cut.size // stride, 0 : cut.size // stride]
            cells.append(np.stack((x, y), -1).reshape(-1, 2))
            strides.append(np.full((x.size, 1), stride))
        cell, stride = (
            cut.constant(np.concatenate(part).astype(np.float32)[None]) for part in (cells, strides)
        )
        cut.op("Mul", [cut.op("Add", [cut.take("raw", 0, 2), cell]), stride], "xy")
        cut.op("Mul", [cut.op("Exp", [cut.take("raw", 2, 4)]), stride], "wh")
        cut.take("raw", 4, 5, "ob")
        cut.take("raw", 5, 85, "cl")
        cut.op("Mul", ["cl", "ob"], "score")
        del graph.value_info[:]
        del graph.output[:]
        return cut

    def constant(self, value: np.ndarray) -> str:
        self.added += 1
        self.model.graph.initializer.append(numpy_helper.from_array(value, f"const{self.added}"))
        return f"const{self.added}"

    def op(self, kind: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        self.added += 1
        output = output or f"op{self.added}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def take(self, values: str, start: int, end: int, output: str = "") -> str:
        limits = [self.constant(np.asarray([number])) for number in (start, end, 2)]
        return self.op("Slice", [values, *limits], output)

    def corners(self) -> tuple[str, str]:
        half = self.op("Mul", ["wh", self.constant(np.float32(0.5))])
        return self.op("Sub", ["xy", half]), self.op("Add", ["xy", half])

    def best(self) -> tuple[str, str]:
        best = self.op("ReduceMax", ["score"], axes=[2], keepdims=1)
        label = self.op("ArgMax", ["score"], axis=2, keepdims=1)
        return best, self.op("Cast", [label], to=TensorProto.FLOAT)

    def unit_rgb(self) -> None:
        """Take RGB in 0..1 instead of BGR in 0..255."""
        graph = self.model.graph
        name = graph.input[0].name
        for node in graph.node:
            for place, given in enumerate(node.input):
                if given == name:
                    node.input[place] = "network_input"
        first = [
            helper.make_node("Gather", [name, self.constant(np.asarray([2, 1, 0]))], ["bgr"], axis=1),
            helper.make_node("Mul", ["bgr", self.constant(np.float32(255))], ["network_input"]),
        ]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        del graph.node[:]
        graph.node.extend([*first, *kept])

    def save(self, path: Path, outputs: dict[str, list[object] | None], *, names: bool = False) -> Path:
        graph = self.model.graph
        graph.node.extend(self.nodes)
        for name, shape in outputs.items():
            kind = TensorProto.INT32 if name == "num_dets" else TensorProto.FLOAT
            graph.output.append(helper.make_tensor_value_info(name, kind, shape))
        if names:
            classes = {0: "person"} | {number: f"thing {number}" for number in range(1, 80)}
            helper.set_model_props(
                self.model, {"names": str(classes), "task": "detect", "imgsz": "[416, 416]"}
            )
        onnx.save(self.model, path)
        return path


ROWS = 3549


def _yolox(cut: Surgery) -> dict:
    cut.op("Concat", ["xy", "wh", "ob", "cl"], "output", axis=2)
    return {"output": [1, ROWS, 85]}


def _yolov8(cut: Surgery) -> dict:
    cut.op("Transpose", [cut.op("Concat", ["xy", "wh", "score"], axis=2)], "output0", perm=[0, 2, 1])
    return {"output0": [1, 84, ROWS]}


def _yolov8_transposed(cut: Surgery) -> dict:
    cut.op("Concat", ["xy", "wh", "score"], "output0", axis=2)
    return {"output0": [1, ROWS, 84]}


def _yolov5(cut: Surgery) -> dict:
    table = cut.op("Concat", ["xy", "wh", "ob", "cl"], axis=2)
    low = np.ones((1, 1, 85), np.float32)
    low[..., 4] = 0.01
    faint = cut.op("Mul", [table, cut.constant(low)])
    cut.op("Concat", [faint, table, faint], "output0", axis=1)
    return {"output0": [1, 3 * ROWS, 85]}


def _yolov6(cut: Surgery) -> dict:
    nothing = cut.op("Mul", ["ob", cut.constant(np.float32(0))])
    one = cut.op("Add", [nothing, cut.constant(np.float32(1))])
    cut.op("Concat", ["xy", "wh", one, "score"], "outputs", axis=2)
    return {"outputs": [1, ROWS, 85]}


def _deepstream(cut: Surgery) -> dict:
    cut.op("Concat", [*cut.corners(), *cut.best()], "output", axis=2)
    return {"output": [1, ROWS, 6]}


def _deepstream_parts(cut: Surgery) -> dict:
    best, label = cut.best()
    cut.op("Concat", list(cut.corners()), "boxes", axis=2)
    cut.op("Identity", [best], "scores")
    cut.op("Identity", [label], "classes")
    return {"boxes": [1, ROWS, 4], "scores": [1, ROWS, 1], "classes": [1, ROWS, 1]}


def _top(cut: Surgery, count: int = 300) -> tuple[str, str]:
    """Rows of x1 y1 x2 y2 score label, best first: `[1, 300, 6]`; and indices, flat."""
    best, label = cut.best()
    table = cut.op("Concat", [*cut.corners(), best, label], axis=2)
    flat = cut.op("Reshape", [best, cut.constant(np.asarray([-1]))])
    cut.nodes.append(
        helper.make_node("TopK", [flat, cut.constant(np.asarray([count]))], ["top", "index"], axis=0)
    )
    return cut.op("Gather", [table, "index"], axis=1), "top"


def _yolov10(cut: Surgery) -> dict:
    table, _ = _top(cut)
    cut.op("Identity", [table], "output0")
    return {"output0": [1, 300, 6]}


def _nms(cut: Surgery) -> dict:
    """As many rows as people are found, without a batch axis: none in an empty picture."""
    best, label = cut.best()
    low, high = cut.corners()
    boxes = cut.op("Concat", [low, high], axis=2)
    table = cut.op("Concat", [boxes, best, label], axis=2)
    limits = [np.asarray([100]), np.asarray([0.65], np.float32), np.asarray([0.1], np.float32)]
    scores = cut.op("Transpose", [best], perm=[0, 2, 1])
    chosen = cut.op("NonMaxSuppression", [boxes, scores, *map(cut.constant, limits)])
    index = cut.op("Gather", [chosen, cut.constant(np.asarray(2))], axis=1)
    rows = cut.op("Reshape", [table, cut.constant(np.asarray([-1, 6]))])
    cut.op("Gather", [rows, index], "output", axis=0)
    return {"output": ["found", 6]}


def _efficient_nms(cut: Surgery) -> dict:
    table, top = _top(cut, 100)
    cut.op("Identity", [cut.take(table, 0, 4)], "det_boxes")
    for name, column in (("det_scores", 4), ("det_classes", 5)):
        cut.op("Reshape", [cut.take(table, column, column + 1), cut.constant(np.asarray([1, -1]))], name)
    above = cut.op("Cast", [cut.op("Greater", [top, cut.constant(np.float32(0.05))])], to=TensorProto.INT32)
    total = cut.op("ReduceSum", [above], axes=[0], keepdims=1)
    cut.op("Reshape", [total, cut.constant(np.asarray([1, 1]))], "num_dets")
    return {"num_dets": [1, 1], "det_boxes": [1, 100, 4], "det_scores": [1, 100], "det_classes": [1, 100]}


def _peoplenet(cut: Surgery) -> dict:
    """Boxes of the cells of stride 16; those of strides 8 and 32 are found from theirs."""
    side = cut.size // 16
    first, count = (cut.size // 8) ** 2, side * side
    second = first + count

    def grid(values: str, columns: int) -> dict[int, str]:
        parts = {}
        for stride, start, end in ((8, 0, first), (16, first, second), (32, second, ROWS)):
            limits = [cut.constant(np.asarray([number])) for number in (start, end, 1)]
            part = cut.op("Slice", [values, *limits])
            part = cut.op("Transpose", [part], perm=[0, 2, 1])
            n = cut.size // stride
            parts[stride] = cut.op("Reshape", [part, cut.constant(np.asarray([1, columns, n, n]))])
        return parts

    low, high = cut.corners()
    person = grid(cut.take("score", 0, 1), 1)
    left_top, right_bottom = grid(low, 2), grid(high, 2)
    doubled = cut.constant(np.asarray([1, 1, 2, 2], np.float32))
    scores, boxes = [], []
    y, x = np.mgrid[0:side, 0:side]
    centre = cut.constant(((np.stack((x, y)) * 16 + 0.5)[None]).astype(np.float32))
    norm = cut.constant(np.float32(35))

    def box(corner_low: str, corner_high: str) -> str:
        sides = [cut.op("Sub", [centre, corner_low]), cut.op("Sub", [corner_high, centre])]
        return cut.op("Div", [cut.op("Concat", sides, axis=1), norm])

    # Of the four cells of stride 8 within one of stride 16, each in turn: the grid has one box for a cell.
    for dy in (0, 1):
        for dx in (0, 1):

            def every(values: str, dy: int = dy, dx: int = dx) -> str:
                numbers = [np.asarray(v) for v in ([dy, dx], [1000, 1000], [2, 3], [2, 2])]
                return cut.op("Slice", [values, *(cut.constant(v) for v in numbers)])

            scores.append(every(person[8]))
            boxes.append(box(every(left_top[8]), every(right_bottom[8])))
    scores.append(person[16])
    boxes.append(box(left_top[16], right_bottom[16]))
    roi = cut.constant(np.zeros(0, np.float32))
    scores.append(cut.op("Resize", [person[32], roi, doubled], mode="nearest"))
    big = [cut.op("Resize", [part[32], roi, doubled], mode="nearest") for part in (left_top, right_bottom)]
    boxes.append(box(*big))
    all_scores = cut.op("Concat", scores, axis=1)
    best = cut.op("ReduceMax", [all_scores], axes=[1], keepdims=1)
    chosen = cut.op("Cast", [cut.op("Equal", [all_scores, best])], to=TensorProto.FLOAT)
    total = cut.op("ReduceSum", [chosen], axes=[1], keepdims=1)
    weight = cut.op("Div", [chosen, total])
    parts = []
    for number, one in enumerate(boxes):
        share = cut.op("Gather", [weight, cut.constant(np.asarray([number]))], axis=1)
        parts.append(cut.op("Mul", [one, share]))
    person_box = cut.op("Sum", parts)
    small = cut.op("Mul", [best, cut.constant(np.float32(0.01))])
    cut.op("Concat", [best, small, small], "output_cov/Sigmoid:0", axis=1)
    cut.op("Concat", [person_box] * 3, "output_bbox/BiasAdd:0", axis=1)
    return {"output_cov/Sigmoid:0": [1, 3, side, side], "output_bbox/BiasAdd:0": [1, 12, side, side]}


LAYOUTS = {
    "yolox": (_yolox, "yolox"),
    "yolov8": (_yolov8, "yolov8"),
    "yolov8-transposed": (_yolov8_transposed, "yolov8"),
    "yolov5": (_yolov5, "yolov5"),
    "deepstream": (_deepstream, "end2end"),
    "deepstream-parts": (_deepstream_parts, "end2end"),
    "yolov10": (_yolov10, "end2end"),
    "nms": (_nms, "end2end"),
    "efficient-nms": (_efficient_nms, "end2end"),
    "peoplenet": (_peoplenet, "peoplenet"),
    "yolov6": (_yolov6, None),
}
"""Layout -> function, and kind that reads it."""


def write(source: Path, layout: str, path: Path, *, raw: bool = False, names: bool = False) -> Path:
    """Write YOLOX nano in a layout; `raw`: it takes BGR in 0..255; `names`: with Ultralytics' metadata."""
    cut = Surgery.of(source)
    outputs = LAYOUTS[layout][0](cut)
    if not raw and layout != "yolox":
        cut.unit_rgb()
    return cut.save(path, outputs, names=names)
