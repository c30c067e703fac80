"""Differences of two networks and their intervals by the paired bootstrap over people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_agent.core.errors import InputError
from edge_agent.offline.evaluate.compare import differences
from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.protocol import Evaluation, evaluate

PEOPLE, DIMENSION = 30, 16


def evaluated(noise: float, seed: int = 1, people: int = PEOPLE) -> Evaluation:
    """An evaluation of vectors that scatter around one direction per person."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(people, DIMENSION))
    sides = []
    for camera, each in ((1, 3), (2, 4)):
        pids = np.repeat(np.arange(1, people + 1), each)
        vectors = centres[pids - 1] + random.normal(scale=noise, size=(len(pids), DIMENSION))
        names = [f"{camera}-{row}" for row in range(len(pids))]
        sides.append(EmbeddedCrops.of(vectors, pids.tolist(), [camera] * len(pids), names))
    return evaluate(*sides)


def test_a_network_differs_from_itself_by_nothing():
    same = evaluated(1.0)
    for one in differences(same, same):
        assert (one.first, one.low, one.high, one.certain) == (one.second, 0, 0, False)


def test_a_clearly_worse_network_is_certain_and_the_figures_are_those_of_the_evaluations():
    good, bad = evaluated(0.8), evaluated(2.0)
    found = {one.figure: one for one in differences(good, bad)}
    for key, figure in (("mAP", good.ranking.mean_average_precision), ("rank1", good.ranking.rank(1))):
        assert found[key].first == pytest.approx(figure)
        assert found[key].certain
        assert found[key].low <= found[key].second - found[key].first <= found[key].high < 0
    turned = {one.figure: one for one in differences(bad, good)}
    assert turned["mAP"].low == pytest.approx(-found["mAP"].high)


def test_two_draws_of_one_network_are_within_chance():
    certain = [
        one.certain
        for seed in range(20)
        for one in differences(evaluated(1.5, seed=2 * seed + 1), evaluated(1.5, seed=2 * seed + 2))
        if one.figure == "mAP"
    ]
    assert sum(certain) <= 4  # 1 of 20 on average; 5 or more with a probability of .003


def test_people_are_drawn_and_not_queries():
    """Queries of a person that succeed or fail together widen the interval."""
    first = evaluated(0.8)
    rows = np.arange(len(first.ranking.rows))
    precision = first.ranking.average_precision

    def width(failing: np.ndarray) -> float:
        changed = replace(first.ranking, average_precision=np.where(failing, 0.0, precision))
        found = differences(first, replace(first, ranking=changed))
        return next(one.high - one.low for one in found if one.figure == "mAP")

    together, apart = width(rows < len(rows) // 3), width(rows % 3 == 0)
    assert together > 2 * apart


def test_other_queries_and_a_single_person_are_refused():
    with pytest.raises(InputError, match="same queries"):
        differences(evaluated(1.0), evaluated(1.0, people=PEOPLE - 1))
    with pytest.raises(InputError, match="one person"):
        differences(evaluated(1.0, people=1), evaluated(1.0, people=1))
