"""The shipped network: its manifest is correct, and it recognises real people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import typer
from typer.testing import CliRunner

from edge_agent.cli import evaluate
from edge_agent.core.manifest import Manifest
from edge_agent.offline.synthetic.camera import Spread
from edge_agent.offline.synthetic.crops import write_dataset

ENGINES = Path(__file__).resolve().parents[2] / "engines"
MODEL = ENGINES / "default.onnx"


def figures(folder: Path, *options: str) -> dict[str, Any]:
    app = typer.Typer()
    app.command()(evaluate.command)
    arguments = [str(folder), "--model", str(MODEL), "--backend", "onnxruntime", "--json", *options]
    found: dict[str, Any] = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    return found


def test_the_manifest_describes_the_files():
    manifest = Manifest.read(ENGINES / "default.json", kind="model", version=1)
    manifest.verify(ENGINES)
    assert json.loads((ENGINES / "default.json").read_text())["preprocess"] == "tao"
    assert {"figures", "licences", "limits", "training"} <= manifest.data.keys()


def test_it_is_small_and_has_taos_tensors():
    assert MODEL.stat().st_size <= 12_000_000
    session = onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("input", ["batch", 3, 256, 128])
    assert (result.name, result.shape) == ("fc_pred", ["batch", 256])
    (found,) = session.run(None, {"input": np.zeros((3, 3, 256, 128), np.float32)})
    assert found.shape == (3, 256)
    assert np.isfinite(found).all()


def test_nothing_of_the_machine_that_trained_it_is_in_the_file():
    metadata = onnxruntime.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"]).get_modelmeta()
    card = metadata.custom_metadata_map
    assert card["preprocess_profile"] == "tao"
    assert "start_weights" in card
    assert "/" not in json.loads(card["spec"])["model"].get("pretrained_model_path", "")
    assert b"/work/" not in MODEL.read_bytes()


@pytest.mark.slow
def test_it_finds_people_across_cameras_with_other_colours(tmp_path: Path):
    """Rendered people and cameras that training did not have."""
    spread = Spread(colours=1.6, faults=1.0, smallest=24.0)
    write_dataset(tmp_path, identities=41, cameras=4, per_identity=8, seed=31, test_share=0.97, spread=spread)
    plain, removed = figures(tmp_path), figures(tmp_path, "--remove-camera-means")
    assert removed["rank1"] >= 0.70
    assert removed["eer"] < plain["eer"]


def test_it_finds_real_people_that_it_never_saw(pets_market: Path):
    reported = figures(pets_market)
    stated = Manifest.read(ENGINES / "default.json", kind="model", version=1).data
    card = stated["figures"]["pets_market_visits"]["result"]
    assert reported["rank1"] == pytest.approx(card["rank1"], abs=0.03)
    assert reported["mAP"] == pytest.approx(card["mAP"], abs=0.01)
    assert reported["rank1"] >= 0.90
    assert reported["mAP"] >= 0.70
