"""The speed table: its figures are consistent, and it names machine and versions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.errors import EngineError
from edge_agent.embed.opening import open_embedder
from edge_agent.health.telemetry.reading import Reading
from edge_agent.offline.bench import speed as bench
from tests import tiny_networks

FAST = ("--seconds", "0.1", "--preprocess", "imagenet")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_networks.convolutional(tmp_path_factory.mktemp("network") / "tiny.onnx")


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_batch_and_precision_that_can_be_had_is_measured(network: Path, tmp_path: Path) -> None:
    reported = json.loads(
        run("--model", network, *FAST, "--state", tmp_path, "--json", "--output", tmp_path / "report.json")
    )
    assert json.loads((tmp_path / "report.json").read_bytes()) == reported
    rows = {(row["precision"], row["batch"]): row for row in reported["rows"]}
    assert set(rows) == {(p, b) for p in ("fp32", "fp16") for b in (1, 16, 64)}
    assert "edge-agent calibrate" in reported["left_out"]["int8"]
    for row in rows.values():
        for figure in (row["alone"], row["end_to_end"]):
            assert 0 < figure["p50"] <= figure["p95"] <= figure["p99"]
            assert figure["runs"] >= bench.MIN_RUNS
        assert row["images_per_second"] > 0
        assert row["end_to_end_per_second"] > 0
        assert row["to_published"] is None  # this is no AGX Orin
    assert reported["machine"]["cores"] >= 1
    assert reported["model"]["name"] == "tiny"
    assert {row["device"] for row in reported["published"]} == {"A10", "A30", "Jetson AGX Orin"}


def test_the_markdown_has_our_rows_and_the_published_ones(network: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    printed = run(
        "--model", network, *FAST, "--state", tmp_path, "--precision", "fp32", "--batch", "2",
        "--markdown", file,
    )  # fmt: skip
    text = file.read_text()
    assert text == printed
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 1 + len(bench.PUBLISHED)  # head, ours, theirs
    assert len({row.count("|") for row in rows}) == 1
    assert "| Jetson AGX Orin (published) | fp16 | 64 | 23.09 | 2771.60 |" in text
    assert "trtexec" in text


@pytest.mark.parametrize(
    ("board", "precision", "batch", "rate"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", "fp16", 64, 2771.60),
        ("NVIDIA Jetson AGX Orin Developer Kit", "fp16", 1, 1043.62),
        ("NVIDIA Jetson AGX Orin Developer Kit", "int8", 64, None),
        ("NVIDIA Jetson AGX Orin Developer Kit", "fp16", 8, None),
        ("NVIDIA Jetson Orin Nano", "fp16", 64, None),
        (None, "fp16", 64, None),
    ],
)
def test_published_figures_exist_for_equal_conditions_only(
    board: str | None, precision: str, batch: int, rate: float | None
) -> None:
    found = bench.published(board, precision, batch)
    assert (None if found is None else found.images_per_second) == rate


def test_percentiles_are_those_of_the_runs() -> None:
    latency = bench.Latency.of([0.001 * n for n in range(1, 101)])
    assert latency.p50 == pytest.approx(50.5)
    assert latency.p99 == pytest.approx(99.01)
    assert latency.runs == 100


def test_clocks_and_power_mode_are_reported() -> None:
    reading = Reading(power_mode="MAXN", clocks_locked=True, gpu_mhz=1300.5, board="Orin", throttled=False)
    machine = bench.document([], {}, {"name": "net"}, reading)["machine"]
    assert (machine["power_mode"], machine["clocks_locked"], machine["gpu_mhz"]) == ("MAXN", True, 1300.5)
    assert machine["throttled"] is False


def test_a_network_that_does_not_run_is_an_error_not_an_empty_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one core computes three as one slice
    broken = tiny_networks.fails_for_three(tmp_path / "broken.onnx")
    with pytest.raises(EngineError):
        run("--model", broken, *FAST, "--state", tmp_path, "--precision", "fp32", "--batch", "3")


@pytest.mark.parametrize(("backend", "ours"), [("onnxruntime", False), ("simulated:orin-fp16", True)])
def test_the_separate_rate_is_of_a_session_or_of_an_engine_off_the_cpu(
    network: Path, tmp_path: Path, backend: str, ours: bool
) -> None:
    model = {} if ours else {"model": network, "preprocess": "tao"}
    engine = EngineSettings(backend=backend, max_batch=4, **model)
    embedder = open_embedder(engine, QualitySettings(), tmp_path)
    crops = np.zeros((4, *embedder.engine.input_size, 3), np.uint8)
    assert bench.rate_alone(embedder, crops, seconds=0.01) > 0
    assert (embedder.engine.runs > 0) == ours


def test_int8_is_not_measured_silently_as_something_else(network: Path, tmp_path: Path) -> None:
    reported = json.loads(
        run("--model", network, *FAST, "--state", tmp_path, "--precision", "int8", "--batch", "1", "--json")
    )
    assert reported["rows"] == []
    assert "no INT8 calibration of tiny" in reported["left_out"]["int8"]
