"""ONNX from checkpoints: TAO's names, equality with PyTorch, model card, refusals."""

from __future__ import annotations

# ruff: noqa: E402  # whether torch is there decides whether the rest can be imported
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[train]'")
pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[train]'")

import typer
from typer.testing import CliRunner

from edge_agent.cli import export as export_command
from edge_agent.core.errors import ConfigError, ModelError
from edge_agent.offline.train import export
from edge_agent.offline.train.checkpoint import Checkpoint, network_of
from edge_agent.offline.train.export import TOLERANCE, export_onnx
from edge_agent.offline.train.network import Deployed, build_network, state_of
from edge_agent.offline.train.optim import batch_hard_triplet, build_optimizer, identity_loss
from edge_agent.offline.train.spec import Spec, parse_spec


def saved(spec: Spec, path: Path, *, people: int = 4, steps: int = 0) -> Path:
    """A checkpoint of a network after some steps on noise."""
    torch.manual_seed(0)
    network = build_network(spec.model, spec.edge_agent, people).train()
    optimizer = build_optimizer(network, spec)
    labels = torch.arange(people).repeat_interleave(2)
    for _ in range(steps):
        pool = spec.edge_agent.input_pool
        size = (spec.model.input_height // pool, spec.model.input_width // pool)
        before, _, logits = network(torch.randn(len(labels), 3, *size))
        loss = identity_loss(logits, labels, smooth=True) + batch_hard_triplet(before, labels, margin=0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    Checkpoint(
        spec=spec.model_dump(mode="json"),
        epoch=3,
        step=0,
        people=list(range(1, people + 1)),
        network=state_of(network),
        averaged=None,
        optimizer=optimizer.state_dict(),
        center=None,
        scaler=None,
        random={"cpu": torch.get_rng_state()},
        history=[{"epoch": 3.0, "mAP": 0.5}],
        best=0.5,
    ).write(path)
    return path


LIGHT = parse_spec(
    {
        "encryption_key": "nvidia_tao",
        "dataset": {"train_dataset_dir": "/home/somebody/market"},
        "model": {"backbone": "mobilenet_v2", "feat_dim": 128, "pretrain_choice": "none"},
        "edge_agent": {"input_pool": 2, "part_stripes": 4, "part_levels": [7, 14]},
    }
)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(LIGHT, tmp_path_factory.mktemp("light") / "light.pth", steps=2)


@pytest.fixture
def traced_once(
    light: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`light` is traced once for all tests of what comes before and after that; all of the rest is done."""
    kept = tmp_path_factory.getbasetemp() / "light.traced.onnx"
    trace = export.traced

    def traced(*arguments: object) -> bytes:
        if not kept.exists():
            kept.write_bytes(trace(*arguments))
        return kept.read_bytes()

    monkeypatch.setattr(export, "traced", traced)


def test_names_shapes_and_dynamic_batch(light: Path, tmp_path: Path):
    done = export_onnx(light, tmp_path / "m.onnx")
    assert done.difference <= TOLERANCE
    assert done.size == (tmp_path / "m.onnx").stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("input", "tensor(float)", ["batch", 3, 256, 128])
    assert (result.name, result.type, result.shape) == ("fc_pred", "tensor(float)", ["batch", 128])
    for count in (1, 5):
        (found,) = session.run(None, {"input": np.zeros((count, 3, 256, 128), np.float32)})
        assert found.shape == (count, 128)


def test_equal_to_torch_and_not_of_unit_length(light: Path, tmp_path: Path):
    export_onnx(light, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    pictures = np.random.default_rng(7).standard_normal((4, 3, 256, 128), np.float32)
    (found,) = session.run(["fc_pred"], {"input": pictures})
    network, _ = network_of(Checkpoint.read(light))
    with torch.inference_mode():
        expected = Deployed(network, 2).eval()(torch.from_numpy(pictures)).numpy()
    assert np.abs(found - expected).max() <= TOLERANCE
    assert not np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-2)


@pytest.mark.usefixtures("traced_once")
def test_the_model_card_describes_the_model_without_local_paths(light: Path, tmp_path: Path):
    export_onnx(light, tmp_path / "m.onnx", notes={"licence": "Apache-2.0"})
    model = onnx.load(tmp_path / "m.onnx")
    card = {entry.key: entry.value for entry in model.metadata_props}
    assert card["preprocess_profile"] == "tao"
    assert card["licence"] == "Apache-2.0"
    assert (card["backbone"], card["dimension"], card["trained_identities"]) == ("mobilenet_v2", "128", "4")
    assert json.loads(card["held_back_figures"])["mAP"] == 0.5
    spec = json.loads(card["spec"])
    assert spec["edge_agent"]["input_pool"] == 2
    assert "somebody" not in str(card)
    assert "nvidia_tao" not in str(card)


@pytest.mark.usefixtures("traced_once")
def test_an_existing_file_is_kept(light: Path, tmp_path: Path):
    target = tmp_path / "m.onnx"
    target.write_bytes(b"precious")
    with pytest.raises(ModelError, match="exists already"):
        export_onnx(light, target)
    assert target.read_bytes() == b"precious"
    export_onnx(light, target, overwrite=True)
    assert target.stat().st_size > 1_000_000


@pytest.mark.usefixtures("traced_once")
def test_nothing_is_written_when_the_two_differ(light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="nothing was written"):
        export_onnx(light, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_averaged_weights_are_preferred(light: Path, tmp_path: Path):
    checkpoint = Checkpoint.read(light)
    averaged = {name: torch.zeros_like(value) for name, value in checkpoint.network.items()}
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__slots__}
    Checkpoint(**{**fields, "averaged": averaged}).write(tmp_path / "a.pth")
    network, _ = network_of(Checkpoint.read(tmp_path / "a.pth"))
    assert not network.embedding.weight.any()


@pytest.mark.slow
def test_the_networks_of_the_card_after_one_step(tmp_path: Path):
    """ResNet-50 as NVIDIA's spec has it: built, one step trained, exported, found fit for matching."""
    spec = parse_spec({"model": {"pretrain_choice": "none"}})
    done = export_onnx(saved(spec, tmp_path / "r.pth", steps=1), tmp_path / "r.onnx")
    assert done.dimension == 256
    assert 90e6 < done.size < 100e6  # NVIDIA's own file has 96.4 MB
    session = onnxruntime.InferenceSession(str(tmp_path / "r.onnx"), providers=["CPUExecutionProvider"])
    pictures = np.random.default_rng(1).standard_normal((3, 3, 256, 128), np.float32)
    (found,) = session.run(["fc_pred"], {"input": pictures})
    (again,) = session.run(["fc_pred"], {"input": pictures[::-1]})
    assert np.allclose(found, again[::-1], atol=1e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "loaded safely"), (b"junk" * 100, "loaded safely")],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        export_onnx(path, tmp_path / "m.onnx")


def test_weights_alone_are_no_checkpoint(tmp_path: Path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="not a checkpoint"):
        export_onnx(tmp_path / "w.pth", tmp_path / "m.onnx")


def test_a_checkpoint_of_another_layout_is_refused(light: Path, tmp_path: Path):
    content = torch.load(light, weights_only=True)
    torch.save({**content, "version": 99}, tmp_path / "v.pth")
    with pytest.raises(ModelError, match="layout version 99"):
        export_onnx(tmp_path / "v.pth", tmp_path / "m.onnx")
    del content["people"]
    torch.save(content, tmp_path / "d.pth")
    with pytest.raises(ModelError, match="damaged"):
        export_onnx(tmp_path / "d.pth", tmp_path / "m.onnx")


app = typer.Typer()
app.command()(export_command.command)


class TestCommand:
    @pytest.mark.usefixtures("traced_once")
    def test_json(self, light: Path, tmp_path: Path):
        arguments = [str(light), "-o", str(tmp_path / "m.onnx"), "--note", "licence=Apache-2.0", "--json"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        reported = json.loads(result.stdout)
        assert reported["dimension"] == 128
        assert reported["card"]["licence"] == "Apache-2.0"
        assert len(reported["sha256"]) == 64

    @pytest.mark.usefixtures("traced_once")
    def test_a_spec_names_both_files(self, light: Path, tmp_path: Path):
        spec = tmp_path / "s.yaml"
        spec.write_text(f"export: {{checkpoint: {light}, onnx_file: {tmp_path / 'named.onnx'}}}\n")
        result = CliRunner().invoke(app, [str(spec)], catch_exceptions=False)
        assert result.exit_code == 0
        assert (tmp_path / "named.onnx").exists()

    @pytest.mark.usefixtures("traced_once")
    def test_a_spec_of_tao_with_values(self, light: Path, tmp_path: Path):
        spec = tmp_path / "s.yaml"
        spec.write_text("results_dir: ???\nexport: {results_dir: '${results_dir}/e', checkpoint: '???'}\n")
        target = tmp_path / "other.onnx"
        values = [f"export.checkpoint={light}", "export.results_dir=null"]
        result = CliRunner().invoke(
            app, ["-e", str(spec), *values, "-o", str(target)], catch_exceptions=False
        )
        assert result.exit_code == 0
        assert target.exists()

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["{spec}"], "export.checkpoint must be given"),
            (["-e", "{spec}", "export.checkpoint="], "export.checkpoint is missing"),
            (["-e", "{spec}", "export.onnx_fil=x"], "did you mean export.onnx_file"),
            (["model.onnx", "export.checkpoint=x", "-o", "{spec}.onnx"], "KEY=VALUE needs a spec"),
        ],
    )
    def test_specs_that_name_no_checkpoint(self, given: list[str], said: str, tmp_path: Path):
        spec = tmp_path / "s.yaml"
        spec.write_text("export: {checkpoint: '???'}\n")
        result = CliRunner().invoke(app, [one.replace("{spec}", str(spec)) for one in given])
        assert isinstance(result.exception, ConfigError)
        assert said in str(result.exception)

    @pytest.mark.slow
    def test_a_checkpoint_goes_into_a_repository_of_triton(self, tmp_path: Path):
        checkpoint = saved(LIGHT, tmp_path / "c.pth")
        arguments = [
            str(checkpoint),
            "--triton",
            str(tmp_path / "repo"),
            "--tao",
            "--note",
            "site=yard",
            "--json",
        ]
        result = CliRunner().invoke(app, [*arguments, "--config", os.devnull], catch_exceptions=False)
        reported = json.loads(result.stdout)
        assert Path(reported["model"]) == tmp_path / "repo" / "re_identification_tao" / "1" / "model.onnx"
        assert reported["card"]["file_card"]["backbone"] == "mobilenet_v2"
        assert reported["card"]["preprocess"]["profile"] == "tao"
        assert reported["card"]["notes"] == {"site": "yard"}
        session = onnxruntime.InferenceSession(reported["model"], providers=["CPUExecutionProvider"])
        assert session.get_outputs()[0].name == "fc_pred"

    def test_an_encrypted_model_is_refused_with_the_way_out(self, tmp_path: Path):
        path = tmp_path / "resnet50_market1501.etlt"
        path.write_bytes(b"\x00" * 64)
        error = CliRunner().invoke(app, [str(path), "-o", str(tmp_path / "m.onnx")]).exception
        assert isinstance(error, ModelError)
        assert "resnet50_market1501_aicity156.onnx" in str(error)
        assert "0e21d09278508ec835955f422a9fdd3cd59b2a6ecdef98d705f388f33cebac2b" in str(error)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [([], "-o MODEL.onnx"), (["-o", "m.onnx", "--note", "licence"], "KEY=TEXT")],
    )
    def test_usage(self, light: Path, arguments: list[str], said: str):
        error = CliRunner().invoke(app, [str(light), *arguments]).exception
        assert isinstance(error, ConfigError)
        assert said in str(error)
