"""`edge-agent evaluate` on real networks and real crops, and on rendered ones."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edge_agent.cli.embed import command as embed_command
from edge_agent.cli.evaluate import command as evaluate_command
from edge_agent.core.errors import ConfigError, DatasetError, InputError, SpaceMismatch
from edge_agent.offline.synthetic.camera import Spread
from edge_agent.offline.synthetic.crops import write_dataset

app = typer.Typer()
app.command("evaluate")(evaluate_command)
app.command("embed")(embed_command)

STRIPES = ("--model", "colour-stripes")


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def figures(*arguments: str | Path) -> dict[str, Any]:
    return json.loads(run("evaluate", *arguments, "--json"))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rendered people, eight of them in the test splits."""
    root = tmp_path_factory.mktemp("rendered")
    write_dataset(root, identities=10, cameras=3, per_identity=8, seed=3, test_share=0.8, workers=1)
    return root


# --- against the figures measured with the data ------------------------------------------------


@pytest.fixture(scope="module")
def osnet(pets_market: Path, osnet_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("osnet")
    document = figures(
        pets_market, "--model", osnet_onnx, "--preprocess", "imagenet",
        "--report", folder / "report.html", "--output", folder / "figures.json",
    )  # fmt: skip
    return document, folder


def test_osnet_has_its_measured_figures(osnet: tuple[dict, Path]) -> None:
    document, _ = osnet
    assert document["rank1"] == pytest.approx(0.96, abs=0.01)
    assert document["mAP"] == pytest.approx(0.87, abs=0.01)
    assert (document["queries"], document["gallery"], document["queries_evaluated"]) == (82, 660, 82)
    assert document["rank1"] <= document["rank5"] <= document["rank10"] <= 1
    assert 0.5 <= document["eer_threshold"] <= 0.58  # measured equal-error points of OSNet
    assert document["reranking"] is None
    assert document["junk_rule"] == "strict"


def test_open_set_figures_are_null_where_the_pairs_cannot_support_them(osnet: tuple[dict, Path]) -> None:
    document, _ = osnet
    assert list(document["fnmr"]) == ["1e-2", "1e-3", "1e-4"]
    low, high = document["fnmr_ci"]["1e-2"]
    assert 0 < low < document["fnmr"]["1e-2"] < high < 1
    assert document["fnmr"]["1e-2"] < document["fnmr"]["1e-3"]
    assert document["fnmr"]["1e-4"] is None
    assert document["fnmr_ci"]["1e-4"] is None
    assert "cannot support FMR 0.0001" in document["operating_points"]["1e-4"]["reason"]
    assert document["operating_points"]["1e-2"]["fmr"] <= 1e-2


def test_the_output_file_is_what_json_prints(osnet: tuple[dict, Path]) -> None:
    document, folder = osnet
    assert json.loads((folder / "figures.json").read_text()) == document
    assert document["model"]["preprocess"] == "imagenet"
    assert len(document["model"]["sha256"]) == 64
    assert {"edge-agent", "numpy", "opencv", "onnxruntime"} <= set(document["versions"])


def test_the_report_is_self_contained_and_shows_crops(osnet: tuple[dict, Path]) -> None:
    document, folder = osnet
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "://" not in page
    assert page.count("<svg") == 3
    pictures = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 2 * 8 * 11  # hardest and random queries, each with its ten nearest
    first = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[0]), np.uint8), cv2.IMREAD_COLOR)
    assert first.shape == (128, 64, 3)
    assert page.count('class="crop right"') > page.count('class="crop wrong"') > 0
    assert f"{100 * document['rank1']:.1f} %" in page
    assert "cannot support FMR 0.0001" in page


@pytest.mark.slow  # this network takes three times OSNet's time
def test_omz_has_its_measured_figures_from_embedding_files(
    pets_market: Path, omz_onnx: Path, tmp_path: Path
) -> None:
    run("embed", pets_market, "-o", tmp_path / "all.npz", "--model", omz_onnx, "--preprocess", "openvino-raw",
        "--split", "query", "--split", "gallery")  # fmt: skip
    document = figures(pets_market, "--embeddings", tmp_path / "all.npz", tmp_path / "all.npz")
    assert document["rank1"] == pytest.approx(0.95, abs=0.01)
    assert document["mAP"] == pytest.approx(0.91, abs=0.01)
    assert document["model"]["name"] == omz_onnx.stem
    assert 0.2 <= document["eer_threshold"] <= 0.3


# --- on rendered people --------------------------------------------------------------------------


def test_embedding_files_give_a_report(rendered: Path, tmp_path: Path) -> None:
    path, report = tmp_path / "all.npz", tmp_path / "report.html"
    run("embed", rendered, "-o", path, *STRIPES)
    figures("--embeddings", path, path, "--report", report)
    assert "Model: name " in report.read_text()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".json"])
def test_files_give_the_same_figures_as_the_model(rendered: Path, tmp_path: Path, suffix: str) -> None:
    direct = figures(rendered, *STRIPES)
    path = tmp_path / f"all{suffix}"
    run("embed", rendered, "-o", path, *STRIPES)
    for arguments in ([rendered], []):  # with and without the data set next to it
        again = figures(*arguments, "--embeddings", path, path)
        for key in ("mAP", "mINP", "rank1", "queries", "gallery", "eer", "fnmr", "cmc"):
            assert again[key] == direct[key], key


def test_reranking_is_named(rendered: Path) -> None:
    assert figures(rendered, *STRIPES, "--rerank")["reranking"] == "k-reciprocal k1=20 k2=6 lambda=0.3"


def test_people_of_cameras_with_other_colours_are_found_once_the_means_of_the_cameras_are_gone(
    tmp_path: Path,
) -> None:
    write_dataset(
        tmp_path, identities=31, cameras=3, per_identity=6, seed=5, test_share=0.97,
        spread=Spread(colours=2.0, faults=0.3, smallest=90.0), workers=1,
    )  # fmt: skip
    plain, removed = figures(tmp_path, *STRIPES), figures(tmp_path, *STRIPES, "--remove-camera-means")
    assert (plain["camera_means"], removed["camera_means"]) == ("kept", "removed")
    assert removed["mAP"] > plain["mAP"] + 0.02
    for key, value in plain["camera_means_removed"].items():
        assert value == pytest.approx(removed[key], abs=1e-6)
    assert removed["camera_means_removed"] is None
    assert removed["eer"] < plain["eer"]


def test_junk_rules(rendered: Path, tmp_path: Path) -> None:
    run("embed", rendered, "-o", tmp_path / "all.npz", *STRIPES)
    with np.load(tmp_path / "all.npz") as archive:
        names, vectors = archive["names"].astype("U200"), archive["embeddings"]
    gallery = np.flatnonzero(np.char.startswith(names, "bounding_box_test"))[:3]
    names[gallery] = [f"bounding_box_test/-1_c1s1_{index:06d}_00.jpg" for index in range(3)]
    np.savez(tmp_path / "junk.npz", names=names, embeddings=vectors)
    files = ("--embeddings", tmp_path / "junk.npz", tmp_path / "junk.npz")
    strict, compat = figures(*files), figures(*files, "--junk", "tao-compat")
    assert (strict["junk_rule"], compat["junk_rule"]) == ("strict", "tao-compat")
    assert (strict["gallery_dropped"], compat["gallery_dropped"]) == (3, 0)
    assert compat["gallery"] == strict["gallery"] + 3


def test_broken_crops_are_left_out_and_listed(rendered: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "set"
    shutil.copytree(rendered, copy)
    victim = sorted((copy / "bounding_box_test").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:200])
    whole, less = figures(rendered, *STRIPES), figures(copy, *STRIPES)
    assert less["gallery"] == whole["gallery"] - 1
    assert less["unreadable"] == [{"path": str(victim), "reason": "is cut off"}]
    assert "left out since unreadable: 1" in run("evaluate", copy, *STRIPES)


def test_the_summary_names_what_matters(rendered: Path) -> None:
    reported = run("evaluate", rendered, *STRIPES)
    for word in ("rank1", "mAP", "EER", "FMR 0.01", "cannot support", "colour-stripes"):
        assert word in reported, word


def test_two_networks_side_by_side(rendered: Path, tmp_path: Path) -> None:
    files = ("--report", tmp_path / "r.html", "--output", tmp_path / "r.json")
    names = ("colour-stripes:tao", "colour-stripes:swin")
    found = json.loads(run("evaluate", rendered, "--compare", *names, "--json", *files))
    assert json.loads((tmp_path / "r.json").read_text()) == found
    assert [one["model"]["preprocess"] for one in found["networks"]] == ["tao", "swin"]
    for key in ("rank1", "mAP"):
        one = found["differences"][key]
        assert [one["first"], one["second"]] == pytest.approx([each[key] for each in found["networks"]])
        assert one["low"] <= one["difference"] <= one["high"]
    text = run("evaluate", rendered, "--compare", *names)
    for word in (
        "A: colour-stripes (tao)",
        "B: colour-stripes (swin)",
        "rank10",
        "mINP",
        "bootstrap over people",
    ):
        assert word in text
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 1
    assert "colour-stripes (swin)" in page


def test_a_profile_that_does_not_exist_is_named(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ConfigError, match=r"a\.onnx: no preprocess profile 'tau'; write one of tao, "):
        run("evaluate", rendered, "--compare", f"{tmp_path / 'a.onnx'}:tau", "colour-stripes:tao")
    with pytest.raises(InputError, match=r"b\.onnx:tau: no such model file"):
        run("evaluate", rendered, "--compare", f"{tmp_path / 'b.onnx'}:tau", "colour-stripes:tao")


def test_both_networks_are_checked_before_one_is_evaluated(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a network was opened")

    monkeypatch.setattr("edge_agent.offline.evaluate.embedding.open_embedder", opened)
    with pytest.raises(InputError, match=r"b\.onnx: no such model file"):
        run("evaluate", rendered, "--compare", "colour-stripes:tao", str(tmp_path / "b.onnx"))


def test_wrong_usage_exits_2(rendered: Path, tmp_path: Path) -> None:
    for arguments in (
        [],
        [str(rendered), "--embeddings", "a.npz", "b.npz", "--model", "x.onnx"],
        [str(rendered), "--junk", "sometimes"],
        ["--compare", "a.onnx", "b.onnx"],
        [str(rendered), "--compare", "a.onnx", "b.onnx", "--preprocess", "tao"],
        [str(rendered), "--compare", "a.onnx", "b.onnx", "--embeddings", "a.npz", "b.npz"],
    ):
        assert CliRunner().invoke(app, ["evaluate", *arguments]).exit_code == 2


def test_errors_describe_the_fault(rendered: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        run("evaluate", tmp_path / "none", *STRIPES)
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        run("evaluate", rendered, *STRIPES, "--report", tmp_path / "none" / "r.html")
    with pytest.raises(InputError, match="no such model file"):
        run("evaluate", rendered, "--model", tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="no preprocess profile 'caffe'"):
        run("evaluate", rendered, *STRIPES, "--preprocess", "caffe")
    run("embed", rendered, "-o", tmp_path / "a.npz", *STRIPES)
    run("embed", rendered, "-o", tmp_path / "b.npz", *STRIPES, "--preprocess", "swin")
    with pytest.raises(SpaceMismatch):
        run("evaluate", rendered, "--embeddings", tmp_path / "a.npz", tmp_path / "b.npz")
