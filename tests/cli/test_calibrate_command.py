"""`edge-agent calibrate` as its user has it: a small network, rendered people, interruptions, wrong input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.core.errors import EdgeAgentError
from edge_agent.engine.plans.active import ActiveEngine
from edge_agent.offline.synthetic.crops import write_dataset
from tests import tiny_networks

FAST = ("--size", "24", "--target-fmr", "0.02", "--bench-seconds", "0", "--backend", "onnxruntime")
LENIENT = ("--max-map-loss", "1", "--max-rank1-loss", "1", "--min-cosine", "-1")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered people in Market-1501 layout, half of them for the test splits."""
    root = tmp_path_factory.mktemp("people")
    write_dataset(root, identities=16, cameras=3, per_identity=6, seed=5, test_share=0.6, workers=1)
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_networks.convolutional(tmp_path_factory.mktemp("network") / "tiny.onnx")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "edge_agent", "calibrate", *map(str, arguments)]


def but(*options: str) -> tuple[str, ...]:
    """`FAST` with other values for some of its options."""
    chosen = dict(zip(FAST[::2], FAST[1::2], strict=True)) | dict(
        zip(options[::2], options[1::2], strict=True)
    )
    return tuple(word for pair in chosen.items() for word in pair)


def run(*arguments: str | Path) -> Any:
    """The command inside this process: it starts in no time."""
    done = CliRunner().invoke(app, ["calibrate", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def reported(*arguments: str | Path) -> dict[str, Any]:
    return json.loads(run(*arguments, "--json").stdout)


def where(folder: Path) -> tuple[str, str, str, str]:
    return ("--output", str(folder / "engines"), "--state", str(folder / "state"))


@pytest.fixture(scope="module")
def calibrated(
    people: Path, network: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """One whole calibration, and its folder."""
    folder = tmp_path_factory.mktemp("calibrated")
    report = reported(
        "--dataset", people, "--model", network, "--preprocess", "imagenet", *where(folder), *FAST
    )
    return report, folder


# --- what comes of it ----------------------------------------------------------------------------


def test_the_report_has_everything_that_programs_read(calibrated: tuple[dict[str, Any], Path]) -> None:
    report, _ = calibrated
    assert report["precision"] == "int8"
    gate = report["gate"]
    assert gate["passed"] is True
    assert 0 < gate["mAP_fp32"] <= 1
    assert 0 < gate["mAP_candidate"] <= 1
    assert 0 <= gate["rank1_fp32"] <= 1
    assert 0 <= gate["rank1_candidate"] <= 1
    assert gate["cosine_min"] <= gate["cosine_p1"] <= gate["cosine_median"] <= 1.0001
    assert gate["cosine_median"] >= 0.99
    threshold = report["threshold"]
    assert -1 < threshold["value"] < 1
    assert threshold["target_fmr"] == 0.02
    low, high = threshold["fmr_ci"]
    assert low <= threshold["fmr"] <= 0.02
    assert low < high
    assert threshold["pairs"] > 100
    assert report["model"]["preprocess"] == "imagenet"
    assert Path(report["manifest"]).is_file()
    assert report["placement"]["fits_tensorrt"] is True
    assert report["sample"]["size"] == 24
    assert report["sample"]["split"] == "bounding_box_train"


def test_no_calibration_crop_is_in_the_gate(calibrated: tuple[dict[str, Any], Path], people: Path) -> None:
    report, _ = calibrated
    sample = json.loads((Path(report["manifest"]).parent / "sample.json").read_bytes())
    assert all(name.startswith("bounding_box_train/") for name in sample["files"])
    tested = len(list((people / "query").iterdir())) + len(list((people / "bounding_box_test").iterdir()))
    assert report["gate"]["crops"] == tested


def test_the_result_is_active_and_nothing_half_done_is_left(calibrated: tuple[dict[str, Any], Path]) -> None:
    report, folder = calibrated
    active = ActiveEngine(folder / "engines").read()
    assert active.current is not None
    assert active.current["precision"] == "int8"
    calibrations = folder / "engines" / "calibrations"
    assert [path.name for path in calibrations.iterdir() if path.is_dir()] == [active.current["name"]]
    left = {path.name for path in Path(report["manifest"]).parent.iterdir()}
    assert left == {
        "manifest.json", "report.json", "report.html", "int8.onnx", "scales.json", "tensorrt-scales.json",
        "sample.json",
    }  # fmt: skip


def test_the_network_is_measured_on_rendered_people(calibrated: tuple[dict[str, Any], Path]) -> None:
    _, folder = calibrated
    (prior,) = (folder / "state" / "priors").iterdir()
    assert json.loads(prior.read_text())["prior"]["scores"]["source"] == "rendered people"


def test_the_html_report_has_the_same_content(calibrated: tuple[dict[str, Any], Path]) -> None:
    report, _ = calibrated
    page = Path(report["report"]).read_text()
    assert f"{report['threshold']['value']:.4f}" in page
    assert "INT8" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # refers to nothing outside itself


def test_doing_it_again_changes_nothing(
    calibrated: tuple[dict[str, Any], Path], people: Path, network: Path
) -> None:
    report, folder = calibrated
    arguments = ("--dataset", people, "--model", network, "--preprocess", "imagenet", *where(folder), *FAST)
    done = run(*arguments)
    assert "nothing changed" in done.stdout
    assert "embedding" not in done.stderr
    assert reported(*arguments) == report


def test_a_dry_run_prints_the_steps_and_writes_nothing(people: Path, network: Path, tmp_path: Path) -> None:
    plan = reported(
        "--dataset", people, "--model", network, "--preprocess", "imagenet", *where(tmp_path), *FAST,
        "--dry-run",
    )  # fmt: skip
    assert plan["done"] is False
    names = [step["step"] for step in plan["steps"]]
    assert names[:5] == ["sample", "ranges", "reference", "int8", "gate-int8"]
    assert names[-1] == "switch"
    assert not (tmp_path / "engines").exists()


# --- when INT8 does not pass, or cannot be had ----------------------------------------------------


def halfway(report: dict[str, Any]) -> str:
    """A bound between the result of plain INT8 and 1."""
    return str(1 - (1 - report["gate"]["cosine_median"]) / 2)


def test_fp16_is_chosen_and_the_report_gives_the_reason_when_int8_fails(
    calibrated: tuple[dict[str, Any], Path], people: Path, network: Path, tmp_path: Path
) -> None:
    report = reported(
        "--dataset", people, "--model", network, "--preprocess", "imagenet", *where(tmp_path), *FAST,
        "--min-cosine", halfway(calibrated[0]),
    )  # fmt: skip
    assert report["precision"] == "fp16"
    assert report["gate"]["passed"] is False
    assert "median cosine" in report["gate"]["reasons"][0]
    assert report["gates"]["fp16"]["passed"] is True
    assert report["gates"]["fp16"]["cosine_min"] > 0.999


def test_without_a_data_set_there_is_fp16_and_a_policy(network: Path, tmp_path: Path) -> None:
    report = reported("--model", network, "--preprocess", "imagenet", *where(tmp_path), *FAST)
    assert report["precision"] == "fp16"
    assert report["gate"]["passed"] is None
    assert report["threshold"]["value"] is None
    assert "site" in report["threshold"]["reason"]
    assert "--dataset" in report["missing"][0]


def test_a_rate_that_the_pairs_cannot_support_gives_no_threshold(
    people: Path, network: Path, tmp_path: Path
) -> None:
    report = reported(
        "--dataset", people, "--model", network, "--preprocess", "imagenet", *where(tmp_path),
        *but("--target-fmr", "1e-6"),
    )  # fmt: skip
    assert report["threshold"]["value"] is None
    assert "cannot support FMR 1e-06" in report["threshold"]["reason"]


def test_sensitivity_keeps_the_worst_blocks_until_the_gate_passes(
    calibrated: tuple[dict[str, Any], Path], people: Path, network: Path, tmp_path: Path
) -> None:
    report = reported(
        "--dataset", people, "--model", network, "--preprocess", "imagenet", *where(tmp_path), *FAST,
        *LENIENT[:-2], "--min-cosine", halfway(calibrated[0]), "--sensitivity",
    )  # fmt: skip
    table = report["sensitivity"]
    losses = [row["loss"] for row in table["blocks"]]
    assert losses == sorted(losses, reverse=True)
    assert table["passed"] is True
    names = [row["block"] for row in table["blocks"]]
    assert table["kept"] == names[: len(table["kept"])] == [r["block"] for r in table["blocks"] if r["kept"]]
    assert 0 < len(table["kept"]) < len(names)
    assert report["precision"] == "int8"
    assert set(report["keep"]) == {node for row in table["blocks"] if row["kept"] for node in row["nodes"]}
    assert report["placement"]["in_int8"] == 4 - len(report["keep"])


# --- interrupted ----------------------------------------------------------------------------------

STEPS = ("drawing", "measuring ranges", "quantising", "embedding in FP32", "embedding in INT8", "writing")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_in_a_step_the_same_command_finishes_with_the_same_result(
    step: str, calibrated: tuple[dict[str, Any], Path], people: Path, network: Path, tmp_path: Path
) -> None:
    whole, _ = calibrated
    arguments = ("--dataset", people, "--model", network, "--preprocess", "imagenet", *where(tmp_path), *FAST)
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(step):
            process.kill()
            break
    process.stderr.close()
    assert process.wait(30) == -signal.SIGKILL
    assert ActiveEngine(tmp_path / "engines").read().current is None
    report = reported(*arguments)
    for key in ("precision", "gate", "threshold", "placement", "sample", "model"):
        assert report[key] == whole[key], key


def test_ctrl_c_prints_how_to_continue_and_keeps_finished_steps(
    people: Path, network: Path, tmp_path: Path
) -> None:
    arguments = ("--dataset", people, "--model", network, "--preprocess", "imagenet", *where(tmp_path), *FAST)
    process = subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("embedding in INT8"):
            process.send_signal(signal.SIGINT)
    process.stderr.close()
    assert process.wait(30) == 130
    assert any("the same command continues where it stopped" in line for line in seen)
    assert "Traceback" not in "".join(seen)
    again = run(*arguments).stderr
    assert "drawing" not in again
    assert "embedding in FP32" not in again
    assert "embedding in INT8" in again


def test_a_damaged_result_is_made_again(
    calibrated: tuple[dict[str, Any], Path], people: Path, network: Path, tmp_path: Path
) -> None:
    whole, folder = calibrated
    shutil.copytree(folder, tmp_path / "copy")
    graph = next((tmp_path / "copy").rglob("int8.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    report = reported(
        "--dataset", people, "--model", network, "--preprocess", "imagenet", *where(tmp_path / "copy"), *FAST
    )
    assert report["gate"] == whole["gate"]
    assert graph.read_bytes() == next(folder.rglob("int8.onnx")).read_bytes()


# --- wrong input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--dataset", "{missing}"), "missing"),
        (("--dataset", "{empty}"), "bounding_box_train"),
        (("--model", "{missing}.onnx"), "no such model file"),
        (("--precision", "int8"), "INT8 needs crops"),
        (("--target-fmr", "0.9"), "identify.target_fmr"),
        (("--backend", "tensorrt"), "TensorRT cannot be used"),
        (("--output", "/proc/nowhere"), "choose another --output"),
        (("--site-pairs",), "no scores of this site yet"),
    ],
)
def test_bad_input_is_one_clear_message(
    arguments: tuple[str, ...], words: str, network: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"missing": tmp_path / "missing", "empty": tmp_path / "empty"}
    given = [argument.format(**places) for argument in arguments]
    if "--model" not in given:
        given += ["--model", str(network), "--preprocess", "imagenet"]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "engines")]
    with pytest.raises(EdgeAgentError) as caught:
        run(*given, "--state", tmp_path / "state")
    assert words in str(caught.value)


def test_the_process_ends_with_1_and_one_line(network: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command("--precision", "int8", "--model", network, "--preprocess", "tao", *where(tmp_path)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: INT8 needs crops")
    assert done.stderr.count("\n") == 1


def test_a_broken_picture_is_replaced_and_reported(people: Path, network: Path, tmp_path: Path) -> None:
    broken = tmp_path / "people"
    shutil.copytree(people, broken)
    victims = sorted((broken / "bounding_box_train").iterdir())
    victims[0].write_bytes(b"not a picture")
    report = reported(
        "--dataset", broken, "--model", network, "--preprocess", "imagenet", *where(tmp_path),
        *but("--size", str(len(victims))), *LENIENT,
    )  # fmt: skip
    assert [entry["name"] for entry in report["sample"]["replaced"]] == [
        f"bounding_box_train/{victims[0].name}"
    ]
    assert report["sample"]["size"] == len(victims) - 1
