"""Match threshold: the score that a newcomer reaches with no known identity, but for a small probability.

A search compares a person with everybody in the gallery. So the threshold is that of a pair rate which is
the target divided by the number of identities, and rises as the gallery grows. `identify/impostors.py`
estimates the scores of different people.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.structures import PEOPLE_FOR_HALF
from edge_agent.identify.impostors import FEWEST_IDENTITIES, MEAN_FOR, Angles, blend, strangers
from edge_agent.identify.pairs import MIN_PAIRS, SiteScores

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings
    from edge_agent.identify.cameras import CameraBias, CameraOffsets
    from edge_agent.identify.prior import Prior, Spread

COHORT = slice(2, 8)
"""Ranks of a search whose mean shows how alike somebody is to others. The first two may be the person, whom
the gallery may hold twice."""
FEWEST_COUNTED = 6
"""A smaller gallery counts as one of this size: a low threshold merges people where almost all are new."""
LARGE = 16
"""Least number of identities for that."""
MOST_SHIFT = 0.08
"""Greatest change of the threshold for one person."""
_COHORT_WEIGHT = 0.5
_SEARCHES_FOR_HALF, _SEARCHES_KEPT = 5.0, 100.0
SAMPLED = 48
"""Identities of the gallery that are compared with each other."""
_CHANGES, _RENEWED = 20, 2
"""The threshold is computed again after so many changed values of pairs, or so many times the number of pairs
if that is more: every picture of the same people changes the same values."""
_COUNTED = 100
"""Number of pairs up to which it is also computed again when there is one more."""
_USUAL = 0.9
"""Share of the visits of one person that match by the prior alone. A place where people are more alike than
the prior knows would otherwise join the first of them, and then see nobody from whom it could learn it."""
_GROWN = 1.1
"""Growth of the gallery after which they are chosen again."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Least cosine of a match (None: nothing is matched), and its rule.

    Attributes:
        rule: `configured`, `operator`, `calibrated`, `site`, `prior` or `warm-up`.
        pairs: pairs of people of the site who were seen together.
        identities: number of identities that a track is compared with.
        pair_rate, search_rate: estimated probability that a newcomer reaches `value` with one identity, and
            with any of them; None where nothing is known of the scores.
        stated: `value` for raw embeddings, as it is configured and published.
    """

    value: float | None
    rule: str
    pairs: int = 0
    identities: int = 0
    pair_rate: float | None = None
    search_rate: float | None = None
    stated: float | None = None

    def shifted(self, shift: float) -> Threshold:
        """Return a threshold that differs by so much; the rates stay those by looks."""
        if not shift or self.value is None or self.stated is None:
            return self
        return replace(self, value=min(1.0, self.value + shift), stated=min(1.0, self.stated + shift))


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Threshold of a calibration, and the false-match rate of pairs that it was measured for."""

    value: float
    pair_rate: float


SITE_FACT = "site_scores"  # name of the site's scores in the gallery file
OPERATOR_FACT = "operator_threshold"
"""The threshold that an operator has set; like all facts, it belongs to the embedding space."""


class FactStore(Protocol):
    """JSON values by key, stored with the identities."""

    def get(self, key: str) -> Any: ...  # noqa: ANN401, D102  any JSON value
    def set(self, key: str, value: Any) -> None: ...  # noqa: ANN401, D102


class Identities(Protocol):
    """The methods of `edge_agent.gallery.Gallery` that the threshold needs."""

    def __len__(self) -> int: ...
    def present(self) -> set[int]: ...  # noqa: D102
    def vectors(self, numbers: Collection[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...  # noqa: D102
    @property
    def facts(self) -> FactStore: ...  # noqa: D102
    @property
    def cameras(self) -> CameraOffsets: ...  # noqa: D102


class ThresholdPolicy:
    """Chooses the match threshold: the configured, the calibrated, or by scores of the site and the prior.

    The configured and the calibrated one are for raw embeddings: the offset of a camera takes as much from
    the threshold as from the scores of two people of this camera. Values that are returned are as compared.
    """

    def __init__(
        self,
        gallery: Identities,
        settings: IdentifySettings,
        calibrated: Calibrated | None = None,
        prior: Prior | None = None,
    ) -> None:
        self.calibrated = calibrated
        self.prior = prior
        self.site = SiteScores()
        self._gallery = gallery
        self._settings = settings
        self._by_hand: float | None = None
        self._strangers: Angles = np.zeros(0)
        self._sampled = (0, 0)  # size of the gallery when they were chosen, and their number
        self._state: object = None
        self._estimates: dict[float, tuple[Spread | None, float]] = {}
        """By the weight of a camera's mean, for `_state`: what `_scores` and `_usual` are with it."""
        self._scores: Spread | None = None
        self._usual = -1.0  # score that most visits of one person reach
        self._doubt = 0.0  # weight of the prior
        self._cohorts = (0.0, 0.0)  # number of people, and their mean likeness to others
        self._load()
        self._bias: CameraBias | None = None  # of the camera of this frame
        self.in_force = self.current()  # for this frame; joined identities may change the current one

    def as_stored(self) -> ThresholdPolicy:
        """Return another one, for another thread, by the scores that are stored."""
        return ThresholdPolicy(self._gallery, self._settings, self.calibrated, self.prior)

    def _load(self) -> None:
        by_hand = self._gallery.facts.get(OPERATOR_FACT)
        self._by_hand = float(by_hand) if isinstance(by_hand, float) and -1 <= by_hand <= 1 else None
        stored = self._gallery.facts.get(SITE_FACT)
        if isinstance(stored, dict) and isinstance(stored.get("pairs"), dict):
            self.site.load(stored)

    def current(self, bias: CameraBias | None = None) -> Threshold:
        """Return the threshold of a search among all identities; without a `bias`, for raw embeddings."""
        size = len(self._gallery)
        self._update(size, bias)
        return self._among(size, None, bias)

    def of(
        self, taken: int, likeness: float | None, bias: CameraBias | None = None, *, among: int = 0
    ) -> Threshold:
        """Return the threshold in this frame for somebody who is certainly none of `taken` identities.

        `among`: of a search among at least so many, which may be more than those in the gallery.
        """
        identities = max(self.in_force.identities, among)
        return self._among(max(1, identities - taken), likeness, bias or self._bias)

    def value_of(self, taken: int, bias: CameraBias | None = None) -> float | None:
        """Return the value of `of` for somebody of unknown likeness."""
        return self._value(max(1, self.in_force.identities - taken), None, bias or self._bias)[0]

    def _value(
        self, identities: int, likeness: float | None, bias: CameraBias | None
    ) -> tuple[float | None, str]:
        """Return the least cosine of a match, and its rule."""
        if self._settings.threshold is not None:
            return _after(bias, self._settings.threshold), "configured"
        if self._by_hand is not None:
            return _after(bias, self._by_hand), "operator"
        wanted = pair_rate(self._settings.target_fmr, max(identities, FEWEST_COUNTED))
        value, rule = self._by_scores(self._scores, wanted, bias)
        return (None if value is None else min(1.0, value + self._shift(likeness))), rule

    def _among(self, identities: int, likeness: float | None, bias: CameraBias | None) -> Threshold:
        value, rule = self._value(identities, likeness, bias)
        scores, rate, search = self._scores, None, None
        if scores is not None and value is not None:
            rate = scores.rate(value)
            search = search_rate(rate, identities)
        stated = value if value is None or bias is None else bias.before(value)
        return Threshold(value, rule, len(self.site), identities, rate, search, stated)

    def _by_scores(
        self, scores: Spread | None, rate: float, bias: CameraBias | None
    ) -> tuple[float | None, str]:
        calibrated = self.calibrated
        if scores is None:
            return (None, "warm-up") if calibrated is None else (_after(bias, calibrated.value), "calibrated")
        value = scores.reached_by(rate)
        proven = len(self.site) >= MIN_PAIRS or self._sampled[1] >= FEWEST_IDENTITIES
        if calibrated is None:
            value += max(0.0, self._usual - value) * self._doubt
            return value, "site" if proven else "prior"
        # The calibration knows one point of the tail; the scores, how far it is to the rate of this gallery.
        further = max(0.0, value - scores.reached_by(calibrated.pair_rate))
        least = min(1.0, _after(bias, calibrated.value) + further)
        # Higher where people of this place are more alike than those of the calibration.
        return (value, "site") if proven and value > least else (least, "calibrated")

    def _update(self, size: int, bias: CameraBias | None) -> None:
        """Estimate the scores of impostors; the latest stay where joined people took the last pairs away."""
        self._sample(size)
        pairs = len(self.site)
        state = (
            self.site.changes // max(_CHANGES, _RENEWED * pairs),
            min(pairs, _COUNTED),
            self._sampled,
            self.prior,
        )
        if state != self._state:
            self._state = state
            self._estimates.clear()
            if self.prior is not None:
                self._doubt = self._share_of_prior()
        weight = 0.0 if bias is None else round(bias.weight, 2)
        if weight not in self._estimates:
            self._estimates[weight] = self._estimated(bias)
        self._scores, self._usual = self._estimates[weight]

    def _estimated(self, bias: CameraBias | None) -> tuple[Spread | None, float]:
        expected = None if self.prior is None else self.prior.at(0.0 if bias is None else bias.weight)
        angles = self.site.angles(partial(self._relief, bias))
        found = blend(
            None if expected is None else expected.impostors,
            angles if len(self.site) >= MIN_PAIRS or expected is not None else np.zeros(0),
            self.site.people,
            self._strangers,
            self._sampled[1],
        )
        usual = self._usual if expected is None else expected.genuine.reached_by(_USUAL)
        return found or self._scores, usual

    def _share_of_prior(self) -> float:
        """Return the weight of what is usual for one person: none where people were seen together."""
        if len(self.site) >= MIN_PAIRS:
            return 0.0
        share = MEAN_FOR / (MEAN_FOR + self._sampled[1])
        return share / 2 if self._sampled[1] >= FEWEST_IDENTITIES else share

    def _relief(self, bias: CameraBias | None, camera: str | None) -> float:
        """Return the relief of a camera as things stand; that of `bias` for an unknown one."""
        if bias is None:
            return 0.0
        return (bias if camera is None else self._gallery.cameras.bias(camera)).relief

    def _sample(self, size: int) -> None:
        """Compare some identities with each other, again when the gallery has grown or shrunk by a tenth."""
        if self._sampled[0] / _GROWN <= size <= self._sampled[0] * _GROWN:
            return
        numbers = sorted(self._gallery.present())
        owners, vectors = self._gallery.vectors(numbers[:: -max(1, -(-size // SAMPLED))])
        found = strangers(owners, vectors, size + PEOPLE_FOR_HALF)
        self._strangers, self._sampled = found, (size, len(np.unique(owners)))

    def likeness(self, scores: Sequence[float]) -> float | None:
        """Return how much more somebody is like others than expected, from scores of a search, best first.

        Somebody dressed like many has high scores with many, and a lead over them means less.
        """
        identities, spread = self.in_force.identities, self._scores
        ranked = scores[COHORT]
        if identities < LARGE or spread is None or len(ranked) < COHORT.stop - COHORT.start:
            return None
        return sum(ranked) / len(ranked) - spread.reached_by((COHORT.start + COHORT.stop) / 2 / identities)

    def note(self, likeness: float) -> None:
        """Learn the likeness of one more person."""
        count, mean = self._cohorts
        count = min(count + 1, _SEARCHES_KEPT)
        self._cohorts = count, mean + (likeness - mean) / count

    def _shift(self, likeness: float | None) -> float:
        """Return what is added to the threshold for somebody of this likeness to others."""
        count, mean = self._cohorts
        if likeness is None:
            return 0.0
        shift = _COHORT_WEIGHT * count / (count + _SEARCHES_FOR_HALF) * (likeness - mean)
        return max(-MOST_SHIFT, min(MOST_SHIFT, shift))

    def refresh(self, bias: CameraBias | None = None) -> Threshold:
        """Put the current threshold in force, for the camera of this `bias`."""
        self._bias, self.in_force = bias, self.current(bias)
        return self.in_force

    def reload(self, settings: IdentifySettings) -> None:
        """Replace the settings."""
        self._settings = settings
        self.refresh(self._bias)

    def set_by_hand(self, value: float | None) -> None:
        """Set the threshold of an operator, a cosine of raw embeddings, until it is removed by None."""
        self._by_hand = None if value is None else float(value)
        self._gallery.facts.set(OPERATOR_FACT, self._by_hand)
        self.refresh(self._bias)

    def save(self) -> None:
        """Keep the site's scores for the next run."""
        self._gallery.facts.set(SITE_FACT, self.site.to_json())

    def forget(self) -> None:
        """Forget the site's scores, also in the gallery file."""
        self.site = SiteScores()
        self._state = self._scores = None
        self.save()
        self.refresh(self._bias)


def _after(bias: CameraBias | None, value: float) -> float:
    return value if bias is None else bias.after(value)


def pair_rate(target: float, identities: int) -> float:
    """Return the false-match rate of pairs by which a newcomer's search has the target."""
    return -math.expm1(math.log1p(-target) / max(identities, 1))


def search_rate(rate: float, identities: int) -> float:
    """Return the probability that a newcomer reaches a threshold of this pair rate with any identity."""
    return -math.expm1(max(identities, 1) * math.log1p(-min(rate, 1 - 1e-9)))
