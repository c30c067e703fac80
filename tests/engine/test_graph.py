"""The prepared graph: numerically the same network, and clear messages for unsuitable ones."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edge_agent.core.errors import ConfigError, ModelError
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES, embedding_space, profile_named
from tests import tiny_networks

TAO = PROFILES["tao"]


def session(model: bytes | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = model.read_bytes() if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(model: bytes | Path, batch: np.ndarray) -> np.ndarray:
    opened = session(model)
    return opened.run(None, {opened.get_inputs()[0].name: batch})[0]


def crops(count: int, height: int = 256, width: int = 128) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64).reshape(len(rows), -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- the same numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_pixels_in_gives_what_float_preprocessing_outside_gives(tmp_path, profile):
    path = tiny_networks.reid(tmp_path / "net.onnx")
    batch = crops(3)
    expected = unit(run(path, profile.apply(batch)))
    prepared = prepare_reid(path, profile)
    assert np.abs(run(prepared.onnx, batch) - expected).max() < 1e-4


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 17, 18, 20])
def test_every_opset_from_9_on(tmp_path, opset):
    path = tiny_networks.reid(tmp_path / "net.onnx", opset=opset)
    batch = crops(2)
    prepared = prepare_reid(path, TAO)
    assert np.abs(run(prepared.onnx, batch) - unit(run(path, TAO.apply(batch)))).max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"shape": ("batch", 256, 128, 3)}, (256, 128)),
        ({"shape": ("batch", 3, 384, 128)}, (384, 128)),
        ({"half": True, "scale": 0.1}, (256, 128)),
        ({"output_shape": ("batch", "embedding_size")}, (256, 128)),
        ({"weights_as_inputs": True}, (256, 128)),
        ({"shape": (-1, 3, 256, 128)}, (256, 128)),
        ({"names": ("crops", "embedding")}, (256, 128)),
        ({"names": ("embedding", "crops")}, (256, 128)),
    ],
    ids=[
        "channels last",
        "other size",
        "float16",
        "TAO: open axis",
        "old IR",
        "-1",
        "same names",
        "swapped names",
    ],
)
def test_layouts_of_exports(tmp_path, changes, size):
    path = tiny_networks.reid(tmp_path / "net.onnx", **changes)
    prepared = prepare_reid(path, TAO)
    assert prepared.input_size == size
    assert prepared.dimension == 8
    batch = crops(2, *size)
    expected = unit(run(path, prepared.as_network_input(TAO.apply(batch))))
    tolerance = 5e-3 if changes.get("half") else 1e-4
    rows = run(prepared.onnx, batch)
    assert rows.dtype == np.float32
    assert np.abs(rows - expected).max() < tolerance


def test_embedding_with_spatial_axes_of_one_is_flattened(tmp_path):
    nodes = [helper.make_node("Reshape", ["mixed", "wanted"], ["fc_pred"])]
    weights = [numpy_helper.from_array(np.asarray([-1, 8, 1, 1], np.int64), "wanted")]
    path = tiny_networks.reid(
        tmp_path / "net.onnx", extra_nodes=nodes, extra_weights=weights, output_shape=("batch", 8, 1, 1)
    )
    prepared = prepare_reid(path, TAO)
    assert prepared.dimension == 8
    assert run(prepared.onnx, crops(2)).shape == (2, 8)


def test_open_axis_known_only_after_a_run(tmp_path):
    nodes = [
        helper.make_node("Shape", ["mixed"], ["shape"]),
        helper.make_node("Reshape", ["mixed", "shape"], ["fc_pred"]),
    ]
    path = tiny_networks.reid(tmp_path / "net.onnx", extra_nodes=nodes, output_shape=("batch", None))
    assert prepare_reid(path, TAO).dimension == 8


def test_raw_keeps_the_networks_own_lengths(tmp_path):
    path = tiny_networks.reid(tmp_path / "net.onnx")
    batch = crops(2)
    prepared = prepare_reid(path, TAO, normalise=False)
    assert not prepared.normalised
    np.testing.assert_allclose(run(prepared.onnx, batch), run(path, TAO.apply(batch)), rtol=1e-3, atol=1e-4)


def test_output_is_named_and_of_known_size(tmp_path):
    prepared = prepare_reid(tiny_networks.reid(tmp_path / "net.onnx"), TAO)
    opened = session(prepared.onnx)
    (source,), (target,) = opened.get_inputs(), opened.get_outputs()
    assert (source.name, source.type, source.shape) == ("crops", "tensor(uint8)", ["batch", 256, 128, 3])
    assert (target.name, target.type, target.shape) == ("embedding", "tensor(float)", ["batch", 8])


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e15])
def test_lengths_do_not_overflow_or_vanish(tmp_path, scale):
    path = tiny_networks.reid(tmp_path / "net.onnx", scale=scale)
    rows = run(prepare_reid(path, TAO).onnx, crops(2))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_row_without_length_stays_zero_and_nan_stays_visible(tmp_path):
    black = np.zeros((1, 256, 128, 3), np.uint8)
    empty = tiny_networks.reid(tmp_path / "net.onnx")
    assert not run(prepare_reid(empty, PROFILES["openvino-raw"]).onnx, black).any()
    broken = tiny_networks.undefined_for_dark(tmp_path / "nan.onnx")
    prepared = prepare_reid(broken, PROFILES["openvino-raw"])
    rows = run(prepared.onnx, np.concatenate((black, crops(1))))
    assert np.isnan(rows[0]).any()
    assert np.isfinite(rows[1]).all()


@pytest.mark.parametrize("case", [("osnet_onnx", "imagenet", 512), ("omz_onnx", "openvino-raw", 256)])
def test_real_networks(request, case):
    fixture, profile, dimension = case
    path = request.getfixturevalue(fixture)
    prepared = prepare_reid(path, PROFILES[profile])
    assert prepared.dimension == dimension
    assert prepared.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    batch = crops(3)
    assert np.abs(run(prepared.onnx, batch) - unit(run(path, PROFILES[profile].apply(batch)))).max() < 1e-4


# --- the id of the space ------------------------------------------------------------------------


def test_space_changes_with_everything_that_changes_embeddings():
    base = embedding_space("ab" * 32, TAO, 256)
    assert re.fullmatch("[0-9a-f]{16}", base)
    assert base == "4f06edf9b4cc060b"  # galleries in the field hold such ids: they must stay the same
    others = {
        embedding_space("cd" * 32, TAO, 256),
        embedding_space("ab" * 32, TAO, 512),
        embedding_space("ab" * 32, TAO, 256, normalised=False),
        *(embedding_space("ab" * 32, p, 256) for p in PROFILES.values() if p is not TAO),
        embedding_space("ab" * 32, dataclasses.replace(TAO, order="bgr"), 256),
    }
    assert len(others) == 7
    assert base not in others


def test_profiles_match_their_sources():
    tao = TAO.apply(np.full((1, 1, 1, 3), (0, 128, 255), np.uint8))[0, :, 0, 0]
    scale, offsets = 0.01735207357279195, (123.675, 116.28, 103.53)  # DeepStream's SGIE configuration, RGB
    np.testing.assert_allclose(
        tao, [(v - o) * scale for v, o in zip((255, 128, 0), offsets, strict=True)], 1e-6
    )
    assert [TAO.factors[0] * (128 - TAO.offsets[1])] == pytest.approx([tao[1]])


def test_unknown_profile_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'caffe'.*imagenet, openvino-raw, swin, tao"):
        profile_named("caffe")


# --- what does not fit --------------------------------------------------------------------------


def add_nan(path: Path) -> None:
    model = onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "mix"))
    onnx.save(model, path)


def to_external(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (1, 3, 256, 128)}, r"batch axis is fixed at 1.*dynamic_axes"),
        ({"shape": ("batch", 3, "height", "width")}, r"height and width must be fixed"),
        ({"shape": ("batch", 1, 256, 128)}, r"is \[\?, 1, 256, 128\], expected pictures"),
        ({"shape": ("batch", 98304)}, r"is \[\?, 98304\], expected pictures"),
        ({"extra_outputs": ("flat",)}, r"one output, found 2 \(fc_pred, flat\)"),
        ({"extra_inputs": ("camera",)}, r"one input, found 2 \(input, camera\)"),
        ({"opset": 8}, r"opset 8, at least 9"),
    ],
)
def test_network_that_does_not_fit(tmp_path, changes, message):
    path = tiny_networks.reid(tmp_path / "net.onnx", **changes)
    with pytest.raises(ModelError, match=message) as caught:
        prepare_reid(path, TAO)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (add_nan, "NaN or infinity in the weight 'mix'"),
        (to_external, "in another file; put everything into one file"),
        (cut_in_half, "not an ONNX file, or"),
        (lambda p: p.write_text("<html>404: Not Found</html>"), "not an ONNX file"),
        (lambda p: p.write_bytes(b""), "not an ONNX file"),
        (lambda p: p.unlink(), "cannot read the model"),
        (lambda p: (p.unlink(), p.mkdir()), "cannot read the model"),
    ],
    ids=["nan", "external", "cut", "html", "empty", "missing", "folder"],
)
def test_damaged_file(tmp_path, damage, message):
    path = tiny_networks.reid(tmp_path / "net.onnx")
    damage(path)
    with pytest.raises(ModelError, match=message):
        prepare_reid(path, TAO)


def test_a_prepared_network_is_not_prepared_again(tmp_path):
    first = prepare_reid(tiny_networks.reid(tmp_path / "net.onnx"), TAO)
    again = tmp_path / "prepared.onnx"
    again.write_bytes(first.onnx)
    with pytest.raises(ModelError, match=r"is UINT8.*already prepared"):
        prepare_reid(again, TAO)
