"""Scores of different people: what is expected, what a site's pictures prove, and what its gallery shows.

A threshold needs the upper tail of these scores. Three sources are blended, each for what it is good at:

- The *prior* of the network (`identify/prior.py`) is there at once, and knows the shape of the tail. It does
  not know the site: the mean of impostors differs between places by most of their standard deviation.
- *Seen together*: people in one picture of a camera are certainly different. They show mean, spread and tail,
  but only of people of one camera, and not at a site where everybody comes alone.
- The *gallery*: two of its identities are most likely different people, over all cameras and times. A few of
  them may be one person who was not recognised, so scores in the upper tail are cut off, and the tail beyond
  is that of the other sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_agent.identify.near import best_pairs
from edge_agent.identify.prior import Spread

Angles = NDArray[np.float64]

FEWEST_IDENTITIES = 12
"""Least number of identities whose scores say something without a prior: few may be one person."""
_CUT = 0.03
"""Upper share of the expected scores in which two identities may be one person."""
_SD, _SKEW = 0.15, 0.7
"""Of networks without a prior: typical of known networks, whose spreads are .08 to .18, and skews .2 to 1."""
MEAN_FOR, _SD_FOR, _SKEW_FOR = 3.0, 12.0, 150.0
"""Number of people after which a site's mean, spread and skew count as much as those of the prior.

With n people the mean of all pairs has a variance of about 1.2 sd²/n, the spread one of .25 sd²/n, the skew
one of 13/n. Between places they differ by about .6 sd, .15 sd and .3.
"""
_MEAN_ERROR = 1.3
"""Variance of the estimated mean, in sd² over the number of people and two more."""


def angles_of(cosines: NDArray[np.float32]) -> Angles:
    """Return arcsines."""
    return np.arcsin(np.clip(np.asarray(cosines, np.float64), -1, 1))


def strangers(owners: NDArray[np.int64], vectors: NDArray[np.float32], camera_votes: float) -> Angles:
    """Return the scores of some identities with each other, as arcsines: a newcomer's and an identity's.

    `owners` `(M,)` are the identities of the exemplars `(M, D)`, those of one together; the newest exemplar
    of each takes the part of the newcomer. Both people of a pair are in the mean that is subtracted from
    them, which lowers their cosine; a newcomer is not. `camera_votes` is the number of people in that mean,
    with those that stand for its shrinkage.
    """
    if not len(owners):
        return np.zeros(0)
    last = np.append(np.flatnonzero(owners[1:] != owners[:-1]), len(owners) - 1)
    numbers, scores = best_pairs(owners, vectors @ vectors[last].T)
    different = numbers[:, None] != owners[last][None]
    return angles_of(scores[different] + np.float32(1 / camera_votes))


def blend(
    prior: Spread | None, together: Angles, people: int, gallery: Angles, identities: int
) -> Spread | None:
    """Return the scores of impostors, of `people` seen together and `identities`; None: too little is known.

    The spread includes that the mean is not known exactly, as a prediction interval does.
    """
    if prior is None and not len(together) and identities < FEWEST_IDENTITIES:
        return None
    shape = _shape(prior, together, people)
    if prior is not None:
        spread = Spread(prior.mean, prior.sd, shape, 2)
    else:
        known = together if len(together) else gallery
        spread = Spread(_median(known), _SD, shape, 2)
    parts, count = [(together, people)] if len(together) else [], float(people)
    if not len(gallery):
        spread = _blended(prior, parts, count, shape)
    else:
        count += identities
        for _ in range(3):
            cut = math.asin(spread.reached_by(_CUT))
            spread = _blended(prior, [*parts, (np.minimum(gallery, cut), identities)], count, shape)
    return Spread(
        spread.mean, spread.sd * math.sqrt(1 + _MEAN_ERROR / (count + 2)), shape, max(2, int(count))
    )


def _shape(prior: Spread | None, together: Angles, people: int) -> float:
    expected = _SKEW if prior is None else prior.skew
    if len(together) < 3:
        return expected
    apart = together - _mean(together)
    squares = apart * apart
    sd = math.sqrt(_mean(squares))
    if sd < 1e-6:
        return expected
    seen = float(squares @ apart) / len(apart) / sd**3
    return (people * max(-1.0, min(2.0, seen)) + _SKEW_FOR * expected) / (people + _SKEW_FOR)


def _blended(prior: Spread | None, parts: Sequence[tuple[Angles, int]], count: float, shape: float) -> Spread:
    """Return the scores of values that count as so many people each part."""
    if not parts:
        assert prior is not None  # `blend`
        return Spread(prior.mean, prior.sd, shape, 2)
    weight = sum(people for _, people in parts)
    mean = sum(people * _mean(values) for values, people in parts) / weight
    variance = sum(people * _mean_square(values - mean) for values, people in parts) / weight
    expected = _SD if prior is None else prior.sd
    sd = math.sqrt((count * variance + _SD_FOR * expected**2) / (count + _SD_FOR))
    if prior is not None:
        mean = (count * mean + MEAN_FOR * prior.mean) / (count + MEAN_FOR)
    return Spread(mean, sd, shape, 2)


def _mean(values: Angles) -> float:
    return float(np.add.reduce(values)) / len(values)  # half the time of `values.mean()`


def _median(values: Angles) -> float:
    ordered = np.sort(values)  # a fifth of the time of `np.median`
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _mean_square(values: Angles) -> float:
    return float(values @ values) / len(values)
