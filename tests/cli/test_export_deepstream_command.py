"""`edge-agent export --deepstream`: which network, in which precision, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from edge_agent.core.errors import ConfigError, EdgeAgentError, InputError, StorageError
from edge_agent.core.loading import state_folder
from edge_agent.engine.graph.folding import FOLDED
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.precision.scales import read_cache
from edge_agent.offline.calibrate.job import Job
from edge_agent.offline.synthetic.crops import write_dataset
from tests import tiny_networks
from tests.cli.test_export_command import app, run, tiny
from tests.engine.test_calibration_use import request

__all__ = ["tiny"]  # a fixture


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    folder = tmp_path / "crops"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 61, 30, 3), np.uint8)
    for number, picture in enumerate(pixels):
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def test_without_a_model_it_is_what_the_agent_runs(tmp_path: Path) -> None:
    found = run("--deepstream", tmp_path / "ds", "--state", tmp_path / "state")
    assert (found["source"], found["profile"], found["precision"]) == ("default.onnx", "tao", "fp16")
    assert found["same"]["least"] > 0.9999
    assert found["crops"] == "16 rendered people"
    assert not (tmp_path / "state").exists()


def test_the_output_names_space_and_cosines(tiny: Path, tmp_path: Path) -> None:
    words = [str(tiny), "--preprocess", "tao", "--deepstream", str(tmp_path / "ds"), "--config", os.devnull]
    text = CliRunner().invoke(app, words).stdout
    space = json.loads((tmp_path / "ds" / "manifest.json").read_text())["data"]["space"]
    assert f"embedding space {space} (detector.external_space): people stretched" in text
    assert "1.000000 at least for the same crop" in text


def test_ranges_of_the_active_calibration_become_a_table(tmp_path: Path) -> None:
    network, state = tiny_networks.convolutional(tmp_path / "c.onnx"), state_folder(tmp_path / "state")
    write_dataset(
        tmp_path / "people", identities=12, cameras=3, per_identity=6, seed=6, test_share=0.7, workers=1
    )
    calibration = Job(request(network, state, tmp_path / "people")).run().calibration
    assert calibration.precision == "int8"
    config = tmp_path / "config.toml"
    config.write_text(f'state_dir = "{state}"\n[engine]\nmodel = "{network}"\npreprocess = "imagenet"\n')
    found = run("--deepstream", tmp_path / "ds", config=config)
    assert (found["precision"], found["space"]) == ("int8", calibration.data["space"])
    table = read_cache((tmp_path / "ds" / "calibration.table").read_bytes())
    scales = calibration.scales()
    assert table.amax
    assert "network/input" in table.amax  # the input of the first convolution
    for name, value in table.amax.items():  # the network has TAO's names, so those inside have a prefix
        plain, factor = name.removeprefix("network/"), 1.0
        if (pixels := f"{FOLDED}{plain}") in scales.amax:  # in the agent, the weights have the scale
            plain, factor = pixels, float(PROFILES["imagenet"].factors.max())
        assert value == pytest.approx(scales.amax[plain] * factor, rel=1e-6)
    tracker = yaml.safe_load((tmp_path / "ds" / "reid_NvDCF.yml").read_text())["ReID"]
    assert tracker["modelEngineFile"].endswith("reid.onnx_b100_gpu0_int8.engine")
    found = run("--deepstream", tmp_path / "half", "--precision", "fp16", config=config)
    assert (found["precision"], found["table_release"]) == ("fp16", "")


@pytest.mark.slow
def test_a_checkpoint(tmp_path: Path, crops: Path) -> None:
    pytest.importorskip("torch")
    from tests.offline.test_export import LIGHT, saved

    found = run(saved(LIGHT, tmp_path / "c.pth"), "--deepstream", tmp_path / "ds", "--crops", crops)
    assert (found["name"], found["profile"], found["precision"]) == ("c", "tao", "fp16")
    CliRunner().invoke(app, [str(tmp_path / "c.pth"), "-o", str(tmp_path / "c.onnx")], catch_exceptions=False)
    again = run(tmp_path / "c.onnx", "--deepstream", tmp_path / "again", "--crops", crops)
    assert again["space"] == found["space"]


def test_own_crops(tiny: Path, tmp_path: Path, crops: Path) -> None:
    (crops / "torn.png").write_bytes((crops / "0.png").read_bytes()[:40])
    words = (tiny, "--preprocess", "imagenet", "--crops", crops, "--deepstream")
    assert run(*words, tmp_path / "ds")["crops"] == f"3 crops of {crops}"
    for picture in crops.glob("?.png"):
        picture.unlink()
    with pytest.raises(InputError, match="no picture that can be read"):
        run(*words, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_nvinferserver_asks_for_the_model_that_triton_serves(tmp_path: Path, crops: Path) -> None:
    """The file names the model, the input and a batch of `edge-agent export --triton DIR --tao`."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    network = tiny_networks.reid(tmp_path / "tiny.onnx")
    common = (network, "--preprocess", "tao")
    run(*common, "--deepstream", tmp_path / "ds", "--crops", crops)
    run(*common, "--triton", tmp_path / "repo", "--tao", "--backend", "onnxruntime")
    asked = (tmp_path / "ds" / "config_inferserver_reid.txt").read_text()
    (served,) = (tmp_path / "repo").iterdir()
    config = model_config.ModelConfig()
    text_format.Parse((served / "config.pbtxt").read_text(), config)
    assert f'model_name: "{served.name}"' in asked
    assert f'tensor_name: "{config.input[0].name}"' in asked
    assert list(config.input[0].dims) == [3, 256, 128]
    assert model_config.DataType.Name(config.input[0].data_type) == "TYPE_FP32"
    assert config.max_batch_size >= int(re.search(r"max_batch_size: (\d+)", asked)[1])


def test_notes_are_in_the_network_and_the_manifest(tiny: Path, tmp_path: Path, crops: Path) -> None:
    import onnx

    run(
        tiny, "--preprocess", "tao", "--crops", crops, "--note", "site=north", "--deepstream", tmp_path / "ds"
    )
    model = onnx.load(tmp_path / "ds" / "reid.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}["site"] == "north"
    assert json.loads((tmp_path / "ds" / "manifest.json").read_text())["data"]["notes"] == {"site": "north"}


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--keep-aspect", "-o", "x.onnx"], ConfigError, "belong to --deepstream"),
        (["--crops", "x", "--triton", "repo"], ConfigError, "belong to --deepstream"),
        (["--deepstream", "ds", "--triton", "repo"], ConfigError, "2 targets"),
        (["--deepstream", "ds", "--tao"], ConfigError, "belong to --triton"),
        (["--deepstream", "ds", "--backend", "onnxruntime"], ConfigError, "TensorRT"),
        (["--deepstream", "ds", "--precision", "int8"], ConfigError, "calibrat"),
        (["--deepstream", "ds", "--crops", "nowhere"], InputError, "nowhere"),
        (["--deepstream", "nowhere/ds"], InputError, "nowhere"),
        (["--deepstream", "file"], InputError, "not a folder"),
        (["--deepstream", "d\udcff"], InputError, "no text"),
        (["--deepstream", "d\n"], InputError, "no text"),
        (["--deepstream", "ds", "--note", "site=\udcff"], ConfigError, "KEY=TEXT"),
        (["--deepstream", "full"], InputError, "--overwrite"),
        (["--deepstream", "full", "--overwrite"], InputError, "mine"),
    ],
    ids=lambda value: ascii(" ".join(value)) if isinstance(value, list) else "",
)
def test_what_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], error: type[EdgeAgentError], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("a file of the user")
    (tmp_path / "file").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=message):
        run(tiny, "--preprocess", "tao", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_leaves_the_former_export(
    tiny: Path, tmp_path: Path, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ds"
    run(tiny, "--preprocess", "tao", "--crops", crops, "--deepstream", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space is left"):
        run(tiny, "--preprocess", "imagenet", "--crops", crops, "--deepstream", folder, "--overwrite")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "ds"))] == ["ds"]
