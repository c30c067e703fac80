"""`edge-agent embed`: pictures, folders and data sets to files, every batch of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from edge_agent.cli.embed import command
from edge_agent.core.errors import ConfigError, InputError
from edge_agent.core.structures import EngineInfo
from edge_agent.engine.graph.prepared import profile_named
from edge_agent.offline.evaluate.embedding import embed_paths
from edge_agent.offline.evaluate.files import read_embeddings
from tests.core.test_pictures import PLAIN, damaged

app = typer.Typer()
app.command()(command)


def run(*arguments: str | Path) -> dict[str, Any]:
    words = [*map(str, arguments), "--json"]
    if "--model" not in words:
        words += ["--model", "colour-stripes"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """150 different pictures: more than two batches of 64."""
    folder = tmp_path / "crops"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(150):
        patches = random.integers(0, 256, (6, 3, 3), dtype=np.uint8)
        picture = cv2.resize(patches, (40 + number % 30, 100), interpolation=cv2.INTER_NEAREST)
        assert cv2.imwrite(str(folder / f"{number:04d}.png"), picture)
    return folder


def test_every_batch_is_written_in_order(crops: Path, tmp_path: Path) -> None:
    result = run(crops, "-o", tmp_path / "all.npy")
    assert result["embedded"] == 150
    file = read_embeddings(tmp_path / "all.npy")
    assert file.names == tuple(f"{number:04d}.png" for number in range(150))
    np.testing.assert_allclose(np.linalg.norm(file.vectors, axis=1), 1, atol=1e-5)
    for number in (0, 63, 64, 149):
        alone = run(crops / f"{number:04d}.png", "-o", tmp_path / "one.npz")
        assert alone["embedded"] == 1
        one = read_embeddings(tmp_path / "one.npz")
        assert one.names == (f"{number:04d}.png",)
        np.testing.assert_allclose(one.vectors[0], file.vectors[number], atol=1e-5)


def test_the_manifest_names_the_inputs(crops: Path, tmp_path: Path) -> None:
    run(crops, "-o", tmp_path / "all.npz")
    about = read_embeddings(tmp_path / "all.npz").about
    assert about["rows"] == 150
    assert about["unit_length"] is True
    assert about["preprocess"] == "tao"
    assert {"name", "sha256", "space", "backend", "precision"} <= set(about)


def test_broken_pictures_are_listed(crops: Path, tmp_path: Path) -> None:
    (crops / "0007.png").write_bytes(b"broken")
    result = run(crops, "-o", tmp_path / "all.npz")
    assert result["embedded"] == 149
    assert [Path(entry["path"]).name for entry in result["left_out"]] == ["0007.png"]
    assert "0007.png" not in read_embeddings(tmp_path / "all.npz").names


def test_tao_json_holds_paths(crops: Path, tmp_path: Path) -> None:
    run(crops, "-o", tmp_path / "all.json")
    first = json.loads((tmp_path / "all.json").read_text())[0]
    assert first["img_path"] == str(crops / "0000.png")
    assert len(first["embedding"]) == read_embeddings(tmp_path / "all.json").vectors.shape[1]


def test_raw_keeps_the_network_s_lengths(pets_market: Path, omz_onnx: Path, tmp_path: Path) -> None:
    """Against the network itself, with preprocessing in numpy."""
    import onnxruntime

    picture = sorted((pets_market / "query").iterdir())[0]
    options = ("--model", omz_onnx, "--preprocess", "openvino-raw")
    run(picture, "-o", tmp_path / "raw.json", "--raw", *options)
    run(picture, "-o", tmp_path / "unit.json", *options)
    raw, unit = (read_embeddings(tmp_path / f"{name}.json") for name in ("raw", "unit"))
    resized = cv2.resize(cv2.imread(str(picture)), (128, 256), interpolation=cv2.INTER_LINEAR)
    session = onnxruntime.InferenceSession(omz_onnx)
    batch = profile_named("openvino-raw").apply(resized[None])
    expected = session.run(None, {session.get_inputs()[0].name: batch})[0].reshape(1, -1)
    np.testing.assert_allclose(raw.vectors, expected, rtol=1e-3, atol=1e-3)
    assert abs(np.linalg.norm(raw.vectors) - 1) > 0.1
    np.testing.assert_allclose(unit.vectors, expected / np.linalg.norm(expected), atol=1e-4)
    assert raw.about["space"] != unit.about["space"]
    assert raw.about["unit_length"] is False


def test_unusable_arguments_are_refused(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="suffix determines"):
        run(crops, "-o", tmp_path / "all.txt")
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        run(crops, "-o", tmp_path / "none" / "all.npz")
    with pytest.raises(InputError, match="no picture, folder or data set"):
        run(tmp_path / "none.jpg", "-o", tmp_path / "all.npz")
    with pytest.raises(InputError, match="has no splits to choose"):
        run(crops, "-o", tmp_path / "all.npz", "--split", "query")
    with pytest.raises(ConfigError, match="no inference backend 'abacus'"):
        run(crops, "-o", tmp_path / "all.npz", "--backend", "abacus")
    with pytest.raises(ConfigError, match="ONNX Runtime in FP32 only"):
        run(crops, "-o", tmp_path / "all.npz", "--backend", "tensorrt", "--raw")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"x")
    with pytest.raises(InputError, match="none of the 1 pictures can be read"):
        run(broken, "-o", tmp_path / "all.npz")


class _Means:
    """An embedder whose rows are the mean colour: enough to see order and batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("simulated:mean", "fp32", "mean", "", "", 3, 64, "none")

    def embed_images(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        return np.array([image.mean(axis=(0, 1)) for image in images], np.float32)


def test_batches_are_full_and_progress_adds_up(crops: Path) -> None:
    (crops / "0003.png").unlink()
    (crops / "0070.png").write_bytes(b"broken")
    paths = [*sorted(crops.iterdir()), crops / "missing.png"]
    embedder, reported = _Means(), []
    done = embed_paths(embedder, paths, advance=reported.append)
    assert sum(reported) == len(paths) == 150
    assert embedder.batches == [64, 63, 21]
    assert [problem.path.name for problem in done.problems] == ["0070.png", "missing.png"]
    for row, vector in zip(done.rows, done.vectors, strict=True):
        np.testing.assert_allclose(vector, cv2.imread(str(paths[row])).mean(axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".json"])
def test_names_that_are_no_text_are_written_with_escapes(crops: Path, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    content = (crops / "0000.png").read_bytes()
    for raw in (b"caf\xe9.png", b"new\nline\x1b[31m.png", "K\u00e4se.png".encode()):
        (folder / os.fsdecode(raw)).write_bytes(content)
    (folder / os.fsdecode(b"broken\xe9.png")).write_bytes(content[:200])
    result = run(folder, "-o", tmp_path / f"out{suffix}")
    assert result["embedded"] == 3
    assert [Path(one["path"]).name for one in result["left_out"]] == ["broken\\xe9.png"]
    names = [Path(name).name for name in read_embeddings(tmp_path / f"out{suffix}").names]
    assert sorted(names) == ["K\u00e4se.png", "caf\\xe9.png", "new\\nline\\x1b[31m.png"]


def test_damaged_pictures_are_left_out_and_listed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    chance = np.random.default_rng(5)
    (folder / "a-whole.jpg").write_bytes(PLAIN)
    (folder / "b-phone.jpg").write_bytes(PLAIN + b"x" * 9000)
    for kind in ("zeros", "twelve bytes", "cut, with an end marker"):
        (folder / f"c-{kind[:3]}.jpg").write_bytes(damaged(PLAIN, kind, chance))
    result = run(folder, "-o", tmp_path / "e.npy")
    assert result["embedded"] == 2
    assert [one["reason"].partition(":")[0] for one in result["left_out"]] == ["is damaged"] * 3
    assert "Corrupt" not in capfd.readouterr().err
