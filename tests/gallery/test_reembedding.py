"""A gallery moves to another embedding space by its pictures: all or nothing, and back until confirmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
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
from edge_agent.gallery import Gallery, erasure
from edge_agent.gallery.crop_rows import Shot
from edge_agent.gallery.reembedding import Reembedding
from edge_agent.gallery.sync import Space

D, NEW = 8, 12
KEEP = GallerySettings(keep_crops=4)
TARGET = Space("new", NEW)


def unit(seed: int, size: int = D) -> np.ndarray:
    row = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    return np.asarray(row / np.linalg.norm(row), np.float32)


def opened(folder: Path, space: str = "old", dimension: int = D, *, owner: bool = True) -> Gallery:
    return Gallery(folder / "gallery.db", KEEP, space=space, dimension=dimension, owner=owner)


def picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (32, 12, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (48, 128)), np.uint8)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Three people: Ada with two tracks and three pictures, another with one, and one without."""
    with opened(tmp_path) as gallery:
        for number in (1, 2, 3):
            origin, seen = f"s:yard:{number}", {"camera": "yard", "time": 100.0 * number}
            gallery.enrol(unit(number)[None], np.ones(1), origin=origin, **seen)  # type: ignore[arg-type]
        gallery.rename(1, "Ada")
        shots = {1: [("s:yard:1", 1), ("s:yard:1", 2), ("s:yard:9", 3)], 2: [("s:yard:2", 4)]}
        for number, own in shots.items():
            gallery.crops.add(
                number,
                [
                    Shot(origin, "yard", 100.0, 0.5, unit(seed), encode_kept(picture(seed)))
                    for origin, seed in own
                ],
            )
        gallery.facts.set("site_scores", {"pairs": {"#1|#2": 0.3}})
        gallery.facts.set("cameras", {"epochs": {"yard": 1}, "guests": {}})
    return tmp_path


def move(state: Path, vector: Callable[[int], Any] = lambda row: unit(50 + row, NEW)) -> Any:
    with Reembedding(state / "gallery.db", None) as gallery:
        gallery.begin(TARGET)
        for batch in gallery.batches(2):
            gallery.store([row for row, _ in batch], [vector(row) for row, _ in batch])
        return gallery.finish()


def stored(state: Path) -> list[bytes]:
    """Bytes of the present exemplars, by identity."""
    with opened(state) as gallery:
        return [gallery.exemplars(number)[0].tobytes()[:16] for number in (1, 2, 3)]


def content(gallery: Gallery) -> list[tuple[Any, ...]]:
    return [
        (one.number, one.id, one.name, one.kind, one.created, gallery.exemplars(one.number)[0].tobytes())
        for one in gallery.identities()
    ]


def test_ids_and_names_stay_and_people_are_found_in_the_new_space(state: Path) -> None:
    with opened(state) as before:
        known = [one[:5] for one in content(before)]
    moved = move(state)
    assert (moved.people, moved.exemplars, [one.number for one in moved.unseen]) == (2, 3, [3])
    with pytest.raises(SpaceMismatch, match="reembed"):
        opened(state).__enter__()
    with opened(state, "new", NEW) as gallery:
        assert [one[:5] for one in content(gallery)] == known
        rows = [crop.row for crop in gallery.crops.of(2)]
        assert gallery.search(unit(50 + rows[0], NEW)[None], 1)[0].tolist() == [[2]]
        vectors, qualities, origins = gallery.exemplars(1)
        assert origins == ("s:yard:1", "s:yard:9")
        first = unit(51, NEW) + unit(52, NEW)  # the mean of the pictures of a track
        assert vectors[0] == pytest.approx(first / np.linalg.norm(first), abs=1e-6)
        assert qualities.tolist() == [0.5, 0.5]
        assert gallery.facts.get("site_scores") is None  # scores of the former network
        assert gallery.facts.get("cameras")["epochs"] == {"yard": 1}
        gallery.crops.add(2, [Shot("s:yard:4", "yard", 1.0, 0.5, unit(7, NEW), b"jpeg")])
        assert len(gallery.crops.of(2)) == 2


def test_restore_brings_everything_back(state: Path) -> None:
    with opened(state) as before:
        known, facts = content(before), before.facts.get("site_scores")
    move(state)
    with opened(state, "new", NEW) as gallery:
        new = gallery.enrol(unit(9, NEW)[None], np.ones(1), origin="t:yard:1", camera="yard", time=900.0)
        gallery.crops.add(new.number, [Shot("t:yard:1", "yard", 1.0, 0.5, unit(9, NEW), b"jpeg")])
    with Reembedding(state / "gallery.db", None) as gallery_:
        moved = gallery_.restore()
        assert [one.number for one in moved.unseen] == [new.number]
        with pytest.raises(InputError, match="no former"):
            gallery_.restore()
    with opened(state) as gallery:
        assert content(gallery)[:3] == known
        assert gallery.facts.get("site_scores") == facts
        assert len(gallery.crops.of(new.number)) == 1
        assert unit(9, NEW).tobytes()[:16] not in (state / "gallery.db").read_bytes()
        gallery.crops.add(1, [Shot("u:yard:5", "yard", 1.0, 0.5, unit(8), b"five")] * 2)
        assert len(gallery.crops.of(1)) == 4
    move(state)  # and again


def test_confirm_erases_the_former_embeddings(state: Path) -> None:
    words = [*stored(state), unit(4).tobytes()[:16]]
    move(state)
    assert all(word in (state / "gallery.db").read_bytes() for word in words)
    with opened(state, "new", NEW), Reembedding(state / "gallery.db", None, alone=False) as beside:
        assert beside.confirm() == Space("old", D)
    assert not any(word in (state / "gallery.db").read_bytes() for word in words)


def test_forget_erases_what_could_be_restored_too(state: Path) -> None:
    one, two, three = stored(state)
    move(state)
    with opened(state, "new", NEW) as gallery:
        gallery.merge(2, 1)
        erasure.forget(gallery, 2)
    data = (state / "gallery.db").read_bytes()
    assert not any(word in data for word in (one, two, unit(2).tobytes()[:16]))
    assert three in data
    with Reembedding(state / "gallery.db", None) as gallery_:
        assert gallery_.restore().people == 1


def test_an_emptied_gallery_has_nothing_to_restore(state: Path) -> None:
    move(state)
    with opened(state, "new", NEW) as gallery:
        gallery.forget_all()
    with opened(state, "third", 5):
        pass
    with Reembedding(state / "gallery.db", None) as gallery_:
        assert gallery_.past is None


def test_a_change_goes_on_where_it_was(state: Path) -> None:
    with Reembedding(state / "gallery.db", None) as gallery:
        assert gallery.begin(TARGET) == 4
        (row, _), *_ = next(gallery.batches(1))
        gallery.store([row], [unit(1, NEW)])
    with opened(state) as between:  # the agent may run meanwhile, with the former network
        assert len(between.crops.of(1)) == 3
        between.forget(2)
    with Reembedding(state / "gallery.db", None) as gallery:
        assert gallery.begin(TARGET) == 2
        assert gallery.begin(Space("other", 5)) == 3  # another network: from the start
        assert gallery.begin(TARGET) == 3


def test_what_is_refused(state: Path, tmp_path: Path) -> None:
    with opened(state), pytest.raises(StorageError, match="running agent"):
        Reembedding(state / "gallery.db", None).__enter__()
    with Reembedding(state / "gallery.db", None) as gallery:
        with pytest.raises(InputError, match="already"):
            gallery.begin(Space("old", D))
        with pytest.raises(InputError, match="no change"):
            gallery.finish()
        for change in (gallery.restore, gallery.confirm):
            with pytest.raises(InputError, match="no former"):
                change()
    move(state)
    with Reembedding(state / "gallery.db", None) as gallery, pytest.raises(InputError, match="not confirmed"):
        gallery.begin(Space("third", 3))
    with pytest.raises(StorageError, match="no gallery"):
        Reembedding(tmp_path / "none.db", None).__enter__()


def test_a_gallery_without_pictures_is_not_moved(tmp_path: Path) -> None:
    with opened(tmp_path) as gallery:
        gallery.enrol(unit(1)[None], np.ones(1), origin="o", camera="c", time=1.0)
    with Reembedding(tmp_path / "gallery.db", None) as moving, pytest.raises(InputError, match="keep_crops"):
        moving.begin(TARGET)


def test_a_damaged_picture_costs_its_person_only(state: Path) -> None:
    moved = move(state, lambda row: None if row == 4 else unit(50 + row, NEW))
    assert [one.number for one in moved.unseen] == [2, 3]


def command(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, EdgeAgentError):
        raise result.exception
    return result


def test_the_command(state: Path) -> None:
    done = command("reembed", "--model", "colour-stripes", "--state", state)
    assert done.exit_code == 0, done.output
    assert "must be seen again" in done.output
    assert "2 person(s)" in done.output
    command("reembed", "--restore", "--state", state)
    with opened(state) as gallery:
        assert len(gallery.exemplars(3)[0]) == 1
    command("reembed", "--model", "colour-stripes", "--state", state)
    assert command("reembed", "--confirm", "--yes", "--state", state).exit_code == 0
    actions = [json.loads(line)["action"] for line in (state / "audit.jsonl").read_text().splitlines()]
    assert actions == ["reembed", "reembed-restore", "reembed", "reembed-confirm"]
    assert command("reembed", "--state", state).exit_code == 2


@pytest.mark.slow
def test_a_killed_command_is_completed_by_the_next(state: Path) -> None:
    """It is killed within its batches; the former space is in force until the next one is complete."""
    code = (
        "import os, signal, sys\n"
        "from edge_agent.gallery.reembedding import Reembedding\n"
        "store = Reembedding.store\n"
        "def killed(self, *values):\n"
        "    store(self, *values)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Reembedding.store = killed\n"
        "from edge_agent.cli import app\n"
        "app(['gallery', 'reembed', '--model', 'colour-stripes', '--state', sys.argv[1]])\n"
    )
    environment = {**os.environ, "EDGE_AGENT__ENGINE__MAX_BATCH": "2"}
    done = subprocess.run([sys.executable, "-c", code, str(state)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    with opened(state) as gallery:
        assert len(gallery.exemplars(1)[0]) == 1
    again = command("reembed", "--model", "colour-stripes", "--state", state)
    assert "2 picture(s) to embed" in again.output + again.stderr
    assert "2 person(s)" in again.output
