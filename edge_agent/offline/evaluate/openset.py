"""Open-set figures: false matches of strangers, missed matches of known people.

Pairs of one person are genuine, all others impostor (`pairs`). A pair is accepted at a threshold t when its
score is >= t:

- FMR(t): share of impostor pairs accepted; FNMR(t): share of genuine pairs rejected
  (ISO/IEC 19795-1, false match rate and false non-match rate).
- EER: the common value where the two curves cross, linear between the two neighbouring thresholds.

**Required data.** n impostor pairs without a false match show, at 95 % confidence, only that FMR <= 3/n (rule
of three, exactly -ln(0.05)/n). A target below that is refused with the reason.

**Confidence intervals, 95 %.** A two-sided percentile bootstrap over persons (`bootstrap`). With few errors
it is too narrow (with none it is [0, 0]), so each bound is the wider of the bootstrap's and the exact
binomial one (Clopper-Pearson). The threshold is fixed in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.offline.evaluate.bootstrap import PersonBootstrap
from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.pairs import BINS_PER_UNIT, PairScores

__all__ = [
    "DEFAULT_TARGETS",
    "INTERVAL_METHOD",
    "EqualErrorPoint",
    "Interval",
    "OperatingPoint",
    "Unsupported",
    "choose_threshold",
    "equal_error_point",
    "operating_points",
    "pairs_needed",
    "threshold_at_fmr",
]

DEFAULT_TARGETS = (1e-2, 1e-3, 1e-4)

INTERVAL_METHOD = (
    "95 %; wider of percentile bootstrap over persons (1000 replicates, seed 0) and Clopper-Pearson; "
    "threshold fixed"
)

_CONFIDENCE = 0.95

Interval = tuple[float, float]
"""Lower and upper bound, both 0..1."""


@dataclass(frozen=True, slots=True)
class EqualErrorPoint:
    """Point at which FMR and FNMR are equal.

    Attributes:
        rate: the common value, 0..1.
        threshold: its score.
    """

    rate: float
    threshold: float


def equal_error_point(scores: PairScores) -> EqualErrorPoint | None:
    """Return the EER, linear between the thresholds around the crossing; None without both kinds of pair."""
    if not (scores.genuine_pairs and scores.impostor_pairs):
        return None
    thresholds, fmr, fnmr = scores.curve()
    after = int(np.argmax(fnmr >= fmr))  # exists: at the last edge FNMR is 1 and FMR 0
    gap_before, gap_after = fmr[after - 1] - fnmr[after - 1], fmr[after] - fnmr[after]
    step = gap_before / (gap_before - gap_after)
    rate = fmr[after - 1] + step * (fmr[after] - fmr[after - 1])
    # well-separated scores: the curves coincide over an interval, whose middle is the threshold
    flat = np.flatnonzero((fmr == fmr[after]) & (fnmr == fnmr[after])) if gap_after == 0 else [after]
    return EqualErrorPoint(float(rate), float(thresholds[[flat[0], flat[-1]]].mean()))


def pairs_needed(target_fmr: float) -> int:
    """Return the number of impostor pairs below which even zero false matches cannot show `target_fmr`."""
    return math.ceil(-math.log(1 - _CONFIDENCE) / target_fmr)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold with its measured rates, counts and intervals.

    Attributes:
        target_fmr: requested rate.
        threshold: lowest threshold on the grid whose FMR is at most the target; scores at it are accepted.
        fmr: measured share of impostor pairs accepted.
        fmr_ci: interval of `fmr`, see the module.
        false_matches: impostor pairs accepted.
        impostor_pairs: impostor pairs in all.
        fnmr: measured share of genuine pairs refused, or None without genuine pairs.
        fnmr_ci: interval of `fnmr`, or None.
        false_non_matches: genuine pairs refused.
        genuine_pairs: genuine pairs in all.
    """

    target_fmr: float
    threshold: float
    fmr: float
    fmr_ci: Interval
    false_matches: int
    impostor_pairs: int
    fnmr: float | None
    fnmr_ci: Interval | None
    false_non_matches: int
    genuine_pairs: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A target rate that the data cannot support, and the reason."""

    target_fmr: float
    reason: str


def choose_threshold(scores: PairScores, target_fmr: float) -> float | Unsupported:
    """Return the lowest threshold whose measured FMR is at most `target_fmr`.

    Raises:
        ValueError: the target is not between 0 and 1.
    """
    if not 0 < target_fmr < 1:
        raise ValueError(f"target FMR must lie between 0 and 1, got {target_fmr}")
    pairs, needed = scores.impostor_pairs, pairs_needed(target_fmr)
    if pairs < needed:
        reason = (
            f"{pairs} impostor pairs across cameras cannot support FMR {target_fmr:g}: even without one "
            f"false match, {needed} are needed for 95 % confidence (rule of three); "
            "add people or cameras, or request a higher rate"
        )
        return Unsupported(target_fmr, reason)
    allowed = math.floor(target_fmr * pairs + 1e-9)
    accepted = pairs - np.concatenate([[0], np.cumsum(scores.impostor)])
    edge = int(np.argmax(accepted <= allowed))
    return edge / BINS_PER_UNIT - 1.0


def threshold_at_fmr(
    query: EmbeddedCrops, gallery: EmbeddedCrops, target_fmr: float
) -> OperatingPoint | Unsupported:
    """Choose the match threshold for a target false-match rate from cross-camera pairs.

    Labels must come from `apply_junk_rule`.

    Raises:
        ValueError: the target is not between 0 and 1.
    """
    return operating_points(query, gallery, PairScores.between(query, gallery), (target_fmr,))[0]


def operating_points(
    query: EmbeddedCrops, gallery: EmbeddedCrops, scores: PairScores, targets: Iterable[float]
) -> tuple[OperatingPoint | Unsupported, ...]:
    """Return the thresholds for several targets, with intervals; needs one more pass over the pairs."""
    targets = tuple(targets)
    choices = [choose_threshold(scores, target) for target in targets]
    thresholds = [choice for choice in choices if isinstance(choice, float)]
    bootstrap = PersonBootstrap(query, gallery, thresholds)
    points: list[OperatingPoint | Unsupported] = []
    for target, choice in zip(targets, choices, strict=True):
        if isinstance(choice, Unsupported):
            points.append(choice)
        else:
            points.append(_point(scores, target, choice, bootstrap))
    return tuple(points)


def _point(scores: PairScores, target: float, threshold: float, bootstrap: PersonBootstrap) -> OperatingPoint:
    accepted, impostors = scores.false_matches(threshold), scores.impostor_pairs
    refused, genuine = scores.false_non_matches(threshold), scores.genuine_pairs
    fmr_draws, fnmr_draws = bootstrap.rates(threshold)
    return OperatingPoint(
        target_fmr=target,
        threshold=threshold,
        fmr=accepted / impostors,
        fmr_ci=_interval(accepted, impostors, fmr_draws),
        false_matches=accepted,
        impostor_pairs=impostors,
        fnmr=refused / genuine if genuine else None,
        fnmr_ci=_interval(refused, genuine, fnmr_draws) if genuine else None,
        false_non_matches=refused,
        genuine_pairs=genuine,
    )


def _interval(errors: int, trials: int, draws: NDArray[np.float64]) -> Interval:
    """The wider of the percentile interval of `draws` and the Clopper-Pearson interval, bound by bound."""
    from scipy.special import betaincinv  # scipy.stats takes a second to import

    tail = (1 - _CONFIDENCE) / 2
    low = float(betaincinv(errors, trials - errors + 1, tail)) if errors else 0.0
    high = float(betaincinv(errors + 1, trials - errors, 1 - tail)) if errors < trials else 1.0
    if len(draws):
        drawn_low, drawn_high = np.quantile(draws, [tail, 1 - tail])
        low, high = min(low, float(drawn_low)), max(high, float(drawn_high))
    return low, high
