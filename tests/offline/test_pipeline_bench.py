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


# --- with a simulated detector ------------------------------------------------------------------

DETECTOR = {
    "kind": "yolox", "input_size": [320, 320], "model": "YOLOX-S", "device": "Orin", "precision": "fp16",
    "source": "this test", "latency_ms": {"1": 3.0, "4": 8.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    mosquitto_binary()
    folder = tmp_path_factory.mktemp("detector")
    (folder / "guess.json").write_text(json.dumps(DETECTOR))
    printed = run(
        "--engine", "simulated:orin-fp16", "--cameras", "2", "--people", "2", "--identities", "10",
        "--batch", "16", "--fps", "8", "--seconds", "3", "--state", folder / "state",
        "--detector", f"simulated:{folder / 'guess.json'}", "--every", "2", "--motion", "--busy", "0.5",
        "--markdown", folder / "table.md", "--json",
    )  # fmt: skip
    return json.loads(printed), (folder / "table.md").read_text()


def test_the_detector_is_named_as_simulated_in_every_output(searched: tuple[dict[str, Any], str]) -> None:
    figures, table = searched
    found = figures["detector"]
    assert (found["name"], found["simulated"], found["source"]) == ("simulated:guess", True, "this test")
    assert (found["kind"], found["input_size"], found["max_batch"]) == ("yolox", [320, 320], 4)
    assert "Detector simulated:guess (YOLOX-S, 320x320, Orin, fp16; SIMULATED, no network ran" in table
    assert "one of 2 frames, motion gate" in table


def test_every_second_frame_of_a_busy_camera_is_searched(
    searched: tuple[dict[str, Any], str],
) -> None:
    """One of the two cameras stands still before an empty street: its gate is closed after two seconds."""
    figures, _ = searched
    found = figures["detector"]
    assert 0 < found["frames_per_second"] <= 1.3 * 8 / 2
    assert 1.0 <= found["mean_batch"] <= 2.0
    assert 0 < found["device_busy"] < 1
    assert figures["offered_per_second"] == pytest.approx(8 * 2 * 2 * 0.5 / 2)
    assert figures["crops"] > 0


def test_without_a_detector_boxes_are_given(reported: tuple[dict[str, Any], Path]) -> None:
    figures, folder = reported
    assert figures["detector"] is None
    assert "No detector: boxes are given." in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--detector", "yolox:a.onnx"), "write simulated:FILE.json"),
        (("--detector", "simulated:none.json"), "write simulated:FILE.json"),
        (("--detector", "{guess}", "--engine", "onnxruntime"), "choose --engine simulated:orin-fp16"),
    ],
)
def test_a_detector_that_cannot_be_measured_is_one_message(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "guess.json").write_text(json.dumps(DETECTOR))
    given = [word.format(guess=f"simulated:{tmp_path / 'guess.json'}") for word in words]
    engine = [] if "--engine" in given else ["--engine", "simulated:orin-fp16"]
    with pytest.raises(ConfigError, match=message) as error:
        run(*engine, *given, "--seconds", "1", "--identities", "0", "--state", tmp_path / "state")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [("--every", "2"), ("--motion",)])
def test_options_of_the_detector_need_one(words: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "--pipeline", *words, "--state", str(tmp_path)])
    assert done.exit_code == 2
    assert "needs --detector" in done.output
