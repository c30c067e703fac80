"""Ranges, Q/DQ placement, typed FP16 and sensitivity, on a small ResNet and on the real networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from edge_agent.core.errors import ModelError, NonFiniteEmbedding
from edge_agent.engine.golden import golden_crops
from edge_agent.engine.graph.folding import FOLDED
from edge_agent.engine.graph.nodes import Block
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PreparedGraph, profile_named
from edge_agent.engine.onnxruntime import run_once
from edge_agent.engine.precision.half import kept_in_float32, to_half
from edge_agent.engine.precision.scales import Scales, read_cache
from edge_agent.offline.calibrate import ranges as ranges_module
from edge_agent.offline.calibrate import sensitivity
from edge_agent.offline.calibrate.quantise import implicit_scales, placement, quantisable, quantise
from edge_agent.offline.calibrate.ranges import observe, ranges
from edge_agent.offline.calibrate.sample import draw
from edge_agent.offline.calibrate.sensitivity import Loss, blocks, choose_keep, cosines, measure
from tests import tiny_networks
from tests.conftest import REPO


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> PreparedGraph:
    path = tiny_networks.resnet(tmp_path_factory.mktemp("net") / "resnet.onnx", gate=True, depthwise=True)
    return prepare_reid(path, profile_named("tao"))


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    figures = golden_crops(64, 32)
    noise = np.random.default_rng(0).integers(-30, 30, (12, 64, 32, 3))
    return np.clip(np.tile(figures, (3, 1, 1, 1)) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scales(small: PreparedGraph, crops: NDArray[np.uint8]) -> Scales:
    return ranges(small, crops)


def embed(prepared: PreparedGraph, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    return run_once(prepared.onnx, crops, prepared.name)


class Reader(CalibrationDataReader):
    def __init__(self, crops: NDArray[np.uint8]) -> None:
        self.waiting = [crops]

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return {"crops": self.waiting.pop()} if self.waiting else None


# --- ranges ---------------------------------------------------------------------------------------


def test_minmax_is_what_onnx_runtimes_calibrator_finds(
    small: PreparedGraph, crops: NDArray[np.uint8], tmp_path: Path
) -> None:
    (tmp_path / "net.onnx").write_bytes(small.onnx)
    reference = create_calibrator(
        tmp_path / "net.onnx",
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"symmetric": True},
    )
    reference.collect_data(Reader(crops))
    expected = {name: float(np.max(found.range_value[1])) for name, found in reference.compute_data().items()}
    reported: list[int] = []
    found = ranges(small, crops, method="minmax", advance=reported.append)
    assert dict(found.amax) == pytest.approx(expected, rel=1e-5)
    assert sum(reported) == len(crops)
    assert {f"{FOLDED}input", "edge_agent/centred", "/conv1/Conv_output_0", "embedding"} <= found.amax.keys()


def test_every_tensor_has_a_range_no_larger_than_its_largest_value(
    small: PreparedGraph, crops: NDArray[np.uint8]
) -> None:
    largest = ranges(small, crops, method="minmax").amax
    for method in ("percentile", "entropy"):
        found = ranges(small, crops, method=method).amax
        assert found.keys() == largest.keys()
        assert all(0 < found[name] <= largest[name] * (1 + 1e-6) for name in found)


def test_percentile_leaves_out_the_stated_share(
    small: PreparedGraph, crops: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges_module, "PERCENTILE", 90.0)
    monkeypatch.setattr(ranges_module, "BATCH", len(crops))
    found = ranges(small, crops, method="percentile").amax
    values = next(observe(small, crops))
    for name in (f"{FOLDED}input", "/conv1/Conv_output_0", "/layer2.0/Add_output_0"):
        below = float(np.mean(np.abs(values[name]) <= found[name] * (1 + 1e-6)))
        assert 0.9 <= below <= 0.91


def test_order_and_batches_change_nothing(
    small: PreparedGraph, crops: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ranges(small, crops)
    monkeypatch.setattr(ranges_module, "BATCH", 5)
    two = ranges(small, crops[::-1].copy())
    assert dict(two.amax) == pytest.approx(dict(one.amax), rel=1e-3)


def test_a_network_that_gives_nan_is_refused(tmp_path: Path) -> None:
    net = prepare_reid(tiny_networks.undefined_for_dark(tmp_path / "n.onnx"), profile_named("openvino-raw"))
    with pytest.raises(NonFiniteEmbedding, match=r"tensors.*NaN"):
        ranges(net, np.zeros((2, 256, 128, 3), np.uint8))


def test_a_dead_tensor_has_no_range(tmp_path: Path) -> None:
    net = prepare_reid(tiny_networks.reid(tmp_path / "n.onnx"), profile_named("openvino-raw"))
    dark = np.zeros((2, 256, 128, 3), np.uint8)
    assert "grid" not in ranges(net, dark).amax
    light = np.full_like(dark, 9)
    assert "grid" in ranges(net, light).amax


def test_ranges_make_a_calibration_cache(scales: Scales) -> None:
    found = read_cache(scales.cache(100300, "EntropyCalibration2"))
    assert found.amax == pytest.approx(dict(scales.amax), rel=1e-6)


def test_the_cache_leaves_out_what_stays_in_higher_precision(small: PreparedGraph, scales: Scales) -> None:
    found = implicit_scales(small, scales, keep=["/layer1.0/conv2/Conv", "/layer1.0/conv1/Conv"])
    gone = scales.amax.keys() - found.amax.keys()
    assert gone == {
        "/gate/pool/GlobalAveragePool_output_0",
        "/gate/relu/Relu_output_0",
        "/layer1.0/relu/Relu_output_0",  # of conv2; what conv1 reads, downsample reads too
        "/layer2.0/relu_2/Relu_output_0",  # read by the depthwise convolution
        "/flat/Flatten_output_0",  # read by the final product
    }
    assert found.method == scales.method
    with pytest.raises(ModelError, match="nothing"):
        implicit_scales(small, scales, keep=quantisable(small))


# --- placement ------------------------------------------------------------------------------------


def test_layers_in_higher_precision(small: PreparedGraph) -> None:
    names = quantisable(small)
    assert len(names) == 12  # 1 + 2 x 3 + 1 + 3 + 1
    assert "/layer1.0/downsample/Conv" in names
    assert not [name for name in names if "gate" in name or "fc" in name or "dw" in name]


def test_placement_is_as_tensorrt_requires(
    small: PreparedGraph, scales: Scales, crops: NDArray[np.uint8]
) -> None:
    int8 = quantise(small, scales)
    found = placement(int8.onnx)
    assert found.fits_tensorrt
    assert (found.in_int8, found.weights, found.weights_per_channel) == (12, 12, 12)
    assert (found.residuals, found.residuals_quantised, found.split) == (3, 3, 0)
    assert found.outputs_quantised == 2  # the two downsampling skip paths
    assert found.symmetric
    assert json.loads(json.dumps(found.as_json()))["quantise"] == found.quantise
    assert (int8.precision, int8.space, int8.input_size) == ("int8", small.space, small.input_size)
    onnx.checker.check_model(onnx.load_model_from_string(int8.onnx), full_check=True)
    for count in (1, 5):  # the batch is still free
        rows = embed(int8, crops[:count])
        assert np.sum(rows * embed(small, crops[:count]), axis=1).min() > 0.98


def test_main_path_of_a_sum_comes_straight_from_its_convolution(small: PreparedGraph, scales: Scales) -> None:
    model = onnx.load_model_from_string(quantise(small, scales).onnx)
    maker = {name: node for node in model.graph.node for name in node.output}
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    assert sorted(
        maker[name].name for node in sums for name in node.input if maker[name].op_type == "Conv"
    ) == [
        "/layer1.0/conv3/Conv",
        "/layer1.1/conv3/Conv",
        "/layer2.0/conv3/Conv",
    ]


def test_scales_in_the_graph_are_those_given(small: PreparedGraph, scales: Scales) -> None:
    model = onnx.load_model_from_string(quantise(small, scales).onnx)
    values = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    seen = 0
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in values:
            assert float(values[node.input[1]]) == pytest.approx(scales.scale(node.input[0]), rel=1e-6)
            assert values[node.input[2]].dtype == np.int8
            seen += 1
    assert seen == 12


def test_plain_settings_would_not_fit(small: PreparedGraph, crops: NDArray[np.uint8], tmp_path: Path) -> None:
    """The check finds the effect of ONNX Runtime's defaults: Q/DQ between convolution and activation."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    (tmp_path / "net.onnx").write_bytes(small.onnx)
    quantize_static(
        tmp_path / "net.onnx",
        tmp_path / "int8.onnx",
        Reader(crops),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "QDQKeepRemovableActivations": True},
    )
    found = placement((tmp_path / "int8.onnx").read_bytes())
    assert not found.fits_tensorrt
    assert found.split > 0


def test_kept_nodes_and_nodes_without_a_range_stay(small: PreparedGraph, scales: Scales) -> None:
    keep = ("/conv1/Conv", "/layer2.0/conv2/Conv")
    assert placement(quantise(small, scales, keep=keep).onnx).in_int8 == 10
    fewer = {name: amax for name, amax in scales.amax.items() if name != f"{FOLDED}input"}
    assert placement(quantise(small, dataclasses.replace(scales, amax=fewer)).onnx).in_int8 == 11


def test_refusals_describe_the_fault(small: PreparedGraph, scales: Scales) -> None:
    with pytest.raises(ModelError, match="no quantisable node 'nonsense'"):
        quantise(small, scales, keep=["nonsense"])
    with pytest.raises(ModelError, match="nothing"):
        quantise(small, scales, keep=quantisable(small))
    with pytest.raises(ModelError, match="another graph"):
        quantise(small, dataclasses.replace(scales, model_sha256="0" * 64))
    half = dataclasses.replace(small, half=True)
    with pytest.raises(ModelError, match="float32 export"):
        quantise(half, scales)
    with pytest.raises(ModelError, match="FP32 graph"):
        ranges(quantise(small, scales), np.zeros((1, 64, 32, 3), np.uint8))


def test_nodes_without_names_and_an_old_opset(tmp_path: Path, crops: NDArray[np.uint8]) -> None:
    path = tiny_networks.resnet(tmp_path / "net.onnx", named=False)
    model = onnx.load(path)
    model.opset_import[0].version = 11
    onnx.save(model, path)
    net = prepare_reid(path, profile_named("tao"))
    assert len({block.name for block in blocks(net)}) == 4
    int8 = quantise(net, ranges(net, crops))
    assert placement(int8.onnx).fits_tensorrt
    assert np.sum(embed(int8, crops) * embed(net, crops), axis=1).min() > 0.98


# --- float16 --------------------------------------------------------------------------------------


def test_float16_inside_and_float32_around(small: PreparedGraph, crops: NDArray[np.uint8]) -> None:
    half = to_half(small)
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(half.onnx), strict_mode=True)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert kinds["/layer1.0/Add_output_0"] == onnx.TensorProto.FLOAT16
    makers = {node.name: node for node in model.graph.node}
    for name in ("edge_agent/Sub_edge_agent/centred", "edge_agent/Div_edge_agent/unit"):
        assert kinds[makers[name].output[0]] == onnx.TensorProto.FLOAT
    # Pixels in, network in, rows out (once for each of two readers under older ONNX Runtimes), nothing else.
    assert sum(node.op_type == "Cast" for node in model.graph.node) in {4, 5}
    assert len(half.onnx) < 0.6 * len(small.onnx)
    assert half.precision == "fp16"
    rows = embed(half, crops)
    assert np.sum(rows * embed(small, crops), axis=1).min() > 0.9999
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)


def test_weights_beyond_float16_keep_their_node_in_float32(
    small: PreparedGraph, crops: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = onnx.load(small.source)
    by_name = {weight.name: weight for weight in model.graph.initializer}
    wide = by_name["neck.3"]  # variances
    wide.CopyFrom(numpy_helper.from_array(np.full(16, 1e6, np.float32), "neck.3"))
    onnx.save(model, tmp_path / "wide.onnx")
    net = prepare_reid(tmp_path / "wide.onnx", profile_named("tao"))
    assert kept_in_float32(net) == ("/neck",)
    assert np.sum(embed(to_half(net), crops) * embed(net, crops), axis=1).min() > 0.9999


def test_an_export_in_float16_is_taken_as_it_is(tmp_path: Path) -> None:
    net = prepare_reid(tiny_networks.reid(tmp_path / "half.onnx", half=True), profile_named("tao"))
    assert to_half(net).onnx == net.onnx


# --- sensitivity ----------------------------------------------------------------------------------


def test_blocks_are_residual_blocks(small: PreparedGraph) -> None:
    assert [(block.name, len(block.nodes)) for block in blocks(small)] == [
        ("/conv1/Conv", 1),
        ("/layer1.0", 4),
        ("/layer1.1", 3),
        ("/layer2.0", 4),
    ]


def test_the_worst_block_is_found(
    small: PreparedGraph, scales: Scales, crops: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = {
        name: amax * (0.05 if name == "/layer1.0/relu_2/Relu_output_0" else 1)
        for name, amax in scales.amax.items()
    }
    wrong = dataclasses.replace(scales, amax=spoilt)
    cache: dict[str, list[float]] = {}
    finished: list[str] = []
    losses = measure(small, wrong, crops[:4], cache=cache, advance=finished.append)
    assert losses[0].block.name == "/layer1.1"
    assert losses[0].mean > 5 * losses[1].mean
    assert finished == ["/conv1/Conv", "/layer1.0", "/layer1.1", "/layer2.0"]
    assert len(cache) == 4
    monkeypatch.setattr(sensitivity, "OnnxRuntimeEngine", None)  # no network can run any more
    assert measure(small, wrong, crops[:4], cache=cache) == losses


def test_cosines_to_float32(small: PreparedGraph, crops: NDArray[np.uint8]) -> None:
    assert cosines(small, crops, embed(small, crops)) == pytest.approx(np.ones(len(crops)))


@pytest.mark.parametrize("needed", range(6))
def test_fewest_blocks_are_kept(needed: int) -> None:
    losses = [Loss(Block(f"b{i}", (f"n{i}",)), 1 / (i + 1), 1.0) for i in range(6)]
    choice = choose_keep(losses, lambda keep: len(keep) >= needed)
    assert choice.passed
    assert choice.blocks == tuple(f"b{i}" for i in range(needed))
    assert choice.keep == tuple(f"n{i}" for i in range(needed))


def test_a_gate_that_never_passes() -> None:
    losses = [Loss(Block(f"b{i}", (f"n{i}",)), 1.0, 1.0) for i in range(6)]
    choice = choose_keep(losses, lambda _: False)
    assert not choice.passed
    assert len(choice.keep) == 5  # one is always quantised
    assert choice.tries == 5


# --- real networks --------------------------------------------------------------------------------


def real(name: str, request: pytest.FixtureRequest) -> PreparedGraph:
    if name == "default":
        return prepare_reid(REPO / "engines" / "default.onnx", profile_named("tao"))
    fixture, profile = {"osnet": ("osnet_onnx", "imagenet"), "0267": ("omz_onnx", "openvino-raw")}[name]
    return prepare_reid(request.getfixturevalue(fixture), profile_named(profile))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["default", "osnet", "0267"])
def test_real_networks_on_real_people(name: str, request: pytest.FixtureRequest, pets_market: Path) -> None:
    net = real(name, request)
    sample = draw(pets_market, size=128)
    assert net.profile is not None
    scales = ranges(net, sample.pixels(pets_market, net.profile, net.input_size))
    int8 = quantise(net, scales)
    assert placement(int8.onnx).fits_tensorrt
    pictures = sorted((pets_market / "query").iterdir())[::2]
    from edge_agent.core.pictures import read_picture

    query = np.empty((len(pictures), *net.input_size, 3), np.uint8)
    for path, target in zip(pictures, query, strict=True):
        net.profile.fit(read_picture(path), target)
    reference = np.concatenate([embed(net, query[i : i + 8]) for i in range(0, len(query), 8)])
    assert np.median(cosines(int8, query, reference)) >= 0.99
    assert cosines(to_half(net), query, reference).min() > 0.999
