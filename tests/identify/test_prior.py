"""The prior of the match threshold: its moments, its storage, and means that are subtracted in part."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge_agent.identify.prior import Prior, Scores, Spread

RAW = Scores(
    Spread(0.4, 0.1, 0.5, 200), Spread(0.3, 0.1, 0.6, 200),
    Spread(0.8, 0.06, -0.5, 200), Spread(0.7, 0.1, -0.6, 200),
)  # fmt: skip
CENTRED = Scores(
    Spread(0.0, 0.15, 0.8, 100), Spread(0.0, 0.14, 0.8, 100),
    Spread(0.7, 0.1, -0.5, 100), Spread(0.6, 0.12, -0.6, 100),
)  # fmt: skip
PRIOR = Prior(RAW, CENTRED, "rendered people")


def test_a_prior_survives_its_storage() -> None:
    assert Prior.from_json(json.loads(json.dumps(PRIOR.to_json()))) == PRIOR


def _with(**moments: object) -> dict[str, object]:
    stored = PRIOR.to_json()
    stored["raw"]["genuine"].update(moments)
    return stored


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"raw": 3, "centred": {}, "source": ""},
        _with(mean=2),
        _with(sd=float("nan")),
        _with(sd=0),
        _with(people=1),
        _with(skew=None),
        _with(skew="much"),
    ],
)
def test_what_is_no_prior_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"prior|moments|float"):
        Prior.from_json(broken)


def test_means_that_are_subtracted_in_part_are_in_between() -> None:
    assert PRIOR.at(0).impostors_across == RAW.impostors_across.towards(CENTRED.impostors_across, 0)
    assert PRIOR.at(0).genuine.mean == RAW.genuine.mean
    assert PRIOR.at(1).impostors.mean == pytest.approx(CENTRED.impostors.mean)
    half = PRIOR.at(0.5).impostors
    assert half.mean == pytest.approx(0.4 * 0.25)  # (1 - w)^2 of the shared offset is left
    assert half.people == 100


@pytest.mark.parametrize(("mean", "sd", "skew"), [(0.0, 0.15, 0.7), (0.6, 0.1, 0.0), (0.2, 0.12, -0.4)])
def test_a_rate_and_the_cosine_that_is_reached_by_it_belong_together(
    mean: float, sd: float, skew: float
) -> None:
    spread = Spread(mean, sd, skew, 100)
    for rate in (0.5, 1e-2, 1e-4, 1e-6):
        assert spread.rate(spread.reached_by(rate)) == pytest.approx(rate, rel=1e-6)
    assert spread.reached_by(1e-6) > spread.reached_by(1e-4) > spread.reached_by(1e-2)
    assert spread.reached_by(1e-300) <= 1
    assert spread.rate(-1.0) == pytest.approx(1.0)


def test_the_tail_of_skewed_scores_is_met() -> None:
    """Scores of clothes that many people have: with the same mean and spread, but a longer upper tail."""
    from scipy.stats import pearson3

    angles = pearson3.rvs(0.8, loc=0.1, scale=0.15, size=400_000, random_state=1)
    spread = Spread.of(np.sin(angles).astype(np.float32), 300)
    assert spread.skew == pytest.approx(0.8, abs=0.05)
    reached = float(np.quantile(np.sin(angles), 1 - 1e-4))
    assert spread.reached_by(1e-4) == pytest.approx(reached, abs=0.02)
    assert Spread(spread.mean, spread.sd, 0.0, 300).reached_by(1e-4) < reached - 0.05
