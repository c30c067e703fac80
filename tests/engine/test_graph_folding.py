"""Channel order and scale inside the first convolutions: the same numbers, and networks that forbid it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.engine.golden import golden_crops
from edge_agent.engine.graph.bare import bare_graph
from edge_agent.engine.graph.folding import FOLDED
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES, PreparedGraph
from edge_agent.engine.onnxruntime import run_once
from edge_agent.engine.precision.half import to_half
from tests import tiny_networks
from tests.conftest import REPO, SHARED

SIZE = 24, 16
IMAGENET = PROFILES["imagenet"]
STEM = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def weight(name: str, *shape: int, kind: type[np.floating[Any]] = np.float32) -> onnx.TensorProto:
    random = np.random.default_rng(len(name) + sum(shape))
    return numpy_helper.from_array(random.normal(size=shape).astype(kind), name)


def network(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    *,
    shape: tuple[str | int | None, ...] = ("batch", 3, *SIZE),
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Nodes from `input` to the maps `stem`, whose mean is the embedding."""
    nodes = [
        *nodes,
        helper.make_node("GlobalAveragePool", ["stem"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["fc_pred"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("input", kind, shape)]
    outputs = [helper.make_tensor_value_info("fc_pred", kind, ["batch", 8])]
    graph = helper.make_graph(nodes, "stem", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def conv(source: str, target: str = "stem", name: str = "w", **changes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, name], [target], **(STEM | changes))


def pool(kind: str, source: str, target: str, **changes: Any) -> onnx.NodeProto:
    return helper.make_node(
        kind, [source], [target], **({"kernel_shape": [2, 2], "strides": [2, 2]} | changes)
    )


W = weight("w", 8, 3, 3, 3)
FOLDS: dict[str, dict[str, Any]] = {
    "a convolution": {"nodes": [conv("input")], "weights": [W]},
    "means before it": {"nodes": [pool("AveragePool", "input", "a"), conv("a")], "weights": [W]},
    "padded means": {
        "nodes": [pool("AveragePool", "input", "a", pads=[1, 1, 1, 1], count_include_pad=1), conv("a")],
        "weights": [W],
    },
    "maxima before it": {
        "nodes": [pool("MaxPool", "input", "a"), helper.make_node("Identity", ["a"], ["b"]), conv("b")],
        "weights": [W],
    },
    "two of them": {
        "nodes": [
            conv("input", "left"), conv("input", "right", "v"),
            helper.make_node("Add", ["left", "right"], ["stem"]),
        ],
        "weights": [W, weight("v", 8, 3, 3, 3)],
    },
    "channels last": {
        "nodes": [helper.make_node("Transpose", ["input"], ["a"], perm=[0, 3, 1, 2]), conv("a")],
        "weights": [W],
        "shape": ("batch", *SIZE, 3),
    },
}  # fmt: skip
BRANCHES = helper.make_node(
    "If", ["yes"], ["extra"],
    **{
        f"{branch}_branch": helper.make_graph(
            [helper.make_node("ReduceMean", ["input"], [branch], axes=[1, 2, 3], keepdims=1)],
            branch, [], [helper.make_tensor_value_info(branch, TensorProto.FLOAT, None)],
        )
        for branch in ("then", "else")
    },
)  # fmt: skip
STAYS: dict[str, dict[str, Any]] = {
    "depthwise": {
        "nodes": [conv("input", "a", "g", group=3), conv("a")], "weights": [W, weight("g", 3, 1, 3, 3)],
    },
    "the same weight twice": {
        "nodes": [conv("input", "a"), conv("input", "b"), helper.make_node("Add", ["a", "b"], ["stem"])],
        "weights": [W],
    },
    "a computed weight": {
        "nodes": [helper.make_node("Neg", ["w"], ["m"]), conv("input", name="m")], "weights": [W],
    },
    "another reader": {
        "nodes": [
            conv("input", "a"), helper.make_node("ReduceMean", ["input"], ["m"], axes=[1, 2, 3], keepdims=1),
            helper.make_node("Add", ["a", "m"], ["stem"]),
        ],
        "weights": [W],
    },
    "a reader in a branch": {
        "nodes": [conv("input", "a"), BRANCHES, helper.make_node("Add", ["a", "extra"], ["stem"])],
        "weights": [W, numpy_helper.from_array(np.array(True), "yes")],
    },
    "means of many pixels": {
        "nodes": [pool("AveragePool", "input", "a", kernel_shape=[6, 4], strides=[1, 1]), conv("a")],
        "weights": [W],
    },
    "a nonlinear step": {"nodes": [helper.make_node("Sigmoid", ["input"], ["a"]), conv("a")], "weights": [W]},
}  # fmt: skip


def kinds(graph: PreparedGraph) -> list[str]:
    nodes = onnx.load_model_from_string(graph.onnx).graph.node
    return [node.op_type for node in nodes if node.name.startswith("edge_agent/")]


def crops(graph: PreparedGraph) -> NDArray[np.uint8]:
    noise = np.random.default_rng(5).integers(0, 256, (3, *graph.input_size, 3), dtype=np.uint8)
    plain = np.stack([np.full_like(noise[0], level) for level in (1, 255)])
    return np.concatenate((golden_crops(*graph.input_size), noise, plain))


def expected(graph: PreparedGraph, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    assert graph.profile is not None
    planes = graph.as_network_input(graph.profile.apply(pictures))
    rows = run_once(graph.source.read_bytes(), planes, "original").reshape(len(pictures), -1)
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def check(graph: PreparedGraph, within: float = 1e-5, *, plain: bool = True) -> None:
    pictures = crops(graph) if plain else crops(graph)[:-2]
    rows, original = run_once(graph.onnx, pictures, "prepared"), expected(graph, pictures)
    assert np.abs(rows - original).max() < within
    assert graph.profile is not None
    bare = run_once(bare_graph(graph).onnx, graph.profile.apply(pictures), "bare").astype(np.float64)
    bare /= np.linalg.norm(bare, axis=1, keepdims=True)
    assert np.abs(bare - original).max() < within


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
@pytest.mark.parametrize("name", FOLDS)
def test_the_weights_take_order_and_scale(name: str, profile: Any, tmp_path: Path) -> None:
    graph = prepare_reid(network(tmp_path / "n.onnx", **FOLDS[name]), profile)
    assert not {"Gather", "Mul"}.intersection(kinds(graph))
    assert kinds(graph).count("Sub") == int(profile.offsets.any())
    assert kinds(graph).count("Cast") == 2
    check(graph)


@pytest.mark.parametrize("name", STAYS)
def test_what_forbids_it_keeps_the_nodes(name: str, tmp_path: Path) -> None:
    graph = prepare_reid(network(tmp_path / "n.onnx", **STAYS[name]), IMAGENET)
    assert {"Gather", "Sub", "Mul"} <= set(kinds(graph))
    check(graph)


def test_a_normalisation_by_picture_lets_the_order_pass_and_not_the_scale(tmp_path: Path) -> None:
    # its epsilon is small beside pixels and large beside scaled ones
    nodes = [helper.make_node("InstanceNormalization", ["input", "scale", "bias"], ["a"]), conv("a")]
    path = network(tmp_path / "n.onnx", nodes, [W, weight("scale", 3), weight("bias", 3)])
    graph = prepare_reid(path, IMAGENET)
    assert "Gather" not in kinds(graph)
    assert "Mul" in kinds(graph)
    check(graph, plain=False)  # it has no numbers for pictures of one colour


def test_float16_weights_take_the_order_and_not_the_scale(tmp_path: Path) -> None:
    nodes, weights = [conv("input")], [weight("w", 8, 3, 3, 3, kind=np.float16)]
    path = network(tmp_path / "n.onnx", nodes, weights, kind=TensorProto.FLOAT16)
    graph = prepare_reid(path, IMAGENET)
    assert "Gather" not in kinds(graph)
    assert "Mul" in kinds(graph)
    check(graph, within=5e-3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    dilation=st.integers(1, 2),
    profile=st.sampled_from(list(PROFILES.values())),
)
def test_any_convolution(
    kernel: Any, strides: Any, pads: list[int], dilation: int, profile: Any, tmp_path: Path
) -> None:
    first = conv(
        "input", kernel_shape=kernel, strides=strides, pads=pads, dilations=[dilation, dilation]
    )  # fmt: skip
    graph = prepare_reid(network(tmp_path / "n.onnx", [first], [weight("w", 8, 3, *kernel)]), profile)
    assert not {"Gather", "Mul"}.intersection(kinds(graph))
    check(graph)


def test_tensors_without_their_factors_have_other_names_until_they_are_back(tmp_path: Path) -> None:
    path = network(tmp_path / "n.onnx", **FOLDS["means before it"])
    graph = prepare_reid(path, IMAGENET)

    def tensors(data: bytes) -> set[str]:
        return {name for node in onnx.load_model_from_string(data).graph.node for name in node.output}

    assert {f"{FOLDED}input", f"{FOLDED}a", "stem"} <= tensors(graph.onnx)
    assert not {"input", "a"} & tensors(graph.onnx)
    assert {"network/input", "a", "stem"} <= tensors(bare_graph(graph).onnx)
    original = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    for one in onnx.load_model_from_string(bare_graph(graph).onnx).graph.initializer:
        np.testing.assert_allclose(numpy_helper.to_array(one), original[one.name], rtol=3e-7)


def test_float16_of_a_folded_network_is_as_near_as_before(tmp_path: Path) -> None:
    graph = prepare_reid(tiny_networks.convolutional(tmp_path / "c.onnx"), IMAGENET)
    pictures = crops(graph)
    rows = run_once(to_half(graph).onnx, pictures, "half")
    assert (rows * expected(graph, pictures)).sum(axis=1).min() > 0.99999


REAL = {
    "default.onnx": ("tao", "400eee8eebd6f633"),
    "osnet_x0_25_msmt17.onnx": ("imagenet", "8051321e1e7fb903"),
    "person-reidentification-retail-0267_gnfix.onnx": ("openvino-raw", "684ea89ae183b8be"),
}
"""Networks, their profiles, and the ids that galleries have had since before the weights took the scale."""


@pytest.mark.parametrize("name", REAL)
def test_real_networks_keep_their_numbers_and_their_space(name: str) -> None:
    path = REPO / "engines" / name if name == "default.onnx" else SHARED / "models" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    profile, space = REAL[name]
    graph = prepare_reid(path, PROFILES[profile])
    assert graph.space == space
    assert not {"Gather", "Mul"}.intersection(kinds(graph))
    check(graph)
