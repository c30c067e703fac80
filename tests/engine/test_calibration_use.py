"""The use of a calibration in the agent: precision, threshold, reload, rollback."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.agent.daemon import Agent
from edge_agent.agent.outputs import Outputs
from edge_agent.cli import app
from edge_agent.core.config import EngineSettings, IdentifySettings, Settings
from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.loading import load, state_folder
from edge_agent.engine.models import prepare_model
from edge_agent.engine.plans.active import ActiveEngine
from edge_agent.engine.precision.calibration import Calibration, current_calibration, in_precision
from edge_agent.identify import Identifier
from edge_agent.identify.pairs import SiteScores
from edge_agent.identify.site import SITE_FACT, Calibrated
from edge_agent.offline.calibrate.gate import Bounds
from edge_agent.offline.calibrate.job import Job
from edge_agent.offline.calibrate.request import Request
from edge_agent.offline.synthetic.crops import write_dataset
from tests import tiny_networks
from tests.agent.test_agent import pictures, put  # noqa: F401  `pictures` is a fixture

ANYTHING = Bounds(1, 1, -1)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people")
    write_dataset(root, identities=12, cameras=3, per_identity=6, seed=6, test_share=0.7, workers=1)
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_networks.convolutional(tmp_path_factory.mktemp("network") / "tiny.onnx")


def request(network: Path, state: Path, dataset: Path | None, **changes: Any) -> Request:
    prepared, golden = prepare_model(network, "imagenet", state)
    return replace(
        Request(
            prepared=prepared,
            golden=golden,
            engines=state / "engines",
            disk=state,
            dataset=dataset,
            size=16,
            target_fmr=0.02,
            bounds=ANYTHING,
            bench_seconds=0.0,
            engine=EngineSettings(backend="onnxruntime"),
        ),
        **changes,
    )


@pytest.fixture
def calibrated(network: Path, people: Path, tmp_path: Path) -> Calibration:
    """An INT8 calibration that is active in the state folder `tmp_path / "state"`."""
    state = state_folder(tmp_path / "state")
    return Job(request(network, state, people)).run().calibration


def settings(tmp_path: Path, network: Path, **engine: Any) -> Settings:
    return load(
        None,
        {
            "state_dir": tmp_path / "state",
            "sources": [{"url": f"crops:{tmp_path / 'crops'}", "id": "yard", "once": True}],
            "engine": {"model": network, "preprocess": "imagenet", "threads": 1, **engine},
        },
    )


def run_agent(tmp_path: Path, chosen: Settings) -> list[dict[str, Any]]:
    events = tmp_path / "events.jsonl"
    Agent(chosen, Outputs(events=events)).run(threading.Event())
    return [json.loads(line) for line in events.read_text().splitlines()]


def test_run_uses_precision_and_threshold_and_every_event_names_the_rule(
    calibrated: Calibration,
    network: Path,
    tmp_path: Path,
    pictures: dict[int, list[bytes]],  # noqa: F811
) -> None:
    put(tmp_path / "crops", pictures, 1000.0, {1: 0})
    events = [e for e in run_agent(tmp_path, settings(tmp_path, network)) if ".identity." in e["type"]]
    assert events
    for event in events:
        data = event["data"]
        assert data["rule"] == "calibrated"
        assert data["threshold"] == pytest.approx(calibrated.threshold, abs=1e-4)
        assert data["model"]["precision"] == "int8"


def test_info_publishes_the_rule_of_the_threshold(calibrated: Calibration) -> None:
    summary = calibrated.summary()
    assert summary["precision"] == "int8"
    assert summary["pairs"] > 0
    assert "/" not in json.dumps(summary)  # no path of the device


def test_requested_precisions_are_used_or_refused(
    calibrated: Calibration, network: Path, tmp_path: Path
) -> None:
    prepared, _ = prepare_model(network, "imagenet", None)

    def precision(wanted: str, calibration: Calibration | None, backend: str = "onnxruntime") -> str:
        return in_precision(prepared, wanted, backend, calibration).precision

    assert precision("auto", calibrated) == "int8"
    assert precision("int8", calibrated) == "int8"
    assert precision("fp32", calibrated) == "fp32"
    assert precision("fp16", calibrated) == "fp16"
    assert precision("auto", None) == "fp32"
    assert precision("auto", None, "tensorrt") == "fp16"
    assert precision("auto", calibrated, "tensorrt") == "fp16"  # it was measured on another backend
    with pytest.raises(ConfigError, match="no INT8 calibration of tiny"):
        precision("int8", None)


def test_a_calibration_of_another_network_is_reported_and_not_used(
    calibrated: Calibration,
    tmp_path: Path,
    pictures: dict[int, list[bytes]],  # noqa: F811
) -> None:
    other = tiny_networks.convolutional(tmp_path / "other.onnx", seed=1)
    put(tmp_path / "crops", pictures, 1000.0, {1: 0})
    events = run_agent(tmp_path, settings(tmp_path, other))
    alerts = [event["data"] for event in events if event["type"].startswith("edge.alert")]
    assert [alert["kind"] for alert in alerts] == ["calibration_stale"]
    assert "tiny" in alerts[0]["message"]
    for event in events:
        if ".identity." in event["type"]:
            assert event["data"]["rule"] == "prior"
            assert event["data"]["model"]["precision"] == "fp32"


def test_a_damaged_calibration_is_refused_with_what_mends_it(
    calibrated: Calibration, network: Path, tmp_path: Path
) -> None:
    graph = calibrated.folder / "int8.onnx"
    graph.write_bytes(graph.read_bytes() + b"x")
    (tmp_path / "crops").mkdir()
    with pytest.raises(InputError, match=r"int8.onnx .*edge-agent calibrate"):
        run_agent(tmp_path, settings(tmp_path, network))


def test_a_reload_takes_the_new_threshold_over(
    calibrated: Calibration, network: Path, people: Path, tmp_path: Path
) -> None:
    (tmp_path / "crops").mkdir()
    chosen = settings(tmp_path, network)
    live = chosen.model_copy(
        update={"sources": tuple(s.model_copy(update={"once": False}) for s in chosen.sources)}
    )
    agent, stop = Agent(live, reread=lambda: live), threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    try:
        assert agent.opened.wait(60)
        identifier = agent.stages.identifier
        assert identifier.thresholds.current().value == calibrated.threshold
        again = Job(request(network, tmp_path / "state", people, target_fmr=0.05)).run().calibration
        assert agent.reload_now() == []
        deadline = time.monotonic() + 30
        while identifier.thresholds.current().value != again.threshold and time.monotonic() < deadline:
            time.sleep(0.05)
        assert identifier.thresholds.current().value == again.threshold != calibrated.threshold
    finally:
        stop.set()
        thread.join(30)


def test_doctor_shows_whether_the_calibration_fits_the_running_network(
    calibrated: Calibration, network: Path, tmp_path: Path
) -> None:
    other = tiny_networks.convolutional(tmp_path / "other.onnx", seed=1)

    def found(model: Path) -> dict[str, Any]:
        config = tmp_path / "config.toml"
        config.write_text(
            f'state_dir = "{tmp_path / "state"}"\n[engine]\nmodel = "{model}"\npreprocess = "imagenet"\n'
        )
        done = CliRunner().invoke(app, ["doctor", "--json", "--config", str(config)])
        findings = json.loads(done.stdout)["findings"]
        return next(finding for finding in findings if finding["name"] == "calibration")

    assert found(network)["state"] == "ok"
    assert f"threshold {calibrated.threshold:.4f}" in found(network)["found"]
    assert found(other)["state"] == "warning"
    assert "edge-agent calibrate" in found(other)["advice"]


def test_evaluate_measures_the_precision_that_is_asked_for(
    calibrated: Calibration, network: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_AGENT__STATE_DIR", str(tmp_path / "state"))

    def figures(*more: str) -> dict[str, Any]:
        arguments = [
            "evaluate",
            str(people),
            "--model",
            str(network),
            "--preprocess",
            "imagenet",
            "--json",
            *more,
        ]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        return json.loads(done.stdout)

    gate = json.loads((calibrated.folder / "report.json").read_bytes())["gate"]
    plain, int8 = figures(), figures("--precision", "int8")
    assert plain["model"]["precision"] == "fp32"
    assert plain["mAP"] == gate["mAP_fp32"]
    assert int8["model"]["precision"] == "int8"
    assert int8["mAP"] == gate["mAP_candidate"]
    monkeypatch.setenv("EDGE_AGENT__STATE_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="no INT8 calibration"):
        figures("--precision", "int8")
    with pytest.raises(ConfigError, match=r"engine\.precision"):
        figures("--precision", "int4")


def test_rollback_makes_the_previous_engine_active(
    calibrated: Calibration, network: Path, people: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    second = Job(request(network, state, people, precision="fp16")).run().calibration
    assert current_calibration(EngineSettings(), state).precision == "fp16"
    done = CliRunner().invoke(
        app, ["engines", "rollback", "--yes", "--state", str(state)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert current_calibration(EngineSettings(), state).name == calibrated.name
    assert ActiveEngine(state / "engines").read().previous["name"] == second.name


def test_prune_keeps_the_active_and_the_previous_calibration(
    calibrated: Calibration, network: Path, people: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    for seed in (1, 2):
        last = Job(request(network, state, people, seed=seed)).run().calibration
    done = CliRunner().invoke(app, ["engines", "prune", "--yes", "--state", str(state), "--json"])
    assert json.loads(done.stdout)["calibrations"] == [calibrated.name]
    left = {path.name for path in (state / "engines" / "calibrations").iterdir() if path.is_dir()}
    assert len(left) == 2
    assert last.name in left


# --- the site may only raise it -------------------------------------------------------------------


class Known:
    """An empty gallery, and the site's scores."""

    def __init__(self, scores: list[float]) -> None:
        site = SiteScores()
        for number, score in enumerate(scores):
            site.learn(f"#{number}", f"#{number + 100}", score)
        self.facts = {SITE_FACT: site.to_json()}
        self.cameras = self

    def start(self) -> None:
        """Nothing is subtracted."""

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("scores", "calibrated_at", "configured", "rule"),
    [
        ([], 0.7, None, "calibrated"),
        ([0.1, 0.12, 0.09, 0.11, 0.1], 0.7, None, "calibrated"),
        ([0.6, 0.62, 0.65, 0.61, 0.64], 0.5, None, "site"),
        ([0.6, 0.62, 0.65, 0.61, 0.64], 0.5, 0.9, "configured"),
        ([], None, None, "warm-up"),
        ([0.1, 0.12, 0.09, 0.11, 0.1], None, None, "site"),
    ],
)
def test_which_threshold_applies(
    scores: list[float], calibrated_at: float | None, configured: float | None, rule: str
) -> None:
    known = None if calibrated_at is None else Calibrated(calibrated_at, 1e-3)
    identifier = Identifier(Known(scores), "s", IdentifySettings(threshold=configured), known)
    threshold = identifier.thresholds.current()
    assert threshold.rule == rule
    if rule == "calibrated":
        assert threshold.value == calibrated_at
    if rule == "site" and calibrated_at is not None:
        assert threshold.value > calibrated_at
