"""The threshold of a search: its false-match rate for galleries of all sizes, and what it is made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from edge_agent.core.config import IdentifySettings
from edge_agent.identify.impostors import blend, strangers
from edge_agent.identify.prior import Prior, Scores, Spread
from edge_agent.identify.site import Calibrated, ThresholdPolicy, pair_rate, search_rate

D = 96
TARGET = 0.02


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Town:
    """People with known truth: some dress like many others, so that scores of strangers are skewed."""

    def __init__(self, seed: int, noise: float, styles: int = 14, style: float = 0.35) -> None:
        self.random = np.random.default_rng(seed)
        self._styles = unit(self.random.normal(size=(styles, D)))
        self._style, self._noise = style, noise

    def people(self, count: int) -> np.ndarray:
        worn = self.random.zipf(1.6, count) % len(self._styles)
        own = unit(self.random.normal(size=(count, D)))
        share = self._style * self.random.uniform(0.3, 1.0, (count, 1))
        return unit(np.sqrt(share) * self._styles[worn] + np.sqrt(1 - share) * own)

    def visits(self, people: np.ndarray) -> np.ndarray:
        noise = self.random.normal(size=people.shape) / np.sqrt(D)
        return unit(np.sqrt(1 - self._noise) * people + np.sqrt(self._noise) * noise)


class Nothing:
    """Cameras without an offset."""

    relief = weight = 0.0


@dataclass
class Known:
    """A gallery of one exemplar for each identity."""

    rows: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)
    cameras: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def present(self) -> set[int]:
        return set(range(1, len(self.rows) + 1))

    def vectors(self, numbers: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        found = np.array(list(numbers), np.int64)
        return found, self.rows[found - 1]


def prior_of(town: Town) -> Prior:
    rows = town.visits(town.people(200))
    cosines = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    people = town.people(200)
    again = np.einsum("nd,nd->n", town.visits(people), town.visits(people))
    scores = Scores(
        Spread.of(cosines, 200), Spread.of(cosines, 200), Spread.of(again, 200), Spread.of(again, 200)
    )
    return Prior(scores, scores, "made-up people")


def policy(
    rows: np.ndarray, prior: Prior | None = None, *, target: float = TARGET, **settings: Any
) -> ThresholdPolicy:
    return ThresholdPolicy(Known(rows), IdentifySettings(target_fmr=target, **settings), None, prior)


@pytest.mark.parametrize("identities", [10, 50, 300, 1000])
@pytest.mark.parametrize("noise", [0.15, 0.45], ids=["strong network", "weak network"])
def test_newcomers_are_taken_for_somebody_as_often_as_aimed_for(identities: int, noise: float) -> None:
    """Of a hundred newcomers two may match, whatever the size of the gallery. The prior is of elsewhere."""
    wrong = searches = recognised = returned = 0
    for seed in range(6):
        town = Town(seed, noise)
        prior = prior_of(Town(100 + seed, noise))
        known = town.people(identities)
        rows = town.visits(known)
        threshold = policy(rows, prior).current().value
        assert threshold is not None
        best = (town.visits(town.people(400)) @ rows.T).max(axis=1)
        wrong, searches = wrong + int((best >= threshold).sum()), searches + 400
        again = np.einsum("nd,nd->n", town.visits(known), rows)
        recognised, returned = recognised + int((again >= threshold).sum()), returned + identities
    assert wrong / searches < 2 * TARGET
    if noise < 0.3:  # nothing is given away where people can be told apart
        assert recognised / returned > 0.95
    else:  # a weak network recognises fewer, the more people there are, but not nobody
        assert recognised / returned > 0.25


def test_one_threshold_for_all_sizes_would_merge_people() -> None:
    """Where the threshold of a small gallery stays as it grows, the rate does not."""
    town = Town(3, 0.45)
    rows = town.visits(town.people(1000))
    few = policy(rows[:50], prior_of(Town(103, 0.45))).current()
    assert few.value is not None
    best = (town.visits(town.people(400)) @ rows.T).max(axis=1)
    assert (best >= few.value).mean() > 2.5 * TARGET


def test_rates_of_pairs_and_searches_belong_together() -> None:
    for identities in (0, 1, 7, 1000):
        assert search_rate(pair_rate(0.02, identities), identities) == pytest.approx(0.02)
    assert pair_rate(0.02, 1000) == pytest.approx(0.02 / 1000, rel=0.02)


def test_the_threshold_rises_with_the_gallery_and_states_its_rates() -> None:
    town = Town(0, 0.3)
    prior, rows = prior_of(Town(1, 0.3)), town.visits(town.people(600))
    found = [policy(rows[:size], prior).current() for size in (20, 100, 600)]
    values = [one.value for one in found if one.value is not None]
    assert values == sorted(values)
    assert values[2] > values[0] + 0.03
    assert [one.identities for one in found] == [20, 100, 600]
    rates = [one.search_rate for one in found if one.search_rate is not None]
    assert len(rates) == 3
    assert all(0 < rate <= TARGET * 1.001 for rate in rates)  # less where the prior is all that is known
    assert found[2].pair_rate == pytest.approx(rates[2] / 600, rel=0.02)
    assert rates[2] > TARGET / 2
    assert {one.rule for one in found} == {"site"}


def test_a_prior_is_in_force_until_the_site_is_known() -> None:
    town = Town(0, 0.2)
    prior = prior_of(Town(1, 0.2))
    assert policy(np.zeros((0, D), np.float32)).current().rule == "warm-up"
    first = policy(town.visits(town.people(1)), prior).current()
    assert first.rule == "prior"
    assert first.value is not None
    assert policy(town.visits(town.people(1))).current().value is None
    assert policy(town.visits(town.people(12))).current().rule == "site"  # the gallery alone
    # The first of a place are matched by about the score that most visits of one person reach.
    tail = blend(prior.raw.impostors, np.zeros(0), 0, np.zeros(0), 0)
    assert tail is not None
    assert tail.reached_by(TARGET) + 0.1 < first.value < prior.raw.genuine.reached_by(0.9)


def test_certain_others_are_not_counted() -> None:
    town = Town(0, 0.3)
    thresholds = policy(town.visits(town.people(100)), prior_of(Town(1, 0.3)))
    thresholds.refresh()
    all_, few = thresholds.of(0, None), thresholds.of(95, None)
    assert all_.value is not None
    assert few.value is not None
    assert few.value < all_.value
    assert few.identities == 5
    assert thresholds.of(1000, None).identities == 1


def test_who_is_like_many_needs_a_higher_score() -> None:
    """People in uniform: a high score with one means little where the scores with all others are high."""
    town = Town(0, 0.3)
    thresholds = policy(town.visits(town.people(100)), prior_of(Town(1, 0.3)))
    thresholds.refresh()
    plain = [0.6, 0.5, *[0.3] * 8]
    for _ in range(20):
        usual = thresholds.likeness(plain)
        assert usual is not None
        thresholds.note(usual)
    alike = thresholds.likeness([0.8, 0.75, *[0.6] * 8])
    values = [thresholds.of(0, found).value for found in (usual, alike)]
    assert values[0] == pytest.approx(thresholds.current().value, abs=1e-6)
    assert values[1] > values[0] + 0.05
    assert thresholds.likeness(plain[:4]) is None
    few = policy(town.visits(town.people(5)), prior_of(Town(1, 0.3)))
    assert few.likeness(plain) is None


def test_a_site_of_people_who_are_alike_matches_less() -> None:
    prior = prior_of(Town(1, 0.3))
    usual, uniform = Town(0, 0.3), Town(0, 0.3, styles=2, style=0.8)
    values = [policy(town.visits(town.people(60)), prior).current().value for town in (usual, uniform)]
    assert values[1] > values[0] + 0.05


def test_people_who_were_not_recognised_do_not_raise_the_threshold_for_ever() -> None:
    """A third of the identities are somebody whom the gallery holds already."""
    town = Town(0, 0.3)
    prior = prior_of(Town(1, 0.3))
    people = town.people(60)
    twice = np.concatenate([town.visits(people), town.visits(people[:30])])
    clean = policy(town.visits(town.people(90)), prior).current().value
    mixed = policy(twice, prior).current().value
    assert mixed == pytest.approx(clean, abs=0.04)


@pytest.mark.parametrize("size", [1, 100])
def test_a_calibrated_threshold_rises_with_the_gallery_and_a_configured_one_does_not(size: int) -> None:
    town = Town(0, 0.3)
    rows, prior = town.visits(town.people(size)), prior_of(Town(1, 0.3))
    for value in (0.5, 0.9):
        settings = IdentifySettings(target_fmr=TARGET)
        found = ThresholdPolicy(Known(rows), settings, Calibrated(value, 1e-3), prior).current()
        assert found.value is not None
        assert (found.value > value) == (size == 100)
        if size == 1:
            assert found.rule == "calibrated"
    configured = policy(rows, prior, threshold=0.5).current()
    assert (configured.value, configured.rule) == (0.5, "configured")
    assert configured.search_rate is not None
    assert configured.search_rate > 0


def test_pairs_seen_together_count_with_the_offset_of_their_camera() -> None:
    """They are kept as raw cosines; where much is subtracted now, they are compared by what is left."""

    class Offsets:
        def bias(self, camera: str) -> Any:
            return self

        weight = 0.8

        def __init__(self, relief: float) -> None:
            self.relief = relief

        def after(self, cosine: float) -> float:
            return (cosine - self.relief) / (1 - self.relief)

        def before(self, cosine: float) -> float:
            return cosine + self.relief * (1 - cosine)

    def value(relief: float) -> float:
        known = Known(np.zeros((0, D), np.float32), cameras=Offsets(relief))
        thresholds = ThresholdPolicy(known, IdentifySettings())
        for n in range(30):
            thresholds.site.learn(f"a{n}", f"b{n}", 0.6 + 0.01 * (n % 5), "door")
        found = thresholds.current(known.cameras).value
        assert found is not None
        return found

    assert value(0.5) < value(0.0) - 0.2


def test_nothing_is_known_of_few_identities_without_a_prior() -> None:
    nothing = np.zeros(0)
    assert blend(None, nothing, 0, np.array([0.1, 0.2]), 5) is None
    assert blend(None, np.array([0.1, 0.2, 0.3, 0.2]), 5, nothing, 0) is not None
    assert len(strangers(np.zeros(0, np.int64), np.zeros((0, D), np.float32), 10)) == 0
    one = strangers(np.array([4, 4]), unit(np.ones((2, D))), 10)
    assert len(one) == 0
    assert blend(None, nothing, 0, one, 1) is None


def test_cameras_in_turn_are_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Camera:
        weight: float
        relief: float = 0.0

        def after(self, cosine: float) -> float:
            return cosine

        before = after

    town = Town(0, 0.3)
    thresholds = policy(town.visits(town.people(60)), prior_of(Town(1, 0.3)))
    cameras = [Camera(0.2), Camera(0.8)]
    before = [thresholds.refresh(camera) for camera in cameras]
    monkeypatch.setattr("edge_agent.identify.site.blend", None)
    assert [thresholds.refresh(camera) for camera in cameras] == before


def test_changes_of_the_settings_are_in_force_at_once() -> None:
    town = Town(0, 0.3)
    thresholds = policy(town.visits(town.people(60)), prior_of(Town(1, 0.3)))
    thresholds.reload(IdentifySettings(threshold=0.5))
    assert (thresholds.in_force.stated, thresholds.in_force.rule) == (0.5, "configured")
