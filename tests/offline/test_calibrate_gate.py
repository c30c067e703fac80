"""The accuracy gate and the match threshold, on embeddings whose outcome is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from edge_agent.core.errors import InputError
from edge_agent.identify.pairs import SiteScores
from edge_agent.offline.calibrate.gate import (
    Bounds,
    Embeddings,
    Gate,
    compare,
    match_threshold,
    threshold_without_data,
)
from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.protocol import evaluate

PEOPLE, CAMERAS, DIMENSION = 60, 3, 64


def crops(noise: float, *, seed: int = 0, people: int = PEOPLE, shift: float = 0.0) -> Embeddings:
    """Embeddings of people around a centre each; `shift` moves every vector towards one direction."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, DIMENSION))
    drift = np.zeros(DIMENSION)
    drift[0] = shift * math.sqrt(DIMENSION)

    def side(cameras: range, name: str) -> EmbeddedCrops:
        labels = [(pid, camera) for pid in range(1, people + 1) for camera in cameras]
        vectors = [centres[pid - 1] + drift + rng.normal(size=DIMENSION) * noise for pid, _ in labels]
        names = [f"{name}/{pid:04d}_c{camera}" for pid, camera in labels]
        return EmbeddedCrops.of(np.array(vectors), [p for p, _ in labels], [c for _, c in labels], names)

    return Embeddings(side(range(1, 2), "query"), side(range(2, CAMERAS + 1), "gallery"))


def disturbed(found: Embeddings, amount: float) -> Embeddings:
    """The same crops through an engine that errs by `amount` of a unit vector."""
    rng = np.random.default_rng(9)

    def one(side: EmbeddedCrops) -> EmbeddedCrops:
        error = rng.normal(size=side.vectors.shape) * amount / math.sqrt(DIMENSION)
        return EmbeddedCrops.of(side.vectors + error, list(side.pids), list(side.camids), side.names)

    return Embeddings(one(found.query), one(found.gallery))


DEFAULT = Bounds()


def gate_of(amount: float, bounds: Bounds = DEFAULT, noise: float = 0.8):
    reference = crops(noise)
    return compare(reference, disturbed(reference, amount), name="int8", bounds=bounds, target_fmr=1e-2)[0]


def test_the_same_engine_passes_with_nothing_lost() -> None:
    gate = gate_of(0.0)
    assert gate.passed is True
    assert gate.reasons == ()
    assert gate.mAP_fp32 == gate.mAP_candidate
    assert (gate.cosine_min, gate.cosine_median) == (pytest.approx(1, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert gate.threshold_drift == 0
    assert gate.crops == PEOPLE * CAMERAS


def test_cosines_are_those_of_the_disturbance() -> None:
    gate = gate_of(0.2, Bounds(1, 1, -1))
    assert gate.cosine_median == pytest.approx(1 / math.sqrt(1 + 0.2**2), abs=0.005)
    assert gate.cosine_min < gate.cosine_p1 < gate.cosine_median


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds(1, 1, 0.99), "median cosine to FP32 is"),
        (Bounds(0.0, 1, -1), "mAP falls from"),
        (Bounds(1, 0.0, -1), "rank-1 falls from"),
    ],
)
def test_each_bound_fails_the_candidate_by_itself(bounds: Bounds, words: str) -> None:
    gate = gate_of(1.0, bounds, noise=1.2)
    assert gate.passed is False
    assert len(gate.reasons) == 1
    assert words in gate.reasons[0]


def test_a_bound_that_is_met_exactly_is_met() -> None:
    measured = gate_of(1.0, Bounds(1, 1, -1), noise=1.2)
    exact = Bounds(
        measured.mAP_fp32 - measured.mAP_candidate,
        measured.rank1_fp32 - measured.rank1_candidate,
        measured.cosine_median,
    )
    assert gate_of(1.0, exact, noise=1.2).passed is True


def test_other_crops_are_refused() -> None:
    reference = crops(0.5)
    fewer = reference.gallery.take(np.arange(len(reference.gallery) - 1))
    with pytest.raises(InputError, match="did not embed the same crops"):
        compare(reference, Embeddings(reference.query, fewer), name="int8", bounds=Bounds(), target_fmr=1e-2)


def test_unmeasured_values_are_none() -> None:
    document = Gate("int8", False, ("NaN",), Bounds()).document()
    assert document["passed"] is False
    assert document["reasons"] == ["NaN"]
    assert document["mAP_candidate"] is None


# --- threshold -----------------------------------------------------------------------------------


def evaluation(target: float, people: int = PEOPLE):
    found = crops(0.8, people=people)
    return evaluate(found.query, found.gallery, targets=(target,))


def test_the_threshold_keeps_the_rate_that_was_asked_for() -> None:
    threshold = match_threshold(evaluation(1e-2), 1e-2)
    assert threshold.source == "evaluation"
    assert threshold.fmr <= 1e-2
    low, high = threshold.fmr_ci
    assert low <= threshold.fmr <= high
    assert threshold.pairs == PEOPLE * (PEOPLE - 1) * (CAMERAS - 1)
    assert 0 <= threshold.fnmr < 1


def test_a_rate_that_the_pairs_cannot_show_is_refused_with_the_count() -> None:
    threshold = match_threshold(evaluation(1e-5), 1e-5)
    assert threshold.value is None
    assert threshold.source == "none"
    assert "cannot support FMR 1e-05" in threshold.reason
    assert threshold.pairs == PEOPLE * (PEOPLE - 1) * (CAMERAS - 1)


def site(values: list[float]) -> dict:
    scores = SiteScores()
    for number, value in enumerate(values):
        scores.learn(f"#{number}", f"#{number + 1000}", value)
    return scores.to_json()


def test_a_harder_site_raises_the_threshold_and_is_named() -> None:
    alone = match_threshold(evaluation(1e-2), 1e-2)
    with_site = match_threshold(evaluation(1e-2), 1e-2, site([0.7, 0.72, 0.75, 0.69, 0.74]))
    assert with_site.value > alone.value
    assert with_site.source == "site"
    assert with_site.site_pairs == 5
    assert with_site.fmr <= alone.fmr
    assert with_site.fnmr >= alone.fnmr
    assert f"{alone.value:.4f}" in with_site.reason


def test_an_easier_site_changes_nothing() -> None:
    alone = match_threshold(evaluation(1e-2), 1e-2)
    with_site = match_threshold(evaluation(1e-2), 1e-2, site([-0.31, -0.3, -0.32, -0.29, -0.31]))
    assert with_site == dataclasses.replace(alone, site_pairs=5)


def test_without_data_there_is_a_policy_instead_of_a_number() -> None:
    threshold = threshold_without_data(1e-3)
    assert threshold.value is None
    assert "site" in threshold.reason
    assert threshold_without_data(1e-3, site([0.5, 0.52, 0.55, 0.49])).value > 0.55


def test_an_evaluation_for_another_rate_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no operating point"):
        match_threshold(evaluation(1e-2), 1e-3)
