"""The graph that ONNX Runtime runs gives the rows of the prepared one, with fewer and smaller nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.engine.golden import golden_crops
from edge_agent.engine.graph.hosted import hosted_graph
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES, PreparedGraph
from edge_agent.engine.onnxruntime import run_once
from tests.conftest import REPO, SHARED

SIZE = 24, 16
REAL = [
    REPO / "engines/default.onnx",
    SHARED / "models/osnet_x0_25_msmt17.onnx",
    SHARED / "models/person-reidentification-retail-0267_gnfix.onnx",
]
MEANS: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}


def network(path: Path, *, scale: float = 1.0, kind: str = "AveragePool", **changes: Any) -> Path:
    """Means of 2 x 2 pixels, a convolution, and rows of one number for each of its channels."""
    random = np.random.default_rng(4)
    weights = random.normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node(kind, ["input"], ["small"], **(MEANS | changes)),
        helper.make_node("Conv", ["small", "w"], ["maps"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Mul", ["flat", "scale"], ["fc_pred"]),
    ]
    given = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.asarray(scale, np.float32), "scale"),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, *SIZE])]
    outputs = [helper.make_tensor_value_info("fc_pred", TensorProto.FLOAT, ["batch", 8])]
    graph = helper.make_graph(nodes, "means", inputs, outputs, given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def kinds(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(data).graph.node]


def both(graph: PreparedGraph) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    noise = np.random.default_rng(5).integers(0, 256, (3, *graph.input_size, 3), dtype=np.uint8)
    crops = np.concatenate((golden_crops(*graph.input_size), noise))
    return run_once(graph.onnx, crops, "prepared"), run_once(hosted_graph(graph), crops, "hosted")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_networks_give_the_same_rows(path: Path, profile: Any) -> None:
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    graph = prepare_reid(path, profile)
    prepared, hosted = both(graph)
    assert np.abs(prepared - hosted).max() < 1e-5
    assert len(kinds(hosted_graph(graph))) == len(kinds(graph.onnx)) - 4


@pytest.mark.parametrize("name", ["tao", "imagenet", "openvino-raw"])
def test_the_mean_is_subtracted_from_means_of_pixels(name: str, tmp_path: Path) -> None:
    graph = prepare_reid(network(tmp_path / "n.onnx"), PROFILES[name])
    order = kinds(hosted_graph(graph))
    if "Sub" in kinds(graph.onnx):
        assert order.index("Sub") == order.index("AveragePool") + 1
    prepared, hosted = both(graph)
    assert np.abs(prepared - hosted).max() < 1e-6


@pytest.mark.parametrize(
    "changes", [{"pads": [1, 1, 1, 1]}, {"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"}, {"kind": "MaxPool"}]
)
def test_it_stays_before_other_poolings(changes: dict[str, Any], tmp_path: Path) -> None:
    graph = prepare_reid(network(tmp_path / "n.onnx", **changes), PROFILES["tao"])
    order = kinds(hosted_graph(graph))
    assert order.index("Sub") < order.index(changes.get("kind", "AveragePool"))
    prepared, hosted = both(graph)
    assert np.abs(prepared - hosted).max() < 1e-6


@pytest.mark.parametrize(("scale", "length"), [(0.0, 0.0), (1e-30, 0.0), (1e-5, 1.0), (1e15, 1.0)])
def test_a_row_without_length_stays_without(scale: float, length: float, tmp_path: Path) -> None:
    graph = prepare_reid(network(tmp_path / "n.onnx", scale=scale), PROFILES["tao"])
    for rows in both(graph):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), length, atol=1e-5)


def test_rows_that_are_no_numbers_stay_so(tmp_path: Path) -> None:
    graph = prepare_reid(network(tmp_path / "n.onnx", scale=3e38), PROFILES["openvino-raw"])
    for rows in both(graph):
        assert np.isnan(rows).any(axis=1).all()


def test_other_precisions_and_rows_of_any_length_stay(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx")
    graph = prepare_reid(path, PROFILES["tao"])
    assert hosted_graph(replace(graph, precision="int8")) is graph.onnx
    raw = prepare_reid(path, PROFILES["openvino-raw"], normalise=False)
    assert hosted_graph(raw) is raw.onnx
