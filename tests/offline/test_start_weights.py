"""Start weights from an earlier default model: the unfolded backbone computes what its file computes."""

from __future__ import annotations

# ruff: noqa: E402  # whether torch is there decides whether the rest can be imported
import importlib.util
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[train]'")
pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[train]'")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from edge_agent.engine.onnxruntime import run_once
from edge_agent.offline.train.checkpoint import load_pretrained
from edge_agent.offline.train.network import Deployed, build_network
from edge_agent.offline.train.spec_file import load_spec

ENGINES = Path(__file__).resolve().parents[2] / "engines"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("start_weights", ENGINES / "start_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_backbone_of_the_default_model_can_be_trained_on(tmp_path: Path):
    rng = np.random.default_rng(0)
    crops = tmp_path / "crops"
    crops.mkdir()
    for number in range(8):
        blocks = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(crops / f"{number}.jpg"), cv2.resize(blocks, (128, 256)))
    target = tmp_path / "weights.pth"
    assert script().main(str(ENGINES / "default.onnx"), str(target), str(crops)) == 0

    spec = load_spec(ENGINES / "default.yaml")
    network = build_network(spec.model, spec.edge_agent, 2).eval()
    load_pretrained(network, target, choice="imagenet")
    graph = onnx.load(ENGINES / "default.onnx").graph
    arrays = {one.name: onnx.numpy_helper.to_array(one).copy() for one in graph.initializer}
    (linear,) = [arrays[node.input[1]] for node in graph.node if node.op_type == "MatMul"]
    with torch.no_grad():
        network.embedding.weight.copy_(torch.from_numpy(linear.T.copy()))
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(network.neck, name).data.copy_(torch.from_numpy(arrays[f"network.neck.{name}"]))
    pictures = rng.standard_normal((4, 3, 256, 128), np.float32)
    (expected,) = [run_once((ENGINES / "default.onnx").read_bytes(), pictures, "default")]
    with torch.inference_mode():
        found = Deployed(network, spec.edge_agent.input_pool)(torch.from_numpy(pictures)).numpy()
    assert np.abs(found - expected).max() < 1e-3


def test_a_file_with_other_layers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    some = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "ab"]
    other = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", some[:1], some[1:])), other)
    assert script().main(str(other), str(tmp_path / "weights.pth"), str(tmp_path)) == 1
    assert "other layers" in capsys.readouterr().err
