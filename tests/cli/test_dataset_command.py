"""`edge-agent dataset`."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edge_agent.cli.dataset import command
from edge_agent.core.errors import DatasetError, InputError

app = typer.Typer()
app.command()(command)


def _run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def _fill(root: Path) -> None:
    for folder, names in {
        "bounding_box_train": ["0003_c1s1_000001_00.jpg"],
        "bounding_box_test": ["0001_c2s1_000001_00.jpg", "0900_c14s1_000001_00.jpg"],
        "query": ["0001_c1s1_000001_00.jpg"],
    }.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            assert cv2.imwrite(str(root / folder / name), np.full((20, 10, 3), 7, np.uint8))


def test_table_and_json(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "query" / "0002_c1s1_000001_00.jpg").write_text("no picture")
    table = _run(tmp_path)
    assert "identities" in table
    assert "1 files cannot be used" in table
    document = json.loads(_run(tmp_path, "--json"))
    assert document["splits"]["gallery"]["images"] == 2
    assert [Path(problem["path"]).name for problem in document["problems"]] == ["0002_c1s1_000001_00.jpg"]
    assert json.loads(_run(tmp_path, "--json", "--no-check"))["problems"] == []


def test_real_and_synthetic_columns(tmp_path: Path) -> None:
    _fill(tmp_path / "set")
    listed = tmp_path / "synthetic.txt"
    listed.write_text("0900\n")
    gallery = json.loads(_run(tmp_path / "set", "--json", "--synthetic-list", listed))["splits"]["gallery"]
    assert (gallery["real"]["images"], gallery["synthetic"]["images"]) == (1, 1)
    assert "synthetic ids" in _run(tmp_path / "set", "--synthetic-list", listed)


def test_contact_sheet(tmp_path: Path) -> None:
    _fill(tmp_path / "set")
    _run(tmp_path / "set", "--contact-sheet", tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None
    with pytest.raises(InputError, match=r"\.png or \.jpg"):
        _run(tmp_path / "set", "--contact-sheet", tmp_path / "sheet.txt")


def test_one_split_is_enough_when_asked_for(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "query" / "0001_c1s1_000001_00.jpg").unlink()
    with pytest.raises(DatasetError, match="query is empty"):
        _run(tmp_path)
    assert list(json.loads(_run(tmp_path, "--json", "--split", "train"))["splits"]) == ["train"]


def test_a_split_of_broken_pictures_is_fatal(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / "query" / "0001_c1s1_000001_00.jpg").write_text("no picture")
    with pytest.raises(DatasetError, match="none of its 1 pictures can be decoded"):
        _run(tmp_path)


def test_generate(tmp_path: Path) -> None:
    options = ("--generate", "3", "--seed", "5", "--cameras", "2", "--per-identity", "4", "--workers", "1")
    first = json.loads(_run(tmp_path / "set", *options, "--json"))
    assert first["splits"]["train"]["identities"] + first["splits"]["gallery"]["identities"] == 3
    assert first["problems"] == []
    with pytest.raises(InputError, match="not empty"):
        _run(tmp_path / "set", *options)
