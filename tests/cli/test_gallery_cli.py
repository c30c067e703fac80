"""`edge-agent gallery` as operators run it, also while an agent runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edge_agent.cli.gallery import app
from edge_agent.core.config import GallerySettings
from edge_agent.core.errors import EdgeAgentError, InputError, SpaceMismatch, StorageError
from edge_agent.core.pictures import encode_kept
from edge_agent.gallery import Gallery
from edge_agent.gallery.crop_rows import Shot

D = 8


def unit(rows: int, seed: int) -> Any:
    drawn = np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A gallery with three people, one of them named."""
    folder = tmp_path / "state"
    with Gallery(folder / "gallery.db", GallerySettings(ttl_hours=1.0), space="s", dimension=D) as gallery:
        for seed in range(3):
            gallery.enrol(unit(2, seed), np.full(2, 0.5), origin=f"t{seed}", camera="c", time=1.7e9 + seed)
        gallery.rename(2, "Ada")
    return folder


def command(*words: object, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], input=answer)
    if isinstance(result.exception, EdgeAgentError):
        raise result.exception
    return result


def output(*words: object) -> Any:
    result = command(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_list_and_show(state: Path) -> None:
    people = output("list", "--state", state)
    assert [(one["number"], one["name"], one["kind"]) for one in people] == [
        (1, None, "auto"),
        (2, "Ada", "enrolled"),
        (3, None, "auto"),
    ]
    assert people[0]["expires"] == 1.7e9 + 3600
    table = command("list", "--state", state).output
    assert "Ada" in table
    assert "2023-11-14" in table

    ada = output("show", "Ada", "--state", state)
    assert [entry["origin"] for entry in ada["embeddings"]] == ["t1", "t1"]
    assert ada["embeddings"][0]["nearest"] == pytest.approx(float(unit(2, 1)[0] @ unit(2, 1)[1]), abs=1e-3)
    assert "never" in command("show", "Ada", "--state", state).output


@pytest.mark.parametrize(
    ("option", "text"),
    [(["--as-others"], "as others"), (["--forever"], "for ever"), (["--hours", "2"], "7200.0")],
)
def test_show_states_the_own_time_to_live(state: Path, option: list[str], text: str) -> None:
    output("keep", "1", *option, "--state", state)
    lines = command("show", "1", "--state", state).output.splitlines()
    assert next(line for line in lines if line.startswith("ttl_s")).split(maxsplit=1)[1] == text


def test_name_and_clear(state: Path) -> None:
    assert output("name", "1", "Bob", "--state", state)["name"] == "Bob"
    assert output("name", "Bob", "--clear", "--state", state)["name"] is None
    assert command("name", "1", "--state", state).exit_code == 2
    assert command("name", "1", "Bob", "--clear", "--state", state).exit_code == 2
    with pytest.raises(InputError, match="already"):
        command("name", "1", "Ada", "--state", state)


def test_merge_asks_first(state: Path) -> None:
    refused = command("merge", "Ada", "3", "--state", state, answer="n\n")
    assert refused.exit_code == 1
    assert len(output("list", "--state", state)) == 3
    merged = command("merge", "Ada", "3", "--state", state, answer="y\n")
    assert "has 4 exemplar(s)" in merged.output
    assert output("merge", "Ada", "1", "--yes", "--state", state)["exemplars"] == 6


def test_forget_returns_what_it_erased(state: Path) -> None:
    assert command("forget", "Ada", "--state", state, answer="n\n").exit_code == 1
    assert command("forget", "--state", state).exit_code == 2
    assert command("forget", "Ada", "--all", "--state", state).exit_code == 2
    with pytest.raises(InputError, match="Bob"):
        command("forget", "Ada", "Bob", "--yes", "--state", state)
    assert len(output("list", "--state", state)) == 3  # all or none
    erased = output("forget", "Ada", "2", "1", "--yes", "--state", state)
    assert [(one["number"], one["exemplars"], one["bytes"]) for one in erased] == [(2, 2, 64), (1, 2, 64)]
    assert "erased 3" in command("forget", "--all", "--yes", "--state", state).output
    assert "the gallery was empty" in command("forget", "--all", "--yes", "--state", state).output
    assert f"the gallery in {state} is empty" in command("list", "--state", state).output


def test_export_and_import(state: Path, tmp_path: Path) -> None:
    archive = tmp_path / "people.zip"
    assert output("export", archive, "--state", state)["identities"] == 3
    assert output("import", archive, "--state", tmp_path / "new") == {"added": 3, "skipped": 0}
    assert output("import", archive, "--state", tmp_path / "new") == {"added": 0, "skipped": 3}
    assert [one["name"] for one in output("list", "--state", tmp_path / "new")] == [None, "Ada", None]


def test_stats(state: Path) -> None:
    stats = output("stats", "--state", state)
    assert (stats["identities"], stats["enrolled"], stats["exemplars"], stats["space"]) == (3, 1, 6, "s")
    assert "identities    3" in command("stats", "--state", state).output


def test_without_a_gallery_the_message_names_its_path(tmp_path: Path) -> None:
    for words in (["list"], ["stats"], ["export", tmp_path / "x.zip"], ["forget", "--all", "--yes"]):
        with pytest.raises(StorageError, match=str(tmp_path / "none")):
            command(*words, "--state", tmp_path / "none")


def test_the_folder_comes_from_the_configuration(state: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'state_dir = "{state}"\n')
    assert len(output("list", "--config", config)) == 3


def test_a_running_agent_notices_what_commands_do(state: Path) -> None:
    with Gallery(state / "gallery.db", GallerySettings(), space="s", dimension=D, owner=True) as agent:
        assert sorted(agent.search(unit(1, 0), k=4)[0][0].tolist()) == [-1, 1, 2, 3]
        command("forget", "Ada", "--yes", "--state", state)
        command("name", "1", "Bob", "--state", state)
        assert sorted(agent.search(unit(1, 0), k=4)[0][0].tolist()) == [-1, -1, 1, 3]
        assert agent.get("Bob").number == 1


def person(path: Path, seed: int, height: int = 160, width: int = 64) -> Path:
    """A picture with stripes of two colours, as a person in shirt and trousers."""
    generator = np.random.default_rng(seed)
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2], picture[height // 2 :] = generator.integers(0, 255, (2, 3))
    noisy = np.clip(picture.astype(int) + generator.integers(-25, 25, picture.shape), 0, 255)
    cv2.imwrite(str(path), noisy.astype(np.uint8))
    return path


def test_enrol_from_pictures_and_again(tmp_path: Path) -> None:
    front, back, other = (person(tmp_path / f"{n}.png", n) for n in range(3))
    options = ["--model", "colour-stripes", "--state", tmp_path / "state"]
    ada = output("enrol", "Ada", front, back, *options)
    assert (ada["name"], ada["kind"], ada["exemplars"], ada["expires"]) == ("Ada", "enrolled", 2, None)
    assert all(0 < one["quality"] <= 1 for one in ada["pictures"])
    assert (
        output("enrol", "Ada", front, back, *options)["exemplars"] == 2
    )  # the same pictures replace themselves
    assert output("enrol", "Ada", other, *options)["exemplars"] == 3
    assert output("enrol", "Bob", other, *options)["number"] == 2
    assert "exemplar(s)" in command("enrol", "Bob", front, *options).output


def test_enrol_refuses_pictures_that_do_not_show_one_person(tmp_path: Path) -> None:
    options = ["--model", "colour-stripes", "--state", tmp_path / "state"]
    (tmp_path / "text.jpg").write_text("hello")
    wide = person(tmp_path / "wide.png", 1, height=60, width=200)
    for picture, reason in (
        ("none.jpg", "No such file"),
        ("text.jpg", "not a JPEG or PNG picture"),
        ("wide.png", "--force"),
    ):
        with pytest.raises(InputError, match=reason):
            command("enrol", "Ada", tmp_path / picture, *options)
    assert not (tmp_path / "state" / "gallery.db").exists()
    assert output("enrol", "Ada", wide, "--force", *options)["exemplars"] == 1
    assert command("enrol", "Ada").exit_code == 2


def test_enrol_into_a_gallery_of_another_model_is_refused(state: Path, tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatch, match="gallery forget --all"):
        command("enrol", "Eve", person(tmp_path / "a.png", 1), "--model", "colour-stripes", "--state", state)


def test_split_reject_and_suggestions(state: Path) -> None:
    with Gallery.existing(state / "gallery.db") as gallery:
        rows = unit(1, 1) + 0.02 * unit(1, 40)
        gallery.add_exemplars(
            1, rows / np.linalg.norm(rows), np.full(1, 0.5), origin="t9", camera="c", time=1.7e9 + 500
        )
    assert command("split", 1, "t9", "--state", state, answer="n\n").exit_code == 1
    new = output("split", 1, "t9", "--name", "Bob", "--yes", "--state", state)
    assert (new["number"], new["name"], new["exemplars"]) == (4, "Bob", 1)
    pairs = output("suggestions", "--state", state)
    assert next((pair["one"]["number"], pair["other"]["number"]) for pair in pairs) == (2, 4)
    assert "Ada" in command("suggestions", "--most", 1, "--state", state).output
    done = command("reject", "Bob", "Ada", "--state", state)
    assert "two people" in done.output
    assert (2, 4) not in {
        (pair["one"]["number"], pair["other"]["number"]) for pair in output("suggestions", "--state", state)
    }
    lines = [json.loads(line)["action"] for line in (state / "audit.jsonl").read_text().splitlines()]
    assert lines == ["split", "reject"]
    with pytest.raises(InputError, match="nothing would remain"):
        command("split", "Bob", "t9", "--yes", "--state", state)


def test_crops_are_written_on_request(state: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set gallery\.keep_crops"):
        command("crops", "Ada", tmp_path / "out", "--state", state)
    jpeg = encode_kept(np.full((80, 30, 3), 7, np.uint8))
    settings = GallerySettings(keep_crops=2)
    with Gallery(state / "gallery.db", settings, space="s", dimension=D, owner=True) as gallery:
        gallery.crops.add(2, [Shot("t1", "c", 1.7e9, 0.5, unit(1, 1)[0], jpeg)])
    (written,) = output("crops", "Ada", tmp_path / "out", "--state", state)
    file = tmp_path / "out" / written["file"]
    assert file.read_bytes() == jpeg
    assert file.stat().st_mode & 0o077 == 0
    assert (written["camera"], written["bytes"]) == ("c", len(jpeg))
