"""Sets that are numbered from 0, and names that cannot be used: each picture is counted, in every command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from edge_agent.cli import app
from edge_agent.core.errors import DatasetError
from edge_agent.core.pictures import parse_crop_name
from edge_agent.offline.dataset import MarketDataset, Split, list_crops, numbering_notes

PEOPLE = (0, 1, 2)
CAMERAS = (0, 1, 2)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 16, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def numbered_from_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people, 0000 to 0002; in query and train also a junk picture and names that cannot be used."""
    root = tmp_path_factory.mktemp("set")
    for folder in ("bounding_box_train", "bounding_box_test", "query"):
        for pid in PEOPLE:
            for camera in CAMERAS:
                for frame in range(1 + (pid == 0)):
                    name = f"{pid:04d}_c{camera}s1_{frame:06d}_00.jpg"
                    picture(root / folder / name, 100 * pid + 10 * camera + frame)
        picture(root / folder / "-1_c1s1_000000_00.jpg", 7)
        for wrong in (
            "99999999999999999999_c1s1_000001_00.jpg",
            "+1_c1s1_000001_00.jpg",
            "٣_c1s1_000001_00.jpg",
        ):
            picture(root / folder / wrong, 8)
    return root


def run(*words: object) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_dataset_warns_with_counts_and_remedy(numbered_from_0: Path) -> None:
    text = run("dataset", numbered_from_0).stdout
    assert "6 of 13 queries are person 0000, which counts as a distractor in Market-1501" in text
    assert "6 of 13 training pictures are person 0000" in text
    assert "number people from 1" in text
    assert "1 of 13 queries are person -1, which counts as junk" in text
    found = json.loads(run("dataset", numbered_from_0, "--json").stdout)
    assert len(found["notes"]) == 4
    for counts in found["splits"].values():
        assert (counts["images"], counts["distractor_images"], counts["junk_images"]) == (13, 6, 1)
    assert len(found["problems"]) == 9


def embeddings(root: Path, target: Path, folder: str) -> Path:
    crops, _ = list_crops(root / folder, Split.QUERY)
    rows = [np.eye(4)[crop.pid + 1] + 0.01 * crop.camid for crop in crops]
    np.savez(
        target,
        embeddings=np.array(rows, np.float32),
        names=np.array([f"{folder}/{c.path.name}" for c in crops]),
    )
    return target


def test_evaluate_warns_with_counts_and_remedy(numbered_from_0: Path, tmp_path: Path) -> None:
    query = embeddings(numbered_from_0, tmp_path / "q.npz", "query")
    gallery = embeddings(numbered_from_0, tmp_path / "g.npz", "bounding_box_test")
    for source in ((), (numbered_from_0,)):
        text = run("evaluate", *source, "--embeddings", query, gallery).stdout
        assert "6 of 13 queries ranked" in text
        assert "warning: 6 of 13 queries are person 0000, which counts as a distractor" in text
        assert "warning: 1 of 13 queries are person -1" in text
        found = json.loads(run("evaluate", *source, "--embeddings", query, gallery, "--json").stdout)
        counts = [found[f"queries{key}"] for key in ("", "_dropped", "_distractors", "_junk", "_evaluated")]
        assert counts == [6, 7, 6, 1, 6]
        assert len(found["notes"]) == 2
        if source:
            assert len(found["dataset"]["problems"]) == 6
    tao = run("evaluate", "--embeddings", query, gallery, "--junk", "tao-compat").stdout
    assert "of 13 queries ranked" in tao
    assert "warning" not in tao


def test_a_set_numbered_from_1_has_no_warning(tmp_path: Path) -> None:
    for folder in ("bounding_box_train", "query"):
        picture(tmp_path / folder / "0001_c1s1_000001_00.jpg", 1)
    for name in ("0000_c1s1_000001_00.jpg", "-1_c1s1_000001_00.jpg", "0001_c2s1_000001_00.jpg"):
        picture(tmp_path / "bounding_box_test" / name, 1)
    assert "warning" not in run("dataset", tmp_path).stdout


def test_train_says_what_it_leaves_out(numbered_from_0: Path) -> None:
    pytest.importorskip("torch")
    from edge_agent.cli.console import PlainConsole
    from edge_agent.cli.train import warn_of_left_out
    from edge_agent.core.errors import ConfigError
    from edge_agent.offline.train.data import read_folder
    from edge_agent.offline.train.loop import check_classes
    from edge_agent.offline.train.spec import Spec

    found = read_folder(numbered_from_0 / "bounding_box_train", Split.TRAIN)
    assert (len(found.paths), found.left_out.distractors, found.left_out.junk) == (6, 6, 1)
    assert len(found.left_out.unusable) == 3
    screen = PlainConsole(width=1_000)
    with screen.capture() as shown:
        warn_of_left_out(found, Split.TRAIN, screen)
    text = shown.get()
    assert "6 of 13 training pictures are person 0000" in text
    assert "1 of 13 training pictures are person -1" in text
    assert "7 pictures are left out, and num_classes is 2; numbered from 1, it would be 3 or more" in text
    assert "3 files cannot be used" in text
    spec = Spec.model_validate({"dataset": {"num_classes": 3}})
    with pytest.raises(ConfigError, match=r"has 2 identities \(6 of 13 training pictures are person 0000"):
        check_classes(spec, 2, found.left_out)
    query = read_folder(numbered_from_0 / "query", Split.QUERY)
    assert len(query.paths) == 13
    assert "6 of 13 queries are person 0000" in query.left_out.notes[0]


def test_a_folder_of_nothing_else_says_why(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from edge_agent.offline.train.data import read_folder

    picture(tmp_path / "0000_c1s1_000001_00.jpg", 1)
    with pytest.raises(DatasetError, match=r"1 of 1 training pictures are person 0000.*number people from 1"):
        read_folder(tmp_path, Split.TRAIN)


def test_embed_lists_what_it_leaves_out(numbered_from_0: Path) -> None:
    from edge_agent.cli.embed import pictures_of

    paths, unusable = pictures_of(numbered_from_0, ())
    assert (len(paths), len(unusable)) == (39, 9)
    assert all("misnamed" in problem.reason for problem in unusable)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("0_c0_0.jpg", (0, 0, None, 0)),
        ("0001_c1s1_000001_00.jpg", (1, 1, 1, 1)),
        ("1_c01s001_1.jpg", (1, 1, 1, 1)),
        ("9223372036854775807_c1s1_1.jpg", (2**63 - 1, 1, 1, 1)),
        ("0" * 100 + "1_c1s1_1.jpg", (1, 1, 1, 1)),
        ("9223372036854775808_c1s1_1.jpg", None),
        ("1_c9223372036854775808s1_1.jpg", None),
        ("1_c1s9223372036854775808_1.jpg", None),
        ("1_c1s1_9223372036854775808.jpg", None),
        ("1" * 5_000 + "_c1s1_1.jpg", None),
        ("+1_c1s1_1.jpg", None),
        ("-2_c1s1_1.jpg", None),
        ("-01_c1s1_1.jpg", None),
        ("-1_c-1s1_1.jpg", None),
        (" 1_c1s1_1.jpg", None),
        ("1_c1s1_1.jpg\n", None),
        ("\uff11_c1s1_1.jpg", None),
        ("1_c1\u017f1_1.jpg", None),  # a long s, which is an s where case is ignored
        ("1e3_c1s1_1.jpg", None),
        ("1_c1s1.jpg", None),
        ("1_000_c1s1_1.jpg", None),
    ],
)
def test_what_a_name_states(name: str, fields: tuple[Any, ...] | None) -> None:
    found = parse_crop_name(name)
    assert (None if found is None else (found.pid, found.camid, found.sequence, found.frame)) == fields


numbers = st.one_of(
    st.integers(-2, 12).map(str),
    st.integers(2**63 - 2, 2**63 + 2).map(str),
    st.integers(0, 99).map("{:06d}".format),
    st.text("0123456789+-_ ٣１", max_size=22),
)
names = st.one_of(
    st.builds("{}_c{}s{}_{}_00.jpg".format, numbers, numbers, numbers, numbers),
    st.builds("{}_c{}_f{}.png".format, numbers, numbers, numbers),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).map(
        lambda text: text + ".jpg"
    ),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(names, min_size=1, max_size=12, unique=True))
@example(["0000_c1s1_000001_00.jpg", "0_c1s1_000001_00.jpg", "-1_c1s1_1.jpg"])
def test_each_picture_is_read_as_its_name_states_or_is_listed(
    tmp_path_factory: pytest.TempPathFactory, files: list[str]
) -> None:
    root = tmp_path_factory.mktemp("any")
    (root / "query").mkdir()
    written = set()
    for name in files:
        try:
            (root / "query" / name).write_bytes(b"x")
        except OSError:  # too long for a file system
            continue
        written.add(name)
    crops, problems = list_crops(root / "query", Split.QUERY)
    used, listed = {one.path.name for one in crops}, {one.path.name for one in problems}
    hidden = {
        name for name in written if name.startswith(".") or name.lower() in {"thumbs.db", "desktop.ini"}
    }
    assert used | listed | hidden == written
    assert not used & listed
    for crop in crops:
        stated = re.match(r"(-1|[0-9]+)_[cC]([0-9]+)", crop.path.name)
        assert stated is not None
        assert (crop.pid, crop.camid) == (int(stated[1]), int(stated[2]))
        np.asarray([crop.pid, crop.camid, crop.frame, crop.sequence or 0], np.int64)
    if crops:
        counts = MarketDataset.open(root, (Split.QUERY,)).statistics()[Split.QUERY]
        assert counts.images == len(used)
        left = [crop for crop in crops if crop.pid > 0]
        assert len(left) + counts.distractor_images + counts.junk_images == counts.images
        notes = numbering_notes(Split.QUERY, [crop.pid for crop in crops])
        assert len(notes) == (counts.distractor_images > 0) + (counts.junk_images > 0)
