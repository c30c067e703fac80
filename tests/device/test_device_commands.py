"""On a real NVIDIA GPU: the commands that an installer runs, as separate processes."""

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
    """The JSON output of a command."""
    command = [sys.executable, "-m", "edge_agent", *arguments, "--json"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=3500, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered people in Market-1501 layout."""
    from edge_agent.offline.synthetic.crops import write_dataset

    folder = tmp_path_factory.mktemp("market")
    write_dataset(folder, identities=60, cameras=6, per_identity=12, test_share=0.5, size=(256, 128))
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> tuple[Path, Any]:
    """State folder after `edge-agent calibrate` on TensorRT, and its report."""
    state = tmp_path_factory.mktemp("state")
    reported = edge_agent(
        "calibrate", "--backend", "tensorrt", "--dataset", str(dataset), "--state", str(state)
    )
    return state, reported


def test_calibrate_chooses_a_precision_by_its_gate(calibrated: tuple[Path, Any]) -> None:
    _, reported = calibrated
    print(json.dumps({"precision": reported["precision"], "gates": reported["gates"]}, indent=2))
    assert reported["backend"] == "tensorrt"
    assert reported["precision"] == next(
        (name for name, gate in reported["gates"].items() if gate["passed"]), "fp32"
    )
    for gate in reported["gates"].values():
        assert -1 < gate["cosine_min"] <= gate["cosine_p1"] <= gate["cosine_median"] <= 1.001
        if gate["passed"]:
            assert gate["mAP_fp32"] - gate["mAP_candidate"] <= 0.005
            assert gate["rank1_fp32"] - gate["rank1_candidate"] <= 0.005
    assert -1 < reported["threshold"]["value"] < 1
    assert Path(reported["manifest"]).is_file()


def test_calibrations_are_listed_and_verified(calibrated: tuple[Path, Any]) -> None:
    state, reported = calibrated
    listed = edge_agent("engines", "verify", "--state", str(state))
    assert listed["not_compared"] is None
    assert {plan["verdict"] for plan in listed["plans"]} == {"ok"}
    assert reported["precision"] in {plan["precision"] for plan in listed["plans"]}
    assert listed["active"]["current"]["precision"] == reported["precision"]


def test_calibrating_again_changes_nothing(calibrated: tuple[Path, Any], dataset: Path) -> None:
    state, reported = calibrated
    again = edge_agent("calibrate", "--backend", "tensorrt", "--dataset", str(dataset), "--state", str(state))
    assert (again["precision"], again["threshold"]) == (reported["precision"], reported["threshold"])
    assert again["manifest"] == reported["manifest"]


def test_bench_measures_every_precision(calibrated: tuple[Path, Any]) -> None:
    state, reported = calibrated
    bench = edge_agent("bench", "--backend", "tensorrt", "--seconds", "3", "--state", str(state))
    print(json.dumps(bench, indent=2))
    measured = {(row["precision"], row["batch"]) for row in bench["rows"]}
    wanted = {"fp32", "fp16"} | {reported["precision"]}
    assert measured >= {(precision, batch) for precision in wanted for batch in (1, 16, 64)}
    assert all(row["backend"] == "tensorrt" for row in bench["rows"])


def test_the_agent_uses_the_result_of_calibrate(calibrated: tuple[Path, Any], dataset: Path) -> None:
    """Enrolling opens the engine as the daemon does."""
    state, reported = calibrated
    before = edge_agent("engines", "list", "--state", str(state))["plans"]
    crop = next((dataset / "query").glob("*.jpg"))
    enrolled = edge_agent("gallery", "enrol", "somebody", str(crop), "--force", "--state", str(state))
    assert enrolled["exemplars"] == 1
    after = edge_agent("engines", "list", "--state", str(state))["plans"]
    assert {plan["key"] for plan in after} == {plan["key"] for plan in before}, "no other engine was built"
    assert after[0]["precision"] == reported["precision"], "the one that was used last"
