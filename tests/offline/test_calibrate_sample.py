"""The calibration sample: training crops only, balanced, repeatable, verified."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.core.config import QualitySettings
from edge_agent.core.errors import DatasetError, InputError
from edge_agent.core.pictures import parse_crop_name
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.quality import QualityGate
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import profile_named
from edge_agent.engine.onnxruntime import OnnxRuntimeEngine
from edge_agent.offline.calibrate.sample import Sample, draw
from tests import tiny_networks


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (40, 20, 3)).astype(np.uint8)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """5 people, 3 cameras, person 1 with far more pictures than the others; junk; query and gallery."""
    root = tmp_path / "set"
    number = 0
    for pid in range(1, 6):
        for camid in range(1, 4):
            for turn in range(10 if pid == 1 else 2):
                number += 1
                write(root / "bounding_box_train" / f"{pid:04d}_c{camid}s1_{turn:06d}_00.png", number)
    write(root / "bounding_box_train" / "-1_c1s1_000000_00.png", 99)
    for folder in ("query", "bounding_box_test"):
        for pid in range(11, 15):
            write(root / folder / f"{pid:04d}_c1s1_000000_00.png", pid)
    return root


def people(sample: Sample) -> Counter[int]:
    return Counter(parse_crop_name(Path(name).name).pid for name in sample.files)


def cameras(sample: Sample, pid: int) -> Counter[int]:
    found = [parse_crop_name(Path(name).name) for name in sample.files]
    return Counter(name.camid for name in found if name.pid == pid)


def test_people_and_cameras_take_turns(market: Path) -> None:
    sample = draw(market, size=30)
    assert len(sample) == 30
    assert people(sample) == {1: 6, 2: 6, 3: 6, 4: 6, 5: 6}
    assert cameras(sample, 1) == {1: 2, 2: 2, 3: 2}
    assert (sample.identities, sample.cameras, sample.asked) == (5, 3, 30)
    few = draw(market, size=7)
    assert max(people(few).values()) - min(people(few).values()) <= 1


def test_only_training_crops_and_no_junk(market: Path) -> None:
    sample = draw(market, size=1000)
    assert len(sample) == 54  # all there are, though more were asked for
    assert {Path(name).parent.as_posix() for name in sample.files} == {"bounding_box_train"}
    assert -1 not in people(sample)


def test_a_set_without_training_split_is_refused(market: Path) -> None:
    for path in (market / "bounding_box_train").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="bounding_box_train is empty"):
        draw(market)


def test_the_seed_decides(market: Path, tmp_path: Path) -> None:
    one = draw(market, size=12, seed=1)
    assert draw(market, size=12, seed=1) == one
    assert draw(market, size=12, seed=2).digest != one.digest
    moved = tmp_path / "elsewhere"
    market.rename(moved)
    assert draw(moved, size=12, seed=1).digest == one.digest


def test_broken_pictures_are_replaced_by_the_same_person(market: Path) -> None:
    whole = draw(market, size=10)
    names = list(whole.files)
    (market / names[0]).write_bytes(b"not a picture")
    sample = draw(market, size=10)
    (replaced,) = sample.replaced
    assert replaced.name == names[0]
    assert replaced.by is not None
    assert replaced.by in sample.files
    assert names[0] not in sample.files
    assert replaced.reason == "is not a JPEG or PNG picture"
    assert people(sample) == people(whole)


def test_a_person_without_any_readable_picture_is_reported(market: Path) -> None:
    for path in (market / "bounding_box_train").glob("0002_*"):
        path.write_bytes(path.read_bytes()[:60])
    sample = draw(market, size=1000)
    assert 2 not in people(sample)
    assert [entry.by for entry in sample.replaced] == [None] * 6


def test_nothing_readable(market: Path) -> None:
    for path in (market / "bounding_box_train").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(DatasetError, match="no picture that can be read"):
        draw(market)


def test_manifest_gives_back_the_same_and_is_verified(market: Path, tmp_path: Path) -> None:
    (market / next(iter(draw(market).files))).write_bytes(b"x")
    sample = draw(market, size=9)
    path = tmp_path / "sample.json"
    sample.write(path)
    found = Sample.read(path)
    assert found == sample
    assert list(found.files) == list(sample.files)  # the order of the draw too
    found.verify(market)
    name = list(found.files)[4]
    write(market / name, 1234)
    with pytest.raises(InputError, match=name.rpartition("/")[2]):
        found.verify(market)
    (market / name).unlink()
    with pytest.raises(InputError, match=f"{name.rpartition('/')[2]} is missing"):
        found.verify(market)


def test_a_manifest_with_query_crops_is_refused(market: Path, tmp_path: Path) -> None:
    path = tmp_path / "sample.json"
    draw(market, size=4).write(path)
    document = json.loads(path.read_text())
    record = next(iter(document["files"].values()))
    document["files"]["query/0011_c1s1_000000_00.png"] = record
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"query/0011.*not in bounding_box_train"):
        Sample.read(path)


def test_pixels_are_what_the_embedder_hands_to_the_engine(market: Path, tmp_path: Path) -> None:
    prepared = prepare_reid(tiny_networks.reid(tmp_path / "net.onnx"), profile_named("tao"))
    sample = draw(market, size=5)
    pixels = sample.pixels(market, prepared.profile, prepared.input_size)
    assert (pixels.shape, pixels.dtype) == ((5, 256, 128, 3), np.uint8)
    engine = OnnxRuntimeEngine(prepared, max_batch=5, threads=0)
    with Embedder(engine, profile=prepared.profile, gate=QualityGate(QualitySettings())) as embedder:
        rows = embedder.embed_images([cv2.imread(str(market / name)) for name in sample.files])
        engine.buffer()[:] = pixels
        engine.submit(5)
        assert np.array_equal(engine.collect(), rows)
