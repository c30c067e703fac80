"""The accuracy gate (may an engine of lower precision replace the FP32 network?) and the match threshold.

Both engines embed the same query and gallery crops, which calibration does not use. The gate compares the two
embeddings of each crop (cosine), and the results of the same evaluation protocol. A candidate that passes
shares the embedding space of the FP32 network: galleries are kept when the engine is switched.

The threshold for a target false-match rate is computed from cross-camera pairs of the evaluation split
(`evaluate.openset`). Scores of a site may only raise it: a site can be harder than the data set, and the data
set cannot prove that it is easier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.core.errors import InputError
from edge_agent.gallery.gallery import GALLERY_FILE, open_gallery
from edge_agent.identify.pairs import SiteScores
from edge_agent.identify.site import SITE_FACT
from edge_agent.offline.evaluate.labels import EmbeddedCrops
from edge_agent.offline.evaluate.openset import INTERVAL_METHOD, OperatingPoint
from edge_agent.offline.evaluate.protocol import Evaluation, evaluate

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.engine.graph.prepared import PreparedGraph


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest allowed loss against FP32, as fractions (0.005 is half a point), and lowest median cosine."""

    max_map_loss: float = 0.005
    max_rank1_loss: float = 0.005
    min_median_cosine: float = 0.99


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One engine's embeddings of both sides of the evaluation split."""

    query: EmbeddedCrops
    gallery: EmbeddedCrops


@dataclass(frozen=True, slots=True)
class Gate:
    """Result of one candidate against FP32. Values that were not measured are None.

    Attributes:
        candidate: name of the step that made it: the precision, with a digest of kept nodes if there are any.
        passed: whether it stays within the bounds; None without data to measure it with.
        reasons: readable reasons for failure; empty when it passed.
        bounds: the limits.
        mAP_fp32, mAP_candidate, rank1_fp32, rank1_candidate: fractions, by the protocol of `evaluate`.
        cosine_min, cosine_p1, cosine_median: over the `crops`, of the cosine of a crop's two embeddings.
        crops: number of crops compared.
        threshold_fp32, threshold_candidate, threshold_drift: match thresholds, and their difference.
        fmr_at_fp32_threshold: false-match rate of the candidate at the threshold of FP32.
    """

    candidate: str
    passed: bool | None
    reasons: tuple[str, ...]
    bounds: Bounds
    mAP_fp32: float | None = None  # noqa: N815  the standard spelling
    mAP_candidate: float | None = None  # noqa: N815
    rank1_fp32: float | None = None
    rank1_candidate: float | None = None
    cosine_min: float | None = None
    cosine_p1: float | None = None
    cosine_median: float | None = None
    crops: int = 0
    threshold_fp32: float | None = None
    threshold_candidate: float | None = None
    threshold_drift: float | None = None
    fmr_at_fp32_threshold: float | None = None

    def document(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def compare(
    reference: Embeddings, candidate: Embeddings, *, name: str, bounds: Bounds, target_fmr: float
) -> tuple[Gate, Evaluation]:
    """Compare a candidate to FP32 by embeddings of the same crops; also return the candidate's evaluation.

    Raises:
        InputError: the two did not embed the same crops.
        DatasetError: no query has a match in another camera.
    """
    sides = ((reference.query, candidate.query), (reference.gallery, candidate.gallery))
    cosines = np.concatenate([_cosines(one, other) for one, other in sides])
    before = evaluate(reference.query, reference.gallery, targets=(target_fmr,))
    after = evaluate(candidate.query, candidate.gallery, targets=(target_fmr,))
    points = (before.points[0], after.points[0])
    old, new = (point.threshold if isinstance(point, OperatingPoint) else None for point in points)
    figures = {
        "mAP_fp32": before.ranking.mean_average_precision,
        "mAP_candidate": after.ranking.mean_average_precision,
        "rank1_fp32": before.ranking.rank(1),
        "rank1_candidate": after.ranking.rank(1),
        "cosine_min": float(cosines.min()),
        "cosine_p1": float(np.percentile(cosines, 1)),
        "cosine_median": float(np.median(cosines)),
    }
    reasons = tuple(_reasons(figures, bounds))
    gate = Gate(
        candidate=name,
        passed=not reasons,
        reasons=reasons,
        bounds=bounds,
        **figures,
        crops=len(cosines),
        threshold_fp32=old,
        threshold_candidate=new,
        threshold_drift=None if old is None or new is None else new - old,
        fmr_at_fp32_threshold=None if old is None else after.scores.fmr(old),
    )
    return gate, after


def _cosines(one: EmbeddedCrops, other: EmbeddedCrops) -> np.ndarray[Any, np.dtype[np.float32]]:
    if one.names != other.names:
        raise InputError(
            f"the two engines did not embed the same crops ({len(one)} and {len(other)}): files changed "
            "during the run; run it again"
        )
    cosines: np.ndarray[Any, np.dtype[np.float32]] = np.einsum("nd,nd->n", one.vectors, other.vectors)
    return cosines


def _reasons(figures: dict[str, float], bounds: Bounds) -> list[str]:
    """Reasons for failure. A loss is rounded to 1e-9, so that a loss equal to its bound passes."""
    reasons = []
    limits = (("mAP", "mAP", bounds.max_map_loss), ("rank-1", "rank1", bounds.max_rank1_loss))
    for what, key, most in limits:
        before, after = figures[f"{key}_fp32"], figures[f"{key}_candidate"]
        if round(before - after, 9) > most:
            reasons.append(
                f"{what} falls from {100 * before:.2f} % to {100 * after:.2f} %, by "
                f"{100 * (before - after):.2f} points; at most {100 * most:g} are allowed"
            )
    if figures["cosine_median"] < bounds.min_median_cosine:
        reasons.append(
            f"the median cosine to FP32 is {figures['cosine_median']:.4f}; at least "
            f"{bounds.min_median_cosine:g} is required"
        )
    return reasons


@dataclass(frozen=True, slots=True)
class MatchThreshold:
    """The threshold that `run` uses.

    Attributes:
        value: lowest cosine of a match, None when the data cannot support one.
        target_fmr: requested false-match rate, per comparison of two crops.
        fmr, fmr_ci: measured at `value`, and the 95 % interval, computed by `method`.
        fnmr: share of genuine pairs below `value`.
        pairs, genuine_pairs: cross-camera pairs of two people and of one that it is based on.
        source: `evaluation`, `site` when the site's scores set or raised it, or `none`.
        site_pairs: pairs of people of the site that were used.
        reason: why there is none, or what raised it.
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


def threshold_without_data(target_fmr: float, site: Mapping[str, Any] | None = None) -> MatchThreshold:
    """Return the site's threshold if it has one, else no threshold; for use without an evaluation split."""
    value, pairs = None, 0
    if site is not None:
        scores = SiteScores()
        scores.load(site)
        value, pairs = scores.threshold(target_fmr), len(scores)
    if value is not None:
        reason = "from the site's own pairs of people alone"
        return MatchThreshold(value, target_fmr, source="site", site_pairs=pairs, reason=reason)
    reason = (
        "no calibrated threshold: it follows from the network's prior and the scores of the site "
        "(docs/identity.md)"
    )
    return MatchThreshold(None, target_fmr, site_pairs=pairs, reason=reason)


def match_threshold(
    evaluation: Evaluation, target_fmr: float, site: Mapping[str, Any] | None = None
) -> MatchThreshold:
    """Return the threshold for `target_fmr` from an evaluation, with this target, of the engine to run.

    `site` is from `identify.site.SiteScores.to_json`, of a gallery of the same embedding space.

    Raises:
        ValueError: the evaluation was not made for this target.
    """
    point = next((p for p in evaluation.points if p.target_fmr == target_fmr), None)
    if point is None:
        raise ValueError(f"the evaluation has no operating point for FMR {target_fmr:g}")
    local, scores = threshold_without_data(target_fmr, site), evaluation.scores
    if not isinstance(point, OperatingPoint):
        impostors, genuine = scores.impostor_pairs, scores.genuine_pairs
        return replace(local, pairs=impostors, genuine_pairs=genuine, reason=point.reason)
    if local.value is not None and local.value > point.threshold:
        value, source, reason = local.value, "site", f"the site's pairs raised it from {point.threshold:.4f}"
        fmr, interval = scores.fmr(value), None
    else:
        value, source, reason = point.threshold, "evaluation", ""
        fmr, interval = point.fmr, point.fmr_ci
    return MatchThreshold(
        value,
        target_fmr,
        fmr=fmr,
        fmr_ci=interval,
        fnmr=scores.false_non_matches(value) / scores.genuine_pairs if scores.genuine_pairs else None,
        pairs=point.impostor_pairs,
        genuine_pairs=point.genuine_pairs,
        source=source,
        site_pairs=local.site_pairs,
        reason=reason,
    )


def site_scores(settings: Settings, prepared: PreparedGraph) -> dict[str, Any]:
    """Return the scores that the agent has collected with this network, from the gallery of the state folder.

    Raises:
        InputError: there is no gallery, or it has no such scores.
        SpaceMismatch: the gallery is of another network.
    """
    path = settings.state_dir / GALLERY_FILE
    found = None
    if path.is_file():
        info = prepared.info(backend="onnxruntime", device="cpu", max_batch=1)
        with open_gallery(settings, info) as gallery:
            found = gallery.facts.get(SITE_FACT)
    if not isinstance(found, dict) or not found.get("pairs"):
        raise InputError(
            f"{path} has no scores of this site yet: the agent collects them from people who are seen at the "
            "same time; let it run for a while, or leave --site-pairs out"
        )
    return found
