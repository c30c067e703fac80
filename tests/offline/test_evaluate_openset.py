"""False-match rates, thresholds and intervals against plain lists of scores."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.openset import (
    OperatingPoint,
    PairScores,
    Unsupported,
    choose_threshold,
    equal_error_point,
    operating_points,
    pairs_needed,
    threshold_at_fmr,
)

GRID = 2.0**-19


def sides(
    seed: int, *, people: int = 12, cameras: int = 3, per: int = 6, noise: float = 0.6
) -> tuple[EmbeddedCrops, EmbeddedCrops]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(people, 16))

    def side(count: int) -> EmbeddedCrops:
        pids = np.repeat(np.arange(people), count)
        vectors = centres[pids] + noise * random.normal(size=(len(pids), 16))
        camids = random.integers(1, cameras + 1, len(pids))
        return EmbeddedCrops.of(vectors, (pids + 1).tolist(), camids.tolist(), ["x"] * len(pids))

    return side(2), side(per)


def listed(query: EmbeddedCrops, gallery: EmbeddedCrops) -> tuple[list[float], list[float]]:
    """Genuine and impostor scores across cameras, pair by pair."""
    genuine, impostor = [], []
    for q, g in itertools.product(range(len(query)), range(len(gallery))):
        if query.camids[q] == gallery.camids[g]:
            continue
        score = float(query.vectors[q].astype(float) @ gallery.vectors[g].astype(float))
        (genuine if query.pids[q] == gallery.pids[g] else impostor).append(score)
    return genuine, impostor


def naive_eer(genuine: list[float], impostor: list[float]) -> float:
    """Where the polyline through all (FMR, FNMR) meets the diagonal."""
    steps = []
    for threshold in sorted({*genuine, *impostor, 2.0}):
        fmr = sum(score >= threshold for score in impostor) / len(impostor)
        fnmr = sum(score < threshold for score in genuine) / len(genuine)
        steps.append((fmr, fnmr))
    for (fmr0, fnmr0), (fmr1, fnmr1) in itertools.pairwise(steps):
        if fnmr1 >= fmr1:
            share = (fmr0 - fnmr0) / ((fmr0 - fnmr0) - (fmr1 - fnmr1))
            return fmr0 + share * (fmr1 - fmr0)
    raise AssertionError("no crossing")


@pytest.mark.parametrize("seed", range(5))
def test_counts_and_rates_equal_plain_lists(seed: int) -> None:
    query, gallery = sides(seed)
    genuine, impostor = listed(query, gallery)
    scores = PairScores.between(query, gallery)
    assert (scores.genuine_pairs, scores.impostor_pairs) == (len(genuine), len(impostor))
    for threshold in (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0):
        assert scores.false_matches(threshold) == sum(score >= threshold for score in impostor)
        assert scores.false_non_matches(threshold) == sum(score < threshold for score in genuine)


@pytest.mark.parametrize("seed", range(5))
def test_eer_equals_the_naive_one(seed: int) -> None:
    query, gallery = sides(seed, noise=1.5)
    found = equal_error_point(PairScores.between(query, gallery))
    assert found is not None
    assert found.rate == pytest.approx(naive_eer(*listed(query, gallery)), abs=1e-3)
    assert 0 < found.rate < 0.5


@pytest.mark.parametrize("target", [0.3, 0.1, 0.02, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_lowest_that_keeps_the_rate(seed: int, target: float) -> None:
    query, gallery = sides(seed, noise=1.2)
    genuine, impostor = listed(query, gallery)
    point = threshold_at_fmr(query, gallery, target)
    assert isinstance(point, OperatingPoint)
    accepted = sum(score >= point.threshold for score in impostor)
    assert (point.false_matches, point.impostor_pairs) == (accepted, len(impostor))
    assert point.fmr == accepted / len(impostor) <= target
    assert sum(score >= point.threshold - GRID for score in impostor) / len(impostor) > target
    assert point.false_non_matches == sum(score < point.threshold for score in genuine)
    assert point.fnmr == point.false_non_matches / len(genuine)


def test_a_rate_beyond_the_pairs_is_refused_with_the_reason() -> None:
    query, gallery = sides(0)
    pairs = PairScores.between(query, gallery).impostor_pairs
    point = threshold_at_fmr(query, gallery, 1e-6)
    assert isinstance(point, Unsupported)
    assert f"{pairs} impostor pairs" in point.reason
    assert str(pairs_needed(1e-6)) in point.reason


def test_rule_of_three() -> None:
    assert pairs_needed(1e-3) == math.ceil(math.log(20) * 1000) == 2996
    scores = PairScores.of(np.array([0.9]), np.linspace(-0.5, 0.5, 2996))
    assert isinstance(choose_threshold(scores, 1e-3), float)
    fewer = PairScores.of(np.array([0.9]), np.linspace(-0.5, 0.5, 2995))
    assert isinstance(choose_threshold(fewer, 1e-3), Unsupported)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_a_target_that_is_no_rate_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        choose_threshold(PairScores(), target)


def test_ties_at_the_threshold_are_all_accepted_or_all_refused() -> None:
    impostor = np.array([0.5] * 50 + [0.1] * 950)
    scores = PairScores.of(np.array([0.9]), impostor)
    threshold = choose_threshold(scores, 0.02)  # 20 of 1000 allowed, but the 50 stand together
    assert isinstance(threshold, float)
    assert 0.5 < threshold < 0.5 + 2 * GRID
    assert scores.false_matches(threshold) == 0


def test_separated_scores_have_no_errors_and_a_threshold_in_the_middle() -> None:
    scores = PairScores.of(np.array([0.8, 0.9]), np.array([0.1, 0.2]))
    found = equal_error_point(scores)
    assert found is not None
    assert found.rate == 0.0
    assert found.threshold == pytest.approx(0.5, abs=1e-4)


def test_missing_kinds_of_pair_give_none() -> None:
    assert equal_error_point(PairScores.of(np.array([0.5]), np.array([]))) is None
    assert equal_error_point(PairScores.of(np.array([]), np.array([0.5]))) is None
    assert PairScores().det() == []
    edges, genuine, impostor = PairScores().histograms(10)
    assert (len(edges), genuine.sum(), impostor.sum()) == (11, 0, 0)


def test_scores_at_the_ends_are_counted() -> None:
    scores = PairScores.of(np.array([1.0, 1.0000001], np.float32), np.array([-1.0, -1.0000001], np.float32))
    assert (scores.genuine_pairs, scores.impostor_pairs) == (2, 2)
    assert scores.false_matches(-1.0) == 2
    assert scores.false_non_matches(1.0 - GRID) == 0


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_block_height_changes_no_count(seed: int, height: int) -> None:
    query, gallery = sides(seed, people=5)
    whole, parts = PairScores.between(query, gallery), PairScores.between(query, gallery, height=height)
    np.testing.assert_array_equal(whole.genuine, parts.genuine)
    np.testing.assert_array_equal(whole.impostor, parts.impostor)


def test_det_falls_from_corner_to_corner() -> None:
    query, gallery = sides(1, noise=1.5)
    curve = PairScores.between(query, gallery).det()
    fmr, fnmr = np.array(curve).T
    assert (np.diff(fmr) <= 0).all()
    assert (np.diff(fnmr) >= 0).all()
    assert fmr[0] == 1.0
    assert ((fmr >= 0) & (fmr <= 1) & (fnmr >= 0) & (fnmr <= 1)).all()


def test_histograms_hold_every_pair() -> None:
    query, gallery = sides(1)
    scores = PairScores.between(query, gallery)
    edges, genuine, impostor = scores.histograms(40)
    assert (genuine.sum(), impostor.sum()) == (scores.genuine_pairs, scores.impostor_pairs)
    assert len(edges) == len(genuine) + 1
    expected, _ = np.histogram(listed(query, gallery)[0], edges)
    np.testing.assert_array_equal(genuine, expected)


# --- intervals -----------------------------------------------------------------------------------


def naive_bootstrap(
    query: EmbeddedCrops, gallery: EmbeddedCrops, threshold: float, replicates: int
) -> tuple[list[float], list[float]]:
    """FMR and FNMR under resampled persons, every pair looked at with its weight."""
    people = sorted({*query.pids.tolist(), *gallery.pids.tolist()})
    random = np.random.default_rng(99)
    fmrs, fnmrs = [], []
    for _ in range(replicates):
        drawn = random.choice(people, size=len(people))
        weight = {person: int((drawn == person).sum()) for person in people}
        accepted = impostors = refused = genuine = 0
        for q, g in itertools.product(range(len(query)), range(len(gallery))):
            if query.camids[q] == gallery.camids[g]:
                continue
            over = float(query.vectors[q].astype(float) @ gallery.vectors[g].astype(float)) >= threshold
            one, other = int(query.pids[q]), int(gallery.pids[g])
            if one == other:
                genuine += weight[one]
                refused += weight[one] * (not over)
            else:
                impostors += weight[one] * weight[other]
                accepted += weight[one] * weight[other] * over
        if impostors:
            fmrs.append(accepted / impostors)
        if genuine:
            fnmrs.append(refused / genuine)
    return fmrs, fnmrs


def test_intervals_are_those_of_resampled_persons() -> None:
    query, gallery = sides(4, people=8, per=2, noise=1.4)
    point = threshold_at_fmr(query, gallery, 0.1)
    assert isinstance(point, OperatingPoint)
    assert point.fnmr is not None
    assert point.fnmr_ci is not None
    fmrs, fnmrs = naive_bootstrap(query, gallery, point.threshold, 300)
    # Two bootstraps with other draws: their quantiles agree to a fraction of their spread.
    for found, draws in ((point.fmr_ci, fmrs), (point.fnmr_ci, fnmrs)):
        low, high = np.quantile(draws, [0.025, 0.975])
        assert found[0] <= low + 0.1 * (high - low)
        assert found[1] >= high - 0.1 * (high - low)
        assert found[1] - found[0] < 1.5 * (high - low)
    assert point.fmr_ci[0] < point.fmr < point.fmr_ci[1]
    assert point.fnmr_ci[0] < point.fnmr < point.fnmr_ci[1]


def test_no_error_at_all_still_has_an_upper_bound() -> None:
    """Clopper-Pearson at 0 of n: 1 - 0.025 ** (1 / n)."""
    query, gallery = sides(0, noise=0.01)
    point = threshold_at_fmr(query, gallery, 0.01)
    assert isinstance(point, OperatingPoint)
    genuine = point.genuine_pairs
    assert (point.fnmr, point.false_non_matches) == (0.0, 0)
    assert point.fnmr_ci == (0.0, pytest.approx(1 - 0.025 ** (1 / genuine)))


def test_one_unlucky_person_widens_the_interval() -> None:
    """The same number of false matches: spread over all persons, or all from one pair of twins."""
    random = np.random.default_rng(0)
    people, size = 30, 64
    centres = np.linalg.qr(random.normal(size=(size, people)))[0].T
    twins = centres.copy()
    twins[1] = twins[0]

    def width(centres: np.ndarray) -> float:
        query = EmbeddedCrops.of(centres, list(range(1, people + 1)), [1] * people, ["x"] * people)
        gallery = EmbeddedCrops.of(
            np.repeat(centres, 5, axis=0),
            np.repeat(np.arange(1, people + 1), 5).tolist(),
            [2] * (5 * people),
            ["x"] * (5 * people),
        )
        (point,) = operating_points(query, gallery, PairScores.between(query, gallery), [0.01])
        assert isinstance(point, OperatingPoint)
        return point.fmr_ci[1] - point.fmr_ci[0]

    assert width(twins) > 3 * width(centres)


def test_intervals_are_the_same_every_time() -> None:
    query, gallery = sides(2, noise=1.2)
    assert threshold_at_fmr(query, gallery, 0.05) == threshold_at_fmr(query, gallery, 0.05)


def test_several_targets_at_once_equal_one_at_a_time() -> None:
    query, gallery = sides(2, noise=1.2)
    scores = PairScores.between(query, gallery)
    together = operating_points(query, gallery, scores, [0.2, 0.05, 1e-6])
    assert together == tuple(threshold_at_fmr(query, gallery, target) for target in (0.2, 0.05, 1e-6))


def test_without_genuine_pairs_there_is_a_threshold_but_no_fnmr() -> None:
    query, gallery = sides(2)
    strangers = EmbeddedCrops(gallery.vectors, gallery.pids + 1000, gallery.camids, gallery.names)
    point = threshold_at_fmr(query, strangers, 0.05)
    assert isinstance(point, OperatingPoint)
    assert (point.fnmr, point.fnmr_ci, point.genuine_pairs) == (None, None, 0)
