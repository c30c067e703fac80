"""`edge-agent bench --pipeline`: the real pipeline on a simulated engine, its events at a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.offline.bench.load import packed_crops
from edge_agent.offline.synthetic.panorama import Panorama
from tests.conftest import mosquitto_binary


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["bench", "--pipeline", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    mosquitto_binary()
    folder = tmp_path_factory.mktemp("bench")
    printed = run(
        "--engine", "simulated:orin-fp16", "--cameras", "2", "--people", "4", "--identities", "100",
        "--batch", "16", "--fps", "10", "--seconds", "3", "--state", folder / "state",
        "--trace", folder / "trace.json", "--markdown", folder / "table.md", "--json",
    )  # fmt: skip
    return json.loads(printed), folder


def test_the_figures_belong_together(reported: tuple[dict[str, Any], Path]) -> None:
    figures, _ = reported
    assert figures["engine_limit"] == pytest.approx(2492.26)
    assert figures["ratio"] == pytest.approx(figures["images_per_second"] / figures["engine_limit"])
    assert figures["crops"] == pytest.approx(figures["images_per_second"] * figures["seconds"], rel=0.01)
    assert 0 < figures["images_per_second"] <= 1.5 * 2 * 4 * 10  # what the cameras offer, at most
    assert figures["broker"] == "mosquitto"
    assert figures["events_received"] > 0
    assert 0 <= figures["events_acknowledged"] <= figures["events_published"] + figures["events_received"]
    latency = figures["latency_ms"]
    assert latency["runs"] == 0 or latency["p50"] <= latency["p95"] <= latency["p99"]
    assert figures["cpu"]["us_per_crop"] > 0
    assert 0 <= figures["engine_busy"] <= 1


def test_every_result_states_that_it_is_simulated(reported: tuple[dict[str, Any], Path]) -> None:
    figures, folder = reported
    assert figures["simulated"] is True
    assert figures["engine"]["backend"] == "simulated:orin-fp16"
    assert "SIMULATED" in (folder / "table.md").read_text()


def test_the_trace_is_one_that_trace_viewers_read(reported: tuple[dict[str, Any], Path]) -> None:
    _, folder = reported
    events = json.loads((folder / "trace.json").read_bytes())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert spans
    assert all(span["dur"] >= 0 and span["ts"] >= 0 for span in spans)
    assert {"pack", "decide"} <= {span["name"] for span in spans}
    assert (folder / "trace.svg").read_text().startswith("<svg")


def test_the_network_alone_gets_people_of_the_same_streets() -> None:
    streets = [Panorama(seed, people=4, size=(640, 360)) for seed in range(2)]
    crops = packed_crops(streets, 12, (256, 128), PROFILES["tao"])
    assert crops.shape == (12, 256, 128, 3)
    assert min(float(crop.std()) for crop in crops) > 5  # pictures, no plain ground
    assert len({crop.tobytes() for crop in crops}) == 12


@pytest.mark.parametrize(
    ("engine", "kind"), [("simulated:abacus", ConfigError), ("simulated:missing.json", EdgeAgentError)]
)
def test_a_table_that_is_not_there_is_one_message(engine: str, kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind, match=r"abacus|missing"):
        run("--engine", engine, "--seconds", "1", "--state", tmp_path)


def test_a_what_if_file_is_checked(tmp_path: Path) -> None:
    table = tmp_path / "guess.json"
    table.write_text(json.dumps({"device": "x", "precision": "int8", "source": "y", "latency_ms": {"1": -1}}))
    with pytest.raises(InputError, match="latency_ms"):
        run("--engine", f"simulated:{table}", "--seconds", "1", "--state", tmp_path)
