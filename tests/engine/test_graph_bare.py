"""The network with TAO's names, cut from its prepared graph: names, shapes, rows, every kind of network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from edge_agent.core.errors import ModelError
from edge_agent.engine.golden import golden_crops, least_cosine
from edge_agent.engine.graph.bare import bare_graph
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES, PreparedGraph
from edge_agent.engine.onnxruntime import run_once
from edge_agent.engine.precision.half import to_half
from edge_agent.engine.profiles import profile_of
from edge_agent.offline.calibrate.quantise import quantise
from edge_agent.offline.calibrate.ranges import ranges
from tests import tiny_networks


def bare_rows(graph: PreparedGraph, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    assert graph.profile is not None
    return run_once(bare_graph(graph).onnx, graph.profile.apply(crops), "bare")


def original_rows(graph: PreparedGraph, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    assert graph.profile is not None
    planes = graph.as_network_input(graph.profile.apply(crops))
    found = run_once(graph.source.read_bytes(), planes, "original")
    return found.reshape(len(crops), -1)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"names": ("images", "output")},
        {"names": ("crops", "embedding")},
        {"names": ("data", "fc_pred")},
        {"shape": ("batch", 256, 128, 3)},
        {"shape": ("n", 3, 128, 64)},
        {"half": True},
        {"opset": 9},
        {"opset": 18},
        {"weights_as_inputs": True},
        {"dimension": 2},
        {"scale": 1e3},
    ],
    ids=str,
)
@pytest.mark.parametrize("profile", ["tao", "openvino-raw"])
def test_it_is_the_network_with_other_names(kind: dict[str, Any], profile: str, tmp_path: Path) -> None:
    graph = prepare_reid(tiny_networks.reid(tmp_path / "m.onnx", **kind), PROFILES[profile])
    bare = bare_graph(graph)
    session = onnxruntime.InferenceSession(bare.onnx, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    height, width = graph.input_size
    assert (taken.name, taken.type, taken.shape) == ("input", "tensor(float)", ["batch", 3, height, width])
    assert (given.name, given.type, given.shape) == ("fc_pred", "tensor(float)", ["batch", graph.dimension])
    assert bare.pictures == ("input", (3, height, width))
    assert (bare.normalised, bare.bare, bare.space) == (False, True, graph.space)

    crops = golden_crops(height, width)
    rows = bare_rows(graph, crops)
    assert rows.dtype == np.float32
    tolerance = {"rtol": 2e-3, "atol": 1e-2} if kind.get("half") else {"rtol": 1e-5, "atol": 1e-4}
    assert np.allclose(rows, original_rows(graph, crops), **tolerance)
    assert np.allclose(rows[2:3], bare_rows(graph, crops[2:3]), **tolerance)


@pytest.mark.parametrize("taken", ["input", "fc_pred"])
def test_a_weight_may_have_a_name_of_tao(taken: str, tmp_path: Path) -> None:
    path = tiny_networks.reid(
        tmp_path / "m.onnx",
        names=("images", "rows"),
        extra_nodes=[onnx.helper.make_node("Mul", ["mixed", taken], ["rows"])],
        extra_weights=[onnx.numpy_helper.from_array(np.full((1, 8), 2, np.float32), taken)],
    )
    graph = prepare_reid(path, PROFILES["tao"])
    crops = golden_crops(256, 128)
    assert np.allclose(bare_rows(graph, crops), original_rows(graph, crops), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("names", [("input", "fc_pred"), ("images", "rows")])
def test_branches_of_an_if_read_what_is_renamed(names: tuple[str, str], tmp_path: Path) -> None:
    def branch(factor: str) -> onnx.GraphProto:
        kind = onnx.TensorProto.FLOAT
        made = onnx.helper.make_tensor_value_info(f"{factor}_made", kind, ["batch", 8])
        return onnx.helper.make_graph(
            [onnx.helper.make_node("Mul", ["mixed", factor], [made.name])], factor, [], [made]
        )

    constants = {"yes": np.array(True), "two": np.float32([[2]]), "three": np.float32([[3]])}
    choice = onnx.helper.make_node(
        "If", ["yes"], [names[1]], then_branch=branch("two"), else_branch=branch("three")
    )
    path = tiny_networks.reid(
        tmp_path / "m.onnx",
        names=names,
        extra_nodes=[choice],
        extra_weights=[onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    graph = prepare_reid(path, PROFILES["tao"])
    crops = golden_crops(256, 128)
    assert np.allclose(bare_rows(graph, crops), original_rows(graph, crops), rtol=1e-5, atol=1e-4)


def test_nothing_of_the_preparation_is_left(tmp_path: Path) -> None:
    graph = prepare_reid(tiny_networks.reid(tmp_path / "m.onnx"), PROFILES["imagenet"])
    body = onnx.load_model_from_string(bare_graph(graph).onnx).graph
    assert [node.op_type for node in body.node] == [
        "Identity", "Cast", "AveragePool", "Flatten", "MatMul", "Identity",
    ]  # fmt: skip
    assert [weight.name for weight in body.initializer] == ["mix"]
    assert len(body.input) == len(body.output) == 1


def test_every_precision_keeps_its_rows(tmp_path: Path) -> None:
    graph = prepare_reid(tiny_networks.convolutional(tmp_path / "c.onnx"), PROFILES["imagenet"])
    crops = golden_crops(*graph.input_size)
    int8 = quantise(graph, ranges(graph, crops))
    for one, least in ((graph, 0.999999), (to_half(graph), 0.9999), (int8, 0.99)):
        assert least_cosine(bare_rows(one, crops), run_once(one.onnx, crops, "prepared")) > least
        assert bare_graph(one).precision == one.precision
    kinds = {node.op_type for node in onnx.load_model_from_string(bare_graph(int8).onnx).graph.node}
    assert "QuantizeLinear" in kinds


def test_the_agent_takes_it_again_and_knows_its_profile(tmp_path: Path) -> None:
    graph = prepare_reid(tiny_networks.reid(tmp_path / "m.onnx"), PROFILES["swin"])
    again = tmp_path / "again.onnx"
    again.write_bytes(bare_graph(graph).onnx)
    assert profile_of(again).name == "swin"
    crops = golden_crops(*graph.input_size)
    rows = run_once(prepare_reid(again, PROFILES["swin"]).onnx, crops, "again")
    assert np.allclose(rows, run_once(graph.onnx, crops, "first"), atol=1e-6)


def test_what_is_no_prepared_network_is_refused(tmp_path: Path) -> None:
    raw = prepare_reid(tiny_networks.reid(tmp_path / "m.onnx"), PROFILES["tao"], normalise=False)
    for graph in (raw, bare_graph(prepare_reid(tmp_path / "m.onnx", PROFILES["tao"]))):
        with pytest.raises(ModelError, match="m is not a prepared re-identification network"):
            bare_graph(graph)
