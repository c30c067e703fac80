"""Results in TAO's layout: status file, curve and sampled matches, and the command that writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edge_agent.cli.evaluate import command as evaluate_command
from edge_agent.core.errors import ConfigError, DatasetError, InputError, StorageError
from edge_agent.engine.graph.stripes import STRIPES_PROFILE, write_stripe_model
from edge_agent.offline.synthetic.crops import write_dataset
from edge_agent.offline.tao.pictures import cmc_picture
from edge_agent.offline.tao.status import StatusFile, TrainingStatus
from edge_agent.offline.train.watch import Step

app = typer.Typer()
app.command()(evaluate_command)


def evaluate(*arguments: str | Path, fails: bool = False) -> Any:
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=fails)
    assert (result.exit_code != 0) == fails, result.output
    return result.exception if fails else json.loads(result.stdout)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered")
    write_dataset(root, identities=8, cameras=3, per_identity=6, seed=3, test_share=0.9, workers=1)
    return root


@pytest.fixture(scope="module")
def spec(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """`-e` with a spec as TAO writes it, and what it asks for."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[train]'")
    from tests.offline import tao_specs

    folder = tmp_path_factory.mktemp("spec")
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(tao_specs.release_5_5()))
    model = write_stripe_model(folder / "model.onnx")
    return (
        "-e", str(path), f"evaluate.checkpoint={model}", f"evaluate.query_dataset={rendered / 'query'}",
        f"evaluate.test_dataset={rendered / 'bounding_box_test'}", "--preprocess", STRIPES_PROFILE, "--json",
    )  # fmt: skip


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "status.json").read_text().splitlines()]


def picture(path: Path) -> np.ndarray:
    found = cv2.imread(str(path))
    assert found is not None
    return found


class TestStatusFile:
    def test_fields_as_in_tao(self, tmp_path: Path):
        with StatusFile(tmp_path / "new", "evaluate") as status:
            status.write("Test metrics generated.", kpi={"mAP": 0.5})
        first, second, last = lines(tmp_path / "new")
        assert list(first) == ["date", "time", "status", "verbosity", "message"]
        assert re.fullmatch(r"[1-9]\d?/[1-9]\d?/\d{4}", first["date"])
        assert re.fullmatch(r"\d{1,2}:\d{1,2}:\d{1,2}", first["time"])
        assert (first["status"], first["message"]) == ("STARTED", "Starting ReIdentification evaluate.")
        assert (second["status"], second["verbosity"], second["kpi"]) == ("RUNNING", "INFO", {"mAP": 0.5})
        assert (last["message"], last["kpi"]) == ("Evaluate finished successfully.", {"mAP": 0.5})

    def test_a_failure_and_an_interruption_are_written_after_what_is_there(self, tmp_path: Path):
        with pytest.raises(InputError), StatusFile(tmp_path, "train"):
            raise InputError("no such picture")
        with pytest.raises(KeyboardInterrupt), StatusFile(tmp_path, "train"):
            raise KeyboardInterrupt
        said = [(line["status"], line["message"]) for line in lines(tmp_path)]
        start = ("STARTED", "Starting ReIdentification train.")
        assert said == [start, ("FAILURE", "no such picture"), start, ("FAILURE", "Train was interrupted")]

    def test_epochs(self, tmp_path: Path):
        with StatusFile(tmp_path, "train") as status:
            training = TrainingStatus(status, epochs=3)
            training.begin()
            for number in (1, 2):
                losses = {"total": float(number), "triplet": 9.0}
                training.on_step(Step(1, number, 2, 2 + number, losses, number / 4, 1e-3, 30.0))
            training.on_evaluation({"mAP": 0.25, "rank1": 0.5, "rank5": 0.75, "rank10": 1.0})
            training.end(stopped=True)
        _, begin, train, progress, figures, last = lines(tmp_path)
        assert begin["message"] == "Starting Training Loop."
        assert train["kpi"] == {"train_loss": 1.5, "train_acc": 0.375}
        assert list(progress)[:7] == [
            "epoch", "step", "max_epoch", "max_step", "time_per_epoch", "time_per_step", "eta"
        ]  # fmt: skip
        assert [progress[key] for key in ("epoch", "step", "max_epoch", "max_step")] == [1, 4, 2, 6]
        assert (progress["time_per_epoch"], progress["eta"]) == ("0:01:00", "0:01:00")
        assert figures["kpi"] == {
            "cmc_rank_1": "0.5", "cmc_rank_5": "0.75", "cmc_rank_10": "1.0", "mAP": "0.25"
        }  # fmt: skip
        assert (last["status"], last["message"]) == ("FAILURE", "Train was interrupted")

    def test_a_folder_that_cannot_be(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(StorageError, match=r"cannot write the status file .*status\.json"),
            StatusFile(tmp_path / "file", "train"),
        ):
            pass


@pytest.mark.parametrize(
    "cmc", [[0.9, 0.95, 1.0], [0.0], [1.0] * 10, [0.501, 0.502], list(np.linspace(0, 1, 50))]
)
def test_the_curve_rises_inside_its_frame(cmc: list[float]):
    drawn = cmc_picture(cmc)
    assert drawn.shape == (480, 640, 3)
    down, across = np.nonzero((drawn == (180, 119, 31)).all(axis=2))
    assert len(down)
    assert (across.min() > 80, across.max() < 576) == (True, True)
    assert (down.min() > 58, down.max() < 427) == (True, True)
    left, right = down[across == across.min()].mean(), down[across == across.max()].mean()
    assert right <= left + 6


class TestEvaluate:
    def test_a_data_set(self, rendered: Path, tmp_path: Path):
        document = evaluate(rendered, "--model", "colour-stripes", "--tao-results", tmp_path, "--json")
        folder = tmp_path / "evaluate"
        assert {path.name for path in folder.iterdir()} == {
            "status.json",
            "cmc_curve.png",
            "sampled_matches.png",
        }
        kpi = lines(folder)[1]["kpi"]
        assert kpi == {"mAP": document["mAP"]} | {f"cmc_rank_{k}": document[f"rank{k}"] for k in (1, 5, 10)}
        assert [line["status"] for line in lines(folder)] == ["STARTED", "RUNNING", "RUNNING"]
        assert picture(folder / "cmc_curve.png").shape == (480, 640, 3)

    def test_sampled_matches_have_blue_green_and_red_borders(self, rendered: Path, tmp_path: Path):
        evaluate(rendered, "--model", "colour-stripes", "--tao-results", tmp_path, "--json")
        drawn = picture(tmp_path / "evaluate" / "sampled_matches.png")
        assert drawn.shape == (40 + 10 * 134 + 26, 11 * 70 + 6, 3)
        borders = [
            [
                tuple(int(one) for one in drawn[40 + 134 * row + 2, 6 + 70 * column + 32])
                for column in range(11)
            ]
            for row in range(10)
        ]
        assert {row[0] for row in borders} == {(255, 0, 0)}
        assert {one for row in borders for one in row[1:]} == {(0, 128, 0), (0, 0, 255)}

    def test_a_spec_of_tao_names_network_crops_and_files(self, spec: tuple[str, ...], tmp_path: Path):
        curve, matches = tmp_path / "new" / "curve.jpg", tmp_path / "matches.png"
        named = (f"evaluate.output_cmc_curve_plot={curve}", f"evaluate.output_sampled_matches_plot={matches}")
        document = evaluate(*spec, *named, "re_ranking.num_query=3", "re_ranking.max_rank=4")
        assert document["queries"] > 0
        assert document["reranking"] is None
        assert picture(curve).shape == (480, 640, 3)
        assert picture(matches).shape == (40 + 3 * 134 + 26, 5 * 70 + 6, 3)
        assert {path.name for path in tmp_path.iterdir()} == {"new", "matches.png"}
        again = evaluate(
            *spec, "re_ranking.re_ranking=true", "re_ranking.k1=5", f"evaluate.results_dir={tmp_path}/r"
        )
        assert again["reranking"] == "k-reciprocal k1=5 k2=6 lambda=0.3"
        assert (tmp_path / "r" / "status.json").exists()

    def test_what_is_not_used_is_said(self, spec: tuple[str, ...]):
        result = CliRunner().invoke(app, list(spec), catch_exceptions=False)
        assert (
            "note: not used by evaluate: dataset, encryption_key, export, inference, model, results_dir"
            in result.stderr
        )

    @pytest.mark.parametrize(
        ("given", "error", "said"),
        [
            (
                ["evaluate.query_dataset="],
                ConfigError,
                "evaluate.query_dataset and evaluate.test_dataset must",
            ),
            (["evaluate.checkpoint=null"], ConfigError, "evaluate.checkpoint must name a network"),
            (["evaluate.checkpoint=???"], ConfigError, "evaluate.checkpoint must be given"),
            (["evaluate.test_dataset=/nowhere"], DatasetError, "/nowhere is not a folder"),
            (["evaluate.output_cmc_curve_plot=/x/curve.pdf"], ConfigError, "name such a file"),
            (["evaluate.output_cmc_curve_plot=/proc/x.png"], StorageError, "/proc"),
            (["evaluate.output_sampled_matches_plot=/dev/null/x.png"], StorageError, "/dev/null"),
            (["evaluate.num_gpus=2"], ConfigError, "evaluate.num_gpus: 2 is not supported here"),
            (["evaluate.chekpoint=x"], ConfigError, "did you mean evaluate.checkpoint"),
            (["re_ranking.k1=0"], ConfigError, "re_ranking.k1: "),
        ],
    )
    def test_refusals(self, given: list[str], error: type[Exception], said: str, spec: tuple[str, ...]):
        problem = evaluate(*spec, *given, fails=True)
        assert isinstance(problem, error)
        assert said in str(problem)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["-e", "x.yaml", "--model", "y.onnx"], "--model cannot be given with -e"),
            (["-e", "x.yaml", "--rerank"], "--rerank cannot be given with -e"),
            (["data", "train.num_epochs=1"], "KEY=VALUE needs -e SPEC.yaml"),
        ],
    )
    def test_contradictions(self, given: list[str], said: str):
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 2
        assert said in " ".join(result.output.replace("│", " ").split())

    def test_two_networks_have_no_results_of_tao(self, rendered: Path, tmp_path: Path):
        networks = ("--compare", "colour-stripes", "colour-stripes")
        result = CliRunner().invoke(app, [str(rendered), *networks, "--tao-results", str(tmp_path)])
        assert result.exit_code == 2
        assert not list(tmp_path.iterdir())

    def test_an_evaluation_that_fails_says_so_in_the_status(self, rendered: Path, tmp_path: Path):
        evaluate(rendered, "--model", tmp_path / "none.onnx", "--tao-results", tmp_path, fails=True)
        assert lines(tmp_path / "evaluate")[-1]["status"] == "FAILURE"
