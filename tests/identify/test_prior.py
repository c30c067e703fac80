"""The prior of the match threshold: its moments, its storage, and means that are subtracted in part."""

from __future__ import annotations

import json

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
