"""The preprocess profile of a network that nobody names: stated, known, recognised, or an error."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edge_agent.core.config import EngineSettings
from edge_agent.core.errors import ConfigError
from edge_agent.engine.models import choose_model, default_model
from edge_agent.engine.profiles import profile_of


def network(path: Path, first: str = "Relu", **metadata: str) -> Path:
    """A network whose first layer is `first`."""
    inputs, weights = ["input"], []
    if first == "InstanceNormalization":
        inputs += ["scale", "bias"]
        weights = [helper.make_tensor(name, TensorProto.FLOAT, [3], [1.0] * 3) for name in inputs[1:]]
    nodes = [
        helper.make_node(first, inputs, ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["output"]),
    ]
    pictures = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 256, 128])
    rows = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])
    model = helper.make_model(helper.make_graph(nodes, "net", [pictures], [rows], weights))
    model.opset_import[0].version = 17
    model.ir_version = 8
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_the_manifest_wins(tmp_path: Path):
    path = network(tmp_path / "net.onnx", preprocess_profile="tao")
    path.with_suffix(".json").write_text(json.dumps({"preprocess": "swin"}))
    assert profile_of(path) == ("swin", "stated in net.json")


def test_known_files_need_no_manifest(osnet_onnx: Path, omz_onnx: Path, tmp_path: Path):
    assert profile_of(osnet_onnx) == ("imagenet", "a known network")
    assert profile_of(omz_onnx).name == "openvino-raw"
    shipped = default_model()
    assert shipped is not None
    (tmp_path / "copy.onnx").write_bytes(shipped.read_bytes())
    assert profile_of(tmp_path / "copy.onnx") == ("tao", "a known network")


def test_an_export_of_this_project_states_its_profile(tmp_path: Path):
    path = network(tmp_path / "net.onnx", preprocess_profile="imagenet")
    assert profile_of(path) == ("imagenet", "stated in the file")


def test_a_first_layer_that_normalises_takes_raw_pixels(tmp_path: Path):
    path = network(tmp_path / "net.onnx", "InstanceNormalization", preprocess_profile="custom")
    assert profile_of(path) == ("openvino-raw", "its first layer normalises")


def test_an_unknown_network_is_an_error_that_lists_the_profiles(tmp_path: Path):
    path = network(tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match=r"net\.onnx.*--preprocess.*imagenet, openvino-raw, swin, tao"):
        choose_model(EngineSettings(model=path), tmp_path)
    assert choose_model(EngineSettings(model=path, preprocess="tao"), tmp_path).preprocess == "tao"
