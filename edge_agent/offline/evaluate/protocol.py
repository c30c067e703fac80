"""An evaluation: from labelled embeddings to figures and the JSON document."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edge_agent.core.errors import DatasetError
from edge_agent.offline.dataset import JunkRule
from edge_agent.offline.evaluate.labels import EmbeddedCrops, Sides, apply_junk_rule
from edge_agent.offline.evaluate.metrics import CosineScores, Ranking, RankingTally, best_matches
from edge_agent.offline.evaluate.openset import (
    DEFAULT_TARGETS,
    INTERVAL_METHOD,
    EqualErrorPoint,
    OperatingPoint,
    PairScores,
    Unsupported,
    equal_error_point,
    operating_points,
)
from edge_agent.offline.evaluate.rerank import ReRankedScores, ReRanking

PROTOCOL = (
    "single query; unit rows, ascending squared Euclidean distance; gallery crops of the query's person and "
    "camera removed; queries without a match skipped; ties count against the match"
)

_CMC_DEPTH = 50
TOP = 10
"""Nearest gallery crops that a sampled query has by default."""


@dataclass(frozen=True, slots=True)
class SampledQuery:
    """One query (its row) with its nearest gallery crops, for the report."""

    query: int
    first: int
    """Rank of its best match."""
    average_precision: float
    nearest: tuple[tuple[int, bool], ...]
    """Gallery rows, nearest first, each with whether it is the same person."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All figures of one evaluation.

    `sides` are after the junk rule; `scores` are plain cosines also with re-ranking; `equal_error` is None
    without both kinds of pair; `hardest`: queries of lowest AP, `sampled`: others drawn at random (seed 0),
    `drawn`: some of all, drawn at random.
    """

    sides: Sides
    ranking: Ranking
    scores: PairScores
    equal_error: EqualErrorPoint | None
    points: tuple[OperatingPoint | Unsupported, ...]
    junk_rule: JunkRule
    reranking: ReRanking | None
    hardest: tuple[SampledQuery, ...]
    sampled: tuple[SampledQuery, ...]
    drawn: tuple[SampledQuery, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the figures as JSON values; missing figures are null."""
        ranking = self.ranking
        return {
            "mAP": ranking.mean_average_precision,
            "mINP": ranking.mean_inverse_penalty,
            **{f"rank{k}": ranking.rank(k) for k in (1, 5, 10)},
            "queries": len(self.sides.query),
            "gallery": len(self.sides.gallery),
            "queries_evaluated": len(ranking.rows),
            "queries_without_match": ranking.skipped,
            "queries_dropped": self.sides.dropped_queries,
            "queries_distractors": self.sides.distractor_queries,
            "queries_junk": self.sides.junk_queries,
            "gallery_dropped": self.sides.dropped_gallery,
            "cmc": ranking.cmc(min(_CMC_DEPTH, len(self.sides.gallery))).tolist(),
            **self._open_set(),
            "notes": list(self.sides.notes),
            "protocol": PROTOCOL,
            "junk_rule": self.junk_rule.value,
            "reranking": None if self.reranking is None else str(self.reranking),
        }

    def _open_set(self) -> dict[str, Any]:
        edges, genuine, impostor = self.scores.histograms()
        points = {rate_key(point.target_fmr): point for point in self.points}
        measured = {key: point for key, point in points.items() if isinstance(point, OperatingPoint)}
        return {
            "eer": self.equal_error and self.equal_error.rate,
            "eer_threshold": self.equal_error and self.equal_error.threshold,
            "fnmr": {key: measured[key].fnmr if key in measured else None for key in points},
            "fnmr_ci": {key: measured[key].fnmr_ci if key in measured else None for key in points},
            "operating_points": {key: _point_document(point) for key, point in points.items()},
            "interval_method": INTERVAL_METHOD,
            "genuine_pairs": self.scores.genuine_pairs,
            "impostor_pairs": self.scores.impostor_pairs,
            "det": [list(point) for point in self.scores.det()],
            "score_histogram": {
                "edges": edges.tolist(),
                "genuine": genuine.tolist(),
                "impostor": impostor.tolist(),
            },
        }


def rate_key(rate: float) -> str:
    """Return the key of a false-match rate, such as `1e-3` for 0.001."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _point_document(point: OperatingPoint | Unsupported) -> dict[str, Any]:
    if isinstance(point, Unsupported):
        return {"threshold": None, "reason": point.reason}
    values = asdict(point)
    del values["target_fmr"]
    return values | {"reason": None if point.fnmr is not None else "there is no genuine pair across cameras"}


def evaluate(
    query: EmbeddedCrops,
    gallery: EmbeddedCrops,
    *,
    junk_rule: JunkRule = JunkRule.STRICT,
    reranking: ReRanking | None = None,
    targets: tuple[float, ...] = DEFAULT_TARGETS,
    samples: int = 0,
    drawn: int = 0,
    depth: int = TOP,
) -> Evaluation:
    """Compute all figures, in blocks; labels are as in the file names.

    `targets` are false-match rates for which thresholds are computed; without `reranking`, crops are ranked
    by plain distance; `samples` hardest and as many other queries are kept, and `drawn` of all, each with its
    `depth` nearest crops.

    Raises:
        DatasetError: no query has a match in another camera.
        InputError: see `apply_junk_rule`.
    """
    sides = apply_junk_rule(query, gallery, junk_rule)
    query, gallery = sides.query, sides.gallery
    cosines = CosineScores(query.vectors, gallery.vectors)
    scorer = cosines if reranking is None else ReRankedScores(query.vectors, gallery.vectors, reranking)
    tally, scores = RankingTally(query, gallery), PairScores()
    for start, block in cosines.blocks():
        scores.add(query, gallery, start, block)
        if reranking is None:
            tally.add(start, block)
    if reranking is not None:
        for start, block in scorer.blocks():
            tally.add(start, block)
    ranking = tally.result()
    if ranking is None:
        raise DatasetError(
            f"none of the {len(query)} queries has a picture of its person in another camera in the gallery, "
            "so there is nothing to rank; check the person and camera numbers in the file names"
        )
    by_difficulty = np.argsort(ranking.average_precision, kind="stable")
    rest = by_difficulty[samples:]
    random = np.random.default_rng(0)
    others = np.sort(random.choice(rest, size=min(samples, len(rest)), replace=False))
    of_all = random.choice(by_difficulty, size=min(drawn, len(by_difficulty)), replace=False)
    hardest, sampled, chosen = (
        tuple(_sample(index, ranking, sides, scorer, depth) for index in indices)
        for indices in (by_difficulty[:samples], others, of_all)
    )
    return Evaluation(
        sides=sides,
        ranking=ranking,
        scores=scores,
        equal_error=equal_error_point(scores),
        points=operating_points(query, gallery, scores, targets),
        junk_rule=junk_rule,
        reranking=reranking,
        hardest=hardest,
        sampled=sampled,
        drawn=chosen,
    )


def _sample(
    index: int, ranking: Ranking, sides: Sides, scorer: CosineScores | ReRankedScores, depth: int
) -> SampledQuery:
    row = int(ranking.rows[index])
    nearest = tuple(best_matches(scorer.row(row), sides.query, row, sides.gallery, depth))
    return SampledQuery(row, int(ranking.first[index]), float(ranking.average_precision[index]), nearest)
