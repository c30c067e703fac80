"""The colour comparison that is used without a trained network."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.embed.embedder import Embedder
from edge_agent.embed.quality import QualityGate
from edge_agent.engine import open_engine
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import PROFILES
from edge_agent.engine.graph.stripes import STRIPES_NAME, STRIPES_PROFILE, write_stripe_model


@pytest.fixture
def embedder(tmp_path):
    profile = PROFILES[STRIPES_PROFILE]
    prepared = prepare_reid(write_stripe_model(tmp_path / f"{STRIPES_NAME}.onnx"), profile)
    with Embedder(
        open_engine(prepared, EngineSettings()), profile=profile, gate=QualityGate(QualitySettings())
    ) as entered:
        yield entered


def person(torso: tuple[int, int, int], legs: tuple[int, int, int], light: float = 1.0) -> np.ndarray:
    picture = np.full((200, 80, 3), 128, np.float32)
    picture[50:110, 20:60] = torso
    picture[110:190, 22:58] = legs
    return np.clip(picture * light, 0, 255).astype(np.uint8)


def test_the_file_is_the_same_each_time(tmp_path):
    first = write_stripe_model(tmp_path / "a.onnx").read_bytes()
    assert first == write_stripe_model(tmp_path / "b.onnx").read_bytes()


def test_clothes_count_and_a_little_light_does_not(embedder):
    red_blue = person((30, 30, 200), (160, 60, 20))
    rows = embedder.embed_images(
        [
            red_blue,
            person((30, 30, 200), (160, 60, 20), light=0.9),
            person((160, 60, 20), (30, 30, 200)),
            person((40, 180, 40), (30, 30, 30)),
        ]
    )
    alike, swapped, other = rows[1:] @ rows[0]
    assert alike > 0.75
    assert max(swapped, other) < alike - 0.2


def test_it_names_itself(embedder):
    assert embedder.info.model == "colour-stripes"


def test_rank_1_on_real_visits(embedder, pets_market):
    """At least 0.70, as `docs/models.md` states 0.74: Market-1501 protocol, cosine."""
    query, gallery = (load(pets_market / part) for part in ("query", "bounding_box_test"))
    scores = embedder.embed_images(query[0]) @ embedder.embed_images(gallery[0]).T
    hits = []
    for row, person_id, visit in zip(scores, query[1], query[2], strict=True):
        elsewhere = ~((gallery[1] == person_id) & (gallery[2] == visit))
        best = np.flatnonzero(elsewhere)[row[elsewhere].argmax()]
        hits.append(gallery[1][best] == person_id)
    assert len(hits) == 82
    assert np.mean(hits) >= 0.70


def load(folder):
    files = sorted(folder.glob("*.jpg"))
    names = [re.match(r"(\d+)_c(\d+)", file.name) for file in files]
    images = [cv2.imread(str(file)) for file in files]
    return images, np.array([int(n[1]) for n in names]), np.array([int(n[2]) for n in names])
