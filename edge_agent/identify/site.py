"""Match threshold from the site's own impostor scores.

Two people in one frame of a camera are certain impostors of each other. Their pooled similarity, one value
for each pair of people, is a sample of the scores of different people at this site, with this network, this
camera and this light. A further such pair reaches the threshold only with the target probability: it is a
one-sided prediction limit of a normal distribution in Fisher's z
(z = atanh r; the limit is mean + t * sd * sqrt(1 + 1/n), Student's t with n - 1 degrees of freedom).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from edge_agent.core.config import IdentifySettings
    from edge_agent.identify.cameras import CameraBias

MIN_PAIRS = 4
"""Least number of pairs for a threshold."""
MIN_SPREAD = 0.05
"""Floor of the standard deviation in z: a few pairs that happen to agree prove little."""
MAX_QUANTILE = 6.0
"""Cap of Student's t, which would forbid every match for few pairs."""
MAX_PAIRS = 400
"""Pairs kept; older ones are dropped, so that the threshold follows the light and the season."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Least cosine of a match (None: nothing is matched), and its rule.

    The rule is `configured`, `calibrated`, `site` or `warm-up`; `pairs` counts the site's impostor pairs.
    """

    value: float | None
    rule: str
    pairs: int = 0


class SiteScores:
    """Impostor scores of one site, one value for each pair of people.

    A pair of different people may reach the threshold with the probability `target_fmr`.
    """

    def __init__(self, target_fmr: float) -> None:
        self._target = target_fmr
        self._pairs: OrderedDict[str, float] = OrderedDict()
        self._cached: Threshold | None = None
        self._held: Threshold | None = None

    def __len__(self) -> int:
        return len(self._pairs)

    def aim(self, target_fmr: float) -> None:
        """Change the target probability."""
        self._target = target_fmr
        self._cached = None

    def learn(self, person_a: str, person_b: str, cosine: float) -> None:
        """Set the value of a pair of people who were seen together."""
        key = "|".join(sorted((person_a, person_b)))
        self._pairs[key] = min(0.999, max(-0.999, float(cosine)))
        self._pairs.move_to_end(key)
        while len(self._pairs) > MAX_PAIRS:
            self._pairs.popitem(last=False)
        self._cached = None

    def rename(self, old: str, new: str) -> None:
        """Change the key of a person; of pairs that become one the newer value stays."""
        for key in [key for key in self._pairs if old in key.split("|")]:
            value = self._pairs.pop(key)
            a, b = key.split("|")
            if {a, b} != {old, new}:
                self.learn(new if a == old else a, new if b == old else b, value)
        self._cached = None

    def threshold(self) -> Threshold:
        """Return the site's threshold; without a value during the warm-up."""
        self._cached = self._cached or self._compute()
        return self._cached

    def drift(self) -> float | None:
        """Return the shift of the newer half of the pairs, in standard deviations; None: too few pairs."""
        values = np.arctanh(np.array(list(self._pairs.values())))
        if len(values) < 2 * MIN_PAIRS:
            return None
        older, newer = np.array_split(values, 2)
        return float((newer.mean() - older.mean()) / max(float(older.std(ddof=1)), MIN_SPREAD))

    def to_json(self) -> dict[str, Any]:
        """Return the argument of `load`."""
        return {"pairs": dict(self._pairs)}

    def load(self, stored: Mapping[str, Any]) -> None:
        """Add the pairs of an earlier run."""
        for key, value in stored.get("pairs", {}).items():
            people = str(key).split("|")
            if len(people) == 2 and isinstance(value, (int, float)) and -1.0 <= value <= 1.0:
                self.learn(people[0], people[1], float(value))

    def _compute(self) -> Threshold:
        count = len(self._pairs)
        if count < MIN_PAIRS:  # joined people remove pairs: the latest threshold stays
            return self._held or Threshold(None, "warm-up", count)
        from scipy.special import stdtrit  # scipy.stats has it too, and takes half a second to import

        values = np.arctanh(np.array(list(self._pairs.values())))
        spread = max(float(values.std(ddof=1)), MIN_SPREAD)
        quantile = min(float(stdtrit(count - 1, 1 - self._target)), MAX_QUANTILE)
        limit = float(values.mean()) + quantile * spread * math.sqrt(1 + 1 / count)
        self._held = Threshold(math.tanh(limit), "site", count)
        return self._held


SITE_FACT = "site_scores"  # name of the site's scores in the gallery file


class FactStore(Protocol):
    """JSON values by key, stored with the identities."""

    def get(self, key: str) -> Any: ...  # noqa: ANN401, D102  any JSON value
    def set(self, key: str, value: Any) -> None: ...  # noqa: ANN401, D102


class ThresholdPolicy:
    """Chooses the match threshold: the configured, the calibrated or the site's own."""

    def __init__(self, facts: FactStore, settings: IdentifySettings, calibrated: float | None) -> None:
        self.calibrated = calibrated
        self.site = SiteScores(settings.target_fmr)
        self._facts = facts
        self._settings = settings
        stored = facts.get(SITE_FACT)
        if isinstance(stored, dict) and isinstance(stored.get("pairs"), dict):
            self.site.load(stored)
        self.stated = self.current()
        """The threshold of this frame as of raw embeddings; joined identities may change the current one."""
        self.in_force = self.stated
        """The same as it is compared, for the camera of this frame."""

    def current(self, bias: CameraBias | None = None) -> Threshold:
        """Return the threshold and its rule, without a `bias` for raw embeddings.

        All rules are for raw embeddings. The offset of a camera takes as much from the threshold as from the
        scores of two people of this camera.
        """
        raw = self._raw()
        value = raw.value if raw.value is None or bias is None else bias.after(raw.value)
        return replace(raw, value=value)

    def _raw(self) -> Threshold:
        if self._settings.threshold is not None:
            return Threshold(self._settings.threshold, "configured")
        site = self.site.threshold()
        if self.calibrated is not None and (site.value is None or site.value <= self.calibrated):
            return Threshold(self.calibrated, "calibrated")
        return site  # higher where people of this place are more alike than those of the calibration

    def refresh(self, bias: CameraBias | None = None) -> Threshold:
        """Put the current threshold in force, for the camera of this `bias`."""
        self.stated, self.in_force = self.current(), self.current(bias)
        return self.in_force

    def reload(self, settings: IdentifySettings) -> None:
        """Replace the settings."""
        self._settings = settings
        self.site.aim(settings.target_fmr)

    def save(self) -> None:
        """Keep the site's scores for the next run."""
        self._facts.set(SITE_FACT, self.site.to_json())

    def forget(self) -> None:
        """Forget the site's scores, also in the gallery file."""
        self.site = SiteScores(self._settings.target_fmr)
        self.save()
