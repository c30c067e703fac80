"""The prior of a network: measured on rendered people, shipped for known networks, kept for others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.core.config import EngineSettings, QualitySettings
from edge_agent.core.errors import EngineUnavailable
from edge_agent.embed import people
from edge_agent.embed.opening import open_embedder
from edge_agent.embed.prior import (
    NetworkPrior,
    known_prior,
    load_or_measure,
    measure_prior,
)
from edge_agent.engine.golden import SHIPPED
from edge_agent.engine.graph.prepare import prepare_reid
from edge_agent.engine.graph.prepared import profile_named
from edge_agent.engine.models import default_model
from edge_agent.engine.profiles import profile_of
from edge_agent.offline.people import write_sheet
from tests.tiny_networks import reid


def colours(crops: Sequence[np.ndarray], *, offset: float = 0.0) -> np.ndarray:
    """Embed crops by a coarse grid of colours; `offset` is shared by all."""
    small = np.stack([cv2.resize(crop, (3, 8), interpolation=cv2.INTER_AREA) for crop in crops])
    rows = small.reshape(len(crops), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.hstack([rows, np.full((len(rows), 1), offset, np.float32)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_every_camera_sees_its_people() -> None:
    visits = [people.visits(camera) for camera in range(people.CAMERAS)]
    assert len(people.crops()) == sum(map(len, visits)) * people.CROPS
    for one in visits:
        first = [visit.person for visit in one if not visit.again]
        assert len(set(first)) == len(first) == 20
        assert {visit.person for visit in one if visit.again} < set(first)
    seen = [visit.person for one in visits for visit in one if not visit.again]
    assert sorted(seen) == sorted([*range(people.PEOPLE)] * 2)


def test_a_measured_prior_orders_its_scores() -> None:
    prior = measure_prior(colours)
    raw, centred = prior.scores.raw, prior.scores.centred
    assert raw.impostors.mean > raw.impostors_across.mean
    assert raw.genuine.mean > raw.genuine_across.mean > raw.impostors.mean
    assert centred.impostors.mean == pytest.approx(0, abs=0.02)  # people of one camera are no more alike
    assert centred.impostors_across.mean == pytest.approx(0, abs=0.03)
    assert centred.genuine.mean > centred.impostors.reached_by(0.2)
    assert raw.impostors.people == people.PEOPLE
    assert -1 < prior.joins.live <= prior.joins.lost < 1
    assert NetworkPrior.from_json(json.loads(json.dumps(prior.to_json()))) == prior


def test_what_all_people_share_does_not_count_after_the_means() -> None:
    prior, shifted = measure_prior(colours), measure_prior(lambda crops: colours(crops, offset=1.0))
    assert shifted.scores.raw.impostors.mean > prior.scores.raw.impostors.mean + 0.2
    assert shifted.scores.raw.impostors.sd < prior.scores.raw.impostors.sd
    for kind in ("impostors", "genuine", "genuine_across"):
        one, other = getattr(prior.scores.centred, kind), getattr(shifted.scores.centred, kind)
        assert one.mean == pytest.approx(other.mean, abs=0.02), kind
        assert one.sd == pytest.approx(other.sd, rel=0.1), kind


def test_a_slow_network_is_measured_on_fewer_cameras() -> None:
    steps: list[str] = []
    prior = measure_prior(colours, steps.append, longest_s=0.0)
    assert len(steps) == 3
    assert prior.scores.raw.impostors.mean == pytest.approx(
        measure_prior(colours).scores.raw.impostors.mean, abs=0.2
    )


def test_a_network_that_sees_no_difference_has_no_prior() -> None:
    with pytest.raises(ValueError, match="moments"):
        measure_prior(lambda crops: np.tile(np.eye(1, 4, dtype=np.float32), (len(crops), 1)))


@pytest.mark.parametrize(
    "change", [{"version": 0}, {"scores": {}}, {"joins": {"live": 2, "lost": 3}}, {"joins": 1}]
)
def test_what_is_no_prior_of_these_people_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="prior"):
        NetworkPrior.from_json({**measure_prior(colours, longest_s=0).to_json(), **change})


def test_networks_with_shipped_references_have_a_prior(tmp_path: Path) -> None:
    for path in SHIPPED.glob("*.json"):
        assert known_prior(path.stem, tmp_path) is not None, (
            f"{path.name} has no prior: python -m edge_agent.offline.people priors MODEL"
        )


def test_the_shipped_network_needs_no_measurement(tmp_path: Path) -> None:
    model = default_model()
    assert model is not None
    space = prepare_reid(model, profile_named(profile_of(model).name)).space
    assert known_prior(space, tmp_path) is not None, "python -m edge_agent.offline.people priors"


def test_another_network_is_measured_once(tmp_path: Path) -> None:
    model = reid(tmp_path / "own.onnx")
    settings = EngineSettings(model=model, preprocess="tao")
    steps: list[str] = []
    with open_embedder(settings, QualitySettings(), tmp_path) as embedder:
        first = load_or_measure(embedder, tmp_path, steps.append)
        assert len(steps) == people.CAMERAS
        assert load_or_measure(embedder, tmp_path, steps.append) == first is not None
        assert len(steps) == people.CAMERAS
        (kept,) = (tmp_path / "priors").iterdir()
        assert kept.stat().st_mode & 0o077 == 0
        kept.write_text('{"prior": {"version": 0}}')
        assert load_or_measure(embedder, tmp_path, steps.append) == first  # again
    assert len(steps) == 2 * people.CAMERAS


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"prior": 1}', '{"prior": {"joins": []}}', "\x00\x01",
        '{"prior": {"joins": {"live": NaN, "lost": NaN}}}',
        '{"prior": {"joins": {"live": 1' + 400 * "0" + "}}}",
    ],
)  # fmt: skip
def test_a_damaged_copy_is_no_prior(tmp_path: Path, text: str) -> None:
    (tmp_path / "priors").mkdir()
    (tmp_path / "priors" / "0123456789abcdef.json").write_text(text)
    assert known_prior("0123456789abcdef", tmp_path) is None


def test_a_full_disk_costs_only_the_copy(tmp_path: Path) -> None:
    model = reid(tmp_path / "own.onnx")
    (tmp_path / "priors").write_text("not a folder")
    with (
        open_embedder(EngineSettings(model=model, preprocess="tao"), QualitySettings(), tmp_path) as embedder,
        capture_logs() as logs,
    ):
        found = load_or_measure(embedder, tmp_path, lambda _: None)
    assert found is not None
    assert [entry["event"] for entry in logs] == ["prior_measured", "prior_not_kept"]


def test_a_network_that_does_not_answer_has_no_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reid(tmp_path / "own.onnx")
    with open_embedder(
        EngineSettings(model=model, preprocess="tao"), QualitySettings(), tmp_path
    ) as embedder:

        def fail(_: object) -> None:
            raise EngineUnavailable("no answer")

        monkeypatch.setattr(embedder, "embed_images", fail)
        with capture_logs() as logs:
            assert load_or_measure(embedder, tmp_path, lambda _: None) is None
    assert [entry["event"] for entry in logs] == ["prior_not_measured"]


def test_simulated_networks_have_none(tmp_path: Path) -> None:
    settings = EngineSettings(backend="simulated:orin-fp16")
    with open_embedder(settings, QualitySettings(), tmp_path) as embedder:
        assert load_or_measure(embedder, tmp_path, lambda _: None) is None
    assert not (tmp_path / "priors").exists()


@pytest.mark.slow
def test_the_picture_of_the_people_is_that_of_the_renderer(tmp_path: Path) -> None:
    """Another version of OpenCV may round differently; other people are another version of the picture."""
    write_sheet(tmp_path / "people.jpg")
    made = cv2.imread(str(tmp_path / "people.jpg")).astype(np.int16)
    shipped = cv2.imread(str(people.SHEET)).astype(np.int16)
    assert made.shape == shipped.shape
    assert abs(made - shipped).mean() < 3
