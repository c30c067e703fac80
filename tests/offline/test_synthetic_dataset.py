"""Generated data sets: Market-1501 names, disjoint splits, the same files for any number of processes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.core.errors import InputError
from edge_agent.offline.synthetic.crops import GENERATOR_VERSION, DatasetCounts, write_dataset

NAME = re.compile(r"(\d{4})_c(\d+)s(\d+)_(\d{6})_(\d{2})\.jpg")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetCounts]:
    folder = tmp_path_factory.mktemp("generated")
    return folder, write_dataset(
        folder, identities=5, cameras=3, per_identity=8, seed=4, test_share=0.4, workers=1
    )


def parsed(folder: Path) -> list[tuple[int, ...]]:
    return [tuple(map(int, NAME.fullmatch(path.name).groups())) for path in sorted(folder.iterdir())]


def test_every_name_follows_market_1501_and_every_file_is_a_picture(dataset: tuple[Path, DatasetCounts]):
    folder, _ = dataset
    for split in ("bounding_box_train", "bounding_box_test", "query"):
        assert parsed(folder / split)
        for path in (folder / split).iterdir():
            image = cv2.imread(str(path))
            assert image is not None
            assert image.shape[0] >= 12


def test_the_counts_are_those_of_the_files(dataset: tuple[Path, DatasetCounts]):
    folder, counts = dataset
    assert counts.train_images == len(parsed(folder / "bounding_box_train")) == 24
    assert counts.gallery_images == len(parsed(folder / "bounding_box_test"))
    assert counts.query_images == len(parsed(folder / "query"))
    assert counts.gallery_images + counts.query_images == 16


def test_no_person_is_in_training_and_test(dataset: tuple[Path, DatasetCounts]):
    folder, counts = dataset
    train = {row[0] for row in parsed(folder / "bounding_box_train")}
    test = {row[0] for row in parsed(folder / "bounding_box_test")}
    assert not train & test
    assert {row[0] for row in parsed(folder / "query")} <= test
    assert (len(train), len(test)) == (counts.train_identities, counts.test_identities) == (3, 2)


def test_each_query_is_alone_for_its_person_and_camera_and_has_a_match_on_another(
    dataset: tuple[Path, DatasetCounts],
):
    folder, _ = dataset
    queries = [row[:2] for row in parsed(folder / "query")]
    gallery = [row[:2] for row in parsed(folder / "bounding_box_test")]
    assert len(queries) == len(set(queries))
    for person, place in queries:
        assert any(other == person and where != place for other, where in gallery)


def test_the_manifest_describes_the_output(dataset: tuple[Path, DatasetCounts]):
    folder, counts = dataset
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["generator_version"] == GENERATOR_VERSION
    assert manifest["synthetic"] is True
    assert manifest["seed"] == 4
    assert manifest["counts"]["query_images"] == counts.query_images


def test_two_processes_write_the_same_files_as_one(dataset: tuple[Path, DatasetCounts], tmp_path: Path):
    folder, _ = dataset
    steps: list[tuple[int, int]] = []
    write_dataset(
        tmp_path,
        identities=5,
        cameras=3,
        per_identity=8,
        seed=4,
        test_share=0.4,
        workers=2,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(done, 5) for done in range(1, 6)]
    ours, theirs = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*.jpg")} for root in (folder, tmp_path)
    )
    assert ours == theirs


def test_another_seed_gives_other_people(dataset: tuple[Path, DatasetCounts], tmp_path: Path):
    folder, _ = dataset
    write_dataset(tmp_path, identities=2, cameras=2, per_identity=4, seed=5, size=(64, 32), workers=1)
    pictures = [cv2.imread(str(path)) for path in sorted(tmp_path.rglob("*.jpg"))]
    assert {picture.shape for picture in pictures} == {(64, 32, 3)}
    old = cv2.resize(cv2.imread(str(next((folder / "bounding_box_train").iterdir()))), (32, 64))
    assert not any(np.array_equal(old, picture) for picture in pictures)


def test_a_folder_that_holds_a_data_set_is_not_mixed_with_another(dataset: tuple[Path, DatasetCounts]):
    with pytest.raises(InputError, match="not empty"):
        write_dataset(dataset[0], identities=5, cameras=3, per_identity=8)


@pytest.mark.parametrize("wrong", [{"identities": 1}, {"cameras": 1}, {"per_identity": 3}])
def test_too_little_for_a_data_set_is_refused(tmp_path: Path, wrong: dict[str, int]):
    with pytest.raises(InputError, match="at least"):
        write_dataset(tmp_path, **{"identities": 4, "cameras": 3, "per_identity": 8, **wrong})
