"""On a real NVIDIA GPU: the commands that an installer runs, as processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO

pytestmark = [pytest.mark.device, pytest.mark.timeout(3600)]


def edge_agent(*arguments: str) -> Any:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "edge_agent", *arguments, "--json"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=3500, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered people in Market-1501 layout."""
    from edge_agent.synthetic.crops import write_dataset

    folder = tmp_path_factory.mktemp("market")
    write_dataset(folder, identities=60, cameras=6, per_identity=12, test_share=0.5, size=(256, 128))
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> tuple[Path, Any]:
    """State folder after `edge-agent calibrate` on TensorRT, and what it said."""
    state = tmp_path_factory.mktemp("state")
    told = edge_agent("calibrate", "--backend", "tensorrt", "--dataset", str(dataset), "--state", str(state))
    return state, told


def test_calibrate_chooses_a_precision_by_its_gate(calibrated: tuple[Path, Any]) -> None:
    _, told = calibrated
    gate = told["gate"]
    assert told["precision"] == ("int8" if gate["passed"] else "fp16")
    assert 0 < gate["cosine_min"] <= gate["cosine_p1"] <= gate["cosine_median"] <= 1.001
    if gate["passed"]:
        assert gate["mAP_fp32"] - gate["mAP_candidate"] <= 0.005
        assert gate["rank1_fp32"] - gate["rank1_candidate"] <= 0.005
    assert -1 < told["threshold"]["value"] < 1
    assert Path(told["manifest"]).is_file()


def test_what_calibrate_made_is_listed_verified_and_kept(calibrated: tuple[Path, Any]) -> None:
    state, told = calibrated
    listed = edge_agent("engines", "verify", "--state", str(state))
    assert listed["not_compared"] is None
    assert {plan["verdict"] for plan in listed["plans"]} == {"ok"}
    assert listed["active"]["current"]["precision"] == told["precision"]
    gone = edge_agent("engines", "prune", "--yes", "--unused-days", "0", "--state", str(state))
    left = edge_agent("engines", "verify", "--state", str(state))["plans"]
    assert {plan["key"] for plan in left} == {plan["key"] for plan in listed["plans"]} - {*gone["plans"]}
    assert "current" in {plan["role"] for plan in left}


def test_calibrating_again_changes_nothing(calibrated: tuple[Path, Any], dataset: Path) -> None:
    state, told = calibrated
    again = edge_agent("calibrate", "--backend", "tensorrt", "--dataset", str(dataset), "--state", str(state))
    assert again["precision"] == told["precision"]
    assert again["threshold"]["value"] == pytest.approx(told["threshold"]["value"], abs=0.02)


def test_bench_measures_every_precision(calibrated: tuple[Path, Any]) -> None:
    state, _ = calibrated
    print(json.dumps(edge_agent("bench", "--state", str(state)), indent=2))
