"""A mean over height and width becomes a pooling, and gives the same numbers; every other mean stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.engine.golden import golden_crops
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.onnxruntime import run_once

TAO = PROFILES["tao"]


def network(path: Path, nodes: list[onnx.NodeProto], *, opset: int, axes: list[int] | None = None) -> Path:
    """A convolution, and nodes from `maps` to `fc_pred`."""
    random = np.random.default_rng(1)
    weights = [numpy_helper.from_array(random.normal(size=(8, 3, 3, 3)).astype(np.float32), "w")]
    if axes is not None:
        weights.append(numpy_helper.from_array(np.asarray(axes, np.int64), "axes"))
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["made"], kernel_shape=[3, 3], strides=[8, 8]),
        helper.make_node("Relu", ["made"], ["maps"]),
        *nodes,
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", 3, 64, 32))]
    outputs = [helper.make_tensor_value_info("fc_pred", TensorProto.FLOAT, ("batch", 8))]
    graph = helper.make_graph(nodes, "means", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def mean(target: str, source: str = "maps", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("ReduceMean", [source], [target], **attributes)


FLAT = helper.make_node("Flatten", ["m"], ["fc_pred"], axis=1)
BECOMES = {
    "flat": ([mean("fc_pred", axes=[2, 3], keepdims=0)], 13, None),
    "from the end": ([mean("fc_pred", axes=[-1, -2], keepdims=0)], 13, None),
    "with its axes": ([mean("m", axes=[2, 3]), FLAT], 13, None),
    "axes as an input": (
        [helper.make_node("ReduceMean", ["maps", "axes"], ["fc_pred"], keepdims=0)], 18, [2, 3],
    ),
    "a name that is taken": (
        [
            helper.make_node("Identity", ["maps"], ["m/pooled"]), mean("m", "m/pooled", axes=[3]),
            mean("n", "m", axes=[2], keepdims=0), helper.make_node("Flatten", ["n"], ["n2"], axis=1),
            mean("m2", axes=[2, 3], keepdims=0), helper.make_node("Add", ["n2", "m2"], ["fc_pred"]),
        ],
        13, None,
    ),
}  # fmt: skip
STAYS = {
    "one axis after the other": ([mean("h", axes=[2]), mean("m", "h", axes=[3]), FLAT], 13, None),
    "not of a convolution": (
        [helper.make_node("Sigmoid", ["maps"], ["s"]), mean("m", "s", axes=[2, 3]), FLAT], 13, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "pooled"), [(kind, True) for kind in BECOMES] + [(kind, False) for kind in STAYS]
)
def test_the_numbers_stay(kind: str, pooled: bool, tmp_path: Path) -> None:
    nodes, opset, axes = (BECOMES | STAYS)[kind]
    path = network(tmp_path / "n.onnx", nodes, opset=opset, axes=axes)
    graph = prepare_reid(path, TAO)
    kinds = [node.op_type for node in onnx.load_model_from_string(graph.onnx).graph.node]
    assert ("GlobalAveragePool" in kinds) == pooled
    crops = golden_crops(*graph.input_size)
    expected = run_once(path.read_bytes(), TAO.apply(crops), "original")
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(run_once(graph.onnx, crops, "prepared") - expected).max() < 1e-6
