"""`edge-agent export` for networks that the agent runs: which one, in which precision, to which target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edge_agent.cli import export
from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError
from edge_agent.core.loading import state_folder
from edge_agent.engine.models import default_model
from edge_agent.engine.profiles import profile_of
from edge_agent.offline.calibrate.job import Job
from tests import tiny_networks
from tests.engine.test_calibration_use import request

app = typer.Typer()
app.command()(export.command)


def run(*words: object, config: Path | str = os.devnull) -> dict[str, Any]:
    """What `edge-agent export WORDS --json` prints."""
    arguments = [*map(str, words), "--config", str(config), "--json"]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_networks.reid(tmp_path / "tiny.onnx")


def test_without_a_model_it_is_what_the_agent_runs(tmp_path: Path) -> None:
    shipped = default_model()
    assert shipped is not None
    found = run("--triton", tmp_path / "repo", "--state", tmp_path / "state")
    assert found["model"] == str(tmp_path / "repo" / "reidentification" / "1" / "model.onnx")
    assert (found["card"]["file"], found["card"]["precision"]) == ("default.onnx", "fp32")
    assert found["card"]["file_card"]["trained_identities"] == "1092"
    assert found["max_batch"] == 64
    assert not (tmp_path / "state").exists()


def test_the_active_calibration_is_used_and_named(tmp_path: Path) -> None:
    network, state = tiny_networks.convolutional(tmp_path / "c.onnx"), state_folder(tmp_path / "state")
    calibration = Job(request(network, state, None)).run().calibration
    assert calibration.precision == "fp16"
    config = tmp_path / "config.toml"
    config.write_text(f'state_dir = "{state}"\n[engine]\nmodel = "{network}"\npreprocess = "imagenet"\n')
    words = ("--triton", tmp_path / "repo", "--backend", "onnxruntime", "--overwrite")
    card = run(*words, config=config)["card"]
    assert (card["precision"], card["calibration"]["name"]) == ("fp16", calibration.name)
    card = run(*words, "--precision", "fp32", config=config)["card"]
    assert (card["precision"], card["calibration"]) == ("fp32", None)
    other = tiny_networks.convolutional(tmp_path / "other.onnx", seed=1)
    card = run(other, *words, "--preprocess", "tao", config=config)["card"]
    assert (card["precision"], card["calibration"]) == ("fp32", None)


def test_the_profile_of_the_configured_network_is_not_that_of_another(tiny: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[engine]\npreprocess = "imagenet"\n')
    words = ("--triton", tmp_path / "repo", "--state", tmp_path / "state")
    with pytest.raises(ConfigError, match="the preprocess profile of this network is not known"):
        run(tiny, *words, config=config)
    assert run(tiny, *words, "--preprocess", "swin", config=config)["card"]["preprocess"]["profile"] == "swin"


def test_the_built_in_network_by_its_name(tmp_path: Path) -> None:
    found = run("colour-stripes", "--triton", tmp_path, "--tao", "--max-batch", 4, "--state", tmp_path / "s")
    assert (found["card"]["name"], found["max_batch"]) == ("colour-stripes", 4)


def test_one_file_with_taos_names(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    words = (tiny, "-o", target, "--preprocess", "openvino-raw", "--state", tmp_path / "s")
    found = run(*words, "--note", "licence=MIT")
    assert found["card"]["licence"] == "MIT"
    assert profile_of(target).name == "openvino-raw"
    with pytest.raises(InputError, match=r"out\.onnx exists already"):
        run(*words)
    assert run(*words, "--overwrite")["bytes"] == target.stat().st_size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the target: -o MODEL.onnx, --triton DIR"),
        (["m.onnx"], "name the target"),
        (["-o", "m.onnx", "--triton", "."], "one is possible"),
        (["-o", "m.onnx", "--tao"], "belong to --triton"),
        (["-o", "m.onnx", "--max-batch", "4"], "belong to --triton"),
        (["x.pth", "-o", "m.onnx", "--precision", "fp16"], "--precision, .*: a checkpoint is exported"),
        (["missing.onnx", "-o", "m.onnx"], "no such model file"),
        ([".", "-o", "m.onnx"], "if it is a state folder, export what its agent runs with --state"),
        (["-o", "nowhere/m.onnx"], "does not exist; make it first"),
        (["--triton", "nowhere/repo"], "does not exist; make it first"),
        (["-o", "m.onnx", "--backend", "cuda"], "engine.backend"),
        (["-o", "m.onnx", "--precision", "int8"], "no INT8 calibration"),
        (["--triton", "r", "--max-batch", "5000"], "engine.max_batch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EdgeAgentError, match=said):
        run(*words, "--state", tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_the_lines_for_people(tiny: Path, tmp_path: Path) -> None:
    words = [str(tiny), "--triton", str(tmp_path / "repo"), "--tao", "--preprocess", "tao"]
    words += ["--config", os.devnull, "--state", str(tmp_path / "s")]
    shown = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert f"tritonserver --model-repository={tmp_path / 'repo'}" in shown
    assert "tiny.onnx, FP32" in shown
    assert "in its own way, whatever the profile (tao)" in shown
