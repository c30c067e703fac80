"""The accuracy gate: whether an engine of lower precision may replace the FP32 network.

Both embed the same query and gallery crops, which calibration does not use. The gate compares the two
embeddings of each crop (cosine), and the results of the same evaluation protocol. A candidate that passes
shares the embedding space of the FP32 network: galleries are kept when the engine is switched.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edge_agent.core.errors import InputError
from edge_agent.offline.evaluate import EmbeddedCrops, Evaluation, OperatingPoint, evaluate
from edge_agent.offline.evaluate.pairs import PairScores

__all__ = ["Bounds", "Embeddings", "Gate", "compare", "failed"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest allowed loss of a candidate against FP32.

    Attributes:
        max_map_loss: largest loss of mAP, as a fraction (0.005 is half a point).
        max_rank1_loss: largest loss of rank-1, as a fraction.
        min_median_cosine: lowest median cosine between a crop's two embeddings.
    """

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
        cosine_min, cosine_p1, cosine_median: minimum, first percentile and median over the crops of the
            cosine between a crop's two embeddings.
        crops: number of crops compared.
        threshold_fp32, threshold_candidate: match thresholds at the target false-match rate.
        threshold_drift: `threshold_candidate - threshold_fp32`.
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


def failed(candidate: str, reason: str, bounds: Bounds) -> Gate:
    """Return the gate of a candidate that cannot be measured: it does not build, or outputs NaN."""
    return Gate(candidate, passed=False, reasons=(reason,), bounds=bounds)


def compare(
    reference: Embeddings, candidate: Embeddings, *, name: str, bounds: Bounds, target_fmr: float
) -> tuple[Gate, Evaluation]:
    """Compare a candidate to FP32; also return the candidate's evaluation.

    Args:
        reference: embeddings of the FP32 network.
        candidate: embeddings of the same crops, in the same order.
        name: of the candidate in reports.
        bounds: the limits.
        target_fmr: false-match rate at which thresholds are compared.

    Raises:
        InputError: the two did not embed the same crops.
        DatasetError: no query has a match in another camera.
    """
    cosines = np.concatenate(
        [_cosines(reference.query, candidate.query), _cosines(reference.gallery, candidate.gallery)]
    )
    before = evaluate(reference.query, reference.gallery, targets=(target_fmr,))
    after = evaluate(candidate.query, candidate.gallery, targets=(target_fmr,))
    old, new = _threshold(before), _threshold(after)
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
        fmr_at_fp32_threshold=None if old is None else _fmr(after.scores, old),
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


def _threshold(evaluation: Evaluation) -> float | None:
    point = evaluation.points[0]
    return point.threshold if isinstance(point, OperatingPoint) else None


def _fmr(scores: PairScores, threshold: float) -> float:
    return scores.false_matches(threshold) / scores.impostor_pairs


def _reasons(figures: dict[str, float], bounds: Bounds) -> list[str]:
    """Reasons for failure. A loss is rounded to 1e-9, so that a loss equal to its bound passes."""
    reasons = []
    for what, key, most in (
        ("mAP", "mAP", bounds.max_map_loss),
        ("rank-1", "rank1", bounds.max_rank1_loss),
    ):
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
