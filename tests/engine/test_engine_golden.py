"""Golden crops: the same everywhere, references from an independent way, faults are seen."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from edge_agent.core.errors import ModelError
from edge_agent.engine import golden
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.graph.stripes import STRIPES_PROFILE, write_stripe_model
from tests import tiny_networks

TAO = PROFILES["tao"]


@pytest.fixture
def prepared(tmp_path):
    return prepare_reid(tiny_networks.reid(tmp_path / "net.onnx"), TAO)


def test_crops_are_the_same_on_every_machine():
    crops = golden.golden_crops(256, 128)
    assert crops.shape == (golden.GOLDEN_CROPS, 256, 128, 3)
    assert hashlib.sha256(crops.tobytes()).hexdigest().startswith("d8a26a92fd281a65")


def test_crops_differ_between_channels_and_from_each_other():
    crops = golden.golden_crops(256, 128).astype(int)
    assert np.abs(crops - crops[..., ::-1]).mean(axis=(1, 2, 3)).min() > 10
    assert min(np.abs(a - b).mean() for i, a in enumerate(crops) for b in crops[:i]) > 20


def test_reference_is_made_once_and_kept(prepared, tmp_path):
    made = golden.load_or_make(prepared, tmp_path / "state")
    assert made.vectors.shape == (golden.GOLDEN_CROPS, 8)
    (stored,) = (tmp_path / "state" / "golden").iterdir()
    prepared.source.unlink()  # not needed any more
    again = golden.load_or_make(prepared, tmp_path / "state")
    assert str(stored) in again.origin
    np.testing.assert_allclose(again.vectors, made.vectors, atol=1e-4)


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"version": 1}', '{"version": 0}', '{"version": 1, "space": "?"}']
)
def test_damaged_reference_is_made_again(prepared, tmp_path, damage):
    golden.load_or_make(prepared, tmp_path)
    (stored,) = (tmp_path / "golden").iterdir()
    stored.write_text(damage)
    assert "run now" in golden.load_or_make(prepared, tmp_path).origin
    assert json.loads(stored.read_text())["space"] == prepared.space


def test_nothing_is_kept_without_a_folder(prepared):
    assert golden.load_or_make(prepared, None).space == prepared.space


def test_network_that_cannot_take_batches(tmp_path):
    path = tiny_networks.reid(tmp_path / "net.onnx")
    prepared = dataclasses.replace(prepare_reid(path, TAO), source=fixed_inside(tmp_path))
    with pytest.raises(
        ModelError, match=r"gives 1 rows for 8 pictures; export it again with a dynamic batch"
    ):
        golden.make(prepared)


def fixed_inside(folder):
    """A network that claims a free batch and has 1 baked into a reshape."""
    from onnx import helper, numpy_helper

    nodes = [helper.make_node("Reshape", ["mixed", "wanted"], ["fc_pred"])]
    weights = [numpy_helper.from_array(np.asarray([1, -1], np.int64), "wanted")]
    return tiny_networks.reid(folder / "fixed.onnx", extra_nodes=nodes, extra_weights=weights)


def test_network_that_is_undefined_everywhere(tmp_path):
    path = tiny_networks.undefined_for_dark(tmp_path / "nan.onnx")
    prepared = prepare_reid(path, dataclasses.replace(PROFILES["openvino-raw"], scale=1e-6))
    with pytest.raises(ModelError, match="gives NaN, infinite or empty embeddings"):
        golden.make(prepared)


@pytest.mark.parametrize(
    ("fixture", "profile"),
    [("osnet_onnx", "imagenet"), ("omz_onnx", "openvino-raw"), (None, STRIPES_PROFILE)],
)
def test_shipped_references_match_the_networks(request, tmp_path, fixture, profile):
    path = request.getfixturevalue(fixture) if fixture else write_stripe_model(tmp_path / "stripes.onnx")
    prepared = prepare_reid(path, PROFILES[profile])
    shipped = golden.load_or_make(prepared, None)
    assert "references" in shipped.origin, (
        "no reference ships for this network: its file or its profile changed"
    )
    fresh = golden.make(prepared)
    assert np.einsum("nd,nd->n", shipped.vectors, fresh.vectors).min() > 0.9999
