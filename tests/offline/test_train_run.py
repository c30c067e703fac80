"""Whole small runs: resume bit for bit, stop on a signal, evaluation between epochs, the command."""

from __future__ import annotations

# ruff: noqa: E402  # whether torch is there decides whether the rest can be imported
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[train]'")
pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[train]'")

import typer
import yaml
from typer.testing import CliRunner

from edge_agent.cli import train as train_command
from edge_agent.core.errors import ConfigError, InputError, ModelError
from edge_agent.offline.dataset import Split
from edge_agent.offline.train.checkpoint import Checkpoint, network_of
from edge_agent.offline.train.data import LeftOut, PictureSet, TrainingBatches, decode, normalise, read_folder
from edge_agent.offline.train.loop import Trainer, embed_pictures
from edge_agent.offline.train.spec import Spec, parse_spec
from edge_agent.offline.train.watch import Step

HEIGHT, WIDTH = 64, 32


def paint(folder: Path, people: range, per_person: int, cameras: int = 2) -> None:
    """Crops of two-coloured figures: each person has their own colours."""
    folder.mkdir(parents=True, exist_ok=True)
    for person in people:
        colours = np.random.default_rng(person).integers(30, 220, (2, 3))
        for number in range(per_person):
            rng = np.random.default_rng((person, number, len(folder.name)))
            image = rng.integers(0, 40, (HEIGHT, WIDTH, 3)).astype(np.int64)
            image[8:32, 8:24] += colours[0]
            image[32:60, 8:24] += colours[1]
            name = f"{person:04d}_c{number % cameras + 1}s1_{number:06d}_00.jpg"
            cv2.imwrite(str(folder / name), np.clip(image, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight people to learn from, four to find again; junk and a distractor among them."""
    root = tmp_path_factory.mktemp("market")
    paint(root / "bounding_box_train", range(1, 9), 4)
    paint(root / "bounding_box_test", range(11, 15), 4)
    paint(root / "query", range(11, 15), 2)
    paint(root / "bounding_box_test", range(1), 2)
    junk = root / "bounding_box_train" / "0001_c1s1_000000_00.jpg"
    (root / "bounding_box_train" / "-1_c1s1_000000_00.jpg").write_bytes(junk.read_bytes())
    return root


def small_spec(market: Path, **changes: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """A spec that trains in a second an epoch."""
    spec: dict[str, dict[str, object]] = {
        "model": {
            "backbone": "mobilenet_v2",
            "input_height": HEIGHT,
            "input_width": WIDTH,
            "feat_dim": 64,
            "pretrain_choice": "none",
        },
        "dataset": {
            "train_dataset_dir": str(market / "bounding_box_train"),
            "query_dataset_dir": str(market / "query"),
            "test_dataset_dir": str(market / "bounding_box_test"),
            "batch_size": 8,
            "num_instances": 4,
            "num_workers": 0,
            "padding": 4,
        },
        "train": {
            "num_epochs": 2,
            "checkpoint_interval": 1,
            "validation_interval": 1,
            "optim": {"base_lr": 1e-3, "warmup_iters": 1},
        },
        "edge_agent": {"threads": 1, "noise_prob": 0.5, "occlusion_prob": 0.5, "mixstyle_prob": 0.5},
    }
    for section, fields in changes.items():
        spec[section] = {**spec.get(section, {}), **fields}
    return spec


class Quiet:
    """A watcher that remembers, and may stop the run after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[Step] = []
        self.stop_after = stop_after
        self.trainer: Trainer | None = None

    def on_step(self, step: Step) -> None:
        self.steps.append(step)
        if self.trainer is not None and len(self.steps) == self.stop_after:
            self.trainer.stop()

    def on_evaluation(self, epoch: int, total: int, figures: Mapping[str, float]) -> None:
        pass


def trained(
    spec: Spec, folder: Path, *, resume: Checkpoint | None = None, stop_after: int | None = None
) -> tuple[Checkpoint, Quiet]:
    assert spec.dataset.train_dataset_dir is not None
    pictures = decode(
        read_folder(spec.dataset.train_dataset_dir, Split.TRAIN),
        size=(HEIGHT, WIDTH),
        cache=folder / "cache",
        threads=1,
    )
    watcher = Quiet(stop_after)
    trainer = Trainer(spec, pictures, folder=folder, evaluation=None, watcher=watcher, resume=resume)
    watcher.trainer = trainer
    return Checkpoint.read(trainer.run()), watcher


def same(a: object, b: object) -> bool:
    """Equality down to the last bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [4, 6], ids=["between epochs", "inside an epoch"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(market: Path, tmp_path: Path, stop_after: int):
    spec = parse_spec(
        small_spec(market, model={"with_center_loss": True}, edge_agent={"ema_decay": 0.9, "threads": 1})
    )
    straight, whole = trained(spec, tmp_path / "straight")
    assert len(whole.steps) == 8
    first, _ = trained(spec, tmp_path / "cut", stop_after=stop_after)
    assert (first.epoch, first.step) == divmod(stop_after, 4)
    torch.manual_seed(999)  # whatever state the new process has
    second, rest = trained(spec, tmp_path / "cut", resume=first)
    assert [step.losses for step in rest.steps] == [step.losses for step in whole.steps[stop_after:]]
    for field in Checkpoint.__slots__:
        assert same(getattr(straight, field), getattr(second, field)), field


def test_threads_that_augment_do_not_change_the_run(market: Path, tmp_path: Path):
    one, _ = trained(parse_spec(small_spec(market)), tmp_path / "a")
    two, _ = trained(parse_spec(small_spec(market, dataset={"num_workers": 2})), tmp_path / "b")
    assert same(one.network, two.network)


@pytest.mark.slow
def test_the_losses_fall_and_people_are_found_again(market: Path, tmp_path: Path):
    plain = {"prob": 0, "re_prob": 0, "padding": 0}
    model = {"backbone": "resnet_18"}
    content = small_spec(market, train={"num_epochs": 5}, dataset=plain, model=model)
    spec = parse_spec({**content, "edge_agent": {"threads": 1}})
    last, watcher = trained(spec, tmp_path)
    early = np.mean([step.losses["total"] for step in watcher.steps[:4]])
    late = np.mean([step.losses["total"] for step in watcher.steps[-4:]])
    assert late < early
    assert set(watcher.steps[0].losses) == {"identity", "triplet", "total"}
    network, _ = network_of(last)
    pictures = decode(
        read_folder(market / "query", Split.TRAIN), size=(HEIGHT, WIDTH), cache=tmp_path, threads=1
    )
    vectors = embed_pictures(network, pictures.images, spec)
    assert vectors.shape == (8, 64)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("dataset", "model", "names"),
    [
        ({"sampler": "softmax"}, {}, {"identity"}),
        ({"sampler": "triplet"}, {}, {"triplet"}),
        ({}, {"metric_loss_type": "triplet_center"}, {"identity", "triplet", "center"}),
        ({}, {"metric_loss_type": "center"}, {"identity", "center"}),
    ],
)
def test_the_losses_that_a_spec_names(market: Path, tmp_path: Path, dataset: dict, model: dict, names: set):
    spec = parse_spec(small_spec(market, dataset=dataset, model=model))
    _, watcher = trained(spec, tmp_path, stop_after=1)
    assert set(watcher.steps[0].losses) == names | {"total"}


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_other_optimisers_step(market: Path, tmp_path: Path, name: str):
    spec = small_spec(market)
    spec["train"]["optim"] = {"name": name, "base_lr": 1e-3}
    spec["train"]["grad_clip"] = 1.0
    _, watcher = trained(parse_spec(spec), tmp_path, stop_after=2)
    assert len(watcher.steps) == 2


def test_a_loss_that_is_no_number_ends_the_run(market: Path, tmp_path: Path):
    spec = small_spec(market)
    spec["train"]["optim"] = {"name": "SGD", "base_lr": 1e15, "warmup_iters": 0}
    with pytest.raises(ModelError, match=r"the loss became .*base_lr"):
        trained(parse_spec(spec), tmp_path)


def test_other_people_cannot_be_resumed(market: Path, tmp_path: Path):
    spec = parse_spec(small_spec(market))
    first, _ = trained(spec, tmp_path / "a", stop_after=1)
    paint(tmp_path / "others", range(21, 29), 4)
    changed = parse_spec(small_spec(market, dataset={"train_dataset_dir": str(tmp_path / "others")}))
    with pytest.raises(ModelError, match="other people"):
        trained(changed, tmp_path / "b", resume=first)


def test_a_wrong_number_of_classes_is_reported(market: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"num_classes is 751.*has 8 identities"):
        trained(parse_spec(small_spec(market, dataset={"num_classes": 751})), tmp_path)


def test_too_few_people_for_a_batch(market: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="no full batch"):
        trained(parse_spec(small_spec(market, dataset={"batch_size": 64})), tmp_path)


def test_fine_tuning_keeps_all_but_the_classifier(market: Path, tmp_path: Path):
    trained(parse_spec(small_spec(market)), tmp_path / "a", stop_after=1)
    paint(tmp_path / "others", range(21, 24), 4)
    model = {"pretrain_choice": "finetune", "pretrained_model_path": str(tmp_path / "a" / "latest.pth")}
    data = {"train_dataset_dir": str(tmp_path / "others"), "batch_size": 8}
    spec = parse_spec(small_spec(market, model=model, dataset=data))
    second, _ = trained(spec, tmp_path / "b", stop_after=1)
    assert second.network["classifier.weight"].shape == (3, 64)


class TestPictures:
    def test_junk_is_left_out_and_labels_are_dense(self, market: Path, tmp_path: Path):
        found = read_folder(market / "bounding_box_train", Split.TRAIN)
        pictures = decode(found, size=(HEIGHT, WIDTH), cache=tmp_path, threads=2)
        assert pictures.images.shape == (32, HEIGHT, WIDTH, 3)
        assert pictures.people.tolist() == list(range(1, 9))
        assert np.unique(pictures.labels).tolist() == list(range(8))

    def test_the_cache_is_used_and_a_changed_file_is_decoded_again(self, market: Path, tmp_path: Path):
        folder = tmp_path / "pictures"
        paint(folder, range(1, 3), 2)

        def images() -> np.ndarray:
            found = read_folder(folder, Split.TRAIN)
            return np.array(decode(found, size=(32, 16), cache=tmp_path / "cache", threads=1).images)

        before = images()
        assert len(list((tmp_path / "cache").iterdir())) == 1
        assert (images() == before).all()
        assert len(list((tmp_path / "cache").iterdir())) == 1
        cv2.imwrite(str(folder / "0001_c1s1_000000_00.jpg"), np.full((70, 30, 3), 255, np.uint8))
        assert (images() != before).any()

    def test_a_broken_picture_is_named(self, tmp_path: Path):
        (tmp_path / "0001_c1s1_000000_00.jpg").write_bytes(b"no picture")
        found = PictureSet((tmp_path / "0001_c1s1_000000_00.jpg",), np.array([1]), np.array([1]), LeftOut())
        with pytest.raises(InputError, match="0001_c1s1_000000_00"):
            decode(found, size=(32, 16), cache=tmp_path / "cache", threads=1)

    def test_normalisation_is_the_profile_tao(self):
        image = np.array([[[0, 128, 255]]], np.uint8)[None]  # blue 0, green 128, red 255
        found = normalise(image, Spec(), torch.device("cpu")).flatten().tolist()
        expected = [(1 - 0.485) / 0.226, (128 / 255 - 0.456) / 0.226, (0 - 0.406) / 0.226]
        assert found == pytest.approx(expected, abs=1e-5)

    def test_batches_do_not_depend_on_where_iteration_starts(self, market: Path, tmp_path: Path):
        spec = parse_spec(small_spec(market))
        found = read_folder(market / "bounding_box_train", Split.TRAIN)
        batches = TrainingBatches(decode(found, size=(HEIGHT, WIDTH), cache=tmp_path, threads=1), spec)
        whole, rest = list(batches.iterate(3)), list(batches.iterate(3, first=2))
        assert len(whole) == 4
        assert all((a.images == b.images).all() for a, b in zip(whole[2:], rest, strict=True))


app = typer.Typer()
app.command()(train_command.command)


def write_spec(path: Path, content: Mapping[str, object]) -> Path:
    path.write_text(yaml.safe_dump(dict(content)))
    return path


class TestCommand:
    def test_a_run_from_spec_to_figures(self, market: Path, tmp_path: Path):
        spec = write_spec(
            tmp_path / "s.yaml", {**small_spec(market), "results_dir": str(tmp_path / "results")}
        )
        result = CliRunner().invoke(app, [str(spec), "--json"], catch_exceptions=False)
        assert result.exit_code == 0
        reported = json.loads(result.stdout)
        assert reported["identities"] == 8
        assert [row["epoch"] for row in reported["history"]] == [1, 2]
        assert {"mAP", "rank1", "rank5", "rank10"} <= reported["history"][0].keys()
        folder = tmp_path / "results" / "train"
        assert {"latest.pth", "best.pth", "epoch_001.pth", "epoch_002.pth"} <= {
            p.name for p in folder.iterdir()
        }
        rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
        assert sum("evaluation" in row for row in rows) == 2
        again = CliRunner().invoke(app, [str(spec)])
        assert isinstance(again.exception, ConfigError)
        assert "--resume" in str(again.exception)

    def test_a_run_as_on_taos_command_line(self, market: Path, tmp_path: Path):
        spec = write_spec(tmp_path / "s.yaml", {**small_spec(market), "wandb": {"enable": False}})
        arguments = [
            "-e",
            str(spec),
            "train.num_epochs=1",
            "train.optim.steps=[5]",
            "--tao-results",
            str(tmp_path),
        ]
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert "note: not used by train: wandb" in result.stderr
        assert json.loads(result.stdout)["checkpoint"] == str(tmp_path / "train" / "latest.pth")
        rows = [json.loads(line) for line in (tmp_path / "train" / "status.json").read_text().splitlines()]
        assert [row["message"] for row in rows] == [
            "Starting ReIdentification train.", "Starting Training Loop.", "Train metrics generated.",
            "Training loop in progress", "Eval metrics generated.", "Training loop complete.",
            "Train finished successfully.",
        ]  # fmt: skip
        assert set(rows[4]["kpi"]) == {"cmc_rank_1", "cmc_rank_5", "cmc_rank_10", "mAP"}

    @pytest.mark.slow
    def test_a_checkpoint_is_evaluated_as_by_tao(self, market: Path, tmp_path: Path):
        from edge_agent.cli import evaluate

        path = write_spec(tmp_path / "s.yaml", small_spec(market))
        values = ["train.num_epochs=1", "model.backbone=resnet_18", "--tao-results", str(tmp_path), "--json"]
        result = CliRunner().invoke(app, ["-e", str(path), *values], catch_exceptions=False)
        trained = json.loads(result.stdout)
        measure = typer.Typer()
        measure.command()(evaluate.command)
        values = [
            f"evaluate.checkpoint={trained['checkpoint']}",
            f"evaluate.query_dataset={market / 'query'}",
            f"evaluate.test_dataset={market / 'bounding_box_test'}",
            "--tao-results", str(tmp_path), "--json",
        ]  # fmt: skip
        result = CliRunner().invoke(measure, ["-e", str(path), *values], catch_exceptions=False)
        document = json.loads(result.stdout)
        assert (document["model"]["name"], document["model"]["preprocess"]) == ("latest", "tao")
        assert trained["history"][0]["mAP"] == pytest.approx(document["mAP"], abs=0.02)
        assert (tmp_path / "evaluate" / "cmc_curve.png").exists()

    @pytest.mark.parametrize(
        ("values", "folder"),
        [
            (["results_dir={tmp}/a"], "a/train"),
            (["results_dir={tmp}/a", "train.results_dir={tmp}/b"], "b"),
            (["train.results_dir={tmp}/b", "--results-dir", "{tmp}/c"], "c/train"),
            (["--tao-results", "{tmp}/d"], "d/train"),
            (["--tao-results", "{tmp}/d", "results_dir={tmp}/a"], "a/train"),
        ],
    )
    def test_where_results_go(
        self, values: list[str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        found: list[Path] = []

        def run(_: object, where: Path, **__: object) -> dict[str, object]:
            found.append(where)
            return {"checkpoint": "x", "best": None}

        monkeypatch.setattr(train_command, "_run", run)
        spec = write_spec(tmp_path / "s.yaml", {})
        arguments = [value.replace("{tmp}", str(tmp_path)) for value in values]
        CliRunner().invoke(app, [str(spec), *arguments], catch_exceptions=False)
        assert found == [tmp_path / folder]

    @pytest.mark.parametrize("given", [[], ["train.num_epochs=3"], ["--resume"]])
    def test_a_spec_must_be_named(self, given: list[str]):
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 2
        assert "name the spec: -e SPEC.yaml" in result.output

    @pytest.mark.slow
    def test_resnet_50_as_the_card_has_it_trained_exported_evaluated(self, market: Path, tmp_path: Path):
        from edge_agent.cli import evaluate, export

        content = small_spec(market, train={"num_epochs": 1})
        content["model"] = {"backbone": "resnet_50", "feat_dim": 256, "pretrain_choice": "none"}
        content["dataset"]["batch_size"] = 32  # all of them: one step
        spec = write_spec(tmp_path / "s.yaml", content)
        CliRunner().invoke(app, [str(spec), "--results-dir", str(tmp_path)], catch_exceptions=False)
        rest = typer.Typer()
        rest.command("export")(export.command)
        rest.command("evaluate")(evaluate.command)
        model = str(tmp_path / "reidentificationnet.onnx")
        checkpoint = str(tmp_path / "train" / "latest.pth")
        CliRunner().invoke(rest, ["export", checkpoint, "-o", model], catch_exceptions=False)
        arguments = ["evaluate", str(market), "--model", model, "--preprocess", "tao", "--json"]
        reported = json.loads(CliRunner().invoke(rest, arguments, catch_exceptions=False).stdout)
        assert reported["queries"] == 8
        assert 0 < reported["mAP"] <= 1

    def test_scalars_for_tensorboard(self, market: Path, tmp_path: Path):
        pytest.importorskip("tensorboard", reason="tensorboard is not installed")
        spec = write_spec(tmp_path / "s.yaml", small_spec(market, train={"num_epochs": 1}))
        CliRunner().invoke(app, [str(spec), "--results-dir", str(tmp_path)], catch_exceptions=False)
        (events,) = (tmp_path / "train").glob("events.out.tfevents.*")
        assert b"loss/triplet" in events.read_bytes()

    def test_a_folder_whose_name_is_not_utf8_has_no_scalars(self, market: Path, tmp_path: Path):
        spec = write_spec(tmp_path / "s.yaml", small_spec(market, train={"num_epochs": 1}))
        results = tmp_path / os.fsdecode(b"\xff")
        CliRunner().invoke(app, [str(spec), "--results-dir", str(results)], catch_exceptions=False)
        assert (results / "train" / "latest.pth").is_file()

    def test_too_little_memory_is_one_error(
        self, market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(_: Trainer) -> Path:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

        monkeypatch.setattr(Trainer, "run", fail)
        spec = write_spec(tmp_path / "s.yaml", small_spec(market))
        error = CliRunner().invoke(app, [str(spec), "--results-dir", str(tmp_path)]).exception
        assert isinstance(error, ConfigError)
        assert "smaller dataset.batch_size" in str(error)

    def test_re_ranking_changes_the_figures(self, market: Path, tmp_path: Path):
        spec = small_spec(market, train={"num_epochs": 1}, re_ranking={"re_ranking": True, "k1": 3, "k2": 2})
        path = write_spec(tmp_path / "s.yaml", spec)
        result = CliRunner().invoke(
            app, [str(path), "--results-dir", str(tmp_path), "--json"], catch_exceptions=False
        )
        assert 0 < json.loads(result.stdout)["best"] <= 1

    def test_a_spec_without_results_dir_is_refused(self, market: Path, tmp_path: Path):
        path = write_spec(tmp_path / "s.yaml", small_spec(market))
        assert "results_dir" in str(CliRunner().invoke(app, [str(path)]).exception)

    def test_sigint_leaves_a_checkpoint_that_goes_on(self, market: Path, tmp_path: Path):
        spec = write_spec(tmp_path / "s.yaml", small_spec(market, train={"num_epochs": 500}))
        code = "import typer; from edge_agent.cli.train import command; typer.run(command)"
        arguments = [str(spec), "--results-dir", str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(train_command.__file__).parents[2])}
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment)
        try:
            record = tmp_path / "train" / "training.jsonl"
            deadline = time.monotonic() + 90
            while not (record.exists() and record.read_text()) and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        saved = Checkpoint.read(tmp_path / "train" / "latest.pth")
        assert saved.epoch * 4 + saved.step > 0
        assert saved.epoch < 500
        network_of(saved)
