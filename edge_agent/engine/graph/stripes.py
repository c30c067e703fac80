"""`colour-stripes`: an embedding of clothing colours as an ONNX graph, for use without a trained network.

Nothing in it is learned. Each pixel is shared among 78 prototype colours (hue, saturation and value on a
regular grid, and greys), counted in six overlapping horizontal stripes with the highest weight in the middle
columns. Square roots of the counts, minus the mean of their stripe, make the vector. It separates people in
different clothes, not people in similar ones: for demonstrations and tests, chosen by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.manifest import write_atomic
from edge_agent.engine.graph.nodes import make_node
from edge_agent.engine.graph.prepared import PROFILES

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

STRIPES_NAME = "colour-stripes"
"""Name of the model in settings and events; also the stem of its file."""
STRIPES_PROFILE = "tao"
"""Preprocess profile that the graph expects."""

_SIZE = (256, 128)
_POOL = 8
"""Pixels per side that are averaged first: colours, not texture."""
_STRIPES = 6
_HUES = 12
_SATURATIONS = (0.3, 0.7)
_VALUES = (0.25, 0.55, 0.85)
_GREYS = 6
_SOFTNESS = 0.1
"""Width of a prototype's share, about half the distance between neighbouring prototypes."""
_COLUMN_WIDTH = 0.22
"""Standard deviation of the columns' weight, as part of the width: the background counts less."""
_DARK = 0.1
"""Added to the value in saturation = (max - min) / max: the colour of dark pixels is noise."""
_OPSET = 13


def write_stripe_model(path: Path) -> Path:
    """Write the model as ONNX, `[N, 3, 256, 128]` (profile `tao`) -> `[N, 468]`; return `path`.

    The file is the same on every machine, so the embedding space is too.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    _add_nodes(graph)
    crops = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *_SIZE])
    size = _STRIPES * len(_prototypes())
    rows = helper.make_tensor_value_info("stripes", TensorProto.FLOAT, ["batch", size])
    body = helper.make_graph(graph.nodes, STRIPES_NAME, [crops], [rows], graph.weights)
    model = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="edge-agent", ir_version=8
    )
    onnx.checker.check_model(model)
    write_atomic(Path(path), model.SerializeToString(deterministic=True))
    return Path(path)


class _Graph:
    """Nodes and weights; each call adds one and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, name: str, value: NDArray[np.generic]) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def number(self, name: str, value: float) -> str:
        return self.weight(name, np.full((1, 1, 1, 1), value, np.float32))

    def add(self, kind: str, inputs: list[str], output: str, **attributes: int | list[int]) -> str:
        self.nodes.append(make_node(kind, inputs, output, output, **attributes))
        return output


def _add_nodes(graph: _Graph) -> None:
    cells = graph.weight("cells", np.asarray([0, 3, -1], np.int64))
    flat = graph.add("Reshape", [_colours(graph), cells], "flat")
    pixels = graph.add("Transpose", [flat], "pixels", perm=[0, 2, 1])
    weights, bias = _prototype_layer()
    dots = graph.add("MatMul", [pixels, graph.weight("prototypes", weights)], "dots")
    closeness = graph.add("Add", [dots, graph.weight("prototype_bias", bias)], "closeness")
    shares = graph.add("Softmax", [closeness], "shares", axis=2)
    counts = graph.add("MatMul", [graph.weight("stripe_weights", _stripe_weights()), shares], "counts")
    roots = graph.add("Sqrt", [counts], "roots")
    mean = graph.add("ReduceMean", [roots], "stripe_mean", axes=[2], keepdims=1)
    graph.add("Flatten", [graph.add("Sub", [roots, mean], "centred")], "stripes", axis=1)


def _colours(graph: _Graph) -> str:
    """`[N, 3, 32, 16]`: hue as a direction with saturation as its length, and value."""
    profile = PROFILES[STRIPES_PROFILE]
    wide = (1, 3, 1, 1)
    std = graph.weight("std", np.asarray(profile.std, np.float32).reshape(wide))
    mean = graph.weight("mean", np.asarray(profile.mean, np.float32).reshape(wide))
    rgb = graph.add("Add", [graph.add("Mul", ["input", std], "spread"), mean], "rgb")
    small = graph.add("AveragePool", [rgb], "small", kernel_shape=[_POOL] * 2, strides=[_POOL] * 2)
    high = graph.add("ReduceMax", [small], "high", axes=[1], keepdims=1)
    low = graph.add("ReduceMin", [small], "low", axes=[1], keepdims=1)
    half_root3 = 3**0.5 / 2
    opponents = np.asarray([[1, -0.5, -0.5], [0, half_root3, -half_root3]], np.float32).reshape(2, 3, 1, 1)
    chroma = graph.add("Conv", [small, graph.weight("opponents", opponents)], "chroma")
    length = graph.add("ReduceL2", [chroma], "chroma_length", axes=[1], keepdims=1)
    spread = graph.add("Sub", [high, low], "range")
    bright = graph.add("Add", [high, graph.number("dark", _DARK)], "bright")
    saturation = graph.add("Div", [spread, bright], "sat")
    safe = graph.add("Add", [length, graph.number("tiny", 1e-6)], "safe_length")
    hue = graph.add("Mul", [chroma, graph.add("Div", [saturation, safe], "gain")], "hue")
    return graph.add("Concat", [hue, high], "colours", axis=1)


def _prototypes() -> NDArray[np.float32]:
    """`(78, 3)` float32 in the same coordinates as `_colours`."""
    angles = [2 * np.pi * step / _HUES for step in range(_HUES)]
    tinted = [
        (saturation * np.cos(angle), saturation * np.sin(angle), value)
        for value in _VALUES
        for saturation in _SATURATIONS
        for angle in angles
    ]
    greys = [(0.0, 0.0, (step + 0.5) / _GREYS) for step in range(_GREYS)]
    # Rounded, since the last bit of a cosine differs between machines and would change the file.
    return np.round(np.asarray([*tinted, *greys]), 6).astype(np.float32)


def _prototype_layer() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`(3, 78)` and `(78,)`: their softmax is a Gaussian share, |x - p|^2 without |x|^2, which cancels."""
    prototypes = _prototypes().astype(np.float64)
    weights = prototypes.T / _SOFTNESS**2
    bias = -(prototypes**2).sum(axis=1) / (2 * _SOFTNESS**2)
    return weights.astype(np.float32), bias.astype(np.float32)


def _stripe_weights() -> NDArray[np.float32]:
    """`(6, 512)` float32 weights of the cells of each stripe, sum 1.

    Stripes are overlapping triangles, so that a shifted box changes the counts only a little.
    """
    height, width = (side // _POOL for side in _SIZE)
    place = (np.arange(height) + 0.5) / height * _STRIPES
    rows = np.maximum(0.0, 1.0 - np.abs(place[None, :] - np.arange(_STRIPES)[:, None] - 0.5))
    across = (np.arange(width) + 0.5) / width - 0.5
    columns = np.exp(-(across**2) / (2 * _COLUMN_WIDTH**2))
    weights = (rows[:, :, None] * columns[None, None, :]).reshape(_STRIPES, -1)
    weights = np.round(weights / weights.sum(axis=1, keepdims=True), 7)
    return np.asarray(weights, np.float32)
