"""The match threshold for a target false-match rate, or why none can be derived.

It is computed from cross-camera pairs of the evaluation split (`evaluate.openset`). Scores of a site may
only raise it: a site can be harder than the data set, and the data set cannot prove that it is easier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge_agent.identify.site import SiteScores
from edge_agent.offline.evaluate import Evaluation, OperatingPoint
from edge_agent.offline.evaluate.openset import INTERVAL_METHOD

__all__ = ["POLICY_WITHOUT_DATA", "MatchThreshold", "choose", "without_data"]

POLICY_WITHOUT_DATA = (
    "no calibrated threshold: the site's own rule sets it once four pairs of people have been seen together "
    "(docs/identity.md); until then no one is matched"
)


@dataclass(frozen=True, slots=True)
class MatchThreshold:
    """The threshold that `run` uses.

    Attributes:
        value: lowest cosine of a match, None when the data cannot support one.
        target_fmr: requested false-match rate, per comparison of two crops.
        fmr: measured at `value`.
        fmr_ci: 95 % interval of `fmr`.
        fnmr: share of genuine pairs below `value`.
        pairs: cross-camera impostor pairs it is based on.
        genuine_pairs: cross-camera pairs of one person.
        source: `evaluation`, `site` when the site's scores set or raised it, or `none`.
        site_pairs: pairs of people of the site that were used.
        reason: readable reason why there is none, or what raised it.
        method: how the interval was computed.
    """

    value: float | None
    target_fmr: float
    fmr: float | None = None
    fmr_ci: tuple[float, float] | None = None
    fnmr: float | None = None
    pairs: int = 0
    genuine_pairs: int = 0
    source: str = "none"
    site_pairs: int = 0
    reason: str = ""
    method: str = INTERVAL_METHOD

    def document(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def without_data(target_fmr: float, site: Mapping[str, Any] | None = None) -> MatchThreshold:
    """Return the site's threshold if it has one, else no threshold; for use without an evaluation split."""
    value, pairs = _of_site(target_fmr, site)
    reason = POLICY_WITHOUT_DATA if value is None else "from the site's own pairs of people alone"
    return MatchThreshold(
        value, target_fmr, source="none" if value is None else "site", site_pairs=pairs, reason=reason
    )


def choose(
    evaluation: Evaluation, target_fmr: float, site: Mapping[str, Any] | None = None
) -> MatchThreshold:
    """Return the threshold for `target_fmr`.

    Args:
        evaluation: of the engine that will run, with `target_fmr` among its targets.
        target_fmr: false-match rate.
        site: from `identify.site.SiteScores.to_json`, of a gallery of the same embedding space.

    Raises:
        ValueError: the evaluation was not made for this target.
    """
    point = next((p for p in evaluation.points if p.target_fmr == target_fmr), None)
    if point is None:
        raise ValueError(f"the evaluation has no operating point for FMR {target_fmr:g}")
    local, site_pairs = _of_site(target_fmr, site)
    scores = evaluation.scores
    if not isinstance(point, OperatingPoint):
        source = "none" if local is None else "site"
        return MatchThreshold(
            local,
            target_fmr,
            pairs=scores.impostor_pairs,
            genuine_pairs=scores.genuine_pairs,
            source=source,
            site_pairs=site_pairs,
            reason=point.reason,
        )
    raised = local is not None and local > point.threshold
    value = local if local is not None and raised else point.threshold
    return MatchThreshold(
        value,
        target_fmr,
        fmr=scores.false_matches(value) / scores.impostor_pairs if raised else point.fmr,
        fmr_ci=None if raised else point.fmr_ci,
        fnmr=_fnmr(evaluation, value),
        pairs=point.impostor_pairs,
        genuine_pairs=point.genuine_pairs,
        source="site" if raised else "evaluation",
        site_pairs=site_pairs,
        reason=f"the site's pairs raised it from {point.threshold:.4f}" if raised else "",
    )


def _fnmr(evaluation: Evaluation, threshold: float) -> float | None:
    scores = evaluation.scores
    return scores.false_non_matches(threshold) / scores.genuine_pairs if scores.genuine_pairs else None


def _of_site(target_fmr: float, site: Mapping[str, Any] | None) -> tuple[float | None, int]:
    if site is None:
        return None, 0
    scores = SiteScores(target_fmr)
    scores.load(site)
    return scores.threshold().value, len(scores)
