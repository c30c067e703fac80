"""Scores that a network is expected to give, before a site has shown any of its own.

A prior is measured once for an embedding space, on people who are certainly different or the same. A site's
own scores take its place as they grow (`identify/site.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST_SKEW = 0.02
"""Below, the distribution is taken as normal; so too where it leans to the left."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Distribution of the cosines of one kind of pair of tracks, by three moments of their arcsines.

    The upper tail is that of a gamma distribution (Pearson type III) of the same skew.
    Arcsines, since cosines end at 1: the tail of rendered people was met to about .02 down to one pair
    in 10,000, where moments of cosines overestimate it by .05 and a normal distribution in Fisher's z
    underestimates it by .12.

    `people` is the number of people it was measured on; pairs of few people are no independent samples.
    """

    mean: float
    sd: float
    skew: float
    people: int

    def __post_init__(self) -> None:
        """Refuse numbers that no cosines can have."""
        in_range = abs(self.mean) <= math.pi / 2 and 0 < self.sd <= 2 and abs(self.skew) <= 10  # no NaN is
        if not (in_range and self.people >= 2):
            raise ValueError(f"no cosines of two people have these moments: {self}")

    @classmethod
    def of(cls, cosines: NDArray[np.float32], people: int) -> Spread:
        """Measure the cosines `(N,)`, at least two of them, of pairs of this many people."""
        angles = np.arcsin(np.clip(cosines.astype(np.float64), -1, 1))
        mean, sd = float(angles.mean()), max(float(angles.std()), 1e-3)
        return cls(mean, sd, float(((angles - mean) ** 3).mean()) / sd**3, people)

    def towards(self, other: Spread, share: float) -> Spread:
        """Return the distribution between this one (share 0) and another (1)."""
        return Spread(
            self.mean + share * (other.mean - self.mean),
            self.sd + share * (other.sd - self.sd),
            self.skew + share * (other.skew - self.skew),
            min(self.people, other.people),
        )

    def reached_by(self, rate: float) -> float:
        """Return the cosine that a pair reaches with this probability."""
        angle = self.mean + _deviation(self.skew, rate) * self.sd
        return math.sin(max(-math.pi / 2, min(math.pi / 2, angle)))

    def rate(self, cosine: float) -> float:
        """Return the probability that a pair reaches a cosine."""
        from scipy.special import gammaincc, ndtr

        deviation = (math.asin(max(-1.0, min(1.0, cosine))) - self.mean) / self.sd
        if self.skew < _LEAST_SKEW:
            return float(ndtr(-deviation))
        shape = 4 / self.skew**2
        return float(gammaincc(shape, max(0.0, shape + deviation * math.sqrt(shape))))


@lru_cache(maxsize=1024)
def _deviation(skew: float, rate: float) -> float:
    """Return the deviation, in standard deviations, that is exceeded with this probability."""
    from scipy.special import gammainccinv, ndtri  # scipy.stats has it too, and takes long to import

    if skew < _LEAST_SKEW:
        return -float(ndtri(rate))
    shape = 4 / skew**2
    return (float(gammainccinv(shape, rate)) - shape) / math.sqrt(shape)


@dataclass(frozen=True, slots=True)
class Scores:
    """Cosines of pooled tracks, about ten good crops each.

    Attributes:
        impostors: two people on one camera.
        impostors_across: two people, each on another camera.
        genuine: two visits of one person to one camera.
        genuine_across: visits of one person to two cameras.
    """

    impostors: Spread
    impostors_across: Spread
    genuine: Spread
    genuine_across: Spread


@dataclass(frozen=True, slots=True)
class Prior:
    """Expected scores of one embedding space.

    Attributes:
        raw: of the embeddings as the network makes them.
        centred: after the mean of each camera, over many people, is subtracted.
        source: what they were measured on, as text for people, e.g. `rendered people`.
    """

    raw: Scores
    centred: Scores
    source: str

    def at(self, weight: float) -> Scores:
        """Return the scores when the means are subtracted with a weight of 0 (raw) to 1 (centred)."""
        share = (2 - weight) * weight  # of the squared length of a mean that is subtracted twice
        return Scores(
            **{
                kind.name: getattr(self.raw, kind.name).towards(getattr(self.centred, kind.name), share)
                for kind in fields(Scores)
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return the argument of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Prior:
        """Read a prior; ValueError when it is not one."""
        try:
            return cls(_scores(stored["raw"]), _scores(stored["centred"]), str(stored["source"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a prior: {error!r}") from error


def _scores(stored: Mapping[str, Mapping[str, Any]]) -> Scores:
    return Scores(
        **{
            kind.name: Spread(
                float(stored[kind.name]["mean"]),
                float(stored[kind.name]["sd"]),
                float(stored[kind.name]["skew"]),
                int(stored[kind.name]["people"]),
            )
            for kind in fields(Scores)
        }
    )
